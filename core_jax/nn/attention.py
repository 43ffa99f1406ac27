"""Multi-head attention: self (full or causal), cross, and with a cache of earlier keys.

Dimension key: B batch, T queries, S keys, H heads, X head dimension, D model, G queries of all
heads (T * H), Z dimensions of all heads (H * X).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from core_jax.arrays import Array, Bool, Float
from core_jax.nn.flash_attention import AttentionKernel, choose_kernel, flash_attention
from core_jax.nn.linear import Linear

MASKED_SCORE = -1e30
"""Finite, so that a row without any visible key stays finite (it averages all values)."""
FEW_QUERIES = 2
"""Up to this many queries per row, all heads of a row are one matrix product."""


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
    if queries.shape[1] <= FEW_QUERIES:
        return _attend_in_one_product(queries, keys, values, visible)
    scale = queries.shape[-1] ** -0.5
    scores_BHTS = jnp.einsum("bthx,bshx->bhts", queries, keys, preferred_element_type=jnp.float32)
    scores_BHTS = jnp.where(visible[:, None], scores_BHTS * scale, MASKED_SCORE)
    weights_BHTS = jax.nn.softmax(scores_BHTS, axis=-1).astype(queries.dtype)
    mixed_BTHX = jnp.einsum(
        "bhts,bshx->bthx", weights_BHTS, values, preferred_element_type=jnp.float32
    )
    return mixed_BTHX.astype(queries.dtype)


def _attend_in_one_product(
    queries: Float[Array, "B T H X"],
    keys: Float[Array, "B S H X"],
    values: Float[Array, "B S H X"],
    visible: Bool[Array, "#B #T S"],
) -> Float[Array, "B T H X"]:
    """`attend` with the heads side by side: each query is zero outside its own head.

    H times the multiplications, but keys and values are read in the order in which they lie in
    memory, by B products instead of B * H. With a query or two per row reading them is the cost.
    """
    batch, length, num_heads, head_dim = queries.shape
    num_keys, width = keys.shape[1], num_heads * head_dim
    is_own_HH = jnp.eye(num_heads, dtype=queries.dtype)
    queries_BTHHX = queries[:, :, :, None] * is_own_HH[None, None, :, :, None]
    scores_BGS = jnp.einsum(
        "bgz,bsz->bgs",
        queries_BTHHX.reshape(batch, length * num_heads, width),
        keys.reshape(batch, num_keys, width),
        preferred_element_type=jnp.float32,
    )
    scores_BTHS = scores_BGS.reshape(batch, length, num_heads, num_keys) * head_dim**-0.5
    scores_BTHS = jnp.where(visible[:, :, None], scores_BTHS, MASKED_SCORE)
    weights_BTHS = jax.nn.softmax(scores_BTHS, axis=-1).astype(queries.dtype)
    mixed_BGZ = jnp.einsum(
        "bgs,bsz->bgz",
        weights_BTHS.reshape(batch, length * num_heads, num_keys),
        values.reshape(batch, num_keys, width),
        preferred_element_type=jnp.float32,
    )
    mixed_BTHHX = mixed_BGZ.reshape(batch, length, num_heads, num_heads, head_dim)
    mixed_BTHX = jnp.diagonal(mixed_BTHHX, axis1=2, axis2=3).swapaxes(-1, -2)
    return mixed_BTHX.astype(queries.dtype)


def attend_to_keys(
    queries: Float[Array, "B T H X"],
    keys: Float[Array, "B S H X"],
    values: Float[Array, "B S H X"],
    *,
    key_mask: Bool[Array, "B S"],
    kernel: AttentionKernel,
    mesh: Mesh | None,
) -> Float[Array, "B T H X"]:
    """`attend` where every query looks at all real keys, by a flash kernel where one fits.

    Args:
      queries: query vectors.
      keys: key vectors.
      values: value vectors.
      key_mask: True at real keys. A row without any averages all values, as in `attend`.
      kernel: how it is computed, see `choose_kernel`.
      mesh: says for which platform, the default backend without it; needed by a flash kernel on
        several devices.

    Returns:
      Weighted averages of the values, in the dtype of `queries`.

    Raises:
      ConfigError: a kernel is asked for that cannot take these arrays.
    """
    chosen = choose_kernel(kernel, queries, keys, mesh)
    if chosen is AttentionKernel.EINSUM:
        return attend(queries, keys, values, visible=key_mask[:, None])
    # Real keys are segment 1, and so are all queries. A row without a real key is one segment of
    # zeros, where queries of length zero give every key the same weight.
    has_key_B = key_mask.any(axis=1)
    return flash_attention(
        chosen,
        jnp.where(has_key_B[:, None, None, None], queries, 0),
        keys,
        values,
        query_segments=jnp.broadcast_to(has_key_B[:, None], queries.shape[:2]).astype(jnp.int32),
        key_segments=key_mask.astype(jnp.int32),
        is_causal=False,
        mesh=mesh,
    )


class Attention(nn.Module):
    """Projections around `attend`; the caller decides what keys and values are.

    Parameters: query, key, value [D, H, X] and out [H, X, D], no biases.

    Attributes:
      num_heads: H.
      head_dim: X.
      model_dim: D.
      dtype: compute dtype.
      kernel: of `to_keys`, where alone there is a choice.
      mesh: device mesh of the batch, or None.
    """

    num_heads: int
    head_dim: int
    model_dim: int
    dtype: jnp.dtype = jnp.dtype("float32")
    kernel: AttentionKernel = AttentionKernel.EINSUM
    mesh: Mesh | None = None

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

    def to_keys(
        self,
        targets: Float[Array, "B T D"],
        source: Float[Array, "B S D"],
        key_mask: Bool[Array, "B S"],
    ) -> Float[Array, "B T D"]:
        """Attends from every target to all of `source` where `key_mask` is True, by `kernel`."""
        keys, values = self.keys_values(source)
        # A model is initialised on a few tokens of any dtype, which no kernel need take.
        kernel = AttentionKernel.EINSUM if self.is_initializing() else self.kernel
        mixed = attend_to_keys(
            self.query(targets), keys, values, key_mask=key_mask, kernel=kernel, mesh=self.mesh
        )
        return self.out(mixed)
