"""Token weights: each function of a score, each control, and what masked places may hold.

Dimension key: B responses, T tokens.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_jax.errors import ConfigError
from core_jax.token_weights import WeightConfig, WeightControl, WeightFunction, token_weights

B, T = 7, 13
LENGTHS = np.asarray([13, 11, 7, 5, 2, 1, 0])
CONFIGS = [
    WeightConfig(function=function, control=control, power=1.5, threshold=0.4, top_share=0.3)
    for function in WeightFunction
    for control in WeightControl
]


def config_of(function=WeightFunction.ONE_MINUS, control=WeightControl.NONE, **fields):
    return WeightConfig(function=function, control=control, **fields)


def inputs(seed=0):
    """Scores of responses of all lengths down to none, whose tokens do not start at place 0."""
    rng = np.random.default_rng(seed)
    scores = rng.uniform(size=(B, T)).astype(np.float32)
    places = np.argsort(rng.uniform(size=(B, T)), axis=-1)
    where = places < LENGTHS[:, None]
    return jnp.asarray(scores), jnp.asarray(where)


def expected_weights(function, scores, where):
    """One response at a time, from the sentence that describes the function."""
    weights = np.zeros((B, T))
    for row, (score, mask) in enumerate(zip(np.asarray(scores), np.asarray(where), strict=True)):
        places = np.flatnonzero(mask)
        n = len(places)
        by_score = sorted(places, key=lambda place: (score[place], place))
        for rank, place in enumerate(by_score):
            s = float(score[place])
            weights[row, place] = {
                WeightFunction.ONE_MINUS: 1 - s,
                WeightFunction.POWER: (1 - s) ** 1.5,
                WeightFunction.THRESHOLD: float(s < 0.4),
                WeightFunction.RANK: 1.0 if n == 1 else 1 - rank / (n - 1),
                WeightFunction.TOP_K: float(rank < max(1, int(0.3 * n + 0.5))),
            }[function]
    return weights


@pytest.mark.parametrize("function", WeightFunction)
def test_a_function_is_its_description(function):
    scores, where = inputs()
    config = config_of(function, power=1.5, threshold=0.4, top_share=0.3)
    weights = token_weights(scores, where=where, config=config)
    assert weights.dtype == jnp.float32
    np.testing.assert_allclose(weights, expected_weights(function, scores, where), atol=1e-6)


@pytest.mark.parametrize("function", WeightFunction)
def test_a_lower_score_never_weighs_less(function):
    scores, where = inputs()
    weights = np.asarray(token_weights(scores, where=where, config=config_of(function)))
    for weight, score, mask in zip(weights, np.asarray(scores), np.asarray(where), strict=True):
        falling = weight[mask][np.argsort(score[mask])]
        assert np.all(np.diff(falling) <= 0)
        assert np.all((weight >= 0) & (weight <= 1))


@pytest.mark.parametrize(("share", "count"), [(0.01, 1), (0.25, 3), (0.5, 7), (1.0, 13)])
def test_top_k_counts_a_rounded_share_and_at_least_one(share, count):
    """Of 13 tokens 0.13, 3.25, 6.5 and 13; of one token always that one, of none none."""
    scores, where = inputs()
    config = config_of(WeightFunction.TOP_K, top_share=share)
    weights = token_weights(scores, where=where, config=config)
    counts_B = np.sum(np.asarray(weights), axis=-1)
    assert counts_B[0] == count
    assert counts_B[-2] == 1
    assert counts_B[-1] == 0


def test_among_equal_scores_the_earlier_token_is_the_more_critical():
    scores, where = jnp.full(5, 0.5), jnp.asarray([False, True, True, True, True])
    rank = token_weights(scores, where=where, config=config_of(WeightFunction.RANK))
    np.testing.assert_allclose(rank, [0, 1, 2 / 3, 1 / 3, 0], atol=1e-6)
    top = config_of(WeightFunction.TOP_K, top_share=0.5)
    np.testing.assert_array_equal(token_weights(scores, where=where, config=top), [0, 1, 1, 0, 0])


def test_a_score_that_rounding_put_above_1_weighs_nothing():
    """A power of what is below 0 would be NaN."""
    scores, where = jnp.asarray([1.0000001, 1.0]), jnp.ones(2, bool)
    for config in CONFIGS[: 2 * len(WeightControl) : len(WeightControl)]:
        np.testing.assert_array_equal(token_weights(scores, where=where, config=config), 0.0)


def weigh(config, scores, where, seed=5):
    return token_weights(scores, where=where, config=config, key=jax.random.key(seed))


def plain(config, scores, where):
    """The weights without the control."""
    config = WeightConfig(function=config.function, power=1.5, threshold=0.4, top_share=0.3)
    return token_weights(scores, where=where, config=config)


def with_control(control):
    return [config for config in CONFIGS if config.control is control]


def test_uniform_is_one_for_every_token():
    scores, where = inputs()
    for config in with_control(WeightControl.UNIFORM):
        np.testing.assert_array_equal(token_weights(scores, where=where, config=config), where)


@pytest.mark.parametrize("config", with_control(WeightControl.SHUFFLED))
def test_shuffling_keeps_each_responses_weights(config):
    """The same multiset, bit for bit, on the tokens of the same response."""
    scores, where = inputs()
    shuffled, weights = weigh(config, scores, where), plain(config, scores, where)
    for row in range(B):
        mask = np.asarray(where[row])
        np.testing.assert_array_equal(
            np.sort(np.asarray(shuffled[row])[mask]), np.sort(np.asarray(weights[row])[mask])
        )
        np.testing.assert_array_equal(np.asarray(shuffled[row])[~mask], 0.0)


def test_shuffling_is_a_uniform_permutation_that_forgets_the_score():
    """Each weight is on each of n places a 1/n of the time; responses move on their own.

    Of N draws a share p has the standard error sqrt(p (1 - p) / N); 5 of them are allowed.
    """
    num_draws, num_tokens = 4000, 3
    scores = jnp.broadcast_to(jnp.asarray([0.9, 0.1, 0.5, 0.3, 0.8]), (2, 5))
    where = jnp.asarray([[True, False, True, False, True]] * 2)
    config = config_of(control=WeightControl.SHUFFLED)
    keys = jax.random.split(jax.random.key(0), num_draws)
    draws_NBT = np.asarray(
        jax.vmap(lambda key: token_weights(scores, where=where, config=config, key=key))(keys)
    )[..., [0, 2, 4]]
    share = 1 / num_tokens
    allowed = 5 * np.sqrt(share * (1 - share) / num_draws)
    for weight in 1 - np.asarray([0.9, 0.5, 0.8], np.float32):
        shares_BT = np.mean(draws_NBT == weight, axis=0)
        np.testing.assert_allclose(shares_BT, share, atol=allowed)
    same = np.mean(np.all(draws_NBT[:, 0] == draws_NBT[:, 1], axis=-1))
    chance = 1 / 6
    assert abs(same - chance) < 5 * np.sqrt(chance * (1 - chance) / num_draws)


@pytest.mark.parametrize("control", [WeightControl.CONSTANT, WeightControl.RANDOM])
@pytest.mark.parametrize("function", WeightFunction)
def test_constant_and_random_keep_each_responses_mean(function, control):
    scores, where = inputs()
    [config] = [c for c in CONFIGS if c.function is function and c.control is control]
    controlled = np.asarray(weigh(config, scores, where), np.float64)
    sums_B = np.asarray(plain(config, scores, where), np.float64).sum(-1)
    np.testing.assert_allclose(controlled.sum(-1), sums_B, rtol=1e-6)
    if control is WeightControl.CONSTANT:
        means_B1 = (sums_B / np.maximum(LENGTHS, 1))[:, None]
        np.testing.assert_allclose(controlled, np.where(where, means_B1, 0), rtol=1e-6)


def test_random_weights_are_uniform_draws_that_know_no_score():
    """Over the largest of n draws they are spread over (0, 1]; none is clipped at 1."""
    length = 4001
    scores, where = jnp.linspace(0.0, 0.2, length), jnp.ones(length, bool)
    weights = np.asarray(weigh(config_of(control=WeightControl.RANDOM), scores, where))
    draws = weights / weights.max()
    np.testing.assert_allclose(np.quantile(draws, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.04)
    assert abs(np.corrcoef(draws, scores)[0, 1]) < 5 / np.sqrt(length)
    assert weights.max() > 1.5  # mean 0.9 of draws of mean 0.5


@pytest.mark.parametrize("control", [WeightControl.SHUFFLED, WeightControl.RANDOM])
def test_a_key_gives_one_draw_and_another_key_another(control):
    scores, where = inputs()
    config = config_of(control=control)
    first, again, other = (weigh(config, scores, where, seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert np.any(np.asarray(first) != np.asarray(other))


@pytest.mark.parametrize("control", [WeightControl.SHUFFLED, WeightControl.RANDOM])
def test_with_a_key_of_its_own_a_response_does_not_depend_on_its_padding(control):
    scores, _ = inputs()
    config, key = config_of(control=control), jax.random.key(2)
    where = jnp.arange(T) < 11
    whole = token_weights(scores[0], where=where, config=config, key=key)
    cut = token_weights(scores[0, :11], where=where[:11], config=config, key=key)
    np.testing.assert_allclose(whole[:11], cut, rtol=1e-6)


@pytest.mark.parametrize("control", [WeightControl.SHUFFLED, WeightControl.RANDOM])
def test_draws_without_a_key_are_an_error(control):
    scores, where = inputs()
    with pytest.raises(ConfigError, match=rf"control '{control.value}' .* got no key; hand a key"):
        token_weights(scores, where=where, config=config_of(control=control))


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, -3.0])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.function.value}-{c.control.value}")
def test_what_is_masked_is_not_read(config, garbage):
    """And weighs 0; a response without tokens has finite weights: none."""
    scores, where = inputs()
    clean = weigh(config, scores, where)
    dirty = weigh(config, jnp.where(where, scores, garbage), where)
    np.testing.assert_array_equal(dirty, clean)
    np.testing.assert_array_equal(np.asarray(clean)[~np.asarray(where)], 0.0)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.function.value}-{c.control.value}")
def test_weights_run_under_jit_and_on_any_leading_dimensions(config):
    scores, where = inputs()
    weights = weigh(config, scores, where)
    jitted = jax.jit(lambda scores, where: weigh(config, scores, where))(scores, where)
    np.testing.assert_allclose(jitted, weights, rtol=1e-6, atol=1e-7)
    stacked = weigh(config, scores[None], where[None])
    np.testing.assert_allclose(stacked[0], weights, rtol=1e-6, atol=1e-7)
    low = weigh(config, scores.astype(jnp.bfloat16), where)
    assert low.dtype == jnp.float32
    assert weigh(config, scores[0], where[0]).shape == (T,)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.function.value}-{c.control.value}")
def test_no_gradient_reaches_the_scores(config):
    scores, where = inputs()
    grad = jax.grad(lambda scores: jnp.sum(weigh(config, scores, where) ** 2))(scores)
    np.testing.assert_array_equal(grad, 0.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"power": 0.0}, "power of the token weights is 0, expected a positive .* uniform"),
        ({"power": float("inf")}, "power of the token weights is inf, expected"),
        ({"threshold": 0.0}, r"threshold of the token weights is 0, expected a score in \(0, 1\]"),
        ({"threshold": 1.5}, r"threshold of the token weights is 1.5, expected"),
        ({"top_share": 0.0}, r"top_share of the token weights is 0, expected a share in \(0, 1\]"),
        ({"top_share": float("nan")}, "top_share of the token weights is nan, expected"),
    ],
)
def test_a_field_out_of_range_is_an_error(fields, message):
    with pytest.raises(ConfigError, match=message):
        WeightConfig(**fields)
