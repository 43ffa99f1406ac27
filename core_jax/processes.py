"""What the processes of a job do together: one works for all, and all learn how that went.

A job of several processes runs the same program in each of them. What is not a computation on the
mesh (reading a log, writing a report) is done by process 0; the others wait for it and then read
its files, so that a run folder must lie where every process can read it.

Dimension key: none.
"""

import collections
import json
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
from jax._src import distributed  # the key-value store of the job has no public name

from core_jax import errors
from core_jax.errors import AlignaxError

_T = TypeVar("_T")
_POLL_MILLISECONDS = 5_000
_BARRIER_MILLISECONDS = 24 * 3_600_000
_COUNTS: collections.Counter[str] = collections.Counter()
"""How often each name was used: every process uses a name equally often, so that a name and its
number are one key."""


def several() -> bool:
    """Whether this job has more than one process."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this is process 0, which alone writes reports and facts."""
    return jax.process_index() == 0


def from_first(name: str, work: Callable[[], _T]) -> _T:
    """Does something in process 0 alone; all processes return its result or raise its error.

    The others wait as long as it takes: what ends a wait for a process that has died is the
    job's heartbeat, or its supervisor.

    Args:
      name: what is done, for the key under which the result travels.
      work: called in process 0; returns what JSON can hold.

    Returns:
      What `work` returned.

    Raises:
      AlignaxError: what `work` raised in process 0, in every process by the same class.
    """
    if not several():
        return work()
    key = _key(name)
    if not is_first():
        return cast(_T, _result(json.loads(_wait_for(key)), name))
    try:
        result = work()
    except AlignaxError as error:
        _tell(key, {"error": type(error).__name__, "message": str(error)})
        raise
    except Exception as error:
        _tell(key, {"error": "AlignaxError", "message": f"{type(error).__name__}: {error}"})
        raise
    _tell(key, {"value": result})
    return result


def wait_for_first(name: str) -> None:
    """Waits until process 0 has come here: what it wrote before is there."""
    from_first(name, lambda: None)


def wait_for_all(name: str) -> None:
    """Waits until every process has come here, without any device.

    Collectives on CPU devices give up when a process is half a minute behind the others: before
    the first of them, those that had less to load wait here.
    """
    if several():
        _client().wait_at_barrier(_key(name), _BARRIER_MILLISECONDS)


def settled(results: _T) -> _T:
    """Returns results of a program; on several CPU devices, once they are there.

    Accelerators run programs in the order in which they were launched, CPU devices do not: two
    programs of which neither needs the other's results may start in one order on this device and
    in the other on that, and where both talk between devices, wait for each other forever.
    """
    if jax.default_backend() == "cpu" and jax.device_count() > 1:
        jax.block_until_ready(results)
    return results


def _client() -> Any:
    """The client of the job's key-value store."""
    client = distributed.global_state.client
    assert client is not None, "several processes have been joined by jax.distributed"
    return client


def _key(name: str) -> str:
    """A key that no other call has."""
    _COUNTS[name] += 1
    return f"alignax/{name}/{_COUNTS[name]}"


def _result(told: dict[str, Any], name: str) -> Any:
    """What process 0 returned; raises what it raised."""
    if "error" not in told:
        return told["value"]
    raised = getattr(errors, told["error"], AlignaxError)
    raise raised(f"process 0 failed in '{name}': {told['message']}")


def _tell(key: str, value: dict[str, Any]) -> None:
    """Publishes a value under a key."""
    _client().key_value_set(key, json.dumps(value))


def _wait_for(key: str) -> str:
    """The value of a key, once it is there."""
    while True:
        began = time.monotonic()
        try:
            return _client().blocking_key_value_get(key, _POLL_MILLISECONDS)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
        if time.monotonic() - began < 1.0:
            time.sleep(1.0)  # a refusal at once is no reason to ask at once
