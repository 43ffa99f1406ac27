"""Numbers of every token of a response, one JSON object per line, with the ids they belong to.

Contrastive scores, log-probabilities of a reference, rates of success: whatever is computed once
per token and used later. The schema:

  problem_id      string   the problem
  sample          integer  which of its samples, from 0; (problem_id, sample) is unique
  model           string   fingerprint of what computed the values
  token_ids       list     prompt and response as one sequence of tokens
  response_start  integer  index of the response's first token
  values          object   by name a list of numbers, one per token of the response

Values are used through `matching`, which compares the token ids: numbers of other tokens cannot
slip in.

Dimension key: none.
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

from core_jax.errors import DataError, nearest_name
from reasoning_jax.data.json_lines import append_lines, cut_torn_line

Key = tuple[str, int]
"""(problem_id, sample)."""


@runtime_checkable
class TokenSequence(Protocol):
    """A prompt and its response as tokens: a `Trajectory`, or anything with these fields."""

    @property
    def problem_id(self) -> str:
        """The problem."""
        ...

    @property
    def sample(self) -> int:
        """Which of its samples."""
        ...

    @property
    def token_ids(self) -> Sequence[int]:
        """Prompt and response."""
        ...

    @property
    def response_start(self) -> int:
        """Index of the response's first token."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenValues:
    """Values of one response; fields as in the module's docstring."""

    problem_id: str
    sample: int
    model: str
    token_ids: tuple[int, ...]
    response_start: int
    values: Mapping[str, tuple[float, ...]]

    @property
    def key(self) -> Key:
        """What is unique in a file."""
        return (self.problem_id, self.sample)

    def __post_init__(self) -> None:
        """Checks that there is one finite number per token of the response."""
        if self.sample < 0:
            raise DataError(f"values of {self.key}: sample is {self.sample}; they count from 0")
        if not 0 < self.response_start <= len(self.token_ids):
            raise DataError(
                f"values of {self.key}: response_start is {self.response_start}, with "
                f"{len(self.token_ids)} tokens; a prompt has at least one token, and the response "
                "starts among them or at their end"
            )
        if not self.values:
            raise DataError(f"values of {self.key}: there are none; expected at least one name")
        expected = len(self.token_ids) - self.response_start
        for name, numbers in self.values.items():
            if len(numbers) != expected:
                raise DataError(
                    f"values of {self.key}: '{name}' has {len(numbers)} numbers, but the response "
                    f"has {expected} tokens; compute the values again"
                )
            if not all(math.isfinite(number) for number in numbers):
                raise DataError(
                    f"values of {self.key}: '{name}' holds a number that is not finite; look at "
                    "the model that computed it"
                )

    def named(self, name: str) -> tuple[float, ...]:
        """The numbers of a name.

        Raises:
          DataError: there is no such name.
        """
        if name not in self.values:
            raise DataError(
                f"values of {self.key} have no '{name}'. {nearest_name(name, self.values)}"
            )
        return self.values[name]


def matching(values: Mapping[Key, TokenValues], sequence: TokenSequence) -> TokenValues:
    """The values of a sequence, after a look at its token ids.

    Args:
      values: by key, from `read_token_values`.
      sequence: whose values are wanted.

    Returns:
      Its values; the ids are the same, token for token.

    Raises:
      DataError: there are none, or they belong to other tokens.
    """
    key = (sequence.problem_id, sequence.sample)
    if key not in values:
        raise DataError(
            f"there are no values of {key} among those of {len(values)} responses; the file was "
            "cut short or is of other samples: compute the values again"
        )
    found = values[key]
    ids = tuple(sequence.token_ids)
    if found.token_ids != ids or found.response_start != sequence.response_start:
        raise DataError(
            f"the values of {key} belong to other tokens: {_first_difference(found, sequence)}; "
            "compute them again for these samples"
        )
    return found


def _first_difference(values: TokenValues, sequence: TokenSequence) -> str:
    """Where the tokens of values and of a sequence part."""
    ours, theirs = values.token_ids, tuple(sequence.token_ids)
    for place, (one, other) in enumerate(zip(ours, theirs, strict=False)):
        if one != other:
            return f"token {place} is {one} there and {other} here"
    if len(ours) != len(theirs):
        return f"there are {len(ours)} tokens there and {len(theirs)} here"
    starts = values.response_start, sequence.response_start
    return f"the response starts at {starts[0]} there and at {starts[1]} here"


class TokenValuesWriter:
    """Appends values to a file, so that a run that is cut off loses nothing twice over.

    A last line that was cut off is removed when the file is opened again; every batch is on disk
    when `write` returns.

    Args:
      path: the file, made if absent.
      model: fingerprint of what computes the values; everything in the file has the same.

    Raises:
      DataError: a line that holds no values, two of the same response, or values of another model.
    """

    def __init__(self, path: str | os.PathLike[str], *, model: str):
        self._path = pathlib.Path(path)
        self._model = model
        self._path.parent.mkdir(parents=True, exist_ok=True)
        cut_torn_line(self._path, "computed again")
        found = read_token_values(self._path) if self._path.is_file() else {}
        for one in found.values():
            self._check_model(one)
        self.done: set[Key] = set(found)
        """(problem_id, sample) of everything in the file."""
        self._file = self._path.open("ab")

    def __enter__(self) -> "TokenValuesWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def write(self, batch: Sequence[TokenValues]) -> None:
        """Appends a batch; it is on disk when this returns, or nothing of it is written.

        Raises:
          DataError: one of them is in the file or the batch already, or is of another model.
        """
        keys: set[Key] = set()
        lines = []
        for one in batch:
            self._check_model(one)
            if one.key in self.done or one.key in keys:
                raise DataError(
                    f"values of {one.key} are in '{self._path}' already; a response has one row"
                )
            keys.add(one.key)
            lines.append(_line(one))
        append_lines(self._file, lines)
        self.done |= keys

    def _check_model(self, one: TokenValues) -> None:
        """Raises unless values are of this writer's model."""
        if one.model != self._model:
            raise DataError(
                f"values of {one.key} for '{self._path}' are of another model ('{one.model}', not "
                f"'{self._model}'); remove the file, or go on with the models and options that it "
                "was begun with"
            )


def read_token_values(path: str | os.PathLike[str]) -> dict[Key, TokenValues]:
    """Reads a file of values.

    Args:
      path: of `TokenValuesWriter`.

    Returns:
      The values by (problem_id, sample), in the order of the file.

    Raises:
      DataError: there is no file, it was cut off, or a line holds no values or those of a response
        that stand in another line too; the line is named.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise DataError(f"there is no file of token values '{path}'; run what computes it first")
    found: dict[Key, TokenValues] = {}
    lines: dict[Key, int] = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                raise DataError(
                    f"'{path}', line {number}: the file is truncated, its last row was cut off; "
                    "run what computes it again: it goes on from there"
                )
            try:
                one = token_values_from(json.loads(line.decode()))
            except (ValueError, RecursionError) as error:  # broken UTF-8 or JSON, DataError
                raise DataError(f"'{path}', line {number}: {error}") from error
            if (earlier := lines.setdefault(one.key, number)) != number:
                raise DataError(
                    f"'{path}', line {number}: values of {one.key} stand in line {earlier} too"
                )
            found[one.key] = one
    return found


_TYPES: dict[str, type] = {
    "problem_id": str,
    "sample": int,
    "model": str,
    "token_ids": list,
    "response_start": int,
    "values": dict,
}


def token_values_from(fields: Any) -> TokenValues:
    """Values of a parsed line.

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
    for name, expected in _TYPES.items():
        if not isinstance(fields[name], expected) or isinstance(fields[name], bool):
            raise DataError(f"'{name}' is {fields[name]!r}; expected {expected.__name__}")
    if any(type(one) is not int or one < 0 for one in fields["token_ids"]):
        raise DataError("'token_ids' holds what is no token id")
    values = {name: _numbers(name, numbers) for name, numbers in fields["values"].items()}
    return TokenValues(**{**fields, "token_ids": tuple(fields["token_ids"]), "values": values})


def _numbers(name: str, numbers: Any) -> tuple[float, ...]:
    """The numbers of a parsed list."""
    if not isinstance(numbers, list) or any(type(one) not in (int, float) for one in numbers):
        raise DataError(f"'{name}' is no list of numbers")
    return tuple(float(one) for one in numbers)


def _line(one: TokenValues) -> bytes:
    """A row of the file, or DataError: a lone half of a UTF-16 pair is no text."""
    fields = {field.name: getattr(one, field.name) for field in dataclasses.fields(one)}
    fields["values"] = dict(one.values)
    try:
        return (json.dumps(fields, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError as error:
        raise DataError(f"values of {one.key} cannot be written as UTF-8: {error}") from error
