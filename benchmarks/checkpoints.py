"""What a checkpoint costs at the demo's size, and how many bytes a restore reads.

    python -m benchmarks.checkpoints [--seconds 120] [--json]

Saving: windows of train steps of the preset `demo` take turns: without a save, with one that is
written in the background, with one that is waited for. A window's fastest run counts, so that the
difference of two is what one save costs; its share is that of the demo's interval between
checkpoints. Restoring: the bytes that this process reads (`/proc/self/io`, Linux) while it
restores, over the bytes of the checkpoint, onto other meshes of 8 CPU devices.

Dimension key: none.
"""

import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import tyro
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from benchmarks.moe_layer import hardware, time_in_turns
from benchmarks.train_step import demo_step, variants
from core_jax.checkpoint import Checkpoints
from rec_jax.presets import demo

WINDOW = 16
"""Train steps of a window: long enough for a save in the background to end."""
NUM_ARRAYS, ROWS = 8, 1024
"""Arrays of the restored checkpoint, and their rows and columns, of uint32."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Command line."""

    seconds: float = 120.0
    """Time budget of the saves, in seconds, after compilation."""
    json: bool = False
    """Print one JSON object instead of the table."""
    restore: bool = False
    """Only measure the restores, as JSON; this process then has 8 CPU devices."""


def saves(seconds: float) -> dict[str, Any]:
    """Times windows of steps with and without a save."""
    config, model = demo(), variants()["demo"]
    train_step, state, batch, key = demo_step(model)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(jax.device_get(state.params)))
    blocked: list[float] = []

    with (
        tempfile.TemporaryDirectory(prefix="alignax_saves_") as folder,
        Checkpoints(pathlib.Path(folder, "later"), keep=1) as later,
        Checkpoints(pathlib.Path(folder, "now"), keep=1, asynchronous=False) as now,
    ):

        def window(checkpoints: Checkpoints | None) -> Callable[[], None]:
            def run() -> None:
                nonlocal state
                for number in range(WINDOW):
                    state, metrics = train_step(state, batch, key)
                    if number == 0 and checkpoints is not None:
                        jax.block_until_ready(metrics)
                        began = time.perf_counter()
                        step = (checkpoints.latest() or 0) + 1
                        checkpoints.save(step, state, position={}, fingerprint="f")
                        if checkpoints is later:
                            blocked.append(time.perf_counter() - began)
                jax.block_until_ready(state)

            return run

        programs = {
            "without": window(None),
            "asynchronous": window(later),
            "waited": window(now),
        }
        times = time_in_turns(programs, seconds)
    fastest = {name: float(rounds[:, 0].min()) for name, rounds in times.items()}
    extra = {
        name: 1e3 * (fastest[name] - fastest["without"]) for name in ("asynchronous", "waited")
    }
    step, every = fastest["without"] / WINDOW, config.pretrain.loop.checkpoint_every
    return {
        "parameter_mib": size / 2**20,
        "step_ms": 1e3 * step,
        "every": every,
        "blocked_ms": 1e3 * float(np.median(blocked[1:])),
        "rounds": len(times["without"]),
        "extra_ms": extra,
        "share": {name: value / (1e3 * every * step) for name, value in extra.items()},
    }


def restores() -> dict[str, float]:
    """Bytes read for each byte of the checkpoint, by the layout that is restored."""
    rng = np.random.default_rng(0)
    shape = (ROWS, ROWS)
    arrays = {f"w{i}": rng.integers(0, 2**32, shape, dtype=np.uint32) for i in range(NUM_ARRAYS)}

    def layout(count: int, *axes: str | None) -> NamedSharding:
        devices = jax.devices()[:count]
        mesh = jax.make_mesh((count,), ("x",), axis_types=(AxisType.Auto,), devices=devices)
        return NamedSharding(mesh, PartitionSpec(*axes))

    layouts = {
        "the same": layout(8, "x"),
        "4 devices": layout(4, "x"),
        "1 device": layout(1),
        "8 copies": layout(8),
        "columns": layout(8, None, "x"),
    }
    ratios = {}
    with tempfile.TemporaryDirectory(prefix="alignax_restores_") as folder:
        with Checkpoints(folder) as checkpoints:
            state = {"params": jax.device_put(arrays, layouts["the same"])}
            checkpoints.save(1, state, position={}, fingerprint="f")
        size = sum(path.stat().st_size for path in pathlib.Path(folder).rglob("*"))
        for name, sharding in layouts.items():
            target = jax.ShapeDtypeStruct(shape, np.uint32, sharding=sharding)
            with Checkpoints(folder) as checkpoints:
                before = bytes_read()
                wanted = {"params": dict.fromkeys(arrays, target)}
                found = checkpoints.restore(wanted, fingerprint="f")
                jax.block_until_ready(found.state if found else None)
                ratios[name] = (bytes_read() - before) / size
    return ratios


def bytes_read() -> int:
    """Bytes that this process has asked the system to read."""
    return int(pathlib.Path("/proc/self/io").read_text(encoding="ascii").split()[1])


def main(options: Options) -> None:
    """Measures and prints."""
    if options.restore:
        jax.config.update("jax_num_cpu_devices", 8)
        print(json.dumps(restores()))
        return
    command = [sys.executable, "-m", "benchmarks.checkpoints", "--restore"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    results = {
        "benchmark": "checkpoints",
        "date": time.strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "saves": saves(options.seconds),
        "bytes_read_per_byte": json.loads(done.stdout.splitlines()[-1]),
    }
    if options.json:
        print(json.dumps(results, indent=2))
        return
    found = results["saves"]
    print(", ".join(f"{name} {value}" for name, value in results["hardware"].items()))
    print(
        f"parameters {found['parameter_mib']:.1f} MiB, step {found['step_ms']:.1f} ms, saved every "
        f"{found['every']} steps, save() returns after {found['blocked_ms']:.1f} ms, "
        f"{found['rounds']} rounds"
    )
    for name, extra in found["extra_ms"].items():
        print(f"  {name:13s} {extra:7.1f} ms per save, {found['share'][name]:7.3%} of the steps")
    for name, ratio in results["bytes_read_per_byte"].items():
        print(f"  restored onto {name:10s} reads {ratio:5.3f} bytes per byte")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
