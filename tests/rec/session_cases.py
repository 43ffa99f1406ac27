"""Random logs and a slow reference of the session rules in plain Python.

In the random logs every event has an item of its own, so an item index tells which event it is.
"""

import collections
import itertools

import numpy as np
import polars as pl

from rec_jax.data.interactions import InteractionLog, clean_log
from rec_jax.data.sessions import (
    SPLITS,
    EventRule,
    EventRuleConfig,
    SessionConfig,
    SessionData,
    SessionRule,
    SplitConfig,
    SplitRule,
    TrainWindows,
    histories,
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
