"""Item embeddings from title, text and categories: tf-idf, reduced to a few dimensions.

Dimension key: I items, N items that may be new, V terms, D dimensions, E entries, R vectors.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
import polars as pl
import scipy.sparse

from core_jax.arrays import Array, Float, Int, Key, PyTree
from core_jax.errors import ConfigError, DataError
from rec_jax.semantic_ids.eigenpairs import leading_eigenpairs, multiply, sparse_rows

WORD = r"[\p{L}\p{N}]+"
"""A term is a run of letters and digits, in lower case."""

NOISE = 1e-6
"""Eigenvalues below this share of the largest are rounding: their dimensions are zero."""

PROJECTION_STEPS = 100
"""Largest number of conjugate gradient steps; a dimension stops by itself when it is exact."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
    """How item texts become vectors."""

    dim: int = 64
    """Largest number of dimensions; small catalogues have fewer terms than that."""
    category_weight: float = 1.0
    """Length of the category part over that of the word part; 0 ignores categories."""
    min_items: int = 2
    """Words and categories that occur in fewer items are left out: they relate no two items."""
    max_terms: int = 50_000
    """Only that many of the most frequent words are kept."""

    def __post_init__(self) -> None:
        """Checks every field on its own."""
        for name in ("dim", "min_items", "max_terms"):
            if getattr(self, name) < 1:
                raise ConfigError(f"text.{name} is {getattr(self, name)}; it must be at least 1")
        if self.category_weight < 0:
            raise ConfigError(
                f"text.category_weight is {self.category_weight}; it must not be negative"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextBasis:
    """What turns the words of any item into the catalogue's text features."""

    terms: tuple[tuple[str, ...], tuple[str, ...]]
    """Words, then categories, that the catalogue knows: V together."""
    idf: np.ndarray
    """Float64 [V]: weight of each of them."""
    category_weight: float
    """Length of the category part over that of the word part."""
    projection: np.ndarray
    """Float32 [V, D]: tf-idf rows times this are text features."""


def fit_text_features(
    config: TextConfig, items: pl.DataFrame, *, key: Key[Array, ""]
) -> tuple[Float[np.ndarray, "I D"], TextBasis]:
    r"""Latent semantic analysis of the item table.

    A word t of an item has the weight (1 + ln tf) idf with idf = ln((1 + I) / (1 + df)) + 1; an
    item's words are scaled to length 1. Categories are one-hots with the same idf, scaled to
    length `category_weight`. Of this matrix X [I, V] the rows of U S are returned, where U S^2 U^T
    are the leading eigenpairs of X X^T: the truncated singular value decomposition, with the sign
    that makes the largest entry of each column of U positive.

    Args:
      config: dimensions and weights.
      items: columns title, text (String) and categories (List of String); row i is item i.
      key: seeds the eigenvalue iteration; the result depends on it by rounding only.

    Returns:
      Float32, D <= `config.dim`; a row of zeros for an item that shares no term with another. And
      the basis, with which `project_text` gives these rows again, and rows of new items.

    Raises:
      DataError: a column is missing, or no term occurs in `config.min_items` items.
    """
    _check_columns(items)
    vocabularies = [_vocabulary(_words(items), config, items.height)]
    if config.category_weight > 0:
        vocabularies.append(_vocabulary(_categories(items), config, items.height))
    words, categories = (tuple(part["term"].to_list()) for part in (*vocabularies, _NO_TERMS)[:2])
    idf_V = pl.concat(vocabularies)["idf"].to_numpy()
    if not idf_V.size:
        raise DataError(
            f"no word or category occurs in {config.min_items} or more of the {items.height} "
            "items; lower text.min_items, or choose embeddings of another kind"
        )
    entries = _tf_idf(items, (words, categories), idf_V, config.category_weight)
    rows_E, columns_E = entries["item"].to_numpy(), entries["column"].to_numpy()
    values_E = entries["value"].to_numpy().astype(np.float32)
    operand = (
        sparse_rows(rows_E, columns_E, values_E, items.height),
        sparse_rows(columns_E, rows_E, values_E, idf_V.size),
    )
    rank = min(config.dim, idf_V.size, items.height)
    found = leading_eigenpairs(_gram_product, operand, items.height, rank, key=key)
    is_real_R = found.values > NOISE * found.values[0]
    scale_R = jnp.where(is_real_R, jnp.sqrt(jnp.maximum(found.values, 0.0)), 0.0)
    features_ID = np.array(found.vectors * scale_R[None])
    features_ID[np.bincount(rows_E, minlength=items.height) == 0] = 0.0
    matrix_IV = scipy.sparse.csr_array((values_E, (rows_E, columns_E)), (items.height, idf_V.size))
    basis = TextBasis(
        terms=(words, categories),
        idf=idf_V,
        category_weight=config.category_weight,
        projection=_projection(matrix_IV, features_ID),
    )
    return features_ID, basis


def project_text(
    basis: TextBasis, items: pl.DataFrame
) -> tuple[Float[np.ndarray, "N D"], Int[np.ndarray, "N"]]:
    """Text features of any items, in the catalogue's dimensions (folding in).

    Terms that the catalogue does not know are left out, as its own rare terms were; the rest has
    the catalogue's weights and is scaled to the same length.

    Args:
      basis: what `fit_text_features` returned.
      items: columns title, text and categories.

    Returns:
      Float32 features, which for items of the catalogue are its own up to rounding, and Int64
      numbers of different known terms per item; an item with none has features of zero.

    Raises:
      DataError: a column is missing.
    """
    _check_columns(items)
    entries = _tf_idf(items, basis.terms, basis.idf, basis.category_weight)
    rows_E, columns_E = entries["item"].to_numpy(), entries["column"].to_numpy()
    matrix_NV = scipy.sparse.csr_array(
        (entries["value"].to_numpy(), (rows_E, columns_E)), (items.height, basis.idf.size)
    )
    features_ND = matrix_NV @ basis.projection.astype(np.float64)
    num_known_N = np.bincount(rows_E, minlength=items.height)
    return features_ND.astype(np.float32), num_known_N


def _projection(matrix_IV: scipy.sparse.csr_array, features_ID: np.ndarray) -> np.ndarray:
    """W [V, D] with X W = U S: the right singular directions V = X^T U / S, made exact.

    Of the last few eigenpairs the iteration finds the span to some per cent only. There X V is not
    U S, so least squares go on from V by conjugate gradients (Hestenes and Stiefel, 1952, CGLS),
    all dimensions side by side, in float64. W stays in the row space of X, as V is: of all exact
    solutions it is the one of least norm. A step costs two products with X, as a pass does.
    """
    matrix_IV = scipy.sparse.csr_array(matrix_IV, dtype=np.float64)
    scale_D = np.maximum(np.sum(features_ID.astype(np.float64) ** 2, axis=0), _TINY)
    solution_VD = matrix_IV.T @ (features_ID / scale_D)
    rest_ID = features_ID - matrix_IV @ solution_VD
    gradient_VD = matrix_IV.T @ rest_ID
    direction_VD = gradient_VD
    norm_D = np.sum(gradient_VD**2, axis=0)
    for _ in range(PROJECTION_STEPS):
        is_open_D = norm_D > (_EXACT * scale_D) ** 2
        if not is_open_D.any():
            break
        image_ID = matrix_IV @ direction_VD
        step_D = is_open_D * norm_D / np.maximum(np.sum(image_ID**2, axis=0), _TINY)
        solution_VD = solution_VD + step_D * direction_VD
        rest_ID = rest_ID - step_D * image_ID
        gradient_VD = matrix_IV.T @ rest_ID
        before_D, norm_D = norm_D, np.sum(gradient_VD**2, axis=0)
        direction_VD = gradient_VD + norm_D / np.maximum(before_D, _TINY) * direction_VD
    return solution_VD.astype(np.float32)


def _gram_product(operand: PyTree, vectors_IR: Array) -> Array:
    """X X^T times vectors."""
    forward, transposed = operand
    return multiply(forward, multiply(transposed, vectors_IR))


def _check_columns(items: pl.DataFrame) -> None:
    """Raises DataError where a column that is read is missing."""
    missing = [name for name in ("title", "text", "categories") if name not in items.columns]
    if missing:
        raise DataError(
            f"the item table lacks the column(s) {', '.join(missing)} that text embeddings read; "
            "add them, or choose embeddings of another kind"
        )


def _words(items: pl.DataFrame) -> pl.DataFrame:
    """One row per occurrence of a word: item, term."""
    texts = pl.concat_str([pl.col("title"), pl.col("text")], separator=" ", ignore_nulls=True)
    words = texts.str.to_lowercase().str.extract_all(WORD)
    return _exploded(items.select(term=words))


def _categories(items: pl.DataFrame) -> pl.DataFrame:
    """One row per category of an item: item, term."""
    return _exploded(items.select(term=pl.col("categories"))).unique()


def _exploded(terms: pl.DataFrame) -> pl.DataFrame:
    """Lists of terms, one row per entry, without the empty ones."""
    numbered = terms.with_columns(item=pl.int_range(pl.len(), dtype=pl.Int64))
    return numbered.filter(pl.col("term").list.len() > 0).explode("term").drop_nulls()


def _vocabulary(occurrences: pl.DataFrame, config: TextConfig, num_items: int) -> pl.DataFrame:
    """Terms of one block and their idf, the most frequent first."""
    terms = occurrences.unique().group_by("term").agg(df=pl.len())
    terms = terms.filter(pl.col("df") >= config.min_items)
    terms = terms.sort(["df", "term"], descending=[True, False]).head(config.max_terms)
    return terms.select("term", idf=((1 + num_items) / (1 + pl.col("df"))).log() + 1)


def _tf_idf(
    items: pl.DataFrame,
    terms: tuple[tuple[str, ...], tuple[str, ...]],
    idf_V: np.ndarray,
    category_weight: float,
) -> pl.DataFrame:
    """The entries of X (item, column, value): words, then categories, each part of its length."""
    blocks, first = [], 0
    parts = ((_words, 1.0), (_categories, category_weight))
    for known, (occurrences, weight) in zip(terms, parts, strict=True):
        last = first + len(known)
        vocabulary = pl.DataFrame(
            {"term": known, "column": np.arange(first, last), "idf": idf_V[first:last]},
            schema={"term": pl.String, "column": pl.Int64, "idf": pl.Float64},
        )
        counts = occurrences(items).group_by("item", "term").agg(tf=pl.len())
        entries = counts.join(vocabulary, on="term")
        entries = entries.with_columns(value=(1 + pl.col("tf").log()) * pl.col("idf"))
        length = pl.col("value").pow(2).sum().over("item").sqrt()
        entries = entries.sort("item", "column")
        value = pl.col("value") / length * weight
        blocks.append(entries.select("item", "column", value.alias("value")))
        first = last
    return pl.concat(blocks)


_TINY = np.finfo(np.float64).tiny
_EXACT = 1e-7
"""Gradient over squared singular value at which a dimension of the projection is exact."""
_NO_TERMS = pl.DataFrame(schema={"term": pl.String, "idf": pl.Float64})
