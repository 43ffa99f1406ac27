"""Architecture of a decoder language model, and of low-rank adapters to it.

Dimension key: none.
"""

import dataclasses

from core_jax.errors import ConfigError, nearest_name
from core_jax.nn.linear import ComputeDtype
from core_jax.nn.stack import Remat

LORA_TARGETS = ("query", "key", "value", "out", "gate", "up", "down")
"""The linear maps of a layer that an adapter can stand beside."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Rotary frequencies of Llama 3.1 and later: long wavelengths are stretched."""

    factor: float
    """By how much wavelengths above the low-frequency bound grow."""
    low_freq_factor: float = 1.0
    """Wavelengths above original_max_positions / low_freq_factor are stretched in full."""
    high_freq_factor: float = 4.0
    """Wavelengths below original_max_positions / high_freq_factor stay as they are."""
    original_max_positions: int = 8192
    """Context length before stretching, in tokens."""

    def __post_init__(self) -> None:
        """Checks that the band between the two bounds is not empty."""
        if self.factor <= 0 or not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ConfigError(
                f"rope scaling has factor {self.factor}, low_freq_factor {self.low_freq_factor}, "
                f"high_freq_factor {self.high_freq_factor}; expected a positive factor and "
                "0 < low < high"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A decoder of the Llama family (Llama, DeepSeek-math, Qwen2.5, SmolLM2), and its compute."""

    vocab_size: int
    """Rows of the embedding table; can be more than the tokenizer knows."""
    model_dim: int
    """Width of the residual stream."""
    hidden_dim: int
    """Width of the gated feed-forward network."""
    num_layers: int
    """Decoder layers."""
    num_heads: int
    """Query heads."""
    num_kv_heads: int
    """Key and value heads; divides num_heads."""
    head_dim: int
    """Width of a head, even."""
    norm_eps: float = 1e-5
    """Added to the mean square before its root."""
    rope_theta: float = 10_000.0
    """Base of the rotary wavelengths."""
    rope_scaling: Llama3Scaling | None = None
    """Stretched wavelengths; none by default."""
    tied_embeddings: bool = False
    """Whether the embedding table is also the output matrix."""
    qkv_bias: bool = False
    """Whether queries, keys and values have a bias (Qwen2.5)."""
    max_positions: int = 2048
    """Longest context in tokens; longer input is an error."""
    dtype: ComputeDtype = ComputeDtype.FLOAT32
    """Activations and operands of matrix products; accumulation is in float32."""
    remat: Remat = Remat.NONE
    """What the backward pass keeps of a layer."""
    unroll: int = 1
    """Layers per iteration of the compiled loop over layers."""

    def __post_init__(self) -> None:
        """Checks every field on its own, and the heads against each other."""
        for name in (
            "vocab_size",
            "model_dim",
            "hidden_dim",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "max_positions",
            "unroll",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name} is {getattr(self, name)}; it must be at least 1")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"model.num_heads is {self.num_heads}, which model.num_kv_heads, "
                f"{self.num_kv_heads}, does not divide; each key head serves equally many queries"
            )
        if self.head_dim % 2:
            raise ConfigError(
                f"model.head_dim is {self.head_dim}; rotary positions turn pairs of dimensions, "
                "so it must be even"
            )

    @property
    def num_params(self) -> int:
        """Parameters of the model, a tied table counted once."""
        attention = self.model_dim * self.head_dim * 2 * (self.num_heads + self.num_kv_heads)
        bias = self.qkv_bias * self.head_dim * (self.num_heads + 2 * self.num_kv_heads)
        layer = attention + bias + 3 * self.model_dim * self.hidden_dim + 2 * self.model_dim
        tables = self.vocab_size * self.model_dim * (1 if self.tied_embeddings else 2)
        return self.num_layers * layer + tables + self.model_dim


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters (Hu et al., 2021, arXiv:2106.09685): x W + (alpha / rank) x A B."""

    rank: int = 8
    """Rank of the update; 0 trains all parameters instead of adapters."""
    alpha: float = 16.0
    """The update is multiplied by alpha / rank."""
    targets: tuple[str, ...] = LORA_TARGETS
    """Linear maps with an adapter: query, key, value, out, gate, up, down."""
    dropout: float = 0.0
    """Share of the adapter's inputs that training leaves out."""

    def __post_init__(self) -> None:
        """Checks every field on its own."""
        if self.rank < 0:
            raise ConfigError(f"lora.rank is {self.rank}; give a rank, or 0 for no adapters")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"lora.dropout is {self.dropout}; it must be in [0, 1)")
        if not self.targets:
            raise ConfigError(f"lora.targets is empty; name some of {', '.join(LORA_TARGETS)}")
        for target in self.targets:
            if target not in LORA_TARGETS:
                raise ConfigError(
                    f"lora.targets names '{target}'. {nearest_name(target, LORA_TARGETS)}"
                )

    @property
    def scale(self) -> float:
        """The factor of the update, alpha / rank."""
        return self.alpha / self.rank
