"""Contrastive cDPO from samples to table, critical tokens and page, on the smallest world."""

import csv
import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from core_jax import memory
from core_jax.errors import ConfigError, DataError
from core_jax.mesh import MeshConfig, make_mesh
from reasoning_jax import contrastive
from reasoning_jax.align.methods import TITLES, Row
from reasoning_jax.align.pair_file import read_pairs, write_pairs
from reasoning_jax.contrastive import run_pipeline
from reasoning_jax.contrastive_run import base_model, contrast_folder, method_config
from reasoning_jax.data.token_values import read_token_values
from reasoning_jax.model import decoder_lm
from reasoning_jax.model.config import LoraConfig
from reasoning_jax.stages import base, critical, prefer, reference, rollout, score, sets, sft
from reasoning_jax.weights import model_source
from reasoning_jax.weights.model_source import ModelConfig, load_source
from tests.end_to_end.shrunk_contrastive import ROWS, shrunk_contrastive

pytestmark = pytest.mark.long


def one_device(config=None):
    return make_mesh(config or MeshConfig(data=1), jax.devices()[:1])


@pytest.fixture(scope="module", autouse=True)
def _on_one_device():
    """Stages make their mesh of all devices; these tests want one."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (base, contrastive, critical, prefer, reference, rollout, score, sft):
            patch.setattr(module, "make_mesh", one_device)
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    made = shrunk_contrastive(tmp_path_factory.mktemp("cdpo") / "run")
    run_pipeline(made)
    return made


def root(config):
    return pathlib.Path(config.run_dir)


def table(config):
    with (root(config) / "table/table.csv").open(newline="") as file:
        return {row["row"]: row for row in csv.DictReader(file)}


def results(config):
    """Everything that a run is done for, as bytes."""
    names = ("table/table.csv", "table/table.md", "seed0/view/index.html")
    found = {name: (root(config) / name).read_bytes() for name in names}
    for path in sorted(root(config).glob("seed0/contrast/stages/*/*.jsonl")):
        found[path.name] = path.read_bytes()
    return found


def test_every_row_is_in_the_table(config):
    text = (root(config) / "table/table.md").read_text(encoding="utf-8")
    for row in ROWS:
        assert f"| {TITLES[row]} |" in text
    for name in ("table.png", "curves.png"):
        assert (root(config) / "table" / name).read_bytes().startswith(b"\x89PNG")
    rows = table(config)
    assert list(rows) == [row.value for row in ROWS]
    for row in rows.values():
        solved = float(row["accuracy"]) * 7
        assert 0 <= solved <= 7 and abs(solved - round(solved)) < 1e-9
        assert float(row["low"]) <= float(row["accuracy"]) <= float(row["high"])


def test_controls_push_as_much_as_what_they_control(config):
    """DPO weighs every rejected token by one, contrastive cDPO by less; shuffling keeps that."""
    rows = table(config)
    assert rows["baseline"]["rejected_weight"] == rows["sft"]["rejected_weight"] == ""
    assert float(rows["dpo"]["rejected_weight"]) == 1.0
    own = float(rows["cdpo"]["rejected_weight"])
    assert 0 < own < 0.95
    assert float(rows["cdpo_shuffled"]["rejected_weight"]) == pytest.approx(own, rel=1e-5)


def test_rows_cost_what_they_rest_on(config):
    """A row from the fine-tuned model costs that one's tokens too, and so on."""
    rows = {name: int(row["tokens"]) for name, row in table(config).items()}
    assert rows["baseline"] == 0 < rows["sft"] < rows["dpo"]
    assert rows["tdpo2"] > rows["sft"] + rows["dpo"] - 1 and rows["tgdpo"] > 2 * rows["dpo"] - 1
    assert rows["cdpo"] == rows["cdpo_shuffled"] > rows["dpo"]


def test_the_estimate_and_the_page_are_there(config):
    estimate = root(config) / "seed0/critical/stages/estimate/estimate.md"
    text = estimate.read_text(encoding="utf-8")
    assert "| critical token |" in text and "| first error |" in text and "AUC" in text
    page = (root(config) / "seed0/view/index.html").read_text(encoding="utf-8")
    problem = sets.finished_pairs(contrast_folder(config, 0))[0]
    assert problem.problem_id in page or problem.chosen.prompt.split("\n")[0][10:] in page
    assert page.rstrip().endswith("</html>") and "://" not in page.split("<body", 1)[0]


def test_every_token_of_the_pairs_has_a_score(config):
    """Of two whole models: the positive and the negative one are fine-tuned in full."""
    assert config.contrast.lora.rank == 0
    folder = contrast_folder(config, 0)
    scores = read_token_values(pathlib.Path(folder) / "stages/score/scores.jsonl")
    for pair in sets.finished_pairs(folder):
        for one in (pair.chosen, pair.rejected):
            values = scores[one.key].named("log_score@1.0")
            assert len(values) == len(one.token_ids) - one.response_start
            assert max(values) <= 1e-5


def test_a_second_call_does_nothing_anew(config):
    before = results(config)
    times = {path: path.stat().st_mtime_ns for path in root(config).rglob("done.json")}
    assert len(times) == 31
    run_pipeline(config)
    assert results(config) == before
    assert times == {path: path.stat().st_mtime_ns for path in root(config).rglob("done.json")}


def logits(model):
    tokens = jax.numpy.asarray([[2, 3, 5, 7, 11, 13, 17]])
    hidden = decoder_lm.apply(model.config, model.params, decoder_lm.whole_rows(tokens)).hidden
    return np.asarray(decoder_lm.logits(model.config, model.params, hidden))


def check_exported(training, start):
    """What others load computes what was trained, which has moved from its start."""
    mesh = one_device()
    trained = logits(prefer.load_policy(training, mesh))
    found = logits(load_source(prefer.export_policy(training), mesh))
    np.testing.assert_allclose(found, trained, rtol=0, atol=1e-5)
    assert np.abs(trained - logits(load_source(start, mesh))).max() > 1e-3


def test_an_adapter_is_exported_as_one(config):
    training = method_config(config, 0, Row.SFT)
    written = prefer.exported(training)
    assert written.adapter and written.source == base_model(config).source
    assert not list(pathlib.Path(written.adapter).glob("model*.safetensors"))
    check_exported(training, base_model(config))


def test_an_adapter_on_an_adapter_is_exported_whole(config):
    """The start of the second is the first, merged."""
    training = method_config(config, 0, Row.TDPO2)
    assert training.model == prefer.exported(method_config(config, 0, Row.SFT))
    written = prefer.exported(training)
    assert not written.adapter and written.source.endswith("tdpo2/exported")
    check_exported(training, training.model)


def test_all_parameters_are_trained_and_exported(config, tmp_path):
    like = method_config(config, 0, Row.CDPO)
    train = dataclasses.replace(like.train, lora=LoraConfig(rank=0))
    training = dataclasses.replace(like, train=train, run_dir=str(tmp_path / "run"))
    assert prefer.run(training)
    check_exported(training, base_model(config))


def test_an_export_that_was_cut_off_is_made_anew(config, tmp_path):
    """Its last file is missing: what is there goes, and comes again."""
    training = method_config(config, 0, Row.DPO)
    copy = dataclasses.replace(training, run_dir=str(tmp_path / "run"))
    shutil.copytree(training.run_dir, copy.run_dir)
    folder = pathlib.Path(prefer.exported(copy).adapter)
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "exported.json").unlink()
    (folder / "adapter_model.safetensors").write_bytes(b"torn")
    (folder / "other.safetensors").touch()
    prefer.export_policy(copy)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole


def assert_refused(training, folder, match, **changes):
    """The training with other files is refused, and leaves no result."""
    broken = dataclasses.replace(training, run_dir=str(folder / "refused"), **changes)
    with pytest.raises(DataError, match=match):
        prefer.run(broken)
    assert not list(pathlib.Path(broken.run_dir).rglob("done.json"))


@pytest.mark.parametrize("torn", [False, True])
@pytest.mark.parametrize("name", ["score", "reference", "sets"])
def test_a_file_that_was_cut_though_its_stage_is_done_is_refused(config, tmp_path, name, torn):
    """Cut between two rows or within one; the message says what is there and what was."""
    training = method_config(config, 0, Row.CDPO)
    field, file = {
        "score": ("scores", "scores.jsonl"),
        "reference": ("reference", "reference.jsonl"),
        "sets": ("pairs", "pairs.jsonl"),
    }[name]
    copy = tmp_path / name
    shutil.copytree(pathlib.Path(getattr(training, field)).parent, copy)
    lines = (copy / file).read_bytes().splitlines(keepends=True)
    kept = len(lines) // 2
    (copy / file).write_bytes(b"".join(lines[:kept]) + (lines[kept][:50] if torn else b""))
    text = (
        rf"{file}' holds {kept} whole rows, but its stage is done and has written {len(lines)}: .* "
        r"remove '.*done\.json' and run the stage again"
    )
    assert_refused(training, tmp_path, text, **{field: str(copy / file)})


def test_a_file_that_was_cut_without_its_stage_is_refused(config, tmp_path):
    """Where nobody says how many there were, the pairs do."""
    training = method_config(config, 0, Row.CDPO)
    lines = pathlib.Path(training.scores).read_bytes().splitlines(keepends=True)
    path = tmp_path / "scores.jsonl"
    path.write_bytes(b"".join(lines[:3]))
    text = "there are no values of .* among those of 3 responses; the file was cut short"
    assert_refused(training, tmp_path, text, scores=str(path))
    path.write_bytes(b"".join(lines[:3]) + lines[3][:50])
    assert_refused(training, tmp_path, "line 4: the file is truncated", scores=str(path))


@pytest.mark.parametrize("field", ["scores", "reference"])
def test_numbers_of_other_tokens_are_refused(config, tmp_path, field):
    training = method_config(config, 0, Row.CDPO)
    path = tmp_path / "values.jsonl"
    lines = pathlib.Path(getattr(training, field)).read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:
        row["token_ids"][row["response_start"]] += 1
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = r"belong to other tokens: token \d+ is \d+ there and \d+ here; compute them again"
    assert_refused(training, tmp_path, text, **{field: str(path)})


def test_an_empty_set_of_pairs_is_refused(config, tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.touch()
    training = method_config(config, 0, Row.CDPO)
    assert_refused(training, tmp_path, "holds no pair; make the pairs again", pairs=str(path))


def test_another_tokenizer_is_refused(config, tmp_path):
    training = method_config(config, 0, Row.CDPO)
    model = dataclasses.replace(training.model, tokenizer="bytes")
    text = r"the tokens of \('steps.*\) are of tokenizer '\w+', the model's is '\w+'; "
    assert_refused(training, tmp_path, text, model=model)


def test_tokens_that_the_model_does_not_have_are_refused(config, tmp_path):
    """The tokenizer is the same, the embedding table is not."""
    training = method_config(config, 0, Row.CDPO)
    first, *pairs = read_pairs(training.pairs)
    chosen = dataclasses.replace(first.chosen, token_ids=(*first.chosen.token_ids[:-1], 1009))
    path = tmp_path / "pairs.jsonl"
    write_pairs(path, [dataclasses.replace(first, chosen=chosen), *pairs])
    text = "has token id 1009, but the model has 300 tokens; the sequence is of another model's"
    assert_refused(training, tmp_path, text, pairs=str(path))


@pytest.mark.parametrize(
    ("rows", "missing"),
    [
        ((Row.BASELINE, Row.TDPO2), "sft"),
        ((Row.BASELINE, Row.SFT, Row.TGDPO), "dpo"),
        ((Row.DPO_SFT, Row.TGDPO), "dpo, sft"),
    ],
)
def test_rows_that_lack_what_they_start_from_are_refused(config, rows, missing):
    with pytest.raises(ConfigError, match=f"rows lacks {missing}, which others of its rows start"):
        dataclasses.replace(config, rows=rows)


@pytest.mark.parametrize(
    ("fsdp", "source", "gib"),
    [(1, "fresh:llama3-70b", "262.83"), (8, "fresh:llama3-70b", "32.86")],
)
def test_a_model_that_is_too_large_is_refused_before_it_is_made(fsdp, source, gib, monkeypatch):
    """70,553,706,496 parameters of 4 bytes; all but the norms are split, over `fsdp`."""
    monkeypatch.setattr(memory, "machine_bytes", lambda: 64 << 30)
    mesh = make_mesh(MeshConfig(fsdp=fsdp), jax.devices()[:fsdp])
    text = (
        rf"the parameters of '{source}' take {gib} GiB on each device, but each of the {fsdp} CPU "
        rf"devices, which share this machine's memory, has {64 // fsdp}\.00 GiB; set mesh\.fsdp to "
        rf"at least \d+ \(it is {fsdp}, of {fsdp} devices\)"
    )
    with pytest.raises(ConfigError, match=text):
        load_source(ModelConfig(source=source), mesh)


def test_a_folder_that_is_too_large_is_refused_before_it_is_read(config, monkeypatch):
    def read(*arguments, **named):
        raise AssertionError("its weights are not to be read")

    monkeypatch.setattr(model_source, "load_params", read)
    monkeypatch.setattr(memory, "machine_bytes", lambda: 20_000)
    with pytest.raises(ConfigError, match=r"the parameters of '.*base/model' take 0\.00 GiB"):
        load_source(base_model(config), one_device())
