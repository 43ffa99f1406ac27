"""Preference losses over groups: which function each method is, masks, orders, errors.

Dimension key: P groups, G responses, M session items, L code levels.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_jax.errors import ConfigError
from core_jax.metrics import compute
from rec_jax.align.methods import (
    DEFAULT_BETA,
    Method,
    MethodConfig,
    RatioUnit,
    group_losses,
    needs_reference,
    policy_metrics,
    takes_part,
    uses_advantages,
    uses_negatives,
    uses_token_weights,
)

P, M, L = 5, 2, 3
WEIGHTS = jnp.asarray(np.random.default_rng(7).uniform(size=(P, 2, M, L)), jnp.float32)
"""Of the codes of a pair, for the method that weighs them."""
ADVANTAGE = [method for method in Method if uses_advantages(method)]
PAIRS = [method for method in Method if not (uses_advantages(method) or uses_negatives(method))]


def config(method, **changes):
    return MethodConfig(method=method, beta=None if method in ADVANTAGE else 0.7, **changes)


def group_size(method):
    return 2 if method in PAIRS else 7


def inputs(num_responses, seed=0):
    """Log-probabilities, reference's, advantages, mask: the last item of some is missing."""
    rng = np.random.default_rng(seed)
    shape = (P, num_responses, M, L)
    log_probs, reference = (jnp.asarray(-rng.exponential(size=shape), jnp.float32) for _ in "ab")
    advantages = jnp.asarray(rng.normal(size=shape[:2]), jnp.float32)
    mask = np.ones(shape[:3], bool)
    mask[::2, 0, -1] = mask[1::2, -1, -1] = False
    return log_probs, reference, advantages, jnp.asarray(mask)


def losses(config, inputs):
    *arrays, where = inputs
    weights = WEIGHTS if uses_token_weights(config.method) else None
    return group_losses(config, *arrays, where=where, weights=weights)


def expected(config, inputs):
    """Losses of groups from the equations, in float64."""
    log_probs, reference, advantages, where = (np.asarray(array, np.float64) for array in inputs)
    where_PGML = np.broadcast_to(where[..., None], log_probs.shape)
    policy, ratio = log_probs * where_PGML, (log_probs - reference) * where_PGML
    beta, noise = config.effective_beta if config.method not in ADVANTAGE else 0, config.label_noise
    sums, delta = policy.sum((2, 3)), ratio.sum((2, 3))
    counts = where_PGML.sum((2, 3))
    w, h = delta[:, 0], delta[:, 0] - delta[:, 1]
    keep, swap = np.logaddexp(0, -beta * h), np.logaddexp(0, beta * h)
    nll = -sums[:, 0] / counts[:, 0]
    weighted = ratio[:, :2] * np.asarray(WEIGHTS, np.float64)
    weighed = weighted[:, 0].sum((1, 2)) - weighted[:, 1].sum((1, 2))
    means, policy_means = delta / counts, sums / counts
    item = np.exp(ratio.sum(3)), np.exp(policy.sum(3)), np.exp(policy.sum(3) - ratio.sum(3))
    return {
        Method.DPO: lambda: keep,
        Method.IPO: lambda: (h - 0.5 / beta) ** 2,
        Method.IPO_TOKEN_MEAN: lambda: (means[:, 0] - means[:, 1] - 0.5 / beta) ** 2,
        Method.CONSERVATIVE: lambda: (1 - noise) * keep + noise * swap,
        Method.RDPO: lambda: ((1 - noise) * keep - noise * swap) / (1 - 2 * noise),
        Method.HINGE: lambda: np.maximum(0, 1 - beta * h),
        Method.DPOP: lambda: np.logaddexp(0, -beta * (h - config.penalty * np.maximum(0, -w))),
        Method.RPO: lambda: keep + config.nll_weight * nll,
        Method.CPO: lambda: (
            np.logaddexp(0, -beta * (sums[:, 0] - sums[:, 1])) + config.nll_weight * nll
        ),
        Method.SIMPO: lambda: np.logaddexp(
            0, config.target_margin - beta * (policy_means[:, 0] - policy_means[:, 1])
        ),
        Method.SDPO: lambda: np.log1p(np.exp(beta * (delta[:, 1:] - delta[:, :1])).sum(1)),
        Method.ECPO: lambda: _mean_of_items(_ecpo(config, *item, advantages), where),
        Method.GBPO: lambda: _mean_of_items(_gbpo(*item, advantages), where),
        Method.CONTRASTIVE: lambda: np.logaddexp(0, -beta * weighed),
    }[config.method]()


def _ecpo(config, _, pi, old, advantages):
    rho = pi / np.maximum(pi / (1 + config.epsilon + config.delta), old)
    a = advantages[..., None]
    return -np.minimum(rho * a, np.clip(rho, 1 - config.epsilon, 1 + config.epsilon) * a)


def _gbpo(_, pi, old, advantages):
    a = advantages[..., None]
    return -pi / np.maximum(old, np.where(a >= 0, pi, 1 - pi)) * a


def _mean_of_items(values_PGM, where_PGM):
    return ((values_PGM * where_PGM).sum(2) / where_PGM.sum(2)).mean(1)


@pytest.mark.parametrize("method", Method)
def test_a_method_is_its_equation(method):
    """With numbers that are no defaults, so that each one is read."""
    settings = config(
        method,
        label_noise=0.23,
        target_margin=0.4,
        nll_weight=0.3,
        penalty=3.0,
        epsilon=0.3,
        delta=0.2,
    )
    values = inputs(group_size(method))
    np.testing.assert_allclose(losses(settings, values), expected(settings, values), rtol=3e-5)


@pytest.mark.parametrize("method", Method)
def test_what_is_masked_reaches_neither_value_nor_gradient(method):
    log_probs, reference, advantages, where = inputs(group_size(method))

    def total(log_probs, reference):
        return jnp.sum(losses(config(method), (log_probs, reference, advantages, where)))

    hidden = ~where[..., None]
    plain, grad = jax.value_and_grad(total)(log_probs, reference)
    for garbage in (jnp.nan, jnp.inf, -jnp.inf):
        value, other = jax.value_and_grad(total)(
            jnp.where(hidden, garbage, log_probs), jnp.where(hidden, garbage, reference)
        )
        assert value == plain
        np.testing.assert_array_equal(grad, other)
    np.testing.assert_array_equal(jnp.where(hidden, grad, 0.0), 0.0)
    assert np.all(np.isfinite(grad))


@pytest.mark.parametrize("method", [*ADVANTAGE, Method.SDPO])
def test_a_response_that_does_not_exist_is_as_if_the_group_were_smaller(method):
    log_probs, reference, advantages, where = inputs(group_size(method))
    fewer = losses(
        config(method), (log_probs[:, :-1], reference[:, :-1], advantages[:, :-1], where[:, :-1])
    )
    without = losses(
        config(method),
        (log_probs, reference, advantages.at[:, -1].set(jnp.nan), where.at[:, -1].set(False)),
    )
    np.testing.assert_allclose(without, fewer, rtol=1e-6)


def test_the_order_of_a_group_means_what_the_method_says():
    """Nothing with advantages; for S-DPO nothing among the rejected; for pairs all."""
    order = np.random.default_rng(1).permutation(7)
    values = inputs(7)
    moved = tuple(array[:, order] for array in values)
    for method in ADVANTAGE:
        np.testing.assert_allclose(
            losses(config(method), values), losses(config(method), moved), rtol=1e-5
        )
    order = np.r_[0, 1 + np.random.default_rng(1).permutation(6)]
    moved = tuple(array[:, order] for array in values)
    sdpo = config(Method.SDPO)
    np.testing.assert_allclose(losses(sdpo, values), losses(sdpo, moved), rtol=1e-5)
    moved = tuple(array[:, ::-1] for array in values)
    assert np.all(np.abs(losses(sdpo, values) - losses(sdpo, moved)) > 1e-4)
    pair, swapped = inputs(2), tuple(array[:, ::-1] for array in inputs(2))
    log_probs, reference, _, where = pair
    h = jnp.sum(jnp.where(where[..., None], log_probs - reference, 0.0), axis=(2, 3))
    np.testing.assert_allclose(  # softplus(-z) - softplus(z) = -z
        losses(config(Method.DPO), pair) - losses(config(Method.DPO), swapped),
        -0.7 * (h[:, 0] - h[:, 1]),
        rtol=1e-4,
        atol=1e-5,
    )


def test_sdpo_with_one_rejected_is_dpo():
    values = inputs(2)
    np.testing.assert_allclose(
        losses(config(Method.SDPO), values), losses(config(Method.DPO), values), rtol=1e-5
    )


def test_a_code_is_pushed_as_hard_as_it_weighs():
    """d loss / d log pi = -beta sigma(-beta h) (w of the chosen, -w of the rejected)."""
    *arrays, where = inputs(2)
    settings = config(Method.CONTRASTIVE)

    def total(log_probs):
        return jnp.sum(group_losses(settings, log_probs, *arrays[1:], where=where, weights=WEIGHTS))

    ratio = np.where(where[..., None], arrays[0] - arrays[1], 0.0)
    sums = (ratio * WEIGHTS).sum((2, 3))
    slope = 0.7 / (1 + np.exp(0.7 * (sums[:, 0] - sums[:, 1])))
    sign = np.asarray([-1.0, 1.0])[None, :, None, None]
    expected = slope[:, None, None, None] * sign * WEIGHTS * np.asarray(where)[..., None]
    np.testing.assert_allclose(jax.grad(total)(arrays[0]), expected, rtol=1e-4, atol=1e-7)


def test_uniform_weights_are_dpo_and_missing_ones_are_an_error():
    *arrays, where = inputs(2)
    settings = config(Method.CONTRASTIVE)
    uniform = group_losses(settings, *arrays, where=where, weights=jnp.ones_like(WEIGHTS))
    np.testing.assert_array_equal(uniform, losses(config(Method.DPO), inputs(2)))
    with pytest.raises(ConfigError, match=r"contrastive weighs every code.* no weights.* dpo"):
        group_losses(settings, *arrays, where=where)


@pytest.mark.parametrize("method", ADVANTAGE)
def test_the_unit_of_the_ratio_is_the_item_or_the_whole_session(method):
    """With one item per session they are the same; with two they are not."""
    values = inputs(7)
    item, session = (config(method, ratio_unit=unit) for unit in RatioUnit)
    assert not np.allclose(losses(item, values), losses(session, values), rtol=1e-3)
    log_probs, reference, advantages, where = values
    single = log_probs[:, :, :1], reference[:, :, :1], advantages, jnp.ones_like(where[:, :, :1])
    np.testing.assert_allclose(losses(item, single), losses(session, single), rtol=1e-6)


def test_one_minus_the_probability_of_a_session_says_nothing():
    """Why the unit is the item: at 15 codes of probability 0.2 the session's ratio is 0.2^15.

    With a negative advantage, pi_old = 0 nearly: an item's loss is 0.008 / 0.992 |A|, a session's
    0.2^15 |A|, too small to move anything.
    """
    log_probs = jnp.full((1, 2, 5, 3), jnp.log(0.2))
    values = (
        log_probs,
        jnp.full_like(log_probs, -50.0),
        -jnp.ones((1, 2)),
        jnp.ones((1, 2, 5), bool),
    )
    item, session = (losses(config(Method.GBPO, ratio_unit=unit), values) for unit in RatioUnit)
    np.testing.assert_allclose(item, 0.008 / 0.992, rtol=1e-5)
    np.testing.assert_allclose(session, 0.2**15, rtol=1e-4)


@pytest.mark.parametrize("method", ADVANTAGE)
@pytest.mark.parametrize("unit", RatioUnit)
def test_policy_metrics_say_where_the_slope_is_not_that_of_the_plain_ratio(method, unit):
    """The slope in a log-probability is -ratio A / (samples of the response, responses).

    Where nothing is bounded the ratio is pi / pi_old. Advantages of 0 are left out.
    """
    settings = config(method, ratio_unit=unit)
    log_probs, reference, advantages, where = inputs(7)
    reference = 0.5 * log_probs + 0.5 * reference  # some ratios near 1
    advantages = advantages.at[:, 3].set(0.0)
    arrays = (log_probs, reference, advantages)
    metrics = policy_metrics(settings, *arrays, where=where)

    def total(log_probs):
        return jnp.sum(losses(settings, (log_probs, *arrays[1:], where)))

    item = unit is RatioUnit.ITEM
    slope_PGM = np.asarray(jax.grad(total)(log_probs)[..., 0], np.float64)
    ratio = np.where(where[..., None], log_probs - reference, 0.0).sum(-1)
    plain_PGM = np.exp(
        ratio if item else np.broadcast_to(ratio.sum(-1, keepdims=True), ratio.shape)
    )
    count = np.asarray(where.sum(-1, keepdims=True)) if item else 1
    free_PGM = -plain_PGM * np.asarray(advantages)[..., None] / count / 7
    is_bounded_PGM = ~np.isclose(slope_PGM, free_PGM, rtol=1e-4)
    counts_PGM = np.asarray(where) & (np.asarray(advantages)[..., None] != 0)
    if not item:
        counts_PGM = counts_PGM & (np.arange(M) == 0)
    share = is_bounded_PGM[counts_PGM].mean()
    assert 0 < share < 1
    assert compute(metrics)["bounded_share"] == pytest.approx(share)
    if method is Method.GBPO:  # nothing is clipped away: every slope is -ratio A
        own_PGM = slope_PGM / np.where(counts_PGM, free_PGM, 1.0) * plain_PGM
        expected = own_PGM[counts_PGM].mean()
        assert compute(metrics)["policy_ratio"] == pytest.approx(expected, rel=1e-4)


def test_on_policy_the_ratio_of_ecpo_is_1_and_nothing_is_bounded():
    log_probs, _, advantages, where = inputs(7)
    metrics = policy_metrics(config(Method.ECPO), log_probs, log_probs, advantages, where=where)
    assert {name: float(one) for name, one in compute(metrics).items()} == {
        "policy_ratio": pytest.approx(1.0),
        "bounded_share": 0.0,
    }


def test_which_groups_take_part():
    """A pair needs both sides, S-DPO one rejected, advantage methods anything; padding nothing."""
    exists = jnp.asarray([[1, 1, 1], [1, 0, 1], [1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 1]], bool)
    mask = jnp.repeat(exists[..., None], M, axis=-1)
    has_pair = jnp.asarray([True, True, True, True, True, False])
    for method, expected in {
        Method.SDPO: [1, 1, 0, 0, 0, 0],
        Method.ECPO: [1, 1, 1, 1, 0, 0],
    }.items():
        assert takes_part(method, mask, has_pair).tolist() == [bool(one) for one in expected]
    assert takes_part(Method.DPO, mask[:, :2], has_pair).tolist() == [True, *[False] * 5]


@pytest.mark.parametrize("method", Method)
def test_only_losses_that_need_the_reference_read_it(method):
    log_probs, reference, advantages, where = inputs(group_size(method))
    moved = losses(config(method), (log_probs, 1.5 * reference, advantages, where))
    same = np.array_equal(losses(config(method), (log_probs, reference, advantages, where)), moved)
    assert same is not needs_reference(method)


def test_a_beta_that_is_not_given_is_the_methods_own():
    assert set(DEFAULT_BETA) == set(Method) - set(ADVANTAGE)
    values = inputs(2)
    for method in PAIRS:
        np.testing.assert_array_equal(
            losses(MethodConfig(method=method), values),
            losses(MethodConfig(method=method, beta=DEFAULT_BETA[method]), values),
        )


@pytest.mark.parametrize(("method", "size"), [(Method.DPO, 3), (Method.DPO, 1), (Method.SDPO, 1)])
def test_a_group_of_the_wrong_size_is_an_error(method, size):
    with pytest.raises(ConfigError, match=rf"{method.value} got groups of {size} .*expected 2"):
        losses(config(method), inputs(size))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"beta": 0.0}, r"method\.beta is 0; it must be above 0"),
        ({"label_noise": 0.5}, r"label_noise is 0\.5, expected .*\[0, 0\.5\)"),
        ({"target_margin": -1.0}, r"method\.target_margin is -1; it must be 0 or more"),
        ({"nll_weight": -1.0}, r"method\.nll_weight is -1"),
        ({"penalty": -1.0}, r"method\.penalty is -1"),
        ({"epsilon": 1.0}, r"epsilon is 1 and delta 0\.1"),
        ({"delta": -0.1}, r"epsilon is 0\.2 and delta -0\.1"),
    ],
)
def test_a_number_out_of_range_is_an_error(changes, match):
    with pytest.raises(ConfigError, match=match):
        dataclasses.replace(MethodConfig(), **changes)
