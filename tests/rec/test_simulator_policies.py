"""Random, popular and oracle sessions of the simulated world."""

import itertools

import numpy as np
import pytest

from core_jax.errors import DataError
from rec_jax.data.simulator.policies import (
    oracle_sessions,
    popularity_sessions,
    random_sessions,
)
from rec_jax.data.simulator.response import expected_watch_ms
from tests.rec.simulator_cases import random_requests, small_world

WORLD = small_world()
USERS, TIMES, _ = random_requests(WORLD, 23, 1)
EXCLUDED = np.random.default_rng(1).integers(-1, 211, size=(23, 97))


def check_sessions(sessions, excluded, length):
    """Right shape, no item twice, none excluded."""
    assert sessions.shape == (len(excluded), length)
    for items, forbidden in zip(sessions.tolist(), excluded.tolist(), strict=True):
        assert len(set(items)) == length
        assert not set(items) & set(forbidden)
        assert min(items) >= 0


def all_policies(excluded, length, world=WORLD, users=USERS, times=TIMES):
    scores = np.random.default_rng(2).random(len(world.item_ids))
    asked = (world, users, times, excluded)
    return {
        "random": random_sessions(*asked, session_items=length, seed=0),
        "popularity": popularity_sessions(world, scores, excluded, session_items=length),
        "oracle": oracle_sessions(*asked, session_items=length),
    }


@pytest.mark.parametrize("length", [1, 5])
def test_sessions_are_of_distinct_items_that_are_not_excluded(length):
    for sessions in all_policies(EXCLUDED, length).values():
        check_sessions(sessions, EXCLUDED, length)


def test_the_last_items_left_are_taken():
    """With all but five items excluded, every policy's session is of these five."""
    excluded = np.tile(np.arange(206), (23, 1))
    for sessions in all_policies(excluded, 5).values():
        assert (np.sort(sessions, axis=1) == np.arange(206, 211)).all()


def test_random_sessions_are_uniform():
    """Every free item alike: the chi-square statistic of I cells is near I - 1."""
    count = 5003
    users = np.zeros(count, np.int64)
    times = np.arange(count)
    excluded = np.tile(np.arange(100), (count, 1))
    sessions = random_sessions(WORLD, users, times, excluded, session_items=3, seed=7)
    counts = np.bincount(sessions.ravel(), minlength=211)[100:]
    statistic = ((counts - 3 * count / 111) ** 2 / (3 * count / 111)).sum()
    assert abs(statistic - 110) < 5 * np.sqrt(220)


def test_random_sessions_are_a_function_of_seed_user_and_time():
    asked = (WORLD, USERS, TIMES, EXCLUDED)
    whole = random_sessions(*asked, session_items=3, seed=7)
    part = random_sessions(WORLD, USERS[5:11], TIMES[5:11], EXCLUDED[5:11], session_items=3, seed=7)
    np.testing.assert_array_equal(part, whole[5:11])
    for other in (
        random_sessions(*asked, session_items=3, seed=8),
        random_sessions(WORLD, USERS, TIMES + 1, EXCLUDED, session_items=3, seed=7),
        random_sessions(WORLD, (USERS + 1) % 31, TIMES, EXCLUDED, session_items=3, seed=7),
    ):
        assert (other != whole).any(axis=1).all()


def test_popular_sessions_follow_the_scores():
    """In falling order of score; of equal scores the lower number comes first."""
    scores = np.zeros(211)
    scores[[17, 101, 5, 6]] = 3, 2, 1, 1
    excluded = np.array([[-1, -1], [17, -1], [5, 101]])
    sessions = popularity_sessions(WORLD, scores, excluded, session_items=5)
    assert sessions.tolist() == [[17, 101, 5, 6, 0], [101, 5, 6, 0, 1], [17, 6, 0, 1, 2]]


def test_no_policy_beats_the_oracle():
    """For every single user, in expectation."""
    sessions = all_policies(EXCLUDED, 5)
    values = {
        name: expected_watch_ms(WORLD, USERS, TIMES, items) for name, items in sessions.items()
    }
    for name in ("random", "popularity"):
        assert (values["oracle"] > values[name]).all()


@pytest.mark.parametrize("satiation", [0.7, 5.0])
def test_no_single_change_improves_the_oracle(satiation):
    """Neither another item at one place nor an exchange of two raises the expected watch time."""
    world = small_world(satiation=satiation, num_topics=2)
    sessions = oracle_sessions(world, USERS, TIMES, EXCLUDED, session_items=3)
    value = expected_watch_ms(world, USERS, TIMES, sessions)
    if satiation > 1:
        assert len({tuple(sorted(t)) for t in world.item_topic[sessions].tolist()}) > 1
    for place in range(3):
        others = np.tile(sessions[:, None], (1, 211, 1))
        others[:, :, place] = np.arange(211)
        values = expected_watch_ms(world, USERS, TIMES, others)
        is_allowed = (EXCLUDED[:, :, None] != np.arange(211)).all(axis=1)
        rest = np.delete(sessions, place, axis=1)
        is_allowed &= (rest[:, :, None] != np.arange(211)).all(axis=1)
        best = np.where(is_allowed, values, 0).max(axis=1)
        np.testing.assert_allclose(best, value, rtol=1e-9)
    for first, second in itertools.combinations(range(3), 2):
        others = sessions.copy()
        others[:, [first, second]] = sessions[:, [second, first]]
        assert (expected_watch_ms(world, USERS, TIMES, others) <= value + 1e-5).all()


def test_the_oracle_is_near_the_best_of_all_sessions():
    """Of 7 free items all 210 ordered sessions of 3 are tried: never more than 2 % are lost."""
    excluded = np.tile(np.setdiff1d(np.arange(211), np.arange(50, 57)), (23, 1))
    sessions = oracle_sessions(WORLD, USERS, TIMES, excluded, session_items=3)
    every = np.array(list(itertools.permutations(range(50, 57), 3)))
    values = expected_watch_ms(WORLD, USERS, TIMES, np.tile(every, (23, 1, 1)))
    found = expected_watch_ms(WORLD, USERS, TIMES, sessions)
    assert (found <= values.max(axis=1) * (1 + 1e-9)).all()
    assert (found >= 0.98 * values.max(axis=1)).all()


def test_what_cannot_be_asked():
    asked = (WORLD, USERS, TIMES)
    excluded = np.tile(np.arange(207), (23, 1))
    for policy in (random_sessions, oracle_sessions):
        extra = {"seed": 0} if policy is random_sessions else {}
        with pytest.raises(DataError, match="session of 5 items cannot be made of 4 of the world"):
            policy(*asked, excluded, session_items=5, **extra)
        with pytest.raises(DataError, match="item number 211 does not exist"):
            policy(*asked, np.full((23, 1), 211), session_items=5, **extra)
    with pytest.raises(DataError, match="cannot be made of 4"):
        popularity_sessions(WORLD, np.zeros(211), excluded, session_items=5)
    with pytest.raises(DataError, match="user number 31 does not exist"):
        oracle_sessions(WORLD, USERS * 0 + 31, TIMES, EXCLUDED, session_items=5)
    for scores in (np.zeros(210), np.full(211, np.nan)):
        with pytest.raises(DataError, match="one finite number for each of the world's 211 items"):
            popularity_sessions(WORLD, scores, EXCLUDED, session_items=5)
