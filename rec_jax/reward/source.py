"""Training records of the reward model: sessions by index, as the input pipeline reads them.

Dimension key: S sessions, N history items, M session items, T targets, B batch.
"""

from collections.abc import Callable, Mapping

import numpy as np

from core_jax.arrays import Int
from rec_jax.reward.batch import RewardBatch, make_batch
from rec_jax.reward.sessions import RewardData, histories


class RewardSource:
    """Random access to chosen sessions.

    A record is {"history": Int32 [N], "session": Int32 [M], "labels": Float32 [T], "label_mask":
    Bool [T]}.
    """

    def __init__(self, data: RewardData, indices: Int[np.ndarray, "S"], history_items: int):
        """Gathers the sessions once.

        Args:
          data: all sessions.
          indices: which of them.
          history_items: N.
        """
        self._columns = {
            "history": histories(data, history_items, indices),
            "session": data.items[indices],
            "labels": data.labels.values[indices],
            "label_mask": data.labels.mask[indices],
        }

    def __len__(self) -> int:
        return len(self._columns["session"])

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Returns one record; see the class."""
        return {name: column[index] for name, column in self._columns.items()}

    def rows(self, indices: Int[np.ndarray, "B"]) -> dict[str, np.ndarray]:
        """Returns many records at once."""
        return {name: column[indices] for name, column in self._columns.items()}


def batch_of(
    codes: Int[np.ndarray, "I L"],
) -> Callable[[Mapping[str, np.ndarray]], RewardBatch]:
    """Returns the map from stacked records to the model's input, one session per user row."""

    def transform(records: Mapping[str, np.ndarray]) -> RewardBatch:
        return make_batch(
            codes,
            records["history"],
            records["session"][:, None],
            records["labels"],
            records["label_mask"],
        )

    return transform
