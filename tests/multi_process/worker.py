"""One of two processes: `python -m tests.multi_process.worker ADDRESS PROCESS FOLDER`.

Measures every case, restores what others have saved, saves, and (process 0) writes what it found.
"""

import pathlib
import sys

import jax
import numpy as np

from core_jax.checkpoint import Checkpoints
from core_jax.mesh import make_mesh
from tests.multi_process.cases import CASES, measure, named, rest_of_curve, restore, whole


def main() -> None:
    """Does all of it in one pair of processes: starting them is what costs."""
    address, process, folder = sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3])
    jax.config.update("jax_disable_most_optimizations", True)
    jax.distributed.initialize(address, 2, process, heartbeat_timeout_seconds=20)
    found: dict[str, np.ndarray] = {}
    for name, case in CASES.items():
        mesh = make_mesh(case.mesh)
        with Checkpoints(folder / name / "two") as checkpoints:
            measured, _ = measure(case, mesh, checkpoints)
        found |= {f"{name} two {key}": value for key, value in measured.items()}
        for origin in ("one", "eight", "two"):
            restored = restore(case, mesh, folder / name / origin)
            found |= dict(named(f"{name} restored {origin}", whole(restored.state, mesh)))
            if origin == "one":
                found[f"{name} rest"] = rest_of_curve(case, mesh, restored)
        print(f"{name} is done", flush=True)
    if process == 0:
        np.savez(folder / "found.npz", **found)
    jax.distributed.shutdown()


if __name__ == "__main__":
    main()
