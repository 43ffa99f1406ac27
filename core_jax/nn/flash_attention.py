"""Flash attention: scores that never reach memory, by the kernel of the devices at hand.

Tokens look at tokens of their own segment: sequences packed into a row, or what is real beside
padding. The plain products that do the same stay with the caller, whose masks may say more.

Dimension key: B batch, T queries, S keys, H query heads, K key heads, G queries per key head
(H / K), X head dimension.
"""

import enum
import functools
import math
from typing import cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from core_jax.arrays import Array, Float, Int
from core_jax.errors import ConfigError
from core_jax.mesh import BATCH_AXES

SPLASH_BLOCK = 128
"""The TPU kernel works on blocks of multiples of this, and on heads of this width or half of it."""
LARGEST_BLOCK = 512
"""Tokens per block where the length allows it: a block of queries reads all keys anew, and each
step of the kernel's grid has a fixed cost. 512 x 512 scores in float32 take 1 MiB on the chip."""
CUDNN_WIDEST_HEAD = 128
"""Before Hopper; cuDNN takes multiples of 8 up to this."""


class AttentionKernel(enum.Enum):
    """How attention is computed."""

    AUTO = "auto"
    EINSUM = "einsum"
    CUDNN = "cudnn"
    SPLASH = "splash"


def choose_kernel(
    kernel: AttentionKernel,
    queries: Float[Array, "B T H X"],
    keys: Float[Array, "B S K X"],
    mesh: Mesh | None,
) -> AttentionKernel:
    """What AUTO stands for, or the kernel that is asked for.

    Args:
      kernel: AUTO takes cuDNN's flash attention on NVIDIA GPUs, the splash kernel on TPUs, where
        they take the shapes and the dtype, else the plain products.
      queries: what looks; shape and dtype matter alone.
      keys: what is looked at.
      mesh: says for which platform, the default backend without it: the process may compile for
        devices that it does not have.

    Returns:
      EINSUM, CUDNN or SPLASH.

    Raises:
      ConfigError: a kernel is asked for that cannot take these arrays.
    """
    refused = {
        AttentionKernel.SPLASH: _refused_by_splash(queries, keys),
        AttentionKernel.CUDNN: _refused_by_cudnn(queries, keys),
    }
    if kernel is AttentionKernel.AUTO:
        platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
        fast = _FAST.get(platform, AttentionKernel.EINSUM)
        return AttentionKernel.EINSUM if refused.get(fast) else fast
    if refused.get(kernel):
        raise ConfigError(refused[kernel])
    return kernel


_FAST = {
    "gpu": AttentionKernel.CUDNN,
    "cuda": AttentionKernel.CUDNN,
    "tpu": AttentionKernel.SPLASH,
}
"""The kernel of a platform; others have none."""


def flash_attention(
    kernel: AttentionKernel,
    queries: Float[Array, "B T H X"],
    keys: Float[Array, "B S K X"],
    values: Float[Array, "B S K X"],
    *,
    query_segments: Int[Array, "B T"],
    key_segments: Int[Array, "B S"],
    is_causal: bool,
    mesh: Mesh | None,
) -> Float[Array, "B T H X"]:
    """Scaled dot-product attention within segments; scores and softmax in float32.

    A query needs a key that it may look at: without one the gradients of the kernels are wrong.

    Args:
      kernel: CUDNN or SPLASH, from `choose_kernel`.
      queries: query vectors.
      keys: key vectors; key head k serves the query heads k * G to (k + 1) * G - 1.
      values: value vectors.
      query_segments: which segment a query belongs to.
      key_segments: which segment a key belongs to.
      is_causal: whether a query looks at no later key; needs T = S.
      mesh: with several devices, each works on its own rows and key heads.

    Returns:
      Weighted averages of the values, in the dtype of `queries`.
    """
    compute = _splash if kernel is AttentionKernel.SPLASH else _cudnn
    compute = functools.partial(compute, is_causal)
    if mesh is not None and mesh.size > 1:
        # The compiler cannot split a kernel; left to itself it would gather what it works on.
        heads, rows = PartitionSpec(BATCH_AXES, None, "tensor"), PartitionSpec(BATCH_AXES)
        compute = jax.shard_map(
            compute,
            mesh=mesh,
            in_specs=(heads, heads, heads, rows, rows),
            out_specs=heads,
            check_vma=False,
        )
    return compute(queries, keys, values, query_segments, key_segments)


def _refused_by_splash(queries: Array, keys: Array) -> str:
    """Why the splash kernel does not take these arrays; "" where it does."""
    lengths, head_dim = (queries.shape[1], keys.shape[1]), queries.shape[-1]
    if not any(length % SPLASH_BLOCK for length in lengths) and not head_dim % (SPLASH_BLOCK // 2):
        return ""
    return (
        f"the splash kernel takes lengths that {SPLASH_BLOCK} divides and heads of a width "
        f"that {SPLASH_BLOCK // 2} divides, not queries of shape {queries.shape} and "
        f"{lengths[1]} keys; pad the rows, or use kernel 'auto'"
    )


def _refused_by_cudnn(queries: Array, keys: Array) -> str:
    """Why cuDNN does not take these arrays; "" where it does."""
    if queries.dtype not in (jnp.bfloat16, jnp.float16):
        return (
            f"cuDNN's attention takes bfloat16 or float16, not {queries.dtype}; set the model's "
            "dtype to bfloat16, or use kernel 'auto'"
        )
    lengths, head_dim = (queries.shape[1], keys.shape[1]), queries.shape[-1]
    if any(length % 2 for length in lengths) or head_dim % 8 or head_dim > CUDNN_WIDEST_HEAD:
        return (
            "cuDNN's attention takes even lengths and heads of a width that 8 divides, up to "
            f"{CUDNN_WIDEST_HEAD}, not queries of shape {queries.shape} and {lengths[1]} keys; "
            "pad the rows, or use kernel 'auto'"
        )
    return ""


def _cudnn(
    is_causal: bool,
    queries: Array,
    keys: Array,
    values: Array,
    query_segments: Array,
    key_segments: Array,
) -> Array:
    """The flash attention of cuDNN; segments as a mask that all heads share."""
    same_BTS = query_segments[:, :, None] == key_segments[:, None, :]
    return jax.nn.dot_product_attention(
        queries, keys, values, mask=same_BTS[:, None], is_causal=is_causal, implementation="cudnn"
    )


def _splash(
    is_causal: bool,
    queries: Array,
    keys: Array,
    values: Array,
    query_segments: Array,
    key_segments: Array,
) -> Array:
    """The block-sparse flash attention of TPUs: one kernel per row and key head."""
    # Here, since Pallas takes a second to import.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    batch, length, num_heads, head_dim = queries.shape
    num_keys, num_key_heads = keys.shape[1:3]
    num_groups = num_heads // num_key_heads
    query_block, key_block = math.gcd(length, LARGEST_BLOCK), math.gcd(num_keys, LARGEST_BLOCK)
    kind = splash.CausalMask if is_causal else splash.FullMask
    kernel = splash.make_splash_mqa_single_device(
        splash.MultiHeadMask([kind((length, num_keys)) for _ in range(num_groups)]),
        block_sizes=splash.BlockSizes(
            block_q=query_block,
            block_kv=key_block,
            block_q_dkv=query_block,
            block_kv_dkv=key_block,
            block_q_dq=query_block,
            block_kv_dq=key_block,
        ),
    )
    queries_BKGTX = (queries * head_dim**-0.5).reshape(
        batch, length, num_key_heads, num_groups, head_dim
    )
    over_heads = jax.vmap(kernel, in_axes=(0, 0, 0, None))
    mixed_BKGTX = jax.vmap(over_heads)(
        queries_BKGTX.transpose(0, 2, 3, 1, 4),
        keys.swapaxes(1, 2),
        values.swapaxes(1, 2),
        splash.SegmentIds(query_segments, key_segments),
    )
    mixed_BTKGX = cast(Array, mixed_BKGTX).transpose(0, 3, 1, 2, 4)
    return mixed_BTKGX.reshape(queries.shape).astype(queries.dtype)
