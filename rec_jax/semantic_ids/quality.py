"""How good a set of semantic IDs is: what it loses, how evenly codes are used, who shares an ID.

The measures are those of Table 11 of the OneRec technical report (arXiv:2506.13695):
reconstruction loss, utilisation and entropy, with bucket sizes and the share of items that have an
ID of their own (the "independent coding rate" of OneSearch, arXiv:2509.03236).

Dimension key: I items, D embedding dimensions, L code levels, K codes of a level.
"""

import dataclasses
from typing import Any

import numpy as np

from core_jax.arrays import Array, Float, Int
from rec_jax.semantic_ids.codebook import Codebook
from rec_jax.semantic_ids.residual import encode_nearest


@dataclasses.dataclass(frozen=True, kw_only=True)
class LevelQuality:
    """How the codes of one level are used, each level counted on its own."""

    size: int
    """K: codes of the level."""
    utilisation: float
    """Share of the codes that some item has."""
    entropy_bits: float
    """Entropy of the code of a random item; at most log2 K."""
    perplexity: float
    """2 ** entropy: the number of equally used codes that would be as even."""
    smallest_bucket: int
    """Items of the code that has the fewest."""
    largest_bucket: int
    """Items of the code that has the most."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AssignmentQuality:
    """Quality of one assignment of codes to items, before collisions are resolved."""

    reconstruction_loss: float
    """Mean squared distance of an embedding to the sum of its centroids."""
    unexplained_variance: float
    """Reconstruction loss over the variance of the embeddings: 0 is perfect, 1 is worthless."""
    levels: tuple[LevelQuality, ...]
    """One entry per level."""
    num_ids: int
    """Distinct semantic IDs."""
    own_id_share: float
    """Share of items that share their ID with no other."""
    colliding_items: int
    """Items that share their ID with another."""
    largest_collision: int
    """Items of the ID that has the most."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class QualityReport:
    """Quality of the catalogue's codes, and of the nearest-centroid codes new items would get."""

    num_items: int
    """I: items in the catalogue."""
    catalogue: AssignmentQuality
    """The codes that the catalogue has."""
    nearest: AssignmentQuality
    """The codes that `encode_nearest` gives the same items."""
    agreement: float
    """Share of items for which the two are equal on every level."""
    predicted_share: float | None = None
    """Share of items whose collaborative factors are predicted from their text, for want of
    training events; None where embeddings have no such factors."""

    def to_dict(self) -> dict[str, Any]:
        """Nested dicts, lists, numbers: ready for JSON."""
        report = dataclasses.asdict(self)
        for name in ("catalogue", "nearest"):
            report[name]["levels"] = list(report[name]["levels"])
        return report

    def __str__(self) -> str:
        """A table with one column per assignment."""
        predicted = ""
        if self.predicted_share is not None:
            predicted = f"; collaborative factors of {self.predicted_share:.1%} are from their text"
        return quality_table({"catalogue": self.catalogue, "nearest": self.nearest}) + (
            f"\n{self.num_items} items; both assignments agree on {self.agreement:.1%} of them"
            + predicted
        )


def quality_report(
    codebook: Codebook,
    embeddings: Float[Array | np.ndarray, "I D"],
    codes: Int[np.ndarray, "I L"],
    *,
    num_predicted: int | None = None,
) -> QualityReport:
    """Measures the codes of a catalogue, and those that nearest centroids would give.

    Args:
      codebook: the centroids.
      embeddings: one row per item, the rows the codebook was built from.
      codes: the catalogue's codes, without the level that resolves collisions.
      num_predicted: items whose collaborative factors are predicted from their text, or None.

    Returns:
      The report.
    """
    nearest = encode_nearest(codebook, embeddings)
    return QualityReport(
        num_items=codes.shape[0],
        catalogue=assignment_quality(codebook, embeddings, codes),
        nearest=assignment_quality(codebook, embeddings, nearest),
        agreement=float((nearest == codes).all(axis=-1).mean()),
        predicted_share=None if num_predicted is None else num_predicted / codes.shape[0],
    )


def assignment_quality(
    codebook: Codebook, embeddings: Float[Array | np.ndarray, "I D"], codes: Int[np.ndarray, "I L"]
) -> AssignmentQuality:
    """Measures one assignment of codes to items, in float64.

    Args:
      codebook: the centroids.
      embeddings: one row per item.
      codes: codes of the same items.

    Returns:
      All measures.
    """
    rest_ID = np.asarray(embeddings, np.float64)
    variance = np.mean(np.sum((rest_ID - rest_ID.mean(axis=0, keepdims=True)) ** 2, axis=-1))
    for centroids_KD, code_I in zip(codebook.centroids, codes.T, strict=True):
        rest_ID = rest_ID - centroids_KD[code_I]
    loss = np.mean(np.sum(rest_ID**2, axis=-1))
    _, items_per_id = np.unique(codes, axis=0, return_counts=True)
    own = int((items_per_id == 1).sum())
    return AssignmentQuality(
        reconstruction_loss=float(loss),
        unexplained_variance=float(loss / variance) if variance > 0 else 0.0,
        levels=tuple(
            level_quality(code_I, size)
            for code_I, size in zip(codes.T, codebook.level_sizes, strict=True)
        ),
        num_ids=items_per_id.size,
        own_id_share=own / codes.shape[0],
        colliding_items=codes.shape[0] - own,
        largest_collision=int(items_per_id.max()),
    )


def level_quality(codes: Int[np.ndarray, "I"], size: int) -> LevelQuality:
    """Measures how evenly one level's codes are used: with p_k = n_k / I, H = -sum p_k log2 p_k.

    Args:
      codes: one code per item.
      size: K.

    Returns:
      All measures of the level.

    >>> even = level_quality(np.array([0, 1, 2, 3]), 4)
    >>> even.entropy_bits, even.perplexity, even.utilisation
    (2.0, 4.0, 1.0)
    >>> one = level_quality(np.array([3, 3, 3]), 4)
    >>> one.entropy_bits, one.perplexity, one.utilisation
    (0.0, 1.0, 0.25)
    """
    bucket_K = np.bincount(codes, minlength=size)
    share = bucket_K[bucket_K > 0] / codes.size
    entropy_bits = float(np.sum(share * np.log2(1.0 / share)))
    return LevelQuality(
        size=size,
        utilisation=float(np.mean(bucket_K > 0)),
        entropy_bits=entropy_bits,
        perplexity=2.0**entropy_bits,
        smallest_bucket=int(bucket_K.min()),
        largest_bucket=int(bucket_K.max()),
    )


def quality_table(columns: dict[str, AssignmentQuality]) -> str:
    """Prints assignments side by side.

    Args:
      columns: assignments by title, all with the same levels.

    Returns:
      Lines of aligned text.
    """
    rows = [["", *columns]]
    for name, form in _FORMATS.items():
        rows.append([name.replace("_", " "), *(form(getattr(q, name)) for q in columns.values())])
    first = next(iter(columns.values()))
    for level in range(len(first.levels)):
        for name, form in _LEVEL_FORMATS.items():
            values = [form(getattr(q.levels[level], name)) for q in columns.values()]
            rows.append([f"level {level + 1} {name.replace('_', ' ')}", *values])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(_line(row, widths) for row in rows)


def _line(row: list[str], widths: list[int]) -> str:
    """The name to the left, the values to the right."""
    values = [value.rjust(width) for value, width in zip(row[1:], widths[1:], strict=True)]
    return "  ".join([row[0].ljust(widths[0]), *values]).rstrip()


_FORMATS = {
    "reconstruction_loss": "{:.4f}".format,
    "unexplained_variance": "{:.1%}".format,
    "num_ids": "{:,}".format,
    "own_id_share": "{:.1%}".format,
    "colliding_items": "{:,}".format,
    "largest_collision": "{:,}".format,
}
_LEVEL_FORMATS = {
    "size": "{:,}".format,
    "utilisation": "{:.1%}".format,
    "entropy_bits": "{:.3f}".format,
    "perplexity": "{:.1f}".format,
    "smallest_bucket": "{:,}".format,
    "largest_bucket": "{:,}".format,
}
