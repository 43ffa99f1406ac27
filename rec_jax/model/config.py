"""Sizes and numerics of the OneRec encoder-decoder."""

import dataclasses

from core_jax.errors import ConfigError
from core_jax.nn.feed_forward import Activation
from core_jax.nn.flash_attention import AttentionKernel
from core_jax.nn.linear import ComputeDtype
from core_jax.nn.stack import Remat
from rec_jax.moe.router import Balance, GateNormalisation, MoeBackend, MoeConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneRecConfig:
    """Architecture of OneRec (Deng et al., 2025, arXiv:2502.18965, Section 3.2)."""

    level_sizes: tuple[int, ...] = ()
    """Codes per level of the semantic IDs; empty: taken from the catalogue by the stage."""
    history_items: int
    """n: history items that the encoder reads (256 in the paper)."""
    session_items: int
    """m: items of a generated session (5 in the paper); 1 is point-wise generation."""
    d_model: int
    """Width of the residual stream."""
    num_heads: int
    """Attention heads."""
    head_dim: int
    """Width of an attention head."""
    d_ff: int
    """Hidden width of the encoder's feed-forward networks."""
    num_encoder_layers: int
    """Fully visible encoder layers."""
    num_decoder_layers: int
    """Causal decoder layers with cross-attention and a mixture of experts."""
    num_experts: int
    """Experts per decoder layer (24 in the paper)."""
    experts_per_token: int
    """Experts that each token visits (2 in the paper)."""
    d_expert: int
    """Hidden width of one expert."""
    activation: Activation = Activation.RELU
    """Non-linearity of feed-forward networks and experts."""
    gate_normalisation: GateNormalisation = GateNormalisation.NONE
    """Whether the chosen experts' gates are rescaled to sum to one (the paper does not)."""
    balance: Balance = Balance.NONE
    """Expert load balancing (the paper names none; its successor uses the loss-free bias)."""
    moe_backend: MoeBackend = MoeBackend.AUTO
    """Grouped matrix product of the experts."""
    moe_block_size: int = 128
    """Rows per block of the block-padded grouped product."""
    capacity_factor: float = 1.25
    """Expert-parallel buffer size over the balanced load; overflow is dropped and counted."""
    tie_embeddings: bool = False
    """Whether code embeddings double as output weights."""
    dropout: float = 0.0
    """Dropout rate of embeddings and residual branches, in training only."""
    compute_dtype: ComputeDtype = ComputeDtype.FLOAT32
    """Dtype of activations and matrix operands; parameters and accumulation stay float32."""
    attention_kernel: AttentionKernel = AttentionKernel.AUTO
    """Self-attention of the encoder; `auto`: cuDNN on GPUs, splash on TPUs, if the shapes fit."""
    remat: Remat = Remat.NONE
    """What the backward pass keeps of each layer."""
    scan_unroll: int = 1
    """Layers per iteration of the compiled layer loop; large values remove the loop."""

    def __post_init__(self) -> None:
        """Checks what the sizes alone can tell."""
        for name in (
            "history_items",
            "session_items",
            "d_model",
            "num_heads",
            "head_dim",
            "d_ff",
            "num_encoder_layers",
            "num_decoder_layers",
            "d_expert",
            "scan_unroll",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name} is {getattr(self, name)}; it must be at least 1")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"model.dropout is {self.dropout}; it must lie in [0, 1)")
        if any(size < 1 for size in self.level_sizes):
            raise ConfigError(f"model.level_sizes is {self.level_sizes}; sizes must be positive")

    @property
    def num_levels(self) -> int:
        """L: codes per item; the catalogue must be known."""
        if not self.level_sizes:
            raise ConfigError(
                "model.level_sizes is empty; set it, or let the pretrain stage take it from the "
                "catalogue's semantic IDs"
            )
        return len(self.level_sizes)

    @property
    def decoder_tokens(self) -> int:
        """Tokens of a decoder input: BOS and the codes of every item."""
        return self.session_items * (self.num_levels + 1)

    @property
    def moe(self) -> MoeConfig:
        """The configuration of one decoder layer's mixture of experts."""
        return MoeConfig(
            num_experts=self.num_experts,
            experts_per_token=self.experts_per_token,
            d_model=self.d_model,
            d_hidden=self.d_expert,
            activation=self.activation,
            gate_normalisation=self.gate_normalisation,
            balance=self.balance,
            backend=self.moe_backend,
            block_size=self.moe_block_size,
            capacity_factor=self.capacity_factor,
        )
