"""Responses in the simulated world: sampled, in expectation, and on common random numbers."""

import dataclasses

import numpy as np
import pytest

from core_jax.errors import DataError
from rec_jax.data.simulator.response import (
    expected_response,
    expected_watch_ms,
    mean_ratio_and_staying,
    respond,
    response_logits,
)
from rec_jax.data.simulator.world import taste_at
from tests.rec.simulator_cases import random_requests, small_world

WORLD = small_world()


def sigmoid(logit):
    return 1 / (1 + np.exp(-logit))


def by_hand(world, user, time_ms, items):
    """Mean and leave probability by item without watch noise, straight from the docstring."""
    config = world.config
    taste = taste_at(world, np.array([user]), np.array([time_ms]))[0]
    watched, reached, seen = 0.0, 1.0, []
    for item in items:
        if item < 0:
            continue
        logit = config.watch_bias + config.affinity_weight * float(taste @ world.item_vector[item])
        logit += config.quality_weight * world.item_quality[item]
        logit -= config.satiation * seen.count(world.item_topic[item])
        duration = world.item_duration_ms[item]
        logit -= config.duration_weight * np.log(duration / (1000 * config.median_seconds))
        watched += reached * duration * sigmoid(logit)
        leave = config.leave_bias - config.leave_weight * sigmoid(logit)
        reached *= 1 - sigmoid(leave - world.user_patience[user])
        seen.append(world.item_topic[item])
    return watched


def test_without_noise_the_expectation_is_the_formula():
    world = small_world(watch_noise=0.0)
    users, times, sessions = random_requests(world, 17, 5)
    sessions[:, 3] = -1
    sessions[:5, 4] = sessions[:5, 0]
    expected = [
        by_hand(world, user, time, items)
        for user, time, items in zip(users, times, sessions.tolist(), strict=True)
    ]
    np.testing.assert_allclose(expected_watch_ms(world, users, times, sessions), expected)


def test_the_quadrature_is_the_integral():
    """Against the trapezoid rule with 4,001 points, which converges faster than any power."""
    logits = np.linspace(-6, 6, 13)
    users = np.arange(13)
    e = np.linspace(-10, 10, 4001)
    density = np.exp(-(e**2) / 2)
    density /= density.sum()
    ratio = sigmoid(logits[:, None] + WORLD.config.watch_noise * e)
    leave = WORLD.config.leave_bias - WORLD.user_patience[users][:, None]
    stay = 1 - sigmoid(leave - WORLD.config.leave_weight * ratio)
    mean_ratio, staying = mean_ratio_and_staying(WORLD, users, logits)
    np.testing.assert_allclose(mean_ratio, (density * ratio).sum(axis=1), rtol=1e-5)
    np.testing.assert_allclose(staying, (density * stay).sum(axis=1), rtol=1e-5)


def test_the_expectation_is_the_mean_of_many_replications():
    """Every quantity of every session within 5 standard errors, and without bias over all."""
    users, times, sessions = random_requests(WORLD, 29, 5)
    sessions[:7, 2] = -1
    sessions[7:11, 3:] = -1
    sessions[11:13] = sessions[11:13, :1]
    count = 4001
    response = respond(WORLD, users, times, sessions, seed=3, num_replications=count)
    expected = expected_response(WORLD, users, times, sessions)
    drawn = {
        "watch_ms": response.watch_ms.sum(axis=2),
        "viewed": response.is_viewed.sum(axis=2),
        "likes": response.is_like.sum(axis=2),
        "follows": response.is_follow.sum(axis=2),
    }
    for name, values in drawn.items():
        error = (values.mean(axis=0) - getattr(expected, name)) / (
            values.std(axis=0) / np.sqrt(count) + 1e-9
        )
        assert np.abs(error).max() < 5, name
        assert abs(error.sum()) < 5 * np.sqrt(len(users)), name
    is_full = sessions[:, -1] >= 0
    finished = response.is_viewed[:, is_full, -1].mean(axis=0)
    error = np.sqrt(finished * (1 - finished) / count)
    assert (np.abs(finished - expected.finished[is_full]) < 5 * error).all()


def test_a_session_does_not_feel_what_else_is_asked():
    users, times, sessions = random_requests(WORLD, 41, 5)
    whole = respond(WORLD, users, times, sessions, seed=2, num_replications=3)
    order = np.random.default_rng(1).permutation(41)[:23]
    part = respond(WORLD, users[order], times[order], sessions[order], seed=2, num_replications=2)
    for field in dataclasses.fields(whole):
        np.testing.assert_array_equal(
            getattr(part, field.name), getattr(whole, field.name)[:2, order], err_msg=field.name
        )


def test_noise_does_not_depend_on_the_items():
    """logit(w) - m is the same standard normal number whatever is shown; nobody leaves here."""
    world = small_world(leave_bias=-1000.0, watch_noise=0.7, like_bias=0.0)
    noises = []
    for seed in (0, 1):
        users, times, sessions = random_requests(world, 37, 5, seed=4)
        sessions = random_requests(world, 37, 5, seed=seed)[2]
        response = respond(world, users, times, sessions, seed=9, num_replications=101)
        logits = response_logits(world, users, times, sessions)
        ratio = response.watch_ms / logits.duration_ms
        noises.append((np.log(ratio / (1 - ratio)) - logits.watch) / 0.7)
    # Users and times repeat, so that some rows share their noise: count the distinct ones.
    np.testing.assert_allclose(noises[0], noises[1], atol=1e-9)
    distinct = np.unique(noises[0].round(9))
    tolerance = 5 / np.sqrt(len(distinct))
    assert len(distinct) > 10_000
    assert abs(distinct.mean()) < tolerance
    assert abs(distinct.var() - 1) < tolerance * np.sqrt(2)
    assert abs((distinct**3).mean()) < tolerance * np.sqrt(15)


@pytest.mark.parametrize("change", [{"seed": 10}, {"time": 1}, {"user": 1}])
def test_noise_depends_on_seed_user_and_time(change):
    time = WORLD.request_ms[:1, 2]
    arguments = (np.array([3]), time, np.array([[5, 6, 7]]))
    first = respond(WORLD, *arguments, seed=9)
    users = np.array([3 + change.get("user", 0)])
    other = respond(WORLD, users, time + change.get("time", 0), arguments[2],
                    seed=change.get("seed", 9))  # fmt: skip
    assert first.watch_ms[0, 0, 0] != other.watch_ms[0, 0, 0]


def test_what_follows_leaving_is_not_viewed():
    users, times, sessions = random_requests(WORLD, 211, 5)
    sessions[::3, 2] = -1
    response = respond(WORLD, users, times, sessions, seed=0, num_replications=3)
    is_item = np.broadcast_to(sessions >= 0, response.is_viewed.shape)
    viewed = response.is_viewed
    assert not viewed[~is_item].any()
    assert viewed[:, :, 0].all()
    # Over the items alone views are a prefix: none after one that was missed.
    missed_before = np.cumsum(is_item & ~viewed, axis=2) > 0
    assert not (missed_before & viewed).any()
    assert (response.watch_ms[viewed] > 0).all()
    duration = np.broadcast_to(WORLD.item_duration_ms[sessions], viewed.shape)
    assert (response.watch_ms <= duration).all()
    for name in ("watch_ms", "is_like", "is_follow"):
        assert not getattr(response, name)[~viewed].any()
    assert 0 < viewed[:, :, 4].mean() < 1


def test_no_item_is_passed_over():
    """-1 in the middle gives what -1 at the end gives; a session of none gives nothing."""
    users, times, sessions = random_requests(WORLD, 19, 3)
    nothing = np.full((19, 1), -1)
    middle = np.concatenate([sessions[:, :1], nothing, sessions[:, 1:]], axis=1)
    end = np.concatenate([sessions, nothing], axis=1)
    np.testing.assert_allclose(
        expected_watch_ms(WORLD, users, times, middle),
        expected_watch_ms(WORLD, users, times, end),
        rtol=1e-12,
    )
    empty = expected_response(WORLD, users, times, np.full((19, 3), -1))
    assert not empty.watch_ms.any() and not empty.viewed.any()
    assert not respond(WORLD, users, times, np.full((19, 3), -1), seed=0).is_viewed.any()


def test_further_dimensions_are_sessions_of_the_same_request():
    users, times, _ = random_requests(WORLD, 11, 3)
    sessions = np.random.default_rng(0).integers(211, size=(11, 2, 13, 3))
    together = expected_watch_ms(WORLD, users, times, sessions)
    assert together.shape == (11, 2, 13)
    alone = expected_watch_ms(WORLD, users, times, sessions[:, 1, 7])
    np.testing.assert_allclose(together[:, 1, 7], alone, rtol=1e-12)


def test_the_session_counts_as_a_whole():
    """Satiation and order matter: a session is worth less than its items one by one."""
    users, times, _ = random_requests(WORLD, 53, 1)
    topic = np.flatnonzero(WORLD.item_topic == 2)[:3]
    session = np.tile(topic, (53, 1))
    alone = expected_watch_ms(WORLD, users, times, session[:, :, None]).sum(axis=1)
    assert (expected_watch_ms(WORLD, users, times, session) < alone).all()
    tired = small_world(satiation=3.0)
    assert (
        expected_watch_ms(tired, users, times, session)
        < expected_watch_ms(WORLD, users, times, session)
    ).all()
    reverse = expected_watch_ms(WORLD, users, times, session[:, ::-1].copy())
    assert not np.allclose(reverse, expected_watch_ms(WORLD, users, times, session))


def test_bad_items_and_impatience_drive_users_away():
    users, times, sessions = random_requests(WORLD, 43, 3)
    before = expected_response(WORLD, users, times, sessions)
    impatient = dataclasses.replace(WORLD, user_patience=WORLD.user_patience - 1)
    worse = dataclasses.replace(WORLD, item_quality=WORLD.item_quality - 1)
    for other in (impatient, worse):
        after = expected_response(other, users, times, sessions)
        assert (after.finished < before.finished).all()
        assert (after.watch_ms < before.watch_ms).all()
    # Likes and follows follow quality and the creator through their own logits too.
    famous = dataclasses.replace(WORLD, creator_quality=WORLD.creator_quality + 1)
    after = expected_response(famous, users, times, sessions)
    assert (after.follows > before.follows).all()
    np.testing.assert_array_equal(after.likes, before.likes)


def test_what_cannot_be_asked():
    users, times, sessions = random_requests(WORLD, 2, 3)
    for bad in (211, -2):
        sessions[1, 1] = bad
        with pytest.raises(DataError, match=f"item number {bad} does not exist.* 0 to 210"):
            respond(WORLD, users, times, sessions, seed=0)
        with pytest.raises(DataError, match=f"item number {bad} does not exist"):
            expected_watch_ms(WORLD, users, times, sessions)
    sessions[1, 1] = 0
    with pytest.raises(DataError, match="user number 31 does not exist"):
        respond(WORLD, users * 0 + 31, times, sessions, seed=0)
    with pytest.raises(DataError, match="num_replications is 0; ask for at least 1"):
        respond(WORLD, users, times, sessions, seed=0, num_replications=0)
