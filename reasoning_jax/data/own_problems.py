"""Problems of one's own: JSON lines, CSV or Parquet with a column mapping.

Dimension key: none.
"""

import collections
import dataclasses
import hashlib
import logging
import os
import pathlib

import polars as pl

from core_jax.errors import ConfigError, DataError, nearest_name
from reasoning_jax.data.problems import Problem

_LOGGER = logging.getLogger(__name__)


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
    """Reads a file; bad rows are counted by reason and logged.

    Args:
      path: .jsonl, .csv or .parquet.
      columns: what is where.

    Returns:
      The good rows, in order; the task is the file's name without suffix.

    Raises:
      DataError: unreadable, a column that is not there, or no good row.
    """
    path = pathlib.Path(path)
    readers = {".jsonl": pl.read_ndjson, ".csv": pl.read_csv, ".parquet": pl.read_parquet}
    if path.suffix not in readers:
        raise DataError(f"'{path}' is none of {', '.join(readers)}")
    try:
        rows = readers[path.suffix](path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"'{path}' cannot be read: {error}") from error
    for name in dataclasses.astuple(columns):
        if name and name not in rows.columns:
            raise DataError(f"'{path}' has no column '{name}'. {nearest_name(name, rows.columns)}")
    found: dict[str, Problem] = {}
    dropped: collections.Counter[str] = collections.Counter()
    for row in rows.iter_rows(named=True):
        question, answer = row[columns.question], row[columns.answer]
        if question is None or not str(question).strip():
            dropped["without a question"] += 1
            continue
        if answer is None or not str(answer).strip():
            dropped["without an answer"] += 1
            continue
        digest = hashlib.sha256(str(question).encode()).hexdigest()[:12]
        own = row[columns.problem_id] if columns.problem_id else None
        problem_id = str(own) if own is not None else f"{path.stem}-{digest}"
        if problem_id in found:
            dropped["of an id that came before"] += 1
            continue
        solution = row[columns.solution] if columns.solution else None
        found[problem_id] = Problem(
            problem_id=problem_id,
            task=path.stem,
            question=str(question),
            answer=str(answer).strip(),
            solution=None if solution is None else str(solution),
        )
    if dropped:
        counts = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items())
        _LOGGER.warning("'%s': of %d rows, left out %s", path, rows.height, counts)
    if not found:
        raise DataError(f"'{path}' has no row with a question and an answer ({dict(dropped)})")
    return list(found.values())
