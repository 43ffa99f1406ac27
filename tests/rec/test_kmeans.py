import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_jax.errors import ConfigError
from rec_jax.semantic_ids.kmeans import CHUNK_ROWS, Seeding, kmeans, nearest_centroids

POINTS, DIMS, CLUSTERS = 211, 3, 7  # one size for most tests: every further one costs a compilation


def draw(seed, num_points=POINTS, num_dims=DIMS):
    return np.random.default_rng(seed).normal(size=(num_points, num_dims)).astype(np.float32)


def squared_distances(points, centroids):
    return np.sum((points[:, None].astype(float) - centroids[None].astype(float)) ** 2, axis=-1)


@pytest.mark.parametrize("num_points", [1, CHUNK_ROWS, 2 * CHUNK_ROWS + 3])
def test_nearest_is_the_argmin_of_all_distances(num_points):
    points, centroids = draw(0, num_points, 5), draw(1, 11, 5)
    nearest = nearest_centroids(jnp.asarray(points), jnp.asarray(centroids))
    assert nearest.dtype == jnp.int32
    np.testing.assert_array_equal(nearest, squared_distances(points, centroids).argmin(axis=-1))


def test_ties_go_to_the_smaller_index():
    centroids = jnp.array([[3.0, 0.0], [0.0, 1.0], [0.0, -1.0], [0.0, 1.0]])
    assert nearest_centroids(jnp.zeros((3, 2)), centroids).tolist() == [1, 1, 1]


@pytest.mark.parametrize("seeding", list(Seeding))
def test_converged_clusters_are_a_fixed_point_of_both_steps(seeding):
    points = draw(2)
    result = kmeans(
        jnp.asarray(points), CLUSTERS, iterations=200, key=jax.random.key(0), seeding=seeding
    )
    assert 1 < int(result.iterations) < 200
    distances = squared_distances(points, np.asarray(result.centroids))
    np.testing.assert_array_equal(result.assignment, distances.argmin(axis=-1))
    means = [points[np.asarray(result.assignment) == k].mean(axis=0) for k in range(CLUSTERS)]
    np.testing.assert_allclose(result.centroids, means, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result.objective, distances.min(axis=-1).mean(), rtol=1e-5)


def test_objective_never_rises_with_more_passes():
    points = jnp.asarray(draw(3))
    objectives = [
        float(kmeans(points, CLUSTERS, iterations=count, key=jax.random.key(1)).objective)
        for count in range(1, 12)
    ]
    assert np.all(np.diff(objectives) <= 1e-6)
    assert objectives[-1] < objectives[0]


def test_assignment_is_to_the_nearest_of_the_returned_centroids_even_when_cut_off():
    points = jnp.asarray(draw(4))
    result = kmeans(points, CLUSTERS, iterations=1, key=jax.random.key(2))
    assert int(result.iterations) == 1
    np.testing.assert_array_equal(result.assignment, nearest_centroids(points, result.centroids))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("seeding", list(Seeding))
def test_no_cluster_stays_empty(seed, seeding):
    """Most random seeds coincide here: all but one of those are left without points."""
    points = np.zeros((POINTS, DIMS), np.float32)
    points[: CLUSTERS - 1] = 9.0 * draw(seed, CLUSTERS - 1)
    result = kmeans(
        jnp.asarray(points), CLUSTERS, iterations=30, key=jax.random.key(seed), seeding=seeding
    )
    assert sorted(np.bincount(result.assignment, minlength=CLUSTERS)) == [1] * (CLUSTERS - 1) + [
        POINTS - CLUSTERS + 1
    ]
    assert float(result.objective) == 0.0


def test_plus_plus_draws_every_distinct_point_once():
    """A drawn point has distance 0, so its copies cannot be drawn any more."""
    which = np.arange(POINTS) % CLUSTERS
    points = jnp.asarray(draw(5, CLUSTERS)[which])
    for seed in range(5):
        result = kmeans(points, CLUSTERS, iterations=1, key=jax.random.key(seed))
        assert float(result.objective) == pytest.approx(0.0, abs=1e-10)
        np.testing.assert_array_equal(result.assignment, result.assignment[:CLUSTERS][which])


def test_one_cluster_is_the_mean():
    points = draw(6)
    one = kmeans(jnp.asarray(points), 1, iterations=5, key=jax.random.key(0))
    np.testing.assert_allclose(one.centroids[0], points.mean(axis=0), rtol=1e-5, atol=1e-6)
    assert int(one.iterations) == 2


def test_result_depends_on_the_key_alone():
    points = jnp.asarray(draw(7))
    runs = [kmeans(points, CLUSTERS, iterations=3, key=jax.random.key(seed)) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(runs[0].centroids, runs[1].centroids)
    assert not np.array_equal(runs[0].centroids, runs[2].centroids)


@pytest.mark.parametrize(("num_clusters", "iterations"), [(0, 5), (6, 5), (3, 0)])
def test_impossible_sizes_are_named(num_clusters, iterations):
    with pytest.raises(ConfigError, match=r"is [06], but there are 5 points|iterations is 0"):
        kmeans(jnp.ones((5, 2)), num_clusters, iterations=iterations, key=jax.random.key(0))
