"""New items among the catalogue: their codes, how well these fit, and which items are near.

Dimension key: N new items, I items of the catalogue, D embedding dimensions, L code levels before
the one that resolves collisions, K near items.
"""

import dataclasses

import numpy as np

from core_jax.arrays import Float, Int
from rec_jax.semantic_ids.codebook import Codebook
from rec_jax.semantic_ids.residual import encode_nearest


@dataclasses.dataclass(frozen=True, kw_only=True)
class NewItems:
    """What the codebook makes of new items. NumPy arrays; row n is new item n."""

    codes: np.ndarray
    """Int32 [N, L]: nearest centroids."""
    errors: np.ndarray
    """Float64 [N]: squared distance of the embedding to the sum of its centroids."""
    num_sharing: np.ndarray
    """Int64 [N]: items of the catalogue with the same codes on every level."""
    nearest: np.ndarray
    """Int64 [N, K]: items of the catalogue, those that share most leading codes first, and of
    these the nearest by embedding first."""
    shared_levels: np.ndarray
    """Int64 [N, K]: leading codes that each of them shares."""


def encode_new_items(
    codebook: Codebook,
    embeddings: Float[np.ndarray, "N D"],
    *,
    catalogue_embeddings: Float[np.ndarray, "I D"],
    catalogue_codes: Int[np.ndarray, "I L"],
    num_nearest: int,
) -> NewItems:
    """Encodes by nearest centroid, and looks where the codes lead.

    Args:
      codebook: the centroids.
      embeddings: of the new items, made as the catalogue's were.
      catalogue_embeddings: those the codebook was built from.
      catalogue_codes: codes of the catalogue's items, without the level that resolves collisions.
      num_nearest: K, cut to the number of items I.

    Returns:
      Codes, errors, and items of the catalogue to compare with.

    Raises:
      DataError: the embeddings have another width than the codebook, or are not finite.
    """
    codes_NL = encode_nearest(codebook, embeddings)
    rest_ND = embeddings.astype(np.float64)
    for centroids_KD, code_N in zip(codebook.centroids, codes_NL.T, strict=True):
        rest_ND = rest_ND - centroids_KD[code_N]
    nearest, shared_levels, num_sharing = [], [], []
    for row_D, code_L in zip(embeddings, codes_NL, strict=True):
        is_equal_IL = catalogue_codes == code_L[None]
        shared_I = np.cumprod(is_equal_IL, axis=-1).sum(axis=-1)
        distance_I = np.sum((catalogue_embeddings - row_D[None]) ** 2, axis=-1)
        near_K = np.lexsort((distance_I, -shared_I))[:num_nearest]
        nearest.append(near_K)
        shared_levels.append(shared_I[near_K])
        num_sharing.append(int(is_equal_IL.all(axis=-1).sum()))
    return NewItems(
        codes=codes_NL,
        errors=np.sum(rest_ND**2, axis=-1),
        num_sharing=np.array(num_sharing),
        nearest=np.stack(nearest),
        shared_levels=np.stack(shared_levels),
    )
