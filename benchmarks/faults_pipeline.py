"""The small pipeline of `benchmarks.faults`, as processes of its own on a made-up log.

python -m benchmarks.faults_pipeline RUN        what each process runs: three jobs in turn
"""

import contextlib
import dataclasses
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import polars as pl

from core_jax.loop import LoopConfig
from launch import cli, runtime
from launch.jobs import JOBS
from launch.supervisor import SupervisorConfig, supervise
from rec_jax.config import PretrainConfig
from rec_jax.data.own_logs import OwnLogConfig, TimestampUnit
from rec_jax.data.session_config import EventRule, EventRuleConfig
from rec_jax.presets import demo_tiny
from rec_jax.semantic_ids.residual import SemanticIdConfig

PAIR = "--pair"
STAGES = ("rec.prepare", "rec.tokenize", "rec.pretrain")
ROOT = pathlib.Path(__file__).parent.parent
NUM_USERS, NUM_ITEMS, NUM_GENRES = 61, 53, 4
NUM_STEPS, CHECKPOINT_EVERY = 240, 20
LONGEST_WAIT = 300.0


class Bench:
    """The folder with the log, the runs and the cache of compiled programs that they share."""

    def __init__(self, folder: pathlib.Path, draw: random.Random):
        self.folder = folder
        self.draw = draw
        self.whole = 0.0
        self.pair = False
        write_log(folder)

    def open(self, name: str) -> pathlib.Path:
        """A run folder that holds its config."""
        base = demo_tiny()
        loop = LoopConfig(
            num_steps=NUM_STEPS,
            log_every=10,
            evaluate_every=4 * CHECKPOINT_EVERY,
            checkpoint_every=CHECKPOINT_EVERY,
        )
        positive = EventRuleConfig(rule=EventRule.THRESHOLD, column="stars", threshold=4.0)
        config = dataclasses.replace(
            base,
            run_dir=str(self.folder / name),
            log=OwnLogConfig(
                path=str(self.folder / "log.csv"),
                items_path=str(self.folder / "items.csv"),
                columns=("user_id=uid", "item_id=movie", "timestamp=when", "stars=stars"),
                timestamp_unit=TimestampUnit.SECONDS,
            ),
            sessions=dataclasses.replace(base.sessions, positive=positive),
            semantic_ids=SemanticIdConfig(level_sizes=(5, 5)),
            pretrain=PretrainConfig(batch_size=16, loop=loop),
        )
        return runtime.open_run(config)

    @contextlib.contextmanager
    def started(self, run: pathlib.Path) -> Iterator[subprocess.Popen]:
        """A process that runs the pipeline; none of its group outlives the block."""
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        command = [sys.executable, "-m", "benchmarks.faults_pipeline", str(run)]
        command += [PAIR] if self.pair else []
        with self.output(run).open("a") as output:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def output(self, run: pathlib.Path) -> pathlib.Path:
        """The file with what the processes of a run print."""
        return self.folder / f"{run.name}.txt"

    def finish(self, run: pathlib.Path) -> bool:
        """Runs the pipeline to its end; whether it came there."""
        with self.started(run) as process:
            if process.wait(LONGEST_WAIT) == 0:
                return True
        print(self.output(run).read_text()[-2000:], file=sys.stderr)
        return False

    def strike(self, run: pathlib.Path, number: int, moment: Callable[[], bool]) -> int | None:
        """Signals the pipeline at a moment; its exit code, or None if it had ended before."""
        with self.started(run) as process:
            deadline = time.monotonic() + LONGEST_WAIT
            while not moment():
                if process.poll() is not None or time.monotonic() > deadline:
                    return None
                time.sleep(0.001)
            os.killpg(process.pid, number)
            return process.wait(LONGEST_WAIT)

    def soon(self) -> Callable[[], bool]:
        """A moment at random within the time that an unbroken run takes."""
        moment = time.monotonic() + self.draw.uniform(0.1, 0.9) * self.whole
        return lambda: time.monotonic() >= moment


def write_log(folder: pathlib.Path) -> None:
    """Users who walk through the items of one genre at a time."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(NUM_USERS):
        genre, items = rng.integers(NUM_GENRES), []
        while len(items) < 17:
            genre = genre if rng.random() < 0.9 else rng.integers(NUM_GENRES)
            item = int(rng.integers(NUM_ITEMS // NUM_GENRES) * NUM_GENRES + genre)
            if item not in items:
                items.append(item)
        rows += [
            {"uid": f"u{user}", "movie": f"i{item}", "when": 60 * place + 86_400 * user, "stars": 5}
            for place, item in enumerate(items)
        ]
    pl.DataFrame(rows).write_csv(folder / "log.csv")
    items = [
        {"item_id": f"i{i}", "title": f"Film {i}", "categories": f"genre{i % NUM_GENRES}"}
        for i in range(NUM_ITEMS)
    ]
    pl.DataFrame(items).write_csv(folder / "items.csv")


def main() -> int:
    """Runs the stages of the run folder that the command line names, as `launch.local` does.

    With --pair the last one runs in two processes of one device each, under `launch.supervise`.
    """
    run, pair = sys.argv[1], PAIR in sys.argv[2:]
    for stage in STAGES:
        words = [stage, "--run-dir", run]
        if pair and stage == STAGES[-1]:
            config = SupervisorConfig(processes=2, devices_per_process=1, grace=2.0)
            code = supervise(config, words)
        else:
            code = cli.main(JOBS, words, program="benchmarks.faults")
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
