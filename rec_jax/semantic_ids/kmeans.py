"""Plain K-means (Lloyd's algorithm), and the nearest centroid of a point.

Distances are made for a few rows at a time, so memory stays at rows x clusters; sums per cluster
are products with one-hot matrices, because scattered sums differ from run to run on a GPU.

Dimension key: I points, D dimensions, K clusters, C rows of a chunk, N chunks.
"""

import dataclasses
import enum
import functools

import jax
import jax.numpy as jnp

from core_jax.arrays import Array, Bool, Float, Int, Key, PyTree
from core_jax.errors import ConfigError

CHUNK_ROWS = 1024
"""C: rows whose distances to all centroids are held at once; a block has C x K float32."""

EXACT = jax.lax.Precision.HIGHEST
"""Products in full float32: TF32 and bfloat16 would swap near neighbours."""


class Seeding(enum.Enum):
    """Where plain K-means starts."""

    PLUS_PLUS = "plus_plus"
    RANDOM = "random"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class KMeansResult:
    """A partition of points and its centroids."""

    centroids: PyTree
    """Float32 [K, D]."""
    assignment: PyTree
    """Int32 [I]: cluster of every point."""
    iterations: PyTree
    """Int32 []: passes over all points that were made."""
    objective: PyTree
    """Float32 []: mean squared distance of a point to the centroid of its cluster."""


def kmeans(
    points: Float[Array, "I D"],
    num_clusters: int,
    *,
    iterations: int,
    key: Key[Array, ""],
    seeding: Seeding = Seeding.PLUS_PLUS,
) -> KMeansResult:
    """Lloyd's algorithm: points to their nearest centroid, centroids to the mean of their points.

    Stops when no point changes its cluster, or after `iterations` passes. A cluster that is left
    without points restarts at the point that lies farthest from its centroid (several such
    clusters: at the farthest, the second farthest, and so on). The assignment returned is always
    the one to the nearest of the returned centroids, ties to the smaller cluster number.

    A pass costs 4 I K D operations and C K + I + K D floats beside the points. Seeding by
    k-means++ (Arthur and Vassilvitskii, 2007) reads all points K times.

    Args:
      points: what to partition, float32.
      num_clusters: K, at most I.
      iterations: largest number of passes.
      key: seeds the first centroids.
      seeding: how the first centroids are drawn from the points.

    Returns:
      Centroids, assignment, passes made, and the mean squared distance.

    Raises:
      ConfigError: more clusters than points, or fewer than one cluster or pass.
    """
    check_sizes(points.shape[0], num_clusters, iterations)
    return _lloyd(points, jnp.asarray(iterations), key, num_clusters=num_clusters, seeding=seeding)


def nearest_centroids(
    points: Float[Array, "I D"], centroids: Float[Array, "K D"]
) -> Int[Array, "I"]:
    """Index of the nearest centroid: argmin_k |x - c_k|^2, ties to the smaller index.

    This is how the paper defines a code (Deng et al., 2025, arXiv:2502.18965, Section 3.1).

    Args:
      points: float32.
      centroids: float32.

    Returns:
      Int32 cluster numbers.
    """
    return _assign(points, centroids).assignment_I


def mean_squared_distance(
    points: Float[Array, "I D"], centroids: Float[Array, "K D"], assignment: Int[Array, "I"]
) -> Float[Array, ""]:
    """Mean over points of |x_i - c_{a_i}|^2.

    Args:
      points: x, float32.
      centroids: c, float32.
      assignment: a, cluster of every point.

    Returns:
      A float32 scalar.

    >>> points = jnp.array([[0.0, 0.0], [3.0, 4.0]])
    >>> float(mean_squared_distance(points, jnp.zeros((1, 2)), jnp.zeros(2, int)))
    12.5
    """
    return jnp.mean(jnp.sum((points - centroids[assignment]) ** 2, axis=-1))


def check_sizes(num_points: int, num_clusters: int, iterations: int) -> None:
    """Raises ConfigError unless 1 <= num_clusters <= num_points and iterations >= 1."""
    if not 1 <= num_clusters <= num_points:
        raise ConfigError(
            f"num_clusters is {num_clusters}, but there are {num_points} points; "
            f"it must lie between 1 and {num_points}"
        )
    if iterations < 1:
        raise ConfigError(f"iterations is {iterations}; it must be at least 1")


def random_points(
    points: Float[Array, "I D"], num_clusters: int, key: Key[Array, ""]
) -> Float[Array, "K D"]:
    """First centroids "by random selection" (Algorithm 1): distinct rows, uniformly drawn."""
    return points[jax.random.permutation(key, points.shape[0])[:num_clusters]]


@dataclasses.dataclass(frozen=True)
class _Assigned:
    """One pass: nearest clusters, squared distances to them, and sums per cluster."""

    assignment_I: Array
    distance_I: Array
    sums_KD: Array
    counts_K: Array


def _assign(points_ID: Array, centroids_KD: Array) -> _Assigned:
    """Nearest centroid of every point, a chunk of rows at a time."""
    return _Assigned(*_assign_chunks(points_ID, centroids_KD))


@jax.jit
def _assign_chunks(points_ID: Array, centroids_KD: Array) -> tuple[Array, Array, Array, Array]:
    """`_assign` as bare arrays. Rows of padding belong to no cluster."""
    num_points, num_dims = points_ID.shape
    num_clusters = centroids_KD.shape[0]
    num_chunks = -(-num_points // CHUNK_ROWS)
    padding = ((0, num_chunks * CHUNK_ROWS - num_points), (0, 0))
    points_NCD = jnp.pad(points_ID, padding).reshape(num_chunks, CHUNK_ROWS, num_dims)
    is_row_NC = (jnp.arange(num_chunks * CHUNK_ROWS) < num_points).reshape(num_chunks, CHUNK_ROWS)
    half_norm_K = 0.5 * jnp.sum(centroids_KD**2, axis=-1)

    def one_chunk(totals: tuple[Array, Array], chunk: tuple[Array, Array]) -> tuple:
        points_CD, is_row_C = chunk
        product_CK = jnp.matmul(points_CD, centroids_KD.T, precision=EXACT)
        nearest_C = jnp.argmin(half_norm_K[None] - product_CK, axis=-1).astype(jnp.int32)
        distance_C = jnp.sum((points_CD - centroids_KD[nearest_C]) ** 2, axis=-1)
        member_C = jnp.where(is_row_C, nearest_C, num_clusters)
        member_CK = jax.nn.one_hot(member_C, num_clusters, dtype=points_CD.dtype)
        sums_KD = totals[0] + jnp.matmul(member_CK.T, points_CD, precision=EXACT)
        return (sums_KD, totals[1] + member_CK.sum(axis=0)), (nearest_C, distance_C)

    start = (jnp.zeros_like(centroids_KD), jnp.zeros_like(half_norm_K))
    totals, (nearest_NC, distance_NC) = jax.lax.scan(one_chunk, start, (points_NCD, is_row_NC))
    return nearest_NC.reshape(-1)[:num_points], distance_NC.reshape(-1)[:num_points], *totals


@functools.partial(jax.jit, static_argnames=("num_clusters", "seeding"))
def _lloyd(
    points_ID: Array, iterations: Array, key: Array, *, num_clusters: int, seeding: Seeding
) -> KMeansResult:
    """The loop of `kmeans`."""
    draw = _plus_plus if seeding is Seeding.PLUS_PLUS else random_points
    none_yet_I = jnp.full(points_ID.shape[0], -1, jnp.int32)

    def unsettled(state: tuple[Array, Array, Array, Array]) -> Bool[Array, ""]:
        return (state[0] < iterations) & state[1]

    def one_pass(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        iteration, _, centroids_KD, before_I = state
        assigned = _assign(points_ID, centroids_KD)
        is_empty_K = assigned.counts_K == 0
        _, farthest_K = jax.lax.top_k(assigned.distance_I, num_clusters)
        restart_KD = points_ID[farthest_K[jnp.cumsum(is_empty_K) - 1]]
        mean_KD = assigned.sums_KD / jnp.maximum(assigned.counts_K, 1.0)[:, None]
        centroids_KD = jnp.where(is_empty_K[:, None], restart_KD, mean_KD)
        moved = jnp.any(assigned.assignment_I != before_I) | jnp.any(is_empty_K)
        return iteration + 1, moved, centroids_KD, assigned.assignment_I

    first_KD = draw(points_ID, num_clusters, key)
    start = (jnp.zeros((), jnp.int32), jnp.ones((), bool), first_KD, none_yet_I)
    passes, _, centroids_KD, _ = jax.lax.while_loop(unsettled, one_pass, start)
    assigned = _assign(points_ID, centroids_KD)
    return KMeansResult(
        centroids=centroids_KD,
        assignment=assigned.assignment_I,
        iterations=passes,
        objective=jnp.mean(assigned.distance_I),
    )


def _plus_plus(points_ID: Array, num_clusters: int, key: Array) -> Array:
    """k-means++: each next centroid is a point, drawn by its squared distance to the earlier."""
    first_key, rest_key = jax.random.split(key)
    first_D = points_ID[jax.random.randint(first_key, (), 0, points_ID.shape[0])]

    def squared_distance(centroid_D: Array) -> Array:
        return jnp.sum((points_ID - centroid_D[None]) ** 2, axis=-1)

    def add_one(k: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        centroids_KD, distance_I = state
        chosen = jax.random.categorical(jax.random.fold_in(rest_key, k), jnp.log(distance_I))
        centroid_D = points_ID[chosen]
        distance_I = jnp.minimum(distance_I, squared_distance(centroid_D))
        return centroids_KD.at[k].set(centroid_D), distance_I

    first_KD = jnp.zeros((num_clusters, points_ID.shape[1]), points_ID.dtype).at[0].set(first_D)
    return jax.lax.fori_loop(1, num_clusters, add_one, (first_KD, squared_distance(first_D)))[0]
