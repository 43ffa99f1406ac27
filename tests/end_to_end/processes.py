"""Jobs as processes of their own: the command of the README, ended at any moment."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator

from tests.architecture.sources import ROOT


@contextlib.contextmanager
def started(job: str, run: pathlib.Path, *, cache: pathlib.Path) -> Iterator[subprocess.Popen]:
    """A process that runs a job in a run folder; none of its group outlives the block."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-m", "launch.local", job, "--run-dir", str(run)]
    with (run / "output.txt").open("a") as output:
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


def output(run: pathlib.Path) -> str:
    """The end of what the processes of a run have printed."""
    return (run / "output.txt").read_text()[-4000:]
