"""What is known of items before any reward is learned, and vectors that start from it.

Dimension key: I items, E dimensions of the catalogue's embeddings, D model, C categories.
"""

import dataclasses

import numpy as np

from core_jax.arrays import Float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ItemFacts:
    """What is known of items from training data. NumPy arrays."""

    embeddings: np.ndarray
    """Float32 [I, E]: any vectors whose cosine means likeness."""
    categories: np.ndarray | None = None
    """Bool [I, C], or None where the catalogue has none."""
    durations: np.ndarray | None = None
    """Float64 [I]: mean duration in milliseconds in the training period, NaN where unknown; None
    where the log has no durations."""


def item_vectors(
    embeddings: Float[np.ndarray, "I E"],
    durations: Float[np.ndarray, "I"] | None,
    width: int,
) -> Float[np.ndarray, "I D"]:
    """Start values of the reward model's item vectors.

    The logarithm of the duration, standardised, where the log has durations (watch time depends on
    it more than on anything else); then the principal components of the embeddings, scaled so that
    an entry is about 1. Training changes all of it.

    Args:
      embeddings: what the semantic IDs were made of.
      durations: mean duration per item, NaN where unknown (it counts as the mean); or None.
      width: D.

    Returns:
      Float32; zero in dimensions beyond the embeddings' own.
    """
    columns = []
    if durations is not None:
        log_I = np.log1p(durations)
        log_I = np.where(np.isnan(log_I), np.nanmean(log_I), log_I) - np.nanmean(log_I)
        columns.append((log_I / max(log_I.std(), 1e-6))[:, None])
    centred_IE = embeddings.astype(np.float64) - embeddings.mean(axis=0, dtype=np.float64)
    _, directions_EE = np.linalg.eigh(centred_IE.T @ centred_IE)
    kept = directions_EE[:, ::-1][:, : width - len(columns)]
    components = centred_IE @ kept
    root = np.sqrt(np.mean(np.sum(components**2, axis=1)) / width)
    columns.append(components / max(root, 1e-6))
    joined = np.concatenate(columns, axis=1)
    return np.pad(joined, ((0, 0), (0, width - joined.shape[1]))).astype(np.float32)
