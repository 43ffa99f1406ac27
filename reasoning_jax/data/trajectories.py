"""Trajectories: sampled solutions with their verdicts, one JSON object per line.

The schema, whoever sampled (this engine, or another whose file is imported):

  problem_id        string   the problem
  sample            integer  which of its samples, from 0; (problem_id, sample) is unique
  task              string   the problem's task
  seed              integer  the sampling seed, or null where it is not known
  prompt            string   what the model was given
  response          string   what it wrote
  token_ids         list     prompt and response as one sequence of tokens
  response_start    integer  index of the response's first token
  finish            string   "stop" or "length"
  answer            string   the answer that was found, or null
  is_correct        boolean  the strict grader's verdict, or null before grading
  official_correct  boolean  the lenient grader's, or null
  model             string   fingerprint of weights and sampling
  tokenizer         string   fingerprint of the tokenizer that the ids belong to

Dimension key: none.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from core_jax.errors import DataError
from reasoning_jax.data.json_lines import append_lines, cut_torn_line

FINISHES = ("stop", "length")
"""Why a response can end."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trajectory:
    """One sampled solution; fields as in the module's docstring."""

    problem_id: str
    sample: int
    task: str
    seed: int | None
    prompt: str
    response: str
    token_ids: tuple[int, ...]
    response_start: int
    finish: str
    answer: str | None
    is_correct: bool | None
    official_correct: bool | None
    model: str
    tokenizer: str

    @property
    def key(self) -> tuple[str, int]:
        """What is unique in a file."""
        return (self.problem_id, self.sample)

    def __post_init__(self) -> None:
        """Checks what one trajectory can know."""
        if self.finish not in FINISHES:
            raise DataError(
                f"trajectory {self.key}: finish is '{self.finish}'; expected one of {FINISHES}"
            )
        if self.sample < 0:
            raise DataError(f"trajectory {self.key}: sample is {self.sample}; they count from 0")
        if not 0 < self.response_start <= len(self.token_ids):
            raise DataError(
                f"trajectory {self.key}: response_start is {self.response_start}, with "
                f"{len(self.token_ids)} tokens; a prompt has at least one token, and the response "
                "starts among them or at their end"
            )


_TYPES: dict[str, tuple[type, ...]] = {
    "problem_id": (str,),
    "sample": (int,),
    "task": (str,),
    "seed": (int, type(None)),
    "prompt": (str,),
    "response": (str,),
    "token_ids": (list, tuple),
    "response_start": (int,),
    "finish": (str,),
    "answer": (str, type(None)),
    "is_correct": (bool, type(None)),
    "official_correct": (bool, type(None)),
    "model": (str,),
    "tokenizer": (str,),
}


def trajectory_from(fields: Any) -> Trajectory:
    """A trajectory of a parsed line.

    Raises:
      DataError: a field is absent, unknown, or of another type.
    """
    if not isinstance(fields, dict):
        raise DataError(f"expected a JSON object, not {type(fields).__name__}")
    absent, unknown = _TYPES.keys() - fields.keys(), fields.keys() - _TYPES.keys()
    if absent or unknown:
        listed = [f"no '{name}'" for name in sorted(absent)]
        listed += [f"unknown '{name}'" for name in sorted(unknown)]
        raise DataError("; ".join(listed))
    for name, types in _TYPES.items():
        value = fields[name]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            expected = " or ".join("null" if t is type(None) else t.__name__ for t in types)
            raise DataError(f"'{name}' is {value!r}; expected {expected}")
    ids = fields["token_ids"]
    if any(not isinstance(one, int) or isinstance(one, bool) or one < 0 for one in ids):
        raise DataError("'token_ids' holds what is no token id")
    return Trajectory(**{**fields, "token_ids": tuple(ids)})


class TrajectoryWriter:
    """Appends trajectories to a file, so that a run that is cut off loses nothing twice over.

    A last line that was cut off is removed when the file is opened again; every batch is on disk
    when `write` returns.

    Args:
      path: the file, made if absent.

    Raises:
      DataError: a line that is no trajectory, or two of the same problem and sample.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._path = pathlib.Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        cut_torn_line(self._path, "sampled again")
        self.done = {one.key for one in read_trajectories(self._path)}
        """(problem_id, sample) of everything in the file."""
        self._file = self._path.open("ab")

    def __enter__(self) -> "TrajectoryWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def write(self, trajectories: list[Trajectory]) -> None:
        """Appends a batch; it is on disk when this returns, or nothing of it is written.

        Raises:
          DataError: one of them is in the file or the batch already, or holds what is no text.
        """
        keys: set[tuple[str, int]] = set()
        lines = []
        for one in trajectories:
            if one.key in self.done or one.key in keys:
                raise DataError(
                    f"trajectory {one.key} is in '{self._path}' already; a sample has one row"
                )
            keys.add(one.key)
            lines.append(_line(one))
        append_lines(self._file, lines)
        self.done |= keys


def read_trajectories(path: str | os.PathLike[str]) -> Iterator[Trajectory]:
    """Reads a file of trajectories; nothing where there is no file.

    Raises:
      DataError: a line that is no trajectory, or a second one of the same problem and sample;
        the line is named.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        return
    lines: dict[tuple[str, int], int] = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                one = trajectory_from(json.loads(line.decode()))
            except (ValueError, RecursionError) as error:  # broken UTF-8 or JSON, DataError
                raise DataError(f"'{path}', line {number}: {error}") from error
            if (earlier := lines.setdefault(one.key, number)) != number:
                raise DataError(
                    f"'{path}', line {number}: trajectory {one.key} stands in line {earlier} too"
                )
            yield one


def _line(one: Trajectory) -> bytes:
    """A row of the file, or DataError: a lone half of a UTF-16 pair is no text."""
    try:
        return (json.dumps(dataclasses.asdict(one), ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError as error:
        raise DataError(f"trajectory {one.key} cannot be written as UTF-8: {error}") from error
