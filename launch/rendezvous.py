"""Where the processes of a job meet before JAX starts: who is there, and what each of them says.

JAX's own service ends a process hard when another does not come, has the same number or counts
otherwise, with a stack trace of C++. So processes first meet at the coordinator's address by a
plain socket, with errors that say what is wrong; then the same address is JAX's.

Dimension key: none.
"""

import contextlib
import json
import os
import socket
import time
from typing import Any

from core_jax.errors import ConfigError

_RETRY_SECONDS = 0.2
_HELLO_SECONDS = 5.0
# The others wait this much longer than process 0, so that it can still tell them what it missed.
_TELL_SECONDS = 5.0
_MARK = "alignax 1"


class Rendezvous:
    """One meeting; a context manager. Every process makes the same calls in the same order.

    Args:
      coordinator: HOST:PORT of process 0.
      num_processes: processes of the job.
      process_id: number of this one.
      seconds: time limit for everything that process 0 waits for.

    Raises:
      ConfigError: in every process that can be told: not all came in time, two have one number,
        or they count differently. In one that reaches nobody: nobody answers at the address.
    """

    def __init__(self, coordinator: str, num_processes: int, process_id: int, seconds: float):
        self._address = _split(coordinator)
        self._num_processes = num_processes
        self._process_id = process_id
        self._seconds = seconds
        self._lines: dict[int, _Line] = {}
        self.hosts: list[str] = []
        """Name of every process' host, by its number."""
        try:
            if process_id == 0:
                self._gather()
            else:
                self._reach()
            self.hosts = [str(host) for host in self.exchange(socket.gethostname())]
        except BaseException:
            self._hang_up()
            raise

    def __enter__(self) -> "Rendezvous":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def exchange(self, value: Any) -> list[Any]:
        """Tells all what this process says; returns what each says, by its number.

        Args:
          value: what JSON can hold.

        Raises:
          ConfigError: a process ended, or did not answer in time.
        """
        deadline = time.monotonic() + self._seconds
        if self._process_id:
            self._lines[0].send({"value": value})
            reply = self._lines[0].receive(deadline + _TELL_SECONDS, "process 0")
            if "problem" in reply:
                raise ConfigError(reply["problem"])
            return reply["values"]
        values: list[Any] = [value] * self._num_processes
        for number, line in self._lines.items():
            try:
                values[number] = line.receive(deadline, f"process {number}")["value"]
            except ConfigError as error:
                self._refuse(str(error))
        for line in self._lines.values():
            line.send({"values": values})
        return values

    def close(self) -> None:
        """Ends the meeting; the others hang up first, so that the port is free for JAX at once."""
        if self._process_id == 0:
            for line in self._lines.values():
                line.wait_for_end()
        self._hang_up()

    def _hang_up(self) -> None:
        """Closes every line."""
        for line in self._lines.values():
            line.close()
        self._lines = {}

    def _gather(self) -> None:
        """Waits at the coordinator's port for all others."""
        deadline = time.monotonic() + self._seconds
        with _listen(self._address[1]) as server:
            while len(self._lines) < self._num_processes - 1:
                server.settimeout(max(0.01, deadline - time.monotonic()))
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    here = {0, *self._lines}
                    missing = [n for n in range(self._num_processes) if n not in here]
                    self._refuse(
                        f"after {self._seconds:g} s, process {_list(missing)} of "
                        f"{self._num_processes} had not come to {_join(self._address)}; start the "
                        "same command there with the same --coordinator and --num-processes, see "
                        "why it ended, or raise --connect-timeout"
                    )
                self._welcome(_Line(connection))

    def _welcome(self, line: "_Line") -> None:
        """Takes one process in; what is no process of ours is sent away."""
        try:
            hello = line.receive(time.monotonic() + _HELLO_SECONDS, "a caller")
            mark, number = hello["hello"], int(hello["process"])
            count, who = int(hello["processes"]), hello["who"]
        except (ConfigError, KeyError, TypeError, ValueError):
            line.close()
            return
        if mark != _MARK:
            line.close()
            return
        problem = ""
        if count != self._num_processes:
            problem = (
                f"process {number} ({who}) counts {count} processes, process 0 counts "
                f"{self._num_processes}; start all with the same --num-processes"
            )
        elif number == 0 or number in self._lines:
            other = self._lines[number].who if number else _who()
            problem = (
                f"two processes are number {number}: {other} and {who}; give each its own "
                f"--process-id, 0 to {self._num_processes - 1}"
            )
        line.who = who
        self._lines[-1 if problem else number] = line
        if problem:
            self._refuse(problem)
        line.send({"welcome": True})

    def _reach(self) -> None:
        """Calls process 0 until it answers."""
        deadline = time.monotonic() + self._seconds
        reason = ""
        while time.monotonic() < deadline:
            try:
                line = _Line(socket.create_connection(self._address, timeout=_HELLO_SECONDS))
            except OSError as error:
                reason = str(error)
                time.sleep(_RETRY_SECONDS)
                continue
            self._lines[0] = line
            line.send(
                {
                    "hello": _MARK,
                    "process": self._process_id,
                    "processes": self._num_processes,
                    "who": _who(),
                }
            )
            reply = line.receive(
                deadline + _TELL_SECONDS, f"what listens at {_join(self._address)}"
            )
            if "problem" in reply:
                raise ConfigError(reply["problem"])
            return
        raise ConfigError(
            f"process {self._process_id} of {self._num_processes} did not reach process 0 at "
            f"{_join(self._address)} within {self._seconds:g} s ({reason}); is process 0 running "
            "on that host, is the address right (--coordinator), does a firewall let it through?"
        )

    def _refuse(self, problem: str) -> None:
        """Tells all that came what is wrong, and raises it."""
        for line in self._lines.values():
            with contextlib.suppress(OSError):
                line.send({"problem": problem})
            line.close()
        raise ConfigError(problem)


class _Line:
    """JSON values over a socket, one a line."""

    def __init__(self, connection: socket.socket):
        self._connection = connection
        self._rest = b""
        self.who = ""

    def send(self, value: dict[str, Any]) -> None:
        """Sends one value; that the other side has gone is seen when it does not answer."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._connection.sendall(json.dumps(value).encode() + b"\n")

    def receive(self, deadline: float, who: str) -> dict[str, Any]:
        """Waits for one value.

        Raises:
          ConfigError: the other side hung up, did not answer in time, or said no JSON.
        """
        while b"\n" not in self._rest:
            self._connection.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                found = self._connection.recv(1 << 16)
            except TimeoutError as error:
                raise ConfigError(
                    f"{who} did not answer in time; see its output, or raise --connect-timeout"
                ) from error
            except OSError:
                found = b""
            if not found:
                raise ConfigError(
                    f"{who} hung up while the processes met; see its output, and that the port is "
                    "no other program's"
                )
            self._rest += found
        line, _, self._rest = self._rest.partition(b"\n")
        try:
            return json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{who} is no process of this job: it said {line[:40]!r}") from error

    def wait_for_end(self) -> None:
        """Waits a little until the other side has hung up."""
        with contextlib.suppress(OSError):
            self._connection.settimeout(_HELLO_SECONDS)
            self._connection.recv(1)

    def close(self) -> None:
        """Hangs up."""
        self._connection.close()


def _listen(port: int) -> socket.socket:
    """A server at a port of every interface.

    Raises:
      ConfigError: the port is taken.
    """
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(
                ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
            )
        return socket.create_server(("", port), backlog=1024)
    except OSError as error:
        raise ConfigError(
            f"process 0 cannot listen at port {port} of this host ({error}); choose another port "
            "with --coordinator, or end what uses it"
        ) from error


def _split(coordinator: str) -> tuple[str, int]:
    """Host and port of an address.

    Raises:
      ConfigError: it has no port.
    """
    host, colon, port = coordinator.rpartition(":")
    if not colon or not host or not port.isdigit():
        raise ConfigError(
            f"--coordinator is '{coordinator}'; it must be HOST:PORT, as 10.0.0.1:1234"
        )
    return host.strip("[]"), int(port)


def _join(address: tuple[str, int]) -> str:
    """An address as it is written."""
    return f"{address[0]}:{address[1]}"


def _who() -> str:
    """This process, for people."""
    return f"{socket.gethostname()}, pid {os.getpid()}"


def _list(numbers: list[int]) -> str:
    """The first numbers of a list, for people."""
    shown = ", ".join(map(str, numbers[:8]))
    return shown + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")
