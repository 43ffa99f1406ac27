"""Session rules: which positives belong together, and where the history before them ends.

Under request ids, equal timestamps and time gaps the log itself says what a session is, and its
history ends strictly (in time) before its first event. Under fixed blocks a session is a run of
consecutive positives in the order (time, file row), and its history ends before its first item.

Dimension key: E events, S sessions, Q target items of all sessions, U users, M session items.
"""

import dataclasses

import numpy as np

from rec_jax.data.events import Events
from rec_jax.data.session_config import SessionConfig, SessionRule

_MILLISECONDS_PER_MINUTE = 60_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sessions:
    """Sessions in the order (user, start), each with at least one target item."""

    user: np.ndarray
    """Int32 [S]: user index."""
    history_end: np.ndarray
    """Int64 [S]: the history is the user's positives before this place among all positives."""
    offsets: np.ndarray
    """Int64 [S+1]: where each session's targets start in `positions`."""
    positions: np.ndarray
    """Int64 [Q]: places of the targets among all positives, rising within a session."""
    num_consumed: np.ndarray
    """Int64 [S]: distinct items consumed."""
    watch_ms: np.ndarray
    """Float64 [S]: total watch time, milliseconds."""
    is_strong: np.ndarray
    """Bool [S]: has an event with strong feedback."""

    @property
    def first(self) -> np.ndarray:
        """Int64 [S]: place of the first target."""
        return self.positions[self.offsets[:-1]]

    @property
    def last(self) -> np.ndarray:
        """Int64 [S]: place of the last target."""
        return self.positions[self.offsets[1:] - 1]


def event_sessions(events: Events, config: SessionConfig, counts: dict[str, int]) -> Sessions:
    """Groups events into sessions by request id, equal timestamp or time gap.

    Args:
      events: the sorted events.
      config: the rule.
      counts: gets the numbers of sessions, and of events without a request id.

    Returns:
      The sessions that have a positive.
    """
    session_E, num_sessions = _number_sessions(events, config, counts)
    inside = np.flatnonzero(session_E >= 0)
    session_E = session_E[inside]
    first_event_S = np.full(num_sessions, len(events.user), np.int64)
    np.minimum.at(first_event_S, session_E, inside)
    run_start_E = _first_of_same_time(events)
    consumed = events.is_consumed[inside]
    is_new_item = _first_in_session(session_E[consumed], events.item[inside][consumed], events)
    sessions = Sessions(
        user=events.user[first_event_S],
        history_end=events.position[run_start_E[first_event_S]],
        num_consumed=np.bincount(session_E[consumed][is_new_item], minlength=num_sessions),
        watch_ms=np.bincount(session_E, events.watch_ms[inside], num_sessions),
        is_strong=np.bincount(session_E, events.is_strong[inside], num_sessions) > 0,
        **_targets_of_events(events, session_E, inside, num_sessions),
    )
    counts["sessions"] = num_sessions
    return select(sessions, np.diff(sessions.offsets) > 0)


def block_sessions(
    events: Events,
    region_start: np.ndarray,
    region_stop: np.ndarray,
    *,
    num_items: int,
    stride: int,
    min_history: int,
) -> Sessions:
    """Cuts blocks of consecutive positives from one region per user, aligned to its end.

    Args:
      events: the sorted events.
      region_start: Int64 [U], place of the first positive that may be a target.
      region_stop: Int64 [U], place after the last one.
      num_items: targets of a block, m.
      stride: positives from one block to the next; m makes them disjoint.
      min_history: a block with fewer positives of its user before it is not made.

    Returns:
      The blocks, all of exactly m targets.
    """
    earliest_U = np.maximum(region_start, events.user_starts[:-1] + min_history)
    num_blocks_U = np.maximum((region_stop - num_items - earliest_U) // stride + 1, 0)
    user_S = np.repeat(np.arange(len(num_blocks_U), dtype=np.int32), num_blocks_U)
    block_stops_U = np.cumsum(num_blocks_U)
    from_end_S = block_stops_U[user_S] - 1 - np.arange(len(user_S))
    first_S = region_stop[user_S] - num_items - from_end_S * stride
    positions_SM = first_S[:, None] + np.arange(num_items)
    event_SM = events.positive_event[positions_SM]
    session_SM = np.broadcast_to(np.arange(len(user_S))[:, None], positions_SM.shape)
    is_new = _first_in_session(session_SM.ravel(), events.item[event_SM].ravel(), events)
    return Sessions(
        user=user_S,
        history_end=first_S,
        offsets=np.arange(len(user_S) + 1) * num_items,
        positions=positions_SM.ravel(),
        num_consumed=(events.is_consumed[event_SM] & is_new.reshape(positions_SM.shape)).sum(1),
        watch_ms=events.watch_ms[event_SM].sum(1),
        is_strong=np.any(events.is_strong[event_SM], axis=1),
    )


def select(sessions: Sessions, keep: np.ndarray) -> Sessions:
    """Keeps the sessions where `keep` (Bool [S]) holds."""
    sizes_S = np.diff(sessions.offsets)
    return Sessions(
        user=sessions.user[keep],
        history_end=sessions.history_end[keep],
        offsets=np.concatenate([[0], np.cumsum(sizes_S[keep])]),
        positions=sessions.positions[np.repeat(keep, sizes_S)],
        num_consumed=sessions.num_consumed[keep],
        watch_ms=sessions.watch_ms[keep],
        is_strong=sessions.is_strong[keep],
    )


def without_repeats(sessions: Sessions, events: Events) -> Sessions:
    """Keeps an item only once in a session, at its first place."""
    sizes_S = np.diff(sessions.offsets)
    session_Q = np.repeat(np.arange(len(sizes_S)), sizes_S)
    item_Q = events.item[events.positive_event[sessions.positions]]
    is_new_Q = _first_in_session(session_Q, item_Q, events)
    sizes_S = np.bincount(session_Q[is_new_Q], minlength=len(sizes_S))
    return dataclasses.replace(
        sessions,
        offsets=np.concatenate([[0], np.cumsum(sizes_S)]),
        positions=sessions.positions[is_new_Q],
    )


def cut_long(sessions: Sessions, num_items: int) -> Sessions:
    """Cuts sessions of more than `num_items` targets into pieces that keep the history."""
    sizes_S = np.diff(sessions.offsets)
    num_pieces_S = -(-sizes_S // num_items)
    owner = np.repeat(np.arange(len(sizes_S)), num_pieces_S)
    piece = np.arange(len(owner)) - np.repeat(np.cumsum(num_pieces_S) - num_pieces_S, num_pieces_S)
    starts = sessions.offsets[:-1][owner] + piece * num_items
    return Sessions(
        user=sessions.user[owner],
        history_end=sessions.history_end[owner],
        offsets=np.concatenate([starts, sessions.offsets[-1:]]),
        positions=sessions.positions,
        num_consumed=sessions.num_consumed[owner],
        watch_ms=sessions.watch_ms[owner],
        is_strong=sessions.is_strong[owner],
    )


def _number_sessions(
    events: Events, config: SessionConfig, counts: dict[str, int]
) -> tuple[np.ndarray, int]:
    """Returns the session of each event, numbered by first event (-1: none), and their number."""
    if config.rule is SessionRule.REQUEST_ID:
        has_request_E = events.request >= 0
        counts["events_without_request_id"] = int((~has_request_E).sum())
        key_E = events.user.astype(np.int64) * (events.request.max() + 1) + events.request
        _, first, inverse = np.unique(key_E[has_request_E], return_index=True, return_inverse=True)
        rank = np.empty(len(first), np.int64)
        rank[np.argsort(first)] = np.arange(len(first))
        session_E = np.full(len(events.user), -1, np.int64)
        session_E[has_request_E] = rank[inverse]
        return session_E, len(first)
    pause_E = np.diff(events.time)
    longest = 0
    if config.rule is SessionRule.TIME_GAP:
        longest = config.gap_minutes * _MILLISECONDS_PER_MINUTE
    is_start_E = np.ones(len(events.user), bool)
    is_start_E[1:] = (np.diff(events.user) != 0) | (pause_E > longest)
    return np.cumsum(is_start_E) - 1, int(is_start_E.sum())


def _first_of_same_time(events: Events) -> np.ndarray:
    """Int64 [E]: the first event of the same user at the same time."""
    is_start_E = np.ones(len(events.user), bool)
    is_start_E[1:] = (np.diff(events.user) != 0) | (np.diff(events.time) != 0)
    return np.maximum.accumulate(np.where(is_start_E, np.arange(len(is_start_E)), 0))


def _targets_of_events(
    events: Events, session_E: np.ndarray, inside: np.ndarray, num_sessions: int
) -> dict[str, np.ndarray]:
    """Collects each session's positives in time order."""
    is_positive_E = np.zeros(len(events.user), bool)
    is_positive_E[events.positive_event] = True
    is_target = is_positive_E[inside]
    session_Q, event_Q = session_E[is_target], inside[is_target]
    order = np.argsort(session_Q, kind="stable")
    sizes_S = np.bincount(session_Q, minlength=num_sessions)
    return {
        "offsets": np.concatenate([[0], np.cumsum(sizes_S)]),
        "positions": events.position[event_Q[order]],
    }


def _first_in_session(session: np.ndarray, item: np.ndarray, events: Events) -> np.ndarray:
    """Marks the first occurrence of every (session, item)."""
    key = session.astype(np.int64) * events.num_items + item
    is_first = np.zeros(len(key), bool)
    is_first[np.unique(key, return_index=True)[1]] = True
    return is_first
