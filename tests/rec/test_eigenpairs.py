import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec_jax.semantic_ids.eigenpairs import (
    SEGMENT_WIDTH,
    leading_eigenpairs,
    multiply,
    sparse_rows,
)


def draw_entries(seed, num_rows, num_columns, num_entries):
    rng = np.random.default_rng(seed)
    rows, columns = (
        rng.integers(0, num_rows, num_entries),
        rng.integers(0, num_columns, num_entries),
    )
    return rows, columns, rng.normal(size=num_entries).astype(np.float32)


def as_dense(rows, columns, values, shape):
    dense = np.zeros(shape)
    np.add.at(dense, (rows, columns), values)
    return dense


def with_spectrum(values, num_rows, seed=0):
    """A symmetric matrix with the given eigenvalues, and zeros for the rest."""
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(num_rows, len(values))))[0]
    return ((basis * values) @ basis.T).astype(np.float32), basis


def dense_product(matrix, vectors):
    return jnp.matmul(matrix, vectors, precision="highest")


@pytest.mark.parametrize(("num_rows", "num_entries"), [(17, 5), (17, 211), (3, 7 * SEGMENT_WIDTH)])
def test_product_is_the_dense_product(num_rows, num_entries):
    """Empty rows, repeated places, and rows of several segments."""
    entries = draw_entries(num_entries, num_rows, 13, num_entries)
    dense = np.random.default_rng(1).normal(size=(13, 5)).astype(np.float32)
    product = multiply(sparse_rows(*entries, num_rows), jnp.asarray(dense))
    expected = as_dense(*entries, (num_rows, 13)) @ dense
    np.testing.assert_allclose(product, expected, rtol=1e-5, atol=1e-5)


def test_a_row_longer_than_a_square_of_the_width_takes_three_stages():
    num_columns = SEGMENT_WIDTH**2 + 1
    rows = np.zeros(num_columns, int)
    matrix = sparse_rows(rows, np.arange(num_columns), np.ones(num_columns, np.float32), 2)
    assert [stage[0].shape[0] for stage in matrix.stages] == [SEGMENT_WIDTH + 2, 3, 2]
    product = multiply(matrix, jnp.ones((num_columns, 1)))
    assert product.tolist() == [[num_columns], [0.0]]


def test_finds_leading_eigenpairs_in_order():
    values = 2.0 ** -np.arange(12.0)
    matrix, basis = with_spectrum(values, 61)
    found = leading_eigenpairs(
        dense_product, jnp.asarray(matrix), 61, 5, key=jax.random.key(0), oversampling=7
    )
    np.testing.assert_allclose(found.values, values[:5], rtol=1e-4)
    alignment = np.abs(np.sum(np.asarray(found.vectors) * basis[:, :5], axis=0))
    np.testing.assert_allclose(alignment, 1.0, atol=1e-4)
    gram = np.asarray(found.vectors).T @ np.asarray(found.vectors)
    np.testing.assert_allclose(gram, np.eye(5), atol=1e-5)


def test_signs_are_fixed_whatever_the_start():
    matrix, _ = with_spectrum(2.0 ** -np.arange(12.0), 61)
    runs = [
        leading_eigenpairs(
            dense_product, jnp.asarray(matrix), 61, 5, key=jax.random.key(seed), oversampling=7
        ).vectors
        for seed in range(3)
    ]
    for vectors in runs:
        largest = np.abs(vectors).argmax(axis=0)
        assert np.all(np.asarray(vectors)[largest, np.arange(5)] > 0)
        np.testing.assert_allclose(vectors, runs[0], atol=1e-4)


def test_rank_beyond_that_of_the_matrix_gives_zeros_and_stays_finite():
    matrix, _ = with_spectrum(np.array([3.0, 2.0]), 61)
    found = leading_eigenpairs(
        dense_product, jnp.asarray(matrix), 61, 5, key=jax.random.key(0), oversampling=7
    )
    np.testing.assert_allclose(found.values, [3.0, 2.0, 0.0, 0.0, 0.0], atol=1e-5)
    assert np.isfinite(found.vectors).all()


def test_negative_eigenvalues_come_last():
    matrix, _ = with_spectrum(np.array([3.0, 2.0, -2.5]), 61)
    found = leading_eigenpairs(
        dense_product, jnp.asarray(matrix), 61, 2, key=jax.random.key(0), oversampling=10
    )
    np.testing.assert_allclose(found.values, [3.0, 2.0], atol=1e-5)


def test_no_more_pairs_than_rows():
    matrix, _ = with_spectrum(np.array([3.0, 2.0, 1.0]), 3)
    found = leading_eigenpairs(dense_product, jnp.asarray(matrix), 3, 7, key=jax.random.key(0))
    np.testing.assert_allclose(found.values, [3.0, 2.0, 1.0], atol=1e-5)
