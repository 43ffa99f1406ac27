"""Log-probabilities under a frozen output matrix, and gradients, are those of any matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_jax.errors import ConfigError
from core_jax.frozen_head import frozen_head_log_probs, frozen_head_scores
from core_jax.losses import chunked_token_log_probs, chunked_token_scores

ROWS, LENGTH, WIDTH, VOCABULARY = 3, 11, 7, 29
CHUNKS = (1, 4, 11, 13)


def made_up():
    keys = jax.random.split(jax.random.key(0), 4)
    hidden = 3 * jax.random.normal(keys[0], (ROWS, LENGTH, WIDTH))
    head = jax.random.normal(keys[1], (WIDTH, VOCABULARY))
    targets = jax.random.randint(keys[2], (ROWS, LENGTH), 0, VOCABULARY)
    return hidden, head, targets, jax.random.normal(keys[3], (ROWS, LENGTH))


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("score", [frozen_head_log_probs, chunked_token_log_probs])
def test_values_and_gradients_are_those_of_whole_distributions(score, chunk):
    """d log p(y) / dh = W_y - sum_v p(v) W_v, in float64."""
    hidden, head, targets, outer = made_up()
    values, pull = jax.vjp(lambda h: score(h, head, targets, chunk=chunk), hidden)
    wide, matrix = np.asarray(hidden, np.float64), np.asarray(head, np.float64)
    logits = wide @ matrix
    shares = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    picked = np.take_along_axis(shares, np.asarray(targets)[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(values, np.log(picked), rtol=1e-5, atol=1e-5)
    expected = np.asarray(outer)[..., None] * (matrix.T[np.asarray(targets)] - shares @ matrix.T)
    np.testing.assert_allclose(pull(outer)[0], expected, rtol=1e-5, atol=2e-5)


def test_values_are_the_same_with_and_without_a_gradient():
    hidden, head, targets, _ = made_up()
    alone = frozen_head_log_probs(hidden, head, targets, chunk=4)
    beside, _ = jax.vjp(lambda h: frozen_head_log_probs(h, head, targets, chunk=4), hidden)
    np.testing.assert_allclose(alone, beside, rtol=1e-6, atol=1e-6)


def test_tops_are_those_of_any_matrix_with_and_without_a_gradient():
    hidden, head, _, _ = made_up()
    best = jnp.argmax(hidden @ head, axis=-1)
    targets = jnp.where(jnp.arange(LENGTH) % 2 == 0, best, (best + 1) % VOCABULARY)
    expected = chunked_token_scores(hidden, head, targets, chunk=4).is_top
    np.testing.assert_array_equal(expected, targets == best)

    def scored(hidden):
        scores = frozen_head_scores(hidden, head, targets, chunk=4)
        return scores.log_probs.sum(), scores.is_top

    np.testing.assert_array_equal(scored(hidden)[1], expected)
    np.testing.assert_array_equal(jax.grad(scored, has_aux=True)(hidden)[1], expected)


def test_no_gradient_reaches_the_matrix():
    hidden, head, targets, _ = made_up()
    gradient = jax.grad(lambda w: frozen_head_log_probs(hidden, w, targets, chunk=4).sum())(head)
    np.testing.assert_array_equal(gradient, np.zeros((WIDTH, VOCABULARY)))


def test_large_logits_stay_finite():
    """exp(200) overflows float32; both programs subtract the largest logit first."""
    hidden, head, targets, outer = made_up()
    scaled = 100 * hidden
    values, pull = jax.vjp(lambda h: frozen_head_log_probs(h, head, targets, chunk=4), scaled)
    assert np.isfinite(values).all() and np.isfinite(pull(outer)[0]).all()


def test_gradients_have_the_dtype_of_what_they_belong_to():
    """bfloat16 keeps 8 bits: 2^-8 of a number, of which there are some in a sum."""
    hidden, head, targets, outer = made_up()
    exact = jax.vjp(lambda h: frozen_head_log_probs(h, head, targets, chunk=4), hidden)[1](outer)
    narrow = hidden.astype(jnp.bfloat16)
    _, pull = jax.vjp(lambda h: frozen_head_log_probs(h, head, targets, chunk=4), narrow)
    (found,) = pull(outer)
    assert found.dtype == jnp.bfloat16
    scale = np.abs(exact[0]).max()
    np.testing.assert_allclose(found.astype(jnp.float32), exact[0], atol=0.05 * float(scale))


def test_a_chunk_without_tokens_is_refused():
    hidden, head, targets, _ = made_up()
    with pytest.raises(ConfigError, match="chunk is 0"):
        frozen_head_log_probs(hidden, head, targets, chunk=0)
