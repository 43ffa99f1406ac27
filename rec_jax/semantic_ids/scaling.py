"""Centring and scaling of one part of an embedding, kept to treat new rows alike.

Dimension key: I items, N rows that may be new, D dimensions.
"""

import dataclasses

import numpy as np

from core_jax.arrays import Float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scaling:
    """Where a part's rows have their middle, and how far from it they lie."""

    mean: np.ndarray
    """Float64 [D]."""
    length: float
    """Root of the mean squared distance of the rows from their mean."""


def fit_scaling(part: Float[np.ndarray, "I D"]) -> Scaling:
    """Measures the rows of the catalogue, in float64.

    Args:
      part: one row per item.

    Returns:
      What `scale` needs to centre these rows and to bring them to a mean squared length of 1.
    """
    mean_D = part.mean(axis=0, dtype=np.float64)
    centred_ID = np.asarray(part, np.float64) - mean_D[None]
    mean_square = np.mean(np.sum(centred_ID**2, axis=-1))
    return Scaling(mean=mean_D, length=float(np.sqrt(max(mean_square, np.finfo(np.float32).tiny))))


def scale(scaling: Scaling, part: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
    """Centres rows and scales them all alike.

    Dimensions keep their relative scale: the small ones are mostly noise. Where all rows of the
    catalogue were equal, they become zeros.

    Args:
      scaling: measures of the catalogue.
      part: rows of the catalogue, or of new items.

    Returns:
      Float32.

    >>> catalogue = np.array([[5.0], [1.0]])
    >>> scaling = fit_scaling(catalogue)  # centred: 2, -2; mean square 4
    >>> scale(scaling, catalogue).tolist(), scale(scaling, np.array([[7.0]])).tolist()
    ([[1.0], [-1.0]], [[2.0]])
    """
    centred_ND = np.asarray(part, np.float64) - scaling.mean[None]
    return (centred_ND / scaling.length).astype(np.float32)
