"""Starts the processes of a job on this machine, watches them, and starts the job again.

When one of several processes dies, the others wait for it in a collective until their heartbeat
runs out. A parent that sees the death ends them at once, says which one it was and what it said
last, and can start all of them again: the job goes on from its last checkpoint.

Dimension key: none.
"""

import collections
import contextlib
import dataclasses
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO, Any

from core_jax.errors import ConfigError
from launch import exits

_POLL_SECONDS = 0.05
_LAST_LINES = 15


@dataclasses.dataclass(frozen=True, kw_only=True)
class SupervisorConfig:
    """How a job's processes are started and watched."""

    processes: int
    """Processes of the job, all on this machine."""
    devices_per_process: int = 0
    """CPU devices that JAX makes in each; 0: the devices that it finds."""
    restarts: int = 0
    """How often the job is started again after a process has died."""
    grace: float = 5.0
    """Seconds that the others get to end by SIGTERM once one has died; then they are killed."""
    heartbeat_timeout: int = 100
    """Seconds after which processes count each other as dead, should this parent be gone."""
    logs: str = ""
    """Folder for one file of output per process; by default it is printed, prefixed by number."""

    def __post_init__(self) -> None:
        """Checks every field on its own."""
        for name, least in (
            ("processes", 1),
            ("devices_per_process", 0),
            ("restarts", 0),
            ("grace", 0),
            ("heartbeat_timeout", 1),
        ):
            if getattr(self, name) < least:
                flag = "--" + name.replace("_", "-")
                raise ConfigError(f"{flag} is {getattr(self, name)}; it must be at least {least}")


def supervise(config: SupervisorConfig, job: Sequence[str]) -> int:
    """Runs a job until it is done, was asked to end, or has died too often.

    SIGTERM and SIGINT to this process go on to all of the job's: they save and end, and the job
    is not started again. A second one kills them.

    Args:
      config: how.
      job: words of `launch.gpu_cluster`'s command line: job, preset, flags.

    Returns:
      Exit code: 0 when all processes ended well; 75 when they were asked to end and have saved;
      2 for a command line that is wrong; else 1, after the last restart.
    """
    asked = _Asked()
    with asked:
        for attempt in range(config.restarts + 1):
            with _Processes(config, job, attempt) as processes:
                code = processes.watch(asked)
            if code in (0, exits.PREEMPTED, exits.USAGE) or asked.times:
                return code
            left = config.restarts - attempt
            if left:
                _say(f"starts the job again from its last checkpoint ({left} restarts left)")
    return exits.ERROR


class _Asked:
    """Counts the signals that ask this process to end; a context manager."""

    def __init__(self) -> None:
        self.times = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_Asked":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._count)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _count(self, *_: object) -> None:
        self.times += 1


class _Processes:
    """The processes of one attempt; none of them outlives the block."""

    def __init__(self, config: SupervisorConfig, job: Sequence[str], attempt: int):
        self._config = config
        self._outputs = [_Output(config, number, attempt) for number in range(config.processes)]
        self._running: list[subprocess.Popen[bytes]] = []
        self._job = job

    def __enter__(self) -> "_Processes":
        coordinator = f"127.0.0.1:{free_port()}"
        for number, output in enumerate(self._outputs):
            process = subprocess.Popen(
                _command(self._config, self._job, coordinator, number),
                env=_environment(self._config),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            assert process.stdout is not None
            output.follow(process.stdout)
            self._running.append(process)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._running:
            if process.poll() is None:
                process.kill()
            process.wait()
        for output in self._outputs:
            output.close()

    def watch(self, asked: _Asked) -> int:
        """Waits until all have ended, or one has died and the rest are ended."""
        passed_on = 0
        while True:
            codes = [process.poll() for process in self._running]
            dead = [
                number
                for number, code in enumerate(codes)
                if code not in (None, 0, exits.PREEMPTED)
            ]
            if dead:
                return self._end_after(dead[0])
            if all(code is not None for code in codes):
                return exits.PREEMPTED if exits.PREEMPTED in codes else 0
            if asked.times > passed_on:
                passed_on = asked.times
                if passed_on == 1:
                    _say("asks all processes to save and end (SIGTERM); once more kills them")
                    self._signal(signal.SIGTERM)
                else:
                    self._signal(signal.SIGKILL)
            time.sleep(_POLL_SECONDS)

    def _end_after(self, first: int) -> int:
        """Ends the others after a process has died, and says which and how."""
        code = self._running[first].returncode
        others = [n for n, process in enumerate(self._running) if process.poll() is None]
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + self._config.grace
        while time.monotonic() < deadline and any(one.poll() is None for one in self._running):
            time.sleep(_POLL_SECONDS)
        killed = [number for number in others if self._running[number].poll() is None]
        self._signal(signal.SIGKILL)
        for process in self._running:
            process.wait()
        for output in self._outputs:
            output.finish()
        ended = f"ended process {_list(others)}" if others else "no other was running"
        by_force = f" ({_list(killed)} by SIGKILL)" if killed else ""
        _say(f"process {first} died: {_cause(code)}; {ended}{by_force}")
        _say(f"last lines of process {first}:")
        for line in self._outputs[first].last_lines():
            print(f"    {line}", file=sys.stderr)
        sys.stderr.flush()
        return exits.USAGE if code == exits.USAGE else exits.ERROR

    def _signal(self, number: int) -> None:
        """Sends a signal to all that run."""
        for process in self._running:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(number)


class _Output:
    """What one process prints: passed on line by line, the last lines kept."""

    def __init__(self, config: SupervisorConfig, number: int, attempt: int):
        self._number = number
        self._last: collections.deque[str] = collections.deque(maxlen=_LAST_LINES)
        self._file: IO[str] | None = None
        self._thread: threading.Thread | None = None
        if config.logs:
            folder = pathlib.Path(config.logs)
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self._file = (folder / f"process_{number}.log").open("a", encoding="utf-8")
            except OSError as error:
                raise ConfigError(f"--logs '{config.logs}' cannot be written: {error}") from error
            self._file.write(f"--- attempt {attempt + 1}\n")

    def follow(self, stream: IO[bytes]) -> None:
        """Reads a process' output until it ends, in a thread of its own."""
        self._thread = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._thread.start()

    def last_lines(self) -> list[str]:
        """The last lines, oldest first."""
        return list(self._last)

    def finish(self) -> None:
        """Waits until all of an ended process' output is read."""
        if self._thread is not None:
            self._thread.join(timeout=5.0)

    def close(self) -> None:
        """Waits for the end, and closes the file."""
        self.finish()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _read(self, stream: IO[bytes]) -> None:
        """Passes lines on."""
        with stream:
            for raw in stream:
                line = raw.decode(errors="replace").rstrip("\n")
                self._last.append(line)
                if self._file is not None:
                    self._file.write(line + "\n")
                    self._file.flush()
                else:
                    print(f"[{self._number}] {line}", flush=True)


def _command(
    config: SupervisorConfig, job: Sequence[str], coordinator: str, number: int
) -> list[str]:
    """The command line of one process; one of one process needs no coordinator."""
    python = [sys.executable, "-u", "-m"]
    if config.processes == 1:
        return [*python, "launch.local", *job]
    return [
        *python,
        "launch.gpu_cluster",
        *job,
        "--cluster=explicit",
        f"--coordinator={coordinator}",
        f"--num-processes={config.processes}",
        f"--process-id={number}",
        f"--heartbeat-timeout={config.heartbeat_timeout}",
    ]


def _environment(config: SupervisorConfig) -> dict[str, str]:
    """The environment of every process."""
    environment = dict(os.environ)
    if config.devices_per_process:
        environment["JAX_PLATFORMS"] = "cpu"
        environment["JAX_NUM_CPU_DEVICES"] = str(config.devices_per_process)
    return environment


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def _cause(code: int) -> str:
    """What an exit code says."""
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(-code).name}"
    return f"killed by signal {-code}"


def _list(numbers: Sequence[int]) -> str:
    """Numbers for people."""
    return ", ".join(map(str, numbers))


def _say(text: str) -> None:
    """Prints what the supervisor itself has to say."""
    print(f"supervisor: {text}", file=sys.stderr, flush=True)
