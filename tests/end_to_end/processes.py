"""Jobs as processes of their own: the command of the README, ended at any moment."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence

from tests.architecture.sources import ROOT


def started(
    job: str, run: pathlib.Path, *, cache: pathlib.Path
) -> contextlib.AbstractContextManager[subprocess.Popen]:
    """A process that runs a job in a run folder, see `running`."""
    return running(["launch.local", job, "--run-dir", str(run)], run / "output.txt", cache=cache)


@contextlib.contextmanager
def running(
    module: Sequence[str], output: pathlib.Path, *, cache: pathlib.Path
) -> Iterator[subprocess.Popen]:
    """A process that runs a module with arguments; none of its group outlives the block.

    Args:
      module: its name, and its arguments.
      output: file to whose end goes what it prints.
      cache: folder of compiled programs.
    """
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    with output.open("a") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *module],
            cwd=ROOT,
            env=environment,
            stdout=file,
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
