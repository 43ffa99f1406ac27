"""The A/B test: paired on noise and users, and near the truth."""

import numpy as np
import pytest

from core_jax.errors import ConfigError, DataError
from rec_jax.ab_test import ab_test, describe_ab_test
from rec_jax.data.simulator.policies import oracle_sessions, random_sessions
from rec_jax.data.simulator.response import expected_response, respond
from tests.rec.simulator_cases import small_world

QUANTITIES = ("watch_ms", "viewed", "likes", "follows")
WORLD = small_world(num_users=211, num_items=307)
USERS = np.arange(211)
TIMES = WORLD.request_ms[:, 0]
NONE = np.full((211, 1), -1)
RANDOM = random_sessions(WORLD, USERS, TIMES, NONE, session_items=3, seed=0)
OTHER = random_sessions(WORLD, USERS, TIMES, NONE, session_items=3, seed=1)
ORACLE = oracle_sessions(WORLD, USERS, TIMES, NONE, session_items=3)


def compare(a, b, users=USERS, times=TIMES, **settings):
    return ab_test(WORLD, users, times, a, b, **{"seed": 3, "num_replications": 5, **settings})


def test_a_policy_does_not_differ_from_itself():
    """On common noise the difference is 0 for every user, and so are mean and interval."""
    result = compare(RANDOM, RANDOM)
    for name in QUANTITIES:
        difference = getattr(result, name).difference
        assert (difference.mean, difference.low, difference.high) == (0, 0, 0)
        assert getattr(result, name).a == getattr(result, name).b


def test_exchanged_policies_have_the_opposite_difference():
    one, other = compare(RANDOM, OTHER), compare(OTHER, RANDOM)
    for name in QUANTITIES:
        left, right = getattr(one, name), getattr(other, name)
        assert left.a == right.b and left.b == right.a
        np.testing.assert_allclose(
            [left.difference.mean, left.difference.low, left.difference.high],
            [-right.difference.mean, -right.difference.high, -right.difference.low],
            atol=1e-9,
        )


def test_means_are_those_of_the_responses_and_near_the_truth():
    """Within 5 standard errors of the expectation, of the users that were asked."""
    count = 101
    result = compare(RANDOM, ORACLE, num_replications=count)
    for sessions, side in ((RANDOM, "a"), (ORACLE, "b")):
        response = respond(WORLD, USERS, TIMES, sessions, seed=3, num_replications=count)
        drawn = {
            "watch_ms": response.watch_ms,
            "viewed": response.is_viewed,
            "likes": response.is_like,
            "follows": response.is_follow,
        }
        expected = expected_response(WORLD, USERS, TIMES, sessions)
        for name, values in drawn.items():
            mean = getattr(getattr(result, name), side).mean
            per_session = values.sum(axis=2)
            np.testing.assert_allclose(mean, per_session.mean(), rtol=1e-5)
            error = np.sqrt(per_session.var(axis=0).sum() / count) / len(USERS)
            assert abs(mean - getattr(expected, name).mean()) < 5 * error
    assert result.watch_ms.difference.low > 0
    assert result.viewed.difference.low > 0
    assert (result.num_users, result.num_requests, result.num_replications) == (211, 211, count)


def test_the_interval_has_the_width_of_the_users_spread():
    """Half the width of a 95 % interval is 1.96 standard errors of the mean difference, nearly."""
    result = compare(RANDOM, ORACLE)
    first, second = (
        respond(WORLD, USERS, TIMES, sessions, seed=3, num_replications=5)
        .watch_ms.sum(axis=2)
        .mean(axis=0)
        for sessions in (RANDOM, ORACLE)
    )
    error = (second - first).std() / np.sqrt(len(USERS))
    difference = result.watch_ms.difference
    assert abs(difference.half_width / (1.96 * error) - 1) < 0.1
    narrow = compare(RANDOM, ORACLE, confidence=0.5).watch_ms.difference
    assert narrow.half_width < 0.5 * difference.half_width
    coarse = compare(RANDOM, ORACLE, bootstrap_samples=2).watch_ms.difference
    assert coarse.low != difference.low


def test_a_user_asked_twice_is_one_user():
    """Both requests' mean is the user's value: asking the same twice changes nothing."""
    twice = [np.concatenate([array, array]) for array in (RANDOM, ORACLE, USERS, TIMES)]
    once = compare(RANDOM, ORACLE)
    result = compare(*twice)
    assert (result.num_users, result.num_requests) == (211, 422)
    for name in QUANTITIES:
        assert getattr(result, name) == getattr(once, name)


def test_the_table():
    text = describe_ab_test(compare(RANDOM, ORACLE), name_a="random", name_b="oracle")
    lines = text.splitlines()
    assert lines[0].startswith("211 users, 211 requests answered 5 times by both; 95% intervals")
    assert lines[1].split() == ["per", "session", "random", "oracle", "oracle", "-", "random"]
    assert lines[2].startswith("watch time, s")
    assert lines[2].endswith("beyond chance")
    long = describe_ab_test(compare(RANDOM, ORACLE), name_a="runs/a:round_0", name_b="runs/a")
    assert long.splitlines()[1].split()[2:4] == ["runs/a:round_0", "runs/a"]
    same = describe_ab_test(compare(RANDOM, RANDOM)).splitlines()
    assert "+0.0000 [+0.0000, +0.0000]" in same[2]
    assert not same[2].endswith("beyond chance")


@pytest.mark.parametrize(
    "settings",
    [{"num_replications": 0}, {"bootstrap_samples": 0}, {"confidence": 1.0}, {"confidence": 0.0}],
)
def test_settings_out_of_range(settings):
    with pytest.raises(ConfigError, match="the first two must be at least 1"):
        compare(RANDOM, ORACLE, **settings)


def test_items_of_another_world():
    with pytest.raises(DataError, match="item number 307 does not exist"):
        compare(RANDOM, RANDOM * 0 + 307)
