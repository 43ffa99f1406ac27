"""Beam search without a decoder cache: the yardstick for `rec_jax.beam`, and its independent check.

The history is encoded once; at every code the decoder reads the whole prefix of every beam again.
Everything else (constraint, selection, scores) is what `beam_search` does. The prefix is read at
its own length, which needs a program per length and is the least work without a cache, or `padded`
to the whole session, as a decoder compiled for one shape reads it.

Dimension key: B batch, K beams, M session items, L code levels, N history items, H excluded items,
T tokens so far, D model.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from rec_jax.beam import select_best
from rec_jax.model import onerec
from rec_jax.model.decoder import DecoderLayer
from rec_jax.model.embeddings import BOS, Embeddings, code_tokens
from rec_jax.semantic_ids.constraint import (
    build_exclusion,
    chosen_edges,
    items_of_leaves,
    legal_children,
)
from rec_jax.session_decoding import BeamConfig, Beams, Candidates, candidate_log_probs


def _logits(model_config, params, encoded, tokens_BKT, level, padded):
    """Scores of the next code after a prefix that is read from its beginning."""
    length = tokens_BKT.shape[-1]
    if padded:
        missing = model_config.decoder_tokens - length
        tokens_BKT = jnp.pad(tokens_BKT, ((0, 0), (0, 0), (0, missing)))
    hidden_BKTD = _read_prefix(model_config, params, encoded, tokens_BKT)
    return onerec.level_logits(model_config, params, hidden_BKTD[:, :, length - 1], level)


def _read_prefix(model_config, params, encoded, tokens_BKT):
    """Normalised hidden states of every position; neither a cache nor a copy of one is made."""
    layer, tables = DecoderLayer(model_config), {"params": params["embeddings"]}
    hidden_BKTD = Embeddings(model_config).apply(tables, tokens_BKT, jnp.int32(0), method="session")
    layers = params["decoder"]["layers"]
    for layer_params, cross in zip(layers, encoded.keys_values, strict=True):
        hidden_BKTD, _, _ = layer.apply(
            {"params": layer_params}, hidden_BKTD, cross, encoded.mask[:, None]
        )
    norm = nn.RMSNorm(dtype=model_config.compute_dtype.dtype)
    return norm.apply({"params": params["decoder"]["norm"]}, hidden_BKTD)


def _rows(tree, parents_BK):
    """Every new beam's part of its parent."""
    return jax.tree.map(
        lambda array: jax.vmap(lambda row, parents: row[parents])(array, parents_BK), tree
    )


@partial(jax.jit, static_argnames=("model_config", "config", "padded"))
def recomputed_beam_search(
    model_config,
    config: BeamConfig,
    params,
    index,
    history_codes,
    history_mask,
    history_items,
    *,
    padded=False,
) -> Beams:
    """`rec_jax.beam.beam_search` with the decoder prefix recomputed at every code."""
    batch_size, num_levels = history_codes.shape[0], index.num_levels
    excluded_BH = history_items if config.exclude_history else history_items[:, :0]
    exclusion = build_exclusion(index, excluded_BH)
    params = onerec.for_many_steps(model_config, params, None)
    encoded = onerec.encode(model_config, params, history_codes, history_mask)
    tokens_BKT = jnp.zeros((batch_size, 1, 0), jnp.int32)
    scores_BK = jnp.zeros((batch_size, 1), jnp.float32)
    item_scores_BKM = jnp.zeros((batch_size, 1, config.num_items), jnp.float32)
    paths_BKML = jnp.full((batch_size, 1, config.num_items, num_levels), -1, jnp.int32)
    nodes_BK = jnp.zeros((batch_size, 1), jnp.int32)
    for item in range(config.num_items):
        tokens_BKT = jnp.pad(tokens_BKT, ((0, 0), (0, 0), (0, 1)), constant_values=BOS)
        for level in range(num_levels):
            logits_BKC = _logits(model_config, params, encoded, tokens_BKT, level, padded)
            children = legal_children(index, exclusion, level, nodes_BK, paths_BKML[..., level])
            log_probs_BKW = candidate_log_probs(logits_BKC, children)
            step = jnp.int32(item * num_levels + level)
            selection = select_best(
                Candidates(log_probs=log_probs_BKW, scores=scores_BK, step=step), config.num_beams
            )
            scores_BK, item_scores_BKM, paths_BKML, tokens_BKT = _rows(
                (scores_BK, item_scores_BKM, paths_BKML, tokens_BKT), selection.parents
            )
            scores_BK += selection.log_probs
            item_scores_BKM = item_scores_BKM.at[:, :, item].add(selection.log_probs)
            nodes_BK = chosen_edges(index, children, selection.parents, selection.choices)
            paths_BKML = paths_BKML.at[:, :, item, level].set(nodes_BK)
            next_BK = code_tokens(model_config, index.codes[level][nodes_BK], level)
            tokens_BKT = jnp.concatenate([tokens_BKT, next_BK[..., None]], axis=-1)
    alive_BK = scores_BK > -jnp.inf
    codes_BKML = jnp.stack(
        [index.codes[level][paths_BKML[..., level]] for level in range(num_levels)], axis=-1
    )
    items_BKM = items_of_leaves(index, exclusion, paths_BKML[..., -1])
    return Beams(
        items=jnp.where(alive_BK[..., None], items_BKM, -1),
        codes=jnp.where(alive_BK[..., None, None], codes_BKML, 0),
        scores=scores_BK,
        item_scores=jnp.where(alive_BK[..., None], item_scores_BKM, -jnp.inf),
        alive=alive_BK,
    )
