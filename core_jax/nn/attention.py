"""Multi-head attention: self (full or causal), cross, and with a cache of earlier keys.

Dimension key: B batch, T queries, S keys, H heads, X head dimension, D model.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from core_jax.arrays import Array, Bool, Float
from core_jax.nn.linear import Linear

MASKED_SCORE = -1e30
"""Finite, so that a row without any visible key stays finite (it averages all values)."""


def attend(
    queries: Float[Array, "B T H X"],
    keys: Float[Array, "B S H X"],
    values: Float[Array, "B S H X"],
    *,
    visible: Bool[Array, "#B #T S"],
) -> Float[Array, "B T H X"]:
    """Scaled dot-product attention; scores and softmax in float32.

    Args:
      queries: query vectors.
      keys: key vectors.
      values: value vectors.
      visible: True where a query may look at a key; broadcast over heads.

    Returns:
      Weighted averages of the values, in the dtype of `queries`.
    """
    scale = queries.shape[-1] ** -0.5
    scores_BHTS = jnp.einsum("bthx,bshx->bhts", queries, keys, preferred_element_type=jnp.float32)
    scores_BHTS = jnp.where(visible[:, None], scores_BHTS * scale, MASKED_SCORE)
    weights_BHTS = jax.nn.softmax(scores_BHTS, axis=-1).astype(queries.dtype)
    mixed_BTHX = jnp.einsum(
        "bhts,bshx->bthx", weights_BHTS, values, preferred_element_type=jnp.float32
    )
    return mixed_BTHX.astype(queries.dtype)


class Attention(nn.Module):
    """Projections around `attend`; the caller decides what keys and values are.

    Parameters: query, key, value [D, H, X] and out [H, X, D], no biases.
    """

    num_heads: int
    head_dim: int
    model_dim: int
    dtype: jnp.dtype = jnp.dtype("float32")

    def setup(self) -> None:
        """Declares the four projections."""
        heads = (self.num_heads, self.head_dim)
        self.query = Linear(heads, dtype=self.dtype)
        self.key = Linear(heads, dtype=self.dtype)
        self.value = Linear(heads, dtype=self.dtype)
        self.out = Linear((self.model_dim,), contracted_dims=2, dtype=self.dtype)

    def keys_values(
        self, source: Float[Array, "B S D"]
    ) -> tuple[Float[Array, "B S H X"], Float[Array, "B S H X"]]:
        """Projects the attended sequence to keys and values."""
        return self.key(source), self.value(source)

    def mix(
        self,
        targets: Float[Array, "B T D"],
        keys: Float[Array, "B S H X"],
        values: Float[Array, "B S H X"],
        visible: Bool[Array, "#B #T S"],
    ) -> Float[Array, "B T D"]:
        """Attends from `targets` to given keys and values."""
        return self.out(attend(self.query(targets), keys, values, visible=visible))

    def __call__(
        self,
        targets: Float[Array, "B T D"],
        source: Float[Array, "B S D"],
        visible: Bool[Array, "#B #T S"],
    ) -> Float[Array, "B T D"]:
        """Attends from `targets` to `source` (the same array for self-attention)."""
        keys, values = self.keys_values(source)
        return self.mix(targets, keys, values, visible)
