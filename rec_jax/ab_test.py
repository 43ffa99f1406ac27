"""A/B test of two policies in the simulated world, with paired intervals over users.

Dimension key: S requests, M session items, R replications, U users, Q quantities.
"""

import dataclasses

import jax
import numpy as np

from core_jax.arrays import Float, Int
from core_jax.errors import ConfigError
from rec_jax.data.simulator.response import Response, respond
from rec_jax.data.simulator.world import World
from rec_jax.ranking_metrics import Interval, bootstrap_intervals


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """One quantity per session, in the mean over users."""

    a: Interval
    """Under policy A."""
    b: Interval
    """Under policy B."""
    difference: Interval
    """B - A on the same resampled users: above zero where B is better beyond chance."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AbTest:
    """What an A/B test found."""

    watch_ms: Comparison
    """Session watch time, milliseconds."""
    viewed: Comparison
    """Items viewed per session."""
    likes: Comparison
    """Likes per session."""
    follows: Comparison
    """Follows per session."""
    num_users: int
    """Users compared."""
    num_requests: int
    """Requests of these users."""
    num_replications: int
    """How often each request was answered."""
    confidence: float
    """Probability mass of the intervals."""


def ab_test(
    world: World,
    users: Int[np.ndarray, " S"],
    times_ms: Int[np.ndarray, " S"],
    sessions_a: Int[np.ndarray, "S M"],
    sessions_b: Int[np.ndarray, "S M"],
    *,
    seed: int,
    num_replications: int = 20,
    confidence: float = 0.95,
    bootstrap_samples: int = 2000,
) -> AbTest:
    """Delivers both policies' sessions to the same users at the same times, on the same noise.

    A user's value is the mean over the user's requests and the replications. Intervals are
    percentiles over resampled users, the same resamples for A, B and the difference: they say how
    far the difference depends on which users were asked.

    Args:
      world: the world.
      users: user numbers; a user may be asked at several times.
      times_ms: when the sessions are delivered, milliseconds since 1970.
      sessions_a: world item numbers of policy A, -1 for no item.
      sessions_b: those of policy B.
      seed: seed of the responses' noise and of the resamples.
      num_replications: how often each request is answered; more of them, less noise per user.
      confidence: probability mass of the intervals.
      bootstrap_samples: number of resamples.

    Returns:
      Both means and the difference of every quantity.

    Raises:
      ConfigError: no replication or resample, or a confidence outside (0, 1).
      DataError: a user or item that the world does not have.
    """
    if num_replications < 1 or bootstrap_samples < 1 or not 0 < confidence < 1:
        raise ConfigError(
            f"num_replications is {num_replications}, bootstrap_samples {bootstrap_samples} and "
            f"confidence {confidence}; the first two must be at least 1, the last one between 0 "
            "and 1"
        )
    values_a_UQ, values_b_UQ = (
        _user_means(
            respond(world, users, times_ms, sessions, seed=seed, num_replications=num_replications),
            users,
        )
        for sessions in (sessions_a, sessions_b)
    )
    intervals = bootstrap_intervals(
        np.concatenate([values_a_UQ, values_b_UQ, values_b_UQ - values_a_UQ], axis=1),
        key=jax.random.key(seed),
        num_samples=bootstrap_samples,
        confidence=confidence,
    )
    watch_ms, viewed, likes, follows = (
        Comparison(a=a, b=b, difference=difference)
        for a, b, difference in zip(intervals[:4], intervals[4:8], intervals[8:], strict=True)
    )
    return AbTest(
        watch_ms=watch_ms,
        viewed=viewed,
        likes=likes,
        follows=follows,
        num_users=len(values_a_UQ),
        num_requests=len(users),
        num_replications=num_replications,
        confidence=confidence,
    )


def describe_ab_test(result: AbTest, *, name_a: str = "A", name_b: str = "B") -> str:
    """The result as a table: both means, the difference with its interval, and a verdict."""
    width_a, width_b = (max(14, len(name) + 2) for name in (name_a, name_b))
    lines = [
        f"{result.num_users:,} users, {result.num_requests:,} requests answered "
        f"{result.num_replications} times by both; {result.confidence:.0%} intervals over users",
        f"{'per session':<15}{name_a:>{width_a}}{name_b:>{width_b}}   {name_b} - {name_a}",
    ]
    rows = {
        "watch time, s": (result.watch_ms, 1000),
        "items viewed": (result.viewed, 1),
        "likes": (result.likes, 1),
        "follows": (result.follows, 1),
    }
    for name, (comparison, unit) in rows.items():
        low, high = (comparison.difference.low / unit, comparison.difference.high / unit)
        lines.append(
            f"{name:<15}{comparison.a.mean / unit:>{width_a}.4f}"
            f"{comparison.b.mean / unit:>{width_b}.4f}   "
            f"{comparison.difference.mean / unit:+.4f} [{low:+.4f}, {high:+.4f}]"
            f"{'' if low <= 0 <= high else '  beyond chance'}"
        )
    return "\n".join(lines)


def _user_means(response: Response, users: np.ndarray) -> Float[np.ndarray, "U Q"]:
    """Mean watch time, views, likes and follows of each user's sessions, in the order of users."""
    parts = (response.watch_ms, response.is_viewed, response.is_like, response.is_follow)
    values_SQ = np.stack([part.sum(axis=2).mean(axis=0) for part in parts], axis=1)
    _, place_S = np.unique(users, return_inverse=True)
    counts_U = np.bincount(place_S)
    totals = [np.bincount(place_S, weights=column) for column in values_SQ.T]
    return np.stack(totals, axis=1) / counts_U[:, None]
