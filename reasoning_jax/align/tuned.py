"""Learning rate and inverse temperature of every row: the paper's, or chosen on validation.

Dimension key: none.
"""

import dataclasses
import enum
from collections.abc import Mapping

from core_jax.errors import ConfigError
from reasoning_jax.align.methods import MethodConfig, Row, row_method


class Tuning(enum.Enum):
    """Where numbers come from."""

    PAPER = "paper"  # arXiv 2411.19943, section 4: 2e-5, and 4e-5 for contrastive cDPO
    DEMO = "demo"  # chosen on validation for the preset demo, by reasoning.tune
    SMOLLM2 = "smollm2"  # chosen for the preset smollm2_demo


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuned:
    """What is tuned of a row."""

    learning_rate: float
    """Peak of the schedule."""
    beta: float | None = None
    """Inverse temperature; None: that of the row's own paper."""


_CONTRASTIVE = (
    Row.CDPO,
    Row.CDPO_SHUFFLED,
    Row.CDPO_CONSTANT,
    Row.CDPO_RANDOM,
    Row.CDPO_BOTH,
    Row.CDPO_CODE,
    Row.CDPO_CODE_SHUFFLED,
)

_PAPER = {
    row: Tuned(learning_rate=4e-5 if row in _CONTRASTIVE else 2e-5)
    for row in Row
    if row is not Row.BASELINE
}

TUNED: dict[Tuning, Mapping[Row, Tuned]] = {Tuning.PAPER: _PAPER}
"""By tuning and row; `docs/cdpo.md` says how they were found."""


def tuned(tuning: Tuning, row: Row) -> tuple[float, MethodConfig]:
    """Learning rate and method of a row.

    Raises:
      ConfigError: the row is not trained, or has not been tuned there.
    """
    method = row_method(row)
    found = TUNED[tuning].get(row)
    if method is None or found is None:
        known = ", ".join(one.value for one in TUNED[tuning])
        raise ConfigError(
            f"row {row.value} has no numbers in tuning {tuning.value}; it has {known}"
        )
    if found.beta is not None:
        method = dataclasses.replace(method, beta=found.beta)
    return found.learning_rate, method
