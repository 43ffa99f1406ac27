"""Sessions: histories, targets and splits of a log, as flat arrays that expand into batches.

Dimension key: P positives, Q target items of all examples, S examples of a split, U users,
I items, N history items, M session items.
"""

import dataclasses
import json
import os
import pathlib

import numpy as np

from core_jax.arrays import Int
from core_jax.errors import ConfigError, DataError, nearest_name
from rec_jax.data import session_quality, splits
from rec_jax.data.events import Events, sort_events
from rec_jax.data.interactions import InteractionLog
from rec_jax.data.session_config import (
    EventRule,
    EventRuleConfig,
    QualityConfig,
    SessionConfig,
    SessionRule,
    SplitConfig,
    SplitRule,
    TrainWindows,
)
from rec_jax.data.session_rules import (
    Sessions,
    block_sessions,
    cut_long,
    event_sessions,
    select,
    without_repeats,
)
from rec_jax.data.splits import SPLITS

__all__ = [
    "SPLITS",
    "EventRule",
    "EventRuleConfig",
    "ExampleSet",
    "QualityConfig",
    "SessionConfig",
    "SessionData",
    "SessionRule",
    "SplitConfig",
    "SplitRule",
    "TrainWindows",
    "build_sessions",
    "describe_counts",
    "examples",
    "histories",
    "load_sessions",
    "longest_history",
    "save_sessions",
    "targets",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExampleSet:
    """The examples of one split, in the order (user, time)."""

    user: np.ndarray
    """Int32 [S]: user index."""
    history_start: np.ndarray
    """Int32 [S]: where the user's positives start among all positives."""
    history_end: np.ndarray
    """Int32 [S]: the history is the positives from history_start to here."""
    target_start: np.ndarray
    """Int32 [S]: the target is the session items from here ..."""
    target_end: np.ndarray
    """Int32 [S]: ... to here."""

    def __len__(self) -> int:
        return len(self.user)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SessionData:
    """A log's positives in time order and the examples of every split that point into them."""

    item_ids: list[str]
    """Item index -> item id, the whole catalogue."""
    user_ids: list[str]
    """User index -> user id."""
    positives: np.ndarray
    """Int32 [P]: item indices of all positives, by user, in the order (time, file row)."""
    positive_times: np.ndarray
    """Int64 [P]: their times, milliseconds."""
    user_starts: np.ndarray
    """Int32 [U+1]: where each user's positives start."""
    train_ends: np.ndarray
    """Int32 [U]: positives from user_starts to here are training data; no later one is."""
    session_items: np.ndarray
    """Int32 [Q]: the target items of all examples."""
    train: ExampleSet
    """Training examples: targets of at most num_session_items."""
    valid: ExampleSet
    """Validation examples: whole sessions, which may be longer than num_session_items."""
    test: ExampleSet
    """Test examples, likewise."""
    train_item_counts: np.ndarray
    """Int32 [I]: how often each item occurs among the training positives."""
    num_history_items: int
    """History items n that the sessions were made for."""
    num_session_items: int
    """Session items m that the sessions were made for."""
    counts: dict[str, int]
    """How many events, positives and sessions every rule and filter let through, in order."""


def build_sessions(log: InteractionLog, config: SessionConfig) -> SessionData:
    """Makes sessions, filters and splits them.

    Args:
      log: the checked log.
      config: session rule, filter, split.

    Returns:
      The positives and the examples of the splits.

    Raises:
      ConfigError: if a setting needs a column that the log does not have.
      DataError: if nothing is left of a split.
    """
    counts: dict[str, int] = {}
    events = sort_events(log, config, counts)
    build = _blocks if config.rule is SessionRule.FIXED_BLOCKS else _given_sessions
    parts, cuts = build(events, config, counts)
    parts = session_quality.keep_watched(parts, config.quality, counts)
    parts = {name: without_repeats(part, events) for name, part in parts.items()}
    parts["train"] = cut_long(parts["train"], config.session_items)
    for name, part in parts.items():
        counts[name] = len(part.user)
    for name, part in parts.items():
        if not len(part.user):
            raise DataError(
                f"'{log.source}': no session is left for '{name}' ({_told(counts)}); loosen the "
                "filter, the split or min_history"
            )
    return _session_data(events, parts, cuts, config, counts)


def examples(data: SessionData, split: str) -> ExampleSet:
    """Returns the examples of "train", "valid" or "test".

    Raises:
      ConfigError: for any other name.
    """
    if split not in SPLITS:
        raise ConfigError(f"no split '{split}'. {nearest_name(split, SPLITS)}")
    return getattr(data, split)


def histories(
    data: SessionData,
    split: str,
    num_items: int | None = None,
    indices: Int[np.ndarray, "S"] | None = None,
) -> Int[np.ndarray, "S N"]:
    """Returns the last items of each history, right-aligned: column N-1 is the most recent.

    Args:
      data: the sessions.
      split: "train", "valid" or "test".
      num_items: N; None means the number that the sessions were made for, 0 the longest history.
      indices: which examples; None means all.

    Returns:
      Int32 item indices, -1 where there is no item.
    """
    chosen = examples(data, split)
    start_S, end_S = chosen.history_start, chosen.history_end
    if num_items == 0:
        num_items = int((end_S - start_S).max(initial=1))
    if indices is not None:
        start_S, end_S = start_S[indices], end_S[indices]
    columns_N = np.arange(-(num_items or data.num_history_items), 0)
    place_SN = end_S[:, None] + columns_N
    return np.where(
        place_SN >= start_S[:, None], data.positives[np.maximum(place_SN, 0)], -1
    ).astype(np.int32)


def longest_history(data: SessionData) -> int:
    """Items of the longest history of any split: a width that all histories share."""
    lengths = [
        (part.history_end - part.history_start).max(initial=1)
        for part in (examples(data, split) for split in SPLITS)
    ]
    return int(max(lengths))


def targets(
    data: SessionData,
    split: str,
    num_items: int | None = None,
    indices: Int[np.ndarray, "S"] | None = None,
) -> Int[np.ndarray, "S M"]:
    """Returns the first items of each target, left-aligned, in time order.

    Args:
      data: the sessions.
      split: "train", "valid" or "test".
      num_items: M; None means the number that the sessions were made for, 0 the longest target.
      indices: which examples; None means all.

    Returns:
      Int32 item indices, -1 where there is no item.
    """
    chosen = examples(data, split)
    start_S, end_S = chosen.target_start, chosen.target_end
    if num_items == 0:
        num_items = int((end_S - start_S).max(initial=1))
    if indices is not None:
        start_S, end_S = start_S[indices], end_S[indices]
    place_SM = start_S[:, None] + np.arange(num_items or data.num_session_items)
    last = len(data.session_items) - 1
    return np.where(
        place_SM < end_S[:, None], data.session_items[np.minimum(place_SM, last)], -1
    ).astype(np.int32)


def describe_counts(data: SessionData) -> str:
    """Returns a table of what every rule and filter let through."""
    width = max(len(name) for name in data.counts)
    return "\n".join(f"{name:<{width}}  {count:>12,}" for name, count in data.counts.items())


def save_sessions(data: SessionData, folder: str | os.PathLike[str]) -> None:
    """Writes sessions as `sessions.npz` and `sessions.json`, for `load_sessions`."""
    target = pathlib.Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    arrays, rest = {}, {}
    for field in dataclasses.fields(data):
        value = getattr(data, field.name)
        if isinstance(value, ExampleSet):
            parts = dataclasses.asdict(value)
            arrays |= {f"{field.name}.{name}": array for name, array in parts.items()}
        elif isinstance(value, np.ndarray):
            arrays[field.name] = value
        else:
            rest[field.name] = value
    np.savez(target / "sessions.npz", **arrays)
    (target / "sessions.json").write_text(json.dumps(rest), encoding="utf-8")


def load_sessions(folder: str | os.PathLike[str]) -> SessionData:
    """Reads what `save_sessions` wrote.

    Raises:
      DataError: if a file is missing or cannot be read.
    """
    origin = pathlib.Path(folder)
    try:
        fields = json.loads((origin / "sessions.json").read_text(encoding="utf-8"))
        with np.load(origin / "sessions.npz") as arrays:
            for name in SPLITS:
                parts = [field.name for field in dataclasses.fields(ExampleSet)]
                fields[name] = ExampleSet(**{part: arrays[f"{name}.{part}"] for part in parts})
            fields |= {name: arrays[name] for name in arrays.files if "." not in name}
        return SessionData(**fields)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"'{origin}' does not hold whole sessions ({error}); make them again"
        ) from error


def _blocks(
    events: Events, config: SessionConfig, counts: dict[str, int]
) -> tuple[dict[str, Sessions], splits.Cuts]:
    """Cuts blocks out of each split's part of every user's positives."""
    if config.split.rule is SplitRule.TEMPORAL:
        cuts = splits.temporal_cuts(events, config.split)
    else:
        cuts = splits.last_block_cuts(events, config.session_items)
    slides = config.train_windows is TrainWindows.SLIDING
    places = [events.user_starts[:-1], cuts.valid, cuts.test, events.user_starts[1:]]
    parts = {}
    for number, name in enumerate(SPLITS):
        part = block_sessions(
            events,
            places[number],
            places[number + 1],
            num_items=config.session_items,
            stride=config.train_stride if slides and name == "train" else config.session_items,
            min_history=config.min_history,
        )
        counts[f"{name}_blocks"] = len(part.user)
        parts[name] = session_quality.keep_complete(part, config.quality, counts, f"{name}_")
    return parts, cuts


def _given_sessions(
    events: Events, config: SessionConfig, counts: dict[str, int]
) -> tuple[dict[str, Sessions], splits.Cuts]:
    """Groups events into sessions, filters and splits them."""
    sessions = event_sessions(events, config, counts)
    counts["sessions_with_positive"] = len(sessions.user)
    size_S = sessions.history_end - events.user_starts[sessions.user]
    sessions = select(sessions, size_S >= config.min_history)
    counts["sessions_with_history"] = len(sessions.user)
    sessions = session_quality.keep_complete(sessions, config.quality, counts)
    return splits.split_sessions(sessions, events, config, counts)


def _session_data(
    events: Events,
    parts: dict[str, Sessions],
    cuts: splits.Cuts,
    config: SessionConfig,
    counts: dict[str, int],
) -> SessionData:
    """Lays the splits' targets behind one another and counts the training items."""
    positives_P = events.item[events.positive_event]
    place_P = np.arange(len(positives_P))
    is_train_P = place_P < cuts.valid[events.user[events.positive_event]]
    all_positions_Q = np.concatenate([part.positions for part in parts.values()])
    if len(all_positions_Q) >= 2**31:
        raise DataError(
            f"{len(all_positions_Q)} target items are more than 2**31; raise train_stride"
        )
    sets, before = {}, 0
    for name, part in parts.items():
        offsets = (part.offsets + before).astype(np.int32)
        sets[name] = ExampleSet(
            user=part.user.astype(np.int32),
            history_start=events.user_starts[part.user].astype(np.int32),
            history_end=part.history_end.astype(np.int32),
            target_start=offsets[:-1],
            target_end=offsets[1:],
        )
        before += len(part.positions)
    return SessionData(
        item_ids=events.item_ids,
        user_ids=events.user_ids,
        positives=positives_P.astype(np.int32),
        positive_times=events.time[events.positive_event],
        user_starts=events.user_starts.astype(np.int32),
        train_ends=cuts.valid.astype(np.int32),
        session_items=positives_P[all_positions_Q].astype(np.int32),
        train_item_counts=np.bincount(positives_P[is_train_P], minlength=events.num_items).astype(
            np.int32
        ),
        num_history_items=config.history_items,
        num_session_items=config.session_items,
        counts=counts,
        **sets,
    )


def _told(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())
