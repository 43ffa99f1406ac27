"""How solutions are sampled.

Dimension key: none.
"""

import dataclasses
import enum

from core_jax.errors import ConfigError


class CacheDtype(enum.Enum):
    """The dtype of cached keys and values."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Temperature, truncation and length of what is sampled."""

    temperature: float = 0.0
    """Logits are divided by it; 0 takes the most probable token."""
    top_k: int = 0
    """Only this many of the most probable tokens (and those equal to the last); 0: all."""
    top_p: float = 1.0
    """Only the most probable tokens that together reach this probability; 1: all."""
    max_new_tokens: int = 512
    """Longest response in tokens."""
    stop: tuple[str, ...] = ()
    """Strings that end a response; they are not part of it."""
    num_samples: int = 1
    """Responses per problem."""
    seed: int = 0
    """Of all draws; a draw depends on it, the problem, the sample and the position alone."""

    def __post_init__(self) -> None:
        """Checks every field on its own, and samples against temperature."""
        if self.temperature < 0:
            raise ConfigError(
                f"sampling.temperature is {self.temperature}; it must be 0 (greedy) or more"
            )
        if self.top_k < 0:
            raise ConfigError(f"sampling.top_k is {self.top_k}; give a count, or 0 for all tokens")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"sampling.top_p is {self.top_p}; it must be in (0, 1]")
        for name in ("max_new_tokens", "num_samples"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"sampling.{name} is {getattr(self, name)}; it must be at least 1"
                )
        if self.num_samples > 1 and self.temperature == 0:
            raise ConfigError(
                f"sampling.num_samples is {self.num_samples} at temperature 0, where all are "
                "equal; raise sampling.temperature"
            )
        if "" in self.stop:
            raise ConfigError("sampling.stop has an empty string, which ends every response")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How the engine works; changes its speed and memory, not what it samples."""

    num_rows: int = 32
    """Responses that are sampled side by side."""
    prompts_per_prefill: int = 8
    """Prompts that are read in one go; on a mesh, rounded up to a multiple of its batch shards."""
    steps_per_chunk: int = 16
    """Tokens per row between two looks of the host: at stop strings, at rows to fill again."""
    prompt_multiple: int = 16
    """Prompts are padded to a multiple of this many tokens; each length is compiled once."""
    slots_multiple: int = 32
    """The cache grows by this many tokens per row; each size is compiled once."""
    cache_dtype: CacheDtype = CacheDtype.AUTO
    """AUTO: the compute dtype, but float32 on CPUs, which have no bfloat16 arithmetic for it."""

    def __post_init__(self) -> None:
        """Checks every field on its own."""
        for name in (
            "num_rows",
            "prompts_per_prefill",
            "prompt_multiple",
            "steps_per_chunk",
            "slots_multiple",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"engine.{name} is {getattr(self, name)}; it must be at least 1")
