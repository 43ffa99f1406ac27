"""Item embeddings, which semantic IDs are made of: text, collaborative, both, or the user's own.

Dimension key: I items, P positive events, D dimensions, F text features.
"""

import dataclasses
import enum
import logging

import jax
import numpy as np
import polars as pl

from core_jax.arrays import Array, Float, Int, Key
from core_jax.errors import ConfigError
from rec_jax.semantic_ids.collaborative import (
    CollaborativeConfig,
    collaborative_factors,
    fill_unseen,
)
from rec_jax.semantic_ids.embedding_file import read_embeddings
from rec_jax.semantic_ids.text_features import TextConfig, text_features

_LOGGER = logging.getLogger(__name__)


class EmbeddingKind(enum.Enum):
    """What item embeddings are made from."""

    TEXT = "text"
    COLLABORATIVE = "collaborative"
    CONCAT = "concat"
    FILE = "file"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddingConfig:
    """Where item embeddings come from."""

    kind: EmbeddingKind
    """Text features, collaborative factors, both side by side, or a file."""
    text: TextConfig = dataclasses.field(default_factory=TextConfig)
    """Text features; they also place items without training events among the others."""
    collaborative: CollaborativeConfig = dataclasses.field(default_factory=CollaborativeConfig)
    """Collaborative factors."""
    text_weight: float = 0.5
    """`concat` only: share of the text in squared distances, between 0 and 1."""
    path: str | None = None
    """`file` only: a .npy, .npz or .parquet file with one embedding per item."""

    def __post_init__(self) -> None:
        """Checks the weight, and that a path is given exactly where it is read."""
        if not 0.0 <= self.text_weight <= 1.0:
            raise ConfigError(
                f"embeddings.text_weight is {self.text_weight}; it must lie in [0, 1]"
            )
        if (self.kind is EmbeddingKind.FILE) != (self.path is not None):
            raise ConfigError(
                f"embeddings.kind is '{self.kind.value}' and embeddings.path is {self.path!r}; "
                "kind 'file' needs a path, and only that kind reads one"
            )


def item_embeddings(
    config: EmbeddingConfig,
    items: pl.DataFrame,
    users: Int[np.ndarray, "P"],
    positives: Int[np.ndarray, "P"],
    *,
    key: Key[Array, ""],
) -> Float[np.ndarray, "I D"]:
    """Embeds every item of the catalogue.

    Rows of text features and of collaborative factors are scaled to length 1, so that distance is
    angle (predicted factors keep their length: the surer, the longer). Each part is standardised
    (`standardise`), and in `concat` weighted: with w = `text_weight`,
    |a - b|^2 = w |text_a - text_b|^2 + (1 - w) |factors_a - factors_b|^2.
    Embeddings from a file stay as they are.

    Collaborative parts are made of the events given here alone: hand in the *training* part of
    the log. Items that never occur together with another in them are placed by ridge regression
    from their text features; their number is logged.

    Args:
      config: kind and settings.
      items: columns item_id, title, text, categories; row i is item i.
      users: user of every training event; a user's events stand together, in order of time.
      positives: item of every training event.
      key: seeds the factorisations; the result depends on it by rounding only.

    Returns:
      Float32, finite.

    Raises:
      DataError: the item table, the events or the file do not carry such embeddings.
    """
    if config.kind is EmbeddingKind.FILE:
        assert config.path is not None
        return read_embeddings(config.path, items["item_id"].to_list())
    text_key, collaborative_key = jax.random.split(key)
    text_IF = _unit_rows(text_features(config.text, items, key=text_key))
    if config.kind is EmbeddingKind.TEXT:
        return standardise(text_IF)
    factors_ID = _unit_rows(
        collaborative_factors(
            config.collaborative, users, positives, items.height, key=collaborative_key
        )
    )
    is_seen_I = np.asarray(np.any(factors_ID != 0, axis=-1))
    if not is_seen_I.all():
        _LOGGER.warning(
            "%d of %d items never occur together with another in the training events; their "
            "collaborative factors are predicted from their text",
            (~is_seen_I).sum(),
            is_seen_I.size,
        )
    factors_ID = fill_unseen(config.collaborative, factors_ID, text_IF, is_seen_I)
    if config.kind is EmbeddingKind.COLLABORATIVE:
        return standardise(factors_ID)
    text_scale, factor_scale = np.sqrt([config.text_weight, 1.0 - config.text_weight])
    parts = [standardise(text_IF) * text_scale, standardise(factors_ID) * factor_scale]
    return np.concatenate(parts, axis=-1).astype(np.float32)


def standardise(part: Float[np.ndarray, "I D"]) -> Float[np.ndarray, "I D"]:
    """Centres the rows and scales them all alike, to a mean squared length of 1.

    Dimensions keep their relative scale: the small ones are mostly noise. Rows that are all equal
    become zeros.

    Args:
      part: one row per item.

    Returns:
      Float32.

    >>> standardise(np.array([[5.0], [1.0]])).tolist()  # centred: 2, -2; mean square 4
    [[1.0], [-1.0]]
    """
    centred_ID = np.asarray(part, np.float64) - part.mean(axis=0, dtype=np.float64, keepdims=True)
    mean_square = np.mean(np.sum(centred_ID**2, axis=-1))
    return (centred_ID / np.sqrt(max(mean_square, np.finfo(np.float32).tiny))).astype(np.float32)


def _unit_rows(part_ID: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1; rows of zeros stay."""
    length_I1 = np.linalg.norm(part_ID, axis=-1, keepdims=True)
    return part_ID / np.maximum(length_I1, np.finfo(np.float32).tiny)
