"""Sessions to compare with: random, most popular, and an oracle that knows the world.

Dimension key: S sessions or the requests they answer, H excluded items, M session items, I items.
"""

import numpy as np

from core_jax.arrays import Float, Int
from core_jax.errors import DataError
from rec_jax.data.simulator.noise import Stream, keyed_bits
from rec_jax.data.simulator.response import (
    NO_ITEM,
    item_watch_logits,
    mean_ratio_and_staying,
)
from rec_jax.data.simulator.world import World, check_numbers, taste_at

MAX_PASSES = 10
"""Improvement passes of the oracle; it stops before when a pass changes nothing."""
_AT_ONCE = 1 << 20
"""Scores held in memory at a time."""


def random_sessions(
    world: World,
    users: Int[np.ndarray, " S"],
    times_ms: Int[np.ndarray, " S"],
    excluded: Int[np.ndarray, "S H"],
    *,
    session_items: int,
    seed: int,
) -> Int[np.ndarray, "S M"]:
    """Distinct items, uniform over those not excluded; a function of (seed, user, time).

    Args:
      world: the world.
      users: user numbers.
      times_ms: when the sessions are delivered.
      excluded: item numbers that must not be in the session, padded with -1.
      session_items: length M of a session.
      seed: seed of the draw.

    Returns:
      World item numbers.

    Raises:
      DataError: an item that the world does not have, or too few that are not excluded.
    """
    sessions = np.empty((len(users), session_items), np.int64)
    items_I = np.arange(len(world.item_ids))
    for part in _parts(len(users), len(items_I)):
        keys = (seed, users[part, None], times_ms[part, None], items_I)
        scores_SI = keyed_bits(Stream.RANDOM_POLICY, *keys).astype(np.float64)
        sessions[part] = _best(world, scores_SI, excluded[part], session_items)
    return sessions


def popularity_sessions(
    world: World,
    item_scores: Float[np.ndarray, " I"],
    excluded: Int[np.ndarray, "S H"],
    *,
    session_items: int,
) -> Int[np.ndarray, "S M"]:
    """The items of the highest scores that are not excluded; of equal ones the lower number.

    Args:
      world: the world.
      item_scores: a score per world item, for example how many liked it in the training log.
      excluded: item numbers that must not be in the session, padded with -1.
      session_items: length M of a session.

    Returns:
      World item numbers, best first.

    Raises:
      DataError: scores that are not one finite number per item of the world, an item that the
        world does not have, or too few that are not excluded.
    """
    if item_scores.shape != world.item_ids.shape or not np.isfinite(item_scores).all():
        raise DataError(
            f"item_scores have shape {item_scores.shape}, {np.isfinite(item_scores).sum()} of them "
            f"finite; give one finite number for each of the world's {len(world.item_ids)} items"
        )
    sessions = np.empty((len(excluded), session_items), np.int64)
    for part in _parts(len(excluded), len(item_scores)):
        scores_SI = np.tile(item_scores, (len(excluded[part]), 1))
        sessions[part] = _best(world, scores_SI, excluded[part], session_items)
    return sessions


def oracle_sessions(
    world: World,
    users: Int[np.ndarray, " S"],
    times_ms: Int[np.ndarray, " S"],
    excluded: Int[np.ndarray, "S H"],
    *,
    session_items: int,
) -> Int[np.ndarray, "S M"]:
    """Sessions of high expected watch time by someone who knows the world and the user's taste.

    Greedy, place by place, for watch time plus the probability of staying times the best that the
    places left could add without satiation; then passes that put at each place the item that
    raises the session's expected watch time most, and exchange two places where that raises it,
    until a pass changes nothing. A reference from above and no proven optimum: a better session
    may exist that differs in two or more places.

    Args:
      world: the world.
      users: user numbers.
      times_ms: when the sessions are delivered.
      excluded: item numbers that must not be in the session, padded with -1.
      session_items: length M of a session.

    Returns:
      World item numbers in playing order.

    Raises:
      DataError: a user or item that the world does not have, or too few that are not excluded.
    """
    sessions = np.empty((len(users), session_items), np.int64)
    for part in _parts(len(users), len(world.item_ids) * session_items):
        is_free_SI = _is_free(world, excluded[part], session_items)
        search = _Search(world, users[part], times_ms[part], is_free_SI, session_items)
        sessions[part] = search.improved(search.greedy())
    return sessions


class _Search:
    """Tables of one block of requests, from which every session's value is looked up.

    An item's watch time and the probability of staying depend on the user, the item and the number
    of earlier items of its topic, of which there are at most M - 1.
    """

    def __init__(
        self,
        world: World,
        users: np.ndarray,
        times_ms: np.ndarray,
        is_free_SI: np.ndarray,
        session_items: int,
    ):
        """Fills the tables [S, I, M]: expected milliseconds and probability of staying."""
        config = world.config
        affinity_SI = taste_at(world, users, times_ms) @ world.item_vector.T
        logit_SI = config.affinity_weight * affinity_SI + item_watch_logits(world)
        logit_SIM = logit_SI[:, :, None] - config.satiation * np.arange(session_items)
        user_SIM = np.broadcast_to(users[:, None, None], logit_SIM.shape)
        ratio_SIM, self.staying = mean_ratio_and_staying(world, user_SIM, logit_SIM)
        self.watch_ms = ratio_SIM * world.item_duration_ms[:, None]
        self.topic = world.item_topic
        self.is_free = is_free_SI
        self.rows = np.arange(len(users))

    def greedy(self) -> np.ndarray:
        """Fills the places from the first to the last."""
        num_rows, num_items, length = self.watch_ms.shape
        best_S = np.where(self.is_free, self.watch_ms[:, :, 0], 0.0).max(axis=1)
        sessions = np.full((num_rows, length), NO_ITEM)
        is_open_SI = self.is_free.copy()
        for place in range(length):
            count_SI = (self.topic == self._topics(sessions)[:, :place, None]).sum(axis=1)
            at = (self.rows[:, None], np.arange(num_items), count_SI)
            ahead_S = best_S * (length - 1 - place)
            value_SI = self.watch_ms[at] + self.staying[at] * ahead_S[:, None]
            chosen_S = np.where(is_open_SI, value_SI, -np.inf).argmax(axis=1)
            sessions[:, place] = chosen_S
            is_open_SI[self.rows, chosen_S] = False
        return sessions

    def improved(self, sessions: np.ndarray) -> np.ndarray:
        """Passes of replacements and exchanges that only ever raise the value."""
        length = sessions.shape[1]
        for _ in range(MAX_PASSES):
            before = sessions.copy()
            for place in range(length):
                self._replace(sessions, place)
            for first in range(length):
                for second in range(first + 1, length):
                    self._exchange(sessions, first, second)
            if np.array_equal(before, sessions):
                break
        return sessions

    def value(self, sessions: np.ndarray) -> np.ndarray:
        """Expected watch time [S] of one session per row."""
        topics = self._topics(sessions)
        total, reached = np.zeros(len(sessions)), np.ones(len(sessions))
        for place in range(sessions.shape[1]):
            count_S = (topics[:, :place] == topics[:, place, None]).sum(axis=1)
            at = (self.rows, sessions[:, place], count_S)
            total += reached * self.watch_ms[at]
            reached *= self.staying[at]
        return total

    def _replace(self, sessions: np.ndarray, place: int) -> None:
        """Puts the best item at one place, the others staying where they are."""
        value_SI = self._values_with(sessions, place)
        is_open_SI = self.is_free.copy()
        is_open_SI[self.rows[:, None], np.delete(sessions, place, axis=1)] = False
        value_SI = np.where(is_open_SI, value_SI, -np.inf)
        chosen_S = value_SI.argmax(axis=1)
        gain_S = value_SI[self.rows, chosen_S] - value_SI[self.rows, sessions[:, place]]
        # A gain within rounding is none, or two equal items would change places for ever.
        sessions[:, place] = np.where(gain_S > 1e-6, chosen_S, sessions[:, place])

    def _values_with(self, sessions: np.ndarray, place: int) -> np.ndarray:
        """Expected watch time [S, I] of the session with each item at one place."""
        topics = self._topics(sessions)
        num_rows, num_items, length = self.watch_ms.shape
        total, reached = np.zeros((num_rows, num_items)), np.ones((num_rows, num_items))
        for other in range(length):
            if other == place:
                count_SI = (self.topic == topics[:, :place, None]).sum(axis=1)
                at = (self.rows[:, None], np.arange(num_items), count_SI)
            else:
                is_same = topics[:, :other] == topics[:, other, None]
                if place < other:
                    is_same[:, place] = False
                is_candidate_same_SI = (self.topic == topics[:, other, None]) & (place < other)
                count_SI = is_same.sum(axis=1)[:, None] + is_candidate_same_SI
                at = (self.rows[:, None], sessions[:, other, None], count_SI)
            total += reached * self.watch_ms[at]
            reached *= self.staying[at]
        return total

    def _exchange(self, sessions: np.ndarray, first: int, second: int) -> None:
        """Lets two places change their items where that is better."""
        other = sessions.copy()
        other[:, [first, second]] = sessions[:, [second, first]]
        is_better_S = self.value(other) > self.value(sessions) + 1e-6
        sessions[is_better_S] = other[is_better_S]

    def _topics(self, sessions: np.ndarray) -> np.ndarray:
        return self.topic[sessions]


def _best(
    world: World, scores_SI: np.ndarray, excluded: np.ndarray, session_items: int
) -> np.ndarray:
    """The items of the highest scores that are not excluded, best first."""
    scores_SI = np.where(_is_free(world, excluded, session_items), scores_SI, -np.inf)
    return np.argsort(-scores_SI, axis=1, kind="stable")[:, :session_items]


def _is_free(world: World, excluded: np.ndarray, session_items: int) -> np.ndarray:
    """Which items [S, I] may be shown; an error where a session cannot be filled."""
    num_items = len(world.item_ids)
    check_numbers(excluded, num_items, "item", lowest=NO_ITEM)
    is_free = np.ones((len(excluded), num_items + 1), bool)
    is_free[np.arange(len(excluded))[:, None], excluded] = False  # -1 is the column to drop
    is_free_SI = is_free[:, :num_items]
    fewest = int(is_free_SI.sum(axis=1).min(initial=num_items))
    if fewest < session_items:
        raise DataError(
            f"a session of {session_items} items cannot be made of {fewest} of the world's "
            f"{num_items} items that are not excluded; exclude fewer, or simulate more items"
        )
    return is_free_SI


def _parts(num_rows: int, width: int) -> list[slice]:
    """Cuts rows into blocks of at most `_AT_ONCE` numbers."""
    step = max(1, _AT_ONCE // width)
    return [slice(start, start + step) for start in range(0, num_rows, step)]
