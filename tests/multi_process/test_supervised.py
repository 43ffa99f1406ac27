"""A training job of two processes that is killed, asked to end, or goes on in one process.

Each start is the command of the documentation. The runs share a log and a compilation cache, and
programs are compiled without optimisation: all of them alike, as numbers are compared bit for bit.
"""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from core_jax.loop import LoopConfig
from core_jax.mesh import MeshConfig, make_mesh
from launch import runtime
from rec_jax.config import PretrainConfig
from rec_jax.stages import prepare, pretrain, tokenize
from tests.architecture.sources import ROOT
from tests.end_to_end.shrunk_job import shrunk_config, write_log

pytestmark = pytest.mark.long

NUM_STEPS, EVERY = 160, 40
SECONDS = 300.0


class Runs:
    """Starts the training in run folders that share all stages before it."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        write_log(folder)
        base = shrunk_config(folder)
        self.config = dataclasses.replace(
            base,
            run_dir=str(folder / "base"),
            mesh=MeshConfig(data=1, fsdp=2, expert=4),
            pretrain=PretrainConfig(
                batch_size=16,
                loop=LoopConfig(
                    num_steps=NUM_STEPS, log_every=10, evaluate_every=EVERY, checkpoint_every=EVERY
                ),
            ),
        )
        runtime.open_run(self.config)
        assert prepare.run(self.config) and tokenize.run(self.config)

    def open(self, name: str, *, like: pathlib.Path | None = None) -> pathlib.Path:
        """A run folder before the training, or a copy of one in the midst of it."""
        run = self.folder / name
        shutil.copytree(like or self.folder / "base", run)
        config = json.loads((run / "config.json").read_text()) | {"run_dir": str(run)}
        (run / "config.json").write_text(json.dumps(config))
        return run

    def start(self, run: pathlib.Path, *flags: str, processes: int = 2) -> subprocess.Popen:
        """The supervisor, as a process."""
        environment = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        }
        devices = ["--devices-per-process", str(8 // processes)]
        command = [
            sys.executable,
            "-m",
            "launch.supervise",
            "--processes",
            str(processes),
            *devices,
        ]
        words = [*command, *flags, "--", "rec.pretrain", "--run-dir", str(run)]
        with (run / "output.txt").open("a") as output:
            return subprocess.Popen(
                words, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
            )

    def end(self, run: pathlib.Path, supervisor: subprocess.Popen) -> tuple[int, str]:
        """Waits; gives exit code and what was printed."""
        try:
            code = supervisor.wait(SECONDS)
        finally:
            supervisor.kill()
            supervisor.wait()
        return code, (run / "output.txt").read_text()

    def wait_until_between_checkpoints(self, run: pathlib.Path, supervisor) -> None:
        """Waits until training is past a checkpoint and has some way to go."""
        deadline = time.monotonic() + SECONDS
        while not _is_between(run):
            text = (run / "output.txt").read_text()[-4000:]
            assert supervisor.poll() is None and time.monotonic() < deadline, text
            time.sleep(0.02)


def _rows(run: pathlib.Path) -> list[dict]:
    """Whole rows of the training's metrics."""
    path = run / "stages" / pretrain.NAME / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _is_between(run: pathlib.Path) -> bool:
    folder = run / "stages" / pretrain.NAME / "checkpoints"
    steps = [int(path.name) for path in folder.glob("*") if path.name.isdigit()]
    rows = _rows(run)
    return bool(steps and rows) and max(steps) < rows[-1]["step"] < NUM_STEPS - EVERY


def _workers(supervisor: subprocess.Popen) -> list[int]:
    """Process ids of the job's processes, by their numbers."""
    found = {}
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode().split("\0")
            parent = re.search(r"PPid:\t(\d+)", (path.parent / "status").read_text())
        except OSError:
            continue
        number = [word for word in words if word.startswith("--process-id=")]
        if number and parent is not None and int(parent[1]) == supervisor.pid:
            found[int(number[0].partition("=")[2])] = int(path.parent.name)
    return [found[number] for number in sorted(found)]


def _params(run: pathlib.Path):
    return pretrain.load(str(run), make_mesh(MeshConfig(), jax.devices()[:1]))[1]


def _losses(run: pathlib.Path) -> list[float]:
    return [
        row["valid_loss"] for row in _rows(run) if "valid_loss" in row and not row["step"] % EVERY
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    if not pathlib.Path("/proc/self/status").exists():
        pytest.skip("finds the job's processes in /proc, which is Linux's")
    return Runs(tmp_path_factory.mktemp("supervised"))


@pytest.fixture(scope="module")
def unbroken(runs) -> pathlib.Path:
    run = runs.open("unbroken")
    code, text = runs.end(run, runs.start(run))
    assert code == 0, text[-4000:]
    return run


def test_a_killed_process_is_named_and_the_job_ends_as_the_unbroken_one(runs, unbroken):
    """Kill -9 of process 1 between two checkpoints; the supervisor starts the job again."""
    run = runs.open("killed")
    supervisor = runs.start(run, "--restarts", "1", "--grace", "0.5")
    runs.wait_until_between_checkpoints(run, supervisor)
    os.kill(_workers(supervisor)[1], signal.SIGKILL)
    code, text = runs.end(run, supervisor)
    assert code == 0, text[-4000:]
    assert "process 1 died: killed by SIGKILL; ended process 0" in text
    assert "starts the job again from its last checkpoint" in text
    jax.tree.map(np.testing.assert_array_equal, _params(run), _params(unbroken))
    assert _losses(run) == _losses(unbroken)


def test_notice_to_one_process_saves_and_ends_all_and_fewer_go_on(runs, unbroken):
    """SIGTERM to process 1 alone. One process of 8 devices then takes the rest of the steps.

    It reads the same batches in the same order: its losses are those of the unbroken run.
    """
    run = runs.open("asked")
    supervisor = runs.start(run)
    runs.wait_until_between_checkpoints(run, supervisor)
    os.kill(_workers(supervisor)[1], signal.SIGTERM)
    code, text = runs.end(run, supervisor)
    assert code == 75 and text.count("preempted: saved, run me again") == 2, text[-4000:]
    last = _rows(run)[-1]["step"]
    assert EVERY < last < NUM_STEPS
    assert (run / "stages" / pretrain.NAME / "checkpoints" / str(last)).is_dir()
    again = runs.open("again", like=run)
    code, text = runs.end(again, runs.start(again, processes=1))
    assert code == 0, text[-4000:]
    np.testing.assert_allclose(_losses(again), _losses(unbroken), rtol=1e-3)
