"""How often problems are solved: one value per problem, and intervals over problems.

Host-side NumPy in float64. Intervals resample problems, not samples: problems are what another
test set would have others of.

Dimension key: P problems, Q values of k, S samples of a problem, R resamples, J samples drawn,
W tied winners.
"""

import dataclasses
import enum
import math
from collections import Counter
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from core_jax.arrays import Float, Int
from core_jax.errors import ConfigError, DataError

MOST_VOTES = 1000
"""Samples of a problem up to which subsets are counted: float64 holds C(1000, 500)."""

_DRAWN_AT_ONCE = 1 << 22
"""Resampled indices held in memory at a time (their weights take 32 MiB)."""


class IntervalMethod(enum.Enum):
    """How the ends of an interval are read off the resampled means."""

    PERCENTILE = "percentile"
    """Their quantiles."""
    BCA = "bca"
    """Quantiles corrected for bias and for skewness (Efron, 1987)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over problems and its bootstrap interval."""

    mean: float
    low: float
    high: float


def pass_at_k(
    num_correct: Int[np.ndarray, " P"], num_samples: Int[np.ndarray, " P"], k: int
) -> Float[np.ndarray, " P"]:
    r"""Probability that at least one of k samples is correct, unbiased, for each problem.

    .. math:: 1 - \binom{n - c}{k} / \binom{n}{k} = 1 - \prod_{j=0}^{k-1} \left(1 - \frac{c}{n - j}
       \right)

    (Chen et al., 2021, arXiv:2107.03374, Eq. 1.) Computed as a sum of logarithms: no binomial
    overflows and small values keep their digits.

    Args:
      num_correct: c, the correct ones among the problem's samples.
      num_samples: n, the problem's samples.
      k: samples that one is allowed.

    Returns:
      One probability per problem.

    Raises:
      ConfigError: k is not positive or more than a problem's samples.
      DataError: c is not in 0 to n.

    >>> from math import comb, isclose
    >>> values = pass_at_k(np.array([3, 0, 5]), np.array([7, 7, 7]), k=3)
    >>> isclose(values[0], 1 - comb(7 - 3, 3) / comb(7, 3)), values[1:].tolist()
    (True, [0.0, 1.0])
    """
    _check_k(k, num_samples)
    bad = np.flatnonzero((num_correct < 0) | (num_correct > num_samples))
    if bad.size:
        raise DataError(
            f"problem {bad[0]} has {num_correct[bad[0]]} correct of {num_samples[bad[0]]} samples; "
            "expected 0 to all of them"
        )
    wrong_left_PJ = num_samples[:, None] - np.arange(k)
    share_PJ = np.minimum(num_correct[:, None] / wrong_left_PJ, 1.0)
    with np.errstate(divide="ignore"):  # log 0: too few wrong samples to fill k places
        return -np.expm1(np.log1p(-share_PJ).sum(axis=1)) + 0.0


def majority_at_k(
    groups: Sequence[Sequence[int | None]],
    is_correct: Sequence[Sequence[bool]],
    ks: Sequence[int],
) -> Float[np.ndarray, "P Q"]:
    """Probability that the commonest answer of k samples is correct, for each problem and each k.

    The exact expectation over all subsets of k of the problem's samples, by counting them: nothing
    is drawn. A tie is split evenly among the tied. No answer (None) is not voted for: it wins only
    where no sample of the subset has an answer, and is never correct.

    Args:
      groups: for each problem the group of each sample's answer: equal numbers for equivalent
        answers, None for no answer.
      is_correct: for each problem whether each sample is correct. A group counts as the share of
        its samples that are: 0 or 1 where equivalence is consistent with grading.
      ks: numbers of samples to vote among.

    Returns:
      One probability per problem and k.

    Raises:
      ConfigError: a k is not positive or more than a problem's samples.
      DataError: lengths differ, a sample without an answer is correct, or a problem has more than
        `MOST_VOTES` samples.

    >>> from math import comb
    >>> value = majority_at_k([[4, 4, 9, 9, 9]], [[True, True, False, False, False]], [2, 3])
    >>> bool(np.allclose(value, [[(1 + 6 / 2) / comb(5, 2), 3 / comb(5, 3)]]))  # 6 ties at k = 2
    True
    """
    if len(groups) != len(is_correct):
        raise DataError(
            f"there are groups of {len(groups)} problems, verdicts of {len(is_correct)}"
        )
    num_samples = np.array([len(votes) for votes in groups], np.int64)
    for k in ks:
        _check_k(k, num_samples)
    values = np.zeros((len(groups), len(ks)))
    for problem, (votes, verdicts) in enumerate(zip(groups, is_correct, strict=True)):
        _check_votes(problem, votes, verdicts)
        values[problem] = _vote(votes, verdicts, max(ks))[list(ks)]
    return values


def bootstrap_interval(
    values: Float[np.ndarray, " P"],
    *,
    seed: int,
    num_samples: int = 2000,
    confidence: float = 0.95,
    method: IntervalMethod = IntervalMethod.PERCENTILE,
) -> Interval:
    r"""Mean over problems with the interval of resampled problems.

    BCa reads the quantiles at :math:`\Phi(z_0 + (z_0 + z) / (1 - a (z_0 + z)))`, where
    :math:`\Phi(z_0)` is the share of resampled means below the mean (those equal to it count half)
    and a a sixth of the skewness of the mean (Efron, 1987, from the jackknife).

    Args:
      values: one value per problem.
      seed: of the resamples; equal seeds and numbers of problems draw equal resamples.
      num_samples: number of resamples.
      confidence: probability mass of the interval.
      method: how its ends are found.

    Returns:
      The mean and the ends. Where all problems have one value the ends are that value, however
      few the problems: see `wilson_interval`.

    Raises:
      ConfigError: num_samples or confidence is out of range.
      DataError: there is no value, or one is not finite.

    >>> bootstrap_interval(np.full(7, 0.5), seed=0, num_samples=11)
    Interval(mean=0.5, low=0.5, high=0.5)
    """
    _check_interval(values, num_samples, confidence)
    mean = float(values.mean())
    means_R = resampled_means(values, seed=seed, num_samples=num_samples)
    edges = (1 - confidence) / 2, (1 + confidence) / 2
    if method is IntervalMethod.BCA and np.ptp(values) > 0:
        edges = _bca_edges(values, means_R, edges)
    low, high = np.quantile(means_R, edges)
    return Interval(mean=mean, low=float(low), high=float(high))


def resampled_means(
    values: Float[np.ndarray, " P"], *, seed: int, num_samples: int
) -> Float[np.ndarray, " R"]:
    """Means of resamples of the values, drawn with replacement.

    Args:
      values: one value per problem.
      seed: of the resamples.
      num_samples: how many.

    >>> bool((resampled_means(np.array([2.0, 2.0]), seed=1, num_samples=3) == 2).all())
    True
    """
    num_problems = len(values)
    rows_per_draw = max(1, _DRAWN_AT_ONCE // num_problems)
    # Raw words modulo P: the same in every NumPy release; the bias is at most P / 2^64.
    words = np.random.Philox(np.random.SeedSequence(seed))
    means = []
    for first in range(0, num_samples, rows_per_draw):
        num_rows = min(rows_per_draw, num_samples - first)
        drawn = words.random_raw(num_rows * num_problems) % np.uint64(num_problems)
        drawn_RP = drawn.astype(np.int64).reshape(num_rows, num_problems)
        means.append(values[drawn_RP].mean(axis=1))
    return np.concatenate(means)


def wilson_interval(num_correct: int, num_problems: int, *, confidence: float = 0.95) -> Interval:
    r"""Score interval of a share (Wilson, 1927), which is wide where all or none are correct.

    The values p with :math:`|\hat p - p| \le z \sqrt{p (1 - p) / n}`.

    Args:
      num_correct: problems solved.
      num_problems: problems.
      confidence: probability mass of the interval.

    Raises:
      DataError: no problem, or more solved than there are.
      ConfigError: confidence is out of range.

    >>> from math import isclose
    >>> square = NormalDist().inv_cdf(0.975) ** 2
    >>> isclose(wilson_interval(0, 64).high, square / (64 + square))
    True
    """
    if num_problems < 1 or not 0 <= num_correct <= num_problems:
        raise DataError(f"{num_correct} of {num_problems} problems is not a share of problems")
    _check_confidence(confidence)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, weight = num_correct / num_problems, z * z / num_problems
    centre = share + weight / 2
    spread = z * math.sqrt(share * (1 - share) / num_problems + (weight / (2 * z)) ** 2)
    low, high = (centre - spread) / (1 + weight), (centre + spread) / (1 + weight)
    return Interval(mean=share, low=max(0.0, low), high=min(1.0, high))


def _vote(
    votes: Sequence[int | None], verdicts: Sequence[bool], most: int
) -> Float[np.ndarray, " J"]:
    """Expected correctness of the winner among j samples, for j = 0 (always 0) to `most`.

    Subsets are counted by the winner's number of votes v: a generating function in the samples
    drawn (J) and the groups that have exactly v votes (W), a group at a time. `ways` counts
    subsets, `value` adds up the correctness of their tied winners. Groups smaller than v, and
    samples without an answer, are drawn from at will and so enter as one.
    """
    sizes = Counter(vote for vote in votes if vote is not None)
    correct = Counter(vote for vote, is_right in zip(votes, verdicts, strict=True) if is_right)
    expected_J = np.zeros(most + 1)
    for top in range(1, min(most, max(sizes.values(), default=0)) + 1):
        rivals = [group for group, size in sizes.items() if size >= top]
        free = len(votes) - sum(sizes[group] for group in rivals)
        most_tied = min(len(rivals), most // top)
        ways_JW = np.zeros((most + 1, most_tied + 1))
        ways_JW[:, 0] = _combinations(free, most)
        value_JW = np.zeros_like(ways_JW)
        for group in rivals:
            combinations = _combinations(sizes[group], most)
            fewer = np.where(np.arange(most + 1) < top, combinations, 0.0)
            share = correct[group] / sizes[group]
            wins_JW = np.zeros_like(ways_JW)
            gains_JW = np.zeros_like(ways_JW)
            wins_JW[top:, 1:] = combinations[top] * ways_JW[: most + 1 - top, :-1]
            gains_JW[top:, 1:] = combinations[top] * value_JW[: most + 1 - top, :-1]
            below_JJ = _shifted(fewer)
            ways_JW = below_JJ @ ways_JW + wins_JW
            value_JW = below_JJ @ value_JW + gains_JW + share * wins_JW
        expected_J += (value_JW[:, 1:] / np.arange(1, most_tied + 1)).sum(axis=1)
    return expected_J / np.maximum(_combinations(len(votes), most), 1.0)


def _combinations(size: int, most: int) -> Float[np.ndarray, " J"]:
    """C(size, j) for j = 0 to `most`."""
    return np.array([float(math.comb(size, j)) for j in range(most + 1)])


def _shifted(coefficients: Float[np.ndarray, " J"]) -> Float[np.ndarray, "J J"]:
    """The matrix that multiplies a polynomial by one, dropping what is of too high a degree."""
    degrees = np.arange(len(coefficients))
    shift_JJ = degrees[:, None] - degrees[None, :]
    return np.where(shift_JJ >= 0, coefficients[np.maximum(shift_JJ, 0)], 0.0)


def _bca_edges(
    values: Float[np.ndarray, " P"], means: Float[np.ndarray, " R"], edges: tuple[float, float]
) -> tuple[float, float]:
    """The quantiles to read instead of `edges`."""
    normal = NormalDist()
    mean = values.mean()
    # Sums in another order differ by rounding: means that are equal must count as such.
    is_equal_R = np.isclose(means, mean, rtol=1e-12, atol=0.0)
    share = float(np.mean(np.where(is_equal_R, 0.5, means < mean)))
    least = 0.5 / len(means)
    bias = normal.inv_cdf(min(max(share, least), 1 - least))
    centred = values - mean
    skewness = float((centred**3).sum() / (6 * (centred**2).sum() ** 1.5))
    moved = [bias + normal.inv_cdf(edge) for edge in edges]
    low, high = (normal.cdf(bias + z / (1 - skewness * z)) for z in moved)
    return low, high


def _check_k(k: int, num_samples: Int[np.ndarray, " P"]) -> None:
    """Raises unless every problem has k samples."""
    short = np.flatnonzero(num_samples < k)
    if k < 1 or short.size:
        found = f"; problem {short[0]} has {num_samples[short[0]]} samples" if short.size else ""
        raise ConfigError(
            f"k is {k}{found}; k must be at least 1 and at most the samples of every problem: "
            "lower k, or sample more"
        )


def _check_votes(problem: int, votes: Sequence[int | None], verdicts: Sequence[bool]) -> None:
    """Raises unless one problem's votes and verdicts go together."""
    if len(votes) != len(verdicts):
        raise DataError(f"problem {problem} has {len(votes)} answers but {len(verdicts)} verdicts")
    if len(votes) > MOST_VOTES:
        raise DataError(
            f"problem {problem} has {len(votes)} samples; votes are counted exactly for at most "
            f"{MOST_VOTES}: give the first {MOST_VOTES}"
        )
    for sample, (vote, is_right) in enumerate(zip(votes, verdicts, strict=True)):
        if vote is None and is_right:
            raise DataError(
                f"sample {sample} of problem {problem} is correct but has no answer (None); "
                "give its answer a group"
            )


def _check_interval(values: np.ndarray, num_samples: int, confidence: float) -> None:
    """Raises unless there is something to resample, and so many times."""
    if not len(values):
        raise DataError("there is no value to take a mean of; evaluate at least one problem")
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise DataError(
            f"the value of problem {bad[0]} is {values[bad[0]]}; expected a finite number for "
            "every problem: leave out what was not graded"
        )
    if num_samples < 1:
        raise ConfigError(f"num_samples is {num_samples}; draw at least 1 (2000 are usual)")
    _check_confidence(confidence)


def _check_confidence(confidence: float) -> None:
    """Raises unless it is a probability mass."""
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence is {confidence}; it must lie between 0 and 1, as 0.95")
