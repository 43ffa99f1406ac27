"""One token for every row against a cache: the model as the sampling engine runs it.

Decoding reads every weight for a handful of tokens, so it is bound by how fast matrices times a
few columns go. Weights are therefore taken apart and turned once per model (`for_decoding`):
layers apart, so that no step copies a slice of a stack, and output dimensions first with the
rows of the batch as columns, which is how matrices lie in memory for such products. What reads the
same numbers is one matrix: a few columns keep no core busy with small ones. Adapters must be merged
first.

Dimension key: B rows of the batch, P prompts, T tokens, N tokens of all prompts (P * T), S cache
slots, D model, H query heads, K key heads, G queries per key head, X head dimension, Y half of it,
F hidden, V vocabulary, L layers.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from core_jax.arrays import Array, Float, Int, Params
from core_jax.errors import ConfigError
from core_jax.mesh import over_batch
from core_jax.nn.stack import layers_apart
from reasoning_jax.model.attention import MASKED_SCORE, attend_causally
from reasoning_jax.model.config import DecoderConfig
from reasoning_jax.model.kv_cache import KvCache
from reasoning_jax.model.rope import inverse_frequencies, rotate, rotation


class LayerWeights(NamedTuple):
    """One layer, output dimensions first."""

    attention_norm: Array
    """[D]"""
    query_key_value: Array
    """[K, G + 2, X, D]: of each key head its queries, then its key, then its value."""
    query_key_value_bias: Array | None
    """[K, G + 2, X], where the model has biases."""
    out: Array
    """[D, H, X]"""
    mlp_norm: Array
    """[D]"""
    gate_up: Array
    """[2, F, D]"""
    down: Array
    """[D, F]"""


class DecodingWeights(NamedTuple):
    """A model's weights in the order in which decoding reads them."""

    embed: Array
    """[V, D], from which a token's row is read."""
    layers: tuple[LayerWeights, ...]
    """One entry per layer."""
    final_norm: Array
    """[D]"""
    head: Array
    """[V, D]; the embedding table itself where embeddings are tied."""


def for_decoding(config: DecoderConfig, params: Params) -> DecodingWeights:
    """Takes a model apart for decoding; a second copy of all weights but the table.

    Args:
      config: the architecture.
      params: the model's parameters, without adapters.

    Returns:
      Weights in the compute dtype, norms in float32.

    Raises:
      ConfigError: adapters are attached.
    """
    dtype = config.dtype.dtype
    if any("lora_a" in linear for linear in params["layers"]["attention"].values()) or any(
        "lora_a" in linear for linear in params["layers"]["mlp"].values()
    ):
        raise ConfigError("decoding takes no attached adapters; merge them into the model first")

    def turned(linear: Params, num_inputs: int = 1) -> Array:
        """The kernel with its output dimensions first."""
        kernel = linear["kernel"].astype(dtype)
        return jnp.moveaxis(kernel, range(num_inputs), range(-num_inputs, 0))

    def by_key_head(query: Array, key: Array, value: Array) -> Array:
        """[H, ...] and twice [K, ...] -> [K, G + 2, ...]."""
        queries = query.reshape(config.num_kv_heads, -1, *query.shape[1:])
        return jnp.concatenate([queries, key[:, None], value[:, None]], axis=1)

    def one_layer(layer: Params) -> LayerWeights:
        attention, mlp = layer["attention"], layer["mlp"]
        names = ("query", "key", "value")
        bias = None
        if config.qkv_bias:
            bias = by_key_head(*(attention[name]["bias"].astype(dtype) for name in names))
        return LayerWeights(
            attention_norm=layer["attention_norm"]["scale"],
            query_key_value=by_key_head(*(turned(attention[name]) for name in names)),
            query_key_value_bias=bias,
            out=turned(attention["out"], 2),
            mlp_norm=layer["mlp_norm"]["scale"],
            gate_up=jnp.stack([turned(mlp["gate"]), turned(mlp["up"])]),
            down=turned(mlp["down"]),
        )

    embed = params["embed"]["table"].astype(dtype)
    head = params["head"]["kernel"].T.astype(dtype) if "head" in params else embed
    layers = tuple(one_layer(layer) for layer in layers_apart(params["layers"]))
    final_norm = params["final_norm"]["scale"]
    return DecodingWeights(embed=embed, layers=layers, final_norm=final_norm, head=head)


def prefill(
    config: DecoderConfig,
    weights: DecodingWeights,
    tokens: Int[Array, "P T"],
    lengths: Int[Array, "P"],
    dtype: jnp.dtype,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, "V P"], KvCache]:
    """Reads whole prompts.

    Args:
      config: architecture and compute.
      weights: from `for_decoding`.
      tokens: one prompt per row, from its start.
      lengths: tokens of each prompt, at least 1; what follows is padding.
      dtype: of the cache.
      mesh: where weights and prompts are; its devices choose the kernel of attention, and with
        several it works on each one's own prompts and key heads. None: the default device.

    Returns:
      Logits float32 of the token after each prompt, and its keys and values, T slots per row.
    """
    num_prompts, length = tokens.shape
    frequencies = inverse_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
    cos_TY, sin_TY = rotation(jnp.arange(length), frequencies)
    angles = (cos_TY[None, :, None], sin_TY[None, :, None])
    is_token_PT = jnp.arange(length)[None] < lengths[:, None]
    hidden_DN = over_batch(_embedded(weights, tokens.reshape(-1)), mesh, 1)
    keys, values = [], []
    for layer in weights.layers:
        normed_DN = _norm_columns(hidden_DN, layer.attention_norm, config.norm_eps)
        queries, new_keys, new_values = (
            part.transpose(2, 0, 1).reshape(num_prompts, length, -1, config.head_dim)
            for part in _project(layer, normed_DN)
        )
        queries, new_keys = rotate(queries, *angles), rotate(new_keys, *angles)
        mixed_PTHX = attend_causally(
            queries,
            new_keys,
            new_values,
            segment_ids=is_token_PT.astype(jnp.int32),
            mesh=mesh,
        )
        mixed_HXN = mixed_PTHX.reshape(-1, config.num_heads, config.head_dim).transpose(1, 2, 0)
        hidden_DN = hidden_DN + _times(layer.out, mixed_HXN, 2)
        normed_DN = _norm_columns(hidden_DN, layer.mlp_norm, config.norm_eps)
        hidden_DN = over_batch(hidden_DN + _gated_mlp(layer, normed_DN), mesh, 1)
        keys.append(new_keys.transpose(0, 2, 3, 1).astype(dtype))
        values.append(new_values.swapaxes(1, 2).astype(dtype))
    last_P = jnp.arange(num_prompts) * length + lengths - 1
    return _head(config, weights, hidden_DN[:, last_P]), KvCache(
        keys=tuple(keys), values=tuple(values)
    )


def decode_step(
    config: DecoderConfig,
    weights: DecodingWeights,
    tokens: Int[Array, "B"],
    positions: Int[Array, "B"],
    cache: KvCache,
) -> tuple[Float[Array, "V B"], KvCache]:
    """Adds one token to every row and scores the next.

    Args:
      config: architecture and compute.
      weights: from `for_decoding`.
      tokens: the token that each row gets.
      positions: its position in the row, less than S.
      cache: what came before; changed in place where the caller gives it up.

    Returns:
      Logits float32, one column per row, and the cache with the token.
    """
    frequencies = inverse_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
    table = rotation(jnp.arange(cache.num_slots), frequencies)  # outside the loop over steps
    angles = (table[0][positions][:, None], table[1][positions][:, None])
    hidden_DB = _embedded(weights, tokens)
    keys, values = [], []
    for layer, keys_BKXS, values_BKSX in zip(weights.layers, cache.keys, cache.values, strict=True):
        normed_DB = _norm_columns(hidden_DB, layer.attention_norm, config.norm_eps)
        mixed_DB, keys_BKXS, values_BKSX = _attend(
            layer, normed_DB, angles, positions, keys_BKXS, values_BKSX
        )
        hidden_DB = hidden_DB + mixed_DB
        normed_DB = _norm_columns(hidden_DB, layer.mlp_norm, config.norm_eps)
        hidden_DB = hidden_DB + _gated_mlp(layer, normed_DB)
        keys.append(keys_BKXS)
        values.append(values_BKSX)
    return _head(config, weights, hidden_DB), KvCache(keys=tuple(keys), values=tuple(values))


def _embedded(weights: DecodingWeights, tokens_N: Array) -> Array:
    """Embeddings [D, N], gathered as columns.

    Rows that are turned afterwards would turn all of the residual stream under XLA for CPUs, down
    to the product with the head. There a gather of bfloat16 makes float32 of the whole table too,
    in every step: bits are gathered instead.
    """
    table_VD = weights.embed
    is_narrow = table_VD.dtype.itemsize == 2
    bits_VD = jax.lax.bitcast_convert_type(table_VD, jnp.uint16) if is_narrow else table_VD
    columns_DN = jax.lax.gather(
        bits_VD,
        tokens_N[:, None],
        jax.lax.GatherDimensionNumbers(
            offset_dims=(0,), collapsed_slice_dims=(0,), start_index_map=(0,)
        ),
        slice_sizes=(1, table_VD.shape[1]),
        mode="clip",
    )
    return jax.lax.bitcast_convert_type(columns_DN, table_VD.dtype)


def _head(config: DecoderConfig, weights: DecodingWeights, hidden_DB: Array) -> Array:
    """Logits [V, B] of every column."""
    hidden_DB = _norm_columns(hidden_DB, weights.final_norm, config.norm_eps)
    return jnp.matmul(weights.head, hidden_DB, preferred_element_type=jnp.float32)


def _norm_columns(hidden_DB: Array, scale_D: Array, eps: float) -> Array:
    """Root-mean-square norm of every column, in the order of `layers.rms_norm`."""
    wide_DB = hidden_DB.astype(jnp.float32)
    mean_1B = jnp.mean(jnp.square(wide_DB), axis=0, keepdims=True)
    normed_DB = (wide_DB * jax.lax.rsqrt(mean_1B + eps)).astype(hidden_DB.dtype)
    return normed_DB * scale_D.astype(hidden_DB.dtype)[:, None]


def _times(weights: Array, columns: Array, num_inputs: int = 1) -> Array:
    """[*out, *in] times [*in, B], accumulated in float32, back in the columns' dtype."""
    last = tuple(range(weights.ndim - num_inputs, weights.ndim))
    product = jax.lax.dot_general(
        weights,
        columns,
        ((last, tuple(range(num_inputs))), ((), ())),
        preferred_element_type=jnp.float32,
    )
    return product.astype(columns.dtype)


def _attend(
    layer: LayerWeights,
    normed_DB: Array,
    angles: tuple[Array, Array],
    positions_B: Array,
    keys_BKXS: Array,
    values_BKSX: Array,
) -> tuple[Array, Array, Array]:
    """Attention of the new tokens to the cache, which gets them first."""
    dtype = normed_DB.dtype
    queries_BHX, new_keys_BKX, new_values_BKX = (
        part.transpose(2, 0, 1) for part in _project(layer, normed_DB)
    )
    queries_BHX = rotate(queries_BHX, *angles)
    batch, num_kv_heads, head_dim, num_slots = keys_BKXS.shape
    # X numbers per (row, head): a compiler that scatters [K, X] at once would lay slots outside
    # heads, and copy the cache there and back in every step.
    rows_B1, heads_1K = np.arange(batch)[:, None], np.arange(num_kv_heads)[None]
    slots_BK = jnp.broadcast_to(positions_B[:, None], (batch, num_kv_heads))
    in_place = {"unique_indices": True, "indices_are_sorted": True, "mode": "drop"}
    keys_BKXS = keys_BKXS.at[rows_B1, heads_1K, :, slots_BK].set(
        rotate(new_keys_BKX, *angles).astype(keys_BKXS.dtype), **in_place
    )
    values_BKSX = values_BKSX.at[rows_B1, heads_1K, slots_BK].set(
        new_values_BKX.astype(values_BKSX.dtype), **in_place
    )
    grouped_BKGX = queries_BHX.reshape(batch, num_kv_heads, -1, head_dim)
    scores_BKGS = jnp.einsum(
        "bkgx,bkxs->bkgs",
        grouped_BKGX.astype(keys_BKXS.dtype),
        keys_BKXS,
        preferred_element_type=jnp.float32,
    )
    visible_BS = jnp.arange(num_slots)[None] <= positions_B[:, None]
    scores_BKGS = jnp.where(visible_BS[:, None, None], scores_BKGS * head_dim**-0.5, MASKED_SCORE)
    weights_BKGS = jax.nn.softmax(scores_BKGS, axis=-1).astype(dtype).astype(values_BKSX.dtype)
    mixed_BKGX = jnp.einsum(
        "bkgs,bksx->bkgx", weights_BKGS, values_BKSX, preferred_element_type=jnp.float32
    )
    mixed_HXB = mixed_BKGX.astype(dtype).reshape(batch, -1, head_dim).transpose(1, 2, 0)
    return _times(layer.out, mixed_HXB, 2), keys_BKXS, values_BKSX


def _project(layer: LayerWeights, normed_DB: Array) -> tuple[Array, Array, Array]:
    """Queries [H, X, B], keys and values [K, X, B], before rotation."""
    parts = _times(layer.query_key_value, normed_DB)
    if layer.query_key_value_bias is not None:
        parts = parts + layer.query_key_value_bias[..., None]
    return parts[:, :-2].reshape(-1, *parts.shape[2:]), parts[:, -2], parts[:, -1]


def _gated_mlp(layer: LayerWeights, normed_DB: Array) -> Array:
    """down(silu(gate(x)) * up(x)) of every column."""
    both_2FB = _times(layer.gate_up, normed_DB)
    return _times(layer.down, jax.nn.silu(both_2FB[0]) * both_2FB[1])
