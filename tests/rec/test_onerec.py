"""The OneRec model: causality, padding, cached decoding, the loss of a fresh model.

Sizes are distinct primes, so that a transposed dimension cannot go unnoticed.
"""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_jax.errors import ConfigError
from core_jax.nn.feed_forward import Activation
from core_jax.nn.linear import ComputeDtype
from core_jax.nn.stack import Remat
from rec_jax.batch import SessionBatch
from rec_jax.model import onerec
from rec_jax.model.config import OneRecConfig
from rec_jax.model.decoder_cache import MAX_LENGTHS, follow, init_cache
from rec_jax.model.embeddings import BOS, item_tokens, num_parameters
from rec_jax.moe.router import MoeBackend
from rec_jax.objectives import next_token_loss

CONFIG = OneRecConfig(
    level_sizes=(11, 7, 5),
    history_items=3,
    session_items=2,
    d_model=26,
    num_heads=2,
    head_dim=13,
    d_ff=37,
    num_encoder_layers=2,
    num_decoder_layers=3,
    num_experts=5,
    experts_per_token=2,
    d_expert=19,
)
BATCH = 4

# One program each: run eagerly, every loop and every operation would be compiled by itself.
apply = jax.jit(onerec.apply, static_argnums=0)
encode = jax.jit(onerec.encode, static_argnums=0)
loss_of = jax.jit(next_token_loss, static_argnums=(0, 1))
initial = jax.jit(onerec.init_params, static_argnums=0)


def _batch(config: OneRecConfig = CONFIG, seed: int = 0, rows: int = BATCH) -> SessionBatch:
    rng = np.random.default_rng(seed)

    def codes(*lead: int) -> jax.Array:
        levels = [rng.integers(0, size, lead) for size in config.level_sizes]
        return jnp.asarray(np.stack(levels, axis=-1), jnp.int32)

    return SessionBatch(
        history_codes=codes(rows, config.history_items),
        history_mask=jnp.ones((rows, config.history_items), bool),
        target_codes=codes(rows, config.session_items),
        target_mask=jnp.ones((rows, config.session_items), bool),
    )


def _params(config: OneRecConfig = CONFIG):
    return initial(config, key=jax.random.key(3))


def test_loss_of_a_fresh_model_is_the_log_of_the_code_counts():
    loss, metrics = loss_of(CONFIG, None, _params(), _batch(rows=64))
    for level, size in enumerate(CONFIG.level_sizes):
        ratio = metrics[f"loss_level_{level}"]
        assert float(ratio.total / ratio.count) == pytest.approx(math.log(size), abs=0.03)
    assert float(loss.count) == 64 * CONFIG.session_items * CONFIG.num_levels


def test_no_logit_looks_at_its_own_code_or_later_ones():
    """d logit(item i, level l) / d token embedding at position p is zero unless p is before it.

    Decoder position of (item i, level l)'s input is i * (L + 1) + l: it may see positions up to
    that one. Codes are discrete, so the gradient is taken through the decoder's input embeddings.
    """
    params, batch = _params(), _batch(rows=1)
    levels = CONFIG.num_levels
    tokens = item_tokens(CONFIG, batch.target_codes, BOS).reshape(1, 1, -1)

    def logits_of(shift):
        def shifted(*arguments):
            return embed(*arguments) + shift

        embed = onerec._embedded_session
        onerec._embedded_session = shifted
        try:
            return onerec.apply(CONFIG, params, batch).logits
        finally:
            onerec._embedded_session = embed

    shift = jnp.zeros((1, 1, tokens.shape[-1], CONFIG.d_model))
    for item in range(CONFIG.session_items):
        for level in range(levels):
            grad = jax.grad(lambda s, i=item, k=level: logits_of(s)[k][0, i].sum())(shift)
            seen = np.abs(np.asarray(grad)).max(axis=(0, 1, 3)) > 0
            position = item * (levels + 1) + level
            np.testing.assert_array_equal(seen, np.arange(seen.size) <= position)


def test_cached_decoding_equals_the_full_forward_pass():
    """Token by token, in pairs, and at once; two beams that hold the same and another session."""
    params, batch = _params(), _batch()
    other = dataclasses.replace(batch, target_codes=batch.target_codes[::-1])
    expected = [apply(CONFIG, params, sessions).logits for sessions in (batch, other)]
    tokens = jnp.stack(
        [
            item_tokens(CONFIG, sessions.target_codes, BOS).reshape(BATCH, -1)
            for sessions in (batch, other)
        ],
        axis=1,
    )
    encoded = encode(CONFIG, params, batch.history_codes, batch.history_mask)
    roles = CONFIG.num_levels + 1
    decode = jax.jit(partial(onerec.decode, CONFIG))
    for width in (1, 2, tokens.shape[-1]):
        cache = init_cache(CONFIG, BATCH, 2)
        hidden = []
        for start in range(0, tokens.shape[-1], width):
            part = tokens[:, :, start : start + width]
            states, cache = decode(params, encoded, cache, part, jnp.int32(start))
            hidden.append(states)
        states = jnp.concatenate(hidden, axis=2).reshape(
            BATCH, 2, CONFIG.session_items, roles, CONFIG.d_model
        )
        for beam in range(2):
            for level in range(CONFIG.num_levels):
                logits = onerec.level_logits(CONFIG, params, states[:, beam, :, level], level)
                np.testing.assert_allclose(logits, expected[beam][level], atol=2e-5)


@pytest.mark.parametrize(
    "session_items", [2, pytest.param(MAX_LENGTHS * 2 + 1, marks=pytest.mark.long)]
)
def test_beams_that_move_between_tokens_keep_what_their_parents_wrote(session_items):
    """Which beam continues which is drawn anew before every token; the first has but one beam.

    The hidden states of a beam are those of reading the sequence that its ancestors wrote, at once.
    More items than `MAX_LENGTHS` share lengths of attention.
    """
    config = dataclasses.replace(CONFIG, session_items=session_items)
    params, batch = _params(config), _batch(config)
    params = onerec.for_many_steps(config, params, None)
    encoded = encode(config, params, batch.history_codes, batch.history_mask)
    rng, num_places = np.random.default_rng(4), 3
    decode = jax.jit(partial(onerec.decode, config))
    cache = init_cache(config, BATCH, num_places)
    assert len(cache.lengths) <= MAX_LENGTHS
    written = np.zeros((BATCH, num_places, 0), np.int32)
    for position in range(config.decoder_tokens):
        shape = (BATCH, 1 if position == 0 else num_places)
        parents = rng.integers(0, written.shape[1], shape)
        cache = follow(cache, jnp.asarray(parents, jnp.int32))
        tokens = rng.integers(2, 2 + sum(config.level_sizes), (*shape, 1)).astype(np.int32)
        written = np.take_along_axis(written, parents[..., None], axis=1)
        written = np.concatenate([written, tokens], axis=-1)
        states, cache = decode(params, encoded, cache, jnp.asarray(tokens), jnp.int32(position))
    at_once = init_cache(config, BATCH, num_places)
    expected, _ = decode(params, encoded, at_once, jnp.asarray(written), jnp.int32(0))
    np.testing.assert_allclose(states[:, :, 0], expected[:, :, -1], atol=2e-5)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "backend", [MoeBackend.BLOCK, pytest.param(MoeBackend.DENSE, marks=pytest.mark.long)]
)
def test_parameters_for_many_steps_give_the_same_scores(tied, backend):
    config = dataclasses.replace(CONFIG, tie_embeddings=tied, moe_backend=backend)
    params, batch = _params(config), _batch(config)
    apart = onerec.for_many_steps(config, params, None)
    assert onerec.for_many_steps(config, apart, None) is apart
    tokens = item_tokens(config, batch.target_codes, BOS).reshape(BATCH, 1, -1)

    @jax.jit
    def scores(params):
        encoded = encode(config, params, batch.history_codes, batch.history_mask)
        hidden, _ = onerec.decode(
            config, params, encoded, init_cache(config, BATCH, 1), tokens, jnp.int32(0)
        )
        return [
            onerec.level_logits(config, params, hidden, level) for level in range(config.num_levels)
        ]

    for left, right in zip(scores(params), scores(apart), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-6)


def test_padding_of_a_history_changes_nothing():
    params, batch = _params(), _batch()
    mask = batch.history_mask.at[:, 0].set(False)
    one = dataclasses.replace(batch, history_mask=mask)
    two = dataclasses.replace(one, history_codes=batch.history_codes.at[:, 0].set(0))
    for left, right in zip(
        apply(CONFIG, params, one).logits,
        apply(CONFIG, params, two).logits,
        strict=True,
    ):
        np.testing.assert_allclose(left, right, atol=1e-6)


def test_a_row_without_history_stays_finite():
    params, batch = _params(), _batch()
    empty = dataclasses.replace(batch, history_mask=jnp.zeros_like(batch.history_mask))
    loss, _ = loss_of(CONFIG, None, params, empty)
    assert bool(jnp.isfinite(loss.total))


def test_masked_targets_count_for_nothing():
    """Codes of a masked item change neither the loss nor the experts' load."""
    params, batch = _params(), _batch()
    masked = dataclasses.replace(batch, target_mask=batch.target_mask.at[:, 1].set(False))
    other = dataclasses.replace(masked, target_codes=masked.target_codes.at[:, 1].set(0))
    loss, metrics = loss_of(CONFIG, None, params, masked)
    other_loss, other_metrics = loss_of(CONFIG, None, params, other)
    assert float(loss.total) == pytest.approx(float(other_loss.total), rel=1e-6)
    assert float(loss.count) == BATCH * CONFIG.num_levels
    load = metrics["expert_load"].total
    np.testing.assert_array_equal(load, other_metrics["expert_load"].total)
    tokens = BATCH * (CONFIG.num_levels + 1) * CONFIG.experts_per_token
    np.testing.assert_array_equal(load.sum(axis=-1), [tokens] * CONFIG.num_decoder_layers)


@pytest.mark.long
@pytest.mark.parametrize(
    "change",
    [
        {"remat": Remat.FULL},
        {"remat": Remat.DOTS},
        {"scan_unroll": 7},
    ],
)
def test_how_the_layers_run_does_not_change_the_gradient(change):
    params, batch = _params(), _batch()

    def grads(config):
        return jax.grad(lambda p: loss_of(config, None, p, batch)[0].total)(params)

    expected = grads(CONFIG)
    actual = grads(dataclasses.replace(CONFIG, **change))
    for left, right in zip(jax.tree.leaves(expected), jax.tree.leaves(actual), strict=True):
        np.testing.assert_allclose(left, right, rtol=2e-4, atol=2e-5)


def test_bfloat16_compute_keeps_float32_parameters_and_logits():
    config = dataclasses.replace(CONFIG, compute_dtype=ComputeDtype.BFLOAT16)
    params, batch = _params(config), _batch()
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    low, high = apply(config, params, batch), apply(CONFIG, params, batch)
    for left, right in zip(low.logits, high.logits, strict=True):
        assert left.dtype == jnp.float32
        np.testing.assert_allclose(left, right, atol=0.05)


def test_dropout_needs_a_key_and_changes_the_loss():
    config = dataclasses.replace(CONFIG, dropout=0.3)
    params, batch = _params(), _batch()
    plain = loss_of(config, None, params, batch)[0].total
    keys = jax.random.split(jax.random.key(0))
    first, again, second = (
        loss_of(config, None, params, batch, key=key)[0].total
        for key in (keys[0], keys[0], keys[1])
    )
    assert float(first) == float(again)
    assert len({float(plain), float(first), float(second)}) == 3


def test_parameter_count_is_the_sum_of_the_parts():
    """Counted by hand from the architecture, tied and untied, with and without gates."""
    config, width = CONFIG, CONFIG.d_model
    codes, attention = sum(config.level_sizes), 4 * width * config.num_heads * config.head_dim
    for tied in (False, True):
        for activation in (Activation.RELU, Activation.SWIGLU):
            matrices = 3 if activation.is_gated else 2
            tables = 2 + codes + (0 if tied else codes) + config.num_levels + 1
            tables += config.history_items + config.session_items
            encoder = attention + matrices * width * config.d_ff + 2 * width
            experts = config.num_experts * (matrices * width * config.d_expert + width)
            decoder = 2 * attention + experts + 3 * width
            total = tables * width + 2 * width
            total += config.num_encoder_layers * encoder + config.num_decoder_layers * decoder
            variant = dataclasses.replace(config, tie_embeddings=tied, activation=activation)
            assert num_parameters(_params(variant)) == total


def test_unknown_level_sizes_are_an_error():
    config = dataclasses.replace(CONFIG, level_sizes=())
    with pytest.raises(ConfigError, match=r"level_sizes is empty; set it, or let the pretrain"):
        _ = config.num_levels


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_model": 0}, r"model.d_model is 0; it must be at least 1"),
        ({"dropout": 1.0}, r"model.dropout is 1.0; it must lie in \[0, 1\)"),
        ({"level_sizes": (3, 0)}, r"model.level_sizes is \(3, 0\)"),
    ],
)
def test_impossible_sizes_are_errors(change, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(CONFIG, **change)
