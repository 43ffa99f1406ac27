"""Item embeddings from title, text and categories: tf-idf, reduced to a few dimensions.

Dimension key: I items, V terms, D dimensions, E entries, F entries of one block.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
import polars as pl

from core_jax.arrays import Array, Float, Key, PyTree
from core_jax.errors import ConfigError, DataError
from rec_jax.semantic_ids.eigenpairs import leading_eigenpairs, multiply, sparse_rows

WORD = r"[\p{L}\p{N}]+"
"""A term is a run of letters and digits, in lower case."""


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


def text_features(
    config: TextConfig, items: pl.DataFrame, *, key: Key[Array, ""]
) -> Float[np.ndarray, "I D"]:
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
      Float32, D <= `config.dim`; a row of zeros for an item that shares no term with another.

    Raises:
      DataError: a column is missing, or no term occurs in `config.min_items` items.
    """
    missing = [name for name in ("title", "text", "categories") if name not in items.columns]
    if missing:
        raise DataError(
            f"the item table lacks the column(s) {', '.join(missing)} that text embeddings read; "
            "add them, or choose embeddings of another kind"
        )
    blocks = [_weighted_block(_words(items), config, items.height)]
    if config.category_weight > 0:
        block = _weighted_block(_categories(items), config, items.height)
        blocks.append(block.with_columns(value=pl.col("value") * config.category_weight))
        shift = blocks[0].select(pl.col("column").max() + 1).item() or 0
        blocks[1] = blocks[1].with_columns(column=pl.col("column") + shift)
    entries = pl.concat(blocks)
    if entries.is_empty():
        raise DataError(
            f"no word or category occurs in {config.min_items} or more of the {items.height} "
            "items; lower text.min_items, or choose embeddings of another kind"
        )
    rows_E, columns_E = entries["item"].to_numpy(), entries["column"].to_numpy()
    values_E = entries["value"].to_numpy().astype(np.float32)
    num_terms = int(columns_E.max()) + 1
    operand = (
        sparse_rows(rows_E, columns_E, values_E, items.height),
        sparse_rows(columns_E, rows_E, values_E, num_terms),
    )
    rank = min(config.dim, num_terms, items.height)
    found = leading_eigenpairs(_gram_product, operand, items.height, rank, key=key)
    return np.asarray(found.vectors * jnp.sqrt(jnp.maximum(found.values, 0.0))[None])


def _gram_product(operand: PyTree, vectors_IR: Array) -> Array:
    """X X^T times vectors."""
    forward, transposed = operand
    return multiply(forward, multiply(transposed, vectors_IR))


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


def _weighted_block(occurrences: pl.DataFrame, config: TextConfig, num_items: int) -> pl.DataFrame:
    """tf-idf entries (item, column, value) of one block, rows of length 1."""
    counts = occurrences.group_by("item", "term").agg(tf=pl.len())
    terms = counts.group_by("term").agg(df=pl.len()).filter(pl.col("df") >= config.min_items)
    terms = terms.sort(["df", "term"], descending=[True, False]).head(config.max_terms)
    terms = terms.with_row_index("column")
    idf = ((1 + num_items) / (1 + pl.col("df"))).log() + 1
    entries = counts.join(terms, on="term").with_columns(value=(1 + pl.col("tf").log()) * idf)
    length = pl.col("value").pow(2).sum().over("item").sqrt()
    return entries.select(
        "item", pl.col("column").cast(pl.Int64), (pl.col("value") / length).alias("value")
    ).sort("item", "column")
