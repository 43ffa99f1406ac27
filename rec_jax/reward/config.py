"""What a reward model predicts, how it is built and how it is trained.

Dimension key: T heads, D model, L code levels.
"""

import dataclasses
import enum
import math

from core_jax.errors import ConfigError, nearest_name
from core_jax.loop import LoopConfig
from core_jax.nn.linear import ComputeDtype
from core_jax.optim import OptimConfig

P_SCORE = "p_score"
"""Name of the head that fuses all targets (arXiv:2506.13695)."""


class TargetKind(enum.Enum):
    """How a session's rows become one label in [0, 1]; see `rec_jax.reward.labels`."""

    WATCH_TIME_PERCENTILE = "watch_time_percentile"
    WATCH_TIME_ABOVE = "watch_time_above"
    ANY = "any"
    SHARE = "share"
    MEAN = "mean"
    PERCENTILE = "percentile"
    DURATION_SHARE = "duration_share"
    DURATION_PERCENTILE = "duration_percentile"


COLUMN_KINDS = (TargetKind.ANY, TargetKind.SHARE, TargetKind.MEAN, TargetKind.PERCENTILE)
"""Kinds that read a feedback column of one's choice."""
DURATION_KINDS = (TargetKind.DURATION_SHARE, TargetKind.DURATION_PERCENTILE)
"""Kinds that read watch time and duration."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetConfig:
    """One head of the reward model."""

    name: str
    """Name of the head: swt, vtr, ltr, ..."""
    kind: TargetKind
    """watch_time_percentile: rank of the session's watch time among training sessions;
    watch_time_above: whether it reaches their `quantile`; any, share: whether one, or the share
    of, the items have `column` at least `threshold`; mean: mean of `column` on the scale `low` to
    `high`; percentile: rank of that mean among training sessions; duration_share,
    duration_percentile: watch time against the user's own at videos of that length."""
    column: str = ""
    """Feedback column of the kinds any, share, mean and percentile."""
    threshold: float = 1.0
    """Least value of `column` that counts (any, share); true is 1."""
    quantile: float = 0.75
    """Quantile of the training sessions (watch_time_above), or the percentile that an item must
    exceed to count (duration_share; 0.75 is the paper's top quarter)."""
    low: float = 0.0
    """Value of `column` that is labelled 0 (mean)."""
    high: float = 1.0
    """Value of `column` that is labelled 1 (mean)."""
    bucket_base: float = 2.0
    """Base beta of the duration buckets floor(log_beta(seconds + 1))."""
    bucket_events: int = 5
    """A user with fewer training events in a bucket is measured against everybody's there."""
    p_weight: float = 1.0
    """Weight of this target in the loss of the P-score's head."""

    def __post_init__(self) -> None:
        """Checks what a kind needs."""
        where = f"target '{self.name}'"
        if not self.name or self.name == P_SCORE or "=" in self.name:
            raise ConfigError(
                f"a target is called '{self.name}'; give a name without '=' other than '{P_SCORE}'"
            )
        needs_column = self.kind in COLUMN_KINDS
        if needs_column and not self.column:
            raise ConfigError(
                f"{where} of kind '{self.kind.value}' has no column; set column, as in 'like'"
            )
        if self.column and not needs_column:
            raise ConfigError(
                f"{where} of kind '{self.kind.value}' reads watch_time_ms, but names column "
                f"'{self.column}'; leave column empty or choose another kind"
            )
        if not 0 < self.quantile < 1:
            raise ConfigError(f"{where} has quantile {self.quantile}; it must lie in (0, 1)")
        if not self.low < self.high:
            raise ConfigError(f"{where} has low {self.low} and high {self.high}; set low < high")
        if not (1 < self.bucket_base < math.inf and self.bucket_events >= 1):
            raise ConfigError(
                f"{where} has bucket_base {self.bucket_base} and bucket_events "
                f"{self.bucket_events}; they must be above 1 and at least 1"
            )
        if not 0 <= self.p_weight < math.inf:
            raise ConfigError(f"{where} has p_weight {self.p_weight}; it must be 0 or more")


class RewardArchitecture(enum.Enum):
    """How user and session meet."""

    TARGET_ATTENTION = "target_attention"
    POOLED = "pooled"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardModelConfig:
    """Architecture of the reward model (Deng et al., 2025, arXiv:2502.18965, Section 3.3.1)."""

    architecture: RewardArchitecture = RewardArchitecture.TARGET_ATTENTION
    """target_attention: the paper's; pooled: no attention anywhere, for a judge whose errors are
    not those of the model that chose."""
    level_sizes: tuple[int, ...] = ()
    """Codes per level of the semantic IDs; empty: taken from the catalogue by the stage."""
    num_items: int = 0
    """Items of the catalogue; 0: taken from it by the stage."""
    num_targets: int = 0
    """Heads that are targets of the log; 0: taken from the targets by the stage."""
    history_items: int = 20
    """N: most recent history items that are read."""
    session_items: int = 5
    """M: most items of a session; longer delivered sessions are cut into pieces of M."""
    d_model: int = 32
    """Width of item representations."""
    num_heads: int = 2
    """Attention heads."""
    head_dim: int = 16
    """Width of an attention head."""
    d_tower: int = 32
    """Hidden width of every tower."""
    use_item_ids: bool = True
    """Whether an item has an embedding of its own besides those of its codes."""
    p_score: bool = False
    """Whether one more head fuses the towers into one score (arXiv:2506.13695)."""
    dropout: float = 0.1
    """Dropout rate of embeddings, of attention's results and in the towers, in training only."""
    compute_dtype: ComputeDtype = ComputeDtype.FLOAT32
    """Dtype of activations and matrix operands; parameters and logits stay float32."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        for name in (
            *("history_items", "session_items", "d_model"),
            *("num_heads", "head_dim", "d_tower"),
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name} is {getattr(self, name)}; it must be at least 1")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"model.dropout is {self.dropout}; it must lie in [0, 1)")

    @property
    def num_outputs(self) -> int:
        """Heads of the model: the targets', and the P-score's where there is one."""
        return self.num_targets + self.p_score

    @property
    def num_levels(self) -> int:
        """L: codes per item."""
        return len(self.level_sizes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """How the heads become one number."""

    weights: tuple[str, ...] = ()
    """Weight per head, as in 'swt=1.0' 'ltr=2.0'; heads that are not named count nothing. Empty:
    every target alike, the P-score not at all. A head is standardised before it is weighted."""

    def __post_init__(self) -> None:
        """Checks that every entry can be read."""
        names = [name for name, _ in self.pairs]
        if len(names) != len(set(names)):
            raise ConfigError(f"fusion.weights {self.weights} names a head twice; keep one of them")
        if self.weights and not any(weight for _, weight in self.pairs):
            raise ConfigError(f"fusion.weights {self.weights} are all 0; give one head a weight")

    @property
    def pairs(self) -> tuple[tuple[str, float], ...]:
        """Names and weights."""
        return tuple(_pair(entry) for entry in self.weights)


def _pair(entry: str) -> tuple[str, float]:
    name, _, weight = entry.partition("=")
    try:
        value = float(weight)
    except ValueError:
        value = math.nan
    if not name or not math.isfinite(value):
        raise ConfigError(f"fusion.weights has '{entry}'; write 'head=weight', as in 'swt=1.0'")
    return name, value


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """A reward model: what it predicts, its architecture, its training, and for whose sessions."""

    targets: tuple[TargetConfig, ...]
    """The heads; a log without a signal has fewer of them."""
    model: RewardModelConfig = RewardModelConfig()
    """Architecture."""
    optim: OptimConfig
    """Optimizer and schedule."""
    batch_size: int = 256
    """Sessions per step, over all devices."""
    loop: LoopConfig
    """Steps, evaluation, checkpoints."""
    user_folds: int = 1
    """Into how many parts users are dealt, by a hash of the user's number."""
    user_fold: int = 0
    """The part whose sessions train this model; judges with different folds share no user."""
    valid_share: float = 0.1
    """Share of the fold's users whose training sessions choose the best checkpoint instead."""
    fusion: FusionConfig = FusionConfig()
    """How the heads become one number."""
    score_batch: int = 128
    """Users per compiled call when sessions are scored."""
    calibration_bins: int = 10
    """Bins of equal mass of the calibration error."""
    seed: int = 0
    """Seed of initialisation, data order and dropout."""

    def __post_init__(self) -> None:
        """Checks ranges and names."""
        names = [target.name for target in self.targets]
        if not names or len(names) != len(set(names)):
            raise ConfigError(
                f"reward.targets are called {names}; give at least one, each with its own name"
            )
        for name in ("batch_size", "score_batch", "calibration_bins", "user_folds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"reward.{name} is {getattr(self, name)}; set 1 or more")
        if not 0 <= self.user_fold < self.user_folds:
            raise ConfigError(
                f"reward.user_fold is {self.user_fold}; with reward.user_folds "
                f"{self.user_folds} it must lie between 0 and {self.user_folds - 1}"
            )
        if not 0 < self.valid_share < 1:
            raise ConfigError(
                f"reward.valid_share is {self.valid_share}; it must lie in (0, 1), since the best "
                "checkpoint is chosen on users that do not train"
            )
        for name, _ in self.fusion.pairs:
            if name not in self.head_names:
                raise ConfigError(
                    f"fusion.weights names '{name}', no head of this reward model, which has "
                    f"{', '.join(self.head_names)}. {nearest_name(name, self.head_names)}"
                )

    @property
    def head_names(self) -> tuple[str, ...]:
        """Names of all heads, in the order of the model's outputs."""
        names = tuple(target.name for target in self.targets)
        return (*names, P_SCORE) if self.model.p_score else names
