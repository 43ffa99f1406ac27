"""The embedder: what turns items into embeddings, for the catalogue and for items that come later.

It is fitted together with the catalogue's embeddings and kept beside the codebook, so that an item
which nobody knew then is embedded in the same space: its words by the catalogue's terms, weights
and directions, its collaborative factors predicted from its text, both centred and scaled as the
catalogue's were.

Dimension key: I items of the catalogue, N items that may be new, P positive events, D dimensions,
F text features.
"""

import dataclasses
import logging
import os
import pathlib
from typing import Any

import jax
import numpy as np
import polars as pl

from core_jax.arrays import Array, Float, Int, Key
from core_jax.config import from_dict, to_dict
from core_jax.errors import CheckpointError, DataError
from core_jax.run_folder import DONE
from rec_jax.semantic_ids.codebook import (
    array_fingerprint,
    check_fingerprint,
    load_arrays,
    save_arrays,
)
from rec_jax.semantic_ids.collaborative import (
    RidgeRegression,
    collaborative_factors,
    fit_ridge,
    predict_factors,
)
from rec_jax.semantic_ids.embedding_file import read_embeddings
from rec_jax.semantic_ids.embeddings import EmbeddingConfig, EmbeddingKind
from rec_jax.semantic_ids.scaling import Scaling, fit_scaling, scale
from rec_jax.semantic_ids.text_features import TextBasis, fit_text_features, project_text

_LOGGER = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embedder:
    """All that the embedding of an item depends on, beside the item."""

    config: EmbeddingConfig
    """What embeddings are made of."""
    num_dims: int
    """D: width of an embedding."""
    text: TextBasis | None = None
    """Terms and their directions; None for embeddings from a file, as the two below."""
    regression: RidgeRegression | None = None
    """Collaborative factors from text; None for text embeddings too."""
    scalings: tuple[Scaling, ...] = ()
    """Of every part of an embedding, in their order: text, collaborative factors."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddedCatalogue:
    """Embeddings of the catalogue, and what made them."""

    embeddings: np.ndarray
    """Float32 [I, D], finite."""
    num_predicted: int | None
    """Items whose collaborative factors are predicted from their text; None without factors."""
    embedder: Embedder


def embed_catalogue(
    config: EmbeddingConfig,
    items: pl.DataFrame,
    users: Int[np.ndarray, "P"],
    positives: Int[np.ndarray, "P"],
    *,
    key: Key[Array, ""],
) -> EmbeddedCatalogue:
    """Embeds every item of the catalogue.

    Rows of text features and of collaborative factors are scaled to length 1, so that distance is
    angle (predicted factors keep their length: the surer, the longer). Each part is centred and
    scaled (`scaling.scale`), and in `concat` weighted: with w = `text_weight`,
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
      Embeddings and embedder.

    Raises:
      DataError: the item table, the events or the file do not carry such embeddings.
    """
    if config.kind is EmbeddingKind.FILE:
        assert config.path is not None
        rows_ID = read_embeddings(config.path, items["item_id"].to_list())
        embedder = Embedder(config=config, num_dims=rows_ID.shape[1])
        return EmbeddedCatalogue(embeddings=rows_ID, num_predicted=None, embedder=embedder)
    text_key, collaborative_key = jax.random.split(key)
    text_IF, text = fit_text_features(config.text, items, key=text_key)
    text_IF = _unit_rows(text_IF)
    regression, num_predicted, factors_ID = None, None, None
    if config.kind is not EmbeddingKind.TEXT:
        factors_ID = _unit_rows(
            collaborative_factors(
                config.collaborative, users, positives, items.height, key=collaborative_key
            )
        )
        is_seen_I = np.any(factors_ID != 0, axis=-1)
        regression = fit_ridge(config.collaborative, factors_ID[is_seen_I], text_IF[is_seen_I])
        num_predicted = int((~is_seen_I).sum())
        if num_predicted:
            factors_ID[~is_seen_I] = predict_factors(regression, text_IF[~is_seen_I])
            _LOGGER.warning(
                "%d of %d items never occur together with another in the training events; their "
                "collaborative factors are predicted from their text",
                num_predicted,
                is_seen_I.size,
            )
    parts = _parts(config.kind, text_IF, factors_ID)
    scalings = tuple(fit_scaling(part) for part in parts)
    rows_ID = _combined(config, scalings, parts)
    embedder = Embedder(
        config=config,
        num_dims=rows_ID.shape[1],
        text=text,
        regression=regression,
        scalings=scalings,
    )
    return EmbeddedCatalogue(embeddings=rows_ID, num_predicted=num_predicted, embedder=embedder)


def embed_items(
    embedder: Embedder, items: pl.DataFrame, path: str = ""
) -> tuple[Float[np.ndarray, "N D"], Int[np.ndarray, "N"] | None]:
    """Embeds items that may be new, as the catalogue's items without training events were embedded.

    Args:
      embedder: the catalogue's.
      items: columns item_id, title, text and categories, as `clean_items` leaves them.
      path: file with one embedding per item, where the catalogue's embeddings are from a file.

    Returns:
      Float32 embeddings. Items of the catalogue get their own again, up to rounding, but where
      these hold factors that were learned from events. And Int64 numbers of known terms per item;
      an item with none is placed where the catalogue's items without any term are. None where
      embeddings are from a file.

    Raises:
      DataError: a path is missing, or given where embeddings are not from a file; the file or the
        item table does not carry such embeddings, or is of another width.
    """
    config = embedder.config
    if config.kind is EmbeddingKind.FILE:
        return _rows_of_file(embedder, items, path), None
    if path:
        raise DataError(
            f"embeddings are given in '{path}', but the catalogue's are made by kind "
            f"'{config.kind.value}', which reads the item table alone; leave the file out"
        )
    assert embedder.text is not None
    text_NF, num_known_N = project_text(embedder.text, items)
    text_NF = _unit_rows(text_NF)
    factors_ND = None
    if embedder.regression is not None:
        factors_ND = predict_factors(embedder.regression, text_NF)
    parts = _parts(config.kind, text_NF, factors_ND)
    return _combined(config, embedder.scalings, parts), num_known_N


def save_embedder(
    embedder: Embedder, path: str | os.PathLike[str], *, codebook_fingerprint: str
) -> None:
    """Writes an embedder as .npz (arrays, and JSON text for the rest), complete or not at all.

    Args:
      embedder: what to write.
      path: name of the file, replaced where it exists.
      codebook_fingerprint: fingerprint of the codebook that was fitted to its embeddings.
    """
    arrays, facts = _arrays(embedder), _facts(embedder, codebook_fingerprint)
    save_arrays(path, arrays, facts, array_fingerprint(tuple(arrays.values()), facts))


def load_embedder(path: str | os.PathLike[str], *, codebook_fingerprint: str) -> Embedder:
    """Reads what `save_embedder` wrote.

    Args:
      path: the .npz file.
      codebook_fingerprint: fingerprint of the codebook that the embeddings are for.

    Returns:
      The embedder.

    Raises:
      CheckpointError: the file is absent, unreadable, not what was written, or belongs to another
        codebook.
    """
    path = pathlib.Path(path)
    if path.parent.is_dir() and not path.exists():
        raise CheckpointError(
            f"'{path}' does not exist: these semantic IDs were built before embedders were kept, "
            "so new items cannot be embedded as the catalogue's were; build them again with the "
            f"same data and settings (remove '{path.with_name(DONE)}' and run "
            "rec.tokenize), which on the same machine gives the same IDs"
        )
    arrays, facts, fingerprint = load_arrays(path)
    actual = array_fingerprint(tuple(arrays.values()), facts)
    check_fingerprint(fingerprint, actual, f"the content of embedder '{path}'")
    what = f"the codebook beside embedder '{path}'"
    check_fingerprint(facts["codebook"], codebook_fingerprint, what)
    text, regression = None, None
    if "idf" in arrays:
        text = TextBasis(
            terms=(tuple(facts["words"]), tuple(facts["categories"])),
            idf=arrays["idf"],
            category_weight=facts["category_weight"],
            projection=arrays["projection"],
        )
    if "weights" in arrays:
        names = [field.name for field in dataclasses.fields(RidgeRegression)]
        regression = RidgeRegression(**{name: arrays[name] for name in names})
    scalings = [
        Scaling(mean=arrays[f"mean_{part}"], length=length)
        for part, length in enumerate(facts["lengths"])
    ]
    return Embedder(
        config=from_dict(EmbeddingConfig, facts["config"]),
        num_dims=facts["num_dims"],
        text=text,
        regression=regression,
        scalings=tuple(scalings),
    )


def _arrays(embedder: Embedder) -> dict[str, np.ndarray]:
    """The arrays of an embedder by the names in the file."""
    arrays = {f"mean_{part}": scaling.mean for part, scaling in enumerate(embedder.scalings)}
    if embedder.text is not None:
        arrays |= {"idf": embedder.text.idf, "projection": embedder.text.projection}
    if embedder.regression is not None:
        arrays |= dataclasses.asdict(embedder.regression)
    return arrays


def _facts(embedder: Embedder, codebook_fingerprint: str) -> dict[str, Any]:
    """All of an embedder that is no array."""
    facts = {
        "config": to_dict(embedder.config),
        "num_dims": embedder.num_dims,
        "lengths": [scaling.length for scaling in embedder.scalings],
        "codebook": codebook_fingerprint,
    }
    if embedder.text is not None:
        words, categories = embedder.text.terms
        facts |= {"words": list(words), "categories": list(categories)}
        facts["category_weight"] = embedder.text.category_weight
    return facts


def _rows_of_file(embedder: Embedder, items: pl.DataFrame, path: str) -> np.ndarray:
    """The rows of new items in a file of theirs."""
    if not path:
        raise DataError(
            f"the catalogue's embeddings are from the file '{embedder.config.path}'; embeddings of "
            f"the {items.height} new items cannot be made from their words: give a .npy, .npz or "
            f".parquet file with their rows, of the same {embedder.num_dims} dimensions and made "
            "in the same way"
        )
    rows_ND = read_embeddings(path, items["item_id"].to_list())
    if rows_ND.shape[1] != embedder.num_dims:
        raise DataError(
            f"'{path}' has embeddings of {rows_ND.shape[1]} dimensions, the catalogue's have "
            f"{embedder.num_dims}; make them in the same way"
        )
    return rows_ND


def _parts(
    kind: EmbeddingKind, text_NF: np.ndarray, factors_ND: np.ndarray | None
) -> tuple[np.ndarray, ...]:
    """The parts that an embedding of this kind has, in their order."""
    if kind is EmbeddingKind.TEXT:
        return (text_NF,)
    assert factors_ND is not None
    return (factors_ND,) if kind is EmbeddingKind.COLLABORATIVE else (text_NF, factors_ND)


def _combined(
    config: EmbeddingConfig, scalings: tuple[Scaling, ...], parts: tuple[np.ndarray, ...]
) -> np.ndarray:
    """Parts scaled and side by side, float32."""
    rows = [scale(scaling, part) for scaling, part in zip(scalings, parts, strict=True)]
    if len(rows) == 1:
        return rows[0]
    weights = np.sqrt([config.text_weight, 1.0 - config.text_weight])
    weighted = [part * weight for part, weight in zip(rows, weights, strict=True)]
    return np.concatenate(weighted, axis=-1).astype(np.float32)


def _unit_rows(part_ND: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1; rows of zeros stay."""
    length_N1 = np.linalg.norm(part_ND, axis=-1, keepdims=True)
    return part_ND / np.maximum(length_N1, np.finfo(np.float32).tiny)
