"""Keys and values of earlier tokens: made, grown, and filled with prompts.

Keys lie as scores need them, slots last: their product with queries then runs several times as fast
on CPUs as with slots first.

Dimension key: B rows of the batch, P prompts, I rows to write, S cache slots, K key heads, X head
dimension.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from core_jax.arrays import Array, Int, PyTree
from reasoning_jax.model.config import DecoderConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class KvCache:
    """Rotated keys and values of the tokens so far.

    A row's token at position t lies in slot t. Slots past a row's position hold anything.
    """

    keys: PyTree
    """[B, K, X, S], a tuple over layers."""
    values: PyTree
    """[B, K, S, X], a tuple over layers."""

    @property
    def num_slots(self) -> int:
        """Slots per row, S."""
        return self.keys[0].shape[3]


def empty_cache(config: DecoderConfig, num_rows: int, num_slots: int, dtype: jnp.dtype) -> KvCache:
    """A cache of zeros.

    Args:
      config: the architecture.
      num_rows: rows of the batch, B.
      num_slots: tokens that a row can hold, S.
      dtype: of keys and values.
    """
    heads = (num_rows, config.num_kv_heads)
    layers = range(config.num_layers)
    return KvCache(
        keys=tuple(jnp.zeros((*heads, config.head_dim, num_slots), dtype) for _ in layers),
        values=tuple(jnp.zeros((*heads, num_slots, config.head_dim), dtype) for _ in layers),
    )


def grow_cache(cache: KvCache, num_slots: int, *, delete: bool = False) -> KvCache:
    """The same cache with room for more tokens per row.

    Args:
      cache: what there is.
      num_slots: tokens that a row can hold then, at least as many as now.
      delete: whether each part is deleted once it is copied, so that no more than one part is
        there twice; the caller gives the cache up.
    """
    added = num_slots - cache.num_slots

    def grow(part: Array, dim: int) -> Array:
        widths = [(0, added if each == dim else 0) for each in range(part.ndim)]
        grown = jnp.pad(part, widths)
        if delete:
            part.delete()
        return grown

    return KvCache(
        keys=tuple(grow(part, 3) for part in cache.keys),
        values=tuple(grow(part, 2) for part in cache.values),
    )


def insert_rows(
    cache: KvCache,
    prefilled: KvCache,
    prompts: Int[Array, "I"],
    rows: Int[Array, "I"],
    count: Int[Array, ""],
    mesh: Mesh | None = None,
) -> KvCache:
    """Copies prompts into rows of the cache; the other rows stay where they are in memory.

    Args:
      cache: given up by the caller, if it is to be changed in place.
      prefilled: keys and values of P prompts, with at most as many slots.
      prompts: which prompt each written row takes.
      rows: the rows to write.
      count: how many entries of `prompts` and `rows` count.
      mesh: where both are, if on several devices.
    """

    def place(layer: Array, prompts_P: Array) -> Array:
        if mesh is not None:
            # Any device's row may take any prompt: each part travels once, and not once per row.
            everywhere = NamedSharding(mesh, PartitionSpec(None, "tensor"))
            prompts_P = jax.lax.with_sharding_constraint(prompts_P, everywhere)

        def write(index: Array, layer: Array) -> Array:
            prompt_1 = jax.lax.dynamic_slice_in_dim(prompts_P, prompts[index], 1)
            return jax.lax.dynamic_update_slice(layer, prompt_1, (rows[index], 0, 0, 0))

        return jax.lax.fori_loop(0, count, write, layer)

    return jax.tree.map(place, cache, prefilled)
