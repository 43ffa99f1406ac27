"""Our LoRA step, in turns: a worker of `benchmarks.sft_step`.

python -m benchmarks.sft_alignax CASE_FOLDER
"""

import dataclasses
import functools
import json
import pathlib
import sys

import jax
import numpy as np

from benchmarks.turns import Worker
from core_jax.data.pipeline import to_device
from core_jax.mesh import MeshConfig, make_mesh, replicated
from core_jax.nn.linear import ComputeDtype
from core_jax.nn.stack import Remat
from core_jax.optim import OptimConfig, make_optimizer
from core_jax.train_state import init_state
from core_jax.train_step import make_train_step
from launch.large_pages import restart_with_large_pages
from reasoning_jax.data.packing import PackedBatch
from reasoning_jax.model.config import LoraConfig
from reasoning_jax.model.lora import init_lora
from reasoning_jax.model.shardings import RULES
from reasoning_jax.objectives import sft_objective
from reasoning_jax.weights.hf_load import load_config, load_params
from reasoning_jax.weights.peft import load_adapter


def full_rows(tokens: np.ndarray) -> PackedBatch:
    """Rows of one document each, every token of which counts."""
    rows, length = tokens.shape
    return PackedBatch(
        tokens=tokens,
        segment_ids=np.ones_like(tokens),
        positions=np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape),
        targets=np.concatenate([tokens[:, 1:], np.zeros((rows, 1), np.int32)], axis=1),
        loss_mask=np.broadcast_to(np.arange(length) < length - 1, tokens.shape),
    )


def main(folder: pathlib.Path) -> None:
    """Trains for as many steps as the case says."""
    case = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    config = dataclasses.replace(
        load_config(folder / "model"),
        dtype=ComputeDtype(case["dtype"]),
        remat=Remat(case["remat"]),
        unroll=case["unroll"],
    )
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    params = load_params(folder / "model", config, mesh=mesh)
    lora = LoraConfig(rank=case["rank"], alpha=case["alpha"])
    optimizer = make_optimizer(OptimConfig(learning_rate=case["learning_rate"]), 1000)
    state, shardings = init_state(
        functools.partial(init_lora, config, lora),
        optimizer,
        mesh=mesh,
        rules=RULES,
        key=jax.random.key(0),
    )
    start = load_adapter(folder / "adapter", config, mesh=mesh)
    state = dataclasses.replace(state, params=start.params)
    step = make_train_step(
        functools.partial(sft_objective, config=config, chunk=case["chunk"], lora=lora),
        optimizer,
        mesh=mesh,
        state_shardings=shardings,
        frozen=params,
    )
    data = to_device(full_rows(np.load(folder / "tokens.npy")), mesh)
    key = jax.device_put(jax.random.key(1), replicated(mesh))

    def take_step() -> float:
        nonlocal state
        state, metrics = step(state, data, key)
        jax.block_until_ready(state)
        return float(metrics["loss"].total / metrics["loss"].count)

    Worker().run(take_step, case["num_steps"])


if __name__ == "__main__":
    restart_with_large_pages()  # as `launch.local` does
    main(pathlib.Path(sys.argv[1]))
