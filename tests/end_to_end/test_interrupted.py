"""A pipeline that is killed at any moment, and started again, ends as one that was not.

Each start is a process of its own, the command of the README; SIGKILL goes to its whole process
group. Moments are told from the files of the run folder.
"""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import time
from collections.abc import Callable

import jax
import numpy as np
import pytest

from core_jax.loop import LoopConfig
from core_jax.mesh import MeshConfig, make_mesh
from launch import exits, runtime
from rec_jax.config import PretrainConfig
from rec_jax.stages import evaluate, prepare, pretrain, report, tokenize
from tests.end_to_end.processes import output, started
from tests.end_to_end.shrunk_job import shrunk_config, write_log

pytestmark = pytest.mark.long

STAGES = (
    prepare.NAME,
    tokenize.NAME,
    pretrain.NAME,
    pretrain.POINTWISE_NAME,
    evaluate.NAME,
    report.NAME,
)
NUM_STEPS, CHECKPOINT_EVERY, LOG_EVERY = 510, 170, 10
TIMES = {
    "first_step_seconds",
    "step_seconds",
    "steps_per_second",
    "tokens_per_second",
    "input_fraction",
    "mfu",
}
SECONDS = 300.0
"""Longest wait for anything."""


class Runs:
    """Starts the pipeline in run folders; all of them share logs and a compilation cache."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        write_log(folder)

    def open(self, name: str) -> pathlib.Path:
        """A run folder that holds its config."""
        config = shrunk_config(self.folder)
        loop = LoopConfig(
            num_steps=NUM_STEPS,
            log_every=LOG_EVERY,
            evaluate_every=CHECKPOINT_EVERY,
            checkpoint_every=CHECKPOINT_EVERY,
        )
        config = dataclasses.replace(
            config,
            run_dir=str(self.folder / name),
            mesh=MeshConfig(),
            pretrain=PretrainConfig(batch_size=16, loop=loop, pointwise_steps=NUM_STEPS),
        )
        return runtime.open_run(config)

    def start(self, run: pathlib.Path):
        """A process that runs the pipeline."""
        return started("rec.pipeline", run, cache=self.folder / "cache")

    def finish(self, run: pathlib.Path) -> None:
        """Runs the pipeline to its end."""
        with self.start(run) as process:
            assert process.wait(SECONDS) == 0, output(run)
        assert all(_is_done(run, stage) for stage in STAGES)

    def interrupt(self, run: pathlib.Path, number: int, moment: Callable[[], bool]) -> int:
        """Runs the pipeline and signals it at a moment; returns its exit code."""
        with self.start(run) as process:
            deadline = time.monotonic() + SECONDS
            while not moment():
                assert process.poll() is None, f"it ended before the moment\n{output(run)}"
                assert time.monotonic() < deadline, f"the moment never came\n{output(run)}"
                time.sleep(0.001)
            os.killpg(process.pid, number)
            return process.wait(SECONDS)


def _is_done(run: pathlib.Path, stage: str) -> bool:
    return (run / "stages" / stage / "done.json").exists()


def _rows(run: pathlib.Path, stage: str) -> list[dict]:
    """Complete rows of a stage's metrics."""
    path = run / "stages" / stage / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _checkpoints(run: pathlib.Path, stage: str) -> list[int]:
    folder = run / "stages" / stage / "checkpoints"
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())


def _between_checkpoints(run: pathlib.Path, stage: str) -> bool:
    """Whether training is past a checkpoint that is complete, and has some way to go."""
    steps, rows = _checkpoints(run, stage), _rows(run, stage)
    return bool(steps and rows) and steps[-1] < rows[-1]["step"] < NUM_STEPS - 6 * LOG_EVERY


def _done_times(run: pathlib.Path) -> dict[str, int]:
    """When each finished stage was finished."""
    paths = run.glob("stages/*/done.json")
    return {path.parent.name: path.stat().st_mtime_ns for path in paths}


def _results(run: pathlib.Path, window: range) -> dict[str, object]:
    """What a run has found out: codes, losses, parameters, recommended items, metrics."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    folder = run / "stages" / evaluate.NAME
    files = ("evaluation.json", "per_user_metrics.parquet", "samples.json", "choices.txt")
    results: dict[str, object] = {name: (folder / name).read_bytes() for name in files}
    results["codes"] = tokenize.load(str(run)).codes
    for stage in (pretrain.NAME, pretrain.POINTWISE_NAME):
        rows = [row for row in _rows(run, stage) if row["step"] not in window]
        results[f"rows of {stage}"] = [
            {name: value for name, value in row.items() if name not in TIMES} for row in rows
        ]
        assert rows[-1]["step"] == NUM_STEPS and rows[-1].keys() >= {"loss", "valid_loss"}
        pointwise = stage == pretrain.POINTWISE_NAME
        results[f"params of {stage}"] = pretrain.load(str(run), mesh, pointwise=pointwise)[1]
    return results


def _assert_equal(run: pathlib.Path, other: pathlib.Path, *, window: range = range(0)) -> None:
    """Bit for bit, but for rows of the metrics that end within a window of steps."""
    results, others = _results(run, window), _results(other, window)
    assert results.keys() == others.keys()
    for name in results:
        jax.tree.map(
            lambda one, two, name=name: np.testing.assert_array_equal(one, two, err_msg=name),
            results[name],
            others[name],
        )


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    return Runs(tmp_path_factory.mktemp("interrupted"))


@pytest.fixture(scope="module")
def unbroken(runs) -> pathlib.Path:
    run = runs.open("unbroken")
    runs.finish(run)
    return run


def test_killed_again_and_again_it_ends_as_if_it_had_not_been(runs, unbroken):
    """One run, killed seven times; no stage that was done is done again."""
    run = runs.open("killed")
    stages = run / "stages"
    moments: tuple[Callable[[], bool], ...] = (
        lambda: (stages / prepare.NAME).exists(),
        lambda: (stages / tokenize.NAME).exists(),
        lambda: _is_done(run, tokenize.NAME),
        lambda: _between_checkpoints(run, pretrain.NAME),
        lambda: _is_done(run, pretrain.NAME),
        lambda: _between_checkpoints(run, pretrain.POINTWISE_NAME),
        lambda: (stages / evaluate.NAME).exists(),
    )
    done: dict[str, int] = {}
    for number, moment in enumerate(moments):
        assert not moment(), f"moment {number} has passed"
        assert runs.interrupt(run, signal.SIGKILL, moment) == -signal.SIGKILL
        assert _done_times(run).items() >= done.items()
        done = _done_times(run)
        assert len(done) < len(STAGES)
    runs.finish(run)
    assert _done_times(run).items() >= done.items()
    _assert_equal(run, unbroken)


def test_asked_to_end_it_saves_and_goes_on_from_there(runs, unbroken):
    """SIGTERM in training, in a copy of the unbroken run that lacks everything from there on.

    The last step before the end has a row of its own in the metrics, so that the row after it
    covers fewer steps than in the unbroken run: these two are not compared.
    """
    run = runs.open("asked")
    for stage in (prepare.NAME, tokenize.NAME):
        shutil.copytree(unbroken / "stages" / stage, run / "stages" / stage)
    moment = _between_checkpoints
    assert (
        runs.interrupt(run, signal.SIGTERM, lambda: moment(run, pretrain.NAME)) == exits.PREEMPTED
    )
    assert "interrupted; the same command goes on" in output(run)
    assert not _is_done(run, pretrain.NAME)
    assert not (run / "stages" / pretrain.POINTWISE_NAME).exists()
    last = _checkpoints(run, pretrain.NAME)[-1]
    assert last == _rows(run, pretrain.NAME)[-1]["step"]
    assert CHECKPOINT_EVERY < last < NUM_STEPS
    runs.finish(run)
    _assert_equal(run, unbroken, window=range(last, last + LOG_EVERY + 1))
