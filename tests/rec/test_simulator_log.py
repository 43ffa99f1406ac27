"""The simulated log: schema, time, the logging policy, and the stage that prepares it."""

import dataclasses
import json
import shlex

import numpy as np
import polars as pl
import pytest

from core_jax.config import from_dict, to_dict
from core_jax.errors import DataError
from core_jax.jobs import Job
from launch.cli import parse
from rec_jax.config import MovielensConfig, PipelineConfig
from rec_jax.data.interactions import clean_log, feedback_columns
from rec_jax.data.own_logs import OwnLogConfig
from rec_jax.data.session_config import EventRule, EventRuleConfig
from rec_jax.data.simulator.facts import describe_world, normalised_value
from rec_jax.data.simulator.log import deliver, simulate_log
from rec_jax.data.simulator.logging_policy import logged_slates
from rec_jax.data.simulator.response import respond
from rec_jax.data.simulator.world import item_numbers, save_world, user_numbers, user_state
from rec_jax.presets import demo_tiny
from rec_jax.stages import prepare
from tests.rec.simulator_cases import SMALL, array_fields, small_world

WORLD = small_world()
LOG = simulate_log(WORLD)
EVENTS = LOG.interactions


def test_no_row_breaks_the_schema():
    again = clean_log(EVENTS, LOG.items, LOG.users, source="again")
    assert not any(again.drops.values())
    assert again.interactions.equals(EVENTS)
    assert feedback_columns(LOG) == ["viewed", "like", "follow"]
    assert {"session_id", "watch_time_ms", "duration_ms"} <= set(EVENTS.columns)
    assert EVENTS.height == int(WORLD.num_requests.sum()) * SMALL.slate_items
    assert LOG.items.height == SMALL.num_items
    assert LOG.users.height == SMALL.num_users


def test_a_config_gives_one_log():
    assert simulate_log(small_world()).interactions.equals(EVENTS)
    assert not simulate_log(small_world(seed=6)).interactions.equals(EVENTS)


def test_what_was_not_viewed_has_no_feedback():
    assert EVENTS["timestamp"].is_sorted()
    unviewed = EVENTS.filter(~pl.col("viewed"))
    assert 0 < unviewed.height < EVENTS.height
    assert unviewed["watch_time_ms"].to_list() == [0.0] * unviewed.height
    assert not unviewed["like"].any() and not unviewed["follow"].any()
    viewed = EVENTS.filter("viewed")
    assert (viewed["watch_time_ms"] <= viewed["duration_ms"]).all()
    first = EVENTS.sort("timestamp").group_by("session_id", maintain_order=True).first()
    assert first["viewed"].all()


def test_rows_of_a_request_lie_between_it_and_the_next():
    """The k-th row of a request is at request + k + watch times before it, milliseconds."""
    users = user_numbers(WORLD, EVENTS["user_id"].to_list())
    frame = EVENTS.with_columns(user=pl.Series(users)).sort("user", "timestamp")
    requests = np.split(frame["timestamp"].to_numpy(), frame.height // SMALL.slate_items)
    watched = np.split(frame["watch_time_ms"].to_numpy(), len(requests))
    ids = np.split(frame["session_id"].to_numpy(), len(requests))
    is_made = np.arange(WORLD.request_ms.shape[1]) < WORLD.num_requests[:, None]
    starts = WORLD.request_ms[is_made]
    for start, times, watch, session in zip(starts, requests, watched, ids, strict=True):
        before = np.concatenate([[0], np.cumsum(watch)[:-1]])
        assert times.tolist() == (start + np.arange(1, 4) + before).tolist()
        assert len(set(session)) == 1
    per_user = frame.group_by("user", maintain_order=True).agg("timestamp")
    for times in per_user["timestamp"]:
        assert (np.diff(times.to_numpy()) > 0).all()
    assert EVENTS["session_id"].n_unique() == len(requests)
    # The taste in force at any row is that of its request.
    states = user_state(WORLD, frame["user"].to_numpy(), frame["timestamp"].to_numpy())
    np.testing.assert_array_equal(states, np.repeat(np.nonzero(is_made)[1], SMALL.slate_items))


def test_the_log_is_what_the_world_answers():
    """The slates of the policy with one replication of `respond`, rounded; nothing else."""
    slates, response = deliver(WORLD)
    frame = EVENTS.sort("session_id", "timestamp")
    items = item_numbers(WORLD, frame["item_id"].to_list())
    np.testing.assert_array_equal(items, slates.items.ravel())
    watched = frame["watch_time_ms"].to_numpy()
    np.testing.assert_array_equal(watched, np.rint(response.watch_ms.ravel()))
    np.testing.assert_array_equal(frame["like"].to_numpy(), response.is_like.ravel())
    np.testing.assert_array_equal(frame["follow"].to_numpy(), response.is_follow.ravel())
    # An A/B test with the world's own seed does not meet the log's noise again.
    asked = (slates.user, slates.time_ms, slates.items)
    other = respond(WORLD, *asked, seed=SMALL.seed)
    assert (other.watch_ms[..., 0] != response.watch_ms[..., 0]).all()


def test_the_tables_hide_what_is_not_observable():
    assert LOG.items.columns == ["item_id", "title", "text", "categories", "creator", "duration_ms"]
    names = WORLD.topic_names[WORLD.item_topic].tolist()
    assert LOG.items["categories"].to_list() == [[name] for name in names]
    assert LOG.users.columns == ["user_id"]


def test_nobody_is_shown_a_video_twice():
    shown = EVENTS.select("user_id", "item_id")
    assert shown.n_unique() == shown.height


def shown_items(**changes):
    """A world of many users of one request, and their slates."""
    world = small_world(
        num_users=4001, requests_per_user=1, activity_spread=0.0, staleness=0, **changes
    )
    return world, logged_slates(world)


def test_uniform_places():
    """Without the other rules every item is shown alike: chi-square of I cells.

    Three of 211 without replacement make the counts less variable than a multinomial's, so that
    the statistic, of mean I - 1 and variance 2 (I - 1), is if anything smaller.
    """
    _, slates = shown_items(popular_share=0.0, taste_share=0.0)
    counts = np.bincount(slates.items.ravel(), minlength=211)
    expected = slates.items.size / 211
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert 210 - 5 * np.sqrt(420) < statistic < 210 + 5 * np.sqrt(420)


def test_popular_places():
    """The first place is drawn with probability proportional to exp(sharpness * appeal)."""
    world, slates = shown_items(popular_share=1.0, taste_share=0.0, appeal_sharpness=0.8)
    weight = np.exp(0.8 * world.item_appeal)
    expected = 4001 * weight / weight.sum()
    counts = np.bincount(slates.items[:, 0], minlength=211)
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert statistic < 210 + 5 * np.sqrt(420)


def test_personal_places():
    """Without noise the first place of user u is drawn by exp(sharpness p . x).

    The mean affinity of the drawn items is the sum over users of their expectations, and its
    variance that of theirs.
    """
    world, slates = shown_items(
        popular_share=0.0, taste_share=1.0, taste_sharpness=3.0, estimate_noise=0.0
    )
    affinity = world.taste[:, 0] @ world.item_vector.T
    probability = np.exp(3 * affinity)
    probability /= probability.sum(axis=1, keepdims=True)
    mean = (probability * affinity).sum(axis=1)
    variance = (probability * affinity**2).sum(axis=1) - mean**2
    drawn = affinity[np.arange(4001), slates.items[:, 0]]
    assert abs((drawn - mean).sum()) < 5 * np.sqrt(variance.sum())
    _, blurred = shown_items(
        popular_share=0.0, taste_share=1.0, taste_sharpness=3.0, estimate_noise=2.0
    )
    assert affinity[np.arange(4001), blurred.items[:, 0]].mean() < drawn.mean() - 0.05


def test_the_estimate_of_taste_is_old():
    """With a fast drift the slate of a request fits the taste of two requests ago best."""
    world = small_world(
        num_users=997, drift=0.7, staleness=2, popular_share=0.0, taste_share=1.0,
        estimate_noise=0.0, activity_spread=0.0,
    )  # fmt: skip
    items = logged_slates(world).items.reshape(997, 11, 3)[:, 5]
    vectors = world.item_vector[items].mean(axis=1)
    fit = [(world.taste[:, request] * vectors).sum(axis=1).mean() for request in range(11)]
    assert int(np.argmax(fit)) == 3


def pipeline(run_dir, log):
    config = demo_tiny()
    positive = EventRuleConfig(rule=EventRule.WATCH_RATIO, watch_ratio=0.5)
    sessions = dataclasses.replace(config.sessions, positive=positive)
    return dataclasses.replace(config, run_dir=str(run_dir), log=log, sessions=sessions)


def test_a_run_prepares_a_simulated_log_and_keeps_its_world(tmp_path):
    config = pipeline(tmp_path, SMALL)
    assert prepare.run(config)
    log, data = prepare.load(config.run_dir)
    assert log.interactions.equals(EVENTS)
    world = prepare.load_world(config.run_dir)
    assert world.config == SMALL
    for name, array in array_fields(world).items():
        np.testing.assert_array_equal(array, getattr(WORLD, name))
    assert len(item_numbers(world, list(data.item_ids))) == len(data.item_ids)


def test_a_run_whose_log_is_not_simulated_has_no_world(tmp_path):
    with pytest.raises(DataError, match=r"stage 'prepare' of run .* is not done"):
        prepare.load_world(str(tmp_path))
    EVENTS.drop("row").write_parquet(tmp_path / "log.parquet")
    config = pipeline(tmp_path, OwnLogConfig(path=str(tmp_path / "log.parquet")))
    prepare.run(config)
    with pytest.raises(DataError, match=r"is not simulated .*SimulatorConfig"):
        prepare.load_world(config.run_dir)


def test_a_run_knows_another_world_from_its_own(tmp_path):
    config = pipeline(tmp_path, SMALL)
    prepare.run(config)
    folder = tmp_path / "stages" / "prepare"
    save_world(small_world(drift=0.5), folder)
    with pytest.raises(DataError, match=r"world.npz' of the finished stage 'prepare' has"):
        prepare.load_world(config.run_dir)
    done = json.loads((folder / "done.json").read_text())
    del done["files"]  # as in runs of before sizes were written down
    (folder / "done.json").write_text(json.dumps(done))
    with pytest.raises(DataError, match=r"not that of the run's log \(drift: 0.5 -> 0.08\)"):
        prepare.load_world(config.run_dir)
    (folder / "world.npz").unlink()
    with pytest.raises(DataError, match="does not hold a whole simulated world"):
        prepare.load_world(config.run_dir)


@pytest.mark.parametrize("log", [SMALL, MovielensConfig(variant="1m")])
def test_the_config_comes_back_from_its_text(log):
    config = pipeline("run", log)
    assert from_dict(PipelineConfig, to_dict(config)) == config


def test_flags_of_the_world():
    """A preset with a simulated log has the world's fields as flags."""

    def preset():
        """A simulated log."""
        return pipeline("run", SMALL)

    jobs = {"rec.prepare": Job(prepare.run, {"world": preset}, "Prepares.")}
    words = shlex.split("rec.prepare --preset world --log.num-users 41 --log.drift 0.5")
    request = parse(jobs, words, program="test")
    assert request is not None
    assert request.config.log == dataclasses.replace(SMALL, num_users=41, drift=0.5)


def test_the_world_describes_itself():
    """The default world, smaller: the order of the policies, and sizes that are the config's."""
    world = small_world(num_users=211, num_items=499)
    lines = describe_world(world, num_users=101).splitlines()
    assert lines[0] == "world     211 users, 499 items, 7 topics, seed 5"
    assert f"{int(world.num_requests.sum()) * 3:,} events" in lines[1]
    assert "sessions for the last request of 101 users" in lines
    rows = {line.split()[0]: float(line.split()[1]) for line in lines[-4:]}
    assert list(rows) == ["random", "logged", "popularity", "oracle"]
    assert rows["random"] < rows["popularity"] < rows["oracle"] / 1.6


def test_the_scale_from_popularity_to_oracle():
    """Popularity is 0, the oracle 1, and the map between is affine."""
    value = normalised_value(np.array([2.0, 7.0, 12.0]), popularity=2.0, oracle=12.0)
    assert value.tolist() == [0, 1 / 2, 1]
    with pytest.raises(DataError, match=r"oracle's value 2.0 is not above .* popularity, 3.0"):
        normalised_value(2.0, popularity=3.0, oracle=2.0)
