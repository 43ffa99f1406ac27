"""Two runs on the same problems, compared pair by pair.

Dimension key: P problems.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from core_jax.errors import DataError
from reasoning_jax.accuracy import Interval, IntervalMethod, bootstrap_interval


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """How the second run does against the first on the problems of both."""

    names: tuple[str, str]
    """The first and the second run."""
    means: tuple[float, float]
    """Their mean values."""
    difference: Interval
    """Mean of second - first with its paired bootstrap interval."""
    wins: int
    """Problems on which the second is better."""
    losses: int
    """Problems on which it is worse."""
    ties: int
    """Problems on which both are equal."""
    p_value: float
    """Of the exact two-sided sign test over wins and losses; McNemar's where values are 0 or 1."""

    def table(self) -> str:
        """The comparison as a table in Markdown."""
        first, second = self.names
        head = f"| {first} | {second} | difference | interval | wins | losses | ties | p |"
        cells = [
            *(f"{mean:.4f}" for mean in self.means),
            f"{self.difference.mean:+.4f}",
            f"{self.difference.low:+.4f} to {self.difference.high:+.4f}",
            *(str(count) for count in (self.wins, self.losses, self.ties)),
            f"{self.p_value:.2g}",
        ]
        return "\n".join([head, "|---" * len(cells) + "|", f"| {' | '.join(cells)} |"])


def compare_runs(
    first: Mapping[str, float],
    second: Mapping[str, float],
    *,
    seed: int,
    names: tuple[str, str] = ("first", "second"),
    num_samples: int = 2000,
    confidence: float = 0.95,
    method: IntervalMethod = IntervalMethod.PERCENTILE,
) -> Comparison:
    """Compares two runs; the order of the problems in either does not matter.

    Args:
      first: value of every problem by its id, for example 1 for solved and 0 for not.
      second: the other run's.
      seed: of the resamples.
      names: of the runs, for messages and the table.
      num_samples: number of resamples.
      confidence: probability mass of the interval.
      method: how its ends are found.

    Returns:
      The comparison; above zero where the second run is better.

    Raises:
      DataError: a problem is in one run only, there is none, or a value is not finite.

    >>> result = compare_runs({"a": 0.0, "b": 1.0}, {"b": 1.0, "a": 1.0}, seed=0)
    >>> result.difference.mean, (result.wins, result.losses, result.ties), result.p_value
    (0.5, (1, 0, 1), 1.0)
    """
    for (name, run), (other_name, other) in (
        ((names[0], first), (names[1], second)),
        ((names[1], second), (names[0], first)),
    ):
        missing = [problem_id for problem_id in run if problem_id not in other]
        if missing:
            raise DataError(
                f"problem '{missing[0]}' of run '{name}' is not in run '{other_name}', as are not "
                f"{len(missing)} of its {len(run)} problems; compare runs over the same problems"
            )
    problem_ids = sorted(first)  # the resamples do not depend on the order of the files
    first_P = np.array([first[problem_id] for problem_id in problem_ids], np.float64)
    second_P = np.array([second[problem_id] for problem_id in problem_ids], np.float64)
    difference = bootstrap_interval(
        second_P - first_P,
        seed=seed,
        num_samples=num_samples,
        confidence=confidence,
        method=method,
    )
    wins, losses = int((second_P > first_P).sum()), int((second_P < first_P).sum())
    return Comparison(
        names=names,
        means=(float(first_P.mean()), float(second_P.mean())),
        difference=difference,
        wins=wins,
        losses=losses,
        ties=len(problem_ids) - wins - losses,
        p_value=sign_test(wins, losses),
    )


def sign_test(wins: int, losses: int) -> float:
    r"""Exact two-sided p value that wins and losses are equally likely.

    .. math:: \min\left(1, 2 \sum_{i=0}^{\min(w, l)} \binom{w + l}{i} 2^{-(w + l)}\right)

    Args:
      wins: pairs with the second better.
      losses: pairs with the first better; ties say nothing and are left out.

    >>> sign_test(5, 0) == 2 / 2**5, sign_test(3, 3)
    (True, 1.0)
    """
    total = wins + losses
    tail = sum(math.comb(total, count) for count in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail / 2**total)
