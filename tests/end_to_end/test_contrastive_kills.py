"""The contrastive pipeline, killed at 20 random moments, ends as one that was not.

A start is a process of its own, the command of the README. All runs have one folder, one after the
other: its name is in what files of scores say of their models.
"""

import pathlib
import random
import shutil
import signal
import time

import pytest

from launch import runtime
from tests.end_to_end.processes import output, started
from tests.end_to_end.shrunk_contrastive import shrunk_contrastive

pytestmark = pytest.mark.long

NUM_KILLS = 20
SEED = 0
JOB = "reasoning.pipeline"
SECONDS = 600.0
"""Longest wait for anything."""
EQUAL = (
    "table/table.csv",
    "table/table.md",
    "seed0/contrast/stages/*/*.jsonl",
    "seed0/methods/*/stages/reference/reference.jsonl",
    "seed0/methods/*/exported/*.safetensors",
    "seed0/critical/stages/estimate/estimate.md",
    "seed0/view/index.html",
)
"""Files that must be equal, byte for byte."""
SORTED = ("**/trajectories.jsonl", "seed0/critical/stages/critical/*.jsonl")
"""Files whose rows come in the order in which they are ready."""


def _opened(run: pathlib.Path) -> pathlib.Path:
    """The run's folder, anew, with its config."""
    shutil.rmtree(run, ignore_errors=True)
    return runtime.open_run(shrunk_contrastive(run))


def _finish(run: pathlib.Path, cache: pathlib.Path) -> float:
    """Runs the pipeline to its end; returns the seconds that took."""
    began = time.monotonic()
    with started(JOB, run, cache=cache) as process:
        assert process.wait(SECONDS) == 0, output(run)
    return time.monotonic() - began


def _done(run: pathlib.Path) -> dict[str, int]:
    """When each finished stage was finished."""
    return {str(path): path.stat().st_mtime_ns for path in run.rglob("done.json")}


def _results(run: pathlib.Path) -> dict[str, object]:
    """What a run has found out, by file."""
    found: dict[str, object] = {}
    for pattern in EQUAL:
        paths = list(run.glob(pattern))
        assert paths, pattern
        found |= {str(path): path.read_bytes() for path in paths}
    for pattern in SORTED:
        paths = list(run.glob(pattern))
        assert paths, pattern
        found |= {str(path): sorted(path.read_bytes().splitlines()) for path in paths}
    return found


def _kill_until_done(
    run: pathlib.Path, cache: pathlib.Path, whole: float, draw: random.Random
) -> list[str]:
    """Kills the pipeline at random moments until it ends before one; returns the stages it cut.

    What was done stays done. A killed process may not have come to anything new; that is allowed.
    """
    cut: list[str] = []
    done: dict[str, int] = {}
    while True:
        with started(JOB, run, cache=cache) as process:
            moment = time.monotonic() + draw.uniform(0.15, 0.6) * whole
            while time.monotonic() < moment and process.poll() is None:
                time.sleep(0.01)
            if process.poll() is not None:
                assert process.returncode == 0, output(run)
                assert _done(run).items() >= done.items()
                return cut
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert _done(run).items() >= done.items()
        done = _done(run)
        finished = {pathlib.Path(path).parent for path in done}
        begun = set(run.glob("**/stages/*")) - finished
        cut.append(next((f"{one.relative_to(run)}" for one in begun), "between stages"))


def test_killed_at_twenty_random_moments_it_ends_as_if_it_had_not_been(tmp_path):
    """As many runs as it takes for 20 kills; every one of them ends as the unbroken run."""
    run, cache = tmp_path / "run", tmp_path / "cache"
    _finish(_opened(run), cache)
    whole = _finish(_opened(run), cache)
    expected = _results(run)
    draw = random.Random(SEED)
    cut: list[str] = []
    while len(cut) < NUM_KILLS:
        cut += _kill_until_done(_opened(run), cache, whole, draw)
        found = _results(run)
        assert found.keys() == expected.keys()
        assert [name for name in found if found[name] != expected[name]] == []
    assert len(set(cut)) >= 5, f"all kills fell into {set(cut)}"
