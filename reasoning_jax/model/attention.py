"""Grouped-query attention of packed rows: one function, the fast kernel of each backend.

Dimension key: B batch, T tokens, H query heads, K key heads, G queries per key head (H / K),
X head dimension.
"""

import enum
from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from core_jax.arrays import Array, Float, Int
from core_jax.errors import ConfigError
from core_jax.mesh import BATCH_AXES

MASKED_SCORE = -1e30
"""Finite, so that a row without any visible key stays finite."""
SPLASH_BLOCK = 128
"""The TPU kernel works on blocks of this many tokens, and on heads of this width or half of it."""


class AttentionKernel(enum.Enum):
    """How attention is computed."""

    AUTO = "auto"
    EINSUM = "einsum"
    CUDNN = "cudnn"
    SPLASH = "splash"


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
    chosen = _choose(kernel, queries, mesh)
    if mesh is not None and mesh.size > 1 and chosen is not _einsum:
        heads = PartitionSpec(BATCH_AXES, None, "tensor")
        chosen = jax.shard_map(
            chosen,
            mesh=mesh,
            in_specs=(heads, heads, heads, PartitionSpec(BATCH_AXES)),
            out_specs=heads,
            check_vma=False,
        )
    return chosen(queries, keys, values, segment_ids)


def _choose(
    kernel: AttentionKernel, queries: Array, mesh: Mesh | None
) -> Callable[[Array, Array, Array, Array], Array]:
    """The function that computes attention where `mesh`, or else the default backend, is."""
    platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    _, length, _, head_dim = queries.shape
    splash_fits = length % SPLASH_BLOCK == 0 and head_dim % (SPLASH_BLOCK // 2) == 0
    is_half = queries.dtype in (jnp.bfloat16, jnp.float16)
    if kernel is AttentionKernel.SPLASH and not splash_fits:
        raise ConfigError(
            f"the splash kernel takes lengths that {SPLASH_BLOCK} divides and heads of a width "
            f"that {SPLASH_BLOCK // 2} divides, not queries of shape {queries.shape}; pad the "
            "rows, or use kernel 'auto'"
        )
    if kernel is AttentionKernel.CUDNN and not is_half:
        raise ConfigError(
            f"cuDNN's attention takes bfloat16 or float16, not {queries.dtype}; set model.dtype "
            "to bfloat16, or use kernel 'auto'"
        )
    if kernel is AttentionKernel.AUTO:
        if platform in ("gpu", "cuda") and is_half:
            return _cudnn
        return _splash if platform == "tpu" and splash_fits else _einsum
    return {
        AttentionKernel.EINSUM: _einsum,
        AttentionKernel.CUDNN: _cudnn,
        AttentionKernel.SPLASH: _splash,
    }[kernel]


def _einsum(queries: Array, keys: Array, values: Array, segment_ids: Array) -> Array:
    """Plain matrix products, heads grouped by reshape."""
    batch, length, num_heads, head_dim = queries.shape
    grouped_BTKGX = queries.reshape(batch, length, keys.shape[2], -1, head_dim)
    scores_BKGTS = jnp.einsum(
        "btkgx,bskx->bkgts", grouped_BTKGX, keys, preferred_element_type=jnp.float32
    )
    same_BTS = segment_ids[:, :, None] == segment_ids[:, None, :]
    visible_BTS = same_BTS & jnp.tril(jnp.ones((1, length, length), bool))
    scores_BKGTS = jnp.where(
        visible_BTS[:, None, None], scores_BKGTS * head_dim**-0.5, MASKED_SCORE
    )
    weights_BKGTS = jax.nn.softmax(scores_BKGTS, axis=-1).astype(queries.dtype)
    mixed_BTKGX = jnp.einsum(
        "bkgts,bskx->btkgx", weights_BKGTS, values, preferred_element_type=jnp.float32
    )
    return mixed_BTKGX.reshape(batch, length, num_heads, head_dim).astype(queries.dtype)


def _cudnn(queries: Array, keys: Array, values: Array, segment_ids: Array) -> Array:
    """The flash attention of cuDNN; packed segments as a mask."""
    same_BTS = segment_ids[:, :, None] == segment_ids[:, None, :]
    return jax.nn.dot_product_attention(
        queries, keys, values, mask=same_BTS[:, None], is_causal=True, implementation="cudnn"
    )


def _splash(queries: Array, keys: Array, values: Array, segment_ids: Array) -> Array:
    """The block-sparse flash attention of TPUs: one kernel per row and key head."""
    # Here, since Pallas takes a second to import.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    batch, length, num_heads, head_dim = queries.shape
    num_groups = num_heads // keys.shape[2]
    mask = splash.MultiHeadMask([splash.CausalMask((length, length)) for _ in range(num_groups)])
    kernel = splash.make_splash_mqa_single_device(mask)
    queries_BKGTX = (queries * head_dim**-0.5).reshape(
        batch, length, keys.shape[2], num_groups, head_dim
    )
    over_heads = jax.vmap(kernel, in_axes=(0, 0, 0, None))
    mixed_BKGTX = jax.vmap(over_heads)(
        queries_BKGTX.transpose(0, 2, 3, 1, 4),
        keys.swapaxes(1, 2),
        values.swapaxes(1, 2),
        splash.SegmentIds(segment_ids, segment_ids),
    )
    mixed_BTKGX = cast(Array, mixed_BKGTX).transpose(0, 3, 1, 2, 4)
    return mixed_BTKGX.reshape(queries.shape).astype(queries.dtype)
