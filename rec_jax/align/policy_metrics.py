"""What a policy's sessions are worth, user by user, under every judge that there is.

Three judges: `reward`, the model that chose the pairs; `judge`, a held-out one; `truth`, the
simulated world where there is one. A policy is anything that gives sessions: OneRec, or the
references random, popularity and oracle.

Dimension key: U users, K sessions of a user (most probable first), M session items, T targets,
R items of a list, C categories, I items.
"""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from core_jax.arrays import Bool, Float, Int
from rec_jax.align.array_file import read_arrays, write_arrays
from rec_jax.ranking_metrics import category_diversity, ndcg_at_k, recall_at_k

MINIMUM_GAP = 1e-9
"""Rewards closer than this are equal."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicySessions:
    """Sessions of one policy and what every judge says of them. NumPy arrays."""

    items: np.ndarray
    """Int32 [U, K, M]: item numbers, -1 where there is none."""
    alive: np.ndarray
    """Bool [U, K]: False where a user has fewer sessions."""
    reward_targets: np.ndarray
    """Float32 [U, K, T]: probabilities of the reward model's heads."""
    reward: np.ndarray
    """Float32 [U, K]: those, fused."""
    judge_targets: np.ndarray
    """Float32 [U, K, T]: probabilities of the held-out judge's heads."""
    judge: np.ndarray
    """Float32 [U, K]: those, fused."""
    truth: np.ndarray
    """Float64 [U, K]: expected session watch time in the simulated world, in seconds; [U, 0]
    where the log is of the real world."""
    first_items: np.ndarray
    """Int32 [U, R]: ranked first items; [U, 0] for a policy that does not rank."""
    legality: np.ndarray
    """Float64 [1]: share of legal codes without the constraint; NaN where not measured."""

    @property
    def has_truth(self) -> bool:
        """Whether the world is known."""
        return self.truth.shape[1] > 0


def save_sessions(sessions: PolicySessions, folder: str | os.PathLike[str]) -> None:
    """Writes sessions.npz into a folder, for `load_sessions`."""
    write_arrays(pathlib.Path(folder) / "sessions.npz", vars(sessions))


def load_sessions(folder: str | os.PathLike[str]) -> PolicySessions:
    """Reads what `save_sessions` wrote.

    Raises:
      DataError: the file is missing or cannot be read.
    """
    path = pathlib.Path(folder) / "sessions.npz"
    remedy = f"remove '{path.parent}' and evaluate again"
    return PolicySessions(**read_arrays(path, remedy=remedy))


def per_user_metrics(
    sessions: PolicySessions,
    *,
    targets: Int[np.ndarray, "U S"],
    categories: Bool[np.ndarray, "I C"],
    heads: Sequence[str],
    judge_heads: Sequence[str],
    best_of: Sequence[int] = (),
    list_length: int = 10,
) -> dict[str, Float[np.ndarray, " U"]]:
    """Every measure of every user.

    Args:
      sessions: the policy's sessions, judged.
      targets: items of the next session of the log, padded with -1.
      categories: which item belongs to which category.
      heads: names of the reward model's heads.
      judge_heads: names of the held-out judge's heads.
      best_of: N of best-of-N, none for a policy with one session.
      list_length: k of Recall and NDCG.

    Returns:
      By name: `reward`, `judge`, `truth` (the most probable session), each with `/mean` and `/max`
      over the user's sessions (the paper's two columns); `reward:HEAD/mean`, ...;
      `best_of/N/JUDGE`, the session that the reward model prefers among the first N; `recall`,
      `ndcg`, `session_recall`, `diversity`. What a policy does not have is NaN.
    """
    values: dict[str, np.ndarray] = {}
    scored = {"reward": sessions.reward, "judge": sessions.judge}
    if sessions.has_truth:
        scored["truth"] = sessions.truth
    for name, value_UK in scored.items():
        values |= _over_sessions(name, value_UK, sessions.alive)
    for judge, names, target_UKT in (
        ("reward", heads, sessions.reward_targets),
        ("judge", judge_heads, sessions.judge_targets),
    ):
        for head, head_name in enumerate(names):
            values |= _over_sessions(f"{judge}:{head_name}", target_UKT[..., head], sessions.alive)
    for number in best_of:
        chosen_U = best_of_n(sessions.reward, sessions.alive, number)
        for name, value_UK in scored.items():
            values[f"best_of/{number}/{name}"] = _column(value_UK, chosen_U)
    top_UM = sessions.items[:, 0]
    values["session_recall"] = recall_at_k(top_UM, targets, k=top_UM.shape[1])
    values["diversity"] = category_diversity(top_UM, categories)
    nothing_U = np.full(len(top_UM), np.nan)
    has_list = sessions.first_items.shape[1] >= list_length
    for name, metric in (("recall", recall_at_k), ("ndcg", ndcg_at_k)):
        values[name] = (
            metric(sessions.first_items, targets, k=list_length) if has_list else nothing_U
        )
    return values


def best_of_n(
    reward: Float[np.ndarray, "U K"], alive: Bool[np.ndarray, "U K"], number: int
) -> Int[np.ndarray, " U"]:
    """The session of highest reward among the first (most probable) `number` ones.

    >>> best_of_n(np.array([[1.0, 3.0, 9.0]]), np.ones((1, 3), bool), 2)
    array([1])
    """
    first = slice(None, number)
    return np.argmax(np.where(alive[:, first], reward[:, first], -np.inf), axis=1)


def concordance(
    judged: Float[np.ndarray, "U K"],
    truth: Float[np.ndarray, "U K"],
    alive: Bool[np.ndarray, "U K"],
) -> Float[np.ndarray, " U"]:
    r"""Of the pairs of a user's sessions that differ in truth, the share that a judge orders so.

    .. math:: P(\hat r_i > \hat r_j \mid r_i > r_j) + \tfrac12 P(\hat r_i = \hat r_j \mid r_i > r_j)

    This is the judge's AUC against the truth within a user: 0.5 is a coin, 1 the truth.

    Returns:
      One value per user; NaN where no two sessions differ in truth.

    >>> concordance(np.array([[1.0, 2.0, 2.0]]), np.array([[3.0, 5.0, 7.0]]), np.ones((1, 3), bool))
    array([0.83333333])
    """
    both_UKK = alive[:, :, None] & alive[:, None, :]
    is_better_UKK = both_UKK & (truth[:, :, None] - truth[:, None, :] > MINIMUM_GAP)
    gap_UKK = np.where(both_UKK, judged[:, :, None], 0) - np.where(both_UKK, judged[:, None], 0)
    agreed_U = (np.sign(gap_UKK) * is_better_UKK).sum(axis=(1, 2))
    count_U = is_better_UKK.sum(axis=(1, 2))
    share_U = np.divide(agreed_U, count_U, out=np.full(len(count_U), np.nan), where=count_U > 0)
    return 0.5 + 0.5 * share_U


def _over_sessions(
    name: str, value: Float[np.ndarray, "U K"], alive: Bool[np.ndarray, "U K"]
) -> dict[str, Float[np.ndarray, " U"]]:
    """The most probable session's value, and mean and max over a user's sessions."""
    count_U = alive.sum(axis=1)
    total_U = np.where(alive, value, 0.0).sum(axis=1)
    return {
        name: value[:, 0].astype(np.float64),
        f"{name}/mean": total_U / np.maximum(count_U, 1),
        f"{name}/max": np.where(alive, value, -np.inf).max(axis=1),
    }


def _column(value: Float[np.ndarray, "U K"], column: Int[np.ndarray, " U"]) -> np.ndarray:
    """One value per user."""
    return value[np.arange(len(value)), column].astype(np.float64)
