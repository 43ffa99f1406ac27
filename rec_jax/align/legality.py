"""Rewards for legal codes: sampled sessions that join a group of ECPO or GBPO.

Dimension key: P groups, J sampled sessions of a group, M session items.
"""

import jax
import jax.numpy as jnp

from core_jax.arrays import Array, Bool, Float, Key
from core_jax.errors import ConfigError


def legality_group(
    is_legal: Bool[Array, "P J"], num_items: int, *, num_chosen: int, key: Key[Array, ""]
) -> tuple[Bool[Array, "P J M"], Float[Array, "P J"]]:
    """Chooses sampled sessions at random: legal ones get advantage 1, all others do not exist.

    Negative advantages squeeze probability towards codes of no item; what keeps the policy legal
    is a reward for random samples of its own, drawn without the catalogue's constraint
    (arXiv:2506.13695: 5 of 128). The most probable samples would be legal anyway.

    Args:
      is_legal: whether every item of a sampled session exists.
      num_items: M.
      num_chosen: samples per group that are looked at, at most J.
      key: random key.

    Returns:
      The sessions' part of `PreferenceBatch.response_mask` and `.advantages`.

    Raises:
      ConfigError: there are fewer samples than are to be chosen, or none is.
    """
    num_samples = is_legal.shape[1]
    if not 1 <= num_chosen <= num_samples:
        raise ConfigError(
            f"{num_chosen} of {num_samples} sampled sessions are to be rewarded for legality; "
            f"choose 1 to {num_samples}, or sample more"
        )
    noise_PJ = jax.random.uniform(key, is_legal.shape)
    rank_PJ = jnp.argsort(jnp.argsort(noise_PJ, axis=1), axis=1)
    counts_PJ = is_legal & (rank_PJ < num_chosen)
    mask_PJM = jnp.broadcast_to(counts_PJ[..., None], (*is_legal.shape, num_items))
    return mask_PJM, counts_PJ.astype(jnp.float32)
