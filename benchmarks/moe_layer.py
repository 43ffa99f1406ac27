"""Time of the sparse mixture-of-experts layer over a plain network of the same active FLOPs.

    python -m benchmarks.moe_layer [--seconds 60] [--json] [--all-backends]

Every case times the whole layer (router, dispatch, experts, combination, statistics), dropless and
exact, against one plain two-matmul network on tokens x choices rows. Programs take turns; the
ratio is that of their fastest runs, the spread the 10th to 90th percentile of the ratios of
neighbouring runs. CPU time (all threads) is given beside wall time because neighbours on a shared
machine disturb it less.

Dimension key: T tokens, C choices, D model, F hidden.
"""

import dataclasses
import json
import os
import platform
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from core_jax.nn.feed_forward import FeedForward
from rec_jax.moe.layer import SparseMoe
from rec_jax.moe.router import MoeBackend, MoeConfig

Program = Callable[[], object]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One shape to time."""

    name: str
    num_tokens: int
    config: MoeConfig
    backward: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Command line."""

    seconds: float = 60.0
    """Time budget per case, in seconds, after compilation."""
    all_backends: bool = False
    """Also time the dense and ragged backends, which take many times longer on CPU."""
    only: str = ""
    """Run only the cases whose name contains this."""
    json: bool = False
    """Print one JSON object instead of the tables."""


def cases() -> list[Case]:
    """The target shape, a small training shape, and decoding."""
    paper = MoeConfig(num_experts=24, experts_per_token=2, d_model=256, d_hidden=1024)
    small = MoeConfig(num_experts=8, experts_per_token=2, d_model=128, d_hidden=256)
    return [
        Case(name="train 4096 x 256", num_tokens=4096, config=paper, backward=True),
        Case(name="train 1024 x 128", num_tokens=1024, config=small, backward=True),
        Case(name="decode 128 x 128", num_tokens=128, config=small, backward=False),
        Case(name="decode 2048 x 128", num_tokens=2048, config=small, backward=False),
    ]


def plain_program(case: Case) -> Program:
    """The yardstick: FeedForward on T * C rows, with its gradients by inputs and weights."""
    config = case.config
    rows = case.num_tokens * config.experts_per_token
    layer = FeedForward(config.d_hidden, config.activation)
    return _program(lambda params, x: layer.apply({"params": params}, x), layer, rows, case)


def moe_program(case: Case, backend: MoeBackend) -> Program:
    """The layer, with its gradients by inputs and all parameters."""
    layer = SparseMoe(dataclasses.replace(case.config, backend=backend))
    return _program(
        lambda params, x: layer.apply({"params": params}, x)[0], layer, case.num_tokens, case
    )


def _program(apply: Callable, layer, num_rows: int, case: Case) -> Program:
    """Compiles forward, or forward and backward, on random inputs; returns a call of it."""
    init_key, data_key, cotangent_key = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(data_key, (num_rows, case.config.d_model))
    cotangent = jax.random.normal(cotangent_key, x.shape)
    params = jax.jit(layer.init)(init_key, x)["params"]
    function = apply
    if case.backward:

        def function(params, x):
            return jax.value_and_grad(
                lambda params, x: jnp.sum(apply(params, x) * cotangent), argnums=(0, 1)
            )(params, x)

    compiled = jax.jit(function).lower(params, x).compile()
    return lambda: jax.block_until_ready(compiled(params, x))


def time_in_turns(programs: dict[str, Program], seconds: float) -> dict[str, np.ndarray]:
    """Runs the programs in turn until the time is spent, at least five times each.

    Returns:
      Name -> float [rounds, 2]: wall and CPU seconds.
    """
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    for program in programs.values():
        program()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[next(iter(times))]) < 5:
        for name, program in programs.items():
            cpu, wall = time.process_time(), time.perf_counter()
            program()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {name: np.asarray(rounds) for name, rounds in times.items()}


def measure(case: Case, options: Options) -> dict:
    """Times one case.

    Returns:
      JSON-able results: per program the fastest wall and CPU milliseconds, their ratios to the
      plain network, and the 10th and 90th percentile of the ratios of neighbouring runs.
    """
    config = case.config
    flops = 4 * case.num_tokens * config.experts_per_token * config.d_model * config.d_hidden
    flops *= 3 if case.backward else 1
    programs = {"plain": plain_program(case), "block": moe_program(case, MoeBackend.BLOCK)}
    if options.all_backends:
        for backend in (MoeBackend.RAGGED, MoeBackend.DENSE):
            programs[backend.value] = moe_program(case, backend)
    times = time_in_turns(programs, options.seconds)
    plain = times["plain"]
    rows = []
    for name, rounds in times.items():
        spread = np.percentile(rounds[:, 0] / plain[:, 0], [10, 90])
        wall, cpu = rounds.min(axis=0)
        rows.append(
            {
                "program": name,
                "wall_ms": 1e3 * wall,
                "wall_ratio": wall / plain[:, 0].min(),
                "wall_ratio_p10": spread[0],
                "wall_ratio_p90": spread[1],
                "cpu_ms": 1e3 * cpu,
                "cpu_ratio": cpu / plain[:, 1].min(),
                "gflops": flops / wall / 1e9,
                "rounds": len(rounds),
            }
        )
    return {
        "case": case.name,
        "backward": case.backward,
        "num_tokens": case.num_tokens,
        "num_experts": config.num_experts,
        "experts_per_token": config.experts_per_token,
        "d_model": config.d_model,
        "d_hidden": config.d_hidden,
        "activation": config.activation.value,
        "programs": rows,
    }


def hardware() -> dict:
    """What this runs on."""
    model, flags = platform.processor(), ""
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            lines = dict(line.split(":", 1) for line in file if ":" in line)
        facts = {name.strip(): value.strip() for name, value in lines.items()}
        model = facts.get("model name", model)
        known = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
        flags = " ".join(flag for flag in known if flag in facts.get("flags", "").split())
    return {
        "device": jax.devices()[0].device_kind,
        "processor": model,
        "cores": os.cpu_count(),
        "vector_units": flags,
        "load_average": os.getloadavg()[0],
        "jax": jax.__version__,
    }


def main(options: Options) -> None:
    """Runs the cases and prints them."""
    results = {
        "benchmark": "moe_layer",
        "date": time.strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "cases": [measure(case, options) for case in cases() if options.only in case.name],
    }
    if options.json:
        print(json.dumps(results, indent=2))
        return
    print(", ".join(f"{name} {value}" for name, value in results["hardware"].items()))
    for case in results["cases"]:
        passes = "forward + backward" if case["backward"] else "forward"
        print(
            f"\n{case['case']}, {passes}: {case['num_tokens']} tokens, top-"
            f"{case['experts_per_token']} of {case['num_experts']}, d {case['d_model']}, "
            f"hidden {case['d_hidden']}, {case['activation']}"
        )
        print("  program    wall ms   ratio  (p10 - p90)     cpu ms   ratio  GFLOP/s  rounds")
        for row in case["programs"]:
            print(
                f"  {row['program']:8s} {row['wall_ms']:9.2f} {row['wall_ratio']:7.2f}  "
                f"({row['wall_ratio_p10']:.2f} - {row['wall_ratio_p90']:.2f}) "
                f"{row['cpu_ms']:10.2f} {row['cpu_ratio']:7.2f} {row['gflops']:8.1f} "
                f"{row['rounds']:7d}"
            )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
