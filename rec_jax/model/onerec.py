"""OneRec as pure functions: initialise, apply, and the pieces of cached generation.

OneRec (Deng et al., 2025, arXiv:2502.18965, Section 3.2): a history of semantic IDs goes through a
fully visible encoder; a causal decoder with cross-attention and sparse experts writes a session
of m items, `BOS` before every item. The softmax of each position runs over the codes of its own
level: which level comes next is known, so no probability is spent on other levels' codes.

Dimension key: B batch, N history items, S history tokens, M session items, L code levels, K beams,
T new tokens, D model, H heads, X head dimension, C codes of a level, Y decoder layers, E experts.
"""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from core_jax.arrays import Array, Bool, Float, Int, Key, Params, PyTree
from core_jax.mesh import over_batch
from core_jax.nn.stack import init_stack, layers_apart, run_stack
from core_jax.sharding import match_rules
from rec_jax.batch import SessionBatch
from rec_jax.model.config import OneRecConfig
from rec_jax.model.decoder import DecoderLayer
from rec_jax.model.decoder_cache import DecoderCache, attend_to_written, hold_new
from rec_jax.model.embeddings import BOS, Embeddings, init_embeddings, item_tokens
from rec_jax.model.encoder import EncoderLayer
from rec_jax.model.modules import gathered, gathered_layer, norm, run
from rec_jax.model.shardings import RULES
from rec_jax.moe.layer import MoeAux, experts_apart


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class OneRecOutput:
    """What a training pass returns."""

    logits: PyTree
    """Tuple over levels of Float32 [B, M, C] or [B, K, M, C]: scores of every item's codes."""
    moe: MoeAux
    """Statistics of the experts with a leading layer dimension [Y, ...]."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodedHistory:
    """What generation needs of a user's history: computed once, shared by all beams."""

    keys_values: PyTree
    """Tuple over decoder layers of the cross-attention's keys and values [B, S, H, X]."""
    mask: PyTree
    """Bool [B, S]: True at real history tokens."""


def init_params(config: OneRecConfig, *, key: Key[Array, ""]) -> Params:
    """Initialises all parameters, float32.

    Args:
      config: architecture, with `level_sizes` known.
      key: random key.

    Returns:
      {"embeddings", "encoder": {"layers", "norm"}, "decoder": {"layers", "norm"}}; the leaves of
      `layers` have a leading layer dimension.
    """
    embeddings_key, encoder_key, decoder_key = jax.random.split(key, 3)
    length, width = config.num_levels + 1, config.d_model
    tokens = jnp.zeros((1, length, width), config.compute_dtype.dtype)
    heads = jnp.zeros((1, length, config.num_heads, config.head_dim), tokens.dtype)
    visible = jnp.ones((1, 1, length), bool)
    decoder_example = (tokens[:, None], (heads, heads), visible)
    norm = {"scale": jnp.ones((width,), jnp.float32)}
    return {
        "embeddings": init_embeddings(config, key=embeddings_key),
        "encoder": {
            "layers": init_stack(
                EncoderLayer(config),
                config.num_encoder_layers,
                tokens,
                visible[:, 0],
                key=encoder_key,
            ),
            "norm": norm,
        },
        "decoder": {
            "layers": init_stack(
                _InitDecoderLayer(config),
                config.num_decoder_layers,
                *decoder_example,
                key=decoder_key,
            )["layer"],
            "norm": norm,
        },
    }


def abstract_params(config: OneRecConfig, mesh: Mesh) -> Params:
    """Shapes, dtypes and shardings of the parameters on a mesh, without making any."""
    abstract = jax.eval_shape(lambda: init_params(config, key=jax.random.key(0)))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        match_rules(RULES, abstract, mesh),
    )


class _InitDecoderLayer(nn.Module):
    """A decoder layer whose initialisation also touches the cross-attention's keys and values."""

    config: OneRecConfig

    @nn.compact
    def __call__(self, tokens: Array, *rest: PyTree) -> Array:
        layer = DecoderLayer(self.config, name="layer")
        layer.cross_keys_values(tokens[:, 0])
        return layer(tokens, *rest)[0]


def apply(
    config: OneRecConfig,
    params: Params,
    batch: SessionBatch,
    *,
    key: Key[Array, ""] | None = None,
    mesh: Mesh | None = None,
) -> OneRecOutput:
    """Scores every code of every target item given the codes before it (teacher forcing).

    Args:
      config: architecture.
      params: from `init_params`.
      batch: histories and targets; at most `session_items` targets per row.
      key: dropout key, or None for a deterministic pass.
      mesh: device mesh that the batch is sharded over, or None.

    Returns:
      Logits per level and the experts' statistics.
    """
    encoder_key = decoder_key = None
    if key is not None:
        encoder_key, decoder_key = jax.random.split(key)
    encoded_BSD, mask_BS = encode_tokens(
        config, params, batch.history_codes, batch.history_mask, key=encoder_key, mesh=mesh
    )
    codes_B1ML, mask_B1M = batch.target_codes[:, None], batch.target_mask[:, None]
    output = score_sessions(
        config, params, encoded_BSD, mask_BS, codes_B1ML, mask_B1M, key=decoder_key, mesh=mesh
    )
    return dataclasses.replace(output, logits=tuple(logits[:, 0] for logits in output.logits))


def score_sessions(
    config: OneRecConfig,
    params: Params,
    encoded: Float[Array, "B S D"],
    encoded_mask: Bool[Array, "B S"],
    codes: Int[Array, "B K M L"],
    mask: Bool[Array, "B K M"],
    *,
    key: Key[Array, ""] | None = None,
    mesh: Mesh | None = None,
) -> OneRecOutput:
    """Scores every code of K sessions per history given the codes before it (teacher forcing).

    Args:
      config: architecture.
      params: from `init_params`.
      encoded: histories, from `encode_tokens`; all K sessions share a row.
      encoded_mask: True at real history tokens.
      codes: semantic IDs of the sessions; padding has code 0.
      mask: True where a session has an item; the others load no expert.
      key: dropout key, or None for a deterministic pass.
      mesh: device mesh that histories are sharded over, or None.

    Returns:
      Logits per level, [B, K, M, C], and the experts' statistics.
    """
    num_roles = config.num_levels + 1
    tokens_FMR = item_tokens(config, codes.reshape(-1, *codes.shape[2:]), BOS)
    tokens_BKT = tokens_FMR.reshape(*codes.shape[:2], -1)
    token_mask_BKT = jnp.repeat(mask, num_roles, axis=2)
    layer = DecoderLayer(config, mesh)

    def layer_function(
        layer_params: Params, tokens_BKTD: Array, _: None, layer_key: Key[Array, ""] | None
    ) -> tuple[Array, MoeAux]:
        layer_params = gathered_layer(config, layer_params, mesh)
        cross = run(layer, layer_params, encoded, method="cross_keys_values")
        tokens_BKTD, aux, _ = run(
            layer,
            layer_params,
            over_batch(tokens_BKTD, mesh),
            cross,
            encoded_mask[:, None],
            token_mask=token_mask_BKT,
            deterministic=layer_key is None,
            rngs=None if layer_key is None else {"dropout": layer_key},
        )
        return tokens_BKTD, aux

    hidden_BKTD, aux = run_stack(
        layer_function,
        params["decoder"]["layers"],
        _embedded_session(config, params, tokens_BKT, 0, mesh),
        key=key,
        remat=config.remat,
        unroll=config.scan_unroll,
    )
    hidden_BKTD = norm(config, params["decoder"]["norm"], hidden_BKTD)
    hidden_BKMRD = hidden_BKTD.reshape(*mask.shape, num_roles, config.d_model)
    logits = tuple(
        level_logits(config, params, hidden_BKMRD[..., level, :], level, mesh=mesh)
        for level in range(config.num_levels)
    )
    return OneRecOutput(logits=logits, moe=aux)


def encode(
    config: OneRecConfig,
    params: Params,
    history_codes: Int[Array, "B N L"],
    history_mask: Bool[Array, "B N"],
    *,
    mesh: Mesh | None = None,
) -> EncodedHistory:
    """Encodes histories and projects them to every decoder layer's cross-attention."""
    encoded_BSD, mask_BS = encode_tokens(config, params, history_codes, history_mask, mesh=mesh)
    layer = DecoderLayer(config, mesh)
    keys_values = tuple(
        run(
            layer,
            gathered_layer(config, layer_params, mesh),
            encoded_BSD,
            method="cross_keys_values",
        )
        for layer_params in layers_apart(params["decoder"]["layers"])
    )
    return EncodedHistory(keys_values=keys_values, mask=mask_BS)


def for_shorter_sessions(
    config: OneRecConfig, params: Params, num_items: int
) -> tuple[OneRecConfig, Params]:
    """The same model without the positions beyond `num_items` items, which nothing will read.

    So models for sessions of several lengths share the compiled program that writes `num_items`.
    """
    tables = dict(params["embeddings"])
    tables["session_positions"] = tables["session_positions"][:num_items]
    return dataclasses.replace(config, session_items=num_items), {**params, "embeddings": tables}


def for_many_steps(config: OneRecConfig, params: Params, mesh: Mesh | None) -> Params:
    """The parameters as `decode` and `level_logits` read them, made once for many uses in a row.

    Output weights and tables of codes are whole on every device; decoder layers, and experts where
    one device has them all, are apart, since a slice of a stack is copied at every use. What was
    made so already stays as it is.
    """
    if "outputs" in params:
        return params
    layers = tuple(
        gathered_layer(config, layer, mesh) for layer in layers_apart(params["decoder"]["layers"])
    )
    if mesh is None or mesh.size == 1:
        platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
        layers = tuple(
            {**layer, "moe": experts_apart(config.moe, layer["moe"], platform)} for layer in layers
        )
    embeddings = gathered(params["embeddings"], mesh)
    outputs = tuple(
        run(Embeddings(config), embeddings, level, method="output_weights")
        for level in range(config.num_levels)
    )
    return {
        **params,
        "embeddings": embeddings,
        "outputs": outputs,
        "decoder": {**params["decoder"], "layers": layers},
    }


def decode(
    config: OneRecConfig,
    params: Params,
    encoded: EncodedHistory,
    cache: DecoderCache,
    tokens: Int[Array, "B K T"],
    start: Int[Array, ""] | int,
    *,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, "B K T D"], DecoderCache]:
    """Feeds the next tokens of every beam.

    Args:
      config: architecture.
      params: from `init_params`.
      encoded: the users' histories, from `encode`.
      cache: what the beams have written so far.
      tokens: token ids (`code_tokens`, `BOS`) at positions start .. start + T - 1.
      start: position of the first new token; may be traced.
      mesh: device mesh that users are sharded over, or None.

    Returns:
      Normalised hidden states, ready for `level_logits`, and the extended cache.
    """
    layer = DecoderLayer(config, mesh)
    cache = hold_new(cache, start, tokens.shape[-1])
    hidden_BKTD = _embedded_session(config, params, tokens, start, mesh)
    layers = layers_apart(params["decoder"]["layers"])
    # Not `run_stack`: its loop would copy each layer's part of the cache, in and out.
    for number, (layer_params, cross) in enumerate(zip(layers, encoded.keys_values, strict=True)):
        hidden_BKTD, _, cache = run(
            layer,
            layer_params,
            over_batch(hidden_BKTD, mesh),
            cross,
            encoded.mask[:, None],
            partial(attend_to_written, cache, number, start),
        )
    return norm(config, params["decoder"]["norm"], hidden_BKTD), cache


def level_logits(
    config: OneRecConfig,
    params: Params,
    hidden: Float[Array, "*lead D"],
    level: int,
    *,
    mesh: Mesh | None = None,
) -> Float[Array, "*lead C"]:
    """Scores of the codes of one level, float32, from normalised hidden states."""
    if "outputs" in params:  # from `for_many_steps`
        weights_CD = params["outputs"][level]
    else:
        tables = gathered(params["embeddings"], mesh)
        weights_CD = run(Embeddings(config), tables, level, method="output_weights")
    return jnp.einsum("...d,cd->...c", hidden, weights_CD, preferred_element_type=jnp.float32)


def encode_tokens(
    config: OneRecConfig,
    params: Params,
    history_codes: Int[Array, "B N L"],
    history_mask: Bool[Array, "B N"],
    *,
    key: Key[Array, ""] | None = None,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, "B S D"], Bool[Array, "B S"]]:
    """Runs the encoder; returns its output and the mask of real tokens, for `score_sessions`."""
    mask_BS = jnp.repeat(history_mask, config.num_levels + 1, axis=1)
    layer = EncoderLayer(config, mesh)

    def layer_function(
        layer_params: Params, tokens_BSD: Array, _: None, layer_key: Key[Array, ""] | None
    ) -> tuple[Array, None]:
        tokens_BSD = run(
            layer,
            gathered_layer(config, layer_params, mesh),
            over_batch(tokens_BSD, mesh),
            mask_BS,
            deterministic=layer_key is None,
            rngs=None if layer_key is None else {"dropout": layer_key},
        )
        return tokens_BSD, None

    tables = gathered(params["embeddings"], mesh)
    embedded_BSD = run(Embeddings(config), tables, history_codes, method="history")
    tokens_BSD, _ = run_stack(
        layer_function,
        params["encoder"]["layers"],
        embedded_BSD,
        key=key,
        remat=config.remat,
        unroll=config.scan_unroll,
    )
    return norm(config, params["encoder"]["norm"], tokens_BSD), mask_BS


def _embedded_session(
    config: OneRecConfig,
    params: Params,
    tokens: Int[Array, "B K T"],
    start: Array | int,
    mesh: Mesh | None,
) -> Float[Array, "B K T D"]:
    """Embeds decoder tokens."""
    tables = gathered(params["embeddings"], mesh)
    return run(Embeddings(config), tables, tokens, jnp.asarray(start), method="session")
