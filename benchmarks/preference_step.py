"""What a training step with preferences costs over one without, and what it may cost.

    python -m benchmarks.preference_step [--seconds 60] [--json]

The preset `demo` without dropout, DPO, at its own history and at one of 256 items; data are random
codes. E and D are the forward and backward passes of the encoder and of the decoder (with its
losses) over a batch of logged sessions. Logged, chosen and rejected session share one encoder pass,
so a step in which every sample has a pair does the work E + 3 D where a next-token step does E + D;
with a pair for every fourth sample it is E + 1.5 D. The bounds are 1.15 times that ratio, and 1.25
at 256 items, where the encoder is nearly all. Programs take turns; ratios are those of the fastest
runs, and medians of the ratios of neighbouring runs beside them.

Dimension key: B samples, P groups, S history tokens, D model.
"""

import dataclasses
import functools
import json
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks.moe_layer import hardware, time_in_turns
from benchmarks.train_step import LEVEL_SIZES, random_batch
from core_jax.arrays import Params
from core_jax.data.pipeline import to_device
from core_jax.mesh import make_mesh, replicated
from core_jax.optim import make_optimizer
from core_jax.train_state import init_state
from core_jax.train_step import Objective, make_train_step
from rec_jax.align.batch import PreferenceBatch, bundled
from rec_jax.align.methods import MethodConfig
from rec_jax.align.objective import align_loss
from rec_jax.batch import SessionBatch
from rec_jax.model import onerec
from rec_jax.model.config import OneRecConfig
from rec_jax.model.shardings import RULES
from rec_jax.objectives import next_token_loss, session_loss
from rec_jax.presets import demo

Program = Callable[[], object]

SAMPLES_PER_PAIR = {"a pair per sample": 1, "a pair per 4 samples": 4}
RATIO_BOUND, LONG_BOUND, LONG_HISTORY = 1.15, 1.25, 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Command line."""

    seconds: float = 60.0
    """Time budget per history length, in seconds, after compilation."""
    histories: tuple[int, ...] = (demo().model.history_items, LONG_HISTORY)
    """History lengths to measure at."""
    batch_size: int = 64
    """Samples per step at the demo's history."""
    long_batch_size: int = 16
    """Samples per step at 256 items, whose attention takes 30 times the memory."""
    json: bool = False
    """Print one JSON object instead of the tables."""


def preferences(model: OneRecConfig, sessions: SessionBatch, samples: int) -> PreferenceBatch:
    """Random pairs for every `samples`-th sample."""
    num_groups = sessions.target_mask.shape[0] // samples
    pairs = random_batch(model, 2 * num_groups)
    shape = (num_groups, 2, model.session_items)
    return PreferenceBatch(
        sessions=bundled(sessions, num_groups),
        response_codes=pairs.target_codes.reshape(*shape, model.num_levels),
        response_mask=np.ones(shape, bool),
        has_pair=np.ones(num_groups, bool),
        reference_log_probs=np.full((*shape, model.num_levels), -3.5, np.float32),
        advantages=np.zeros(shape[:2], np.float32),
    )


def step_program(model: OneRecConfig, objective: Objective, batch: object) -> Program:
    """A call of the compiled train step, waited for; the state moves on from call to call."""
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
    train_step = make_train_step(
        functools.partial(objective, mesh), optimizer, mesh=mesh, state_shardings=shardings
    )
    batch = to_device(batch, mesh)
    key = jax.device_put(jax.random.key(1), replicated(mesh))

    def run() -> object:
        nonlocal state
        state, metrics = train_step(state, batch, key)
        return jax.block_until_ready(metrics)

    return run


def part_programs(model: OneRecConfig, sessions: SessionBatch) -> dict[str, Program]:
    """Forward and backward pass of the encoder and of the decoder, each by itself."""
    params = jax.jit(lambda: onerec.init_params(model, key=jax.random.key(0)))()
    batch = jax.device_put(sessions)

    def encode(params: Params) -> tuple[jax.Array, jax.Array]:
        return onerec.encode_tokens(model, params, batch.history_codes, batch.history_mask)

    encoded_BSD, seen_BS = jax.jit(encode)(params)
    pull_BSD = jax.random.normal(jax.random.key(1), encoded_BSD.shape, encoded_BSD.dtype)

    @jax.jit
    @jax.grad
    def encoder(params: Params, pull_BSD: jax.Array) -> jax.Array:
        return jnp.sum(encode(params)[0] * pull_BSD)

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def decoder(params: Params, encoded_BSD: jax.Array, codes: jax.Array) -> jax.Array:
        output = onerec.score_sessions(
            model, params, encoded_BSD, seen_BS, codes[:, None], batch.target_mask[:, None]
        )
        logits = tuple(level[:, 0] for level in output.logits)
        return session_loss(logits, codes, batch.target_mask)[0].total

    return {
        "E": lambda: jax.block_until_ready(encoder(params, pull_BSD)),
        "D": lambda: jax.block_until_ready(decoder(params, encoded_BSD, batch.target_codes)),
    }


def measure(history_items: int, batch_size: int, seconds: float) -> list[dict]:
    """Times all programs at one history length in turns; one row each."""
    model = dataclasses.replace(
        demo().model, level_sizes=LEVEL_SIZES, dropout=0.0, history_items=history_items
    )
    sessions = random_batch(model, batch_size)
    aligned = functools.partial(align_loss, model, MethodConfig(), 1.0)
    programs = {
        "next-token step": step_program(model, functools.partial(next_token_loss, model), sessions),
        **{
            name: step_program(model, aligned, preferences(model, sessions, samples))
            for name, samples in SAMPLES_PER_PAIR.items()
        },
        **part_programs(model, sessions),
    }
    times = {name: rounds[:, 0] for name, rounds in time_in_turns(programs, seconds).items()}
    base, encoder, decoder = (times[name] for name in ("next-token step", "E", "D"))
    rows = []
    for name, rounds in times.items():
        row = {
            "history": history_items,
            "batch": batch_size,
            "program": name,
            "wall_ms": 1e3 * rounds.min(),
            "median_ms": 1e3 * float(np.median(rounds)),
            "ratio": rounds.min() / base.min(),
            "median_ratio": float(np.median(rounds / base)),
            "rounds": len(rounds),
        }
        if name in SAMPLES_PER_PAIR:
            work = 1 + 2 / SAMPLES_PER_PAIR[name]
            fastest = encoder.min(), decoder.min()
            row["bound"] = RATIO_BOUND * (fastest[0] + work * fastest[1]) / sum(fastest)
            if history_items >= LONG_HISTORY:
                row["bound"] = min(row["bound"], LONG_BOUND)
        rows.append(row)
    return rows


def main(options: Options) -> None:
    """Measures and prints, one history length after the other."""
    rows: list[dict] = []
    if not options.json:
        print(", ".join(f"{name} {value}" for name, value in hardware().items()))
        print("  history  batch  program               fastest ms  median ms  ratio  median  bound")
    for items in options.histories:
        size = options.long_batch_size if items >= LONG_HISTORY else options.batch_size
        rows += (found := measure(items, size, options.seconds))
        if not options.json:
            print(table(found), flush=True)
    if options.json:
        results = {
            "benchmark": "preference_step",
            "date": time.strftime("%Y-%m-%d"),
            "hardware": hardware(),
            "rows": rows,
        }
        print(json.dumps(results, indent=2))


def table(rows: list[dict]) -> str:
    """Rows of one history length as text."""
    lines = []
    for row in rows:
        bound = f"{row['bound']:6.2f}" if "bound" in row else ""
        lines.append(
            f"  {row['history']:7d} {row['batch']:6d}  {row['program']:20s} {row['wall_ms']:11.1f} "
            f"{row['median_ms']:10.1f} {row['ratio']:6.2f} {row['median_ratio']:7.2f} {bound}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
