"""Configs of preference alignment: one method's training, and the whole comparison.

Dimension key: none.
"""

import dataclasses

from core_jax.errors import ConfigError
from core_jax.mesh import MeshConfig
from core_jax.nn.stack import Remat
from core_jax.optim import OptimConfig
from reasoning_jax.align.methods import Loss, MethodConfig, WeightSource
from reasoning_jax.align.pair_rows import PairRowsConfig
from reasoning_jax.model.config import LoraConfig
from reasoning_jax.weights.model_source import ModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How preferences are trained, whatever the method."""

    optim: OptimConfig
    """Optimizer and schedule."""
    rows: PairRowsConfig
    """Rows of pairs."""
    lora: LoraConfig = dataclasses.field(default_factory=lambda: LoraConfig(rank=0))
    """Adapters; rank 0 trains all parameters."""
    epochs: float = 3.0
    """Passes over the pairs (the paper: 3)."""
    batch_size: int = 8
    """Rows per step."""
    num_microbatches: int = 1
    """Parts of a batch that run one after the other."""
    watched: int = 64
    """Pairs, the first ones, whose log-probabilities are followed over training."""
    num_looks: int = 6
    """How often they are looked at."""
    chunk: int = 128
    """Tokens of a row whose logits exist at a time."""
    remat: Remat = Remat.FULL
    """What the backward pass keeps of a layer."""
    unroll: int = 1
    """Layers per iteration of the compiled loop over layers; all of them is fastest on a CPU."""

    def __post_init__(self) -> None:
        """Checks every field on its own."""
        if not self.epochs > 0:
            raise ConfigError(f"train.epochs is {self.epochs:g}; it must be above 0")
        for name in ("batch_size", "num_microbatches", "watched", "num_looks", "chunk", "unroll"):
            if getattr(self, name) < 1:
                raise ConfigError(f"train.{name} is {getattr(self, name)}; it must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferConfig:
    """Train a model on pairs by one method."""

    run_dir: str
    """The run's folder."""
    model: ModelConfig
    """The model to start from, which is also the reference."""
    pairs: str
    """File of pairs (reasoning.sets)."""
    reference: str
    """File of the pairs' log-probabilities under the model."""
    train: TrainConfig
    """How."""
    scores: str = ""
    """File of contrastive scores, for the sources contrast and tis."""
    guide: str = ""
    """File of log-probabilities under a first run's policy, for the source tgdpo."""
    method: MethodConfig = dataclasses.field(default_factory=MethodConfig)
    """The method."""
    seed: int = 0
    """Of the data order, adapters, dropout and shuffled or random weights."""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    """Devices."""

    def __post_init__(self) -> None:
        """Checks that what the method reads is named."""
        if self.method.needs_scores and not self.scores:
            raise ConfigError(
                f"method.source is {self.method.source.value}, which reads contrastive scores; "
                "name their file by --scores"
            )
        if self.method.source is WeightSource.TGDPO and not self.guide:
            raise ConfigError(
                "method.source is tgdpo, which reads a first run's log-probabilities; name their "
                "file by --guide"
            )

    @property
    def holds_reference(self) -> bool:
        """Whether the start is needed while training, beside what is trained."""
        return self.train.lora.rank > 0 or self.method.loss in (Loss.TDPO1, Loss.TDPO2)
