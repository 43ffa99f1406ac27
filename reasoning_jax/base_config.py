"""Config of the stage that makes a small base model from nothing.

Dimension key: none.
"""

import dataclasses

from core_jax.errors import ConfigError
from core_jax.loop import LoopConfig
from core_jax.mesh import MeshConfig
from core_jax.optim import OptimConfig, Schedule
from reasoning_jax.answers.grader import GraderConfig
from reasoning_jax.data.load import ProblemsConfig
from reasoning_jax.data.packing import PackingConfig
from reasoning_jax.data.problems import STEPS
from reasoning_jax.data.prompts import PromptConfig, PromptStyle
from reasoning_jax.model.config import DecoderConfig
from reasoning_jax.sampling.config import EngineConfig, SamplingConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """Train a small model from nothing on written solutions, until it is half good."""

    run_dir: str
    """The run's folder; gets `model`, a folder that model.source can name."""
    model: DecoderConfig
    """The architecture; vocab_size has room for a token per character and piece."""
    optim: OptimConfig
    """Optimizer; a constant schedule, as nobody knows where training will stop."""
    loop: LoopConfig
    """Most steps, and by evaluate_every how often the accuracy is measured."""
    packing: PackingConfig
    """Rows of tokens."""
    problems: ProblemsConfig = dataclasses.field(
        default_factory=lambda: ProblemsConfig(task=STEPS, split="train", limit=20_000)
    )
    """Problems with written solutions; the last ones are kept back to measure the accuracy."""
    prompt: PromptConfig = dataclasses.field(
        default_factory=lambda: PromptConfig(style=PromptStyle.PLAIN)
    )
    """How problems are put; plain or with worked examples, as there is no chat template."""
    pieces: tuple[str, ...] = ("Question: ", "\nAnswer:", "\nThe answer is ")
    """Texts that are one token each, since they stand in every example; else characters are."""
    lowest_accuracy: float = 0.4
    """Training stops at the first measured accuracy of at least this."""
    highest_accuracy: float = 0.7
    """And it must not be above this: then measure more often."""
    measured: int = 128
    """Problems kept back, on which the accuracy is measured."""
    sampling: SamplingConfig = dataclasses.field(
        default_factory=lambda: SamplingConfig(temperature=1.0, max_new_tokens=128, num_samples=2)
    )
    """How solutions are sampled to measure the accuracy."""
    engine: EngineConfig = dataclasses.field(default_factory=EngineConfig)
    """How the engine works."""
    grader: GraderConfig = dataclasses.field(default_factory=GraderConfig)
    """How answers are judged."""
    batch_size: int = 32
    """Rows per step."""
    chunk: int = 128
    """Tokens of a row whose logits exist at a time."""
    seed: int = 0
    """Of the weights and the data order."""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    """Devices."""

    def __post_init__(self) -> None:
        """Checks what the parts do not know of each other."""
        if not 0 < self.lowest_accuracy < self.highest_accuracy <= 1:
            raise ConfigError(
                f"lowest_accuracy is {self.lowest_accuracy} and highest_accuracy "
                f"{self.highest_accuracy}; expected 0 < lowest < highest <= 1"
            )
        if self.optim.schedule is not Schedule.CONSTANT:
            raise ConfigError(
                f"optim.schedule is {self.optim.schedule.value}; training stops by accuracy and "
                "not by a number of steps, so only constant can be kept to"
            )
        if self.loop.evaluate_every < 1:
            raise ConfigError(
                "loop.evaluate_every is 0; give the number of steps between two measurements of "
                "the accuracy"
            )
        if self.prompt.style is PromptStyle.CHAT:
            raise ConfigError("prompt.style is chat, but a model from nothing has no chat template")
        if self.problems.split != "train":
            raise ConfigError(
                f"problems.split is {self.problems.split}; learn from train, so that test stays "
                "unseen"
            )
        if self.measured < 1:
            raise ConfigError(f"measured is {self.measured}; keep at least 1 problem back")
