"""Programs in processes of their own that take turns of a few steps, and tell their peak memory.

A worker calls `Worker.wait` before and `Worker.report` after every step, and `Worker.finish` at the
end; what else it prints is passed over. Only the standard library is imported here, so that a
worker's memory is its own.
"""

import json
import pathlib
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

STEPS = 3
"""Steps of a turn. As in a training run they follow each other: memory that a program has freed
and takes again is slower after a pause, in which a virtual machine may give it to its host."""

_MARK = "@turn "


def peak_bytes() -> int:
    """Most memory that this process had at a time.

    Linux counts in `ru_maxrss` also what the parent had when it started this process, and in
    `VmHWM` not.
    """
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Worker:
    """The side of the program that is timed."""

    def __init__(self) -> None:
        self._start = 0.0

    def wait(self) -> None:
        """Until it is this program's turn; its time begins."""
        sys.stdin.readline()
        self._start = time.perf_counter()

    def report(self, loss: float | None) -> None:
        """The step is done; its time ends here."""
        self._say({"seconds": time.perf_counter() - self._start, "loss": loss})

    def run(self, step: Callable[[], float | None], num_steps: int) -> None:
        """Takes every turn with a step that gives its loss, and ends."""
        for _ in range(num_steps):
            self.wait()
            self.report(step())
        self.finish()

    def finish(self) -> None:
        """All steps are done."""
        self._say({"peak_bytes": peak_bytes()})

    def _say(self, facts: dict) -> None:
        print(f"\n{_MARK}{json.dumps(facts)}", flush=True)


class Program:
    """The side that starts a worker and gives it turns."""

    def __init__(self, module: str, arguments: Sequence[str], log: pathlib.Path):
        self._module, self._log = module, log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def step(self) -> dict:
        """Gives one turn and waits: {"seconds", "loss"}."""
        assert self._process.stdin is not None, "opened as a pipe"
        try:
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended; what it wrote says why
        return self._next()

    def finish(self) -> dict:
        """Waits for the end, after the last step: {"peak_bytes"}."""
        facts = self._next()
        self._process.wait()
        return facts

    def stop(self) -> None:
        """Ends the worker if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()

    def _next(self) -> dict:
        """What the worker says next.

        Raises:
          RuntimeError: it ended without a word.
        """
        assert self._process.stdout is not None, "opened as a pipe"
        for line in self._process.stdout:
            if line.startswith(_MARK):
                return json.loads(line.removeprefix(_MARK))
        self._process.wait()
        said = self._log.read_text(encoding="utf-8", errors="replace")[-3000:]
        raise RuntimeError(f"{self._module} ended with {self._process.returncode}:\n{said}")


def take_turns(
    modules: Mapping[str, Sequence[str]], rounds: int, folder: pathlib.Path
) -> dict[str, dict]:
    """Runs programs in turns of `STEPS` steps in a row.

    Args:
      modules: by program the module of its worker, and its arguments.
      rounds: turns of each after its first step, which compiles and does not count.
      folder: for what the programs print.

    Returns:
      By program {"seconds" of its best step, "losses" of all, "peak_bytes"}.
    """
    programs: dict[str, Program] = {}
    try:
        steps: dict[str, list[dict]] = {}
        for name, (module, *arguments) in modules.items():
            # One after the other: what each computes beforehand is done when its first step is.
            programs[name] = Program(module, arguments, folder / f"{name}.log")
            steps[name] = [programs[name].step()]
        for _ in range(rounds):
            for name, program in programs.items():
                steps[name] += [program.step() for _ in range(STEPS)]
        return {
            name: {
                "seconds": min(step["seconds"] for step in steps[name][1:]),
                "losses": [step["loss"] for step in steps[name]],
                **program.finish(),
            }
            for name, program in programs.items()
        }
    finally:
        for program in programs.values():
            program.stop()
