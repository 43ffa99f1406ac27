"""Pairs of a right and a wrong solution of one problem, one JSON object per line.

  problem_id  string   the problem
  index       integer  which of its pairs, from 0; (problem_id, index) is unique
  chosen      object   the right solution, as in `reasoning_jax.data.trajectories`
  rejected    object   the wrong one

Dimension key: none.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any

from core_jax.errors import DataError
from reasoning_jax.data.trajectories import Trajectory, trajectory_from

_FIELDS = ("problem_id", "index", "chosen", "rejected")
_REMEDY = "make the pairs again by the stage 'sets'"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """A right and a wrong solution of one problem."""

    problem_id: str
    """The problem."""
    index: int
    """Which of the problem's pairs, from 0."""
    chosen: Trajectory
    """The right solution."""
    rejected: Trajectory
    """The wrong one, to the same prompt, in the ids of the same tokenizer."""

    @property
    def key(self) -> tuple[str, int]:
        """What is unique in a file."""
        return (self.problem_id, self.index)

    def __post_init__(self) -> None:
        """Checks what one pair can know."""
        if self.index < 0:
            raise DataError(f"pair {self.key}: index is {self.index}; they count from 0")
        for side, one in (("chosen", self.chosen), ("rejected", self.rejected)):
            if one.problem_id != self.problem_id:
                raise DataError(
                    f"pair {self.key}: {side} is a solution of problem '{one.problem_id}'; both "
                    "solve the problem of the pair"
                )
        for name in ("prompt", "tokenizer"):
            chosen, rejected = getattr(self.chosen, name), getattr(self.rejected, name)
            if chosen != rejected:
                raise DataError(
                    f"pair {self.key}: the {name} of chosen is {chosen!r}, that of rejected "
                    f"{rejected!r}; both are sampled in one way"
                )
        for side, one, verdict in (
            ("chosen", self.chosen, True),
            ("rejected", self.rejected, False),
        ):
            if one.is_correct is not verdict:
                raise DataError(
                    f"pair {self.key}: is_correct of {side} is {one.is_correct}; expected {verdict}"
                )


def write_pairs(path: str | os.PathLike[str], pairs: Iterable[Pair]) -> None:
    """Writes a file of pairs, whole or not at all.

    Args:
      path: the file; replaced if it exists.
      pairs: what to write.

    Raises:
      DataError: two pairs with one problem and index, or text that is none.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.part")
    seen: set[tuple[str, int]] = set()
    with scratch.open("wb") as file:
        for pair in pairs:
            if pair.key in seen:
                raise DataError(f"pair {pair.key} is given twice; an index has one pair")
            seen.add(pair.key)
            file.write(_line(pair))
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, path)


def read_pairs(path: str | os.PathLike[str]) -> tuple[Pair, ...]:
    """Reads a file of pairs.

    Args:
      path: the file.

    Returns:
      The pairs, in the order of the file.

    Raises:
      DataError: no file, no pair in it, a last line that was cut off, a line that is no pair, or
        a second one of the same problem and index; the line is named.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise DataError(f"there is no file of pairs '{path}'; {_REMEDY}")
    content = path.read_bytes()
    if not content:
        raise DataError(f"'{path}' holds no pair; {_REMEDY}")
    lines = content.split(b"\n")
    if lines.pop():
        raise DataError(f"'{path}', line {len(lines) + 1} was cut off; {_REMEDY}")
    pairs: dict[tuple[str, int], Pair] = {}
    for number, line in enumerate(lines, start=1):
        try:
            pair = _pair_from(json.loads(line.decode()))
        except (ValueError, RecursionError) as error:  # broken UTF-8 or JSON, DataError
            raise DataError(f"'{path}', line {number}: {error}") from error
        if pair.key in pairs:
            raise DataError(f"'{path}', line {number}: pair {pair.key} stands there before too")
        pairs[pair.key] = pair
    return tuple(pairs.values())


def _pair_from(fields: Any) -> Pair:
    """A pair of a parsed line."""
    if not isinstance(fields, dict):
        raise DataError(f"expected a JSON object, not {type(fields).__name__}")
    if fields.keys() != set(_FIELDS):
        raise DataError(f"has the fields {sorted(fields)}; expected {sorted(_FIELDS)}")
    for name, kind in (("problem_id", str), ("index", int)):
        value = fields[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise DataError(f"'{name}' is {value!r}; expected {kind.__name__}")
    sides = {}
    for side in ("chosen", "rejected"):
        try:
            sides[side] = trajectory_from(fields[side])
        except DataError as error:
            raise DataError(f"'{side}': {error}") from error
    return Pair(problem_id=fields["problem_id"], index=fields["index"], **sides)


def _line(pair: Pair) -> bytes:
    """A row of the file, or DataError: a lone half of a UTF-16 pair is no text."""
    try:
        return (json.dumps(dataclasses.asdict(pair), ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError as error:
        raise DataError(f"pair {pair.key} cannot be written as UTF-8: {error}") from error
