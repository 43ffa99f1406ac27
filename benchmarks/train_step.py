"""What the demo's train step reaches, what it could reach, and what its settings cost.

    python -m benchmarks.train_step [--seconds 60] [--json]

Each variant changes one setting of the preset `demo`; data are random codes of the demo's shapes.
Programs take turns; a ratio is that of the fastest runs. FLOPs are those that the model needs
(`rec_jax.model.flops`). The bound is a float32 matrix product large enough to fill the machine.

Dimension key: B sessions, N history items, M session items, L code levels.
"""

import dataclasses
import functools
import json
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks.moe_layer import hardware, time_in_turns
from core_jax.arrays import PyTree
from core_jax.data.pipeline import to_device
from core_jax.mesh import make_mesh, replicated
from core_jax.nn.feed_forward import Activation
from core_jax.nn.linear import ComputeDtype
from core_jax.optim import make_optimizer
from core_jax.train_state import TrainState, init_state
from core_jax.train_step import TrainStep, make_train_step
from rec_jax.batch import SessionBatch
from rec_jax.model import onerec
from rec_jax.model.config import OneRecConfig
from rec_jax.model.flops import train_flops
from rec_jax.model.shardings import RULES
from rec_jax.moe.router import MoeBackend
from rec_jax.objectives import next_token_loss
from rec_jax.presets import demo

LEVEL_SIZES = (41, 41, 31)
"""Codes per level of the demo's catalogue, seed 0: two levels and the one that resolves ties."""
MATMUL_SIZE = 2048
"""Rows and columns of the square matrices of the bound."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Command line."""

    seconds: float = 60.0
    """Time budget, in seconds, after compilation."""
    json: bool = False
    """Print one JSON object instead of the table."""


def variants() -> dict[str, OneRecConfig]:
    """The demo's model, and the demo with one setting changed."""
    model = dataclasses.replace(demo().model, level_sizes=LEVEL_SIZES)
    changes = {
        "demo": {},
        "relu for gelu": {"activation": Activation.RELU},
        "layers scanned": {"scan_unroll": 1},
        "bfloat16": {"compute_dtype": ComputeDtype.BFLOAT16},
        "4 heads of 16": {"num_heads": 4, "head_dim": 16},
        "no dropout": {"dropout": 0.0},
        "dense experts": {"moe_backend": MoeBackend.DENSE},
    }
    return {name: dataclasses.replace(model, **change) for name, change in changes.items()}


def random_batch(model: OneRecConfig, batch_size: int) -> SessionBatch:
    """Full histories and sessions of uniformly random codes."""
    rng = np.random.default_rng(0)

    def codes(num_items: int) -> np.ndarray:
        columns = [rng.integers(0, size, (batch_size, num_items)) for size in model.level_sizes]
        return np.stack(columns, axis=-1).astype(np.int32)

    return SessionBatch(
        history_codes=codes(model.history_items),
        history_mask=np.ones((batch_size, model.history_items), bool),
        target_codes=codes(model.session_items),
        target_mask=np.ones((batch_size, model.session_items), bool),
    )


class Step(NamedTuple):
    """The demo's train step with all that it takes."""

    train_step: TrainStep
    state: TrainState
    batch: PyTree
    key: jax.Array


def demo_step(model: OneRecConfig) -> Step:
    """The train step of `demo` for a model, on a random batch."""
    config = demo()
    mesh = make_mesh(config.mesh)
    optimizer = make_optimizer(config.optim, config.pretrain.loop.num_steps)
    state, shardings = init_state(
        functools.partial(onerec.init_params, model),
        optimizer,
        mesh=mesh,
        rules=RULES,
        key=jax.random.key(0),
    )
    objective = functools.partial(next_token_loss, model, mesh)
    train_step = make_train_step(objective, optimizer, mesh=mesh, state_shardings=shardings)
    batch = to_device(random_batch(model, config.pretrain.batch_size), mesh)
    key = jax.device_put(jax.random.key(1), replicated(mesh))
    return Step(train_step, state, batch, key)


def step_program(model: OneRecConfig) -> Callable[[], object]:
    """A call of the compiled train step, waited for; the state moves on from call to call."""
    train_step, state, batch, key = demo_step(model)

    def run() -> object:
        nonlocal state
        state, metrics = train_step(state, batch, key)
        return jax.block_until_ready(metrics)

    return run


def matmul_program() -> Callable[[], object]:
    """The bound: a square float32 product."""
    left, right = jax.random.normal(jax.random.key(0), (2, MATMUL_SIZE, MATMUL_SIZE))
    multiply = jax.jit(jnp.matmul)
    return lambda: jax.block_until_ready(multiply(left, right))


def measure(options: Options) -> list[dict]:
    """Times every variant and the bound in turns; one row each."""
    models = variants()
    programs = {name: step_program(model) for name, model in models.items()}
    times = time_in_turns({"bound": matmul_program(), **programs}, options.seconds)
    batch_size = demo().pretrain.batch_size
    rows = []
    for name, rounds in times.items():
        flops = 2.0 * MATMUL_SIZE**3 if name == "bound" else train_flops(models[name], batch_size)
        fastest = rounds[:, 0].min()
        rows.append(
            {
                "program": name,
                "wall_ms": 1e3 * fastest,
                "median_ms": 1e3 * float(np.median(rounds[:, 0])),
                "ratio": fastest / times["demo"][:, 0].min(),
                "gflops": flops / fastest / 1e9,
                "rounds": len(rounds),
            }
        )
    return rows


def main(options: Options) -> None:
    """Measures and prints."""
    rows = measure(options)
    results = {
        "benchmark": "train_step",
        "date": time.strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "rows": rows,
    }
    if options.json:
        print(json.dumps(results, indent=2))
        return
    print(", ".join(f"{name} {value}" for name, value in results["hardware"].items()))
    bound = next(row["gflops"] for row in rows if row["program"] == "bound")
    print("  program          fastest ms  median ms  over demo  GFLOP/s  of bound  rounds")
    for row in rows:
        print(
            f"  {row['program']:16s} {row['wall_ms']:10.1f} {row['median_ms']:10.1f} "
            f"{row['ratio']:10.2f} {row['gflops']:8.1f} {row['gflops'] / bound:9.2f} "
            f"{row['rounds']:7d}"
        )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
