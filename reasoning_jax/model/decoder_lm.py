"""A decoder language model of the Llama family as pure functions: initialise, apply, logits.

Dimension key: B batch, T tokens, D model, V vocabulary, L layers, K key heads, X head dimension.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from core_jax.arrays import Array, Float, Int, Key, Params, PyTree
from core_jax.errors import ConfigError
from core_jax.mesh import over_batch
from core_jax.nn.flash_attention import AttentionKernel
from core_jax.nn.stack import init_stack, run_stack
from core_jax.sharding import gathered_layer
from reasoning_jax.model.config import DecoderConfig
from reasoning_jax.model.layers import DecoderLayer, rms_norm
from reasoning_jax.model.rope import inverse_frequencies, rotation
from reasoning_jax.model.shardings import RULES

EMBEDDING_STDDEV = 0.02
"""Of a fresh embedding table: logits of a tied model start near zero."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenInputs:
    """Rows of tokens: padded on either side, or several sequences packed into one row."""

    tokens: PyTree
    """Int32 [B, T]: token ids, anything at padding."""
    positions: PyTree
    """Int32 [B, T]: position of each token in its own sequence, from 0."""
    segment_ids: PyTree
    """Int32 [B, T]: sequences of a row, from 1; 0 is padding. A token sees its own segment."""


def whole_rows(tokens: Int[Array, "B T"], lengths: Int[Array, "B"] | None = None) -> TokenInputs:
    """One sequence per row, at its start.

    Args:
      tokens: token ids.
      lengths: tokens of each row that count; all by default.
    """
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape)
    if lengths is None:
        return TokenInputs(tokens=tokens, positions=positions, segment_ids=jnp.ones_like(positions))
    is_token_BT = positions < lengths[:, None]
    return TokenInputs(
        tokens=tokens, positions=positions, segment_ids=is_token_BT.astype(jnp.int32)
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderOutput:
    """What a pass over whole rows gives."""

    hidden: PyTree
    """Float [B, T, D] in the compute dtype, after the last norm; see `logits`."""
    keys_values: PyTree
    """Rotated keys and values [L, B, T, K, X] of every layer, or None."""


def init_params(config: DecoderConfig, *, key: Key[Array, ""]) -> Params:
    """Initialises all parameters, float32.

    Args:
      config: architecture.
      key: random key.

    Returns:
      {"embed": {"table": [V, D]}, "layers": leaves with a leading dimension L, "final_norm",
      "head": {"kernel": [D, V]} unless embeddings are tied}.
    """
    embed_key, layers_key, head_key = jax.random.split(key, 3)
    hidden_11D = jnp.zeros((1, 1, config.model_dim), config.dtype.dtype)
    angles_11Y = rotation(jnp.zeros((1, 1), jnp.int32), _frequencies(config))
    layers = init_stack(
        DecoderLayer(config),
        config.num_layers,
        hidden_11D,
        _for_heads(angles_11Y),
        jnp.ones((1, 1), jnp.int32),
        AttentionKernel.EINSUM,
        key=layers_key,
    )
    shape = (config.vocab_size, config.model_dim)
    params = {
        "embed": {"table": EMBEDDING_STDDEV * jax.random.normal(embed_key, shape)},
        "layers": layers,
        "final_norm": {"scale": jnp.ones((config.model_dim,))},
    }
    if not config.tied_embeddings:
        stddev = config.model_dim**-0.5
        params["head"] = {"kernel": stddev * jax.random.normal(head_key, shape[::-1])}
    return params


def apply(
    config: DecoderConfig,
    params: Params,
    inputs: TokenInputs,
    *,
    key: Key[Array, ""] | None = None,
    lora_dropout: float = 0.0,
    with_keys_values: bool = False,
    kernel: AttentionKernel = AttentionKernel.AUTO,
    mesh: Mesh | None = None,
) -> DecoderOutput:
    """Runs the model over whole rows.

    Args:
      config: architecture and compute.
      params: from `init_params` or a loader; adapters attached by `reasoning_jax.model.lora`.
      inputs: rows of tokens.
      key: for the adapters' dropout while training; None: no dropout.
      lora_dropout: share of the adapters' inputs left out when there is a key.
      with_keys_values: whether to return every layer's keys and values, to start a cache.
      kernel: how attention is computed.
      mesh: needed by the TPU kernel on several devices, else optional.

    Returns:
      The last hidden states, and keys and values if asked for.

    Raises:
      ConfigError: rows longer than `config.max_positions`.
    """
    length = inputs.tokens.shape[1]
    if length > config.max_positions:
        raise ConfigError(
            f"rows of {length} tokens are longer than model.max_positions, "
            f"{config.max_positions}; shorten them"
        )
    hidden_BTD = params["embed"]["table"][inputs.tokens].astype(config.dtype.dtype)
    angles = _for_heads(rotation(inputs.positions, _frequencies(config)))
    layer = DecoderLayer(config, lora_dropout)

    def one_layer(
        layer_params: Params, hidden_BTD: Array, _: None, layer_key: Key[Array, ""] | None
    ) -> tuple[Array, PyTree]:
        layer_params = gathered_layer(
            RULES, layer_params, mesh, leaves="kernel$", dtype=config.dtype.dtype
        )
        hidden_BTD, keys_values = layer.apply(
            {"params": layer_params},
            over_batch(hidden_BTD, mesh),
            angles,
            inputs.segment_ids,
            kernel,
            mesh,
            rngs=None if layer_key is None else {"dropout": layer_key},
        )
        return hidden_BTD, keys_values if with_keys_values else None

    hidden_BTD, keys_values = run_stack(
        one_layer,
        params["layers"],
        hidden_BTD,
        key=key,
        remat=config.remat,
        unroll=config.unroll,
    )
    hidden_BTD = rms_norm(hidden_BTD, params["final_norm"]["scale"], config.norm_eps)
    return DecoderOutput(hidden=hidden_BTD, keys_values=keys_values)


def output_matrix(params: Params, mesh: Mesh | None = None) -> Float[Array, "D V"]:
    """The matrix from hidden states to logits: the head, or the tied table transposed.

    On a mesh with several devices along `fsdp` it is gathered along it, once for all blocks of
    tokens that are multiplied with it, and split over the vocabulary along `tensor`.
    """
    matrix = params["head"]["kernel"] if "head" in params else params["embed"]["table"].T
    if mesh is None or mesh.shape["fsdp"] == 1:
        return matrix
    splits = matrix.shape[1] % mesh.shape["tensor"] == 0  # a tied table's rule does not ask for it
    whole = NamedSharding(mesh, PartitionSpec(None, "tensor" if splits else None))
    return jax.lax.with_sharding_constraint(matrix, whole)


def logits(
    config: DecoderConfig, params: Params, hidden: Float[Array, "*lead D"]
) -> Float[Array, "*lead V"]:
    """Scores over the vocabulary, float32.

    Args:
      config: architecture and compute.
      params: the model's parameters.
      hidden: from `apply`.
    """
    dtype = config.dtype.dtype
    return jnp.matmul(
        hidden.astype(dtype),
        output_matrix(params).astype(dtype),
        preferred_element_type=jnp.float32,
    )


def _frequencies(config: DecoderConfig) -> PyTree:
    """The config's rotary frequencies."""
    return inverse_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)


def _for_heads(angles: tuple[Array, Array]) -> tuple[Array, Array]:
    """Cosines and sines [B, T, Y] -> [B, T, 1, Y], the same for every head."""
    cos_BTY, sin_BTY = angles
    return cos_BTY[:, :, None], sin_BTY[:, :, None]
