"""Train, validation and test: for every user two places that part the positives.

What lies before the first place is training, what lies from the second place on is test. A
session whose targets lie on both sides of a place belongs nowhere and is dropped and counted, so
no training target or history holds anything of the time that is held out.

Dimension key: P positives, S sessions, U users.
"""

import dataclasses

import numpy as np

from core_jax.errors import DataError
from rec_jax.data.events import Events
from rec_jax.data.session_config import SessionConfig, SplitConfig, SplitRule, parse_time
from rec_jax.data.session_rules import Sessions, select

SPLITS = ("train", "valid", "test")
"""The names of the splits."""

_MILLISECONDS_PER_DAY = 86_400_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cuts:
    """Two places per user among all positives."""

    valid: np.ndarray
    """Int64 [U]: training ends, validation starts."""
    test: np.ndarray
    """Int64 [U]: validation ends, test starts."""


def cut_times(events: Events, config: SplitConfig) -> tuple[int, int]:
    """Returns the moments (milliseconds) at which validation and test start, of a temporal split.

    Raises:
      DataError: if the moments do not lie inside the log.
    """
    first, last = int(events.time.min()), int(events.time.max())
    if config.valid_from:
        valid, test = parse_time(config.valid_from), parse_time(config.test_from)
    else:
        last_midnight = last - last % _MILLISECONDS_PER_DAY
        test = last_midnight - (config.test_days - 1) * _MILLISECONDS_PER_DAY
        valid = test - config.valid_days * _MILLISECONDS_PER_DAY
    if not first < valid < test <= last:
        raise DataError(
            f"the temporal split starts validation at {valid} and test at {test}, but the log "
            f"runs from {first} to {last} (milliseconds); choose moments inside the log or fewer "
            "valid_days and test_days"
        )
    return valid, test


def temporal_cuts(events: Events, config: SplitConfig) -> Cuts:
    """Returns where each user's positives pass the two moments of a temporal split."""
    user_P = events.user[events.positive_event]
    time_P = events.time[events.positive_event]
    num_users = len(events.user_ids)
    starts_U = events.user_starts[:-1]
    places = [
        starts_U + np.bincount(user_P[time_P < moment], minlength=num_users)
        for moment in cut_times(events, config)
    ]
    return Cuts(valid=places[0], test=places[1])


def last_block_cuts(events: Events, num_items: int) -> Cuts:
    """Returns the places that hold out a user's last block for test and the one before it.

    Users with fewer than two blocks of `num_items` positives are all training.
    """
    starts_U, stops_U = events.user_starts[:-1], events.user_starts[1:]
    size_U = np.where(stops_U - starts_U >= 2 * num_items, num_items, 0)
    return Cuts(valid=stops_U - 2 * size_U, test=stops_U - size_U)


def split_sessions(
    sessions: Sessions, events: Events, config: SessionConfig, counts: dict[str, int]
) -> tuple[dict[str, Sessions], Cuts]:
    """Splits sessions that the log itself defines.

    Under leave-last-block-out, the last session of a user with at least three is test and the
    one before it validation; all others are training.

    Args:
      sessions: sessions in the order (user, start).
      events: the sorted events.
      config: the split rule.
      counts: gets the number of sessions that straddle a cut.

    Returns:
      The sessions of each split, and the cuts.
    """
    if config.split.rule is SplitRule.TEMPORAL:
        cuts = temporal_cuts(events, config.split)
        label_S = (sessions.first >= cuts.valid[sessions.user]).astype(np.int8)
        label_S += sessions.first >= cuts.test[sessions.user]
    else:
        label_S, cuts = _label_last(sessions, events)
    stop_S = np.stack([cuts.valid, cuts.test, events.user_starts[1:]])[label_S, sessions.user]
    is_inside_S = sessions.last < stop_S
    counts["sessions_across_a_cut"] = int((~is_inside_S).sum())
    parts = {
        name: select(sessions, is_inside_S & (label_S == number))
        for number, name in enumerate(SPLITS)
    }
    return parts, cuts


def _label_last(sessions: Sessions, events: Events) -> tuple[np.ndarray, Cuts]:
    """Labels sessions (0 train, 1 valid, 2 test) and cuts where the held-out sessions start."""
    num_users = len(events.user_ids)
    order = np.lexsort((sessions.first, sessions.history_end, sessions.user))
    user_S = sessions.user[order]
    size_U = np.bincount(user_S, minlength=num_users)
    from_end_S = np.cumsum(size_U)[user_S] - 1 - np.arange(len(user_S))
    ordered_label_S = np.where(size_U[user_S] >= 3, np.maximum(2 - from_end_S, 0), 0)
    label_S = np.empty(len(user_S), np.int8)
    label_S[order] = ordered_label_S
    places = []
    for number in (1, 2):
        place_U = events.user_starts[1:].copy()
        is_held_out = label_S == number
        place_U[sessions.user[is_held_out]] = sessions.history_end[is_held_out]
        places.append(place_U)
    return label_S, Cuts(valid=places[0], test=places[1])
