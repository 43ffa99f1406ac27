"""Worker processes with a hard limit per answer: what exceeds it is killed and replaced.

Dimension key: none.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import selectors
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import IO

from core_jax.errors import AlignaxError, ConfigError

_START_LIMIT_S = 120.0
_MARGIN_S = 0.1
_ROOT = pathlib.Path(__file__).resolve().parents[2]

Reply = tuple[bool, str]


@dataclasses.dataclass(kw_only=True)
class _Worker:
    """One process and what it is doing."""

    process: subprocess.Popen[bytes]
    errors: IO[bytes]
    job: int | None = None
    deadline: float = 0.0
    is_ready: bool = False
    buffer: bytes = b""


class WorkerPool:
    """Compares pairs in processes that can be killed.

    Args:
      num_workers: how many processes.
      time_limit_s: wall time for one answer, from the moment that a warm worker has it; it is
        killed a tenth of a second earlier, so that the verdict is there in time.
      memory_mb: address space of a worker.
      module: the program of a worker, which calls `worker.serve`.

    Example:
      with WorkerPool(num_workers=2, time_limit_s=2.0, memory_mb=2048) as pool:
          replies = pool.map(requests)
    """

    def __init__(
        self,
        *,
        num_workers: int,
        time_limit_s: float,
        memory_mb: int,
        module: str = "reasoning_jax.answers.worker",
    ):
        if num_workers < 1:
            raise ConfigError(f"num_workers is {num_workers}; at least 1 worker is needed.")
        if time_limit_s <= 2 * _MARGIN_S:
            raise ConfigError(
                f"time_limit_s is {time_limit_s}; expected more than {2 * _MARGIN_S} seconds."
            )
        if memory_mb < 512:
            raise ConfigError(f"memory_mb is {memory_mb}; a worker needs at least 512.")
        self._num_workers = num_workers
        self._limit_s = time_limit_s - _MARGIN_S
        self._memory_mb = memory_mb
        self._module = module
        self._workers: list[_Worker] = []
        self._is_open = False
        self.num_replaced = 0

    def __enter__(self) -> "WorkerPool":
        self._is_open = True
        return self

    def __exit__(self, *_: object) -> None:
        self._is_open = False
        while self._workers:
            self._stop(self._workers[-1])

    def map(self, requests: Sequence[Mapping[str, str]]) -> list[Reply]:
        """Compares pairs; workers start with the first.

        Args:
          requests: what the workers' `judge` takes.

        Returns:
          A verdict and its method per request, in their order.
        """
        if not self._is_open:
            raise AlignaxError("WorkerPool is closed; use it in a with statement.")
        replies: list[Reply | None] = [None] * len(requests)
        waiting = deque(range(len(requests)))
        while any(reply is None for reply in replies):
            wanted = min(self._num_workers, sum(reply is None for reply in replies))
            for worker in [idle for idle in self._workers if idle.is_ready and idle.job is None]:
                if worker.process.poll() is not None:  # it died between two answers
                    self.num_replaced += 1
                    self._stop(worker)
            while len(self._workers) < wanted:
                self._workers.append(self._start())
            for worker in self._workers:
                if worker.is_ready and worker.job is None and waiting:
                    self._send(worker, waiting.popleft(), requests)
            self._receive(replies)
        return [reply for reply in replies if reply is not None]

    def _start(self) -> _Worker:
        """Starts a process that imports this package, wherever it lies."""
        paths = [os.fspath(_ROOT), os.environ.get("PYTHONPATH", "")]
        errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with its worker)
        process = subprocess.Popen(
            [sys.executable, "-m", self._module, str(self._memory_mb)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, paths)),
                "PYTHONHASHSEED": "0",  # sympy orders by hash in places
            },
        )
        limit = time.monotonic() + _START_LIMIT_S
        return _Worker(process=process, errors=errors, deadline=limit)

    def _send(self, worker: _Worker, job: int, requests: Sequence[Mapping[str, str]]) -> None:
        """Gives a worker its next pair; the line is shorter than a pipe's buffer."""
        assert worker.process.stdin is not None
        worker.job = job
        worker.deadline = time.monotonic() + self._limit_s
        try:
            worker.process.stdin.write(json.dumps(dict(requests[job])).encode() + b"\n")
            worker.process.stdin.flush()
        except BrokenPipeError:
            worker.deadline = 0.0

    def _receive(self, replies: list[Reply | None]) -> None:
        """Waits for the next reply or deadline, and replaces what is dead or late."""
        busy = [worker for worker in self._workers if worker.job is not None or not worker.is_ready]
        with selectors.DefaultSelector() as selector:
            for worker in busy:
                assert worker.process.stdout is not None
                selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
            first = min(worker.deadline for worker in busy)
            for key, _ in selector.select(max(first - time.monotonic(), 0.0)):
                self._read(key.data, replies)
        now = time.monotonic()
        for worker in busy:
            is_busy = worker.job is not None or not worker.is_ready
            if worker in self._workers and is_busy and worker.deadline <= now:
                self._lose(worker, "timeout", replies)

    def _read(self, worker: _Worker, replies: list[Reply | None]) -> None:
        """Takes what a worker has written."""
        assert worker.process.stdout is not None
        data = os.read(worker.process.stdout.fileno(), 65536)
        if not data:
            self._lose(worker, "crash", replies)
            return
        worker.buffer += data
        if not worker.buffer.endswith(b"\n"):
            return
        line, worker.buffer = worker.buffer.decode().strip(), b""
        if not worker.is_ready:
            worker.is_ready = True
            return
        assert worker.job is not None
        is_equal, method = json.loads(line)
        replies[worker.job] = (bool(is_equal), str(method))
        worker.job = None

    def _lose(self, worker: _Worker, method: str, replies: list[Reply | None]) -> None:
        """Gives the pair of a dead or late worker its verdict; the loop starts another worker."""
        if not worker.is_ready:
            worker.errors.seek(0)
            said = worker.errors.read().decode(errors="replace")[-2000:]
            self._stop(worker)
            raise AlignaxError(
                f"A grading worker did not start ({method}); expected 'ready' within "
                f"{_START_LIMIT_S:.0f} s. Is what '{self._module}' imports installed (such as "
                f"math-verify[antlr4-13-2]), and memory_mb {self._memory_mb} enough? It said:\n"
                f"{said}"
            )
        assert worker.job is not None
        replies[worker.job] = (False, method)
        self.num_replaced += 1
        self._stop(worker)

    def _stop(self, worker: _Worker) -> None:
        """Kills a worker and closes its pipes."""
        self._workers.remove(worker)
        worker.process.kill()
        worker.process.wait()
        for stream in (worker.process.stdin, worker.process.stdout, worker.errors):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
