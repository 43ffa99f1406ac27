"""The configuration of a whole OneRec run: one config per part, one root.

Dimension key: none.
"""

import dataclasses

from core_jax.errors import ConfigError
from core_jax.loop import LoopConfig
from core_jax.mesh import MeshConfig
from core_jax.optim import OptimConfig
from rec_jax.baselines.methods import BaselinesConfig
from rec_jax.data.augment import AugmentConfig
from rec_jax.data.own_logs import OwnLogConfig
from rec_jax.data.session_config import SessionConfig
from rec_jax.data.simulator.config import SimulatorConfig
from rec_jax.evaluate import EvaluateConfig
from rec_jax.model.config import OneRecConfig
from rec_jax.semantic_ids.embeddings import EmbeddingConfig
from rec_jax.semantic_ids.residual import SemanticIdConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class MovielensConfig:
    """A MovieLens log, fetched into the data cache the first time."""

    variant: str = "100k"
    """100k, latest-small, 1m or 25m."""
    source: str = ""
    """Folder or zip with the variant's files; empty: fetched."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """How OneRec is trained on next tokens."""

    batch_size: int
    """Sessions per step, over all devices."""
    num_microbatches: int = 1
    """Sequential parts of a step; divides the memory for activations."""
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    """How examples are varied from epoch to epoch."""
    loop: LoopConfig
    """Steps, evaluation, checkpoints."""
    pointwise_steps: int = 0
    """Steps of a second, point-wise model (session of one item) to compare with; 0: none."""

    def __post_init__(self) -> None:
        """Checks every field on its own."""
        if self.batch_size < 1 or self.num_microbatches < 1:
            raise ConfigError(
                f"pretrain.batch_size is {self.batch_size} and num_microbatches "
                f"{self.num_microbatches}; both must be at least 1"
            )
        if self.pointwise_steps < 0:
            raise ConfigError(
                f"pretrain.pointwise_steps is {self.pointwise_steps}; it must be 0 (none) or more"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """How sessions are generated for evaluation and recommendation."""

    session_beams: int = 32
    """Beams of whole sessions per user."""
    item_beams: int = 128
    """Beams of the first-item list per user."""
    batch_size: int = 64
    """Users per compiled call."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """A run from a log to a report."""

    run_dir: str
    """Folder of the run."""
    seed: int = 0
    """Seed of clustering, initialisation, data order and dropout."""
    log: MovielensConfig | OwnLogConfig | SimulatorConfig
    """The interaction log."""
    sessions: SessionConfig
    """Sessions, filter, split."""
    embeddings: EmbeddingConfig
    """Item embeddings."""
    semantic_ids: SemanticIdConfig
    """Codes per level and their clustering."""
    model: OneRecConfig
    """Architecture."""
    optim: OptimConfig
    """Optimizer and schedule."""
    pretrain: PretrainConfig
    """Next-token training."""
    generate: GenerateConfig = GenerateConfig()
    """Beams."""
    baselines: BaselinesConfig = dataclasses.field(default_factory=BaselinesConfig)
    """What OneRec is compared with."""
    evaluate: EvaluateConfig = dataclasses.field(default_factory=EvaluateConfig)
    """Metrics and intervals."""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    """Devices per axis."""
    sample_users: tuple[str, ...] = ()
    """Users whose generated sessions the report shows; empty: the first three of the test."""

    def __post_init__(self) -> None:
        """Checks what several parts must agree on."""
        if self.model.session_items not in (1, self.sessions.session_items):
            raise ConfigError(
                f"model.session_items is {self.model.session_items}, but sessions.session_items "
                f"is {self.sessions.session_items}; set both alike, or the model's to 1 "
                "(point-wise generation)"
            )
        if self.model.history_items > self.sessions.history_items:
            raise ConfigError(
                f"model.history_items is {self.model.history_items}, but sessions.history_items "
                f"only {self.sessions.history_items}; raise sessions.history_items"
            )
