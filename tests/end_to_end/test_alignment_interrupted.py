"""An alignment that is killed at 20 random moments ends, bit for bit, as one that was not."""

import dataclasses
import pathlib
import random
import signal
import time

import jax
import numpy as np
import pytest

from core_jax.loop import LoopConfig
from core_jax.mesh import MeshConfig, make_mesh
from launch import runtime
from rec_jax.align.methods import Method, MethodConfig
from rec_jax.align.run_config import Folders
from rec_jax.stages import align_evaluate, generators, groups
from tests.end_to_end.processes import output, started
from tests.end_to_end.shrunk_alignment import shrunk_alignment

pytestmark = pytest.mark.long

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


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> pathlib.Path:
    """Compiled programs, which both methods share but for their losses."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("method", [Method.DPO, Method.CONTRASTIVE])
def test_killed_at_twenty_random_moments_it_ends_as_if_it_had_not_been(method, cache, tmp_path):
    """As many runs as it takes for 20 kills; every one of them ends as the unbroken run."""
    _finish(_open(tmp_path / "warm", method), cache)
    unbroken = _open(tmp_path / "unbroken", method)
    whole = _finish(unbroken, cache)
    expected = _results(unbroken)
    draw = random.Random(SEED)
    cut: list[str] = []
    while len(cut) < NUM_KILLS:
        run = _open(tmp_path / f"killed_{len(cut)}", method)
        cut += _kill_until_done(run, cache, whole, draw)
        for one, two in zip(_results(run), expected, strict=True):
            np.testing.assert_array_equal(one, two)
    assert len(set(cut)) >= 5, f"all kills fell into {set(cut)}"
