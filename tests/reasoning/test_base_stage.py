"""The stage that makes a base model: it stops in the band, resumes, exports; every error."""

import dataclasses
import json
import os

import jax
import numpy as np
import pytest

from core_jax.errors import ConfigError, DataError
from core_jax.loop import LoopConfig
from core_jax.mesh import MeshConfig, make_mesh
from core_jax.optim import OptimConfig, Schedule
from core_jax.run_folder import read_done, stage_folder
from reasoning_jax.base_config import BaseConfig
from reasoning_jax.data.load import ProblemsConfig
from reasoning_jax.data.packing import PackingConfig
from reasoning_jax.data.prompts import PromptConfig
from reasoning_jax.model.config import DecoderConfig
from reasoning_jax.sampling.config import EngineConfig, SamplingConfig
from reasoning_jax.stages import base
from reasoning_jax.weights.model_source import ModelConfig, load_source

pytestmark = pytest.mark.long


def one_device(config):
    """A mesh of one of the devices: these batches are too small to be worth eight."""
    return make_mesh(config, jax.devices()[:1])


@pytest.fixture(scope="module", autouse=True)
def _on_one_device():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "make_mesh", one_device)
        yield


def tiny(run_dir, **changes):
    """One step on values up to 3, which a model of a few thousand weights soon half knows."""
    config = BaseConfig(
        run_dir=str(run_dir),
        model=DecoderConfig(
            vocab_size=283,
            model_dim=22,
            hidden_dim=37,
            num_layers=2,
            num_heads=2,
            num_kv_heads=1,
            head_dim=10,
            max_positions=101,
            tied_embeddings=True,
        ),
        optim=OptimConfig(learning_rate=2e-2, clip_norm=1.0),
        loop=LoopConfig(num_steps=90, log_every=10, evaluate_every=15),
        packing=PackingConfig(row_length=61),
        problems=ProblemsConfig(task="steps-1-2-5-3", split="train", limit=79),
        lowest_accuracy=0.2,
        highest_accuracy=0.99,
        measured=11,
        sampling=SamplingConfig(temperature=1.0, max_new_tokens=23, num_samples=2),
        engine=EngineConfig(num_rows=32, prompts_per_prefill=16, slots_multiple=64),
        batch_size=16,
    )
    return dataclasses.replace(config, **changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    config = tiny(tmp_path_factory.mktemp("base") / "run")
    assert base.run(config)
    return config


def test_it_stops_at_the_first_accuracy_in_the_band(finished):
    """Every measurement but the last lies below the band; training ended with the last."""
    facts = read_done(finished.run_dir, base.NAME)["facts"]
    text = (stage_folder(finished.run_dir, base.NAME) / "metrics.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    measured = [(row["step"], row["accuracy"]) for row in rows if "accuracy" in row]
    every = finished.loop.evaluate_every
    assert [step for step, _ in measured] == list(range(every, facts["steps"] + 1, every))
    assert all(accuracy < finished.lowest_accuracy for _, accuracy in measured[:-1])
    assert finished.lowest_accuracy <= measured[-1][1] <= finished.highest_accuracy
    assert measured[-1][1] == facts["accuracy"]
    assert facts["accuracy"] * finished.measured * finished.sampling.num_samples % 1 < 1e-6


def test_the_model_loads_and_reads_its_world(finished):
    model = load_source(
        ModelConfig(source=str(base.model_folder(finished.run_dir))), one_device(MeshConfig())
    )
    assert model.config.num_params == finished.model.num_params
    assert model.template is None and model.tokenizer.policy.add_eos
    text = "Question: 3+1-2=?\nAnswer: 3+1=4\n4-2=2\nThe answer is 2."
    ids = model.tokenizer.encode(text)
    assert model.tokenizer.decode(ids) == text
    pieces = [model.tokenizer.decode([one]) for one in ids]
    assert [one for one in pieces if len(one) > 1] == list(finished.pieces)
    fields = json.loads((base.model_folder(finished.run_dir) / "config.json").read_text())
    assert fields["eos_token_id"] == model.tokenizer.eos_ids[0]


def test_it_is_not_done_twice(finished, monkeypatch):
    monkeypatch.setattr(base, "fit", None)
    assert base.run(finished)


def test_a_run_that_was_cut_off_ends_with_the_same_model(finished, tmp_path, monkeypatch):
    """The export fails once, with the weights half written; the same command then goes on."""
    config = dataclasses.replace(finished, run_dir=str(tmp_path / "run"))
    replace = os.replace

    def full_disk(source, target):
        if str(target).endswith("model"):
            raise OSError("no space left")
        return replace(source, target)

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="no space left"):
        base.run(config)
    assert not base.model_folder(config.run_dir).exists()
    monkeypatch.setattr(os, "replace", replace)
    assert base.run(config)
    mesh = one_device(MeshConfig())
    first, second = (
        load_source(ModelConfig(source=str(base.model_folder(one.run_dir))), mesh).params
        for one in (finished, config)
    )
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_too_few_steps_and_too_good_a_model_are_told(tmp_path):
    low = tiny(tmp_path / "low", loop=LoopConfig(num_steps=2, evaluate_every=1))
    with pytest.raises(DataError, match=r"after 2 steps the sampling accuracy is still below 0.2"):
        base.run(low)
    high = tiny(tmp_path / "high", lowest_accuracy=1e-9, highest_accuracy=1e-6)
    with pytest.raises(DataError, match=r"accuracy is 0\.\d+, above highest_accuracy 1e-06; measu"):
        base.run(high)


def test_what_the_data_cannot_give_is_told(tmp_path):
    with pytest.raises(DataError, match=r"gave 11 problems with a written solution, and 11 are"):
        base.run(
            tiny(
                tmp_path / "few",
                problems=ProblemsConfig(task="steps", split="train", limit=11),
            )
        )
    model = dataclasses.replace(tiny(tmp_path).model, vocab_size=263)
    with pytest.raises(ConfigError, match=r"vocab_size is 263; a token per character .* needs 2"):
        base.run(tiny(tmp_path / "vocab", model=model))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lowest_accuracy": 0.7, "highest_accuracy": 0.7}, r"expected 0 < lowest < highest <= 1"),
        (
            {"optim": OptimConfig(learning_rate=1e-3, schedule=Schedule.COSINE)},
            r"optim.schedule is cosine; training stops by accuracy",
        ),
        ({"loop": LoopConfig(num_steps=3)}, r"loop.evaluate_every is 0"),
        ({"prompt": PromptConfig()}, r"prompt.style is chat, but a model from nothing"),
        ({"problems": ProblemsConfig(task="steps")}, r"problems.split is test; learn from train"),
        ({"measured": 0}, r"measured is 0; keep at least 1"),
    ],
)
def test_what_does_not_fit_together_is_told(change, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        tiny(tmp_path, **change)
