"""Model inputs: examples by index, and the map from item indices to semantic IDs.

Dimension key: B examples of a batch, N history items, M session items, L code levels, I items.
"""

from collections.abc import Callable, Mapping

import numpy as np

from core_jax.arrays import Int
from rec_jax.batch import SessionBatch
from rec_jax.data.sessions import SessionData, examples, histories, targets


class SessionSource:
    """Random access to the examples of one split, as Grain reads them.

    An example is {"history": Int32 [N], "target": Int32 [M]}: item indices, -1 for padding; the
    history right-aligned, the target left-aligned.
    """

    def __init__(
        self,
        data: SessionData,
        split: str,
        history_items: int | None = None,
        session_items: int | None = None,
    ):
        """Points at one split.

        Args:
          data: the sessions.
          split: "train", "valid" or "test".
          history_items: N; None means the number that the sessions were made for.
          session_items: M, likewise.
        """
        self._data = data
        self._split = split
        self._examples = examples(data, split)
        self._history_items = history_items or data.num_history_items
        self._session_items = session_items or data.num_session_items

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Returns one example; see the class."""
        at = self._examples
        start, end = int(at.history_start[index]), int(at.history_end[index])
        items = self._data.positives[max(start, end - self._history_items) : end]
        history = np.full(self._history_items, -1, np.int32)
        history[self._history_items - len(items) :] = items
        first, stop = int(at.target_start[index]), int(at.target_end[index])
        items = self._data.session_items[first : min(stop, first + self._session_items)]
        target = np.full(self._session_items, -1, np.int32)
        target[: len(items)] = items
        return {"history": history, "target": target}

    def rows(self, indices: Int[np.ndarray, "B"]) -> dict[str, np.ndarray]:
        """Returns many examples at once: {"history": Int32 [B, N], "target": Int32 [B, M]}."""
        return {
            "history": histories(self._data, self._split, self._history_items, indices),
            "target": targets(self._data, self._split, self._session_items, indices),
        }


def batch_to_codes(
    codes: Int[np.ndarray, "I L"],
) -> Callable[[Mapping[str, np.ndarray]], SessionBatch]:
    """Returns the map from a batch of item indices to a batch of semantic IDs (NumPy, on the host).

    Args:
      codes: the semantic ID of every item.

    Returns:
      A function of {"history": [B, N], "target": [B, M]} that gives a `SessionBatch`; padding has
      code 0 and mask False.
    """
    # The row behind the last item is padding: index -1 reads it.
    padded_codes = np.concatenate([codes, np.zeros_like(codes[:1])]).astype(np.int32)

    def transform(batch: Mapping[str, np.ndarray]) -> SessionBatch:
        history_BN, target_BM = batch["history"], batch["target"]
        return SessionBatch(
            history_codes=padded_codes[history_BN],
            history_mask=history_BN >= 0,
            target_codes=padded_codes[target_BM],
            target_mask=target_BM >= 0,
        )

    return transform
