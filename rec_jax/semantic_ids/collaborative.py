"""Item embeddings from who consumed what: a factorised item-item similarity.

Dimension key: I items, P positive events, D dimensions, E pairs of items, F text features, S items
to learn from, N items to predict.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl

from core_jax.arrays import Array, Float, Int, Key, PyTree
from core_jax.errors import ConfigError, DataError
from rec_jax.semantic_ids.eigenpairs import leading_eigenpairs, multiply, sparse_rows

PAIRS_AT_ONCE = 1 << 24
"""Pairs that are counted together before they are merged (400 MiB)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollaborativeConfig:
    """How co-occurrence in histories becomes vectors."""

    dim: int = 64
    """Largest number of dimensions."""
    window: int = 20
    """Two items co-occur where a user has them at most this many positives apart."""
    shrinkage: float = 20.0
    """Added to the similarity's denominator, in events; damps pairs of rare items."""
    ridge: float = 1.0
    """Penalty of the regression from text that places items without training events."""

    def __post_init__(self) -> None:
        """Checks every field on its own."""
        for name in ("dim", "window"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"collaborative.{name} is {getattr(self, name)}; it must be at least 1"
                )
        if self.shrinkage < 0:
            raise ConfigError(
                f"collaborative.shrinkage is {self.shrinkage}; it must not be negative"
            )
        if self.ridge <= 0:
            raise ConfigError(f"collaborative.ridge is {self.ridge}; it must be positive")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class RidgeRegression:
    """Collaborative factors as a linear function of text features."""

    weights: PyTree
    """Float32 [F, D]."""
    feature_mean: PyTree
    """Float32 [F]."""
    factor_mean: PyTree
    """Float32 [D]: the prediction for mean features."""


def collaborative_factors(
    config: CollaborativeConfig,
    users: Int[np.ndarray, "P"],
    positives: Int[np.ndarray, "P"],
    num_items: int,
    *,
    key: Key[Array, ""],
) -> Float[np.ndarray, "I D"]:
    r"""Factors whose inner products approximate a shrunken cosine similarity of items.

    .. math:: M_{ij} = c_{ij} / (\sqrt{n_i n_j} + \lambda) \approx e_i \cdot e_j

    where c_ij counts how often a user has i and j at most `window` positives apart, n_i the
    events of item i, and lambda is `shrinkage`. With M's leading eigenpairs, e = U sqrt(S)
    (negative eigenvalues count as 0). Pairs of an item with itself are left out.

    Hand in the *training* part of the log only.

    Args:
      config: dimensions, window and shrinkage.
      users: user of every event; a user's events stand together, in order of time.
      positives: item of every event.
      num_items: I.
      key: seeds the eigenvalue iteration; the result depends on it by rounding only.

    Returns:
      Float32, D <= `config.dim`; a row of zeros for an item that never co-occurs.

    Raises:
      DataError: no two items co-occur, or the events are malformed.
    """
    _check_events(users, positives, num_items)
    pairs = _count_pairs(users, positives, config.window)
    if pairs.is_empty():
        raise DataError(
            f"no user has two different items among the {positives.size} training positives; "
            "collaborative embeddings need such users, choose text embeddings instead"
        )
    events_I = np.maximum(np.bincount(positives, minlength=num_items), 1).astype(np.float64)
    left_E, right_E = pairs["left"].to_numpy(), pairs["right"].to_numpy()
    scale_E = np.sqrt(events_I[left_E] * events_I[right_E]) + config.shrinkage
    similarity_E = (pairs["count"].to_numpy() / scale_E).astype(np.float32)
    matrix = sparse_rows(
        np.concatenate([left_E, right_E]),
        np.concatenate([right_E, left_E]),
        np.concatenate([similarity_E, similarity_E]),
        num_items,
    )
    found = leading_eigenpairs(multiply, matrix, num_items, min(config.dim, num_items), key=key)
    return np.asarray(found.vectors * jnp.sqrt(jnp.maximum(found.values, 0.0))[None])


def fit_ridge(
    config: CollaborativeConfig,
    factors: Float[np.ndarray, "S D"],
    features: Float[np.ndarray, "S F"],
) -> RidgeRegression:
    """Learns from items that have both what a text says about collaborative factors.

    With features X and factors Y, both centred: W = (X^T X + ridge I)^-1 X^T Y.

    Args:
      config: the ridge.
      factors: Y.
      features: X of the same items; at least one.

    Returns:
      The regression for `predict_factors`, NumPy arrays.
    """
    ridge = jnp.asarray(config.ridge, jnp.float32)
    return jax.device_get(_ridge(jnp.asarray(features), jnp.asarray(factors), ridge))


def predict_factors(
    regression: RidgeRegression, features: Float[np.ndarray, "N F"]
) -> Float[np.ndarray, "N D"]:
    """Collaborative factors of items without training events, from their text features, float32."""
    centred_NF = jnp.asarray(features) - regression.feature_mean[None]
    product_ND = jnp.matmul(centred_NF, jnp.asarray(regression.weights), precision="highest")
    return np.asarray(product_ND + regression.factor_mean[None])


@jax.jit
def _ridge(known_SF: Array, factors_SD: Array, ridge: Array) -> RidgeRegression:
    """Ridge regression with an unpenalised intercept."""
    mean_F, mean_D = known_SF.mean(axis=0), factors_SD.mean(axis=0)
    centred_SF = known_SF - mean_F[None]
    gram_FF = jnp.matmul(centred_SF.T, centred_SF, precision="highest")
    gram_FF = gram_FF + ridge * jnp.eye(gram_FF.shape[0])
    target_FD = jnp.matmul(centred_SF.T, factors_SD - mean_D[None], precision="highest")
    weights_FD = jax.scipy.linalg.solve(gram_FF, target_FD, assume_a="pos")
    return RidgeRegression(weights=weights_FD, feature_mean=mean_F, factor_mean=mean_D)


def _count_pairs(users: np.ndarray, positives: np.ndarray, window: int) -> pl.DataFrame:
    """How often two items co-occur: left < right, count, sorted."""
    total, waiting, num_waiting = None, [], 0
    for distance in range(1, window + 1):
        is_pair = users[distance:] == users[:-distance]
        is_pair &= positives[distance:] != positives[:-distance]
        first, second = positives[:-distance][is_pair], positives[distance:][is_pair]
        waiting.append(
            pl.DataFrame({"left": np.minimum(first, second), "right": np.maximum(first, second)})
        )
        num_waiting += first.size
        if num_waiting >= PAIRS_AT_ONCE or distance == window:
            counts = pl.concat(waiting).group_by("left", "right").agg(count=pl.len())
            merged = counts if total is None else pl.concat([total, counts])
            total = merged.group_by("left", "right").agg(pl.col("count").sum())
            waiting, num_waiting = [], 0
    assert total is not None
    return total.sort("left", "right")


def _check_events(users: np.ndarray, positives: np.ndarray, num_items: int) -> None:
    """Raises DataError unless items are known and the events of every user stand together."""
    is_unknown = (positives < 0) | (positives >= num_items)
    if is_unknown.any():
        raise DataError(
            f"{is_unknown.sum()} of {positives.size} positives name items outside "
            f"0..{num_items - 1}, the first {positives[is_unknown.argmax()]}; "
            "use the item table that the log was indexed with"
        )
    starts = np.flatnonzero(np.diff(users, prepend=users[:1] - 1))
    if np.unique(users[starts]).size != starts.size:
        raise DataError("the events of a user do not stand together; sort them by user and time")
