"""How contrastive cDPO finds the codes of a rejected session that made it a bad one.

Dimension key: none.
"""

import dataclasses
import enum

from core_jax.contrast import check_contrast
from core_jax.errors import ConfigError
from core_jax.loop import LoopConfig
from core_jax.optim import OptimConfig
from core_jax.token_weights import WeightConfig


class WeightScale(enum.Enum):
    """How hard the rejected session is pushed as a whole."""

    NONE = "none"  # by the weights as they are: as many codes as they sum to
    MEAN_ONE = "mean_one"  # as hard as by DPO: the weights of every session are scaled to mean 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContrastConfig:
    """Two models of good and of bad sessions, and what their difference says of every code.

    Both start from the model of the round and learn to write sessions that it proposed itself: the
    positive model those of high reward, the negative model those of low reward (Lin et al., 2024,
    arXiv:2411.19943, Section 3.1, has right and wrong solutions in their place).
    """

    share: float = 0.25
    """Share of each context's candidates that are good, the best ones, and that are bad, the worst
    ones; at least one of each."""
    beta: float = 1.0
    """Strength of the contrast: s = softmax((1 + beta) log p_positive - beta log p_negative) of the
    code, over the codes that the catalogue allows in its place (1 in the paper)."""
    weights: WeightConfig = dataclasses.field(default_factory=WeightConfig)
    """From the scores to the weights of the rejected session's codes (1 - s in the paper); chosen
    codes have weight 1."""
    scale: WeightScale = WeightScale.NONE
    """none: weights below 1 soften the push on the rejected session (paper). mean_one: they only
    move it between codes, and a constant weight is DPO."""
    batch_size: int = 64
    """Sessions per step of either model, over all devices."""
    optim: OptimConfig = dataclasses.field(default_factory=lambda: OptimConfig(learning_rate=3e-4))
    """Optimizer and schedule of either model."""
    loop: LoopConfig = dataclasses.field(default_factory=lambda: LoopConfig(num_steps=150))
    """Steps of either model, checkpoints."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        if not 0 < self.share <= 0.5:
            raise ConfigError(
                f"contrast.share is {self.share:g}; it must be above 0, and at most 0.5 for no "
                "session to be good and bad"
            )
        check_contrast(self.beta)
        if self.batch_size < 1:
            raise ConfigError(f"contrast.batch_size is {self.batch_size}; it must be at least 1")
