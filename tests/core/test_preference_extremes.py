"""The preference family where numbers are large, masked, missing or of low precision; jit and vmap.

Dimension key: B examples, T chosen tokens, U rejected tokens.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_jax import preference
from tests.core.preference_cases import BETA, LOSSES, B, T, U, gradients, inputs, token_weights

HUGE = 1e4
WRONG_SLOPES = {
    "conservative_dpo": 0.8,  # (1 - e) sigma(inf) - e sigma(-inf)
    "robust_dpo": 0.8 / 0.6,  # the same over 1 - 2e
    "dpop": 1 + 3.0,  # the penalty has the chosen's slope once more, lambda times
}
"""Slope of a loss in -beta Delta_w at a hopelessly wrong margin, where it is not 1."""


@pytest.mark.parametrize("margin", [-HUGE, HUGE])
@pytest.mark.parametrize("name", LOSSES)
def test_values_and_gradients_are_finite_at_huge_margins(name, margin):
    _, _, where = inputs()
    chosen, rejected = jnp.full((B, T), margin / 2), jnp.full((B, U), -margin / 2)
    value_B = LOSSES[name](chosen, rejected, where=where)
    assert np.all(np.isfinite(value_B))
    for grad in gradients(LOSSES[name], chosen, rejected, where):
        assert np.all(np.isfinite(grad))


@pytest.mark.parametrize("name", ["dpo", "conservative_dpo", "robust_dpo", "hinge", "dpop"])
def test_a_hopelessly_wrong_pair_still_has_its_full_slope(name):
    chosen, rejected = jnp.full((B, T), -HUGE), jnp.full((B, U), HUGE)
    _, _, where = inputs()
    grad_chosen, _ = gradients(LOSSES[name], chosen, rejected, where)
    slope = -BETA * WRONG_SLOPES.get(name, 1.0)
    np.testing.assert_allclose(grad_chosen, np.where(where[0], slope, 0.0), rtol=1e-6)


@pytest.mark.parametrize("name", ["dpo", "hinge", "dpop"])
def test_a_settled_pair_costs_nothing(name):
    _, _, where = inputs()
    chosen, rejected = jnp.full((B, T), HUGE), jnp.full((B, U), -HUGE)
    np.testing.assert_array_equal(LOSSES[name](chosen, rejected, where=where), 0.0)
    for grad in gradients(LOSSES[name], chosen, rejected, where):
        np.testing.assert_array_equal(grad, 0.0)


def test_a_small_loss_keeps_its_digits():
    """log(1 + e^-z) = e^-z to first order, far below the spacing of float32 around 1."""
    one, zero = jnp.ones((1, 1), bool), jnp.zeros((1, 1))
    value = LOSSES["dpo"](jnp.full((1, 1), 30.0 / BETA), zero, where=(one, one))
    np.testing.assert_allclose(value, np.exp(-30.0), rtol=1e-4)


def test_softmax_and_kto_keep_the_digits_of_small_losses():
    """S-DPO with scores -30 and a second negative at -30: 2 e^-30. KTO: (1 + 1.5) e^-30 nearly."""
    one, zero = jnp.ones((1, 1), bool), jnp.zeros((1, 1))
    value = LOSSES["softmax_dpo"](jnp.full((1, 1), 30.0 / BETA), zero, where=(one, one))
    np.testing.assert_allclose(value, 2 * np.exp(-30.0), rtol=1e-4)
    far = 30.0 / BETA
    value = LOSSES["kto"](
        jnp.full((1, 1), 0.5 + far), jnp.full((1, 1), 0.5 - far), where=(one, one)
    )
    np.testing.assert_allclose(value, 2.5 * np.exp(-30.0), rtol=1e-4)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", LOSSES)
def test_what_is_masked_reaches_neither_value_nor_gradient(name, garbage):
    chosen, rejected, where = inputs()
    weights = token_weights()
    spoilt = [
        tuple(jnp.where(mask, array, garbage) for mask, array in zip(where, pair, strict=True))
        for pair in ((chosen, rejected), weights)
    ]

    def run(pair, weights):
        value_B = LOSSES[name](*pair, where=where, weights=weights)
        return value_B, jax.grad(
            lambda pair, weights: jnp.sum(LOSSES[name](*pair, where=where, weights=weights)),
            argnums=(0, 1),
        )(pair, weights)

    clean, dirty = run((chosen, rejected), weights), run(*spoilt)
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)
    for grad, mask in zip((*clean[1][0], *clean[1][1]), (*where, *where), strict=True):
        np.testing.assert_array_equal(np.where(mask, 0.0, grad), 0.0)


@pytest.mark.parametrize("garbage", [np.nan, -np.inf])
def test_log_ratios_of_masked_tokens_are_0(garbage):
    """-inf - -inf, as two models give it to an impossible token, would be NaN."""
    policy, _, (where, _) = inputs()
    spoilt = jnp.where(where, policy, garbage)

    def total(policy):
        ratios_BT = preference.log_ratios(policy, spoilt, where=where)
        return jnp.sum(ratios_BT), ratios_BT

    grad, ratios_BT = jax.grad(total, has_aux=True)(spoilt)
    np.testing.assert_array_equal(ratios_BT, 0.0)
    np.testing.assert_array_equal(grad, where)


@pytest.mark.parametrize("name", LOSSES)
def test_an_example_without_tokens_is_finite_without_gradient(name):
    """And leaves the others alone."""
    chosen, rejected, where = inputs()
    value_B = LOSSES[name](chosen, rejected, where=where)
    where = tuple(mask.at[2].set(False) for mask in where)
    empty_B = LOSSES[name](chosen, rejected, where=where)
    assert np.isfinite(empty_B[2])
    np.testing.assert_array_equal(np.delete(empty_B, 2), np.delete(value_B, 2))
    for grad in gradients(LOSSES[name], chosen, rejected, where):
        assert np.all(np.isfinite(grad))
        np.testing.assert_array_equal(grad[2], 0.0)


@pytest.mark.parametrize("name", LOSSES)
def test_padding_changes_nothing(name):
    chosen, rejected, where = inputs()
    value_B = LOSSES[name](chosen, rejected, where=where)
    longer = [jnp.pad(array, [(0, 0), (0, 6)]) for array in (chosen, rejected, *where)]
    padded_B = LOSSES[name](longer[0], longer[1], where=(longer[2], longer[3]))
    np.testing.assert_allclose(padded_B, value_B, rtol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_low_precision_comes_in_and_float32_goes_out(name):
    """The result is that of the rounded inputs in float32, not of arithmetic in bfloat16."""
    chosen, rejected, where = inputs()
    chosen, rejected = chosen.astype(jnp.bfloat16), rejected.astype(jnp.bfloat16)
    if name == "rpo":  # its case derives the log-probabilities from the ratios, in bfloat16
        chosen = jnp.round(4 * chosen) / 4
    value_B = LOSSES[name](chosen, rejected, where=where)
    exact_B = LOSSES[name](chosen.astype(jnp.float32), rejected.astype(jnp.float32), where=where)
    assert value_B.dtype == jnp.float32
    np.testing.assert_array_equal(value_B, exact_B)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_run_under_jit_and_vmap_and_on_one_example(name):
    chosen, rejected, where = inputs()
    weights = token_weights()

    def loss(chosen, rejected, where, weights):
        return LOSSES[name](chosen, rejected, where=where, weights=weights)

    value_B = loss(chosen, rejected, where, weights)
    jitted_B = jax.jit(loss)(chosen, rejected, where, weights)
    mapped_B = jax.vmap(loss)(chosen, rejected, where, weights)
    np.testing.assert_allclose(jitted_B, value_B, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(mapped_B, value_B, rtol=1e-5, atol=1e-7)
    stacked = jax.tree.map(lambda array: array[None], (chosen, rejected, where, weights))
    assert loss(*stacked).shape == (1, B)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences(name):
    """Along one direction: (f(x + h d) - f(x - h d)) / 2h."""
    chosen, rejected, where = inputs(seed=3)
    weights = token_weights()

    def total(pair):
        return jnp.sum(LOSSES[name](*pair, where=where, weights=weights))

    grads = jax.grad(total)((chosen, rejected))
    slope = sum(float(jnp.sum(grad)) for grad in grads)
    step = 2e-3
    ahead, behind = (
        float(total((chosen + sign * step, rejected + sign * step))) for sign in (1.0, -1.0)
    )
    np.testing.assert_allclose((ahead - behind) / (2 * step), slope, rtol=2e-2, atol=2e-3)
