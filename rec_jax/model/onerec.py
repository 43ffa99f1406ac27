"""OneRec as pure functions: initialise, apply, and the pieces of cached generation.

OneRec (Deng et al., 2025, arXiv:2502.18965, Section 3.2): a history of semantic IDs goes through a
fully visible encoder; a causal decoder with cross-attention and sparse experts writes a session
of m items, `BOS` before every item. The softmax of each position runs over the codes of its own
level: which level comes next is known, so no probability is spent on other levels' codes.

Dimension key: B batch, N history items, S history tokens, M session items, L code levels, K beams,
T new tokens, P decoder positions, D model, H heads, X head dimension, C codes of a level,
Y decoder layers, E experts.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from core_jax.arrays import Array, Bool, Float, Int, Key, Params, PyTree
from core_jax.nn.stack import init_stack, run_stack
from core_jax.sharding import match_rules
from rec_jax.batch import SessionBatch
from rec_jax.model.config import OneRecConfig
from rec_jax.model.decoder import DecoderLayer, KeysValues
from rec_jax.model.embeddings import BOS, Embeddings, init_embeddings, item_tokens
from rec_jax.model.encoder import EncoderLayer
from rec_jax.model.modules import constrain, gathered, norm, run
from rec_jax.model.shardings import RULES
from rec_jax.moe.layer import MoeAux


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

    keys: PyTree
    """[Y, B, S, H, X]: cross-attention keys of every decoder layer."""
    values: PyTree
    """[Y, B, S, H, X]: cross-attention values of every decoder layer."""
    mask: PyTree
    """Bool [B, S]: True at real history tokens."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderCache:
    """Self-attention keys and values of the tokens that each beam has written."""

    keys: PyTree
    """[Y, B, K, P, H, X]."""
    values: PyTree
    """[Y, B, K, P, H, X]."""


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
    causal = jnp.ones((1, length, length), bool)
    decoder_example = (tokens[:, None], (heads, heads), visible, causal)
    norm = {"scale": jnp.ones((width,), jnp.float32)}
    return {
        "embeddings": init_embeddings(config, key=embeddings_key),
        "encoder": {
            "layers": init_stack(
                EncoderLayer(config), config.num_encoder_layers, tokens, visible, key=encoder_key
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
    causal_1TT = jnp.tri(tokens_BKT.shape[-1], dtype=bool)[None]
    layer = DecoderLayer(config, mesh)

    def layer_function(
        layer_params: Params, tokens_BKTD: Array, _: None, layer_key: Key[Array, ""] | None
    ) -> tuple[Array, MoeAux]:
        cross = run(layer, layer_params, encoded, method="cross_keys_values")
        tokens_BKTD, aux, _ = run(
            layer,
            layer_params,
            constrain(tokens_BKTD, mesh),
            cross,
            encoded_mask[:, None],
            causal_1TT,
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
    keys, values = jax.vmap(
        lambda layer_params: run(layer, layer_params, encoded_BSD, method="cross_keys_values")
    )(params["decoder"]["layers"])
    return EncodedHistory(keys=keys, values=values, mask=mask_BS)


def for_shorter_sessions(
    config: OneRecConfig, params: Params, num_items: int
) -> tuple[OneRecConfig, Params]:
    """The same model without the positions beyond `num_items` items, which nothing will read.

    So models for sessions of several lengths share the compiled program that writes `num_items`.
    """
    tables = dict(params["embeddings"])
    tables["session_positions"] = tables["session_positions"][:num_items]
    return dataclasses.replace(config, session_items=num_items), {**params, "embeddings": tables}


def with_whole_tables(params: Params, mesh: Mesh | None) -> Params:
    """The parameters with the tables of codes whole on every device, for many uses in a row."""
    return {**params, "embeddings": gathered(params["embeddings"], mesh)}


def init_cache(config: OneRecConfig, batch_size: int, num_beams: int) -> DecoderCache:
    """An empty cache for `num_beams` beams of each of `batch_size` users."""
    shape = (
        config.num_decoder_layers,
        batch_size,
        num_beams,
        config.decoder_tokens,
        config.num_heads,
        config.head_dim,
    )
    empty = jnp.zeros(shape, config.compute_dtype.dtype)
    return DecoderCache(keys=empty, values=empty)


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
    position_P = jnp.arange(cache.keys.shape[3])
    query_T = start + jnp.arange(tokens.shape[-1])
    visible_1TP = (position_P[None, :] <= query_T[:, None])[None]

    def layer_function(
        layer_params: Params, tokens_BKTD: Array, inputs: tuple[KeysValues, KeysValues], _: None
    ) -> tuple[Array, KeysValues]:
        cross, held = inputs
        tokens_BKTD, _, new = run(
            layer,
            layer_params,
            constrain(tokens_BKTD, mesh),
            cross,
            encoded.mask[:, None],
            visible_1TP,
            cache=held,
            start=start,
        )
        return tokens_BKTD, new

    hidden_BKTD, new = run_stack(
        layer_function,
        params["decoder"]["layers"],
        _embedded_session(config, params, tokens, start, mesh),
        ((encoded.keys, encoded.values), (cache.keys, cache.values)),
        unroll=config.scan_unroll,
    )
    hidden_BKTD = norm(config, params["decoder"]["norm"], hidden_BKTD)
    # Written once for all layers, in place: layers that returned their caches would copy them.
    keys, values = (
        jax.lax.dynamic_update_slice_in_dim(held_YBKPHX, new_YBKTHX, start, axis=3)
        for held_YBKPHX, new_YBKTHX in zip((cache.keys, cache.values), new, strict=True)
    )
    return hidden_BKTD, DecoderCache(keys=keys, values=values)


def level_logits(
    config: OneRecConfig,
    params: Params,
    hidden: Float[Array, "*lead D"],
    level: int,
    *,
    mesh: Mesh | None = None,
) -> Float[Array, "*lead C"]:
    """Scores of the codes of one level, float32, from normalised hidden states."""
    tables = gathered(params["embeddings"], mesh)
    return run(Embeddings(config), tables, hidden, level, method="logits")


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
    layer = EncoderLayer(config)

    def layer_function(
        layer_params: Params, tokens_BSD: Array, _: None, layer_key: Key[Array, ""] | None
    ) -> tuple[Array, None]:
        tokens_BSD = run(
            layer,
            layer_params,
            constrain(tokens_BSD, mesh),
            mask_BS[:, None],
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
