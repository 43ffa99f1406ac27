import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_jax.errors import ConfigError
from rec_jax.semantic_ids import balanced_kmeans as module
from rec_jax.semantic_ids.balanced_kmeans import ClusterOrder, balanced_kmeans, cluster_sizes
from rec_jax.semantic_ids.kmeans import random_points

POINTS, DIMS, CLUSTERS = 47, 3, 5  # one size for most tests: every further one costs a compilation


def draw(seed, num_points=POINTS, num_dims=DIMS):
    return np.random.default_rng(seed).normal(size=(num_points, num_dims)).astype(np.float32)


def algorithm_1(points, centroids, iterations):
    """The paper's algorithm, line by line, on Python lists in float64."""
    points, centroids = points.astype(float), centroids.astype(float)
    num_points, num_clusters = len(points), len(centroids)
    passes, before = 0, None
    while passes < iterations:
        passes += 1
        left = list(range(num_points))
        assignment = np.zeros(num_points, int)
        for k in range(num_clusters):
            w = num_points // num_clusters + (k < num_points % num_clusters)
            left.sort(key=lambda i: (np.sum((points[i] - centroids[k]) ** 2), i))
            taken, left = left[:w], left[w:]
            centroids[k] = points[taken].mean(axis=0)
            assignment[taken] = k
        if before is not None and np.array_equal(assignment, before):
            return centroids, assignment, passes
        before = assignment
    return centroids, assignment, passes


@pytest.mark.parametrize(
    ("num_points", "num_dims", "num_clusters", "iterations"),
    [(POINTS, DIMS, CLUSTERS, 50), (POINTS, DIMS, CLUSTERS, 1), (66, 7, 11, 3), (13, 1, 13, 5)],
)
def test_is_algorithm_1(num_points, num_dims, num_clusters, iterations):
    points, key = draw(num_points, num_points, num_dims), jax.random.key(num_clusters)
    result = balanced_kmeans(jnp.asarray(points), num_clusters, iterations=iterations, key=key)
    first = random_points(jnp.asarray(points), num_clusters, jax.random.split(key)[0])
    centroids, assignment, passes = algorithm_1(points, np.array(first), iterations)
    np.testing.assert_array_equal(result.assignment, assignment)
    assert int(result.iterations) == passes
    np.testing.assert_allclose(result.centroids, centroids, rtol=1e-4, atol=1e-6)
    objective = np.mean(np.sum((points - centroids[assignment]) ** 2, axis=-1))
    np.testing.assert_allclose(result.objective, objective, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("order", list(ClusterOrder))
def test_balance_is_exact_and_centroids_are_means(order):
    """Sizes are floor(I / K), plus one for the first I mod K clusters, in any order of visits."""
    points = draw(1)
    result = balanced_kmeans(
        jnp.asarray(points), CLUSTERS, iterations=4, key=jax.random.key(3), order=order
    )
    assert result.assignment.dtype == jnp.int32
    assert np.bincount(result.assignment).tolist() == [10, 10, 9, 9, 9]
    means = [points[np.asarray(result.assignment) == k].mean(axis=0) for k in range(CLUSTERS)]
    np.testing.assert_allclose(result.centroids, means, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("num_points", "num_clusters"), [(47, 5), (45, 5), (7, 7), (11, 1)])
def test_cluster_sizes_differ_by_at_most_one(num_points, num_clusters):
    sizes = np.asarray(cluster_sizes(num_points, num_clusters))
    assert sizes.shape == (num_clusters,) and sizes.sum() == num_points
    assert sizes.max() - sizes.min() <= 1 and np.all(np.diff(sizes) <= 0)


def test_first_visited_cluster_takes_its_nearest_points():
    """In a last pass that changes nothing, cluster 0 holds the w points nearest to its centroid."""
    points = draw(2)
    result = balanced_kmeans(jnp.asarray(points), CLUSTERS, iterations=100, key=jax.random.key(0))
    assert int(result.iterations) < 100
    distance = np.sum((points - np.asarray(result.centroids[0])[None]) ** 2, axis=-1)
    members = np.flatnonzero(np.asarray(result.assignment) == 0)
    assert set(members) == set(np.argsort(distance)[: members.size])


def test_more_passes_than_needed_change_nothing():
    points, key = jnp.asarray(draw(3)), jax.random.key(1)
    settled = balanced_kmeans(points, CLUSTERS, iterations=100, key=key)
    again = balanced_kmeans(points, CLUSTERS, iterations=int(settled.iterations), key=key)
    np.testing.assert_array_equal(settled.assignment, again.assignment)
    np.testing.assert_array_equal(settled.centroids, again.centroids)


def test_finds_equal_blobs():
    """With the order of visits drawn anew, no blob is left with the leftovers of another."""
    blob = np.arange(45) % CLUSTERS
    points = 100.0 * draw(4, CLUSTERS)[blob] + draw(5, 45)
    runs = [
        balanced_kmeans(
            jnp.asarray(points),
            CLUSTERS,
            iterations=50,
            key=jax.random.key(seed),
            order=ClusterOrder.RANDOM,
        )
        for seed in range(8)
    ]
    within = np.mean([np.sum(np.var(points[blob == b], axis=0)) for b in range(CLUSTERS)])
    np.testing.assert_allclose(min(float(run.objective) for run in runs), within, rtol=1e-4)


@pytest.mark.parametrize("block", [1, 3])
def test_blocks_of_clusters_do_not_change_the_result(block, monkeypatch):
    """Five blocks of 1, or one of 3 and one of 2 with a visit of padding."""
    points, key = jnp.asarray(draw(6)), jax.random.key(2)
    whole = balanced_kmeans(points, CLUSTERS, iterations=5, key=key, order=ClusterOrder.RANDOM)
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", block * POINTS)
    parts = balanced_kmeans(points, CLUSTERS, iterations=5, key=key, order=ClusterOrder.RANDOM)
    np.testing.assert_array_equal(parts.assignment, whole.assignment)


def test_equal_points_are_taken_in_order():
    result = balanced_kmeans(
        jnp.ones((POINTS, DIMS)), CLUSTERS, iterations=9, key=jax.random.key(0)
    )
    assert result.assignment.tolist() == [0] * 10 + [1] * 10 + [2] * 9 + [3] * 9 + [4] * 9
    assert int(result.iterations) == 2


@pytest.mark.parametrize("order", list(ClusterOrder))
def test_result_depends_on_the_key_alone(order):
    points = jnp.asarray(draw(7))
    runs = [
        balanced_kmeans(points, CLUSTERS, iterations=3, key=jax.random.key(seed), order=order)
        for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(runs[0].assignment, runs[1].assignment)
    assert not np.array_equal(runs[0].assignment, runs[2].assignment)


def test_never_holds_all_distances():
    """Temporary memory stays near one block of distances, far below I x K."""
    num_points, num_clusters = 50021, 2003
    block = module.BLOCK_ELEMENTS // num_points
    compiled = module._fit.lower(
        jax.ShapeDtypeStruct((num_points, 8), jnp.float32),
        jnp.asarray(3),
        jax.random.key(0),
        num_clusters=num_clusters,
        order=ClusterOrder.FIXED,
        block=block,
    ).compile()
    held = compiled.memory_analysis().temp_size_in_bytes
    assert held < 4 * 4 * module.BLOCK_ELEMENTS < 4 * num_points * num_clusters / 4


@pytest.mark.parametrize(("num_clusters", "iterations"), [(0, 5), (6, 5), (3, 0)])
def test_impossible_sizes_are_named(num_clusters, iterations):
    with pytest.raises(ConfigError, match=r"is [06], but there are 5 points|iterations is 0"):
        balanced_kmeans(
            jnp.ones((5, 2)), num_clusters, iterations=iterations, key=jax.random.key(0)
        )
