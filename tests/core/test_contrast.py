"""Contrastive scores: the paper's Eq. 1, what cancels in it, and the blocks of the chunked form.

Dimension key: B rows, T tokens, D hidden width, V classes.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_jax.contrast import chunked_contrast_scores, contrast_scores
from core_jax.errors import ConfigError
from core_jax.losses import token_log_probs

B, T, D, V = 3, 13, 7, 29
FIELDS = ("log_scores", "positive", "negative")


def make_logits(seed=0, scale=2.0):
    rng = np.random.default_rng(seed)
    positive, negative = (
        jnp.asarray(scale * rng.normal(size=(B, T, V)), jnp.float32) for _ in range(2)
    )
    return positive, negative, jnp.asarray(rng.integers(0, V, size=(B, T)))


def equation_1(positive, negative, targets, beta, legal=None):
    """log s in float64, by way of normalised probabilities as the paper prints it."""

    def log_softmax(logits):
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    positive, negative = (np.asarray(logits, np.float64) for logits in (positive, negative))
    contrast = (1 + beta) * log_softmax(positive) - beta * log_softmax(negative)
    z = np.exp(contrast).sum(-1, where=True if legal is None else np.asarray(legal))
    picked = np.take_along_axis(contrast, np.asarray(targets)[..., None], axis=-1)[..., 0]
    return picked - np.log(z)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 3.0])
def test_scores_are_equation_1(beta):
    positive, negative, targets = make_logits()
    scores = contrast_scores(positive, negative, targets, beta=beta)
    expected = equation_1(positive, negative, targets, beta)
    np.testing.assert_allclose(scores.log_scores, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(scores.positive, token_log_probs(positive, targets))
    np.testing.assert_array_equal(scores.negative, token_log_probs(negative, targets))
    assert all(getattr(scores, name).dtype == jnp.float32 for name in FIELDS)


def test_over_all_targets_the_scores_are_a_distribution():
    positive, negative, _ = make_logits()
    every_VBT = jnp.broadcast_to(jnp.arange(V)[:, None, None], (V, B, T))
    scores = jax.vmap(lambda targets: contrast_scores(positive, negative, targets, beta=1.0))
    total_BT = jnp.sum(jnp.exp(scores(every_VBT).log_scores), axis=0)
    np.testing.assert_allclose(total_BT, 1.0, rtol=1e-5)


def test_without_contrast_and_without_difference():
    """beta = 0 is the positive model; so are two equal models, (1 + beta) z - beta z = z."""
    positive, negative, targets = make_logits()
    scores = contrast_scores(positive, negative, targets, beta=0.0)
    np.testing.assert_array_equal(scores.log_scores, scores.positive)
    scores = contrast_scores(positive, positive, targets, beta=2.0)
    np.testing.assert_allclose(scores.log_scores, scores.positive, rtol=1e-4, atol=1e-5)


def test_what_is_added_to_all_logits_of_a_place_cancels():
    """So logits, log-probabilities and anything between give one score."""
    positive, negative, targets = make_logits()
    shift_BT1 = jnp.sin(jnp.arange(B * T, dtype=jnp.float32)).reshape(B, T, 1)
    shifted = contrast_scores(positive + 5 * shift_BT1, negative - shift_BT1, targets, beta=1.0)
    scores = contrast_scores(positive, negative, targets, beta=1.0)
    for name in FIELDS:
        np.testing.assert_allclose(
            getattr(shifted, name), getattr(scores, name), rtol=1e-5, atol=1e-5
        )


def test_what_the_positive_model_likes_less_is_critical():
    """Two classes, p against n: s = p^2 (1-n) / (p^2 (1-n) + (1-p)^2 n)."""
    for p, n in [(0.9, 0.5), (0.5, 0.9), (0.1, 0.6)]:
        logits = [jnp.log(jnp.asarray([q, 1 - q])) for q in (p, n)]
        score = jnp.exp(contrast_scores(*logits, jnp.asarray(0), beta=1.0).log_scores)
        expected = p**2 * (1 - n) / (p**2 * (1 - n) + (1 - p) ** 2 * n)
        np.testing.assert_allclose(score, expected, rtol=1e-5)
        assert (float(score) < p) == (p < n)


def test_illegal_classes_leave_the_partition_functions():
    """Exactly as if the legal ones were the vocabulary, whatever the others hold."""
    positive, negative, _ = make_logits()
    num_legal = 11
    legal = jnp.broadcast_to(jnp.arange(V) < num_legal, positive.shape)
    targets = jnp.asarray(np.random.default_rng(1).integers(0, num_legal, size=(B, T)))
    dirty = [jnp.where(legal, logits, jnp.nan) for logits in (positive, negative)]
    scores = contrast_scores(*dirty, targets, beta=1.5, legal=legal)
    few = positive[..., :num_legal], negative[..., :num_legal]
    expected = contrast_scores(*few, targets, beta=1.5)
    for name in FIELDS:
        np.testing.assert_allclose(getattr(scores, name), getattr(expected, name), rtol=1e-5)
    whole = equation_1(positive, negative, targets, 1.5, legal=legal)
    np.testing.assert_allclose(scores.log_scores, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_legal", [0, 11])
def test_an_illegal_target_is_impossible(num_legal):
    """Its score is 0, never NaN, also where nothing is legal."""
    positive, negative, _ = make_logits()
    legal = jnp.broadcast_to(jnp.arange(V) < num_legal, positive.shape)
    scores = contrast_scores(positive, negative, jnp.full((B, T), 17), beta=1.0, legal=legal)
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(scores, name), -np.inf)


def test_sure_models_give_finite_scores():
    """Logits 500 apart: log s = (2 * 500 - 500) - log(e^500 + ...) where the target is the best."""
    best, other = jnp.asarray([500.0, 0.0, 0.0]), jnp.asarray([0.0, 500.0, 0.0])
    for target, expected in [(0, 0.0), (1, -1500.0), (2, -1000.0)]:
        scores = contrast_scores(best, other, jnp.asarray(target), beta=1.0)
        np.testing.assert_allclose(scores.log_scores, expected, atol=1e-6)


def test_low_precision_comes_in_and_float32_goes_out():
    positive, negative, targets = make_logits()
    low = [logits.astype(jnp.bfloat16) for logits in (positive, negative)]
    scores = contrast_scores(*low, targets, beta=1.0)
    exact = contrast_scores(*(logits.astype(jnp.float32) for logits in low), targets, beta=1.0)
    jax.tree.map(np.testing.assert_array_equal, scores, exact)
    assert scores.log_scores.dtype == jnp.float32


@pytest.mark.parametrize("chunk", [1, 5, 13, 100])
@pytest.mark.parametrize("lead", [(), (B,), (2, B)])
def test_blocks_give_the_scores_of_the_whole(chunk, lead):
    """5 does not divide 13: the last block is filled up, and nothing of that is seen."""
    rng = np.random.default_rng(3)
    hidden = [jnp.asarray(rng.normal(size=(*lead, T, D)), jnp.float32) for _ in range(2)]
    heads = [jnp.asarray(rng.normal(size=(D, V)), jnp.float32) for _ in range(2)]
    targets = jnp.asarray(rng.integers(0, V, size=(*lead, T)))
    scores = jax.jit(
        lambda *arrays: chunked_contrast_scores(*arrays, chunk=chunk, beta=1.0),
    )(*hidden, *heads, targets)
    whole = contrast_scores(hidden[0] @ heads[0], hidden[1] @ heads[1], targets, beta=1.0)
    for name in FIELDS:
        assert getattr(scores, name).shape == (*lead, T)
        np.testing.assert_allclose(
            getattr(scores, name), getattr(whole, name), rtol=1e-5, atol=1e-5
        )


def test_logits_of_all_tokens_never_exist():
    """The largest value of the program is a block's logits, [C, V]."""
    length, classes, chunk = 64, 1009, 8
    hidden, head = jnp.ones((length, D)), jnp.ones((D, classes))
    targets = jnp.zeros(length, jnp.int32)
    jaxpr = jax.make_jaxpr(lambda *arrays: chunked_contrast_scores(*arrays, chunk=chunk, beta=1.0))(
        hidden, hidden, head, head, targets
    )
    assert max(_sizes(jaxpr.jaxpr)) == chunk * classes < length * classes


def _sizes(jaxpr):
    """Sizes of all values in a program, inner programs included."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.size for variable in equation.outvars)
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _sizes(inner)


@pytest.mark.parametrize("beta", [-0.5, float("nan"), float("inf")])
def test_a_negative_beta_is_an_error(beta):
    positive, negative, targets = make_logits()
    with pytest.raises(ConfigError, match=rf"beta of the contrastive scores is {beta:g}, .*set 1"):
        contrast_scores(positive, negative, targets, beta=beta)


def test_a_block_must_hold_a_token():
    hidden, head = jnp.ones((T, D)), jnp.ones((D, V))
    with pytest.raises(ConfigError, match=r"chunk is 0; .* at least 1"):
        chunked_contrast_scores(
            hidden, hidden, head, head, jnp.zeros(T, jnp.int32), chunk=0, beta=1.0
        )
