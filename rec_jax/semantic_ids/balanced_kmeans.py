"""Balanced K-means: every cluster holds the same number of points.

Algorithm 1 of Deng et al., 2025, arXiv:2502.18965. What it leaves open, and the choice made here:

- |V| not divisible by K: clusters 0 .. (|V| mod K) - 1 hold one point more than the others.
- "U[0 : w-1]" is read inclusively: a cluster takes exactly w points.
- The greedy order favours early clusters, late ones get what is left. `ClusterOrder.FIXED` is the
  paper's order 1 .. K in every pass; `ClusterOrder.RANDOM` draws a new order for every pass, which
  spreads the leftovers over the clusters but rarely settles, so it usually makes all passes.
- "Until assignment convergence": until a pass leaves every point where it was, or until the given
  number of passes; the greedy step may also lead round in a circle.
- Equal distances: the point with the smaller index comes first.

Dimension key: I points, D dimensions, K clusters, W points of the largest cluster, N blocks,
C clusters of a block.
"""

import dataclasses
import enum
import functools

import jax
import jax.numpy as jnp

from core_jax.arrays import Array, Bool, Float, Int, Key, PyTree
from rec_jax.semantic_ids.kmeans import (
    EXACT,
    KMeansResult,
    check_sizes,
    mean_squared_distance,
    random_points,
)

BLOCK_ELEMENTS = 1 << 22
"""Distances held at once (16 MiB): C clusters x I points, with C at least 1."""


class ClusterOrder(enum.Enum):
    """The order in which clusters pick their points."""

    FIXED = "fixed"
    RANDOM = "random"


def balanced_kmeans(
    points: Float[Array, "I D"],
    num_clusters: int,
    *,
    iterations: int,
    key: Key[Array, ""],
    order: ClusterOrder = ClusterOrder.FIXED,
) -> KMeansResult:
    """Partitions points into clusters whose sizes differ by at most one (Algorithm 1).

    One pass visits the clusters one after the other; cluster k takes the w points nearest to its
    centroid among those not yet taken, and its centroid moves to their mean. First centroids are
    points drawn at random. The centroids returned are the means of the clusters returned, so in
    general a point is *not* in the cluster of its nearest centroid.

    A pass costs 2 I K D operations for the distances, and K partial sorts of I numbers one after
    the other. Memory beside the points: `BLOCK_ELEMENTS` distances (at least I), never I x K.

    Args:
      points: what to partition, float32.
      num_clusters: K, at most I.
      iterations: largest number of passes.
      key: seeds the first centroids and the random orders.
      order: the order in which clusters pick.

    Returns:
      Centroids, assignment, passes made, and the mean squared distance.

    Raises:
      ConfigError: more clusters than points, or fewer than one cluster or pass.
    """
    num_points = points.shape[0]
    check_sizes(num_points, num_clusters, iterations)
    block = min(max(BLOCK_ELEMENTS // num_points, 1), num_clusters)
    passes = jnp.asarray(iterations)
    return _fit(points, passes, key, num_clusters=num_clusters, order=order, block=block)


def cluster_sizes(num_points: int, num_clusters: int) -> Int[Array, "K"]:
    """Points per cluster: w = floor(I / K), and one more for the first I mod K clusters.

    >>> cluster_sizes(11, 3).tolist()
    [4, 4, 3]
    """
    size, extra = divmod(num_points, num_clusters)
    return size + (jnp.arange(num_clusters) < extra).astype(jnp.int32)


@functools.partial(jax.jit, static_argnames=("num_clusters", "order", "block"))
def _fit(
    points_ID: Array,
    iterations: Array,
    key: Array,
    *,
    num_clusters: int,
    order: ClusterOrder,
    block: int,
) -> KMeansResult:
    """The loop of `balanced_kmeans`: passes until the assignment repeats."""
    seed_key, order_key = jax.random.split(key)

    def unsettled(state: tuple[Array, Array, Array, Array]) -> Bool[Array, ""]:
        return (state[0] < iterations) & state[1]

    def one_pass(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        iteration, _, centroids_KD, before_I = state
        visits_K = jnp.arange(num_clusters, dtype=jnp.int32)
        if order is ClusterOrder.RANDOM:
            visits_K = jax.random.permutation(jax.random.fold_in(order_key, iteration), visits_K)
        centroids_KD, assignment_I = _greedy_pass(points_ID, centroids_KD, visits_K, block)
        return iteration + 1, jnp.any(assignment_I != before_I), centroids_KD, assignment_I

    first_KD = random_points(points_ID, num_clusters, seed_key)
    none_yet_I = jnp.full(points_ID.shape[0], -1, jnp.int32)
    start = (jnp.zeros((), jnp.int32), jnp.ones((), bool), first_KD, none_yet_I)
    passes, _, centroids_KD, assignment_I = jax.lax.while_loop(unsettled, one_pass, start)
    return KMeansResult(
        centroids=centroids_KD,
        assignment=assignment_I,
        iterations=passes,
        objective=mean_squared_distance(points_ID, centroids_KD, assignment_I),
    )


def _greedy_pass(
    points_ID: Array, centroids_KD: Array, visits_K: Array, block: int
) -> tuple[Array, Array]:
    """Lets every cluster pick once, in the order of `visits_K`; new centroids and assignment.

    Only cluster k's own pick moves c_k, so all distances are to centroids of before the pass and
    can be made a block of clusters at a time.
    """
    num_points, num_clusters = points_ID.shape[0], centroids_KD.shape[0]
    sizes_K = cluster_sizes(num_points, num_clusters)
    squares_I = jnp.sum(points_ID**2, axis=-1)
    rank_W = jnp.arange(-(-num_points // num_clusters), dtype=jnp.int32)
    num_blocks = -(-num_clusters // block)
    # Visits of padding name the cluster K, which takes nothing: writes to it are dropped.
    padding = (0, num_blocks * block - num_clusters)
    visits_NC = jnp.pad(visits_K, padding, constant_values=num_clusters).reshape(-1, block)

    def pick_block(picked: _Picked, visits_C: Array) -> tuple[_Picked, None]:
        old_CD = centroids_KD.at[visits_C].get(mode="clip")
        product_CI = jnp.matmul(old_CD, points_ID.T, precision=EXACT)
        distance_CI = squares_I[None] - 2.0 * product_CI  # |x - c|^2 - |c|^2: the same order

        def pick_one(position: Array, picked: _Picked) -> _Picked:
            cluster = visits_C[position]
            size = sizes_K.at[cluster].get(mode="fill", fill_value=0)
            open_I = jnp.where(picked.assignment_I < 0, distance_CI[position], jnp.inf)
            _, nearest_W = jax.lax.top_k(-open_I, rank_W.shape[0])
            is_taken_W = rank_W < size
            members_WD = jnp.where(is_taken_W[:, None], points_ID[nearest_W], 0.0)
            mean_D = jnp.sum(members_WD, axis=0) / jnp.maximum(size, 1)
            taken_W = jnp.where(is_taken_W, nearest_W, num_points)
            return _Picked(
                picked.assignment_I.at[taken_W].set(cluster, mode="drop"),
                picked.centroids_KD.at[cluster].set(mean_D, mode="drop"),
            )

        return jax.lax.fori_loop(0, block, pick_one, picked), None

    none_I = jnp.full(num_points, -1, jnp.int32)
    picked, _ = jax.lax.scan(pick_block, _Picked(none_I, centroids_KD), visits_NC)
    return picked.centroids_KD, picked.assignment_I


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Picked:
    """What the clusters visited so far have taken; -1 marks points that nobody has taken."""

    assignment_I: PyTree
    centroids_KD: PyTree
