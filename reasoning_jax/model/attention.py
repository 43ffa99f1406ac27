"""Causal grouped-query attention of packed rows: a flash kernel, or plain products.

Dimension key: B batch, T tokens, H query heads, K key heads, G queries per key head (H / K),
X head dimension, M queries of a key head (G * T), S tokens looked at.
"""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from core_jax.arrays import Array, Float, Int
from core_jax.nn.flash_attention import AttentionKernel, choose_kernel, flash_attention

MASKED_SCORE = -1e30
"""Finite, so that a row without any visible key stays finite."""
MOST_BLOCKS, SHORTEST_BLOCK = 8, 64
"""Of the queries of a row, where attention is plain products: each block is compiled by itself."""


def attend_causally(
    queries: Float[Array, "B T H X"],
    keys: Float[Array, "B T K X"],
    values: Float[Array, "B T K X"],
    *,
    segment_ids: Int[Array, "B T"],
    kernel: AttentionKernel = AttentionKernel.AUTO,
    mesh: Mesh | None = None,
) -> Float[Array, "B T H X"]:
    """Every token looks at the earlier ones of its own segment, and at itself.

    Args:
      queries: rotated queries.
      keys: rotated keys; key head k serves the query heads k * G to (k + 1) * G - 1.
      values: values.
      segment_ids: which of the sequences packed into a row a token belongs to; padding is a
        segment as well.
      kernel: AUTO takes cuDNN's flash attention on NVIDIA GPUs (bfloat16 or float16), the splash
        kernel on TPUs (lengths and head widths that its blocks divide), else XLA's matrix
        products.
      mesh: says for which platform, the default backend without it; with several devices, a kernel
        works on each device's own rows and key heads.

    Returns:
      Averages of the values, in the dtype of `queries`; scores and softmax in float32.

    Raises:
      ConfigError: a kernel is asked for that cannot take these shapes.
    """
    chosen = choose_kernel(kernel, queries, keys, mesh)
    if chosen is AttentionKernel.EINSUM:
        return _einsum(queries, keys, values, segment_ids)
    return flash_attention(
        chosen,
        queries,
        keys,
        values,
        query_segments=segment_ids,
        key_segments=segment_ids,
        is_causal=True,
        mesh=mesh,
    )


def _einsum(queries: Array, keys: Array, values: Array, segment_ids: Array) -> Array:
    """Plain matrix products, block by block of queries: later keys are not looked at.

    Of a row of N blocks that is (N + 1) / 2N of the scores, which are the largest array by far.
    """
    length = queries.shape[1]
    num_blocks = max(1, min(MOST_BLOCKS, length // SHORTEST_BLOCK))
    stops = [length * (number + 1) // num_blocks for number in range(num_blocks)]
    outputs = [
        _einsum_block(
            queries[:, start:stop], keys[:, :stop], values[:, :stop], segment_ids[:, :stop]
        )
        for start, stop in zip([0, *stops[:-1]], stops, strict=True)
    ]
    return jnp.concatenate(outputs, axis=1)


def _einsum_block(queries: Array, keys: Array, values: Array, segment_ids: Array) -> Array:
    """The last queries of a row of keys, those of a key head one after the other: M = G * T.

    So that scores lie as the products give and take them: they are much larger than what is turned
    here, queries, keys and values.
    """
    batch, length, num_heads, head_dim = queries.shape
    num_groups = num_heads // keys.shape[2]
    first = keys.shape[1] - length
    grouped_BTKGX = queries.reshape(batch, length, keys.shape[2], num_groups, head_dim)
    queries_BKMX = grouped_BTKGX.transpose(0, 2, 3, 1, 4).reshape(
        batch, keys.shape[2], -1, head_dim
    )
    scores_BKMS = jnp.einsum(
        "bkmx,bksx->bkms",
        queries_BKMX,
        keys.swapaxes(1, 2),
        preferred_element_type=jnp.float32,
    )
    same_BTS = segment_ids[:, first:, None] == segment_ids[:, None, :]
    visible_BTS = same_BTS & jnp.tril(jnp.ones((1, *same_BTS.shape[1:]), bool), first)
    visible_BMS = jnp.tile(visible_BTS, (1, num_groups, 1))
    scores_BKMS = jnp.where(visible_BMS[:, None], scores_BKMS * head_dim**-0.5, MASKED_SCORE)
    weights_BKMS = jax.nn.softmax(scores_BKMS, axis=-1).astype(queries.dtype)
    mixed_BKMX = jnp.einsum(
        "bkms,bksx->bkmx",
        weights_BKMS,
        values.swapaxes(1, 2),
        preferred_element_type=jnp.float32,
    )
    mixed_BKGTX = mixed_BKMX.reshape(batch, keys.shape[2], num_groups, length, head_dim)
    mixed_BTKGX = mixed_BKGTX.transpose(0, 3, 1, 2, 4)
    return mixed_BTKGX.reshape(batch, length, num_heads, head_dim).astype(queries.dtype)
