"""What is true of a world and its log: measured, to be printed.

Dimension key: S requests, M session items, I items, H items shown before.
"""

import dataclasses

import numpy as np

from core_jax.arrays import Float, Int
from core_jax.errors import DataError
from rec_jax.data.simulator.log import deliver
from rec_jax.data.simulator.logging_policy import Slates
from rec_jax.data.simulator.policies import (
    oracle_sessions,
    popularity_sessions,
    random_sessions,
)
from rec_jax.data.simulator.response import Response, expected_response
from rec_jax.data.simulator.world import World

POSITIVE_RATIO = 0.5
"""Share of the duration from which an event counts as positive here."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LastRequests:
    """Every user's last request, what was delivered, and what the user was shown before."""

    user: np.ndarray
    """Int64 [S]."""
    time_ms: np.ndarray
    """Int64 [S]."""
    delivered: np.ndarray
    """Int64 [S, M]: item numbers."""
    shown: np.ndarray
    """Int64 [S, H]: item numbers, padded with -1."""


def describe_world(world: World, *, num_users: int = 300) -> str:
    """Says in a few lines what the log holds and what sessions are worth.

    Sessions of every policy are for the last request of the first `num_users` users, without what
    they were shown before; values are expectations under the world. Popularity counts the log's
    positive events, the last requests' left out.

    Args:
      world: the world.
      num_users: users whose last request is looked at.

    Returns:
      A table as text.
    """
    slates, response = deliver(world)
    last = last_requests(slates, num_users=num_users)
    lines = [_log_facts(world, slates, response), ""]
    lines += [f"sessions for the last request of {len(last.user)} users"]
    lines += [
        f"{'policy':<11}{'watch time':>12}{'viewed':>8}{'likes':>8}{'follows':>9}{'finished':>10}"
    ]
    for name, sessions in _sessions(world, slates, response, last).items():
        expected = expected_response(world, last.user, last.time_ms, sessions)
        means = {
            field.name: getattr(expected, field.name).mean()
            for field in dataclasses.fields(expected)
        }
        lines.append(
            f"{name:<11}{means['watch_ms'] / 1000:>10.1f} s{means['viewed']:>8.2f}"
            f"{means['likes']:>8.2f}{means['follows']:>9.3f}{means['finished']:>10.1%}"
        )
    return "\n".join(lines)


def last_requests(slates: Slates, *, num_users: int) -> LastRequests:
    """Every user's last request, of the first `num_users` users."""
    is_last = np.append(slates.user[1:] != slates.user[:-1], True)
    rows_S = np.flatnonzero(is_last)[:num_users]
    first_S = np.searchsorted(slates.user, slates.user[rows_S])
    before = [slates.items[start:row].ravel() for start, row in zip(first_S, rows_S, strict=True)]
    shown = np.full((len(rows_S), max(map(len, before))), -1)
    for row, items in enumerate(before):
        shown[row, : len(items)] = items
    return LastRequests(
        user=slates.user[rows_S],
        time_ms=slates.time_ms[rows_S],
        delivered=slates.items[rows_S],
        shown=shown,
    )


def normalised_value(
    value: Float[np.ndarray, "*S"] | float,
    *,
    popularity: Float[np.ndarray, "*S"] | float,
    oracle: Float[np.ndarray, "*S"] | float,
) -> Float[np.ndarray, "*S"] | float:
    """Value on a scale on which popularity is 0 and the oracle 1.

    (value - popularity) / (oracle - popularity). Give means over users: of single users the
    denominator may be nearly nothing.

    Args:
      value: what to express.
      popularity: the value of the most popular sessions for the same users.
      oracle: the value of the oracle's sessions for the same users.

    Returns:
      The same shape; above 1 where a policy beats the oracle, below 0 under popularity.

    Raises:
      DataError: the oracle is not above popularity.

    >>> normalised_value(3.0, popularity=1.0, oracle=5.0)
    0.5
    """
    room = oracle - popularity
    if not np.all(room > 0):
        raise DataError(
            f"the oracle's value {oracle} is not above that of popularity, {popularity}; there is "
            "no scale between them: take means over the same users, or simulate users whose "
            "tastes matter (affinity_weight)"
        )
    return (value - popularity) / room


def _sessions(
    world: World, slates: Slates, response: Response, last: LastRequests
) -> dict[str, Int[np.ndarray, "S M"]]:
    """The sessions of every policy by its name."""
    length = world.config.slate_items
    duration_SM = world.item_duration_ms[slates.items]
    is_positive_SM = response.watch_ms[0] >= POSITIVE_RATIO * duration_SM
    is_positive_SM[np.append(slates.user[1:] != slates.user[:-1], True)] = False
    counts_I = np.bincount(slates.items[is_positive_SM], minlength=len(world.item_ids))
    asked = (world, last.user, last.time_ms, last.shown)
    return {
        "random": random_sessions(*asked, session_items=length, seed=world.config.seed),
        "logged": last.delivered,
        "popularity": popularity_sessions(
            world, counts_I.astype(np.float64), last.shown, session_items=length
        ),
        "oracle": oracle_sessions(*asked, session_items=length),
    }


def _log_facts(world: World, slates: Slates, response: Response) -> str:
    """Sizes of the log, and shares of its events and sessions."""
    is_viewed = response.is_viewed[0]
    num_viewed = is_viewed.sum()
    duration_SM = world.item_duration_ms[slates.items]
    is_positive = response.watch_ms[0] >= POSITIVE_RATIO * duration_SM
    return "\n".join(
        [
            f"world     {len(world.user_ids):,} users, {len(world.item_ids):,} items, "
            f"{len(world.topic_names)} topics, seed {world.config.seed}",
            f"log       {len(slates.user):,} sessions of {slates.items.shape[1]} items, "
            f"{is_viewed.size:,} events",
            f"events    {is_viewed.mean():.1%} viewed; {is_positive.mean():.1%} watched for at "
            f"least {POSITIVE_RATIO:g} of the duration",
            f"viewed    {response.is_like[0].sum() / num_viewed:.1%} liked, "
            f"{response.is_follow[0].sum() / num_viewed:.2%} followed",
            f"sessions  {1 - is_viewed[:, -1].mean():.1%} left before the last item; watch time "
            f"{response.watch_ms[0].sum(axis=1).mean() / 1000:.1f} s in the mean",
        ]
    )
