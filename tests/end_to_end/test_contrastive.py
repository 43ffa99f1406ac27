"""Contrastive cDPO from samples to table, critical tokens and page, on the smallest world."""

import dataclasses
import pathlib

import jax
import pytest

from core_jax.errors import ConfigError, DataError
from core_jax.mesh import make_mesh
from reasoning_jax import contrastive
from reasoning_jax.align.methods import TITLES, Row
from reasoning_jax.align.tuned import Tuning, tuned
from reasoning_jax.align_presets import PIPELINE_PRESETS
from reasoning_jax.contrastive import run_pipeline
from reasoning_jax.contrastive_plan import plan_text
from reasoning_jax.contrastive_run import contrast_folder, method_config
from reasoning_jax.data.token_values import read_token_values
from reasoning_jax.stages import base, critical, prefer, reference, rollout, score, sets, sft
from tests.end_to_end.shrunk_contrastive import ROWS, shrunk_contrastive


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """Stages make their mesh of all devices; these tests want one."""
    first = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        for module in (base, contrastive, critical, prefer, reference, rollout, score, sft):
            patch.setattr(module, "make_mesh", lambda config: make_mesh(config, first))
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    made = shrunk_contrastive(tmp_path_factory.mktemp("cdpo") / "run")
    run_pipeline(made)
    return made


def results(config):
    """Everything that a run is done for, as bytes."""
    root = pathlib.Path(config.run_dir)
    names = ("table/table.csv", "table/table.md", "seed0/view/index.html")
    found = {name: (root / name).read_bytes() for name in names}
    for path in sorted(root.glob("seed0/contrast/stages/*/*.jsonl")):
        found[path.name] = path.read_bytes()
    return found


def test_every_row_is_in_the_table(config):
    text = (pathlib.Path(config.run_dir) / "table" / "table.md").read_text(encoding="utf-8")
    for row in ROWS:
        assert f"| {TITLES[row]} |" in text
    for name in ("table.png", "curves.png"):
        assert (pathlib.Path(config.run_dir) / "table" / name).stat().st_size > 5000
    estimate = pathlib.Path(config.run_dir) / "seed0/critical/stages/estimate/estimate.md"
    assert "| critical token |" in estimate.read_text(encoding="utf-8")


def test_every_token_of_the_pairs_has_a_score(config):
    folder = contrast_folder(config, 0)
    scores = read_token_values(pathlib.Path(folder) / "stages/score/scores.jsonl")
    for pair in sets.finished_pairs(folder):
        for one in (pair.chosen, pair.rejected):
            values = scores[one.key].named("log_score@1.0")
            assert len(values) == len(one.token_ids) - one.response_start
            assert max(values) <= 1e-5


def test_a_second_call_does_nothing_anew(config):
    before = results(config)
    times = {path: path.stat().st_mtime for path in pathlib.Path(config.run_dir).rglob("done.json")}
    run_pipeline(config)
    assert results(config) == before
    assert times == {path: path.stat().st_mtime for path in times}


def test_scores_of_other_tokens_are_refused(config, tmp_path):
    training = method_config(config, 0, Row.CDPO)
    text = pathlib.Path(training.scores).read_text(encoding="utf-8")
    changed = tmp_path / "scores.jsonl"
    changed.write_text(
        text.replace('"token_ids": [', '"token_ids": [1, ', 1).replace(
            '"response_start": ', '"response_start": 1', 1
        ),
        encoding="utf-8",
    )
    broken = dataclasses.replace(training, run_dir=str(tmp_path / "run"), scores=str(changed))
    with pytest.raises(DataError):
        prefer.run(broken)
    changed.write_text(text[: len(text) // 2], encoding="utf-8")
    with pytest.raises(DataError, match=r"truncated|there are no values"):
        prefer.run(broken)


def test_rows_that_lack_what_they_start_from_are_refused(config):
    with pytest.raises(ConfigError, match="rows lacks sft"):
        dataclasses.replace(config, rows=(Row.BASELINE, Row.TDPO2))


def test_every_preset_has_numbers_for_its_rows_and_a_plan():
    for make in PIPELINE_PRESETS.values():
        preset = make()
        for row in preset.rows:
            if row is not Row.BASELINE:
                assert tuned(preset.tuning, row)[0] > 0
        assert "| all |" in plan_text(preset)


def test_the_baseline_is_not_trained():
    with pytest.raises(ConfigError, match="row baseline has no numbers"):
        tuned(Tuning.PAPER, Row.BASELINE)
