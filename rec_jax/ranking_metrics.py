"""Ranking metrics against a *set* of right answers, and intervals for their means.

A user's target is every item of the next session (multi-positive). Metrics return one value per
user; the caller reduces. Host-side NumPy in float64: lists are short and users are many.
Lists and targets are dense item indices padded with -1.

Dimension key: U users, K listed items (best first), M target items, I catalogue items,
C categories, S popularity strata, L code levels, N code tuples, V codes of one level,
R resamples, Q values per user.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from core_jax.arrays import Array, Bool, Float, Int, Key
from core_jax.errors import ConfigError

PADDING = -1
"""Item index of an empty place in a list or a target."""

DRAWN_AT_ONCE = 1 << 22
"""Resampled user indices held in memory at a time (their weights take 32 MiB)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over users with its bootstrap percentile interval."""

    mean: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the width of the interval."""
        return (self.high - self.low) / 2


def first_occurrences(items: Int[np.ndarray, "U K"]) -> Bool[np.ndarray, "U K"]:
    """True where an item stands for the first time in its row; padding is False.

    >>> first_occurrences(np.array([[4, 2, 4, -1]])).tolist()
    [[True, True, False, False]]
    """
    equal_UKK = items[:, :, None] == items[:, None, :]
    repeated_UK = np.tril(equal_UKK, -1).any(axis=-1)
    return (items != PADDING) & ~repeated_UK


def hits(items: Int[np.ndarray, "U K"], targets: Int[np.ndarray, "U M"]) -> Bool[np.ndarray, "U K"]:
    """True where a listed item is a target; an item listed twice hits once.

    >>> hits(np.array([[7, 3, 7]]), np.array([[7, -1]])).tolist()
    [[True, False, False]]
    """
    return first_occurrences(items) & (items[:, :, None] == targets[:, None, :]).any(axis=-1)


def recall_at_k(
    items: Int[np.ndarray, "U K"], targets: Int[np.ndarray, "U M"], *, k: int
) -> Float[np.ndarray, " U"]:
    r"""Share of the targets among the first k items: $|top_k \cap T| / \min(k, |T|)$.

    With k >= |T| (Recall@10 of five targets) the denominator is |T|; with fewer places than
    targets it is k, so that a perfect list always scores 1.

    Args:
      items: recommended items, best first, padded with -1.
      targets: the items of the next session in any order, padded with -1; repeats count once.
      k: how many of the first places count; at most K.

    Returns:
      One value per user in 0 to 1; NaN for a user without any target.

    Raises:
      ConfigError: `k` is below 1 or above the length of the lists.

    >>> items, targets = np.array([[3, 7, 1, 0]]), np.array([[1, 3, 5]])
    >>> recall_at_k(items, targets, k=4).tolist() == [2 / 3]
    True
    >>> recall_at_k(items, targets, k=1).tolist()
    [1.0]
    """
    num_hits_U = hits(_first(items, k), targets).sum(axis=1)
    return _ratio(num_hits_U, np.minimum(k, first_occurrences(targets).sum(axis=1)))


def ndcg_at_k(
    items: Int[np.ndarray, "U K"], targets: Int[np.ndarray, "U M"], *, k: int
) -> Float[np.ndarray, " U"]:
    r"""Discounted gain over the best possible one, every target with gain 1.

    $\sum_{j \le k} hit_j / \log_2(j + 1)$ over the same sum of a list that starts with
    $\min(k, |T|)$ hits (positions j from 1).

    Args:
      items: recommended items, best first, padded with -1.
      targets: the items of the next session in any order, padded with -1; repeats count once.
      k: how many of the first places count; at most K.

    Returns:
      One value per user in 0 to 1; NaN for a user without any target.

    Raises:
      ConfigError: `k` is below 1 or above the length of the lists.

    >>> from math import log2
    >>> value = ndcg_at_k(np.array([[7, 3, 1]]), np.array([[1, 3]]), k=3).item()
    >>> bool(np.isclose(value, (1 / log2(3) + 1 / log2(4)) / (1 + 1 / log2(3))))
    True
    """
    discount_K = 1.0 / np.log2(np.arange(k) + 2.0)
    gain_U = (hits(_first(items, k), targets) * discount_K).sum(axis=1)
    best_gain_K = np.concatenate([[0.0], np.cumsum(discount_K)])
    return _ratio(gain_U, best_gain_K[np.minimum(k, first_occurrences(targets).sum(axis=1))])


def hit_at_k(
    items: Int[np.ndarray, "U K"], targets: Int[np.ndarray, "U M"], *, k: int
) -> Float[np.ndarray, " U"]:
    """1 where any of the first k items is a target, else 0; NaN for a user without any target.

    Args:
      items: recommended items, best first, padded with -1.
      targets: the items of the next session in any order, padded with -1.
      k: how many of the first places count; at most K.

    Returns:
      One value per user.

    Raises:
      ConfigError: `k` is below 1 or above the length of the lists.

    >>> hit_at_k(np.array([[3, 7], [3, 7]]), np.array([[7], [5]]), k=2).tolist()
    [1.0, 0.0]
    """
    num_hits_U = hits(_first(items, k), targets).sum(axis=1)
    return _ratio(num_hits_U > 0, first_occurrences(targets).sum(axis=1) > 0)


def coverage(items: Int[np.ndarray, "U K"], *, num_items: int) -> float:
    """Share of the catalogue that at least one user is shown.

    >>> coverage(np.array([[0, 2], [2, -1]]), num_items=8) == 2 / 8
    True
    """
    return len(np.unique(items[items != PADDING])) / num_items


def category_diversity(
    items: Int[np.ndarray, "U K"], categories: Bool[np.ndarray, "I C"]
) -> Float[np.ndarray, " U"]:
    r"""Mean Jaccard distance of the category sets over the pairs of a list.

    $1 - |A \cap B| / |A \cup B|$; a pair with an item of no known category is left out.

    Args:
      items: recommended items, padded with -1.
      categories: True where an item belongs to a category.

    Returns:
      One value per user in 0 to 1; NaN where no pair is left.

    >>> categories = np.array([[True, False], [True, True], [False, True]])
    >>> value = category_diversity(np.array([[0, 1, 2]]), categories).item()
    >>> bool(np.isclose(value, (1 / 2 + 1 + 1 / 2) / 3))
    True
    """
    # int32 products: a boolean matmul would say "any" where a count is needed.
    sets_UKC = categories[items].astype(np.int32) * (items != PADDING)[:, :, None]
    size_UK = sets_UKC.sum(axis=-1)
    common_UKK = np.einsum("uic,ujc->uij", sets_UKC, sets_UKC)
    union_UKK = size_UK[:, :, None] + size_UK[:, None, :] - common_UKK
    is_pair_UKK = np.triu((size_UK[:, :, None] > 0) & (size_UK[:, None, :] > 0), 1)
    distance_UKK = 1.0 - common_UKK / np.maximum(union_UKK, 1)
    return _ratio((distance_UKK * is_pair_UKK).sum(axis=(1, 2)), is_pair_UKK.sum(axis=(1, 2)))


def popularity_strata(
    item_counts: Int[np.ndarray, " I"], *, num_strata: int = 3
) -> Int[np.ndarray, " I"]:
    """Cuts the catalogue into strata that carry equal shares of the training interactions.

    Items go from most to least popular; stratum 0 (the head) is the shortest prefix that carries
    at least 1 / num_strata of all interactions, and so on. Items never seen are in the last one.

    Args:
      item_counts: training interactions per item.
      num_strata: number of strata.

    Returns:
      The stratum of each item, 0 (head) to num_strata - 1 (tail).

    >>> popularity_strata(np.array([1, 6, 2, 3, 0])).tolist()
    [2, 0, 2, 1, 2]
    """
    order_I = np.argsort(-item_counts, kind="stable")
    before_I = np.cumsum(item_counts[order_I]) - item_counts[order_I]
    stratum_I = np.minimum(before_I * num_strata // max(int(item_counts.sum()), 1), num_strata - 1)
    stratum_I = np.where(item_counts[order_I] > 0, stratum_I, num_strata - 1)
    result_I = np.empty(len(item_counts), np.int32)
    result_I[order_I] = stratum_I
    return result_I


def recall_by_stratum(
    items: Int[np.ndarray, "U K"],
    targets: Int[np.ndarray, "U M"],
    strata: Int[np.ndarray, " I"],
    *,
    k: int,
    num_strata: int = 3,
) -> Float[np.ndarray, " S"]:
    """Share of all users' targets of each stratum that stand among the first k items (pooled).

    >>> items, targets = np.array([[0, 1], [0, 2]]), np.array([[0, 2], [0, 1]])
    >>> recall_by_stratum(items, targets, np.array([0, 1, 1]), k=2, num_strata=2).tolist()
    [1.0, 0.0]
    """
    found_UM = hits(targets, _first(items, k))
    counted_UM = first_occurrences(targets)
    num_found_S = np.bincount(strata[targets[found_UM]], minlength=num_strata)
    return _ratio(num_found_S, np.bincount(strata[targets[counted_UM]], minlength=num_strata))


def stratum_shares(
    items: Int[np.ndarray, "U K"], strata: Int[np.ndarray, " I"], *, num_strata: int = 3
) -> Float[np.ndarray, " S"]:
    """Share of the recommended places that each stratum fills.

    >>> stratum_shares(np.array([[0, 1], [0, -1]]), np.array([0, 2])).tolist() == [2/3, 0, 1/3]
    True
    """
    listed = items[items != PADDING]
    return np.bincount(strata[listed], minlength=num_strata) / max(len(listed), 1)


def legal_share(codes: Int[np.ndarray, "N L"], catalogue: Int[np.ndarray, "I L"]) -> float:
    """Share of code tuples that name a catalogue item (legality without the constraint).

    >>> legal_share(np.array([[0, 1], [1, 1]]), np.array([[0, 1], [2, 0]]))
    0.5
    """
    known = {tuple(row) for row in catalogue.tolist()}
    return sum(tuple(row) in known for row in codes.tolist()) / max(len(codes), 1)


def prediction_entropy(logits: Float[Array, "*batch V"]) -> Float[Array, "*batch"]:
    r"""Entropy in nats of the predicted code distribution (Deng et al., 2025, Fig. 5).

    $-\sum_v p_v \log p_v$ with $p = softmax(logits)$, in float32; uniform over V codes: log V.

    Args:
      logits: scores of one level's codes; -inf marks a code that cannot be.

    Returns:
      One value per distribution, 0 to log V.

    >>> bool(jnp.isclose(prediction_entropy(jnp.zeros(8192)), jnp.log(8192)))
    True
    """
    probs = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    return jax.scipy.special.entr(probs).sum(axis=-1)


def bootstrap_interval(
    values: Float[np.ndarray, " U"],
    *,
    key: Key[Array, ""],
    num_samples: int = 2000,
    confidence: float = 0.95,
) -> Interval:
    """Mean over users with the percentile interval of resampled users.

    Args:
      values: one value per user; a user with NaN is left out.
      key: draws the resamples; the same key gives the same interval.
      num_samples: number of resamples.
      confidence: probability mass of the interval.

    Returns:
      The mean and the two quantiles of the resampled means.

    >>> bootstrap_interval(np.full(7, 0.5), key=jax.random.key(0), num_samples=11)
    Interval(mean=0.5, low=0.5, high=0.5)
    """
    return bootstrap_intervals(
        values[:, None], key=key, num_samples=num_samples, confidence=confidence
    )[0]


def bootstrap_intervals(
    values: Float[np.ndarray, "U Q"],
    *,
    key: Key[Array, ""],
    num_samples: int = 2000,
    confidence: float = 0.95,
) -> tuple[Interval, ...]:
    """`bootstrap_interval` of many values per user at once, all on the same resamples.

    Args:
      values: Q values per user; NaN leaves the user out of that value.
      key: draws the resamples.
      num_samples: number of resamples.
      confidence: probability mass of the intervals.

    Returns:
      Q intervals.

    >>> intervals = bootstrap_intervals(
    ...     np.array([[1.0, np.nan], [1.0, 3.0]]), key=jax.random.key(0), num_samples=2)
    >>> [interval.mean for interval in intervals]
    [1.0, 3.0]
    """
    num_users = len(values)
    known_UQ = ~np.isnan(values)
    filled_UQ = np.where(known_UQ, values, 0.0)
    rows_per_draw = max(1, DRAWN_AT_ONCE // num_users)
    means = []
    for draw, start in enumerate(range(0, num_samples, rows_per_draw)):
        num_rows = min(rows_per_draw, num_samples - start)
        draw_key = jax.random.fold_in(key, draw)
        drawn_RU = np.asarray(jax.random.randint(draw_key, (num_rows, num_users), 0, num_users))
        places_RU = drawn_RU + num_users * np.arange(num_rows)[:, None]
        counts = np.bincount(places_RU.ravel(), minlength=num_rows * num_users)
        weight_RU = counts.reshape(num_rows, num_users).astype(np.float64)
        means.append(_ratio(_products(weight_RU, filled_UQ), _products(weight_RU, known_UQ)))
    edges = [(1 - confidence) / 2, (1 + confidence) / 2]
    low_Q, high_Q = np.nanquantile(np.concatenate(means), edges, axis=0)
    mean_Q = _ratio(filled_UQ.sum(axis=0), known_UQ.sum(axis=0))
    return tuple(
        Interval(mean=float(mean), low=float(low), high=float(high))
        for mean, low, high in zip(mean_Q, low_Q, high_Q, strict=True)
    )


def paired_bootstrap(
    values: Float[np.ndarray, " U"],
    baseline: Float[np.ndarray, " U"],
    *,
    key: Key[Array, ""],
    num_samples: int = 2000,
    confidence: float = 0.95,
) -> Interval:
    """Interval of the mean difference when both methods are read on the same resampled users.

    Args:
      values: one value per user.
      baseline: the other method's value for the same users.
      key: draws the resamples.
      num_samples: number of resamples.
      confidence: probability mass of the interval.

    Returns:
      Interval of mean(values - baseline); above zero where `values` is better beyond chance.

    >>> difference = paired_bootstrap(
    ...     np.array([0.75, 0.5]), np.array([0.5, 0.25]), key=jax.random.key(0), num_samples=5)
    >>> difference.low == difference.high == 1 / 4
    True
    """
    return bootstrap_interval(
        values - baseline, key=key, num_samples=num_samples, confidence=confidence
    )


def _first(items: np.ndarray, k: int) -> np.ndarray:
    """First k places of every list, or an error where the lists are shorter."""
    if not 1 <= k <= items.shape[1]:
        raise ConfigError(
            f"k = {k} needs lists of at least {k} items and k >= 1, but the lists hold "
            f"{items.shape[1]}; recommend more items per user or lower k"
        )
    return items[:, :k]


def _products(weight_RU: np.ndarray, values_UQ: np.ndarray) -> np.ndarray:
    """Their matrix product, column by column.

    The last bits of one product of all depend, on some CPUs, on where in the matrix a column is:
    a method's interval would depend on which others stand beside it.
    """
    columns_QU = np.ascontiguousarray(values_UQ.T, np.float64)
    return np.stack([weight_RU @ column_U for column_U in columns_QU], axis=1)


def _ratio(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Total over count, NaN where the count is zero."""
    return np.where(count > 0, total / np.maximum(count, np.finfo(np.float64).tiny), np.nan)
