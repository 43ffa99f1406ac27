"""What the tests of interrupted alignments share: one that is killed until it ends."""

import dataclasses
import pathlib
import random
import signal
import time

import jax
import numpy as np

from core_jax.loop import LoopConfig
from core_jax.mesh import MeshConfig, make_mesh
from launch import runtime
from rec_jax.align.methods import Method, MethodConfig
from rec_jax.align.run_config import Folders
from rec_jax.stages import align_evaluate, generators, groups
from tests.end_to_end.processes import output, started
from tests.end_to_end.shrunk_alignment import shrunk_alignment

NUM_KILLS = 20
SEED = 0
JOB = "rec.align"
SECONDS = 600.0
"""Longest wait for anything."""


def _open(folder: pathlib.Path, method: Method) -> pathlib.Path:
    """A run folder with its config: on one device, with long enough rounds to be cut in them."""
    config = shrunk_alignment(folder, mesh=MeshConfig())
    loop = LoopConfig(num_steps=120, log_every=10, checkpoint_every=20)
    align = dataclasses.replace(
        config.align,
        method=MethodConfig(method=method),
        contrast=dataclasses.replace(config.align.contrast, loop=loop),
        loop=loop,
        preference_ratio=0.05,
    )
    return runtime.open_run(dataclasses.replace(config, align=align))


def _finish(run: pathlib.Path, cache: pathlib.Path) -> float:
    """Runs the job to its end; returns the seconds that took."""
    began = time.monotonic()
    with started(JOB, run, cache=cache) as process:
        assert process.wait(SECONDS) == 0, output(run)
    return time.monotonic() - began


def _results(run: pathlib.Path) -> list[np.ndarray]:
    """Parameters of every round, the groups, and the judged sessions."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    folders = Folders(base=str(run), shared=str(run), first=str(run), run=str(run))
    results = []
    for number in (0, 1, 2):
        results += jax.tree.leaves(generators.load(folders, number, mesh)[1])
        results += vars(align_evaluate.load(folders, number)).values()
    for number in (1, 2):
        results += vars(groups.load(folders, number)).values()
    return [np.asarray(leaf) for leaf in results]


def _kill_until_done(
    run: pathlib.Path, cache: pathlib.Path, whole: float, draw: random.Random
) -> list[str]:
    """Kills the job at random moments until it ends before one; returns the stages it cut.

    A killed process may not have come to anything new; that is allowed, and the next one starts.
    """
    cut: list[str] = []
    while True:
        with started(JOB, run, cache=cache) as process:
            moment = time.monotonic() + draw.uniform(0.15, 0.6) * whole
            while time.monotonic() < moment and process.poll() is None:
                time.sleep(0.01)
            if process.poll() is not None:
                assert process.returncode == 0, output(run)
                return cut
            process.send_signal(signal.SIGKILL)
            process.wait()
        done = {path.parent.name for path in run.glob("stages/*/done.json")}
        begun = {path.name for path in (run / "stages").glob("*")} - done
        cut.append(next(iter(begun), "between stages"))


def check_kills(method: Method, folder: pathlib.Path) -> None:
    """As many runs as it takes for `NUM_KILLS` kills; each must end as the unbroken run.

    Args:
      method: of the alignment.
      folder: an empty folder.
    """
    cache = folder / "cache"  # compiled programs
    _finish(_open(folder / "warm", method), cache)
    unbroken = _open(folder / "unbroken", method)
    whole = _finish(unbroken, cache)
    expected = _results(unbroken)
    draw = random.Random(SEED)
    cut: list[str] = []
    while len(cut) < NUM_KILLS:
        run = _open(folder / f"killed_{len(cut)}", method)
        cut += _kill_until_done(run, cache, whole, draw)
        for one, two in zip(_results(run), expected, strict=True):
            np.testing.assert_array_equal(one, two)
    assert len(set(cut)) >= 5, f"all kills fell into {set(cut)}"
