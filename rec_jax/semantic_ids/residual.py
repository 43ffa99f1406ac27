"""Residual K-means: an embedding becomes L codes, coarse to fine.

Level l clusters what the levels before left over (Deng et al., 2025, arXiv:2502.18965,
Section 3.1): r^1 = e, s^l = code of r^l, r^{l+1} = r^l - c^l_{s^l}.

The paper builds codebooks with balanced clusters (Algorithm 1) but defines a code as the *nearest*
centroid, under which the clusters are no longer of equal size. Both are here:
`Assignment.BALANCED` gives an item of the catalogue the cluster that took it, so that codes are
used equally often; `Assignment.NEAREST` is the paper's formula, and the only one for new items
(`encode_nearest`). For plain K-means both are the same.

Dimension key: I items, D embedding dimensions, L code levels, K codes of a level.
"""

import dataclasses
import enum

import jax
import jax.numpy as jnp
import numpy as np

from core_jax.arrays import Array, Float, Int, Key
from core_jax.config import to_dict
from core_jax.errors import ConfigError, DataError
from rec_jax.semantic_ids.balanced_kmeans import ClusterOrder, balanced_kmeans
from rec_jax.semantic_ids.codebook import Codebook
from rec_jax.semantic_ids.kmeans import KMeansResult, Seeding, kmeans, nearest_centroids


class Assignment(enum.Enum):
    """Which code an item of the catalogue gets from a balanced level."""

    BALANCED = "balanced"
    NEAREST = "nearest"


class CollisionPolicy(enum.Enum):
    """What happens to items whose codes agree on all levels."""

    EXTRA_LEVEL = "extra_level"
    SHARE = "share"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SemanticIdConfig:
    """How items become semantic IDs."""

    level_sizes: tuple[int, ...]
    """Codes per level, coarse to fine (8192 x 3 in the paper), without the extra level."""
    balance: tuple[bool, ...] = (True,)
    """Per level: balanced (Algorithm 1) or plain K-means; a single entry holds for all levels."""
    iterations: int = 100
    """Largest number of passes over all items, per level."""
    order: ClusterOrder = ClusterOrder.FIXED
    """Balanced levels: the order in which clusters pick their items."""
    seeding: Seeding = Seeding.PLUS_PLUS
    """Plain levels: how the first centroids are drawn; balanced ones start at random items."""
    assignment: Assignment = Assignment.BALANCED
    """Codes of the catalogue: the balanced clusters, or the nearest centroids."""
    collision: CollisionPolicy = CollisionPolicy.EXTRA_LEVEL
    """Items with equal codes: told apart by an extra level (`build_item_index` says in which
    order), or left to share an ID."""

    def __post_init__(self) -> None:
        """Checks every field, and that `balance` fits `level_sizes`."""
        if not self.level_sizes or min(self.level_sizes) < 2:
            raise ConfigError(
                f"semantic_ids.level_sizes is {self.level_sizes}; "
                "it needs at least one level, of at least 2 codes each"
            )
        if len(self.balance) not in (1, len(self.level_sizes)):
            raise ConfigError(
                f"semantic_ids.balance has {len(self.balance)} entries for "
                f"{len(self.level_sizes)} levels; give one per level, or a single one for all"
            )
        if self.iterations < 1:
            raise ConfigError(
                f"semantic_ids.iterations is {self.iterations}; it must be at least 1"
            )

    @property
    def balance_per_level(self) -> tuple[bool, ...]:
        """`balance` with one entry per level."""
        repeats = len(self.level_sizes) if len(self.balance) == 1 else 1
        return self.balance * repeats


def fit_residual(
    embeddings: Float[Array | np.ndarray, "I D"],
    config: SemanticIdConfig,
    *,
    key: Key[Array, ""],
) -> tuple[Codebook, Int[np.ndarray, "I L"]]:
    """Builds the codebook of a catalogue, and its codes.

    Args:
      embeddings: one row per item; finite.
      config: levels and clustering.
      key: seeds the clustering of every level.

    Returns:
      The codebook and the catalogue's codes under `config.assignment`, int32; items may share
      codes (`build_item_index` resolves that).

    Raises:
      ConfigError: a level has more codes than there are distinct rows to cluster; the message
        proposes a size.
      DataError: an embedding is not finite.
    """
    _check_finite(embeddings)
    residual_ID = jnp.asarray(embeddings, jnp.float32)
    level_keys = jax.random.split(key, len(config.level_sizes))
    centroids, codes = [], []
    for level, level_key in enumerate(level_keys):
        _check_level_size(np.asarray(residual_ID), config.level_sizes, level)
        result = _cluster(residual_ID, config, level, level_key)
        code_I = result.assignment
        if config.assignment is Assignment.NEAREST:
            code_I = nearest_centroids(residual_ID, result.centroids)
        residual_ID = residual_ID - result.centroids[code_I]
        centroids.append(np.asarray(result.centroids))
        codes.append(np.asarray(code_I))
    return Codebook(centroids=tuple(centroids), settings=to_dict(config)), np.stack(codes, axis=-1)


def encode_nearest(
    codebook: Codebook, embeddings: Float[Array | np.ndarray, "I D"]
) -> Int[np.ndarray, "I L"]:
    """Codes by nearest centroid, level by level: s^l = argmin_k |r^l - c^l_k|^2 (Section 3.1).

    Args:
      codebook: the centroids.
      embeddings: old or new items, made in the same way as those the codebook was built from.

    Returns:
      Int32 codes.

    Raises:
      DataError: the embeddings have another width than the codebook, or are not finite.
    """
    num_dims = codebook.centroids[0].shape[1]
    if embeddings.shape[1] != num_dims:
        raise DataError(
            f"the embeddings have {embeddings.shape[1]} dimensions, the codebook {num_dims}; "
            "make them as the catalogue's were made"
        )
    _check_finite(embeddings)
    residual_ID = jnp.asarray(embeddings, jnp.float32)
    codes = []
    for centroids in codebook.centroids:
        centroids_KD = jnp.asarray(centroids)
        code_I = nearest_centroids(residual_ID, centroids_KD)
        residual_ID = residual_ID - centroids_KD[code_I]
        codes.append(np.asarray(code_I))
    return np.stack(codes, axis=-1)


def propose_level_size(num_distinct: int, num_levels: int) -> int:
    """The smallest K, at least 2, with K ** num_levels >= num_distinct.

    With fewer codes per level, some items must share an ID; three levels give the cube root.

    >>> propose_level_size(1682, 2), propose_level_size(1000, 3), propose_level_size(1001, 3)
    (42, 10, 11)
    """
    size = max(2, int(num_distinct ** (1 / num_levels)) - 1)
    while size**num_levels < num_distinct:
        size += 1
    return size


def _cluster(residual_ID: Array, config: SemanticIdConfig, level: int, key: Array) -> KMeansResult:
    """One level, balanced or plain."""
    size, iterations = config.level_sizes[level], config.iterations
    if config.balance_per_level[level]:
        return balanced_kmeans(
            residual_ID, size, iterations=iterations, key=key, order=config.order
        )
    return kmeans(residual_ID, size, iterations=iterations, key=key, seeding=config.seeding)


def _check_finite(embeddings: Array | np.ndarray) -> None:
    """Raises DataError that counts the rows with a NaN or an infinity."""
    is_bad_I = ~np.isfinite(np.asarray(embeddings)).all(axis=-1)
    if is_bad_I.any():
        raise DataError(
            f"{is_bad_I.sum()} of {is_bad_I.size} item embeddings hold NaN or infinity, the first "
            f"in row {is_bad_I.argmax()}; drop those items or replace their embeddings"
        )


def _check_level_size(residual_ID: np.ndarray, level_sizes: tuple[int, ...], level: int) -> None:
    """Raises ConfigError where a level has more codes than there are distinct rows."""
    size, num_levels = level_sizes[level], len(level_sizes)
    distinct = np.unique(residual_ID, axis=0).shape[0]
    if size <= distinct:
        return
    proposed = propose_level_size(distinct, num_levels)
    rows = "embeddings" if level == 0 else f"residuals after {level} level(s)"
    raise ConfigError(
        f"semantic_ids.level_sizes[{level}] is {size}, but the {residual_ID.shape[0]} items have "
        f"only {distinct} distinct {rows}; set it to at most {distinct}. For {num_levels} "
        f"level(s), {proposed} codes each are proposed: the fewest whose {num_levels}-fold "
        f"combinations ({proposed}**{num_levels} = {proposed**num_levels}) cover them"
    )
