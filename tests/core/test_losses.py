"""Scores and divergences block by block: the values and gradients of the whole, and less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_jax.errors import ConfigError
from core_jax.losses import (
    chunked_token_kl,
    chunked_token_log_probs,
    chunked_token_scores,
    token_log_probs,
)

NUM_ROWS, NUM_TOKENS, WIDTH, NUM_CLASSES = 3, 13, 7, 29


@pytest.fixture
def parts():
    hidden_key, head_key, target_key = jax.random.split(jax.random.key(5), 3)
    hidden_BTD = jax.random.normal(hidden_key, (NUM_ROWS, NUM_TOKENS, WIDTH))
    head_DV = jax.random.normal(head_key, (WIDTH, NUM_CLASSES))
    targets_BT = jax.random.randint(target_key, (NUM_ROWS, NUM_TOKENS), 0, NUM_CLASSES)
    return hidden_BTD, head_DV, targets_BT


@pytest.mark.parametrize("chunk", [1, 5, 13, 100])
def test_blocks_give_the_values_and_gradients_of_the_whole(parts, chunk):
    """5 does not divide 13: the last block is filled up, and nothing of that is seen."""
    hidden, head, targets = parts
    weight_BT = jnp.sin(jnp.arange(NUM_ROWS * NUM_TOKENS, dtype=jnp.float32)).reshape(targets.shape)

    def chunked(hidden, head):
        values = chunked_token_log_probs(hidden, head, targets, chunk=chunk)
        return jnp.sum(values * weight_BT), values

    def whole(hidden, head):
        values = token_log_probs(hidden @ head, targets)
        return jnp.sum(values * weight_BT), values

    grads, values = jax.jit(jax.grad(chunked, argnums=(0, 1), has_aux=True))(hidden, head)
    expected_grads, expected = jax.grad(whole, argnums=(0, 1), has_aux=True)(hidden, head)
    np.testing.assert_allclose(values, expected, atol=1e-6, rtol=1e-6)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(grad, expected_grad, atol=1e-6, rtol=1e-5)


def test_entropy_and_its_gradient(parts):
    """H = - sum p log p; entropies are absent unless asked for."""
    hidden, head, targets = parts

    def chunked(hidden):
        scores = chunked_token_scores(hidden, head, targets, chunk=4, with_entropy=True)
        return jnp.sum(scores.entropies), scores.entropies

    def whole(hidden):
        log_probs_BTV = jax.nn.log_softmax(hidden @ head)
        entropies = -jnp.sum(jnp.exp(log_probs_BTV) * log_probs_BTV, axis=-1)
        return jnp.sum(entropies), entropies

    grad, values = jax.grad(chunked, has_aux=True)(hidden)
    expected_grad, expected = jax.grad(whole, has_aux=True)(hidden)
    np.testing.assert_allclose(values, expected, atol=1e-5)
    np.testing.assert_allclose(grad, expected_grad, atol=1e-5)
    assert chunked_token_scores(hidden, head, targets, chunk=4).entropies is None


def test_top_is_the_argmax_and_a_tie_is_not(parts):
    hidden, head, targets = parts
    logits_BTV = hidden @ head
    best_BT = jnp.argmax(logits_BTV, axis=-1)
    mixed_BT = jnp.where(jnp.arange(NUM_TOKENS) % 2 == 0, best_BT, targets)
    scores = chunked_token_scores(hidden, head, mixed_BT, chunk=3)
    np.testing.assert_array_equal(scores.is_top, mixed_BT == best_BT)
    tied = chunked_token_scores(jnp.zeros_like(hidden), head, targets, chunk=3)
    assert not np.any(tied.is_top)


def test_low_precision_operands_accumulate_in_float32():
    """1 and 256 units of 1/256 sum to 2: bfloat16 sums would stay at 1, one unit being lost."""
    width = 257
    hidden = jnp.concatenate([jnp.ones(1), jnp.full(256, 1 / 256)]).astype(jnp.bfloat16)[None]
    head = jnp.stack([jnp.ones(width), jnp.zeros(width)], axis=1)
    values = chunked_token_log_probs(hidden, head, jnp.zeros(1, jnp.int32), chunk=1)
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, -np.log1p(np.exp(-2.0)), rtol=1e-5)
    grad = jax.grad(
        lambda head: jnp.sum(chunked_token_log_probs(hidden, head, jnp.ones(1, int), chunk=1))
    )(head)
    assert grad.dtype == head.dtype


def test_logits_of_all_tokens_never_exist():
    """No value of the differentiated program is as large as [T, V], and the largest is [C, V]."""
    length, width, classes, chunk = 64, 5, 1009, 8

    def loss(hidden, head):
        return jnp.sum(
            chunked_token_log_probs(hidden, head, jnp.zeros(length, jnp.int32), chunk=chunk)
        )

    arguments = jnp.ones((length, width)), jnp.ones((width, classes))
    jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(*arguments)
    assert max(_sizes(jaxpr.jaxpr)) == max(chunk, width) * classes < length * classes


REFERENCE_WIDTH = 5


@pytest.fixture
def reference():
    hidden_key, head_key = jax.random.split(jax.random.key(6))
    hidden_BTE = jax.random.normal(hidden_key, (NUM_ROWS, NUM_TOKENS, REFERENCE_WIDTH))
    return hidden_BTE, jax.random.normal(head_key, (REFERENCE_WIDTH, NUM_CLASSES))


@pytest.mark.parametrize("chunk", [1, 5, 13, 100])
def test_divergence_in_blocks_is_that_of_the_whole(parts, reference, chunk):
    """sum p_ref (log p_ref - log p): its slope in the model's logits is p - p_ref."""
    hidden, head, _ = parts
    weight_BT = jnp.sin(jnp.arange(NUM_ROWS * NUM_TOKENS, dtype=jnp.float32)).reshape(
        NUM_ROWS, NUM_TOKENS
    )

    def chunked(*arrays):
        values = chunked_token_kl(*arrays, chunk=chunk)
        return jnp.sum(values * weight_BT), values

    grads, values = jax.jit(jax.grad(chunked, argnums=(0, 1, 2, 3), has_aux=True))(
        *reference, hidden, head
    )
    p_ref, p = (
        np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        for logits in (
            np.asarray(reference[0], np.float64) @ np.asarray(reference[1], np.float64),
            np.asarray(hidden, np.float64) @ np.asarray(head, np.float64),
        )
    )
    np.testing.assert_allclose(values, (p_ref * np.log(p_ref / p)).sum(-1), rtol=1e-5, atol=1e-6)
    slopes = np.asarray(weight_BT)[..., None] * (p - p_ref)
    expected = (slopes @ np.asarray(head).T, np.einsum("btd,btv->dv", hidden, slopes))
    for grad in grads[:2]:
        np.testing.assert_array_equal(grad, 0.0)
    for grad, expected_grad in zip(grads[2:], expected, strict=True):
        np.testing.assert_allclose(grad, expected_grad, rtol=1e-4, atol=1e-5)


def test_divergence_of_a_model_from_itself_is_0_without_gradient(parts):
    """Also where the two share one head, whose gradient is that of the model's side alone."""
    hidden, head, _ = parts

    def total(hidden, head):
        return jnp.sum(chunked_token_kl(hidden, head, hidden, head, chunk=4))

    value, grads = jax.value_and_grad(total, argnums=(0, 1))(hidden, head)
    assert value == 0.0
    for grad in grads:
        np.testing.assert_allclose(grad, 0.0, atol=1e-5)


def test_divergence_never_holds_the_logits_of_all_tokens():
    """A block's logits, twice of C V, are the largest values, in the backward pass too."""
    length, width, classes, chunk = 64, 5, 1009, 8
    hidden, head = jnp.ones((length, width)), jnp.ones((width, classes))

    def loss(hidden, head):
        return jnp.sum(chunked_token_kl(hidden, head, hidden, head, chunk=chunk))

    jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(hidden, head)
    assert max(_sizes(jaxpr.jaxpr)) == max(chunk, width) * classes < length * classes


def test_a_block_of_a_divergence_must_hold_a_token(parts):
    hidden, head, _ = parts
    with pytest.raises(ConfigError, match=r"chunk is 0; .* at least 1"):
        chunked_token_kl(hidden, head, hidden, head, chunk=0)


def _sizes(jaxpr):
    """Sizes of all values in a program, inner programs included."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.size for variable in equation.outvars)
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _sizes(inner)


def test_a_block_must_hold_a_token(parts):
    with pytest.raises(ConfigError, match=r"chunk is 0; .* at least 1"):
        chunked_token_log_probs(*parts, chunk=0)
