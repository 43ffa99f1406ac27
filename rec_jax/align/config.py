"""How a trained OneRec is aligned with a reward model: candidates, pairs, training, rounds.

Dimension key: none.
"""

import dataclasses
import enum

from core_jax.errors import ConfigError
from core_jax.loop import LoopConfig
from core_jax.optim import OptimConfig
from rec_jax.align.contrast_config import ContrastConfig
from rec_jax.align.methods import MethodConfig
from rec_jax.align.tuned import DEFAULT_WEIGHT
from rec_jax.data.augment import AugmentConfig
from rec_jax.session_decoding import MAX_BEAMS


class RejectedRule(enum.Enum):
    """Which candidate the best one is preferred to."""

    WORST = "worst"
    RANDOM = "random"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CandidatesConfig:
    """The sessions that the current model proposes, and the reward model judges."""

    num_beams: int = 128
    """N: sessions per history, by beam search (128 in the paper)."""
    batch_size: int = 32
    """Histories per compiled call."""
    part_size: int = 512
    """Histories per file: what a search that was cut off has to do again, at most."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        if not 2 <= self.num_beams <= MAX_BEAMS:
            raise ConfigError(
                f"candidates.num_beams is {self.num_beams}; a best and a worst need 2 to "
                f"{MAX_BEAMS} candidates"
            )
        if self.batch_size < 1 or self.part_size < 1:
            raise ConfigError(
                f"candidates.batch_size is {self.batch_size} and part_size {self.part_size}; both "
                "must be at least 1"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupsConfig:
    """Which of the candidates a loss sees together."""

    rejected: RejectedRule = RejectedRule.WORST
    """What the best candidate is preferred to: the worst (paper) or a random worse one."""
    num_negatives: int = 3
    """Rejected candidates per chosen one, for S-DPO; the worst ones."""
    group_size: int = 8
    """Candidates per group, for ECPO and GBPO: random ones of all."""
    legality_samples: int = 0
    """Sessions sampled without the catalogue constraint that join each group of ECPO and GBPO with
    advantage 1 where every item of theirs exists, and are left out otherwise (5 in
    arXiv:2506.13695); 0: none."""
    min_gap: float = 0.0
    """Rewards of chosen and rejected must differ by more than this; else the context is skipped
    and counted."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        if self.num_negatives < 1:
            raise ConfigError(f"groups.num_negatives is {self.num_negatives}; set 1 or more")
        if self.group_size < 2:
            raise ConfigError(
                f"groups.group_size is {self.group_size}; a group compares at least 2 candidates"
            )
        if self.legality_samples < 0 or self.min_gap < 0:
            raise ConfigError(
                f"groups.legality_samples is {self.legality_samples} and min_gap {self.min_gap}; "
                "both must be 0 or more"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlignConfig:
    """Rounds of preference alignment (paper, Algorithm 2).

    The paper gives N = 128 and r_DPO = 1 %; lambda, beta, T and the number of samples per round
    are ours. `docs/alignment.md` says how the defaults were chosen.
    """

    method: MethodConfig = dataclasses.field(default_factory=MethodConfig)
    """Preference loss."""
    num_rounds: int = 1
    """T: how often the aligned model becomes generator, reference and start of the next round."""
    preference_ratio: float = 0.01
    """r_DPO: share of the training samples that carry the preference loss (1 % in the paper)."""
    preference_weight: float | None = None
    """lambda: weight of the preference loss; every sample carries the next-token loss. None: what
    the demo's sweep chose for the method."""
    candidates: CandidatesConfig = CandidatesConfig()
    """The candidates of a round."""
    groups: GroupsConfig = GroupsConfig()
    """Chosen and rejected."""
    contrast: ContrastConfig = dataclasses.field(default_factory=ContrastConfig)
    """Weights of the rejected codes, for the method contrastive; others do not read it."""
    batch_size: int
    """Samples per step, over all devices."""
    num_microbatches: int = 1
    """Sequential parts of a step; divides the memory for activations."""
    dropout: float = 0.0
    """Dropout while aligning; the reference never has any."""
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    """How the samples without a preference are varied."""
    optim: OptimConfig
    """Optimizer and schedule of a round."""
    loop: LoopConfig
    """Steps of a round, checkpoints."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        if self.num_rounds < 1:
            raise ConfigError(f"align.num_rounds is {self.num_rounds}; set 1 or more")
        if not 0 < self.preference_ratio <= 1:
            raise ConfigError(
                f"align.preference_ratio is {self.preference_ratio}; it must lie above 0 (no "
                "preferences would be plain pre-training) and be at most 1"
            )
        if self.preference_weight is not None and not self.preference_weight > 0:
            raise ConfigError(
                f"align.preference_weight is {self.preference_weight}; it must be above 0, or None"
            )
        if self.batch_size < 1 or self.num_microbatches < 1:
            raise ConfigError(
                f"align.batch_size is {self.batch_size} and num_microbatches "
                f"{self.num_microbatches}; both must be at least 1"
            )
        if self.num_samples * self.preference_ratio < 1:
            raise ConfigError(
                f"align.preference_ratio {self.preference_ratio} of {self.num_samples} samples "
                f"({self.loop.num_steps} steps of {self.batch_size}) selects nobody; set it to at "
                f"least {1 / self.num_samples:.2g}, or train on more samples"
            )

    @property
    def effective_weight(self) -> float:
        """The weight in force: lambda."""
        if self.preference_weight is None:
            return DEFAULT_WEIGHT[self.method.method]
        return self.preference_weight

    @property
    def num_samples(self) -> int:
        """N_sample: training samples of a round."""
        return self.loop.num_steps * self.batch_size
