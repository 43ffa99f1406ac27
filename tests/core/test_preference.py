"""The preference family: equations, identities, directions of gradients.

Dimension key: B examples, T chosen tokens, U rejected tokens, N rejected responses.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_jax import preference, preference_groups, preference_pairs
from core_jax.errors import ConfigError
from tests.core.preference_cases import (
    ALPHA,
    BETA,
    LOSSES,
    NOISE,
    B,
    N,
    T,
    U,
    gradients,
    inputs,
    token_weights,
)

LOG_2 = float(np.log(2.0))


def softplus(z):
    return np.logaddexp(0.0, z)


def tokens_of_size(length, size):
    return size * (1 + 0.5 * np.sin(np.arange(length)))


def expected_values(weights):
    """Every loss, written out in float64 from its equation."""
    chosen, rejected, where = inputs()
    w_BT = np.where(where[0], np.asarray(chosen, np.float64), 0.0)
    l_BU = np.where(where[1], np.asarray(rejected, np.float64), 0.0)
    nll = -w_BT.sum(-1) / np.asarray(where[0]).sum(-1)
    plain_w, guide_w, guide_l = w_BT.sum(-1), *map(tokens_of_size, (T, U), (0.3, 0.6))
    guided = (w_BT * (1 + ALPHA * BETA * guide_w)).sum(-1)
    guided = guided - (l_BU * (1 - ALPHA * BETA * guide_l)).sum(-1)
    k = (guide_l * np.asarray(where[1])).sum(-1) - (guide_w * np.asarray(where[0])).sum(-1)
    if weights is not None:
        w_BT, l_BU = w_BT * np.asarray(weights[0]), l_BU * np.asarray(weights[1])
    w, l = w_BT.sum(-1), l_BU.sum(-1)  # noqa: E741
    h, n_w, n_l = w - l, np.asarray(where[0]).sum(-1), np.asarray(where[1]).sum(-1)
    keep, swap = softplus(-BETA * h), softplus(BETA * h)
    w_BU = np.pad(w_BT, [(0, 0), (0, U - T)])
    position = softplus(-BETA * (w_BU - l_BU))
    positions = np.arange(U) < np.maximum(n_w, n_l)[:, None]
    return {
        "dpo": keep,
        "conservative_dpo": (1 - NOISE) * keep + NOISE * swap,
        "robust_dpo": ((1 - NOISE) * keep - NOISE * swap) / (1 - 2 * NOISE),
        "ipo": (h - 1 / (2 * BETA)) ** 2,
        "ipo_token_mean": (w / n_w - l / n_l - 1 / (2 * BETA)) ** 2,
        "hinge": np.maximum(0, 1 - BETA * h),
        "dpop": softplus(-BETA * (h - 3.0 * np.maximum(0, -w))),
        "cpo": keep + 0.3 * nll,
        "simpo": softplus(-(BETA * (w / n_w - l / n_l) - 0.4)),
        "dpo_by_position": (position * positions).sum(-1) / positions.sum(-1),
        "rpo": keep + 0.3 * (nll + 1),
        "softmax_dpo": np.log(1 + np.exp(BETA * (l - w)) + np.exp(BETA * (0 - w))),
        "kto": 1 / (1 + np.exp(BETA * (w - 0.5))) + 1.5 / (1 + np.exp(BETA * (0.5 - l))),
        "cdpo": softplus(-BETA * (plain_w - l)),
        "tdpo1": softplus(-BETA * (h - k)),
        "tdpo2": softplus(-BETA * (h - ALPHA * k)),
        "tgdpo": softplus(-BETA * guided),
    }


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_its_equation(name, weighted):
    chosen, rejected, where = inputs()
    weights = token_weights() if weighted else None
    value_B = LOSSES[name](chosen, rejected, where=where, weights=weights)
    assert value_B.shape == (B,)
    np.testing.assert_allclose(value_B, expected_values(weights)[name], rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_weights_of_one_change_nothing(name):
    chosen, rejected, where = inputs()
    ones = (jnp.ones((B, T)), jnp.ones((B, U)))
    np.testing.assert_array_equal(
        LOSSES[name](chosen, rejected, where=where),
        LOSSES[name](chosen, rejected, where=where, weights=ones),
    )


@pytest.mark.parametrize("name", ["dpo", "dpop", "conservative_dpo", "softmax_dpo", "robust_dpo"])
def test_weights_scale_the_gradient_of_each_token(name):
    """d loss / d delta_t = a_t d loss / d Delta: over a_t, all tokens of a response agree."""
    chosen, rejected, where = inputs()
    weights = token_weights()
    for grad, weight, is_token in zip(
        gradients(LOSSES[name], chosen, rejected, where, weights), weights, where, strict=True
    ):
        per_weight = np.asarray(grad / weight)
        np.testing.assert_allclose(
            per_weight, np.where(is_token, per_weight[:, :1], 0.0), rtol=1e-5, atol=1e-9
        )
        assert np.all(per_weight[:, 0] != 0)


@pytest.mark.parametrize("name", LOSSES)
def test_descent_raises_the_chosen_and_lowers_the_rejected(name):
    """At policy = reference, on every token that counts, and on no other."""
    _, _, where = inputs()
    chosen, rejected = jnp.zeros((B, T)), jnp.zeros((B, U))
    grad_chosen, grad_rejected = gradients(LOSSES[name], chosen, rejected, where)
    np.testing.assert_array_equal(grad_chosen < 0, where[0])
    np.testing.assert_array_equal(grad_rejected > 0, where[1])


@pytest.mark.parametrize("name", ["dpo", "dpo_by_position", "conservative_dpo", "robust_dpo"])
def test_the_loss_is_log_2_where_policy_and_reference_agree(name):
    """-log sigma(0) = log 2; smoothing splits it, and robust: ((1-e) - e) / (1-2e) = 1."""
    policy, _, where = inputs()
    ratios = preference.log_ratios(policy, policy, where=where[0])
    value_B = LOSSES[name](ratios, jnp.zeros((B, U)), where=where)
    np.testing.assert_allclose(value_B, LOG_2, rtol=1e-6)


def test_without_noise_conservative_and_robust_are_dpo():
    chosen, rejected, where = inputs()
    dpo_B = LOSSES["dpo"](chosen, rejected, where=where)
    for loss in (preference_pairs.conservative_dpo, preference_pairs.robust_dpo):
        value_B = loss(chosen, rejected, where=where, beta=BETA, label_noise=0.0)
        np.testing.assert_array_equal(value_B, dpo_B)


def test_robust_is_unbiased_under_swapped_labels():
    """(1-e) robust(w, l) + e robust(l, w) = dpo(w, l), for every pair."""
    chosen, rejected, where = inputs()
    kept_B = LOSSES["robust_dpo"](chosen, rejected, where=where)
    swapped_B = LOSSES["robust_dpo"](rejected, chosen, where=where[::-1])
    clean_B = LOSSES["dpo"](chosen, rejected, where=where)
    np.testing.assert_allclose((1 - NOISE) * kept_B + NOISE * swapped_B, clean_B, rtol=1e-4)


def test_conservative_is_dpo_in_expectation_over_swapped_labels():
    chosen, rejected, where = inputs()
    kept_B = LOSSES["dpo"](chosen, rejected, where=where)
    swapped_B = LOSSES["dpo"](rejected, chosen, where=where[::-1])
    value_B = LOSSES["conservative_dpo"](chosen, rejected, where=where)
    np.testing.assert_allclose(value_B, (1 - NOISE) * kept_B + NOISE * swapped_B, rtol=1e-6)


@pytest.mark.parametrize("noise", [-0.1, 0.5, 1.0])
@pytest.mark.parametrize("name", ["conservative_dpo", "robust_dpo"])
def test_a_label_noise_of_a_half_is_an_error(name, noise):
    chosen, rejected, where = inputs()
    loss = getattr(preference_pairs, name)
    with pytest.raises(ConfigError, match=rf"label_noise is {noise:g}, expected .* \[0, 0\.5\)"):
        loss(chosen, rejected, where=where, beta=BETA, label_noise=noise)


def test_no_gradient_reaches_the_reference():
    policy, _, (where, _) = inputs()
    grad = jax.grad(lambda ref: jnp.sum(preference.log_ratios(policy, ref, where=where)))(policy)
    np.testing.assert_array_equal(grad, 0.0)


def test_position_margins_add_up_to_margins():
    chosen, rejected, where = inputs()
    rejected, where = rejected[:, :T], (where[0], where[1][:, :T])
    weights = tuple(weight[:, :T] for weight in token_weights())
    positions_BT = preference.position_margins(chosen, rejected, where=where, weights=weights)
    assert positions_BT.shape == (B, T)
    sums_B = preference.margins(chosen, rejected, where=where, weights=weights)
    np.testing.assert_allclose(jnp.sum(positions_BT, axis=-1), sums_B, rtol=1e-5, atol=1e-6)


def test_by_position_and_by_sequence_have_one_gradient_direction_at_the_start():
    """Where all ratios are 0 every logistic has the slope -beta/2: by sequence |P| times that."""
    _, _, where = inputs()
    zeros = jnp.zeros((B, T)), jnp.zeros((B, U))
    num_positions = np.maximum(*(np.asarray(mask).sum(-1) for mask in where))[:, None]
    sequence = gradients(LOSSES["dpo"], *zeros, where, token_weights())
    position = gradients(LOSSES["dpo_by_position"], *zeros, where, token_weights())
    for one, other in zip(sequence, position, strict=True):
        np.testing.assert_allclose(one, num_positions * other, rtol=1e-5)


def test_by_position_maps_to_a_mean_over_padded_positions():
    """As released for contrastive cDPO: every position counts, empty ones add log 2."""
    chosen, rejected, where = inputs()
    w_BU = np.pad(np.where(where[0], chosen, 0), [(0, 0), (0, U - T)])
    released_B = softplus(-BETA * (w_BU - np.where(where[1], rejected, 0))).mean(-1)
    share_B = np.maximum(*(np.asarray(mask).sum(-1) for mask in where)) / U
    value_B = LOSSES["dpo_by_position"](chosen, rejected, where=where)
    np.testing.assert_allclose(share_B * value_B + (1 - share_B) * LOG_2, released_B, rtol=1e-5)


def test_dpop_starts_as_dpo():
    """No penalty, in value or slope, while the chosen response is as probable as before."""
    _, _, where = inputs()
    zeros = jnp.zeros((B, T)), jnp.zeros((B, U))
    for dpo, dpop in zip(
        gradients(LOSSES["dpo"], *zeros, where),
        gradients(LOSSES["dpop"], *zeros, where),
        strict=True,
    ):
        np.testing.assert_array_equal(dpo, dpop)


def softmax_inputs():
    chosen, _, (where, _) = inputs()
    rng = np.random.default_rng(2)
    rejected = jnp.asarray(rng.normal(size=(B, N, U)), jnp.float32)
    return chosen, rejected, (where, jnp.asarray(rng.random((B, N, U)) < 0.7))


def test_softmax_dpo_with_one_negative_is_dpo():
    """Whichever of the N it is, whatever the others hold."""
    chosen, rejected, where = softmax_inputs()
    for index in range(N):
        is_negative = jnp.zeros((B, N), bool).at[:, index].set(True)
        others = jnp.where(is_negative[..., None], rejected, jnp.nan)
        value_B = preference_groups.softmax_dpo(
            chosen, others, where=where, is_negative=is_negative, beta=BETA
        )
        pair = (where[0], where[1][:, index])
        dpo_B = LOSSES["dpo"](chosen, rejected[:, index], where=pair)
        np.testing.assert_allclose(value_B, dpo_B, rtol=1e-5)


@pytest.mark.parametrize("garbage", [0.0, np.nan, np.inf])
def test_softmax_dpo_without_negatives_is_0_without_gradient(garbage):
    chosen, rejected, where = softmax_inputs()
    is_negative = jnp.ones((B, N), bool).at[0].set(False)
    rejected = rejected.at[0].set(garbage)

    def total(chosen, rejected):
        value_B = preference_groups.softmax_dpo(
            chosen, rejected, where=where, is_negative=is_negative, beta=BETA
        )
        return jnp.sum(value_B), value_B

    (grads, value_B) = jax.grad(total, argnums=(0, 1), has_aux=True)(chosen, rejected)
    assert value_B[0] == 0.0
    assert np.all(value_B[1:] > 0)
    for grad in grads:
        assert np.all(np.isfinite(grad))
        np.testing.assert_array_equal(grad[0], 0.0)


@pytest.mark.parametrize(("point", "clamped"), [(0.8, 0.8), (-0.8, 0.0)])
def test_the_reference_point_of_kto_is_clamped_and_without_gradient(point, clamped):
    """lambda_D sigma(beta (z - Delta)), lambda_U sigma(beta (Delta - z)), z = max(0, point)."""
    chosen, _, (where, _) = inputs()
    is_desirable = jnp.arange(B) % 2 == 0

    def loss(point):
        return preference_groups.kto(
            chosen,
            is_desirable,
            where=where,
            reference_point=point,
            beta=BETA,
            desirable_weight=1.3,
            undesirable_weight=0.9,
        )

    delta = np.where(where, chosen, 0.0).sum(-1)
    good = 1.3 / (1 + np.exp(-BETA * (clamped - delta)))
    bad = 0.9 / (1 + np.exp(-BETA * (delta - clamped)))
    value_B = loss(jnp.asarray(point))
    np.testing.assert_allclose(value_B, np.where(is_desirable, good, bad), rtol=1e-5)
    assert jax.grad(lambda point: jnp.sum(loss(point)))(jnp.asarray(point)) == 0.0
