"""From scored candidates to what a preference loss compares: pairs, negatives, groups.

Contexts whose candidates are all worth the same (or do not exist) teach nothing: they are skipped
and counted.

Dimension key: U contexts, K candidates per context, G responses of a group, M session items,
Q groups that are kept.
"""

import dataclasses

import numpy as np

from core_jax.arrays import Bool, Float, Int
from core_jax.errors import DataError
from rec_jax.align.candidates import Candidates
from rec_jax.align.config import GroupsConfig, RejectedRule


@dataclasses.dataclass(frozen=True, kw_only=True)
class Groups:
    """Which candidates are compared. NumPy arrays."""

    rows: np.ndarray
    """Int64 [Q]: the context of each group, a row of the candidates."""
    members: np.ndarray
    """Int64 [Q, G]: the candidates, columns of the candidates; for pairs the chosen one first."""
    has_member: np.ndarray
    """Bool [Q, G]: False where a group has fewer members."""
    counts: dict[str, int]
    """Contexts, those that were skipped by reason, and groups that are kept."""


def choose_groups(
    candidates: Candidates, config: GroupsConfig, *, num_members: int, ranked: bool, seed: int
) -> Groups:
    """Chooses what is compared.

    Args:
      candidates: scored candidates.
      config: rules.
      num_members: G: 2 for pairs, more for S-DPO and group losses.
      ranked: whether the first member is the best and the others are rejected (worst first);
        otherwise the members are random.
      seed: of random choices.

    Returns:
      Groups in the order of the contexts.

    Raises:
      DataError: nothing is left.
    """
    rewards_UK = candidates.rewards
    alive_UK = np.isfinite(candidates.log_probs) & np.isfinite(rewards_UK)
    best_U, worst_U = _best(rewards_UK, alive_UK), _best(-rewards_UK, alive_UK)
    rows_U = np.arange(len(candidates))
    is_single_U = alive_UK.sum(axis=1) < 2
    known_UK = np.where(alive_UK, rewards_UK, 0.0)
    gap_U = known_UK[rows_U, best_U] - known_UK[rows_U, worst_U]
    is_tied_U = ~is_single_U & ~(gap_U > config.min_gap)
    rows_Q = np.flatnonzero(~is_single_U & ~is_tied_U)
    counts = {
        "contexts": len(candidates),
        "skipped: fewer than two candidates": int(is_single_U.sum()),
        "skipped: all rewards equal": int(is_tied_U.sum()),
        "groups": len(rows_Q),
    }
    if not len(rows_Q):
        raise DataError(
            f"no context of {len(candidates)} has candidates of different reward ({counts}); use "
            "more beams, a smaller groups.min_gap, or look at the reward model's quality"
        )
    noise_QK = np.random.Generator(np.random.Philox(seed)).random((len(rows_Q), alive_UK.shape[1]))
    if ranked:
        members_QG, has_QG = _ranked(
            rewards_UK[rows_Q], alive_UK[rows_Q], noise_QK, config, num_members
        )
    else:
        members_QG, has_QG = _smallest(np.where(alive_UK[rows_Q], noise_QK, np.inf), num_members)
    return Groups(rows=rows_Q, members=members_QG, has_member=has_QG, counts=counts)


def standardised_advantages(
    rewards: Float[np.ndarray, "Q G"], has_member: Bool[np.ndarray, "Q G"]
) -> Float[np.ndarray, "Q G"]:
    r"""Advantages within each group, as in GRPO and ECPO (arXiv:2506.13695, Section 4.3).

    .. math:: A_i = (r_i - \mathrm{mean}(r)) / \mathrm{std}(r)

    Args:
      rewards: of the members.
      has_member: which members there are.

    Returns:
      Float32; 0 in a group whose rewards are all equal, and where there is no member.

    >>> standardised_advantages(np.array([[1.0, 3.0, 9.0]]), np.array([[True, True, False]]))
    array([[-1.,  1.,  0.]], dtype=float32)
    """
    count_Q1 = np.maximum(has_member.sum(axis=1, keepdims=True), 1)
    values_QG = np.where(has_member, rewards, 0.0).astype(np.float64)
    mean_Q1 = values_QG.sum(axis=1, keepdims=True) / count_Q1
    centred_QG = np.where(has_member, values_QG - mean_Q1, 0.0)
    std_Q1 = np.sqrt((centred_QG**2).sum(axis=1, keepdims=True) / count_Q1)
    # Equal rewards may differ from their own mean by a rounding error.
    highest_Q1 = np.where(has_member, rewards, -np.inf).max(axis=1, keepdims=True)
    lowest_Q1 = np.where(has_member, rewards, np.inf).min(axis=1, keepdims=True)
    differ_Q1 = (highest_Q1 > lowest_Q1) & (std_Q1 > 0)
    scaled_QG = np.divide(centred_QG, std_Q1, out=np.zeros_like(centred_QG), where=differ_Q1)
    return scaled_QG.astype(np.float32)


def _best(values: Float[np.ndarray, "U K"], alive: Bool[np.ndarray, "U K"]) -> np.ndarray:
    """Column of the largest value; the earlier (more probable) candidate of equals."""
    return np.argmax(np.where(alive, values, -np.inf), axis=1)


def _ranked(
    rewards: Float[np.ndarray, "Q K"],
    alive: Bool[np.ndarray, "Q K"],
    noise: Float[np.ndarray, "Q K"],
    config: GroupsConfig,
    num_members: int,
) -> tuple[Int[np.ndarray, "Q G"], Bool[np.ndarray, "Q G"]]:
    """The best candidate, then rejected ones that are worse than it by more than `min_gap`."""
    best_Q1 = _best(rewards, alive)[:, None]
    top_Q1 = np.take_along_axis(rewards, best_Q1, axis=1)
    is_worse_QK = alive & (top_Q1 - np.where(alive, rewards, np.inf) > config.min_gap)
    order_QK = noise if config.rejected is RejectedRule.RANDOM else rewards
    rejected_QG, has_QG = _smallest(np.where(is_worse_QK, order_QK, np.inf), num_members - 1)
    has_best_Q1 = np.ones((len(rewards), 1), bool)
    return np.hstack([best_Q1, rejected_QG]), np.hstack([has_best_Q1, has_QG])


def _smallest(
    keys: Float[np.ndarray, "Q K"], number: int
) -> tuple[Int[np.ndarray, "Q G"], Bool[np.ndarray, "Q G"]]:
    """The columns of the smallest finite keys, and which of them there are."""
    columns_QG = np.argsort(keys, axis=1, kind="stable")[:, :number]
    found_QG = np.isfinite(np.take_along_axis(keys, columns_QG, axis=1))
    missing = number - columns_QG.shape[1]
    return (
        np.pad(columns_QG, ((0, 0), (0, missing))),
        np.pad(found_QG, ((0, 0), (0, missing))),
    )
