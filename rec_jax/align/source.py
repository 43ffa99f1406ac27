"""Training samples of a round: every one a session to write, some with candidates to compare.

A record is a *bundle* of the samples that share one slot for a preference: the first sample is the
slot's context, the others are drawn from the training examples. So a batch of P records has
B = P x (samples per bundle) samples and at most P preferences, in whatever way it is split over
devices and microbatches.

Dimension key: P bundles of a batch, Z samples per bundle, Q groups, G responses of a group,
N history items, M session items, L code levels.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from core_jax.arrays import Int
from core_jax.errors import ConfigError
from rec_jax.align.batch import PreferenceBatch
from rec_jax.data.augment import AugmentConfig, augment
from rec_jax.data.inputs import SessionSource, batch_to_codes

Record = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preferences:
    """The groups of a round, ready for training. NumPy arrays."""

    examples: np.ndarray
    """Int64 [Q]: the training example that is each group's context."""
    codes: np.ndarray
    """Int32 [Q, G, M, L]: semantic IDs of the responses."""
    mask: np.ndarray
    """Bool [Q, G, M]: True where a response has an item."""
    reference_log_probs: np.ndarray
    """Float32 [Q, G, M, L]: under the frozen model that the round starts from."""
    advantages: np.ndarray
    """Float32 [Q, G]: of each response; read by group losses alone."""
    weights: np.ndarray | None = None
    """Float32 [Q, G, M, L]: of every code, where the method weighs codes."""

    def __len__(self) -> int:
        return len(self.examples)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slots:
    """How preferences are spread over the samples of a batch."""

    per_batch: int
    """P: places for a preference in a batch."""
    samples: int
    """Z: samples per place; P x Z is the batch."""
    filled: float
    """Share of the places that hold a preference."""


def plan_slots(batch_size: int, ratio: float, *, multiple: int = 1) -> Slots:
    """Finds the fewest places per batch that can hold `ratio` of the samples.

    Args:
      batch_size: B.
      ratio: share of the samples with a preference, r_DPO.
      multiple: the places must split over so many devices and microbatches.

    Returns:
      P divides B and is a multiple of `multiple`; P x filled / B is the ratio.

    Raises:
      ConfigError: no such P.

    >>> plan_slots(64, 0.25)
    Slots(per_batch=16, samples=4, filled=1.0)
    >>> plan_slots(64, 0.01)
    Slots(per_batch=1, samples=64, filled=0.64)
    """
    for places in range(multiple, batch_size + 1, multiple):
        if batch_size % places == 0 and places >= ratio * batch_size * (1 - 1e-9):
            return Slots(
                per_batch=places,
                samples=batch_size // places,
                filled=min(1.0, ratio * batch_size / places),
            )
    raise ConfigError(
        f"align.batch_size {batch_size} has no room for preferences that split over {multiple} "
        f"devices and microbatches; set align.batch_size to a multiple of {multiple}"
    )


class BundleSource:
    """Random access to the bundles of one epoch over the preferences.

    A record is {"history": Int32 [Z, N], "target": Int32 [Z, M], "has_pair": Bool [],
    "codes" ..., "mask" ..., "reference_log_probs" ..., "advantages" ...}, with "weights" where the
    preferences have them. Only the first sample is in it yet: `fill` draws the others.
    """

    def __init__(self, sessions: SessionSource, preferences: Preferences, slots: Slots):
        """Adds as many bundles without a preference as leave the share `slots.filled` with one."""
        self._sessions = sessions
        self._preferences = preferences
        self._slots = slots
        with_pair = len(preferences)
        self._length = max(with_pair, round(with_pair / slots.filled))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Returns one bundle; see the class."""
        has_pair = index < len(self._preferences)
        # A bundle without a preference carries those of the first one, which has_pair masks.
        group = index if has_pair else 0
        first = self._sessions[int(self._preferences.examples[group])]
        samples = self._slots.samples
        weights = self._preferences.weights
        weighted = {} if weights is None else {"weights": weights[group]}
        return weighted | {
            "history": np.repeat(first["history"][None], samples, axis=0),
            "target": np.repeat(first["target"][None], samples, axis=0),
            "has_pair": np.array(has_pair),
            "codes": self._preferences.codes[group],
            "mask": self._preferences.mask[group],
            "reference_log_probs": self._preferences.reference_log_probs[group],
            "advantages": self._preferences.advantages[group],
        }


def fill(
    sessions: SessionSource, config: AugmentConfig, record: Record, generator: np.random.Generator
) -> dict[str, np.ndarray]:
    """Draws a bundle's samples without a preference, and varies them. A `random_map`.

    The context of a preference stays as it is: its candidates were made for this very history.

    Args:
      sessions: the training examples.
      config: how samples are varied.
      record: a bundle of `BundleSource`; it is not changed.
      generator: seeded by the pipeline for this record alone.

    Returns:
      A bundle of the same shapes.
    """
    history_ZN, target_ZM = record["history"].copy(), record["target"].copy()
    for place in range(1 if record["has_pair"] else 0, len(history_ZN)):
        example = augment(config, sessions[int(generator.integers(len(sessions)))], generator)
        history_ZN[place], target_ZM[place] = example["history"], example["target"]
    return {**record, "history": history_ZN, "target": target_ZM}


def bundles_to_batch(
    codes: Int[np.ndarray, "I L"],
) -> Callable[[Record], PreferenceBatch]:
    """Returns the map from stacked bundles to a training batch (NumPy, on the host).

    Args:
      codes: the semantic ID of every item.
    """
    to_codes = batch_to_codes(codes)

    def transform(batch: Record) -> PreferenceBatch:
        num_slots, samples = batch["history"].shape[:2]
        flat = {name: batch[name].reshape(-1, batch[name].shape[-1]) for name in _SESSION_FIELDS}
        sessions = jax.tree.map(
            lambda leaf: leaf.reshape(num_slots, samples, *leaf.shape[1:]), to_codes(flat)
        )
        return PreferenceBatch(
            sessions=sessions,
            response_codes=batch["codes"],
            response_mask=batch["mask"],
            has_pair=batch["has_pair"],
            reference_log_probs=batch["reference_log_probs"],
            advantages=batch["advantages"],
            weights=batch.get("weights"),
        )

    return transform


_SESSION_FIELDS = ("history", "target")
