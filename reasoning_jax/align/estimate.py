r"""How well a cheap score of tokens finds the critical ones that rollouts found.

The contrastive estimate of the cDPO paper (Lin et al., 2024, arXiv:2411.19943, Eq. 1) gives every
token of a wrong solution a number :math:`s_t`, low where the token is critical; the paper does not
publish how often it agrees with its rollouts. Here each solution, with its T tokens and its
critical token c, gives one value per measure, and the measures are means over solutions with
intervals of resampled solutions:

- AUC, the probability that the critical token scores lower than another one of the same solution:

  .. math:: \frac{1}{T - 1} \sum_{t \ne c} \left( [s_c < s_t] + \tfrac12 [s_c = s_t] \right)

- percentile rank :math:`(r - 1/2) / T` of c's rank r among the solution's tokens, 1 the lowest;
- top-k overlap: whether c is among the k lowest tokens, beside chance, :math:`\min(k, T) / T`.

Ties count by halves, and in the top k by the share of orders in which c is among them. A score that
knows nothing has AUC 1/2 and top-k overlap at chance; both do not depend on its scale.

Dimension key: T response tokens, S solutions.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from core_jax.arrays import Float
from core_jax.errors import ConfigError, DataError
from reasoning_jax.accuracy import Interval, IntervalMethod, bootstrap_interval


@dataclasses.dataclass(frozen=True, kw_only=True)
class EstimateConfig:
    """What is measured of which scores."""

    values: tuple[str, ...] = ("log_score@1.0",)
    """Values of the score file, low where a token is critical; "positive", the log-probability
    under the positive model alone, shows what the contrast adds."""
    top_ks: tuple[int, ...] = (1, 3, 5, 10)
    """How many of the lowest tokens an overlap counts."""
    bootstrap_samples: int = 2000
    """Resamples of the solutions for every interval."""
    confidence: float = 0.95
    """Probability mass of the intervals."""
    interval: IntervalMethod = IntervalMethod.PERCENTILE
    """How an interval's ends are found among the resamples."""
    seed: int = 0
    """Of the resamples."""

    def __post_init__(self) -> None:
        """Checks every field on its own."""
        if not self.values:
            raise ConfigError("estimate.values is empty; name at least one value of the score file")
        if not self.top_ks or min(self.top_ks) < 1:
            raise ConfigError(f"estimate.top_ks is {self.top_ks}; give counts of at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoredSolution:
    """The tokens of one solution, scored, and the one that is looked for."""

    task: str
    """The solution's task."""
    scores: Float[np.ndarray, " T"]
    """One number per response token, low where critical; any scale."""
    target: int
    """The token to be found, counted from the response's first."""

    def __post_init__(self) -> None:
        """Checks that the token is one of the solution's, and the scores are numbers."""
        if not 0 <= self.target < len(self.scores):
            raise DataError(
                f"the token to be found is {self.target} of {len(self.scores)} scored tokens; "
                "expected one of the response"
            )
        if np.isnan(self.scores).any():
            raise DataError("a score is not a number; score the solutions again")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Overlap:
    """How often the token is among the k lowest."""

    k: int
    """How many lowest tokens count."""
    found: Interval
    """Share of solutions."""
    chance: float
    """The same for scores without knowledge."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """All measures of one score over some solutions."""

    num_solutions: int
    """Solutions, those of a single token left out."""
    num_left_out: int
    """Solutions of a single token, which no score can miss."""
    auc: Interval
    """Probability that the token scores lower than another."""
    rank: Interval
    """Percentile rank of the token; near 0 where the score finds it."""
    overlaps: tuple[Overlap, ...]
    """One per k."""


def auc(scores: Float[np.ndarray, " T"], target: int) -> float:
    """Probability that the target scores lower than another token, ties one half.

    Args:
      scores: one number per token, at least two.
      target: the token to be found.

    >>> auc(np.array([0.5, 0.1, 0.1, 0.9]), 1) == (1 + 1 / 2 + 1) / 3
    True
    """
    lower, tied = _below(scores, target)
    return 1 - (lower + tied / 2) / (len(scores) - 1)


def percentile_rank(scores: Float[np.ndarray, " T"], target: int) -> float:
    """The target's rank among all tokens, 0 the lowest and 1 the highest, ties in the middle.

    Args:
      scores: one number per token.
      target: the token to be found.

    >>> percentile_rank(np.array([0.5, 0.1, 0.9]), 1) == (1 - 1 / 2) / 3
    True
    """
    lower, tied = _below(scores, target)
    return (lower + tied / 2 + 1 / 2) / len(scores)


def top_k_overlap(scores: Float[np.ndarray, " T"], target: int, k: int) -> float:
    """Whether the target is among the k lowest tokens; for ties the share of orders in which it is.

    Args:
      scores: one number per token.
      target: the token to be found.
      k: how many lowest tokens count.

    >>> [top_k_overlap(np.array([0.5, 0.1, 0.1, 0.9]), 1, k) for k in (1, 2)]
    [0.5, 1.0]
    """
    lower, tied = _below(scores, target)
    return min(max(k - lower, 0) / (tied + 1), 1.0)


def estimate(solutions: Sequence[ScoredSolution], config: EstimateConfig) -> Estimate:
    """Sums up all measures.

    Args:
      solutions: scored, each with the token to be found.
      config: which k, and the bootstrap.

    Raises:
      DataError: no solution of more than one token.
    """
    usable = [one for one in solutions if len(one.scores) > 1]
    if not usable:
        raise DataError(
            f"none of {len(solutions)} solutions has a token to be found among several; roll out "
            "more solutions"
        )

    def mean(measure: Callable[[Float[np.ndarray, " T"], int], float]) -> Interval:
        return bootstrap_interval(
            np.array([measure(one.scores, one.target) for one in usable]),
            seed=config.seed,
            num_samples=config.bootstrap_samples,
            confidence=config.confidence,
            method=config.interval,
        )

    lengths_S = np.array([len(one.scores) for one in usable])
    return Estimate(
        num_solutions=len(usable),
        num_left_out=len(solutions) - len(usable),
        auc=mean(auc),
        rank=mean(percentile_rank),
        overlaps=tuple(
            Overlap(
                k=k,
                found=mean(lambda scores, target, k=k: top_k_overlap(scores, target, k)),
                chance=float(np.mean(np.minimum(k, lengths_S) / lengths_S)),
            )
            for k in config.top_ks
        ),
    )


def by_task(solutions: Sequence[ScoredSolution], config: EstimateConfig) -> dict[str, Estimate]:
    """`estimate` of every task, and of "all" of them where there are several.

    Args:
      solutions: of any tasks.
      config: which k, and the bootstrap.
    """
    tasks = dict.fromkeys(one.task for one in solutions)
    groups = {task: [one for one in solutions if one.task == task] for task in tasks}
    if len(groups) != 1:
        groups["all"] = list(solutions)
    return {task: estimate(group, config) for task, group in groups.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EstimateRow:
    """One line of the table."""

    target: str
    """What is looked for, such as "critical token"."""
    task: str
    """The solutions' task, or "all"."""
    value: str
    """The score's name."""
    estimate: Estimate
    """What was measured."""


def table(rows: Sequence[EstimateRow], *, confidence: float) -> str:
    """Estimates as a table in Markdown.

    Args:
      rows: at least one, all with the same k.
      confidence: probability mass of the intervals.
    """
    ks = [overlap.k for overlap in rows[0].estimate.overlaps]
    head = ["looked for", "task", "score", "solutions", "AUC", "percentile rank"]
    head += [f"in the {k} lowest (chance)" if k > 1 else "the lowest (chance)" for k in ks]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        one = row.estimate
        cells = [row.target, row.task, row.value, f"{one.num_solutions:,}"]
        cells += [_ends(one.auc), _ends(one.rank)]
        cells += [f"{_ends(lap.found)} ({lap.chance:.3f})" for lap in one.overlaps]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"In brackets {confidence:.0%} intervals over solutions. A score that knows nothing has "
        "AUC 0.5, percentile rank 0.5 and overlaps at chance.",
    ]
    return "\n".join(lines)


def _below(scores: Float[np.ndarray, " T"], target: int) -> tuple[int, int]:
    """How many tokens score lower than the target, and how many others the same."""
    value = scores[target]
    return int((scores < value).sum()), int((scores == value).sum()) - 1


def _ends(interval: Interval) -> str:
    """Mean and ends."""
    return f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
