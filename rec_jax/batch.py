"""The model's input: one row per (user, moment).

Dimension key: B batch, N history items, M session items, L code levels.
"""

import dataclasses

import jax

from core_jax.arrays import PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SessionBatch:
    """Histories and the sessions that followed them, as semantic IDs.

    A history is right-aligned: its last column is the most recent item. Padding has code 0 and
    mask False. The fields are typed as trees because shapes, shardings and abstract values also
    travel in this structure.
    """

    history_codes: PyTree
    """Int32 [B, N, L]: semantic IDs of the history."""
    history_mask: PyTree
    """Bool [B, N]: True where there is a history item."""
    target_codes: PyTree
    """Int32 [B, M, L]: semantic IDs of the session to generate."""
    target_mask: PyTree
    """Bool [B, M]: True where there is a target item."""
