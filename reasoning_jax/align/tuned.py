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
    DEMO = "demo"  # chosen on validation problems for the preset demo
    SMOLLM2 = "smollm2"  # for the preset smollm2_demo, not searched


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

_LIKE_DPO = Tuned(learning_rate=1e-4, beta=5.0)
_LIKE_CDPO = Tuned(learning_rate=1e-4, beta=1.0)

_DEMO = {row: _LIKE_CDPO if row in _CONTRASTIVE else _LIKE_DPO for row in _PAPER} | {
    # Of learning rates 1e-4 and 3e-4 and beta 0.1, 1 and 5 (RPO: 0.1 and 1), the best of each row
    # by `python -m benchmarks.contrastive_tuning`; TDPO2 and the other controls were not searched.
    # Shuffled weights: by the mean over two base models, whose best points differ.
    Row.SFT: Tuned(learning_rate=1e-4),
    Row.RPO: Tuned(learning_rate=1e-4, beta=1.0),
}

TUNED: dict[Tuning, Mapping[Row, Tuned]] = {
    Tuning.PAPER: _PAPER,
    Tuning.DEMO: _DEMO,
    # Not searched: the learning rates of the paper, tripled for two passes over some 80 pairs.
    Tuning.SMOLLM2: {
        row: Tuned(learning_rate=3 * one.learning_rate) for row, one in _PAPER.items()
    },
}
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
