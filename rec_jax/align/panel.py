"""The judges of an alignment run, and the test moments that policies are judged at.

Dimension key: U users, H history items, K sessions of a user, M session items, S target items,
I items, C categories, T targets.
"""

import dataclasses

import numpy as np
from jax.sharding import Mesh

from core_jax.arrays import Float, Int
from rec_jax.align.policy_metrics import PolicySessions
from rec_jax.data.sessions import SessionData, histories, longest_history, targets
from rec_jax.data.simulator.policies import oracle_sessions, popularity_sessions, random_sessions
from rec_jax.data.simulator.response import expected_watch_ms
from rec_jax.data.simulator.world import World, item_numbers, sessions_in_world, user_numbers
from rec_jax.reward.fusion import fuse
from rec_jax.reward.score import RewardModel, score_sessions

REFERENCES = ("random", "popularity", "oracle")
"""Names of the policies that no model makes."""
_MOMENT_STREAM = 11


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moments:
    """Test sessions of different users. NumPy arrays; row u is one moment of one user."""

    rows: np.ndarray
    """Int64 [U]: the test examples."""
    history: np.ndarray
    """Int32 [U, H]: every positive before, right-aligned, padded with -1; as wide as the longest
    history of any split, so that all searches share a program."""
    targets: np.ndarray
    """Int32 [U, S]: what came next in the log, padded with -1."""
    user_ids: tuple[str, ...]
    """Whose moments they are."""
    times_ms: np.ndarray
    """Int64 [U]: when the next session began, milliseconds since 1970."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
    """Everything that judges a session."""

    reward: RewardModel
    """The model that chooses the pairs."""
    judge: RewardModel
    """The held-out judge."""
    world: World | None
    """The simulated world, where the log is of one."""
    item_ids: tuple[str, ...]
    """Item number -> id."""
    mesh: Mesh


def choose_moments(data: SessionData, num_users: int, *, seed: int) -> Moments:
    """Draws test sessions, the last one of each user.

    Args:
      data: the sessions.
      num_users: how many; all users with a test session if they are fewer.
      seed: of the draw.

    Returns:
      The moments in the order of the test examples.
    """
    users = data.test.user
    last_U = np.flatnonzero(np.append(users[1:] != users[:-1], True))
    words = np.random.SeedSequence((_MOMENT_STREAM, seed))
    order = np.argsort(np.random.Philox(words).random_raw(len(last_U)), kind="stable")
    rows = np.sort(last_U[order[:num_users]])
    return Moments(
        rows=rows,
        history=histories(data, "test", longest_history(data), rows),
        targets=targets(data, "test", 0, rows),
        user_ids=tuple(data.user_ids[user] for user in users[rows]),
        times_ms=data.positive_times[data.test.history_end[rows]],
    )


def judged(
    panel: Panel,
    moments: Moments,
    items: Int[np.ndarray, "U K M"],
    *,
    batch_size: int,
    first_items: Int[np.ndarray, "U R"] | None = None,
    legality: float = float("nan"),
) -> PolicySessions:
    """Asks every judge about a policy's sessions.

    Args:
      panel: the judges.
      moments: whom the sessions are for.
      items: the sessions; all -1 where a user has fewer (the first one must exist).
      batch_size: users per compiled call.
      first_items: ranked first items, or None.
      legality: share of legal codes without the constraint.

    Returns:
      The sessions with all judgements.
    """
    alive_UK = np.all(items >= 0, axis=-1)
    # A session that does not exist is scored as the first one and never counted.
    scored_UKM = np.where(alive_UK[..., None], items, items[:, :1])
    probabilities = [
        score_sessions(model, moments.history, scored_UKM, batch_size=batch_size, mesh=panel.mesh)
        for model in (panel.reward, panel.judge)
    ]
    return PolicySessions(
        items=items.astype(np.int32),
        alive=alive_UK,
        reward_targets=probabilities[0],
        reward=fuse(panel.reward.fusion, probabilities[0]).astype(np.float32),
        judge_targets=probabilities[1],
        judge=fuse(panel.judge.fusion, probabilities[1]).astype(np.float32),
        truth=_true_seconds(panel, moments, scored_UKM),
        first_items=np.zeros((len(items), 0), np.int32) if first_items is None else first_items,
        legality=np.array([legality]),
    )


def reference_sessions(
    panel: Panel, moments: Moments, data: SessionData, *, session_items: int, seed: int
) -> dict[str, Int[np.ndarray, "U M"]]:
    """Sessions that no model made: random, most popular, and in a simulated world the oracle's.

    None of them holds an item of the user's history.

    Args:
      panel: the judges, with the world.
      moments: whom they are for.
      data: counts of the training positives are the popularity.
      session_items: M.
      seed: of the random ones.

    Returns:
      Item numbers by the name of the policy.
    """
    if panel.world is None:
        return _references_of_counts(moments, data.train_item_counts, session_items, seed)
    return world_references(panel.world, moments, data, session_items=session_items, seed=seed)


def world_references(
    world: World, moments: Moments, data: SessionData, *, session_items: int, seed: int
) -> dict[str, Int[np.ndarray, "U M"]]:
    """Random, most popular and the oracle's sessions; see `reference_sessions`."""
    numbers_I = item_numbers(world, data.item_ids)
    back_I = np.argsort(numbers_I)
    users_U = user_numbers(world, list(moments.user_ids))
    excluded_UH = sessions_in_world(numbers_I, moments.history)
    counts_I = data.train_item_counts[back_I].astype(np.float64)
    size = {"session_items": session_items}
    asked = (world, users_U, moments.times_ms, excluded_UH)
    sessions = {
        "random": random_sessions(*asked, seed=seed, **size),
        "popularity": popularity_sessions(world, counts_I, excluded_UH, **size),
        "oracle": oracle_sessions(*asked, **size),
    }
    return {name: back_I[items] for name, items in sessions.items()}


def _true_seconds(
    panel: Panel, moments: Moments, items: Int[np.ndarray, "U K M"]
) -> Float[np.ndarray, "U K"]:
    """Expected session watch time; no column where the world is not known."""
    if panel.world is None:
        return np.zeros((len(items), 0))
    numbers_I = item_numbers(panel.world, list(panel.item_ids))
    users_U = user_numbers(panel.world, list(moments.user_ids))
    sessions = sessions_in_world(numbers_I, items)
    return expected_watch_ms(panel.world, users_U, moments.times_ms, sessions) / 1000


def _references_of_counts(
    moments: Moments, counts: Int[np.ndarray, " I"], session_items: int, seed: int
) -> dict[str, Int[np.ndarray, "U M"]]:
    """Random and most popular sessions of a log of the real world."""
    num_users, num_items = len(moments.history), len(counts)
    noise_UI = np.random.Generator(np.random.Philox(seed)).random((num_users, num_items))
    scores = {
        "random": noise_UI,
        "popularity": np.broadcast_to(counts.astype(np.float64), noise_UI.shape),
    }
    is_seen_UI = np.zeros((num_users, num_items + 1), bool)
    is_seen_UI[np.arange(num_users)[:, None], moments.history] = True
    sessions = {}
    for name, score_UI in scores.items():
        free_UI = np.where(is_seen_UI[:, :num_items], -np.inf, score_UI)
        sessions[name] = np.argsort(-free_UI, axis=1, kind="stable")[:, :session_items]
    return sessions
