"""Problems: questions with one gold answer.

Dimension key: none.
"""

import dataclasses
import hashlib
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

STEPS = "steps"
"""The task of sums with written steps; see `reasoning_jax.data.arithmetic`."""

TEST_SHARE = 0.2
"""Share of all questions of a drawn task that belong to its test split."""

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


def is_test_question(question: str) -> bool:
    """Which split a drawn question belongs to: by itself, whatever seed drew it.

    Test are those whose first byte of SHA-256 lies in the lowest `TEST_SHARE`.
    """
    return hashlib.sha256(question.encode()).digest()[0] < TEST_SHARE * 256


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
