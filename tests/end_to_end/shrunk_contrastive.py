"""The contrastive pipeline shrunk to sums of one or two steps, for the tests of a whole run."""

import dataclasses
import pathlib
from typing import Any

from core_jax.loop import LoopConfig
from core_jax.mesh import MeshConfig
from reasoning_jax.align.methods import Row
from reasoning_jax.align_config import PipelineConfig
from reasoning_jax.align_presets import tiny
from reasoning_jax.data.load import ProblemsConfig
from reasoning_jax.model.config import LoraConfig

ROWS = (
    Row.BASELINE,
    Row.SFT,
    Row.TDPO2,
    Row.DPO,
    Row.CDPO,
    Row.CDPO_SHUFFLED,
    Row.TGDPO,
)
"""Every kind of start, loss, source of weights and control that has stages of its own."""


def shrunk_contrastive(folder: pathlib.Path, **changes: Any) -> PipelineConfig:
    """The tiny preset with fewer problems, one seed and few rows, on one device.

    The positive and the negative model are whole ones; preferences train adapters, so that a row
    that starts from the fine-tuned one puts adapters on adapters.
    """
    config = tiny()
    assert config.base is not None and config.critical is not None
    task = "steps-1-2-5-3"
    architecture = dataclasses.replace(
        config.base.model,
        model_dim=22,
        hidden_dim=37,
        num_layers=1,
        num_kv_heads=1,
        head_dim=10,
        unroll=1,
    )
    base = dataclasses.replace(
        config.base,
        model=architecture,
        loop=LoopConfig(num_steps=150, log_every=10, evaluate_every=15),
        optim=dataclasses.replace(config.base.optim, learning_rate=2e-2),
        problems=ProblemsConfig(task=task, split="train", limit=79),
        lowest_accuracy=0.2,
        highest_accuracy=0.99,
        measured=11,
    )
    critical = dataclasses.replace(config.critical, num_solutions=2, num_rollouts=3)
    small = dataclasses.replace(
        config,
        run_dir=str(folder),
        base=base,
        problems=ProblemsConfig(task=task, split="train", limit=19),
        tests=(ProblemsConfig(task=task, split="test", limit=7),),
        sampling=dataclasses.replace(config.sampling, num_samples=5),
        score=dataclasses.replace(config.score, bootstrap_samples=50),
        rows=ROWS,
        train=dataclasses.replace(config.train, lora=LoraConfig(rank=3, alpha=6.0)),
        seeds=(0,),
        critical=critical,
        mesh=MeshConfig(data=1),
    )
    return dataclasses.replace(small, **changes)
