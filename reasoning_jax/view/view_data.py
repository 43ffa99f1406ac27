"""What the viewer shows: problems, their solutions, and numbers for every token of a solution.

Dimension key: none.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from core_jax.errors import DataError

LARGEST_LOG = 1e-3
"""Log-probabilities may be so much above 0: rounding of a sum over the vocabulary."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewSolution:
    """One solution. Numbers per token have one entry for each piece, or are None."""

    sample: int
    """Which of the problem's samples."""
    pieces: tuple[str, ...]
    """Text of each token; together the response. A token that ends inside a character is empty."""
    is_correct: bool | None
    """The grader's verdict; None: not graded."""
    answer: str | None
    """The answer that was found, or None."""
    is_cut_off: bool = False
    """Whether it ended at the longest length."""
    log_scores: tuple[float, ...] | None = None
    """log s_t, in nats; low is critical."""
    positive: tuple[float, ...] | None = None
    """Log-probability under the positive model, in nats."""
    negative: tuple[float, ...] | None = None
    """Log-probability under the negative model, in nats."""
    success: tuple[float | None, ...] | None = None
    """Share of rollouts that succeed after each token; None where none were sampled."""
    critical: int | None = None
    """The critical token by rollouts, or None."""
    first_error: int | None = None
    """The token of the first arithmetic error, or None where there is none or it is not known."""

    def __post_init__(self) -> None:
        """Checks that all numbers belong to the pieces.

        Raises:
          DataError: another number of numbers than pieces, a value out of range, an index that
            is none of a piece.
        """
        if not self.pieces:
            raise DataError(f"sample {self.sample} has no token; leave it out of the view")
        for name in ("log_scores", "positive", "negative", "success"):
            values = getattr(self, name)
            if values is None:
                continue
            if len(values) != len(self.pieces):
                raise DataError(
                    f"sample {self.sample}: {name} has {len(values)} numbers for "
                    f"{len(self.pieces)} tokens; they belong to another response"
                )
            _check_range(f"sample {self.sample}: {name}", name, values)
        for name in ("critical", "first_error"):
            index = getattr(self, name)
            if index is not None and not 0 <= index < len(self.pieces):
                raise DataError(
                    f"sample {self.sample}: {name} is {index}; expected a token from 0 to "
                    f"{len(self.pieces) - 1}"
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewProblem:
    """One problem with the solutions to show side by side."""

    problem_id: str
    """Unique in the page."""
    question: str
    """What was asked."""
    gold: str
    """The gold answer."""
    solutions: tuple[ViewSolution, ...]
    """In the order of display."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewData:
    """All that the page shows."""

    title: str
    """Heading of the page."""
    problems: tuple[ViewProblem, ...]
    """In the order of display."""
    top_share: float = 0.1
    """Contrast agrees with rollouts where the critical token is in this share of lowest s_t."""
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """The run in a few facts."""

    def __post_init__(self) -> None:
        """Checks what the parts do not know of each other.

        Raises:
          DataError: no problem, two of one id, or a share that is none.
        """
        if not self.problems:
            raise DataError("there is no problem to show; the run has no pairs")
        seen: set[str] = set()
        for problem in self.problems:
            if problem.problem_id in seen:
                raise DataError(
                    f"problem '{problem.problem_id}' is there twice; join its solutions"
                )
            seen.add(problem.problem_id)
        if not 0 < self.top_share <= 1:
            raise DataError(f"top_share is {self.top_share}; expected a share above 0, at most 1")


def _check_range(what: str, name: str, values: Sequence[float | None]) -> None:
    """Raises DataError for what is no log-probability or no share."""
    low, high = (0.0, 1.0) if name == "success" else (-math.inf, LARGEST_LOG)
    for token, value in enumerate(values):
        if value is not None and not low <= value <= high:
            expected = "a share from 0 to 1" if name == "success" else "a log-probability in nats"
            raise DataError(f"{what} of token {token} is {value}; expected {expected}")
