"""Sessions: equal to a slow reference in plain Python, and nothing later ever reaches a history.

In the random logs every event has an item of its own, so an item index tells which event it is.
"""

import collections
import dataclasses
import itertools
import os
import pathlib
import time

import numpy as np
import polars as pl
import pytest

from core_jax.errors import ConfigError, DataError
from rec_jax.data.builders.movielens import load_movielens
from rec_jax.data.interactions import InteractionLog, clean_log
from rec_jax.data.own_logs import OwnLogConfig, TimestampUnit, read_own_log
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

DAY = 86_400_000
MINUTE = 60_000
LIKED = EventRuleConfig(rule=EventRule.ANY_OF, columns=("like",))
TEMPORAL = SplitConfig(rule=SplitRule.TEMPORAL, valid_days=2, test_days=3)

Event = collections.namedtuple("Event", "user time row item like request strong watch")


def random_log(seed: int, num_events: int = 149, num_users: int = 5) -> InteractionLog:
    """Makes events in sittings over eleven days, many at equal times and at midnight."""
    generator = np.random.default_rng(seed)
    sitting = DAY * (np.arange(31) % 11) + 5 * MINUTE * generator.integers(0, 99, 31)
    sitting[::3] -= sitting[::3] % DAY
    moment = generator.choice(sitting, num_events) + 5 * MINUTE * generator.integers(
        0, 9, num_events
    )
    return clean_log(
        pl.DataFrame(
            {
                "user_id": [f"u{user}" for user in generator.integers(0, num_users, num_events)],
                "item_id": [f"i{item}" for item in generator.permutation(num_events)],
                "timestamp": moment,
                "session_id": [f"r{request}" for request in generator.integers(0, 37, num_events)],
                "watch_time_ms": generator.uniform(0, 1000, num_events),
                "duration_ms": np.full(num_events, 500.0),
                "like": generator.random(num_events) < 0.7,
                "share": generator.random(num_events) < 0.2,
            }
        ).with_columns(
            session_id=pl.when(pl.int_range(pl.len()) % 13 > 0).then("session_id"),
        ),
        source="random",
    )


def sorted_events(log: InteractionLog) -> dict[str, list[Event]]:
    """Returns each user's events in the order (time, file row)."""
    users = collections.defaultdict(list)
    for row in log.interactions.iter_rows(named=True):
        event = Event(
            row["user_id"],
            row["timestamp"],
            row["row"],
            row["item_id"],
            row["like"],
            row["session_id"],
            row["share"],
            row["watch_time_ms"],
        )
        users[event.user].append(event)
    return {user: sorted(users[user], key=lambda e: (e.time, e.row)) for user in sorted(users)}


def reference_groups(events: list[Event], config: SessionConfig) -> list[list[Event]]:
    """Returns one user's sessions in the order of their first events."""
    if config.rule is SessionRule.REQUEST_ID:
        groups = collections.defaultdict(list)
        for event in events:
            if event.request is not None:
                groups[event.request].append(event)
        return list(groups.values())
    groups = [[events[0]]]
    for before, event in itertools.pairwise(events):
        pause = event.time - before.time
        longest = config.gap_minutes * MINUTE if config.rule is SessionRule.TIME_GAP else 0
        if pause > longest:
            groups.append([])
        groups[-1].append(event)
    return groups


def chunks(items: list, size: int) -> list[list]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def cut_moments(log: InteractionLog, config: SplitConfig) -> tuple[int, int]:
    midnight = log.interactions["timestamp"].max() // DAY * DAY
    test = midnight - (config.test_days - 1) * DAY
    return test - config.valid_days * DAY, test


def reference_given(log: InteractionLog, config: SessionConfig) -> dict[str, list]:
    """Returns (history, target) item lists per split, for sessions that the log defines."""
    found = {name: [] for name in SPLITS}
    for events in sorted_events(log).values():
        liked = [event for event in events if event.like]
        sessions = []
        for group in reference_groups(events, config):
            target = [event for event in group if event.like]
            history = [event for event in liked if event.time < group[0].time]
            if target and len(history) >= config.min_history:
                sessions.append((history, target))
        if config.split.rule is SplitRule.TEMPORAL:
            valid, test = cut_moments(log, config.split)
            labels = [(t[0].time >= valid) + (t[0].time >= test) for _, t in sessions]
            stops = [valid, test, 12 * DAY]
        else:
            sessions.sort(key=lambda s: (len(s[0]), s[1][0].time, s[1][0].row))
            labels = [0] * len(sessions)
            stops = [12 * DAY] * 3
            if len(sessions) >= 3:
                labels[-2:] = [1, 2]
                starts = [next(e.time for e in liked[len(h) :]) for h, _ in sessions[-2:]]
                stops = [*starts, 12 * DAY]
        for (history, target), label in zip(sessions, labels, strict=True):
            if target[-1].time < stops[label]:
                size = config.session_items if label == 0 else len(target)
                for piece in chunks(target, size):
                    found[SPLITS[label]].append((history, piece))
    return found


def reference_blocks(log: InteractionLog, config: SessionConfig) -> dict[str, list]:
    """Returns (history, target) item lists per split, for fixed blocks."""
    found = {name: [] for name in SPLITS}
    size = config.session_items
    for events in sorted_events(log).values():
        liked = [event for event in events if event.like]
        if config.split.rule is SplitRule.TEMPORAL:
            cuts = [
                sum(e.time < moment for e in liked) for moment in cut_moments(log, config.split)
            ]
        else:
            held_out = size if len(liked) >= 2 * size else 0
            cuts = [len(liked) - 2 * held_out, len(liked) - held_out]
        for name, start, stop in zip(SPLITS, [0, *cuts], [*cuts, len(liked)], strict=True):
            slides = config.train_windows is TrainWindows.SLIDING and name == "train"
            stride = config.train_stride if slides else size
            firsts = range(stop - size, max(start, config.min_history) - 1, -stride)
            found[name] += [
                (liked[:first], liked[first : first + size]) for first in reversed(firsts)
            ]
    return found


def found_examples(data: SessionData, split: str) -> list[tuple[list[str], list[str]]]:
    """Returns the item ids of every example."""
    histories_SN, targets_SM = histories(data, split, 0), targets(data, split, 0)
    return [
        tuple([data.item_ids[item] for item in row if item >= 0] for row in rows)
        for rows in zip(histories_SN, targets_SM, strict=True)
    ]


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


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"session_items": 0}, "session_items is 0; set 1 or more"),
        ({"gap_minutes": 0.0}, "gap_minutes is 0.0; set it above 0"),
        (
            {"rule": SessionRule.TIME_GAP, "train_windows": TrainWindows.SLIDING},
            "does not go with rule 'time_gap'",
        ),
    ],
)
def test_session_settings_that_cannot_work(values, message):
    with pytest.raises(ConfigError, match=message):
        SessionConfig(**values)


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        (EventRuleConfig, {"rule": EventRule.THRESHOLD}, "needs a feedback column"),
        (EventRuleConfig, {"rule": EventRule.ANY_OF}, "needs feedback columns"),
        (EventRuleConfig, {"rule": EventRule.WATCH_RATIO}, "set it above 0"),
        (QualityConfig, {"min_items": -1}, "min_items is -1"),
        (QualityConfig, {"watch_time_quantile": 1.0}, "watch_time_quantile is 1.0"),
        (SplitConfig, {"test_days": 0}, "must be at least 1"),
        (SplitConfig, {"test_from": "2020-01-01"}, "set both or none"),
        (SplitConfig, {"valid_from": "x", "test_from": "y"}, "'x' is no ISO date"),
        (
            SplitConfig,
            {"valid_from": "2020-01-02", "test_from": "2020-01-01"},
            "must lie before",
        ),
    ],
)
def test_parts_of_settings_that_cannot_work(part, values, message):
    with pytest.raises(ConfigError, match=message):
        part(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"positive": EventRuleConfig(rule=EventRule.ANY_OF, columns=("lik",))},
            r"positive.columns names 'lik'.*Did you mean 'like'",
        ),
        (
            {"quality": QualityConfig(strong_feedback=("item",))},
            r"quality.strong_feedback names 'item'",
        ),
        ({"rule": SessionRule.REQUEST_ID}, r"'request_id' needs the column 'session_id'"),
        (
            {"quality": QualityConfig(watch_time_quantile=0.5)},
            r"watch_time_quantile needs the column 'watch_time_ms'",
        ),
        (
            {"positive": EventRuleConfig(rule=EventRule.WATCH_RATIO, watch_ratio=0.5)},
            r"needs the column 'watch_time_ms'",
        ),
    ],
)
def test_settings_that_the_log_does_not_allow(values, message):
    log = random_log(0)
    events = log.interactions.drop("session_id", "watch_time_ms")
    with pytest.raises(ConfigError, match=message):
        build_sessions(clean_log(events, source="random"), SessionConfig(**values))


def test_logs_that_leave_nothing():
    log = random_log(0)
    never = EventRuleConfig(rule=EventRule.THRESHOLD, column="like", threshold=2.0)
    with pytest.raises(DataError, match=r"no event of 149 is positive"):
        build_sessions(log, SessionConfig(positive=never))
    with pytest.raises(DataError, match=r"no session is left for 'train' \(events 149"):
        build_sessions(log, SessionConfig(session_items=101))
    late = SplitConfig(rule=SplitRule.TEMPORAL, valid_days=2, test_days=99)
    with pytest.raises(DataError, match="choose moments inside the log"):
        build_sessions(log, SessionConfig(split=late))
    with pytest.raises(ConfigError, match=r"no split 'tests'. Did you mean 'test'"):
        examples(build_sessions(log, SessionConfig()), "tests")


def test_a_hundred_thousand_events_take_less_than_a_second():
    log = random_log(0, num_events=100_003, num_users=503)
    for config in (CONFIGS["request_id-temporal"], CONFIGS["sliding"]):
        build_sessions(log, config)
        start = time.process_time()
        build_sessions(log, config)
        assert time.process_time() - start < 1.0


@pytest.mark.real_data
def test_real_movielens_protocol():
    """The demo's protocol: 897 users, target = last five positives, validation = five before."""
    try:
        log = load_movielens("100k")
    except DataError as error:
        pytest.skip(f"MovieLens-100k cannot be had here: {error}")
    positive = EventRuleConfig(rule=EventRule.THRESHOLD, column="rating", threshold=4.0)
    config = SessionConfig(positive=positive, min_positives=10, train_windows=TrainWindows.SLIDING)
    data = build_sessions(log, config)
    assert len(data.test) == 897
    assert len(data.valid) == 876  # 21 users have exactly ten positives: no history before five
    assert len(data.item_ids) == 1682
    liked = log.interactions.filter(pl.col("rating") >= 4).sort("user_id", "timestamp", "row")
    per_user = (
        liked.group_by("user_id", maintain_order=True)
        .agg("item_id")
        .filter(pl.col("item_id").list.len() >= 10)
    )
    expected = dict(per_user.iter_rows())
    for split, stop in (("test", None), ("valid", -5)):
        for user, found in zip(
            examples(data, split).user, found_examples(data, split), strict=True
        ):
            items = expected[data.user_ids[user]][:stop]
            assert found == (items[:-5], items[-5:])
    assert len(data.train) == sum(max(len(items) - 15, 0) for items in per_user["item_id"])
    assert data.train_item_counts.sum() == sum(len(items) - 10 for items in per_user["item_id"])


def real_log(name: str) -> InteractionLog:
    """Returns a real log or skips the test."""
    root = pathlib.Path(os.environ.get("ALIGNAX_REAL_DATA", "/nowhere")) / name
    if not root.is_dir():
        pytest.skip(f"ALIGNAX_REAL_DATA is not set to a folder that holds '{name}'")
    if name == "ml_latest_small":
        return read_own_log(
            OwnLogConfig(
                path=str(root / "ratings.csv"),
                columns=("user_id=userId", "item_id=movieId"),
                timestamp_unit=TimestampUnit.SECONDS,
            )
        )
    return read_own_log(
        OwnLogConfig(
            path=str(root / "processed_standard_kcore_15.tsv"),
            columns=(
                *("item_id=video_id", "timestamp=time_ms", "watch_time_ms=play_time_ms"),
                "like=label",
            ),
        )
    )


@pytest.mark.real_data
def test_real_short_video_sessions():
    log = real_log("kuairand27k_like_hate")
    config = SessionConfig(
        rule=SessionRule.TIME_GAP,
        positive=LIKED,
        split=TEMPORAL,
        quality=QualityConfig(
            min_items=5, watch_time_quantile=0.5, strong_feedback=("is_follow", "like")
        ),
    )
    data = build_sessions(log, config)
    assert data.counts["sessions"] == 20_756
    assert 1_490 >= data.counts["sessions_with_min_items"] > data.counts["test"] > 0
    assert_times_part(data)


@pytest.mark.real_data
@pytest.mark.parametrize("rule", [SessionRule.TIME_GAP, SessionRule.SAME_TIMESTAMP])
@pytest.mark.parametrize("split_rule", SplitRule)
def test_real_movie_sessions(rule, split_rule):
    log = real_log("ml_latest_small")
    positive = EventRuleConfig(rule=EventRule.THRESHOLD, column="rating", threshold=4.0)
    split = SplitConfig(rule=split_rule, valid_days=365, test_days=365)
    data = build_sessions(log, SessionConfig(rule=rule, positive=positive, split=split))
    assert_times_part(data)


def assert_times_part(data: SessionData) -> None:
    """Every history ends strictly before its targets; training ends before what is held out."""
    for split in SPLITS:
        chosen = examples(data, split)
        assert (chosen.history_end > chosen.history_start).all()
        last_past = data.positive_times[chosen.history_end - 1]
        first_left = data.positive_times[chosen.history_end]
        assert (last_past < first_left).all()
    for split in ("valid", "test"):
        chosen = examples(data, split)
        assert (data.train_ends[chosen.user] <= chosen.history_end).all()
