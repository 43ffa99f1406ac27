"""The small pipeline of `benchmarks.faults`, as processes of its own on a made-up log.

python -m benchmarks.faults_pipeline RUN        what each process runs: three jobs in turn
"""

import contextlib
import dataclasses
import os
import pathlib
import random
import subprocess
import sys
import time
from collections.abc import Callable

from core_jax.loop import LoopConfig
from core_jax.mesh import MeshConfig
from launch import cli, runtime
from launch.jobs import JOBS
from launch.supervisor import SupervisorConfig, supervise
from rec_jax.config import PretrainConfig
from tests.end_to_end.processes import running
from tests.end_to_end.shrunk_job import shrunk_config, write_log

PAIR = "--pair"
STAGES = ("rec.prepare", "rec.tokenize", "rec.pretrain")
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
        loop = LoopConfig(
            num_steps=NUM_STEPS,
            log_every=10,
            evaluate_every=4 * CHECKPOINT_EVERY,
            checkpoint_every=CHECKPOINT_EVERY,
        )
        config = dataclasses.replace(
            shrunk_config(self.folder),
            run_dir=str(self.folder / name),
            mesh=MeshConfig(),
            pretrain=PretrainConfig(batch_size=16, loop=loop),
        )
        return runtime.open_run(config)

    def started(self, run: pathlib.Path) -> contextlib.AbstractContextManager[subprocess.Popen]:
        """A process that runs the pipeline; none of its group outlives the block."""
        pair = [PAIR] if self.pair else []
        module = ["benchmarks.faults_pipeline", str(run), *pair]
        return running(module, self.output(run), cache=self.folder / "cache")

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
