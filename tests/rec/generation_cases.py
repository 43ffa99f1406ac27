"""A tiny model and catalogues for the tests of generation, and plain-Python answers to compare."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rec_jax.batch import SessionBatch
from rec_jax.model import onerec
from rec_jax.model.config import OneRecConfig
from rec_jax.moe.router import MoeBackend
from rec_jax.semantic_ids.item_index import ItemIndex
from rec_jax.semantic_ids.prefix_index import build_prefix_index

CONFIG = OneRecConfig(
    level_sizes=(3, 2, 5),
    history_items=3,
    session_items=3,
    d_model=14,
    num_heads=2,
    head_dim=5,
    d_ff=11,
    num_encoder_layers=1,
    num_decoder_layers=2,
    num_experts=3,
    experts_per_token=2,
    d_expert=13,
    moe_backend=MoeBackend.DENSE,  # The quickest to compile.
)

SEVEN = np.array(
    [[2, 1, 4], [0, 0, 3], [1, 1, 1], [2, 1, 0], [0, 1, 2], [1, 1, 0], [2, 0, 4]], np.int32
)
"""Seven items with semantic IDs of their own, out of lexicographic order."""


def make_params(seed):
    """Random parameters whose logits are far from uniform."""
    shapes = jax.eval_shape(partial(onerec.init_params, CONFIG), key=jax.random.key(0))
    rng = np.random.default_rng(seed)

    def values(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        scale = 0.5 if name.endswith("outputs") else leaf.shape[-1] ** -0.5
        offset = 1.0 if name.endswith("scale") else 0.0
        return jnp.asarray(offset + scale * rng.normal(size=leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(values, shapes)


def make_index(codes, popularity=None):
    """The prefix index of a catalogue given by its codes."""
    item_index = ItemIndex(codes=codes, level_sizes=CONFIG.level_sizes, fingerprint="0" * 16)
    return build_prefix_index(item_index, popularity)


def make_history(items, codes):
    """Codes, mask and items of histories given as lists of items."""
    items = np.array([[-1] * (CONFIG.history_items - len(row)) + list(row) for row in items])
    return (
        jnp.asarray(codes[np.maximum(items, 0)] * (items >= 0)[..., None]),
        jnp.asarray(items >= 0),
        jnp.asarray(items, jnp.int32),
    )


@jax.jit
def _log_probs(params, batch):
    output = onerec.apply(CONFIG, params, batch)
    return [jax.nn.log_softmax(logits) for logits in output.logits]


def score_sessions(params, history_codes, history_mask, session_codes):
    """Log-probability of every code of given sessions of one user: [S, M, L]."""
    count, num_items, _ = session_codes.shape
    # One shape for all callers: 210 sessions of 3 items.
    sessions = np.zeros((210, 3, 3), np.int32)
    sessions[:count, :num_items] = session_codes
    batch = SessionBatch(
        history_codes=jnp.repeat(history_codes[None], 210, axis=0),
        history_mask=jnp.repeat(history_mask[None], 210, axis=0),
        target_codes=jnp.asarray(sessions),
        target_mask=jnp.ones((210, 3), bool),
    )
    levels = [
        np.take_along_axis(np.asarray(log_probs), sessions[..., level, None], axis=-1)
        for level, log_probs in enumerate(_log_probs(params, batch))
    ]
    return np.concatenate(levels, axis=-1)[:count, :num_items]


def all_sessions(num_items, length, excluded=()):
    """Every ordered session without repeats: [S, M] item numbers."""
    free = [item for item in range(num_items) if item not in set(excluded)]
    return np.array(list(itertools.permutations(free, length)), np.int32)
