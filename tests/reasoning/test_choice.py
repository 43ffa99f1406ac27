"""Drawing a token: the distribution, truncation, and that nothing outside it is ever drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasoning_jax.sampling.choice import choose_tokens

NUM_TOKENS = 613  # three blocks, the last one not full
DRAWS = np.linspace(0, 1, 20_011, endpoint=False)[:, None]


def draw_all(logits_V, **options):
    """The token of each of many evenly spaced uniform numbers: shares are probabilities."""
    draw = jax.vmap(lambda uniform: choose_tokens(logits_V[:, None], uniform, **options)[0])
    return np.asarray(draw(jnp.asarray(DRAWS, jnp.float32)))


def shares(tokens):
    return np.bincount(tokens, minlength=NUM_TOKENS) / len(tokens)


def some_logits(seed=0):
    return 2.0 * jax.random.normal(jax.random.key(seed), (NUM_TOKENS,))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_shares_are_the_softmax_of_logits_over_temperature(temperature):
    expected = np.asarray(jax.nn.softmax(some_logits() / temperature))
    found = shares(draw_all(some_logits(), temperature=temperature))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1.01 / len(DRAWS))


def test_top_k_keeps_the_k_best_and_their_ratios():
    probs = np.asarray(jax.nn.softmax(some_logits()))
    best = np.argsort(-probs)[:7]
    expected = np.zeros(NUM_TOKENS)
    expected[best] = probs[best] / probs[best].sum()
    found = shares(draw_all(some_logits(), temperature=1.0, top_k=7))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1.01 / len(DRAWS))


@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.9, 0.999])
def test_top_p_keeps_the_fewest_tokens_that_reach_it(top_p):
    probs = np.asarray(jax.nn.softmax(some_logits()), np.float64)
    order = np.argsort(-probs)
    count = int(np.searchsorted(np.cumsum(probs[order]), top_p)) + 1
    expected = np.zeros(NUM_TOKENS)
    expected[order[:count]] = probs[order[:count]] / probs[order[:count]].sum()
    found = shares(draw_all(some_logits(), temperature=1.0, top_p=top_p))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1.01 / len(DRAWS))


def test_top_p_works_on_what_top_k_leaves():
    """Four equal tokens, of which top-k 4 keeps all and top-p 0.5 needs two; equals all stay."""
    logits = jnp.full((NUM_TOKENS,), -20.0).at[jnp.asarray([3, 300, 500, 612])].set(0.0)
    found = shares(draw_all(logits, temperature=1.0, top_k=4, top_p=0.5))
    np.testing.assert_allclose(found[[3, 300, 500, 612]], 0.25, atol=1e-4)
    assert found.sum() == pytest.approx(1)


def test_greedy_takes_the_first_of_the_best():
    logits = jnp.zeros((NUM_TOKENS, 2)).at[jnp.asarray([17, 400]), 0].set(5.0)
    logits = logits.at[612, 1].set(1e-3)
    found = choose_tokens(logits, jnp.zeros(2), temperature=0.0)
    assert found.tolist() == [17, 612]


@pytest.mark.parametrize("uniform", [0.0, float(np.nextafter(np.float32(1), np.float32(0)))])
@pytest.mark.parametrize("token", [0, 255, 256, 612])
def test_extreme_numbers_stay_where_probability_is(uniform, token):
    logits = jnp.full((NUM_TOKENS, 1), -200.0).at[token].set(0.0)
    found = choose_tokens(logits, jnp.asarray([uniform]), temperature=1.0)
    assert int(found[0]) == token


def test_columns_are_independent():
    logits = jnp.stack([some_logits(seed) for seed in range(5)], axis=1)
    uniforms = jax.random.uniform(jax.random.key(9), (5,))
    options = {"temperature": 0.7, "top_k": 50, "top_p": 0.8}
    together = choose_tokens(logits, uniforms, **options)
    alone = [
        int(choose_tokens(logits[:, b : b + 1], uniforms[b : b + 1], **options)[0])
        for b in range(5)
    ]
    assert together.tolist() == alone
