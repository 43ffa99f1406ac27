"""Delivered sessions against a slow reference; nothing of the future; folds."""

import collections
import dataclasses

import numpy as np
import polars as pl
import pytest

from core_jax.errors import DataError
from rec_jax.data.session_config import SessionRule, SplitConfig, SplitRule
from rec_jax.data.sessions import build_sessions
from rec_jax.reward.sessions import (
    build_reward_data,
    chooses_checkpoint,
    histories,
    in_fold,
    item_durations,
)
from tests.rec.reward_cases import REQUESTS, TARGETS, as_log, delivered_frame
from tests.rec.session_cases import (
    LIKED,
    TEMPORAL,
    chunks,
    cut_moments,
    random_log,
    reference_groups,
    sorted_events,
)

LEAVE_LAST = SplitConfig(rule=SplitRule.LEAVE_LAST_BLOCK_OUT)


def build(log, config, **values):
    return build_reward_data(
        log, config, build_sessions(log, config), TARGETS, session_items=3, **values
    )


def reference_pieces(log, config):
    """(user, history ids, item ids, is before the moment of the cut) of every piece."""
    moment = cut_moments(log, config.split)[0]
    found = []
    for user, events in sorted_events(log).items():
        if config.rule is SessionRule.FIXED_BLOCKS:
            with_id = [event for event in events if event.request is not None]
            groups = collections.defaultdict(list)
            for event in with_id:
                groups[event.request].append(event)
            sessions = list(groups.values())
        else:
            sessions = reference_groups(events, config)
        for session in sessions:
            history = [e.item for e in events if e.like and e.time < session[0].time]
            if len(history) < config.min_history:
                continue
            is_train = all(event.time < moment for event in session)
            found += [
                (user, history, [event.item for event in piece], is_train)
                for piece in chunks(session, 3)
            ]
    return found


@pytest.mark.parametrize("rule", SessionRule)
def test_sessions_equal_the_slow_reference(rule):
    """Also: under fixed blocks the log's own session ids are used."""
    log = random_log(3)
    config = dataclasses.replace(REQUESTS, rule=rule, positive=LIKED, split=TEMPORAL)
    data = build(log, config)
    names = log.items["item_id"].to_list()
    users = log.users["user_id"].to_list()
    found = [
        (
            users[data.user[place]],
            [names[item] for item in history if item >= 0],
            [names[item] for item in items if item >= 0],
            bool(is_train),
        )
        for place, (history, items, is_train) in enumerate(
            zip(histories(data, 149), data.items, data.is_train, strict=True)
        )
    ]
    expected = reference_pieces(log, config)
    assert sorted(found) == sorted(expected)
    assert len({is_train for *_, is_train in expected}) == 2
    order = list(zip(data.user.tolist(), data.start_time.tolist(), strict=True))
    assert order == sorted(order)


def test_labels_are_of_the_delivered_items():
    log = as_log(delivered_frame())
    data = build(log, REQUESTS)
    rows = {
        (row["user_id"], row["item_id"], row["timestamp"]): row
        for row in log.interactions.iter_rows(named=True)
    }
    users, names = log.users["user_id"].to_list(), log.items["item_id"].to_list()
    by_start = collections.defaultdict(list)
    for (user, item, time), row in rows.items():
        by_start[user].append((time, item, row["like"]))
    for place in range(len(data.user)):
        user = users[data.user[place]]
        inside = [
            like
            for time, item, like in sorted(by_start[user])
            if data.start_time[place] <= time <= data.end_time[place]
        ]
        assert len(inside) == (data.items[place] >= 0).sum() in (2, 3)
        assert data.labels.values[place, 1] == pytest.approx(np.mean(inside))
        assert data.items[place, 0] == names.index(
            next(i for t, i, _ in sorted(by_start[user]) if t == data.start_time[place])
        )


def test_fixed_blocks_without_session_ids():
    log = as_log(delivered_frame().drop("session_id"))
    config = dataclasses.replace(REQUESTS, rule=SessionRule.FIXED_BLOCKS, min_history=0)
    data = build(log, config)
    per_user = np.bincount(data.user)
    assert (per_user == -(-17 * 5 // 3)).all()
    assert ((data.items >= 0).sum(axis=1) == 3).sum() == 13 * (85 // 3)


@pytest.mark.parametrize("split", [REQUESTS.split, LEAVE_LAST], ids=["temporal", "last"])
def test_what_comes_later_changes_no_training_session(split):
    """Likes and watch times from the run's cut on are turned over, then the later events are
    replaced by others: training sessions, histories and labels stay as they are."""
    config = dataclasses.replace(REQUESTS, split=split)
    frame = delivered_frame()
    log = as_log(frame)
    sessions = build_sessions(log, config)
    data = build_reward_data(log, config, sessions, TARGETS, session_items=3)
    first_held_out = np.where(
        sessions.train_ends < sessions.user_starts[1:],
        sessions.positive_times[np.minimum(sessions.train_ends, len(sessions.positives) - 1)],
        2**62,
    )
    if split is not LEAVE_LAST:
        first_held_out[:] = cut_moments(log, split)[0]
    cut = pl.DataFrame({"user_id": sessions.user_ids, "cut": first_held_out})
    with_cut = frame.join(cut, on="user_id", how="left", maintain_order="left")
    is_later = pl.col("timestamp") > pl.col("cut")
    changed = with_cut.with_columns(
        watch_time_ms=pl.when(is_later).then(7.0).otherwise("watch_time_ms"),
        item_id=pl.when(is_later).then(pl.lit("i03")).otherwise("item_id"),
    ).drop("cut")
    assert not changed.equals(frame)
    other_log = as_log(changed)
    other = build(other_log, config)
    for name in ("user", "start_time", "end_time", "items"):
        np.testing.assert_array_equal(
            getattr(data, name)[data.is_train], getattr(other, name)[other.is_train]
        )
    np.testing.assert_array_equal(
        histories(data, 31)[data.is_train], histories(other, 31)[other.is_train]
    )
    np.testing.assert_array_equal(
        data.labels.values[data.is_train], other.labels.values[other.is_train]
    )
    assert not np.array_equal(
        data.labels.values[~data.is_train], other.labels.values[~other.is_train]
    )
    np.testing.assert_array_equal(
        item_durations(log, config, sessions),
        item_durations(other_log, config, build_sessions(other_log, config)),
    )


def test_a_history_ends_strictly_before_its_session():
    log = as_log(delivered_frame())
    sessions = build_sessions(log, REQUESTS)
    data = build(log, REQUESTS)
    assert (sessions.positive_times[data.history_end - 1] < data.start_time).all()


def test_labels_can_be_made_again_with_kept_references():
    log = as_log(delivered_frame())
    data = build(log, REQUESTS)
    later = build(as_log(delivered_frame(seed=1)), REQUESTS, references=data.references)
    own = build(as_log(delivered_frame(seed=1)), REQUESTS)
    assert later.references is data.references
    assert not np.array_equal(later.labels.values, own.labels.values)
    again = build(log, REQUESTS, references=data.references)
    np.testing.assert_array_equal(again.labels.values, data.labels.values)


def test_folds_are_disjoint_and_cover_everyone():
    users = np.arange(10_007)
    for num_folds in (1, 2, 3, 7):
        member = np.stack([in_fold(users, fold, num_folds) for fold in range(num_folds)])
        assert (member.sum(axis=0) == 1).all()
        assert np.abs(member.mean(axis=1) - 1 / num_folds).max() < 0.02
    chosen = chooses_checkpoint(users, 0.1)
    assert abs(chosen.mean() - 0.1) < 0.01
    assert abs(chosen[in_fold(users, 0, 2)].mean() - 0.1) < 0.015
    np.testing.assert_array_equal(in_fold(users[5:9], 1, 2), in_fold(users, 1, 2)[5:9])


def test_errors_name_what_is_wrong():
    log = as_log(delivered_frame())
    sessions = build_sessions(log, REQUESTS)
    with pytest.raises(DataError, match="prepare stage again"):
        build_reward_data(
            as_log(delivered_frame(seed=1)), REQUESTS, sessions, TARGETS, session_items=3
        )
    strict = dataclasses.replace(REQUESTS, min_history=999)
    with pytest.raises(DataError, match=r"no delivered session has 999 .* lower min_history"):
        build_reward_data(log, strict, sessions, TARGETS, session_items=3)
    blocks = dataclasses.replace(REQUESTS, rule=SessionRule.FIXED_BLOCKS)
    without = as_log(delivered_frame().with_columns(session_id=pl.lit(None, dtype=pl.String)))
    with pytest.raises(DataError, match="no event has a session_id"):
        build_reward_data(
            without, blocks, build_sessions(without, blocks), TARGETS, session_items=3
        )
