"""Token-weighted preference losses: contrastive cDPO by hand, in both readings, and its relatives.

Dimension key: B examples, T chosen tokens, U rejected tokens, V classes.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_jax import preference, preference_pairs, preference_tokens
from core_jax.contrast import contrast_scores
from core_jax.errors import ConfigError
from core_jax.losses import token_log_probs
from core_jax.token_weights import WeightConfig, token_weights
from tests.core.preference_cases import ALPHA, BETA, B, T, U, inputs, token_numbers

GAMMA, V = 0.6, 13


# Contrastive cDPO from the logits of four models, once by JAX and once by hand.


def made_up_logits(seed=0):
    """Logits of a policy, a reference, a positive and a negative model; targets; lengths."""
    rng = np.random.default_rng(seed)
    sides = []
    for width in (T, U):
        logits = {
            name: rng.normal(size=(B, width, V))
            for name in ("policy", "reference", "positive", "negative")
        }
        sides.append((logits, rng.integers(0, V, (B, width)), rng.integers(1, width + 1, B)))
    return sides


def by_hand(sides):
    """Losses [B] and their gradients in the policy's logits, in float64 and in loops.

    With m = gamma (sum_t d_t - sum_u (1 - s_u) d_u) the loss is log(1 + e^-m), its slope in m is
    -1 / (1 + e^m), that of m in d_t is gamma and in d_u is -gamma (1 - s_u), and that of
    d = log softmax(z)[y] - ... in z is (v = y) - softmax(z)[v].
    """

    def softmax(logits):
        exps = [np.exp(z) for z in logits]
        return np.asarray(exps) / sum(exps)

    losses, grads = np.zeros(B), [np.zeros((B, width, V)) for width in (T, U)]
    for example in range(B):
        margin, slopes = 0.0, []
        for side, (logits, targets, lengths) in enumerate(sides):
            for place in range(lengths[example]):
                target = targets[example, place]
                p, ref, pos, neg = (
                    softmax(logits[name][example, place])
                    for name in ("policy", "reference", "positive", "negative")
                )
                if side == 0:
                    factor = GAMMA
                else:
                    contrast = pos**2 / neg  # Eq. 1 at beta = 1: exp(2 log P_p - log P_n)
                    factor = -GAMMA * (1 - contrast[target] / contrast.sum())
                margin += factor * (np.log(p[target]) - np.log(ref[target]))
                slopes.append((side, place, factor * ((np.arange(V) == target) - p)))
        losses[example] = np.log(1 + np.exp(-margin))
        for side, place, slope in slopes:
            grads[side][example, place] = -slope / (1 + np.exp(margin))
    return losses, grads


def by_us(sides):
    """The same by the functions of the package."""

    def parts(policy_logits, side):
        logits, targets, lengths = side
        logits = {name: jnp.asarray(values, jnp.float32) for name, values in logits.items()}
        targets = jnp.asarray(targets)
        where = jnp.asarray(np.arange(targets.shape[1]) < lengths[:, None])
        delta = preference.log_ratios(
            token_log_probs(policy_logits, targets),
            token_log_probs(logits["reference"], targets),
            where=where,
        )
        scores = contrast_scores(logits["positive"], logits["negative"], targets, beta=1.0)
        return delta, where, jnp.exp(scores.log_scores)

    def total(policies):
        both = [parts(policy, side) for policy, side in zip(policies, sides, strict=True)]
        (chosen, chosen_where, _), (rejected, rejected_where, scores) = both
        weights = token_weights(scores, where=rejected_where, config=WeightConfig())
        losses = preference_tokens.cdpo(
            chosen, rejected, weights, where=(chosen_where, rejected_where), gamma=GAMMA
        )
        return jnp.sum(losses), losses

    policies = [jnp.asarray(side[0]["policy"], jnp.float32) for side in sides]
    grads, losses = jax.jit(jax.grad(total, has_aux=True))(policies)
    return losses, grads


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cdpo_is_the_papers_loss_written_by_hand(seed):
    """From four models' logits to the loss and its gradient in the policy's logits, to 1e-5."""
    sides = made_up_logits(seed)
    expected_losses, expected_grads = by_hand(sides)
    losses, grads = by_us(sides)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5, atol=1e-6)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(grad, expected_grad, rtol=1e-5, atol=1e-6)


def test_cdpo_with_weights_of_one_is_dpo():
    """A score of 0 everywhere; with scores of 1 the rejected response leaves the loss."""
    chosen, rejected, where = inputs()
    dpo = preference_pairs.dpo(chosen, rejected, where=where, beta=GAMMA)
    ones = jnp.ones((B, U))
    value = preference_tokens.cdpo(chosen, rejected, ones, where=where, gamma=GAMMA)
    np.testing.assert_array_equal(value, dpo)
    value = preference_tokens.cdpo(chosen, rejected, 0 * ones, where=where, gamma=GAMMA)
    alone = preference_pairs.dpo(chosen, 0 * rejected, where=where, beta=GAMMA)
    np.testing.assert_array_equal(value, alone)


# The paper sums inside the logarithm (sequence), its released code does not (position).

NUM_CHOSEN, NUM_REJECTED = 23, 19
PAPER_GAMMA, CODE_BETA = 1.0, 0.1
REJECTED_WEIGHTS = np.linspace(0.5, 0.964, NUM_REJECTED)  # 1 - s; they sum to 13.9
SEQUENCE_LEFT = [(0.1, 4.9e-2), (0.5, 1.9e-8), (2.0, 1.6e-32)]
POSITION_LEFT = [(0.1, 0.99), (0.5, 0.96), (2.0, 0.85)]
"""Nats per token, and the share of the first gradient that a trial of other lengths had left."""


def both_forms(nats):
    """Gradients in the log-ratios, sequence and position form, with each token `nats` along."""
    width = NUM_CHOSEN
    where = (jnp.ones(width, bool), jnp.arange(width) < NUM_REJECTED)
    weights = jnp.pad(jnp.asarray(REJECTED_WEIGHTS, jnp.float32), (0, width - NUM_REJECTED))
    start = jnp.full(width, nats), jnp.full(width, -nats)

    def sequence(chosen, rejected):
        return preference_tokens.cdpo(chosen, rejected, weights, where=where, gamma=PAPER_GAMMA)

    def position(chosen, rejected):
        pair = (jnp.ones(width), weights)
        return preference_pairs.dpo_by_position(
            chosen, rejected, where=where, beta=CODE_BETA, weights=pair
        )

    return [np.concatenate(jax.grad(form, argnums=(0, 1))(*start)) for form in (sequence, position)]


def test_the_two_forms_have_one_gradient_direction_at_the_start():
    """Every logistic has the slope 1/2 there: the sequence form's gradient is gamma |P| / beta.

    |P|, the number of positions, is that of the longer response.
    """
    sequence, position = both_forms(0.0)
    np.testing.assert_allclose(sequence, PAPER_GAMMA * NUM_CHOSEN / CODE_BETA * position, rtol=1e-5)
    cosine = sequence @ position / np.linalg.norm(sequence) / np.linalg.norm(position)
    np.testing.assert_allclose(cosine, 1.0, rtol=1e-6)


@pytest.mark.parametrize(("nats", "published"), SEQUENCE_LEFT)
def test_the_sequence_form_saturates(nats, published):
    """Of every token's gradient 2 sigma(-m) is left, m = gamma nats (n_w + sum of 1 - s).

    To first order that is 2 e^-m: each nat of the sum costs a factor e.
    """
    tokens = slice(0, NUM_CHOSEN + NUM_REJECTED)
    before, after = both_forms(0.0)[0][tokens], both_forms(nats)[0][tokens]
    margin = PAPER_GAMMA * nats * (NUM_CHOSEN + REJECTED_WEIGHTS.sum())
    closed = 2 / (1 + np.exp(margin))
    # A margin near 74 has a spacing of 8e-6 in float32, and its exponential that relative error.
    np.testing.assert_allclose(after / before, closed, rtol=3e-5)
    assert published / 1.5 < closed < published * 1.5


@pytest.mark.parametrize(("nats", "published"), POSITION_LEFT)
def test_the_position_form_hardly_does(nats, published):
    """At position t 2 sigma(-beta m_t) is left, m_t = nats (1 + (1 - s_t)), or nats alone."""
    before, after = both_forms(0.0)[1], both_forms(nats)[1]
    weights = np.pad(REJECTED_WEIGHTS, (0, NUM_CHOSEN - NUM_REJECTED))
    closed = 2 / (1 + np.exp(CODE_BETA * nats * (1 + weights)))
    np.testing.assert_allclose(after[:NUM_CHOSEN] / before[:NUM_CHOSEN], closed, rtol=1e-5)
    rejected = slice(NUM_CHOSEN, NUM_CHOSEN + NUM_REJECTED)
    np.testing.assert_allclose(after[rejected] / before[rejected], closed[:NUM_REJECTED], rtol=1e-5)
    assert abs(closed.mean() - published) < 0.015


# Token-level DPO: divergences as offsets of the margin.


def tdpo2(chosen, rejected, divergences, *, where, alpha=ALPHA):
    return preference_tokens.tdpo2(
        chosen, rejected, divergences, where=where, beta=BETA, alpha=alpha
    )


def tdpo1(chosen, rejected, divergences, *, where):
    return preference_tokens.tdpo1(chosen, rejected, divergences, where=where, beta=BETA)


def tdpo_inputs():
    chosen, rejected, where = inputs()
    return chosen, rejected, (token_numbers(chosen, 0.3), token_numbers(rejected, 0.6)), where


@pytest.mark.parametrize("loss", [tdpo1, tdpo2])
def test_tdpo_without_divergence_is_dpo(loss):
    chosen, rejected, divergences, where = tdpo_inputs()
    none = jax.tree.map(jnp.zeros_like, divergences)
    dpo = preference_pairs.dpo(chosen, rejected, where=where, beta=BETA)
    np.testing.assert_array_equal(loss(chosen, rejected, none, where=where), dpo)


def test_the_forms_of_tdpo_differ_by_alpha_and_the_stopped_gradient():
    """At alpha = 1 the value is the same, and so are all gradients but that in K_w."""
    chosen, rejected, divergences, where = tdpo_inputs()
    np.testing.assert_array_equal(
        tdpo2(chosen, rejected, divergences, where=where, alpha=1.0),
        tdpo1(chosen, rejected, divergences, where=where),
    )

    def slopes(loss, **fields):
        return jax.grad(
            lambda *arrays: jnp.sum(loss(*arrays, where=where, **fields)), argnums=(0, 1, 2)
        )(chosen, rejected, divergences)

    *one, (chosen_one, rejected_one) = slopes(tdpo1)
    *two, (chosen_two, rejected_two) = slopes(tdpo2, alpha=1.0)
    jax.tree.map(np.testing.assert_array_equal, two, one)
    np.testing.assert_array_equal(chosen_two, 0.0)
    np.testing.assert_array_equal(rejected_two, rejected_one)
    np.testing.assert_array_equal(rejected_one > 0, where[1])  # descent lowers K_l
    np.testing.assert_array_equal(chosen_one < 0, where[0])  # and, in the first form, raises K_w


def test_a_divergence_counts_as_much_as_the_margin():
    """d loss / d K_l = -d loss / d h in the first form, alpha times that in the second."""
    chosen, rejected, divergences, where = tdpo_inputs()
    for loss, factor in [(tdpo1, 1.0), (tdpo2, ALPHA)]:
        slope_h, slope_k = jax.grad(
            lambda chosen, k, loss=loss: jnp.sum(
                loss(chosen, rejected, (divergences[0], k), where=where)
            ),
            argnums=(0, 1),
        )(chosen, divergences[1])
        np.testing.assert_allclose(slope_k[:, 0], -factor * slope_h[:, 0], rtol=1e-6)


@pytest.mark.parametrize("loss", [tdpo1, tdpo2])
def test_masked_divergences_are_not_read(loss):
    chosen, rejected, divergences, where = tdpo_inputs()
    dirty = tuple(
        jnp.where(mask, values, jnp.nan) for mask, values in zip(where, divergences, strict=True)
    )
    np.testing.assert_array_equal(
        loss(chosen, rejected, dirty, where=where), loss(chosen, rejected, divergences, where=where)
    )


# Weights of TIS-DPO and TGDPO.

TIS = {"scale": 1.3, "mu": 0.7, "low": -0.5, "high": 1.5}


def two_models():
    rng = np.random.default_rng(4)
    return tuple(jnp.asarray(-rng.exponential(2, size=(B, T)), jnp.float32) for _ in range(2))


@pytest.mark.parametrize("sign", [1, -1])
def test_tis_weights_are_their_equation(sign):
    positive, negative = two_models()
    weights = preference_tokens.tis_weights(positive, negative, sign=sign, **TIS)
    ratio = np.clip(np.asarray(positive, np.float64) - np.asarray(negative), -0.5, 1.5)
    np.testing.assert_allclose(weights, 1.3 * np.exp(sign * 0.7 * ratio), rtol=1e-6)
    bounds = sorted(1.3 * np.exp(sign * 0.7 * bound) for bound in (-0.5, 1.5))
    np.testing.assert_allclose([weights.min(), weights.max()], bounds, rtol=1e-6)


def test_tis_weights_of_the_two_sides_are_inverse():
    """k e^(mu r) k e^(-mu r) = k^2; equal models and mu = 0 give k."""
    positive, negative = two_models()
    up, down = (
        preference_tokens.tis_weights(positive, negative, sign=sign, **TIS) for sign in (1, -1)
    )
    np.testing.assert_allclose(up * down, 1.3**2, rtol=1e-6)
    for pair, fields in [((positive, positive), TIS), ((positive, negative), {**TIS, "mu": 0.0})]:
        weights = preference_tokens.tis_weights(*pair, sign=1, **fields)
        np.testing.assert_allclose(weights, 1.3, rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sign": 0}, "sign of the TIS-DPO weights is 0; set 1 .* or -1"),
        ({"scale": 0.0}, "scale 0, .* scale must be positive"),
        ({"mu": -1.0}, "mu -1 .* mu 0 or more"),
        ({"low": 2.0}, r"bounds \[2, 1.5\]; .* low not above high"),
    ],
)
def test_tis_weights_that_cannot_be_are_an_error(fields, message):
    positive, negative = two_models()
    with pytest.raises(ConfigError, match=message):
        preference_tokens.tis_weights(positive, negative, **({"sign": 1} | TIS | fields))


def tgdpo(chosen, rejected, guides, *, where, alpha):
    return preference_tokens.tgdpo(chosen, rejected, guides, where=where, beta=BETA, alpha=alpha)


def test_tgdpo_without_guidance_is_dpo():
    chosen, rejected, guides, where = tdpo_inputs()
    dpo = preference_pairs.dpo(chosen, rejected, where=where, beta=BETA)
    np.testing.assert_array_equal(tgdpo(chosen, rejected, guides, where=where, alpha=0.0), dpo)
    none = jax.tree.map(jnp.zeros_like, guides)
    np.testing.assert_array_equal(tgdpo(chosen, rejected, none, where=where, alpha=0.5), dpo)


def test_tgdpo_is_dpo_with_its_weights():
    chosen, rejected, guides, where = tdpo_inputs()
    weights = preference_tokens.tgdpo_weights(guides, beta=BETA, alpha=ALPHA)
    np.testing.assert_allclose(weights[0], 1 + ALPHA * BETA * guides[0], rtol=1e-6)
    np.testing.assert_allclose(weights[1], 1 - ALPHA * BETA * guides[1], rtol=1e-6)
    np.testing.assert_array_equal(
        tgdpo(chosen, rejected, guides, where=where, alpha=ALPHA),
        preference_pairs.dpo(chosen, rejected, where=where, beta=BETA, weights=weights),
    )


def test_no_gradient_reaches_the_models_that_weigh():
    chosen, rejected, guides, where = tdpo_inputs()
    positive, negative = two_models()
    grads = jax.grad(
        lambda guides: jnp.sum(tgdpo(chosen, rejected, guides, where=where, alpha=ALPHA))
    )(guides)
    tis = jax.grad(lambda pair: jnp.sum(preference_tokens.tis_weights(*pair, sign=1, **TIS)))(
        (positive, negative)
    )
    for grad in (*grads, *tis):
        np.testing.assert_array_equal(grad, 0.0)
