"""Delivered sessions: what a user was shown together, the history before it, and its labels.

Unlike the examples that OneRec learns to write, which are a session's positives, a delivered
session has every item of the log, liked or not. What is a session follows the rule of
`SessionConfig`; under fixed blocks it is the log's session ids where it has them, and M consecutive
events of a user where it does not. A session of more than M events is cut into pieces of M that
share the history before the session. Items, users and histories are numbered as in the run's
`SessionData`, and a history holds positives strictly before the session.

Dimension key: E events, P positives, S sessions, M session items, N history items, T targets,
U users, I items.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import polars as pl

from core_jax.arrays import Bool, Float, Int
from core_jax.errors import DataError
from rec_jax.data.events import Events, sort_events
from rec_jax.data.interactions import InteractionLog
from rec_jax.data.session_config import SessionConfig, SessionRule, SplitRule, TrainWindows
from rec_jax.data.sessions import SessionData
from rec_jax.data.splits import cut_times
from rec_jax.reward.config import TargetConfig
from rec_jax.reward.labels import (
    Labels,
    References,
    SessionRows,
    columns_of,
    make_labels,
    make_references,
)

_MILLISECONDS_PER_MINUTE = 60_000
_FOLD_SALT, _VALID_SALT = 0x0F01D, 0x5A11D


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardData:
    """Delivered sessions in the order (user, start). NumPy arrays."""

    user: np.ndarray
    """Int32 [S]: user number."""
    start_time: np.ndarray
    """Int64 [S]: time of the piece's first event, milliseconds."""
    end_time: np.ndarray
    """Int64 [S]: time of its last event."""
    history_start: np.ndarray
    """Int64 [S]: where the user's positives start among all positives."""
    history_end: np.ndarray
    """Int64 [S]: the history is the positives from history_start to here."""
    items: np.ndarray
    """Int32 [S, M]: delivered items in the order (time, file row), left-aligned; -1 is padding."""
    labels: Labels
    """Labels [S, T]."""
    is_train: np.ndarray
    """Bool [S]: the whole session lies in the training period; the others are held out."""
    positives: np.ndarray
    """Int32 [P]: item numbers of all positives."""
    references: References
    """What ranks among the labels were measured against."""
    counts: dict[str, int]
    """Events and sessions that every step let through, in order."""


def build_reward_data(
    log: InteractionLog,
    config: SessionConfig,
    data: SessionData,
    targets: Sequence[TargetConfig],
    *,
    session_items: int,
    references: References | None = None,
) -> RewardData:
    """Makes delivered sessions, their histories, labels and split.

    A session is training data if every event of it (of all its pieces) lies before the run's cut:
    before the moment of a temporal split, or before the user's first held-out positive.

    Args:
      log: the checked log.
      config: the run's session rule, positives, split and least history.
      data: the run's sessions, made of this log with this configuration.
      targets: the heads.
      session_items: M.
      references: reference values of an earlier call; None measures them on this log's training
        sessions.

    Returns:
      The sessions.

    Raises:
      ConfigError: a target or rule needs a column that the log does not have.
      DataError: the log is not the one that `data` was made of, or no session is left.
    """
    columns = columns_of(targets, log)
    counts: dict[str, int] = {}
    events = sort_events(log, config, counts)
    _check_same_log(events, data, log.source)
    session_E = _session_numbers(log, events, config, session_items, counts)
    is_train_E = _is_before_cut(events, config, data)
    pieces = _cut_pieces(session_E, session_items)
    user_S = events.user[pieces.event_SM[:, 0]]
    history_start_S = events.user_starts[user_S]
    history_end_S = _history_ends(events, pieces)
    is_kept_S = history_end_S - history_start_S >= config.min_history
    counts["delivered_sessions"] = len(user_S)
    counts["with_min_history"] = int(is_kept_S.sum())
    if not is_kept_S.any():
        raise DataError(
            f"'{log.source}': no delivered session has {config.min_history} positives before it "
            f"({counts}); lower min_history or change the session rule"
        )
    event_SM = pieces.event_SM[is_kept_S]
    is_item_SM = event_SM >= 0
    has_late_event = np.zeros(int(session_E.max()) + 1, bool)
    has_late_event[session_E[(session_E >= 0) & ~is_train_E]] = True
    is_train_S = ~has_late_event[session_E[event_SM[:, 0]]]
    counts["train"], counts["test"] = int(is_train_S.sum()), int((~is_train_S).sum())
    rows = SessionRows(
        columns={
            name: np.where(is_item_SM, held_E[event_SM], np.nan)
            for name, held_E in _columns(log, events, columns).items()
        },
        is_item=is_item_SM,
        user=user_S[is_kept_S],
        is_train=is_train_S,
    )
    if references is None:
        references = make_references(targets, rows)
    last_S = event_SM[np.arange(len(event_SM)), is_item_SM.sum(axis=1) - 1]
    return RewardData(
        user=rows.user.astype(np.int32),
        start_time=events.time[event_SM[:, 0]],
        end_time=events.time[last_S],
        history_start=history_start_S[is_kept_S],
        history_end=history_end_S[is_kept_S],
        items=np.where(is_item_SM, events.item[event_SM], -1).astype(np.int32),
        labels=make_labels(targets, rows, references),
        is_train=is_train_S,
        positives=data.positives,
        references=references,
        counts=counts,
    )


def histories(
    data: RewardData, num_items: int, indices: Int[np.ndarray, "S"] | None = None
) -> Int[np.ndarray, "S N"]:
    """The last items of each history, right-aligned: column N-1 is the most recent.

    Args:
      data: the sessions.
      num_items: N.
      indices: which sessions; None means all.

    Returns:
      Int32 item numbers, -1 where there is no item.
    """
    start_S, end_S = data.history_start, data.history_end
    if indices is not None:
        start_S, end_S = start_S[indices], end_S[indices]
    place_SN = end_S[:, None] + np.arange(-num_items, 0)
    held_SN = data.positives[np.maximum(place_SN, 0)]
    return np.where(place_SN >= start_S[:, None], held_SN, -1).astype(np.int32)


def item_durations(
    log: InteractionLog, config: SessionConfig, data: SessionData
) -> Float[np.ndarray, "I"] | None:
    """Mean duration in milliseconds of every item over the events of the training period.

    Args:
      log: the checked log.
      config: the run's session configuration.
      data: the run's sessions.

    Returns:
      Float64, NaN for an item that the training period does not show; None where the log has no
      durations or none in that period.
    """
    if "duration_ms" not in log.interactions.columns:
        return None
    events = sort_events(log, config, {})
    duration_E = _columns(log, events, ["duration_ms"])["duration_ms"]
    counts_E = _is_before_cut(events, config, data) & ~np.isnan(duration_E)
    if not counts_E.any():
        return None
    item_E, num_items = events.item[counts_E], len(data.item_ids)
    total_I = np.bincount(item_E, weights=duration_E[counts_E], minlength=num_items)
    count_I = np.bincount(item_E, minlength=num_items)
    return np.where(count_I > 0, total_I / np.maximum(count_I, 1), np.nan)


def in_fold(users: Int[np.ndarray, "S"], fold: int, num_folds: int) -> Bool[np.ndarray, "S"]:
    """Whether users belong to a fold: `hash(user number) mod num_folds == fold`.

    The hash has no seed, so that folds of several models fit together: they are disjoint and
    cover all users.

    >>> users = np.arange(100)
    >>> folds = [in_fold(users, fold, 3) for fold in range(3)]
    >>> bool((sum(fold.astype(int) for fold in folds) == 1).all())
    True
    """
    return _hash(users, _FOLD_SALT) % np.uint64(num_folds) == fold


def chooses_checkpoint(users: Int[np.ndarray, "S"], share: float) -> Bool[np.ndarray, "S"]:
    """Whether users are the share whose training sessions are held back to choose a checkpoint."""
    return _hash(users, _VALID_SALT) < np.uint64(share * 2**53) << np.uint64(11)


def _hash(users: np.ndarray, salt: int) -> np.ndarray:
    """Uint64 words of user numbers (the finaliser of SplitMix64, Steele et al., 2014)."""
    with np.errstate(over="ignore"):
        word = users.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(salt)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            word = (word ^ (word >> np.uint64(shift))) * np.uint64(factor)
    return word ^ (word >> np.uint64(31))


@dataclasses.dataclass(frozen=True)
class _Pieces:
    """Pieces of at most M events in the order of their first events."""

    event_SM: np.ndarray
    """Int64 [S, M]: the events of each piece, -1 is padding."""
    first_event_S: np.ndarray
    """Int64 [S]: the first event of the whole session."""


def _check_same_log(events: Events, data: SessionData, source: str) -> None:
    same = (
        events.item_ids == data.item_ids
        and events.user_ids == data.user_ids
        and np.array_equal(events.item[events.positive_event], data.positives)
    )
    if not same:
        raise DataError(
            f"the run's sessions were not made of the log '{source}' with this session "
            "configuration; run the prepare stage again"
        )


def _session_numbers(
    log: InteractionLog,
    events: Events,
    config: SessionConfig,
    session_items: int,
    counts: dict[str, int],
) -> np.ndarray:
    """Int64 [E]: the session of each event, -1 where it has none."""
    has_ids = "session_id" in log.interactions.columns
    is_new_user_E = np.ones(len(events.user), bool)
    is_new_user_E[1:] = np.diff(events.user) != 0
    if config.rule is SessionRule.REQUEST_ID or (
        config.rule is SessionRule.FIXED_BLOCKS and has_ids
    ):
        request_E = events.request
        if config.rule is not SessionRule.REQUEST_ID:
            numbered = dataclasses.replace(
                config, rule=SessionRule.REQUEST_ID, train_windows=TrainWindows.DISJOINT
            )
            request_E = sort_events(log, numbered, {}).request
        has_request_E = request_E >= 0
        counts["events_without_session_id"] = int((~has_request_E).sum())
        if not has_request_E.any():
            raise DataError(
                f"'{log.source}': no event has a session_id; leave the column out, or choose "
                "another session rule"
            )
        key_E = events.user.astype(np.int64) * (request_E.max() + 1) + request_E
        session_E = np.full(len(key_E), -1, np.int64)
        session_E[has_request_E] = np.unique(key_E[has_request_E], return_inverse=True)[1]
        return session_E
    if config.rule is SessionRule.FIXED_BLOCKS:
        place_E = np.arange(len(events.user))
        first_E = np.maximum.accumulate(np.where(is_new_user_E, place_E, 0))
        return np.cumsum((place_E - first_E) % session_items == 0) - 1
    longest = 0.0
    if config.rule is SessionRule.TIME_GAP:
        longest = config.gap_minutes * _MILLISECONDS_PER_MINUTE
    is_start_E = is_new_user_E.copy()
    is_start_E[1:] |= np.diff(events.time) > longest
    return np.cumsum(is_start_E) - 1


def _is_before_cut(events: Events, config: SessionConfig, data: SessionData) -> np.ndarray:
    """Bool [E]: the event lies in the training period."""
    if config.split.rule is SplitRule.TEMPORAL:
        return events.time < cut_times(events, config.split)[0]
    first_held_out_U = np.full(len(data.train_ends), len(events.user), np.int64)
    has_cut_U = data.train_ends < data.user_starts[1:]
    first_held_out_U[has_cut_U] = events.positive_event[data.train_ends[has_cut_U]]
    return np.arange(len(events.user)) < first_held_out_U[events.user]


def _cut_pieces(session_E: np.ndarray, size: int) -> _Pieces:
    """Gathers sessions and cuts those of more than `size` events."""
    inside = np.flatnonzero(session_E >= 0)
    order = inside[np.argsort(session_E[inside], kind="stable")]
    session = session_E[order]
    is_start = np.ones(len(order), bool)
    is_start[1:] = np.diff(session) != 0
    first = np.maximum.accumulate(np.where(is_start, np.arange(len(order)), 0))
    place = np.arange(len(order)) - first
    piece = np.cumsum(place % size == 0) - 1
    event_SM = np.full((piece[-1] + 1, size), -1, np.int64)
    event_SM[piece, place % size] = order
    first_event_S = order[first[place % size == 0]]
    by_start = np.argsort(event_SM[:, 0], kind="stable")
    return _Pieces(event_SM[by_start], first_event_S[by_start])


def _history_ends(events: Events, pieces: _Pieces) -> np.ndarray:
    """Int64 [S]: positives strictly before the whole session in time, under every rule."""
    is_start_E = np.ones(len(events.user), bool)
    is_start_E[1:] = (np.diff(events.user) != 0) | (np.diff(events.time) != 0)
    run_start_E = np.maximum.accumulate(np.where(is_start_E, np.arange(len(is_start_E)), 0))
    return events.position[run_start_E[pieces.first_event_S]]


def _columns(log: InteractionLog, events: Events, names: list[str]) -> dict[str, np.ndarray]:
    """Float64 [E] per column, in the order of `Events`; NaN where absent."""
    place = pl.int_range(pl.len(), dtype=pl.Int32)
    frame = log.interactions.select(
        "user_id", "timestamp", "row", *[pl.col(name).cast(pl.Float64) for name in names]
    ).join(log.users.select("user_id", user=place), on="user_id")
    kept_U = np.zeros(len(events.user_ids), bool)
    kept_U[events.user] = True
    frame = frame.filter(pl.Series(kept_U[frame["user"].to_numpy()]))
    frame = frame.sort("user", "timestamp", "row")
    assert np.array_equal(frame["timestamp"].to_numpy(), events.time)
    return {name: frame[name].fill_null(float("nan")).to_numpy() for name in names}
