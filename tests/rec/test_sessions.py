"""Sessions: equal to a slow reference in plain Python, and nothing later ever reaches a history."""

import collections
import dataclasses
import time

import numpy as np
import polars as pl
import pytest

from core_jax.errors import DataError
from rec_jax.data.interactions import InteractionLog, clean_log
from rec_jax.data.sessions import (
    SPLITS,
    EventRule,
    EventRuleConfig,
    QualityConfig,
    SessionConfig,
    SessionData,
    SessionRule,
    SplitConfig,
    SplitRule,
    TrainWindows,
    build_sessions,
    describe_counts,
    examples,
    histories,
    load_sessions,
    save_sessions,
    targets,
)
from tests.rec.session_cases import (
    LIKED,
    MINUTE,
    TEMPORAL,
    cut_moments,
    found_examples,
    random_log,
    reference_blocks,
    reference_given,
    sorted_events,
)

CONFIGS = {
    f"{rule.value}-{split.rule.value}": SessionConfig(
        rule=rule, positive=LIKED, split=split, session_items=3, min_history=2
    )
    for rule in SessionRule
    for split in (SplitConfig(), TEMPORAL)
} | {
    "sliding": SessionConfig(
        positive=LIKED, session_items=3, train_windows=TrainWindows.SLIDING, train_stride=2
    ),
    "sliding-temporal": SessionConfig(
        positive=LIKED, session_items=2, train_windows=TrainWindows.SLIDING, split=TEMPORAL
    ),
    "two-days-gap": SessionConfig(
        rule=SessionRule.TIME_GAP, gap_minutes=300.0, positive=LIKED, split=TEMPORAL
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_equal_to_the_reference(name):
    config = CONFIGS[name]
    is_block = config.rule is SessionRule.FIXED_BLOCKS
    reference = reference_blocks if is_block else reference_given
    for seed in range(7):
        log = random_log(seed)
        expected = reference(log, config)
        data = build_sessions(log, config)
        for split in SPLITS:
            ids = [([e.item for e in h], [e.item for e in t]) for h, t in expected[split]]
            assert sorted(found_examples(data, split)) == sorted(ids)
            assert data.counts[split] == len(ids) == len(examples(data, split)) > 0


@pytest.mark.parametrize("name", CONFIGS)
def test_nothing_later_reaches_a_history(name):
    """The property that every later number rests on, stated without any session rule.

    Every history item lies before every target item of its example in the order (time, row), and
    strictly before in time where the log defines sessions; no history holds a target; a history
    holds only the user's own positives. No training item, in a history or a target, lies at or
    after the start of anything held out for its user, nor any validation item of test; under the
    temporal split that holds across all users.
    """
    config = CONFIGS[name]
    for seed in range(100, 107):
        log = random_log(seed)
        events = {e.item: e for user in sorted_events(log).values() for e in user}
        data = build_sessions(log, config)
        latest, earliest = collections.defaultdict(list), collections.defaultdict(list)
        for split in SPLITS:
            users = [data.user_ids[user] for user in examples(data, split).user]
            for user, (history, target) in zip(users, found_examples(data, split), strict=True):
                past, future = ([events[item] for item in part] for part in (history, target))
                assert {event.user for event in past + future} == {user}
                assert all(event.like for event in past + future)
                order = [(event.time, event.row) for event in past + future]
                assert order == sorted(set(order))
                if config.rule is not SessionRule.FIXED_BLOCKS:
                    assert past[-1].time < future[0].time
                scope = "all" if config.split.rule is SplitRule.TEMPORAL else user
                latest[scope, split].append(max(order))
                earliest[scope, split].append(order[len(past)])
        for scope, split in latest:
            for later in SPLITS[SPLITS.index(split) + 1 :]:
                if (scope, later) in earliest:
                    assert max(latest[scope, split]) < min(earliest[scope, later])


@pytest.mark.parametrize("name", CONFIGS)
def test_training_counts_know_nothing_of_what_is_held_out(name):
    config = CONFIGS[name]
    data = build_sessions(random_log(11), config)
    counted = set(np.flatnonzero(data.train_item_counts))
    train = set(histories(data, "train", 0).ravel()) | set(targets(data, "train", 0).ravel())
    held_out = set(targets(data, "valid", 0).ravel()) | set(targets(data, "test", 0).ravel())
    assert train - {-1} <= counted
    assert not counted & held_out
    before = [
        data.positives[start:end]
        for start, end in zip(data.user_starts[:-1], data.train_ends, strict=True)
    ]
    expected = np.bincount(np.concatenate(before), minlength=len(data.item_ids))
    np.testing.assert_array_equal(data.train_item_counts, expected)


def log_of(rows: list[tuple], names: str) -> InteractionLog:
    """Makes a log of (user, item, time in minutes, ...) rows."""
    frame = pl.DataFrame(rows, schema=names.split(), orient="row")
    return clean_log(frame.with_columns(pl.col("timestamp") * MINUTE), source="small")


def long_history(user: str) -> list[tuple]:
    """Four single events a day apart, so that sessions have a history and splits are not empty."""
    return [(user, f"{user}-{day}", day * 1440) for day in range(4)]


def test_an_item_is_kept_once_in_a_session_and_repeats_stay_in_histories():
    rows = [("u", item, 0) for item in "abab"] + [("u", item, 1440) for item in "bcbca"]
    rows += [("u", "d", 2880), ("u", "e", 4320)]
    log = log_of(rows, "user_id item_id timestamp")
    log = dataclasses.replace(log, drops={})
    config = SessionConfig(rule=SessionRule.SAME_TIMESTAMP, session_items=7)
    # Equal rows are dropped, so the first sitting is a, b and the second b, c, a.
    data = build_sessions(log, config)
    assert found_examples(data, "train") == [(["a", "b"], ["b", "c", "a"])]
    assert found_examples(data, "test") == [(["a", "b", "b", "c", "a", "d"], ["e"])]
    rows = [("u", item, minute) for minute, item in enumerate("abcaabcde")]
    config = SessionConfig(session_items=2)
    data = build_sessions(log_of(rows, "user_id item_id timestamp"), config)
    assert found_examples(data, "train") == [(["a"], ["b", "c"]), (["a", "b", "c"], ["a"])]


def test_long_training_sessions_are_cut_and_share_their_history():
    rows = long_history("u")[:1] + [("u", f"x{place}", 1440 + place) for place in range(7)]
    rows += [("u", f"y{place}", 2880 + place) for place in range(7)] + [("u", "z", 4320)]
    config = SessionConfig(rule=SessionRule.TIME_GAP, session_items=3)
    data = build_sessions(log_of(rows, "user_id item_id timestamp"), config)
    assert found_examples(data, "train") == [
        (["u-0"], ["x0", "x1", "x2"]),
        (["u-0"], ["x3", "x4", "x5"]),
        (["u-0"], ["x6"]),
    ]
    assert len(found_examples(data, "valid")[0][1]) == 7
    assert targets(data, "valid").shape == (1, 3)


def test_gap_is_longer_than_thirty_minutes():
    rows = [("u", "a", 0), ("u", "b", 30), ("u", "c", 61), *long_history("v")]
    rows += [("u", "d", 1440), ("u", "e", 2880)]
    config = SessionConfig(rule=SessionRule.TIME_GAP)
    data = build_sessions(log_of(rows, "user_id item_id timestamp"), config)
    assert data.counts["sessions"] == 4 + 4
    assert (["a", "b"], ["c"]) in found_examples(data, "train")


def quality_log() -> InteractionLog:
    """One user, eight sittings of 1 to 8 items; item 0 of every third sitting is shared."""
    rows = [
        ("u", f"s{sitting}-{place}", sitting * 1440 + place, 10.0 * sitting, sitting % 3 == 0)
        for sitting in range(8)
        for place in range(sitting + 1)
    ]
    return log_of(rows, "user_id item_id timestamp watch_time_ms share")


@pytest.mark.parametrize(
    ("quality", "sizes"),
    [
        (QualityConfig(), [2, 3, 4, 5, 6, 7, 8]),
        (QualityConfig(min_items=5), [5, 6, 7, 8]),
        (QualityConfig(strong_feedback=("share",)), [4, 7]),
        # Training sittings of 2 to 6 items were watched 20, 60, 120, 200 and 300 ms in total.
        (QualityConfig(watch_time_quantile=0.5), [4, 5, 6, 7, 8]),
        (QualityConfig(min_items=4, watch_time_quantile=0.25), [5, 6, 7, 8]),
    ],
)
def test_quality_filter(quality, sizes):
    config = SessionConfig(rule=SessionRule.TIME_GAP, session_items=99, quality=quality)
    if sizes == [4, 7]:
        config = dataclasses.replace(
            config, split=SplitConfig(rule=SplitRule.TEMPORAL, valid_days=1, test_days=1)
        )
        with pytest.raises(DataError, match=r"no session is left for 'test'.*strong_feedback 2"):
            build_sessions(quality_log(), config)
        return
    data = build_sessions(quality_log(), config)
    found = [len(target) for split in SPLITS for _, target in found_examples(data, split)]
    assert found == sizes
    switched_on = (quality.min_items > 0) + (quality.watch_time_quantile > 0) * 4
    filters = [name for name in data.counts if "with_min" in name or "watch_time" in name]
    assert len(filters) == switched_on
    assert f"{data.counts['sessions']:,}" in describe_counts(data)


def test_watch_ratio_and_threshold_rules():
    log = random_log(5)
    ratio = EventRuleConfig(rule=EventRule.WATCH_RATIO, watch_ratio=0.8)
    data = build_sessions(log, SessionConfig(positive=ratio, session_items=2))
    expected = (log.interactions["watch_time_ms"] >= 0.8 * 500.0).sum()
    assert data.counts["positives"] == expected
    threshold = EventRuleConfig(rule=EventRule.THRESHOLD, column="like", threshold=0.5)
    data = build_sessions(log, SessionConfig(positive=threshold, session_items=2))
    assert data.counts["positives"] == log.interactions["like"].sum()


def test_users_with_too_few_positives_are_left_out():
    rows = [(user, f"{user}{place}", place) for user in "uvw" for place in range(ord(user) - 108)]
    log = log_of(rows, "user_id item_id timestamp")
    data = build_sessions(log, SessionConfig(session_items=3, min_positives=10))
    assert data.counts["users_below_min_positives"] == 1
    assert [data.user_ids[user] for user in data.test.user] == ["v", "w"]
    everyone = build_sessions(log, SessionConfig(session_items=3))
    assert [everyone.user_ids[user] for user in everyone.test.user] == ["u", "v", "w"]


def test_temporal_moments_given_as_dates():
    config = dataclasses.replace(CONFIGS["time_gap-temporal"])
    log = random_log(3)
    valid, test = cut_moments(log, TEMPORAL)
    dates = [str(np.datetime64(moment, "ms"))[:10] for moment in (valid, test)]
    split = SplitConfig(rule=SplitRule.TEMPORAL, valid_from=dates[0], test_from=dates[1])
    given = build_sessions(log, dataclasses.replace(config, split=split))
    assert given.counts == build_sessions(log, config).counts


def test_save_and_load(tmp_path):
    data = build_sessions(random_log(1), CONFIGS["time_gap-temporal"])
    save_sessions(data, tmp_path / "sessions")
    again = load_sessions(tmp_path / "sessions")
    for field in dataclasses.fields(SessionData):
        expected, seen = getattr(data, field.name), getattr(again, field.name)
        if dataclasses.is_dataclass(expected):
            expected, seen = dataclasses.asdict(expected), dataclasses.asdict(seen)
        np.testing.assert_equal(seen, expected)
    assert again.positives.dtype == data.positives.dtype == np.int32
    (tmp_path / "sessions" / "sessions.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match="does not hold whole sessions"):
        load_sessions(tmp_path / "sessions")


def test_a_hundred_thousand_events_take_less_than_a_second():
    log = random_log(0, num_events=100_003, num_users=503)
    for config in (CONFIGS["request_id-temporal"], CONFIGS["sliding"]):
        build_sessions(log, config)
        start = time.process_time()
        build_sessions(log, config)
        assert time.process_time() - start < 1.0
