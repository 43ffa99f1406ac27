"""Configs of preference alignment: one method's training, and the whole comparison.

Dimension key: none.
"""

import dataclasses

from core_jax.errors import ConfigError
from core_jax.mesh import MeshConfig
from core_jax.nn.stack import Remat
from core_jax.optim import OptimConfig
from reasoning_jax.align.answer_sets import SetsConfig
from reasoning_jax.align.critical import CriticalConfig
from reasoning_jax.align.methods import NEEDED_ROWS, Loss, MethodConfig, Row, WeightSource
from reasoning_jax.align.pair_rows import PairRowsConfig
from reasoning_jax.align.scoring import ScoringConfig
from reasoning_jax.align.temperature import TemperatureConfig
from reasoning_jax.align.tuned import Tuning
from reasoning_jax.answers.grader import GraderConfig
from reasoning_jax.base_config import BaseConfig
from reasoning_jax.config import ScoreConfig
from reasoning_jax.data.load import ProblemsConfig
from reasoning_jax.data.packing import PackingConfig
from reasoning_jax.data.prompts import PromptConfig
from reasoning_jax.model.config import LoraConfig
from reasoning_jax.sampling.config import EngineConfig, SamplingConfig
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
    profile_steps: tuple[int, int] | None = None
    """First and last step of a profiler trace; none by default."""

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContrastConfig:
    """How the positive and the negative model are trained, by supervised fine-tuning."""

    optim: OptimConfig
    """Optimizer and schedule."""
    packing: PackingConfig
    """Rows of tokens."""
    lora: LoraConfig = dataclasses.field(default_factory=lambda: LoraConfig(rank=0))
    """Adapters; rank 0 trains all parameters."""
    epochs: float = 1.0
    """Passes over the solutions (the paper: 1)."""
    held_out: int = 32
    """Solutions kept back, whose loss is measured in the end."""
    batch_size: int = 8
    """Rows per step."""
    num_microbatches: int = 1
    """Parts of a batch that run one after the other."""
    chunk: int = 128
    """Tokens of a row whose logits exist at a time."""
    remat: Remat = Remat.FULL
    """What the backward pass keeps of a layer."""
    unroll: int = 1
    """Layers per iteration of the compiled loop over layers."""

    def __post_init__(self) -> None:
        """Checks what a fine-tuning would not."""
        if not self.epochs > 0:
            raise ConfigError(f"contrast.epochs is {self.epochs:g}; it must be above 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """Contrastive cDPO from samples to a table of methods, and what its tokens show."""

    run_dir: str
    """Folder of the run."""
    model: ModelConfig
    """The model; with `base`, its source is made and this names how it computes."""
    problems: ProblemsConfig
    """Training problems, whose solutions are sampled."""
    tests: tuple[ProblemsConfig, ...]
    """Problems that nothing is learnt from: one column of the table each."""
    sampling: SamplingConfig
    """How training solutions are sampled; the seed is that of the run's seed."""
    contrast: ContrastConfig
    """How the positive and the negative model are trained."""
    train: TrainConfig
    """How preferences are trained."""
    base: BaseConfig | None = None
    """Makes a small model from nothing first; None: `model` is there."""
    prompt: PromptConfig = dataclasses.field(default_factory=PromptConfig)
    """How problems are put when sampling, in training and in the test."""
    training_prompt: PromptConfig | None = None
    """How they are put to the models that learn; None: in the same way (the paper: zero-shot)."""
    test_sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    """How test solutions are sampled; greedy by default."""
    engine: EngineConfig = dataclasses.field(default_factory=EngineConfig)
    """How the engine works."""
    grader: GraderConfig = dataclasses.field(default_factory=GraderConfig)
    """How answers are judged."""
    sets: SetsConfig = dataclasses.field(default_factory=SetsConfig)
    """What is taken of the sampled solutions."""
    scoring: ScoringConfig = dataclasses.field(default_factory=ScoringConfig)
    """Contrastive scores."""
    rows: tuple[Row, ...] = (Row.BASELINE, Row.SFT, Row.DPO, Row.RPO, Row.CDPO)
    """Rows of the table."""
    tuning: Tuning = Tuning.PAPER
    """Whose learning rates and inverse temperatures the rows have."""
    seeds: tuple[int, ...] = (0,)
    """Repetitions, from sampling to evaluation; the model is one."""
    critical: CriticalConfig | None = None
    """Rollouts from every prefix, with the first seed; None: none."""
    view_limit: int = 200
    """Problems on the page of tokens; 0: all."""
    score: ScoreConfig = dataclasses.field(default_factory=ScoreConfig)
    """Intervals."""
    plan: bool = False
    """Only print what the run would cost, in tokens and hours, and stop."""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    """Devices."""

    def __post_init__(self) -> None:
        """Checks what the parts do not know of each other."""
        if not self.tests or not self.seeds or not self.rows:
            raise ConfigError(
                f"tests, seeds and rows are {len(self.tests)}, {len(self.seeds)} and "
                f"{len(self.rows)}; give at least one of each"
            )
        for name in ("seeds", "rows"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ConfigError(f"{name} has one twice; give each once")
        if self.sampling.num_samples < 2:
            raise ConfigError(
                f"sampling.num_samples is {self.sampling.num_samples}; a right and a wrong "
                "solution of one problem take at least 2"
            )
        missing = sorted(
            needed.value
            for row in self.rows
            for needed in NEEDED_ROWS.get(row, ())
            if needed not in self.rows
        )
        if missing:
            raise ConfigError(
                f"rows lacks {', '.join(missing)}, which others of its rows start from; add them"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TemperatureJobConfig:
    """Find the temperature that gives a wanted number of wrong answers."""

    run_dir: str
    """Folder of the run."""
    model: ModelConfig
    """The model."""
    problems: ProblemsConfig = dataclasses.field(
        default_factory=lambda: ProblemsConfig(split="train")
    )
    """Problems to sample."""
    prompt: PromptConfig = dataclasses.field(default_factory=PromptConfig)
    """How they are put."""
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    """How solutions are sampled, but for the temperature and how many."""
    engine: EngineConfig = dataclasses.field(default_factory=EngineConfig)
    """How the engine works."""
    grader: GraderConfig = dataclasses.field(default_factory=GraderConfig)
    """How answers are judged."""
    search: TemperatureConfig = dataclasses.field(default_factory=TemperatureConfig)
    """Which temperature is wanted."""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    """Devices."""
