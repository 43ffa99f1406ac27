"""A small model, and batches with preferences for it.

Dimension key: P groups, Z samples per group, B samples, G responses, M session items, L levels.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from rec_jax.align.batch import PreferenceBatch, bundled, response_log_probs
from rec_jax.batch import SessionBatch
from rec_jax.model import onerec
from rec_jax.model.config import OneRecConfig

CONFIG = OneRecConfig(
    level_sizes=(11, 7, 5),
    history_items=3,
    session_items=2,
    d_model=14,
    num_heads=2,
    head_dim=7,
    d_ff=17,
    num_encoder_layers=1,
    num_decoder_layers=1,
    num_experts=3,
    experts_per_token=2,
    d_expert=13,
)


LOG_PROBS = jax.jit(response_log_probs, static_argnums=0)
"""(config, parameters, history codes, history mask, responses, mask) -> log-probabilities."""


@functools.cache
def params(seed=3):
    return jax.jit(lambda: onerec.init_params(CONFIG, key=jax.random.key(seed)))()


def codes(rng, *lead, config=CONFIG):
    levels = [rng.integers(0, size, lead) for size in config.level_sizes]
    return jnp.asarray(np.stack(levels, axis=-1), jnp.int32)


def sessions(rng, rows, *, ragged=False, config=CONFIG):
    """SessionBatch [rows, ...], full or with padding."""
    history_mask = np.ones((rows, config.history_items), bool)
    target_mask = np.ones((rows, config.session_items), bool)
    if ragged:
        history_mask[::2, 0] = False
        target_mask[::3, -1] = False
    return SessionBatch(
        history_codes=codes(rng, rows, config.history_items, config=config),
        history_mask=jnp.asarray(history_mask),
        target_codes=codes(rng, rows, config.session_items, config=config),
        target_mask=jnp.asarray(target_mask),
    )


def batch(
    num_groups,
    samples,
    num_responses=2,
    *,
    reference=None,
    ragged=False,
    empty=(),
    seed=0,
    config=CONFIG,
):
    """A batch whose reference is `reference` (parameters), or made-up log-probabilities."""
    rng = np.random.default_rng(seed)
    logged = bundled(sessions(rng, num_groups * samples, ragged=ragged, config=config), num_groups)
    responses = codes(rng, num_groups, num_responses, config.session_items, config=config)
    mask = np.ones(responses.shape[:-1], bool)
    if ragged:
        mask[0, -1, -1] = False
    if reference is None:
        log_probs = jnp.asarray(-rng.exponential(2.0, size=responses.shape), jnp.float32)
    else:
        log_probs = LOG_PROBS(
            config,
            reference,
            logged.history_codes[:, 0],
            logged.history_mask[:, 0],
            responses,
            jnp.asarray(mask),
        )
    return PreferenceBatch(
        sessions=logged,
        response_codes=responses,
        response_mask=jnp.asarray(mask),
        has_pair=jnp.asarray(~np.isin(np.arange(num_groups), empty)),
        reference_log_probs=log_probs,
        advantages=jnp.asarray(rng.normal(size=(num_groups, num_responses)), jnp.float32),
        weights=jnp.asarray(rng.uniform(size=responses.shape), jnp.float32),
    )
