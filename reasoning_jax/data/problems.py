"""Problems: questions with one gold answer.

Dimension key: none.
"""

import dataclasses
import types
from collections.abc import Mapping

from core_jax.errors import DataError

SPLITS: dict[str, tuple[str, ...]] = {
    "gsm8k": ("train", "test"),
    "math": ("train", "test"),
    "math500": ("test",),
    "svamp": ("test",),
}
"""Problem set to its splits."""

OWN = "own"
"""The task of a file of one's own."""

NOTHING: Mapping[str, str] = types.MappingProxyType({})
"""No metadata."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """One question and its answer."""

    problem_id: str
    """Unique among the problems of its task and split."""
    task: str
    """The task's name."""
    question: str
    """What is asked."""
    answer: str
    """The gold answer, without its derivation."""
    solution: str | None = None
    """A written solution, where there is one."""
    metadata: Mapping[str, str] = dataclasses.field(default_factory=lambda: NOTHING)
    """Further facts: level, subject, what a procedural task needs to verify."""


def check_unique(problems: list[Problem], source: str) -> list[Problem]:
    """The problems, whose ids must differ.

    Raises:
      DataError: an id that two problems have, or no problem at all.
    """
    if not problems:
        raise DataError(f"{source} gave no problem")
    seen: set[str] = set()
    for problem in problems:
        if problem.problem_id in seen:
            raise DataError(f"{source} has two problems with the id '{problem.problem_id}'")
        seen.add(problem.problem_id)
    return problems
