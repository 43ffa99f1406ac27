"""Cached decoding equals the full forward, for every kind of model and any place of a row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasoning_jax.model import decoder_lm, decoding, kv_cache
from tests.reasoning.model_cases import CONFIGS, PLAIN, in_bfloat16, make_params, make_tokens

FLOAT32 = jnp.dtype("float32")


def full_logits(config, params, tokens):
    output = decoder_lm.apply(config, params, decoder_lm.whole_rows(tokens))
    return decoder_lm.logits(config, params, output.hidden)


@pytest.mark.parametrize("name", CONFIGS)
def test_cached_decoding_equals_the_full_forward(name):
    """Prompts of 3, 5 and 7 tokens go to rows 4, 0 and 2 of 5; each step's logits must be those
    of a pass over the whole row."""
    config = CONFIGS[name]
    params, tokens = make_params(config), make_tokens(config, 3, 13)
    expected = full_logits(config, params, tokens)
    weights = decoding.for_decoding(config, params)
    lengths, rows = jnp.asarray([3, 5, 7]), jnp.asarray([4, 0, 2])
    which = jnp.arange(3)
    logits_VP, prefilled = decoding.prefill(config, weights, tokens[:, :7], lengths, FLOAT32)
    np.testing.assert_allclose(logits_VP.T, expected[which, lengths - 1], rtol=0, atol=1e-5)
    cache = kv_cache.insert_rows(
        kv_cache.empty_cache(config, 5, 11, FLOAT32),
        prefilled,
        jnp.asarray([0, 1, 2, 0, 0]),
        jnp.asarray([4, 0, 2, 3, 3]),
        jnp.asarray(3),
    )
    cache = kv_cache.grow_cache(cache, 17)
    positions = jnp.zeros(5, jnp.int32).at[rows].set(lengths)
    for step in range(5):
        new = jnp.zeros(5, jnp.int32).at[rows].set(tokens[which, lengths + step])
        logits_VB, cache = decoding.decode_step(config, weights, new, positions + step, cache)
        np.testing.assert_allclose(
            logits_VB.T[rows], expected[which, lengths + step], rtol=0, atol=1e-5
        )


def test_rows_beyond_the_count_are_not_written():
    weights = decoding.for_decoding(PLAIN, make_params(PLAIN))
    _, prefilled = decoding.prefill(
        PLAIN, weights, make_tokens(PLAIN, 2, 5), jnp.asarray([5, 5]), FLOAT32
    )
    cache = kv_cache.insert_rows(
        kv_cache.empty_cache(PLAIN, 3, 7, FLOAT32),
        prefilled,
        jnp.asarray([1, 0, 0]),
        jnp.asarray([2, 0, 1]),
        jnp.asarray(1),
    )
    written = np.abs(cache.keys[1]).max(axis=(1, 2)) > 0
    np.testing.assert_array_equal(written, np.arange(7) < np.asarray([[0], [0], [5]]))
    np.testing.assert_array_equal(cache.values[0][2, :, :5], prefilled.values[0][1])


def test_a_row_does_not_see_the_others():
    weights = decoding.for_decoding(PLAIN, make_params(PLAIN))
    cache = jax.tree.map(
        lambda part: jax.random.normal(jax.random.key(part.size), part.shape),
        kv_cache.empty_cache(PLAIN, 2, 7, FLOAT32),
    )
    positions = jnp.asarray([3, 5])
    first, _ = decoding.decode_step(PLAIN, weights, jnp.asarray([1, 2]), positions, cache)
    changed = kv_cache.KvCache(
        keys=tuple(part.at[1].add(1.0).at[0, :, :, 4:].add(1.0) for part in cache.keys),
        values=tuple(part.at[1].add(1.0).at[0, :, 4:].add(1.0) for part in cache.values),
    )
    second, _ = decoding.decode_step(PLAIN, weights, jnp.asarray([1, 3]), positions, changed)
    np.testing.assert_array_equal(first[:, 0], second[:, 0])
    assert float(jnp.abs(first[:, 1] - second[:, 1]).max()) > 0.1


def test_bfloat16_decoding_stays_near_its_own_full_forward():
    config = in_bfloat16(PLAIN)
    params, tokens = make_params(config), make_tokens(config, 2, 7)
    expected = full_logits(config, params, tokens)
    weights = decoding.for_decoding(config, params)
    assert weights.layers[0].gate_up.dtype == jnp.bfloat16
    logits_VP, cache = decoding.prefill(
        config, weights, tokens[:, :6], jnp.asarray([6, 6]), jnp.dtype("bfloat16")
    )
    cache = kv_cache.grow_cache(cache, 7)
    logits_VB, cache = decoding.decode_step(
        config, weights, tokens[:, 6], jnp.asarray([6, 6]), cache
    )
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(logits_VP.T, expected[:, 5], rtol=0, atol=0.02 * scale)
    np.testing.assert_allclose(logits_VB.T, expected[:, 6], rtol=0, atol=0.02 * scale)
    assert cache.keys[0].dtype == jnp.bfloat16
