"""The reward model's input: users with their candidate sessions.

Dimension key: B users, N history items, K sessions of a user, M session items, L code levels,
T targets, I items.
"""

import dataclasses

import jax
import numpy as np

from core_jax.arrays import Bool, Float, Int, PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardBatch:
    """Histories and the sessions to judge. Padding has number and codes 0 and mask False.

    The fields are typed as trees because shapes, shardings and abstract values also travel in
    this structure.
    """

    history_items: PyTree
    """Int32 [B, N]: item numbers; the last column is the most recent."""
    history_codes: PyTree
    """Int32 [B, N, L]: their semantic IDs."""
    history_mask: PyTree
    """Bool [B, N]: True where there is an item."""
    session_items: PyTree
    """Int32 [B, K, M]: item numbers in the order shown."""
    session_codes: PyTree
    """Int32 [B, K, M, L]: their semantic IDs."""
    session_mask: PyTree
    """Bool [B, K, M]: True where there is an item."""
    labels: PyTree
    """Float32 [B, T]: labels of the first session, in [0, 1]; 0 where absent or not known."""
    label_mask: PyTree
    """Bool [B, T]: the label is there."""


def make_batch(
    codes: Int[np.ndarray, "I L"],
    histories: Int[np.ndarray, "B N"],
    sessions: Int[np.ndarray, "B K M"],
    labels: Float[np.ndarray, "B T"] | None = None,
    label_mask: Bool[np.ndarray, "B T"] | None = None,
) -> RewardBatch:
    """Looks up semantic IDs (NumPy, on the host).

    Args:
      codes: semantic ID of every item.
      histories: item numbers, -1 is padding.
      sessions: item numbers, -1 is padding.
      labels: labels of the first session of each user; None where there are none to learn from.
      label_mask: which labels are there.

    Returns:
      The batch.
    """
    if labels is None or label_mask is None:
        labels, label_mask = (np.zeros((len(histories), 0), kind) for kind in (np.float32, bool))
    # The row behind the last item is padding: index -1 reads it.
    padded_codes = np.concatenate([codes, np.zeros_like(codes[:1])]).astype(np.int32)
    return RewardBatch(
        history_items=np.maximum(histories, 0).astype(np.int32),
        history_codes=padded_codes[histories],
        history_mask=histories >= 0,
        session_items=np.maximum(sessions, 0).astype(np.int32),
        session_codes=padded_codes[sessions],
        session_mask=sessions >= 0,
        labels=labels,
        label_mask=label_mask,
    )
