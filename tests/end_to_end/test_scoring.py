"""The stages that score pairs and read their reference, on the made-up tiny model."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from core_jax.errors import ConfigError, DataError
from core_jax.loop import LoopConfig
from core_jax.mesh import MeshConfig, make_mesh
from core_jax.nn.linear import ComputeDtype
from core_jax.run_folder import stage_folder
from reasoning_jax.align.pair_file import Pair, write_pairs
from reasoning_jax.align.scoring import RowsConfig, ScoringConfig, sequence_log_probs
from reasoning_jax.data.load import ProblemsConfig
from reasoning_jax.data.own_problems import ProblemColumns
from reasoning_jax.data.packing import PackingConfig
from reasoning_jax.data.token_values import matching, read_token_values
from reasoning_jax.data.trajectories import TrajectoryWriter
from reasoning_jax.model import lora
from reasoning_jax.model.config import LoraConfig
from reasoning_jax.presets import sft_tiny
from reasoning_jax.stages import reference, score, sft
from reasoning_jax.text.byte_tokenizer import ByteTokenizer
from reasoning_jax.weights.model_source import load_source
from tests.reasoning.test_trajectories import trajectory

pytestmark = pytest.mark.long

MODEL = sft_tiny().model
CONFIG = ScoringConfig(betas=(1.0, 0.5), rows=RowsConfig(batch_size=2, row_length=37, chunk=7))
LORAS = {
    "positive": LoraConfig(rank=3, alpha=6.0),
    "negative": LoraConfig(rank=2, alpha=7.0, targets=("gate", "up", "down")),
    "full": LoraConfig(rank=0),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A few steps of training on sums: adapters of two kinds, and all parameters."""
    folder = tmp_path_factory.mktemp("runs")
    path = folder / "problems.jsonl"
    rows = [{"q": f"{a} + {a + 1} = ?", "a": str(2 * a + 1)} for a in range(23)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = ProblemColumns(question="q", answer="a")
    configs = {
        name: dataclasses.replace(
            sft_tiny(),
            run_dir=str(folder / name),
            problems=ProblemsConfig(task="own", path=str(path), limit=23, columns=columns),
            packing=PackingConfig(row_length=128),
            loop=LoopConfig(num_steps=4, log_every=2, evaluate_every=2, checkpoint_every=2),
            held_out=3,
            batch_size=4,
            lora=adapter,
            seed=number,
            mesh=MeshConfig(data=1),
        )
        for number, (name, adapter) in enumerate(LORAS.items())
    }
    with pytest.MonkeyPatch.context() as patch:
        for module in (sft, score, reference):
            patch.setattr(module, "make_mesh", one_device)
        for config in configs.values():
            assert sft.run(config)
        yield configs


def one_device(config=None):
    return make_mesh(config or MeshConfig(data=1), jax.devices()[:1])


def response(problem, sample, length, **changes):
    rng = np.random.default_rng(100 * length + sample)
    ids = (1, 2, 3, *rng.integers(0, 256, length).tolist())
    fields = {"token_ids": ids, "response_start": 3, "tokenizer": ByteTokenizer().fingerprint}
    return trajectory(problem, sample, **fields | changes)


def some_pairs(**changes):
    return [
        Pair(
            problem_id=problem,
            index=0,
            chosen=response(problem, 0, length, **changes),
            rejected=response(problem, 1, length + 4, is_correct=False, **changes),
        )
        for problem, length in (("a", 5), ("b", 13), ("c", 7), ("d", 19))
    ]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    write_pairs(path, some_pairs())
    return path


def scored(folder, runs, pairs, names=("positive", "negative"), **options):
    arguments = {"model": MODEL, "config": CONFIG, "pairs": str(pairs)} | options
    assert score.run(str(folder), positive=runs[names[0]], negative=runs[names[1]], **arguments)
    return stage_folder(folder, score.NAME) / score.SCORES


@pytest.fixture(scope="module")
def whole(tmp_path_factory, runs, pairs):
    return scored(tmp_path_factory.mktemp("whole"), runs, pairs)


def merged(run):
    """The parameters of a trained model on its own."""
    model, adapters = sft.load_trained(run, one_device())
    if adapters is None:
        return model.config, model.params
    return model.config, lora.merge(model.params, adapters, run.lora.scale)


def test_scores_are_those_of_the_two_trained_models(whole, runs):
    """Each model's log-probabilities, as it has them when its adapters are merged."""
    found = read_token_values(whole)
    responses = [one for pair in some_pairs() for one in (pair.chosen, pair.rejected)]
    assert list(found) and len(found) == len(responses)
    for name in ("positive", "negative"):
        config, params = merged(runs[name])
        expected = sequence_log_probs(
            config, params, responses, rows=CONFIG.rows, mesh=one_device(), model="m"
        )
        for one in responses:
            np.testing.assert_allclose(
                matching(found, one).named(name),
                expected[one.key].named("log_prob"),
                rtol=0,
                atol=1e-5,
            )
    assert set(found["a", 0].values) == {"log_score@1.0", "log_score@0.5", "positive", "negative"}
    done = json.loads((whole.parent / "done.json").read_text())
    assert done["facts"]["num_sequences"] == 8
    assert done["facts"]["num_response_tokens"] == 2 * (5 + 13 + 7 + 19) + 4 * 4


def test_scores_that_were_cut_off_go_on_to_the_same_file(tmp_path, whole, runs, pairs):
    path = scored(tmp_path, runs, pairs)
    assert path.read_bytes() == whole.read_bytes()
    (path.parent / "done.json").unlink()
    path.write_bytes(whole.read_bytes()[:1500])
    with pytest.raises(DataError, match=r"scores\.jsonl', line \d: the file is truncated"):
        read_token_values(path)
    scored(tmp_path, runs, pairs)
    assert path.read_bytes() == whole.read_bytes()


def test_scores_of_other_models_are_not_gone_on_with(tmp_path, runs, pairs):
    path = scored(tmp_path, runs, pairs)
    with pytest.raises(ConfigError, match=r"was done under another configuration .*negative"):
        scored(tmp_path, runs, pairs, names=("positive", "full"))
    (path.parent / "done.json").unlink()
    with pytest.raises(DataError, match="are of another model"):
        scored(tmp_path, runs, pairs, names=("positive", "full"))


@pytest.mark.parametrize("names", [("full", "negative"), ("full", "full")])
def test_all_parameters_may_have_been_trained(tmp_path, whole, runs, pairs, names):
    found = read_token_values(scored(tmp_path, runs, pairs, names=names))
    like = read_token_values(whole)
    for key, one in found.items():
        if names[1] == "negative":
            np.testing.assert_allclose(
                one.named("negative"), like[key].named("negative"), rtol=0, atol=1e-5
            )
        else:
            # Of two equal models, s is the probability under either.
            np.testing.assert_allclose(
                one.named("log_score@1.0"), one.named("positive"), rtol=0, atol=1e-5
            )
            assert one.named("positive") == one.named("negative")


def test_eight_devices_score_as_one(tmp_path, whole, runs, pairs, monkeypatch):
    monkeypatch.setattr(score, "make_mesh", make_mesh)
    config = dataclasses.replace(CONFIG, rows=dataclasses.replace(CONFIG.rows, batch_size=8))
    found = read_token_values(scored(tmp_path, runs, pairs, config=config))
    expected = read_token_values(whole)
    assert set(found) == set(expected)
    for key, one in found.items():
        for name in one.values:
            np.testing.assert_allclose(
                one.named(name), expected[key].named(name), rtol=0, atol=1e-5
            )


def test_the_reference_is_the_model_before_training(tmp_path, runs, pairs):
    assert reference.run(str(tmp_path), model=MODEL, pairs=str(pairs), rows=CONFIG.rows)
    found = read_token_values(stage_folder(tmp_path, reference.NAME) / reference.LOG_PROBS)
    model = load_source(MODEL, one_device())
    responses = [one for pair in some_pairs() for one in (pair.chosen, pair.rejected)]
    expected = sequence_log_probs(
        model.config, model.params, responses, rows=CONFIG.rows, mesh=one_device(), model="m"
    )
    for one in responses:
        assert matching(found, one).values == expected[one.key].values


def test_errors_say_what_does_not_fit(tmp_path, runs, pairs):
    with pytest.raises(DataError, match="no response to score in pairs '' and trajectories ''"):
        scored(tmp_path, runs, "")
    with pytest.raises(DataError, match=r"no file of responses '.*absent\.jsonl'"):
        scored(tmp_path, runs, tmp_path / "absent.jsonl")
    other = dataclasses.replace(MODEL, seed=5, dtype=ComputeDtype.BFLOAT16)
    with pytest.raises(ConfigError, match=r"positive' was not trained from .*: seed: 5 -> 0"):
        scored(tmp_path, runs, pairs, model=other)
    unfinished = {"positive": dataclasses.replace(runs["positive"], run_dir=str(tmp_path / "u"))}
    with pytest.raises(DataError, match=r"stage 'sft' of run '.*/u' is not done"):
        scored(tmp_path, runs | unfinished, pairs)
    foreign = tmp_path / "foreign.jsonl"
    write_pairs(foreign, some_pairs(tokenizer="other"))
    with pytest.raises(
        DataError, match=r"tokens of \('a', 0\) are of tokenizer 'other', the model"
    ):
        scored(tmp_path, runs, foreign)
    with pytest.raises(
        DataError, match=r"tokens of \('a', 0\) are of tokenizer 'other', the model"
    ):
        reference.run(str(tmp_path), model=MODEL, pairs=str(foreign), rows=CONFIG.rows)


def test_responses_outside_of_pairs_are_scored_too(tmp_path, whole, runs, pairs):
    path = tmp_path / "trajectories.jsonl"
    with TrajectoryWriter(path) as writer:
        writer.write([response("a", 0, 5), response("e", 4, 11, is_correct=False)])
    found = read_token_values(scored(tmp_path / "run", runs, pairs, trajectories=str(path)))
    assert set(found) == {*read_token_values(whole), ("e", 4)}
