"""What beams have written: keys and values of their tokens, which stay where they were written.

A beam that continues from another does not copy its tokens. The cache knows who holds them: for
every beam and position, the beam in whose place the keys and values lie. So moving the beams moves
a few integers, and attention gathers what it looks at once, as far as sessions have been written.

Dimension key: B batch, K beams, G beams that a position has places for, P decoder positions,
W positions looked at, T new tokens, R rows (B * K), H heads, X head dimension, Z = H * X.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from core_jax.arrays import Array, Float, Int, PyTree
from core_jax.nn.attention import attend
from rec_jax.model.config import OneRecConfig

MAX_LENGTHS = 8
"""Most lengths that attention is compiled for."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderCache:
    """Self-attention keys and values of the tokens that the beams have written."""

    keys: PyTree
    """Tuple over decoder layers of [B, P, G, Z]."""
    values: PyTree
    """Tuple over decoder layers of [B, P, G, Z]."""
    holders: PyTree
    """Int32 [B, P, K]: the place, of G, that holds each beam's token of each position."""
    lengths: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    """Numbers of positions that attention may read, rising; the last is P."""


def init_cache(config: OneRecConfig, batch_size: int, num_beams: int) -> DecoderCache:
    """An empty cache for `num_beams` beams of each of `batch_size` users."""
    num_tokens, width = config.decoder_tokens, config.num_heads * config.head_dim
    shape = (batch_size, num_tokens, num_beams, width)
    empty = (jnp.zeros(shape, config.compute_dtype.dtype),) * config.num_decoder_layers
    places_K = jnp.arange(num_beams, dtype=jnp.int32)
    step = (config.num_levels + 1) * -(-config.session_items // MAX_LENGTHS)
    return DecoderCache(
        keys=empty,
        values=empty,
        holders=jnp.broadcast_to(places_K, shape[:3]),
        lengths=(*range(step, num_tokens, step), num_tokens),
    )


def follow(cache: DecoderCache, parents: Int[Array, "B K"]) -> DecoderCache:
    """Lets every new beam continue from its parent; there may be more or fewer than before."""

    def of_parents(holders_PK: Array, parents_K: Array) -> Array:
        return holders_PK.at[:, parents_K].get(mode="promise_in_bounds")

    return dataclasses.replace(cache, holders=jax.vmap(of_parents)(cache.holders, parents))


def hold_new(cache: DecoderCache, start: Int[Array, ""] | int, num_tokens: int) -> DecoderCache:
    """Says that every beam holds its tokens of positions start .. start + num_tokens - 1 itself."""
    batch_size, _, num_beams = cache.holders.shape
    places_BTK = jnp.broadcast_to(
        jnp.arange(num_beams, dtype=jnp.int32), (batch_size, num_tokens, num_beams)
    )
    holders = jax.lax.dynamic_update_slice_in_dim(cache.holders, places_BTK, start, axis=1)
    return dataclasses.replace(cache, holders=holders)


def attend_to_written(
    cache: DecoderCache,
    layer: int,
    start: Int[Array, ""] | int,
    queries: Float[Array, "R T H X"],
    keys: Float[Array, "R T H X"],
    values: Float[Array, "R T H X"],
) -> tuple[Float[Array, "R T H X"], DecoderCache]:
    """Writes one layer's keys and values of new tokens and attends to them and all before.

    Args:
      cache: after `hold_new` for the new tokens.
      layer: number of the decoder layer.
      start: position of the first new token; may be traced.
      queries: of the new tokens; rows are users times beams.
      keys: of the new tokens.
      values: of the new tokens.

    Returns:
      Weighted averages of the values, and the extended cache.
    """
    num_tokens = queries.shape[1]
    keys_BPGZ = _write(cache, cache.keys[layer], keys, start)
    values_BPGZ = _write(cache, cache.values[layer], values, start)
    cache = dataclasses.replace(
        cache,
        keys=(*cache.keys[:layer], keys_BPGZ, *cache.keys[layer + 1 :]),
        values=(*cache.values[:layer], values_BPGZ, *cache.values[layer + 1 :]),
    )
    query_T = start + jnp.arange(num_tokens)

    def read_up_to(length: int) -> Array:
        visible_TW = jnp.arange(length)[None, :] <= query_T[:, None]
        return attend(
            queries,
            _read(cache, keys_BPGZ, length).reshape(-1, length, *keys.shape[2:]),
            _read(cache, values_BPGZ, length).reshape(-1, length, *keys.shape[2:]),
            visible=visible_TW[None],
        )

    # Shapes are static; a branch per length reads no more than is written of a session.
    which = (start + (num_tokens - 1)) // cache.lengths[0]
    if isinstance(which, int):
        return read_up_to(cache.lengths[which]), cache
    branches = [partial(read_up_to, length) for length in cache.lengths]
    return jax.lax.switch(which, branches), cache


def _write(
    cache: DecoderCache,
    held: Float[Array, "B P G Z"],
    new: Float[Array, "R T H X"],
    start: Int[Array, ""] | int,
) -> Float[Array, "B P G Z"]:
    """Puts new keys or values into their beams' own places."""
    batch_size, num_beams = cache.holders.shape[0], cache.holders.shape[2]
    new_BKTZ = new.reshape(batch_size, num_beams, new.shape[1], -1)
    return jax.lax.dynamic_update_slice_in_dim(held, new_BKTZ.swapaxes(1, 2), start, axis=1)


def _read(
    cache: DecoderCache, held: Float[Array, "B P G Z"], length: int
) -> Float[Array, "B K W Z"]:
    """Each beam's keys or values of the first `length` positions, from where they lie."""
    batch_size, _, num_places, width = held.shape
    first_1W = jnp.arange(length, dtype=jnp.int32)[None] * num_places

    def row(held_FZ: Array, holders_PK: Array) -> Array:
        return held_FZ.at[holders_PK[:length].T + first_1W].get(mode="promise_in_bounds")

    return jax.vmap(row)(held.reshape(batch_size, -1, width), cache.holders)
