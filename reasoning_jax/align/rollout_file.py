"""What completing a prefix came to, one JSON object per line of a file that grows unit by unit.

A unit of work is one prefix with all its completions: it is sampled, graded and then written in one
line, so that a run that is cut off loses what was in flight and nothing else, and does nothing
twice. The schema:

  problem_id      string   the problem
  sample          integer  which of its solutions
  length          integer  response tokens that the prefix keeps, 0 to all
  forced          list     tokens that follow it by force, one per completion; empty: none
  num_rollouts    integer  completions
  successes       integer  those of them that are right
  sampled_tokens  integer  tokens of all completions
  read_tokens     integer  tokens that were read to begin them, each beginning once
  identity        string   fingerprint of the model and of how it is rolled out

Dimension key: none.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from core_jax.errors import DataError
from reasoning_jax.data.json_lines import append_lines, cut_torn_line

UnitKey = tuple[str, int, int, bool]
"""(problem_id, sample, length, whether a token is forced)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rollouts:
    """A unit that is done; fields as in the module's docstring."""

    problem_id: str
    sample: int
    length: int
    forced: tuple[int, ...]
    num_rollouts: int
    successes: int
    sampled_tokens: int
    read_tokens: int
    identity: str

    @property
    def key(self) -> UnitKey:
        """What is unique in a file."""
        return (self.problem_id, self.sample, self.length, bool(self.forced))


class RolloutWriter:
    """Appends units to a file, so that a run that is cut off loses nothing twice over.

    A last line that was cut off is removed when the file is opened again; every batch is on disk
    when `write` returns.

    Args:
      path: the file, made if absent.
      identity: fingerprint of the model and of how it is rolled out; all units have the same.

    Raises:
      DataError: a line that is no unit, two of the same, or one of another identity.
    """

    def __init__(self, path: str | os.PathLike[str], *, identity: str):
        self._path = pathlib.Path(path)
        cut_torn_line(self._path, "rolled out again")
        self.done: dict[UnitKey, Rollouts] = {}
        """Everything in the file."""
        lines = self._path.read_bytes().splitlines() if self._path.is_file() else []
        for number, line in enumerate(lines, start=1):
            try:
                one = rollouts_from(json.loads(line.decode()))
            except (ValueError, RecursionError) as error:  # broken UTF-8 or JSON, DataError
                raise DataError(f"'{path}', line {number}: {error}") from error
            if one.identity != identity:
                raise DataError(
                    f"'{path}', line {number}: rolled out with another model or other options "
                    f"('{one.identity}', not '{identity}'); remove the file, or go on with those "
                    "that it was begun with"
                )
            if one.key in self.done:
                raise DataError(f"'{path}', line {number}: the unit {one.key} stands there twice")
            self.done[one.key] = one
        self._file = self._path.open("ab")

    def __enter__(self) -> "RolloutWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def write(self, batch: Sequence[Rollouts]) -> None:
        """Appends units; they are on disk when this returns."""
        append_lines(
            self._file, [(json.dumps(dataclasses.asdict(one)) + "\n").encode() for one in batch]
        )
        self.done |= {one.key: one for one in batch}


_TYPES: dict[str, type] = {
    "problem_id": str,
    "sample": int,
    "length": int,
    "forced": list,
    "num_rollouts": int,
    "successes": int,
    "sampled_tokens": int,
    "read_tokens": int,
    "identity": str,
}


def rollouts_from(fields: Any) -> Rollouts:
    """A unit of a parsed line.

    Raises:
      DataError: a field is absent, unknown, or of another type; counts that cannot be.
    """
    if not isinstance(fields, dict) or fields.keys() != _TYPES.keys():
        raise DataError(f"expected a JSON object with the fields {', '.join(_TYPES)}")
    for name, value in fields.items():
        if type(value) is not _TYPES[name]:
            raise DataError(f"'{name}' is {value!r}; expected {_TYPES[name].__name__}")
    if not 0 <= fields["successes"] <= fields["num_rollouts"]:
        raise DataError(
            f"'successes' is {fields['successes']} of {fields['num_rollouts']} completions"
        )
    return Rollouts(**{**fields, "forced": tuple(fields["forced"])})
