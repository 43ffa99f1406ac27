"""How good predicted probabilities are: ranking, likelihood, calibration. Pure NumPy functions.

A soft label (a percentile, a share) is cut for the ranking measures alone: above the median of the
labels at hand, so that both classes have about the same size; where none is above it, at least the
median. Labels that are all 0 or 1 are taken as they are.

Dimension key: S sessions, G bins.
"""

import dataclasses

import numpy as np

from core_jax.arrays import Bool, Float, Int

SMALLEST = 1e-7
"""Probabilities are kept this far from 0 and 1 in logarithms: float32 has no number nearer to 1."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """Bins of equal mass, by rising prediction."""

    error: float
    """Expected calibration error: mean over sessions of their bin's gap."""
    predicted: tuple[float, ...]
    """Mean prediction per bin."""
    observed: tuple[float, ...]
    """Mean label per bin."""
    counts: tuple[int, ...]
    """Sessions per bin."""


def classes(labels: Float[np.ndarray, "S"]) -> Bool[np.ndarray, "S"]:
    """Which labels count as positive in the ranking measures; see the module's docstring.

    >>> classes(np.array([0.1, 0.4, 0.4, 0.9])).tolist()
    [False, False, False, True]
    >>> classes(np.array([0.4, 1.0, 1.0, 1.0])).tolist()
    [False, True, True, True]
    >>> classes(np.array([0.0, 1.0, 1.0])).tolist()
    [False, True, True]
    """
    if np.isin(labels, (0.0, 1.0)).all():
        return labels > 0.5
    median = np.median(labels)
    return labels > median if (labels > median).any() else labels >= median


def auc(is_positive: Bool[np.ndarray, "S"], scores: Float[np.ndarray, "S"]) -> float:
    """Probability that a positive scores above a negative; a tie counts half. Exact, by ranks.

    Args:
      is_positive: the class.
      scores: higher is more positive.

    Returns:
      In [0, 1]; NaN where one class is empty.

    >>> auc(np.array([True, False, False]), np.array([0.5, 0.5, 0.1]))
    0.75
    """
    num_positive = int(is_positive.sum())
    num_negative = len(is_positive) - num_positive
    if not num_positive or not num_negative:
        return float("nan")
    _, place, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(sizes) - (sizes - 1) / 2  # ranks from 1, ties share their mean
    rank_sum = mean_rank[place][is_positive].sum()
    return float((rank_sum - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def group_auc(
    is_positive: Bool[np.ndarray, "S"],
    scores: Float[np.ndarray, "S"],
    groups: Int[np.ndarray, "S"],
) -> tuple[float, int]:
    """AUC within every group that has both classes, weighted by the group's sessions.

    Args:
      is_positive: the class.
      scores: higher is more positive.
      groups: the user of each session.

    Returns:
      The weighted mean, NaN where no group has both classes; and the number of groups that do.

    >>> group_auc(np.array([True, False, True]), np.array([2.0, 1.0, 0.0]), np.array([5, 5, 7]))
    (1.0, 1)
    """
    order = np.argsort(groups, kind="stable")
    cuts = np.flatnonzero(np.diff(groups[order])) + 1
    total, weight, num_groups = 0.0, 0, 0
    for inside in np.split(order, cuts):
        value = auc(is_positive[inside], scores[inside])
        if not np.isnan(value):
            total += value * len(inside)
            weight += len(inside)
            num_groups += 1
    return (total / weight if weight else float("nan")), num_groups


def log_loss(labels: Float[np.ndarray, "S"], probabilities: Float[np.ndarray, "S"]) -> float:
    """Mean cross-entropy in nats; soft labels are welcome.

    >>> round(log_loss(np.array([1.0, 0.5]), np.array([0.5, 0.5])), 6)
    0.693147
    """
    kept = np.clip(probabilities.astype(np.float64), SMALLEST, 1 - SMALLEST)
    return float(-np.mean(labels * np.log(kept) + (1 - labels) * np.log1p(-kept)))


def calibration(
    labels: Float[np.ndarray, "S"], probabilities: Float[np.ndarray, "S"], num_bins: int
) -> Calibration:
    """Compares mean prediction and mean label in bins of equal mass.

    Args:
      labels: y in [0, 1].
      probabilities: predictions.
      num_bins: bins; fewer where there are fewer sessions.

    Returns:
      The bins and the expected calibration error.
    """
    order = np.argsort(probabilities, kind="stable")
    bins = [inside for inside in np.array_split(order, num_bins) if len(inside)]
    predicted = [float(probabilities[inside].mean(dtype=np.float64)) for inside in bins]
    observed = [float(labels[inside].mean(dtype=np.float64)) for inside in bins]
    counts = [len(inside) for inside in bins]
    gaps = np.abs(np.subtract(predicted, observed))
    return Calibration(
        error=float(np.average(gaps, weights=counts)) if counts else float("nan"),
        predicted=tuple(predicted),
        observed=tuple(observed),
        counts=tuple(counts),
    )
