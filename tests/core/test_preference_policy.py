"""ECPO and GBPO: equations, closed forms of gradients, bounds, extreme probabilities.

Dimension key: B samples.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_jax.errors import ConfigError
from core_jax.preference_policy import ecpo, gbpo

EPSILON, DELTA, B = 0.2, 0.1, 97
LOSSES = {
    "ecpo": lambda new, old, advantages: ecpo(new, old, advantages, epsilon=EPSILON, delta=DELTA),
    "gbpo": gbpo,
}


def inputs(seed=0):
    """Log-probabilities and advantages away from the kinks of both losses."""
    rng = np.random.default_rng(seed)
    new, old = rng.uniform(0.02, 0.98, size=(2, B))
    advantages = rng.normal(size=B)
    return tuple(
        jnp.asarray(array, jnp.float32) for array in (np.log(new), np.log(old), advantages)
    )


def slopes(name, new, old, advantages):
    """d loss / d log-probability of each sample."""
    return jax.grad(lambda new: jnp.sum(LOSSES[name](new, old, advantages)))(new)


def ratios(name, new, old, advantages):
    """The ratio of each loss from its equation, in float64."""
    pi, pi_old, a = (np.asarray(x, np.float64) for x in (jnp.exp(new), jnp.exp(old), advantages))
    if name == "ecpo":
        return pi / np.maximum(pi / (1 + EPSILON + DELTA), pi_old)
    return pi / np.maximum(pi_old, np.where(a >= 0, pi, 1 - pi))


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_its_equation(name):
    new, old, advantages = inputs()
    a, rho_B = np.asarray(advantages), ratios(name, new, old, advantages)
    expected = -rho_B * a
    if name == "ecpo":
        expected = -np.minimum(rho_B * a, np.clip(rho_B, 1 - EPSILON, 1 + EPSILON) * a)
    value_B = LOSSES[name](new, old, advantages)
    assert value_B.shape == (B,)
    np.testing.assert_allclose(value_B, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_holds_the_old_probability_fixed(name):
    """d loss / d log pi = -rho A, and for ECPO 0 where PPO's clip takes over.

    It does where the ratio has gone far enough already: above 1 + epsilon with A > 0, below
    1 - epsilon with A < 0.
    """
    new, old, advantages = inputs()
    a, rho_B = np.asarray(advantages), ratios(name, new, old, advantages)
    expected = -rho_B * a
    if name == "ecpo":
        is_clipped_B = np.where(a > 0, rho_B > 1 + EPSILON, rho_B < 1 - EPSILON)
        assert 0 < is_clipped_B.sum() < B
        expected = np.where(is_clipped_B, 0.0, expected)
    np.testing.assert_allclose(slopes(name, new, old, advantages), expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_the_finite_difference_with_the_old_probability_held(name):
    """Both old probabilities are computed at the start; only pi itself moves."""
    new, old, advantages = inputs(1)
    rho_B, a, step = ratios(name, new, old, advantages), np.asarray(advantages), 1e-4

    def moved(by):
        rho = rho_B * np.exp(by)
        if name == "gbpo":
            return -rho * a
        return -np.minimum(rho * a, np.clip(rho, 1 - EPSILON, 1 + EPSILON) * a)

    difference = (moved(step) - moved(-step)) / (2 * step)
    # Within a step of a kink the difference is neither slope.
    is_smooth_B = np.abs(np.abs(rho_B - 1) - EPSILON) > 1e-3
    np.testing.assert_allclose(
        slopes(name, new, old, advantages)[is_smooth_B],
        difference[is_smooth_B],
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("name", LOSSES)
def test_descent_raises_what_is_better_and_lowers_what_is_worse(name):
    """On policy, new = old, as training starts: ECPO's slope is then that of REINFORCE, -A."""
    new, _, advantages = inputs()
    slope_B = slopes(name, new, new, advantages)
    np.testing.assert_array_equal(np.sign(slope_B), -np.sign(advantages))
    if name == "ecpo":
        np.testing.assert_allclose(slope_B, -advantages, rtol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_no_gradient_reaches_old_probabilities_and_advantages(name):
    new, old, advantages = inputs()
    grads = jax.grad(
        lambda old, advantages: jnp.sum(LOSSES[name](new, old, advantages)), argnums=(0, 1)
    )(old, advantages)
    for grad in grads:
        np.testing.assert_array_equal(grad, 0.0)


@pytest.mark.parametrize("name", LOSSES)
def test_an_advantage_of_0_costs_nothing_and_moves_nothing(name):
    new, old, _ = inputs()
    np.testing.assert_array_equal(LOSSES[name](new, old, jnp.zeros(B)), 0.0)
    np.testing.assert_array_equal(slopes(name, new, old, jnp.zeros(B)), 0.0)


def test_the_slope_of_ecpo_is_bounded_however_far_the_policy_went():
    """At most 1 + epsilon + delta times |A|; GRPO's would be e^200."""
    slope = slopes("ecpo", jnp.zeros(1), jnp.full(1, -200.0), jnp.full(1, -3.0))
    np.testing.assert_allclose(slope, 3 * (1 + EPSILON + DELTA), rtol=1e-5)


@pytest.mark.parametrize("advantage", [-3.0, 3.0])
@pytest.mark.parametrize("old", [-200.0, -1.0, -1e-6])
@pytest.mark.parametrize("logit", [-200.0, -20.0, -1.0, 0.0, 1.0, 15.0, 200.0])
def test_the_gradient_of_gbpo_in_the_logit_is_bounded(logit, old, advantage):
    """pi = sigma(z): |d loss / d z| = rho (1 - pi) |A| <= |A|, from pi = e^-200 to pi = 1."""

    def loss(logit):
        return gbpo(jax.nn.log_sigmoid(logit), jnp.asarray(old), jnp.asarray(advantage))

    value, slope = jax.value_and_grad(loss)(jnp.asarray(logit))
    assert np.isfinite(value)
    assert abs(slope) <= abs(advantage) * (1 + 1e-5)


def test_gbpo_lowers_a_sure_sample_at_full_rate_and_an_improbable_one_not_at_all():
    """With A < 0 and a small old probability the slope in the logit is pi |A|: BCE of label 0."""
    for logit in (-20.0, -2.0, 0.0, 2.0, 10.0):
        slope = jax.grad(
            lambda z: gbpo(jax.nn.log_sigmoid(z), jnp.asarray(-200.0), jnp.asarray(-3.0))
        )(logit)
        np.testing.assert_allclose(slope, 3 / (1 + np.exp(-logit)), rtol=2e-3, atol=1e-7)


@pytest.mark.parametrize("advantage", [-3.0, 0.0, 3.0])
@pytest.mark.parametrize("new", [1e-7, 0.0, -1e-8, -0.6931472, -200.0, -1e4])
@pytest.mark.parametrize("old", [0.0, -200.0, -1e4])
@pytest.mark.parametrize("name", LOSSES)
def test_values_and_slopes_are_finite_at_extreme_probabilities(name, old, new, advantage):
    """A log-probability that rounding left above 0 included."""
    arguments = jnp.asarray(new), jnp.asarray(old), jnp.asarray(advantage)
    assert np.isfinite(LOSSES[name](*arguments))
    assert np.isfinite(slopes(name, *arguments))


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_is_computed_in_float32(name):
    half = [array.astype(jnp.bfloat16) for array in inputs()]
    value_B = LOSSES[name](*half)
    assert value_B.dtype == jnp.float32
    np.testing.assert_array_equal(
        value_B, LOSSES[name](*(array.astype(jnp.float32) for array in half))
    )


@pytest.mark.parametrize(("epsilon", "delta"), [(0.0, 0.1), (1.0, 0.1), (0.2, -0.1)])
def test_a_clip_that_is_none_is_an_error(epsilon, delta):
    with pytest.raises(
        ConfigError, match=rf"epsilon is {epsilon:g} and delta {delta:g}; .*\(0, 1\)"
    ):
        ecpo(*inputs(), epsilon=epsilon, delta=delta)
