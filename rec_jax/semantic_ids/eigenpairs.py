"""Leading eigenpairs of large sparse symmetric matrices, without a scattered sum.

A row's entries are gathered in segments of fixed width, and the segments of a row are gathered
again until one is left: gathers only, so the result is the same on every run and every device
count, and no [rows, columns] matrix is ever held.

Dimension key: N rows, M columns, E entries, S segments, W entries per segment, R vectors.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from core_jax.arrays import Array, Float, Int, Key, PyTree

SEGMENT_WIDTH = 32
"""W: a row occupies at least one segment, so sparse rows cost up to this many zeros."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SparseRows:
    """A sparse matrix for products with dense ones, as stages of weighted gathers."""

    stages: PyTree
    """Tuple of (Int32 [S, W], Float32 [S, W]): per stage, what to gather and its weights. The
    first stage reads the other factor's rows, each next one the segments of the one before."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Eigenpairs:
    """Eigenvalues in descending order, and their eigenvectors."""

    values: PyTree
    """Float32 [R]."""
    vectors: PyTree
    """Float32 [N, R], orthonormal columns; each one's largest entry by magnitude is positive."""


def sparse_rows(
    rows: Int[np.ndarray, "E"],
    columns: Int[np.ndarray, "E"],
    values: Float[np.ndarray, "E"],
    num_rows: int,
) -> SparseRows:
    """Lays out a sparse matrix given by its entries.

    Memory: (E + N W) (4 + 4) bytes at most, plus 1 / W of that for the further stages.

    Args:
      rows: row of every entry.
      columns: column of every entry.
      values: the entries; those at the same place add up.
      num_rows: N.

    Returns:
      The matrix, ready for `multiply`.
    """
    order_E = np.lexsort((columns, rows))
    rows, columns, values = rows[order_E], columns[order_E], values[order_E]
    stages = []
    while True:
        counts_N = np.bincount(rows, minlength=num_rows)
        segments_N = np.maximum(-(-counts_N // SEGMENT_WIDTH), 1)
        place_E = np.arange(rows.size) - (np.cumsum(counts_N) - counts_N)[rows]
        segment_E = (np.cumsum(segments_N) - segments_N)[rows] + place_E // SEGMENT_WIDTH
        shape = (int(segments_N.sum()), SEGMENT_WIDTH)
        indices_SW, weights_SW = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
        indices_SW[segment_E, place_E % SEGMENT_WIDTH] = columns
        weights_SW[segment_E, place_E % SEGMENT_WIDTH] = values
        stages.append((indices_SW, weights_SW))
        if segments_N.max(initial=1) == 1:
            return SparseRows(stages=tuple(stages))
        rows, columns = np.repeat(np.arange(num_rows), segments_N), np.arange(shape[0])
        values = np.ones(shape[0], np.float32)


def multiply(matrix: SparseRows, dense: Float[Array, "M R"]) -> Float[Array, "N R"]:
    """The product of a sparse matrix with a dense one, in float32.

    >>> matrix = sparse_rows(np.array([0, 2, 0]), np.array([1, 0, 0]), np.array([5.0, 2.0, 1.0]), 3)
    >>> multiply(matrix, jnp.array([[1.0], [10.0]]))[:, 0].tolist()
    [51.0, 0.0, 2.0]
    """
    for indices_SW, weights_SW in matrix.stages:
        dense = _gather_sum(jnp.asarray(indices_SW), jnp.asarray(weights_SW), dense)
    return dense


def leading_eigenpairs(
    product: Callable[[PyTree, Float[Array, "N R"]], Float[Array, "N R"]],
    operand: PyTree,
    num_rows: int,
    rank: int,
    *,
    key: Key[Array, ""],
    passes: int = 12,
    oversampling: int = 16,
) -> Eigenpairs:
    """Largest eigenvalues of a symmetric matrix by randomised subspace iteration.

    Halko, Martinsson and Tropp, 2011, arXiv:0909.4061, Algorithm 4.4, with a final Rayleigh-Ritz
    step. Subspace iteration finds eigenvalues of large magnitude; of those found, the largest are
    returned, so a matrix should have no large negative ones.

    Args:
      product: product(operand, vectors) multiplies by the matrix; traced.
      operand: arrays that `product` reads.
      num_rows: N.
      rank: eigenpairs wanted; at most N are returned.
      key: seeds the start.
      passes: products with the matrix and orthonormalisations.
      oversampling: vectors carried along beside those wanted; they speed up convergence.

    Returns:
      min(rank, num_rows) eigenpairs.
    """
    width = min(rank + oversampling, num_rows)
    start_NR = jax.random.normal(key, (num_rows, width), jnp.float32)
    found = _iterate(operand, start_NR, product=product, passes=passes)
    return Eigenpairs(values=found.values[:rank], vectors=found.vectors[:, :rank])


@functools.partial(jax.jit, static_argnames=("product", "passes"))
def _iterate(
    operand: PyTree, start_NR: Array, *, product: Callable[..., Array], passes: int
) -> Eigenpairs:
    """Subspace iteration from a random start, then Rayleigh-Ritz and a sign convention."""

    def one_pass(_: Array, basis_NR: Array) -> Array:
        return _decorrelate(product(operand, basis_NR))

    basis_NR = jax.lax.fori_loop(0, passes, one_pass, _decorrelate(start_NR))
    basis_NR = jnp.linalg.qr(basis_NR)[0]
    small_RR = jnp.matmul(basis_NR.T, product(operand, basis_NR), precision="highest")
    values_R, rotation_RR = jnp.linalg.eigh(0.5 * (small_RR + small_RR.T))
    vectors_NR = jnp.matmul(basis_NR, rotation_RR[:, ::-1], precision="highest")
    largest_1R = jnp.argmax(jnp.abs(vectors_NR), axis=0, keepdims=True)
    sign_1R = jnp.sign(jnp.take_along_axis(vectors_NR, largest_1R, axis=0))
    return Eigenpairs(values=values_R[::-1], vectors=vectors_NR * sign_1R)


def _decorrelate(vectors_NR: Array) -> Array:
    """Nearly orthonormal columns of the same span: X L^-T with L L^T = X^T X + a small shift.

    Between passes that is enough, and it costs a product instead of a Householder reduction. The
    shift keeps L regular where a matrix has a lower rank than there are columns; where rounding
    makes the factorisation fail all the same, Householder takes over.
    """
    gram_RR = jnp.matmul(vectors_NR.T, vectors_NR, precision="highest")
    shift = 1e-6 * jnp.trace(gram_RR) / gram_RR.shape[0] + jnp.finfo(jnp.float32).tiny
    factor_RR = jnp.linalg.cholesky(gram_RR + shift * jnp.eye(gram_RR.shape[0]))
    return jax.lax.cond(
        jnp.isfinite(factor_RR).all(),
        lambda: jax.scipy.linalg.solve_triangular(factor_RR, vectors_NR.T, lower=True).T,
        lambda: jnp.linalg.qr(vectors_NR)[0],
    )


def _gather_sum(indices_SW: Array, weights_SW: Array, dense_MR: Array) -> Array:
    """sum_w weights[s, w] dense[indices[s, w]], one slot at a time: S x R floats, not S x W x R."""

    def add_slot(slot: Array, sums_SR: Array) -> Array:
        return sums_SR + weights_SW[:, slot, None] * dense_MR[indices_SW[:, slot]]

    zeros_SR = jnp.zeros((indices_SW.shape[0], dense_MR.shape[1]), dense_MR.dtype)
    return jax.lax.fori_loop(0, SEGMENT_WIDTH, add_slot, zeros_SR)
