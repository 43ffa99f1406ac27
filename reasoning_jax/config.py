"""Root configs of the reasoning jobs.

Dimension key: none.
"""

import dataclasses
import enum

from core_jax.errors import ConfigError
from core_jax.loop import LoopConfig
from core_jax.mesh import MeshConfig
from core_jax.nn.linear import ComputeDtype
from core_jax.nn.stack import Remat
from core_jax.optim import OptimConfig
from reasoning_jax.accuracy import IntervalMethod
from reasoning_jax.answers.grader import GraderConfig
from reasoning_jax.data.leakage import LeakageConfig
from reasoning_jax.data.load import ProblemsConfig
from reasoning_jax.data.packing import PackingConfig
from reasoning_jax.data.prompts import PromptConfig
from reasoning_jax.data.sft_examples import TrajectoryChoice
from reasoning_jax.data.trajectory_import import ImportConfig
from reasoning_jax.model.config import LoraConfig
from reasoning_jax.sampling.config import EngineConfig, SamplingConfig
from reasoning_jax.weights.model_source import ModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """How results are summed up."""

    ks: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """For pass@k and majority@k; those above the number of samples are left out."""
    bootstrap_samples: int = 2000
    """Resamples of the problems for every interval."""
    confidence: float = 0.95
    """Probability mass of the intervals."""
    interval: IntervalMethod = IntervalMethod.PERCENTILE
    """How an interval's ends are found among the resamples."""
    seed: int = 0
    """Of the resamples."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Sample solutions of problems, grade them, and sum up."""

    run_dir: str
    """The run's folder."""
    model: ModelConfig
    """The model."""
    problems: ProblemsConfig = dataclasses.field(default_factory=ProblemsConfig)
    """What is to be solved."""
    prompt: PromptConfig = dataclasses.field(default_factory=PromptConfig)
    """How it is asked."""
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    """How solutions are sampled."""
    engine: EngineConfig = dataclasses.field(default_factory=EngineConfig)
    """How the engine works."""
    imported: str = ""
    """File of another engine's samples (JSON lines): they are graded, and nothing is sampled."""
    columns: ImportConfig = dataclasses.field(default_factory=ImportConfig)
    """What is where in the imported file."""
    grader: GraderConfig = dataclasses.field(default_factory=GraderConfig)
    """How answers are judged; the lenient grader of the cDPO paper is reported beside it."""
    score: ScoreConfig = dataclasses.field(default_factory=ScoreConfig)
    """How results are summed up."""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    """Devices."""


class Solutions(enum.Enum):
    """Where the solutions to learn come from."""

    PROBLEMS = "problems"
    """Written solutions of the problems; without one, the answer alone."""
    TRAJECTORIES = "trajectories"
    """Sampled solutions of a file."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftConfig:
    """Fine-tune a model on solutions, all of it or adapters."""

    run_dir: str
    """The run's folder."""
    model: ModelConfig
    """The model to start from."""
    optim: OptimConfig
    """Optimizer and schedule."""
    loop: LoopConfig
    """Steps, evaluations, checkpoints."""
    epochs: float = 0.0
    """Passes over the training rows, which then say how many steps there are; 0: loop.num_steps."""
    packing: PackingConfig
    """Rows of tokens."""
    lora: LoraConfig = dataclasses.field(default_factory=lambda: LoraConfig(rank=0))
    """Adapters; rank 0 trains all parameters."""
    solutions: Solutions = Solutions.PROBLEMS
    """Where the solutions come from."""
    problems: ProblemsConfig = dataclasses.field(
        default_factory=lambda: ProblemsConfig(split="train")
    )
    """Problems to learn from."""
    trajectories: str = ""
    """File of sampled solutions, for solutions=trajectories."""
    choice: TrajectoryChoice = dataclasses.field(default_factory=TrajectoryChoice)
    """Which sampled solutions."""
    tested_on: str = ""
    """The problem set that the model will be tested on: tasks made from it are refused."""
    prompt: PromptConfig = dataclasses.field(default_factory=PromptConfig)
    """How problems are put, as they will be when the model is asked."""
    held_out: int = 64
    """Examples kept for validation, the first ones."""
    batch_size: int = 8
    """Rows per step."""
    num_microbatches: int = 1
    """Parts of a batch that run one after the other."""
    chunk: int = 128
    """Tokens of a row whose logits exist at a time."""
    remat: Remat = Remat.FULL
    """What the backward pass keeps of a layer."""
    unroll: int = 1
    """Layers per iteration of the compiled loop over layers; all of them is fastest on a CPU."""
    seed: int = 0
    """Of the data order, adapters and dropout."""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    """Devices."""

    def __post_init__(self) -> None:
        """Checks what the parts do not know of each other."""
        if self.solutions is Solutions.TRAJECTORIES and not self.trajectories:
            raise ConfigError("solutions is trajectories; name their file by --trajectories")
        if self.held_out < 1:
            raise ConfigError(f"held_out is {self.held_out}; keep at least 1 example back")
        if self.epochs < 0:
            raise ConfigError(f"epochs is {self.epochs:g}; give a number, or 0 for loop.num_steps")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Two evaluations of the same problems, pair by pair."""

    first: str = "runs/smollm2"
    """Run folder of the first evaluation."""
    second: str = "runs/smollm2_sft"
    """Run folder of the second."""
    run_dir: str = "runs/compare"
    """Folder that gets comparison.md and comparison.json."""
    score: ScoreConfig = dataclasses.field(default_factory=ScoreConfig)
    """Resamples and confidence of the interval."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeakageJobConfig:
    """Are questions that a model is tested on among those that it learns from?"""

    run_dir: str = "runs/leakage"
    """Folder that gets leakage.txt."""
    train_task: str = "gsm8k"
    """The task whose training problems it learns from."""
    train_path: str = ""
    """Their file or folder, as problems.path."""
    test_task: str = "gsm8k"
    """The task whose test problems it is tested on."""
    test_path: str = ""
    """Their file or folder."""
    overlap: LeakageConfig = dataclasses.field(default_factory=LeakageConfig)
    """What counts as leaked."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write a fine-tuned model for others."""

    run_dir: str = "runs/sft"
    """The run folder of a fine-tuning."""
    folder: str = "exported"
    """Gets safetensors and config.json, or for adapters PEFT's two files."""
    merge: bool = False
    """Whether adapters are merged into the model, which is then written whole."""
    dtype: ComputeDtype = ComputeDtype.FLOAT32
    """Of the tensors in the files of a whole model."""
