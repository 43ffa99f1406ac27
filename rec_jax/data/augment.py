"""Training examples, varied anew in every epoch, for logs that have few of them.

The paper says nothing of it; every variation is off by default.

Dimension key: N history items, M session items, P items that are left of a history.
"""

import dataclasses
import enum
from collections.abc import Mapping

import numpy as np

from core_jax.errors import ConfigError

Example = Mapping[str, np.ndarray]
"""{"history": Int32 [N], right-aligned; "target": Int32 [M], left-aligned}; -1 is padding."""


class TargetOrder(enum.Enum):
    """In which order the model is taught to write the items of a session."""

    LOGGED = "logged"
    SHUFFLED = "shuffled"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How training examples are varied; validation and test never are."""

    target_order: TargetOrder = TargetOrder.LOGGED
    """shuffled: a new order of the session's items in every epoch, which suits logs whose order
    within a session means little."""
    history_dropout: float = 0.0
    """Probability with which an item is left out of an example's history, so that no single item
    is relied on; one item always stays."""
    reversed_share: float = 0.0
    """Share of the examples that are read backwards in time: the session and the latest items
    predict the earliest ones. Suits logs in which keeping company means more than coming after."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        if not 0 <= self.history_dropout < 1:
            raise ConfigError(
                f"augment.history_dropout is {self.history_dropout}; it must be at least 0 (keep "
                "all items) and below 1"
            )
        if not 0 <= self.reversed_share <= 1:
            raise ConfigError(
                f"augment.reversed_share is {self.reversed_share}; it must lie between 0 (none) "
                "and 1 (all examples)"
            )


def augment(
    config: AugmentConfig, example: Example, generator: np.random.Generator
) -> dict[str, np.ndarray]:
    """Varies one example. A `random_map` of the pipeline.

    Args:
      config: what is varied.
      example: see `Example`; it is not changed.
      generator: seeded by the pipeline for this record alone.

    Returns:
      An example of the same shapes and dtypes.
    """
    items, session = (_items(example[name]) for name in ("history", "target"))
    # A variation that is off draws nothing: turning one on leaves the others' draws as they were.
    if config.reversed_share and generator.random() < config.reversed_share:
        backwards = np.concatenate([items, session])[::-1]
        items, session = np.split(backwards, [len(items)])
    if config.history_dropout and len(items):
        items = _without_some(items, config.history_dropout, generator)
    if config.target_order is TargetOrder.SHUFFLED:
        session = generator.permutation(session)
    history, target = (np.full_like(example[name], -1) for name in ("history", "target"))
    history[len(history) - len(items) :] = items
    target[: len(session)] = session
    return {**example, "history": history, "target": target}


def _items(padded: np.ndarray) -> np.ndarray:
    """The items of a padded row."""
    return padded[padded >= 0]


def _without_some(items: np.ndarray, rate: float, generator: np.random.Generator) -> np.ndarray:
    """Leaves each item out with the given probability; if none is left, the most recent stays."""
    is_kept_P = generator.random(len(items)) >= rate
    if not is_kept_P.any():
        is_kept_P[-1] = True
    return items[is_kept_P]
