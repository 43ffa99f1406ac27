"""The preference step's objective: contexts, masks, gradients, metrics.

Dimension key: P groups, Z samples per group, B samples, G responses, M session items, L levels.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_jax.errors import ConfigError
from core_jax.metrics import compute
from rec_jax.align.batch import bundled, code_log_probs, group_log_probs, response_log_probs
from rec_jax.align.methods import Method, MethodConfig, group_losses
from rec_jax.align.objective import align_loss
from rec_jax.model import onerec
from rec_jax.objectives import next_token_loss
from tests.rec.align_cases import CONFIG, LOG_PROBS, batch, codes, params, sessions

DPO = MethodConfig()
BETA = DPO.effective_beta
SAMPLES = [pytest.param(1, marks=pytest.mark.long), 2]
"""Samples of a group: one is the decoder pass of a plain step."""


def flat(preferences):
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), preferences.sessions)


@functools.cache
def compiled(method=DPO, weight=1.0, config=CONFIG):
    """(parameters, batch, key) -> loss, metrics, gradient."""

    def mean_loss(params, batch, key):
        loss, metrics = align_loss(config, method, weight, None, params, batch, key=key)
        return loss.total / loss.count, metrics

    step = jax.jit(jax.value_and_grad(mean_loss, has_aux=True))

    def run(params, batch, key=None):
        (loss, metrics), grads = step(params, batch, key)
        return float(loss), compute(metrics), grads

    return run


@jax.jit
def next_token(params, batch):
    def mean_loss(params):
        loss, _ = next_token_loss(CONFIG, None, params, batch)
        return loss.total / loss.count

    return jax.value_and_grad(mean_loss)(params)


def assert_close(left, right, tolerance=1e-5):
    """Trees agree relative to the largest entry of each leaf."""
    pairs = zip(jax.tree_util.tree_leaves_with_path(left), jax.tree.leaves(right), strict=True)
    for (path, one), other in pairs:
        scale = np.abs(other).max() + 1e-6
        np.testing.assert_allclose(
            one / scale, other / scale, atol=tolerance, err_msg=jax.tree_util.keystr(path)
        )


@pytest.mark.parametrize("samples", SAMPLES)
def test_without_weight_it_is_the_next_token_loss(samples):
    """In value and gradient, padding included, with and without a shared decoder pass."""
    preferences = batch(3, samples, ragged=True)
    loss, metrics, grads = compiled(weight=0.0)(params(), preferences)
    expected, expected_grads = next_token(params(), flat(preferences))
    assert loss == pytest.approx(float(expected), rel=1e-6)
    assert metrics["ntp_loss"] == pytest.approx(float(expected), rel=1e-6)
    assert_close(grads, expected_grads)


@pytest.mark.parametrize("samples", SAMPLES)
def test_where_policy_and_reference_agree_dpo_is_log_2_with_the_gradient_of_the_formula(samples):
    """L = NTP + lambda P log 2 / n; a pair adds -(beta/2) (grad log pi_w - grad log pi_l) / n.

    n is the number of target codes: with full sessions, P Z M L.
    """
    codes_per_group = samples * CONFIG.session_items * CONFIG.num_levels
    weight = 7.0
    preferences = batch(3, samples, reference=params())
    loss, metrics, grads = compiled(weight=weight)(params(), preferences)
    ntp, ntp_grads = next_token(params(), flat(preferences))
    assert metrics["preference_loss"] == pytest.approx(np.log(2), rel=1e-5)
    assert loss == pytest.approx(float(ntp) + weight * np.log(2) / codes_per_group, rel=1e-5)
    for name in ("margin", "chosen_log_ratio", "rejected_log_ratio", "kl_per_code"):
        assert metrics[name] == pytest.approx(0.0, abs=1e-5)

    @jax.jit
    @jax.grad
    def grad_of_difference(params):
        context = jax.tree.map(lambda leaf: leaf[:, 0], preferences.sessions)
        log_probs = response_log_probs(
            CONFIG,
            params,
            context.history_codes,
            context.history_mask,
            preferences.response_codes,
            preferences.response_mask,
        )
        sums_PG = jnp.sum(log_probs, axis=(2, 3))
        return jnp.mean(sums_PG[:, 0] - sums_PG[:, 1])

    expected = jax.tree.map(
        lambda one, other: one - weight / codes_per_group * BETA / 2 * other,
        ntp_grads,
        grad_of_difference(params()),
    )
    assert_close(grads, expected)


@pytest.mark.parametrize("samples", SAMPLES)
def test_weights_of_the_codes_reach_the_gradient(samples):
    """At policy = reference a pair adds -(beta/2) sum_t (a_t grad log w_t - b_t grad log l_t) / n.

    Linear in the weights, whatever they are: the chosen side has some here too.
    """
    codes_per_group = samples * CONFIG.session_items * CONFIG.num_levels
    weight, method = 7.0, MethodConfig(method=Method.CONTRASTIVE)
    preferences = batch(3, samples, reference=params(), ragged=True)
    loss, metrics, grads = compiled(method, weight)(params(), preferences)
    ntp, ntp_grads = next_token(params(), flat(preferences))
    num_codes = float(flat(preferences).target_mask.sum()) * CONFIG.num_levels
    assert metrics["preference_loss"] == pytest.approx(np.log(2), rel=1e-5)
    mask_PGML = jnp.broadcast_to(
        preferences.response_mask[..., None], preferences.response_codes.shape
    )
    rejected = np.asarray(preferences.weights)[:, 1][np.asarray(mask_PGML)[:, 1]]
    assert metrics["rejected_weight"] == pytest.approx(rejected.mean(), rel=1e-5)

    @jax.jit
    @jax.grad
    def grad_of_weighted(params):
        context = jax.tree.map(lambda leaf: leaf[:, 0], preferences.sessions)
        log_probs = response_log_probs(
            CONFIG,
            params,
            context.history_codes,
            context.history_mask,
            preferences.response_codes,
            preferences.response_mask,
        )
        sums_PG = jnp.sum(jnp.where(mask_PGML, preferences.weights * log_probs, 0.0), axis=(2, 3))
        return jnp.sum(sums_PG[:, 0] - sums_PG[:, 1])

    expected = jax.tree.map(
        lambda one, other: one - weight / num_codes * method.effective_beta / 2 * other,
        ntp_grads,
        grad_of_weighted(params()),
    )
    assert_close(grads, expected)
    assert loss == pytest.approx(float(ntp) + 3 * weight * np.log(2) / num_codes, rel=1e-5)
    assert num_codes <= 3 * codes_per_group


def test_a_code_of_weight_0_is_not_pushed():
    """With all rejected weights 0 the rejected session may be any other: same loss and gradient."""
    method = MethodConfig(method=Method.CONTRASTIVE)
    preferences = batch(3, 2)
    preferences = dataclasses.replace(preferences, weights=preferences.weights.at[:, 1].set(0.0))
    other = dataclasses.replace(
        preferences,
        reference_log_probs=preferences.reference_log_probs.at[:, 1].add(-1.5),
    )
    _, metrics, grads = compiled(method)(params(), preferences)
    _, others, other_grads = compiled(method)(params(), other)
    assert metrics["preference_loss"] == others["preference_loss"]
    assert metrics["rejected_weight"] == 0.0
    assert_close(grads, other_grads, tolerance=1e-6)
    plain, plain_others = (compiled()(params(), one)[1] for one in (preferences, other))
    assert abs(plain["preference_loss"] - plain_others["preference_loss"]) > 1e-3


def test_a_response_has_the_log_probability_of_a_logged_session():
    """Of the same codes after the same history: code by code what `apply` says of targets."""
    rng = np.random.default_rng(1)
    logged = sessions(rng, 3, ragged=True)
    responses = codes(rng, 3, 5, CONFIG.session_items)
    found = LOG_PROBS(
        CONFIG,
        params(),
        logged.history_codes,
        logged.history_mask,
        responses,
        jnp.ones(responses.shape[:-1], bool),
    )
    apply = jax.jit(functools.partial(onerec.apply, CONFIG))
    for index in range(5):
        as_target = dataclasses.replace(
            logged,
            target_codes=responses[:, index],
            target_mask=jnp.ones_like(logged.target_mask),
        )
        logits = apply(params(), as_target).logits
        expected = code_log_probs(logits, responses[:, index])
        np.testing.assert_allclose(found[:, index], expected, rtol=1e-5, atol=1e-5)


def test_log_probs_of_a_data_set_do_not_depend_on_the_batches():
    """Seven groups in batches of three, the last one padded; masked codes are 0."""
    rng = np.random.default_rng(2)
    catalogue = np.asarray(codes(rng, 13))
    items = rng.integers(0, 13, size=(7, CONFIG.history_items))
    items[::2, 0] = -1
    responses = np.asarray(codes(rng, 7, 2, CONFIG.session_items))
    mask = rng.random(responses.shape[:-1]) < 0.8
    arguments = (CONFIG, params(), catalogue, items, responses, mask)
    found = group_log_probs(*arguments, batch_size=3)
    history = jnp.asarray(catalogue[np.maximum(items, 0)]), jnp.asarray(items >= 0)
    whole = LOG_PROBS(CONFIG, params(), *history, jnp.asarray(responses), jnp.asarray(mask))
    np.testing.assert_allclose(found, whole, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found[~mask], 0.0)
    assert np.all(found[mask] < 0)


def test_the_first_sample_of_a_bundle_is_the_context_and_no_other():
    """Row p Z of the flat batch. Others may change places: the preference loss stays."""
    rng = np.random.default_rng(5)
    logged = sessions(rng, 6)
    preferences = dataclasses.replace(batch(3, 2), sessions=bundled(logged, 3))
    np.testing.assert_array_equal(
        preferences.sessions.history_codes[:, 0], logged.history_codes[::2]
    )
    run, order = compiled(), np.array([0, 5, 2, 1, 4, 3])
    _, metrics, _ = run(params(), preferences)
    moved = jax.tree.map(lambda leaf: leaf[order], logged)
    _, others, _ = run(params(), dataclasses.replace(preferences, sessions=bundled(moved, 3)))
    for name in ("preference_loss", "margin", "ntp_loss"):
        assert others[name] == pytest.approx(metrics[name], rel=1e-5)
    swapped = jax.tree.map(lambda leaf: leaf[np.array([1, 0, 3, 2, 5, 4])], logged)
    _, others, _ = run(params(), dataclasses.replace(preferences, sessions=bundled(swapped, 3)))
    assert others["ntp_loss"] == pytest.approx(metrics["ntp_loss"], rel=1e-5)
    assert abs(others["preference_loss"] - metrics["preference_loss"]) > 1e-4


def test_an_empty_place_counts_for_nothing_whatever_it_holds():
    """Its reference may be NaN. Two groups of 3 x 2 samples are left: L = NTP + 2 L_pref / n."""
    preferences = batch(3, 2, empty=(1,))
    loss, metrics, grads = compiled()(params(), preferences)
    garbage = dataclasses.replace(
        preferences,
        reference_log_probs=preferences.reference_log_probs.at[1].set(jnp.nan),
        advantages=preferences.advantages.at[1].set(jnp.nan),
        response_codes=preferences.response_codes.at[1].set(0),
    )
    other_loss, other_metrics, other_grads = compiled()(params(), garbage)
    assert other_loss == loss
    assert_close(other_grads, grads, tolerance=1e-6)
    assert metrics["group_share"] == pytest.approx(2 / 6)
    np.testing.assert_equal(other_metrics, metrics)
    num_codes = 3 * 2 * CONFIG.session_items * CONFIG.num_levels
    expected = metrics["ntp_loss"] + 2 * metrics["preference_loss"] / num_codes
    assert loss == pytest.approx(expected, rel=1e-5)


def test_a_batch_without_any_group_is_a_next_token_step():
    preferences = batch(3, 2, empty=(0, 1, 2))
    loss, metrics, grads = compiled()(params(), preferences)
    expected, expected_grads = next_token(params(), flat(preferences))
    assert loss == pytest.approx(float(expected), rel=1e-6)
    assert_close(grads, expected_grads)
    assert np.isnan(metrics["preference_loss"])
    assert metrics["group_share"] == 0.0


@pytest.mark.parametrize("samples", SAMPLES)
def test_metrics_are_their_definitions(samples):
    """From log-probabilities that are computed on their own, for a group with advantages."""
    preferences = batch(3, samples, 5, ragged=True, empty=(2,))
    preferences = dataclasses.replace(
        preferences,
        response_mask=preferences.response_mask.at[1, 4].set(False),
        advantages=preferences.advantages.at[1].set(0.0),
    )
    method = MethodConfig(method=Method.ECPO)
    _, metrics, _ = compiled(method)(params(), preferences)
    context = jax.tree.map(lambda leaf: leaf[:, 0], preferences.sessions)
    log_probs = LOG_PROBS(
        CONFIG,
        params(),
        context.history_codes,
        context.history_mask,
        preferences.response_codes,
        preferences.response_mask,
    )
    mask = np.array(preferences.response_mask) & np.array(preferences.has_pair)[:, None, None]
    losses = group_losses(
        method,
        log_probs,
        preferences.reference_log_probs,
        preferences.advantages,
        where=jnp.asarray(mask),
    )
    assert metrics["preference_loss"] == pytest.approx(float(losses[:2].mean()), rel=1e-4)
    ratio = np.where(mask[..., None], log_probs - preferences.reference_log_probs, 0.0)
    sums, advantages = ratio.sum((2, 3))[0], np.array(preferences.advantages)[0]
    chosen, rejected = sums[advantages > 0], sums[advantages < 0]
    assert metrics["chosen_log_ratio"] == pytest.approx(chosen.mean(), rel=1e-4)
    assert metrics["rejected_log_ratio"] == pytest.approx(rejected.mean(), rel=1e-4)
    assert metrics["margin"] == pytest.approx(chosen.mean() - rejected.mean(), rel=1e-4)
    assert metrics["margin_accuracy"] == float(chosen.mean() > rejected.mean())
    kl = (np.expm1(ratio) - ratio).sum() / (mask.sum() * CONFIG.num_levels)
    assert metrics["kl_per_code"] == pytest.approx(kl, rel=1e-4)
    assert metrics["group_share"] == pytest.approx(2 / (3 * samples))
    assert metrics["response_share"] == pytest.approx(9 / 10)
    assert metrics["flat_groups"] == pytest.approx(1 / 2)
    assert np.sum(metrics["expert_load"]) == pytest.approx(1.0)


def test_the_margin_of_a_pair_changes_sign_with_its_order():
    preferences = batch(3, 2)
    swapped = jax.tree.map(
        lambda leaf: leaf[:, ::-1],
        {
            name: getattr(preferences, name)
            for name in ("response_codes", "response_mask", "reference_log_probs")
        },
    )
    _, metrics, _ = compiled()(params(), preferences)
    _, others, _ = compiled()(params(), dataclasses.replace(preferences, **swapped))
    assert others["margin"] == pytest.approx(-metrics["margin"], rel=1e-4)
    assert others["chosen_log_ratio"] == pytest.approx(metrics["rejected_log_ratio"], rel=1e-4)
    assert others["margin_accuracy"] == pytest.approx(1 - metrics["margin_accuracy"])


@pytest.mark.long
def test_dropout_follows_the_key():
    """A key with a rate of 0 changes nothing; with a rate, keys differ and None has no noise."""
    preferences, key = batch(3, 2), jax.random.key(0)
    plain, _, _ = compiled()(params(), preferences)
    assert compiled()(params(), preferences, key)[0] == pytest.approx(plain, rel=1e-6)
    noisy = compiled(config=dataclasses.replace(CONFIG, dropout=0.3))
    assert noisy(params(), preferences)[0] == pytest.approx(plain, rel=1e-6)
    first = noisy(params(), preferences, key)[1]
    other = noisy(params(), preferences, jax.random.key(1))[1]
    for name in ("ntp_loss", "preference_loss"):
        assert abs(first[name] - other[name]) > 1e-5


@pytest.mark.parametrize("num_groups", [0, 4])
def test_groups_that_do_not_divide_the_batch_are_an_error(num_groups):
    with pytest.raises(ConfigError, match=rf"a batch of 6 samples .* {num_groups} groups .*of 6"):
        bundled(sessions(np.random.default_rng(0), 6), num_groups)


def test_groups_of_the_wrong_size_are_an_error():
    with pytest.raises(ConfigError, match=r"dpo got groups of 5 responses, expected 2"):
        align_loss(CONFIG, DPO, 1.0, None, params(), batch(3, 2, 5))
