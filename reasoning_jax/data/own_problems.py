"""Problems of one's own: JSON lines, CSV or Parquet with a column mapping.

Dimension key: none.
"""

import collections
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import polars as pl

from core_jax.errors import ConfigError, DataError, nearest_name
from core_jax.storage import local_path
from reasoning_jax.data.problems import Problem

_LOGGER = logging.getLogger(__name__)

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProblemColumns:
    """Which columns hold what. An empty name: there is no such column."""

    question: str = "question"
    """Column of the question."""
    answer: str = "answer"
    """Column of the gold answer."""
    problem_id: str = ""
    """Column of the id; without it an id is made from the question."""
    solution: str = ""
    """Column of a written solution."""

    def __post_init__(self) -> None:
        """Checks that questions and answers are named."""
        if not self.question or not self.answer:
            raise ConfigError("problems.columns needs a question and an answer column")


def read_own_problems(path: str | os.PathLike[str], columns: ProblemColumns) -> list[Problem]:
    """Reads a file; bad rows are counted by reason and logged, and so are repeated questions.

    What is left out: a line that is no JSON object, a row without question or answer or whose
    question or answer is a list or an object, an id that came before (without an id column: a
    question that came before). Questions that stand under several ids are kept and only counted.
    CSV is read as text, so that an answer such as "007" or "1.50" stays what it is.

    Args:
      path: .jsonl, .ndjson, .csv, .tsv or .parquet.
      columns: what is where.

    Returns:
      The good rows, in order; the task is the file's name without suffix. An id made here is the
      same wherever the question stands.

    Raises:
      DataError: unreadable, a column that is not there, or no good row.
    """
    path = local_path(path)
    rows = _rows(path)
    if not rows:
        raise DataError(f"'{path}' has no rows; give a file with at least one problem")
    known = list(dict.fromkeys(name for row in rows if row is not None for name in row))
    for name in dataclasses.astuple(columns):
        if name and name not in known:
            raise DataError(
                f"'{path}' has no column '{name}'; set problems.columns. "
                f"{nearest_name(name, known)}"
            )
    found: dict[str, Problem] = {}
    dropped: collections.Counter[str] = collections.Counter()
    for row in rows:
        problem = "that are no JSON object" if row is None else _problem(row, columns, path.stem)
        if isinstance(problem, Problem) and problem.problem_id in found:
            problem = "of an id that came before" if columns.problem_id else "that are repeated"
        if isinstance(problem, Problem):
            found[problem.problem_id] = problem
        else:
            dropped[problem] += 1
    counts = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items())
    if not found:
        raise DataError(
            f"'{path}' has no row with a question and an answer ({counts}); check problems.columns"
        )
    if dropped:
        _LOGGER.warning("'%s': of %d rows, left out %s", path, len(rows), counts)
    num_repeated = len(found) - len({problem.question for problem in found.values()})
    if num_repeated:
        _LOGGER.warning("'%s': %d questions stand under more than one id", path, num_repeated)
    return list(found.values())


def _rows(path: pathlib.Path) -> list[dict[str, Any] | None]:
    """The rows of a file by its suffix; None for a line that is no JSON object."""
    if path.suffix not in _SUFFIXES:
        raise DataError(f"'{path}' ends in '{path.suffix}'; expected {', '.join(_SUFFIXES)}")
    try:
        if path.suffix == ".parquet":
            return list(pl.read_parquet(path).to_dicts())
        if path.suffix in _SEPARATORS:
            table = pl.read_csv(path, separator=_SEPARATORS[path.suffix], infer_schema=False)
            return list(table.to_dicts())
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError, pl.exceptions.PolarsError) as error:
        raise DataError(
            f"'{path}' cannot be read ({error}); check that it is there and whole"
        ) from error
    return [_object(line) for line in lines if line.strip()]


def _object(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line, parse_float=str)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _problem(row: Mapping[str, Any], columns: ProblemColumns, task: str) -> Problem | str:
    """A row's problem, or why it has none."""
    question, answer = _text(row.get(columns.question)), _text(row.get(columns.answer))
    if question is None:
        return "without a question"
    if answer is None:
        return "without an answer"
    digest = hashlib.sha256(question.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    own_id = _text(row.get(columns.problem_id)) if columns.problem_id else None
    return Problem(
        problem_id=own_id or f"{task}-{digest}",
        task=task,
        question=question,
        answer=answer,
        solution=_text(row.get(columns.solution)) if columns.solution else None,
    )


def _text(value: Any) -> str | None:
    """Text or a number as text; None for nothing, blanks, lists and objects."""
    if value is None or isinstance(value, list | dict):
        return None
    return str(value).strip() or None
