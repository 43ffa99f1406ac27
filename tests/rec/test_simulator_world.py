"""The simulated world: what is drawn follows the formulas, from the config alone."""

import dataclasses
import itertools

import numpy as np
import pytest

from core_jax.config import from_dict, to_dict
from core_jax.errors import ConfigError, DataError
from rec_jax.data.simulator.config import MILLISECONDS_PER_DAY, SimulatorConfig
from rec_jax.data.simulator.noise import Stream, keyed_uniforms
from rec_jax.data.simulator.world import (
    FILE,
    NEVER_MS,
    START_MS,
    item_numbers,
    load_world,
    save_world,
    sessions_in_world,
    taste_at,
    user_numbers,
    user_state,
)
from tests.rec.simulator_cases import SMALL, array_fields, small_world


def test_a_config_gives_one_world():
    first, second = array_fields(small_world()), array_fields(small_world())
    for name, array in first.items():
        assert array.dtype == second[name].dtype
        np.testing.assert_array_equal(array, second[name], err_msg=name)


def test_another_seed_gives_another_world():
    first, second = array_fields(small_world()), array_fields(small_world(seed=6))
    for name in set(first) - {"item_ids", "user_ids"}:
        assert not np.array_equal(first[name], second[name]), name


def test_items_do_not_depend_on_the_number_of_users():
    first, second = array_fields(small_world()), array_fields(small_world(num_users=37))
    for name in first:
        if name.startswith(("item", "topic", "creator")):
            np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def test_saved_and_loaded_bit_for_bit(tmp_path):
    world = small_world()
    save_world(world, tmp_path)
    loaded = load_world(tmp_path)
    assert loaded.config == world.config
    for name, array in array_fields(world).items():
        other = getattr(loaded, name)
        assert array.dtype == other.dtype
        assert array.tobytes() == other.tobytes()


def test_a_file_that_is_absent_cut_off_or_of_another_kind(tmp_path):
    with pytest.raises(DataError, match=r"world.npz' does not hold a whole simulated world"):
        load_world(tmp_path)
    save_world(small_world(), tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="make it again"):
        load_world(tmp_path)
    np.savez(tmp_path / FILE, config=np.array("{}"))
    with pytest.raises(DataError, match="make it again"):
        load_world(tmp_path)


def test_vectors_have_length_1():
    world = small_world()
    for vectors in (world.topic_vector, world.item_vector, world.taste):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, rtol=1e-12)


def test_without_noise_items_and_tastes_are_topics():
    """x = v_t, and a taste of one topic that does not drift is that topic at all times."""
    world = small_world(item_noise=0.0, taste_noise=0.0, topics_per_user=1, drift=0.0)
    np.testing.assert_allclose(world.item_vector, world.topic_vector[world.item_topic], atol=1e-12)
    cosine = np.einsum("uqd,td->uqt", world.taste, world.topic_vector)
    np.testing.assert_allclose(cosine.max(axis=2), 1, rtol=1e-12)
    assert len(np.unique(cosine[:, 0].argmax(axis=1))) > 1


def test_correlation_of_appeal_and_quality_and_the_creators_share():
    """Variance 1 of both, correlation r, and a share of variance between creators.

    The standard error of a correlation of n pairs is below 1 / sqrt(n).
    """
    n = 20011
    world = small_world(num_items=n, num_creators=997, appeal_quality_correlation=0.6)
    tolerance = 5 / np.sqrt(n)
    quality, appeal = world.item_quality, world.item_appeal
    assert abs(np.corrcoef(quality, appeal)[0, 1] - 0.6) < tolerance
    assert abs(appeal.var() - 1) < 2 * tolerance
    shared = world.creator_quality[world.item_creator]
    rest = quality - np.sqrt(SMALL.creator_share) * shared
    assert abs(rest.var() - (1 - SMALL.creator_share)) < 2 * tolerance
    assert abs(np.corrcoef(rest, shared)[0, 1]) < tolerance


def test_durations():
    world = small_world(
        num_items=5003, median_seconds=17.0, duration_spread=0.7, min_seconds=7.0, max_seconds=61.0
    )
    duration = world.item_duration_ms
    assert duration.min() == 7000
    assert duration.max() == 61000
    np.testing.assert_array_equal(duration, np.rint(duration))
    # The median of log d has the standard error sqrt(pi / 2) spread / sqrt(n).
    error = np.sqrt(np.pi / 2) * 0.7 / np.sqrt(5003)
    assert abs(np.log(np.median(duration) / 17000)) < 4 * error


def test_requests_rise_with_room_for_a_session_between():
    world = small_world()
    config = world.config
    is_made = np.arange(world.request_ms.shape[1]) < world.num_requests[:, None]
    assert (world.request_ms[~is_made] == NEVER_MS).all()
    for times, number in zip(world.request_ms, world.num_requests, strict=True):
        gaps = np.diff(times[:number])
        assert (gaps >= config.slate_items * 1000 * config.max_seconds).all()
        assert times[0] >= START_MS
        assert times[number - 1] < START_MS + config.num_days * MILLISECONDS_PER_DAY


def test_activity():
    """Without a spread everybody makes the same number of requests; the mean stays near it."""
    assert (small_world(activity_spread=0.0).num_requests == SMALL.requests_per_user).all()
    numbers = small_world(num_users=5003, activity_spread=0.2).num_requests
    assert numbers.std() > 1
    assert numbers.max() <= 2 * SMALL.requests_per_user
    error = 0.2 * SMALL.requests_per_user / np.sqrt(5003)
    assert abs(numbers.mean() - SMALL.requests_per_user) < 5 * error


def test_tastes_drift_slowly():
    """A step of length e in D dimensions leaves 1 - cos = e^2 (D - 1) / (2 D) in the mean.

    Only the part across the taste turns it: D - 1 of the D dimensions of a step whose mean square
    length is e^2. Terms of order e^4 are below 1 % at e = 0.05.
    """
    world = small_world(num_users=997, drift=0.05, activity_spread=0.0)
    cosine = (world.taste[:, 1:] * world.taste[:, :-1]).sum(axis=2)
    expected = 0.05**2 * 4 / (2 * 5)
    assert abs((1 - cosine).mean() / expected - 1) < 0.05
    far = (world.taste[:, -1] * world.taste[:, 0]).sum(axis=1)
    assert 0.5 < far.mean() < cosine.mean()


def test_the_taste_in_force():
    world = small_world()
    user = int(world.num_requests.argmin())
    last = int(world.num_requests[user]) - 1
    times = world.request_ms[user]
    asked = np.array([0, times[0], times[3] - 1, times[3], times[4] - 1, times[last] + 10**12])
    users = np.full(6, user)
    assert user_state(world, users, asked).tolist() == [0, 0, 2, 3, 3, last]
    np.testing.assert_array_equal(taste_at(world, users, asked)[3], world.taste[user, 3])
    with pytest.raises(DataError, match=r"user number 31 does not exist.* 0 to 30"):
        user_state(world, np.array([31]), np.array([0]))


def test_ids_to_numbers_and_sessions():
    world = small_world()
    assert item_numbers(world, ["v00210", "v00003"]).tolist() == [210, 3]
    assert user_numbers(world, ["u00030"]).tolist() == [30]
    sessions = sessions_in_world(np.array([210, 3]), np.array([[[0, 1, -1]]]))
    assert sessions.tolist() == [[[210, 3, -1]]]
    with pytest.raises(DataError, match=r"item 'x7' is not of this simulated world.*'v00000' to"):
        item_numbers(world, ["v00001", "x7"])
    with pytest.raises(DataError, match=r"user 'v00001' is not of this simulated world"):
        user_numbers(world, ["v00001"])
    for number in (2, -2):
        with pytest.raises(DataError, match=f"item number {number} does not exist"):
            sessions_in_world(np.array([210, 3]), np.array([[number]]))


def test_text_carries_the_topic():
    """The nearest centroid of word counts, made from one half of the items, tells the topic."""
    world = small_world(num_items=1009)
    words = [text.lower().replace(".", "").split() for text in world.item_text.tolist()]
    vocabulary = {word: place for place, word in enumerate(sorted(set(itertools.chain(*words))))}
    counts = np.zeros((len(words), len(vocabulary)))
    for row, text in enumerate(words):
        np.add.at(counts[row], [vocabulary[word] for word in text], 1)
    half = len(words) // 2
    centroids = np.stack(
        [counts[:half][world.item_topic[:half] == topic].mean(axis=0) for topic in range(7)]
    )
    centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    told = (counts[half:] @ centroids.T).argmax(axis=1)
    assert (told == world.item_topic[half:]).mean() > 0.95
    assert len(set(world.topic_names.tolist())) == 7


def test_keyed_numbers_are_uniform_and_independent():
    """Moments of 10^6 uniforms, and correlations along every key and between streams."""
    keys = (np.arange(100)[:, None, None], np.arange(100)[:, None], np.arange(100))
    numbers = keyed_uniforms(Stream.LIKE, 3, *keys)
    assert numbers.min() > 0 and numbers.max() < 1
    assert abs(numbers.mean() - 1 / 2) < 5 * np.sqrt(1 / 12e6)
    assert abs(numbers.var() - 1 / 12) < 5 * np.sqrt(1 / 180e6)
    others = [np.roll(numbers, 1, axis) for axis in range(3)]
    others += [keyed_uniforms(Stream.FOLLOW, 3, *keys), keyed_uniforms(Stream.LIKE, 4, *keys)]
    for other in others:
        assert abs(np.corrcoef(numbers.ravel(), other.ravel())[0, 1]) < 5e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *[({name: 0}, f"{name} is 0; set 1 or more") for name in ("num_users", "slate_items")],
        ({"seed": -1}, "seed is -1; set 0 or more"),
        ({"staleness": -1}, "staleness is -1; set 0 or more"),
        ({"latent_dim": 1}, "latent_dim is 1; set 2 or more"),
        *[
            ({name: -0.1}, f"{name} is -0.1; set 0 or more")
            for name in ("drift", "watch_noise", "satiation", "leave_weight", "taste_noise")
        ],
        ({"watch_bias": float("nan")}, "watch_bias is nan; set a finite number"),
        ({"like_bias": float("-inf")}, "like_bias is -inf; set a finite number"),
        ({"max_seconds": float("inf")}, "max_seconds is inf; set a finite number"),
        ({"creator_share": 1.1}, r"creator_share is 1.1; set a number from 0 to 1"),
        ({"popular_share": 0.7, "taste_share": 0.5}, "add up to more than 1"),
        ({"num_topics": 201}, "num_topics is 201; set at most 200"),
        ({"min_seconds": 30.0}, "min_seconds 30.0, median_seconds 20.0"),
        ({"min_seconds": 0.0}, "must be above 0"),
        ({"num_items": 65}, "num_items is 65, but a user may be shown 66 different videos"),
        (
            {"max_seconds": 7200.0, "num_days": 1},
            r"22 requests of a user at least 21660 s apart do not fit into num_days 1",
        ),
    ],
)
def test_what_a_config_cannot_be(changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(SMALL, **changes)


def test_a_config_comes_back_from_its_text():
    assert from_dict(SimulatorConfig, to_dict(SMALL)) == SMALL
