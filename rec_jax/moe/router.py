"""Configuration of the mixture of experts, and the router that picks experts for each token.

Dimension key: T tokens, D model, E experts, C choices (experts per token).
"""

import dataclasses
import enum

import jax
import jax.numpy as jnp

from core_jax.arrays import Array, Bool, Float, Int, PyTree
from core_jax.errors import ConfigError
from core_jax.nn.feed_forward import Activation


class GateNormalisation(enum.Enum):
    """What happens to the gates of the chosen experts."""

    NONE = "none"
    RENORMALISE = "renormalise"


class Balance(enum.Enum):
    """How the load of the experts is kept even."""

    NONE = "none"
    LOSS_FREE = "loss_free"


class MoeBackend(enum.Enum):
    """How the experts' grouped matrix products are computed; all are exact and drop nothing."""

    AUTO = "auto"
    BLOCK = "block"
    RAGGED = "ragged"
    DENSE = "dense"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoeConfig:
    """A sparse mixture-of-experts feed-forward layer."""

    num_experts: int
    """Experts in the layer."""
    experts_per_token: int
    """Experts that each token visits."""
    d_model: int
    """Width of the residual stream."""
    d_hidden: int
    """Hidden width of one expert."""
    activation: Activation = Activation.GELU
    """Non-linearity of the experts."""
    gate_normalisation: GateNormalisation = GateNormalisation.NONE
    """`none`: gates are the probabilities over all experts; `renormalise`: they sum to one."""
    balance: Balance = Balance.NONE
    """`loss_free`: a bias per expert, moved against its load, takes part in the choice only."""
    backend: MoeBackend = MoeBackend.AUTO
    """`auto`: ragged on TPU, block elsewhere; `dense` runs every expert on every token."""
    block_size: int = 256
    """Most rows per block of the block backend, a power of two; fewer where experts see few."""
    capacity_factor: float = 1.25
    """Expert parallelism only: size of the exchanged buffers over the even load."""

    def __post_init__(self) -> None:
        """Checks sizes."""
        for name in ("num_experts", "experts_per_token", "d_model", "d_hidden", "block_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"moe.{name} is {getattr(self, name)}; it must be at least 1")
        if self.experts_per_token > self.num_experts:
            raise ConfigError(
                f"moe.experts_per_token is {self.experts_per_token}, more than the "
                f"{self.num_experts} experts; lower it or raise moe.num_experts"
            )
        if self.block_size & (self.block_size - 1):
            raise ConfigError(f"moe.block_size is {self.block_size}; it must be a power of two")
        if self.capacity_factor <= 0.0:
            raise ConfigError(
                f"moe.capacity_factor is {self.capacity_factor}; it must be positive (1.25 keeps "
                "a quarter of head-room over the even load)"
            )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Routing:
    """The choice of experts.

    Attributes:
      experts: Int32 [T, C], chosen experts, best first; the number of experts at masked tokens.
      gates: Float32 [T, C], weight of each chosen expert's output; 0 at masked tokens.
      load: Float32 [E], tokens per expert, masked ones left out.
    """

    experts: PyTree
    gates: PyTree
    load: PyTree


def route(
    config: MoeConfig,
    tokens: Float[Array, "T D"],
    kernel: Float[Array, "D E"],
    bias: Float[Array, " E"] | None = None,
    token_mask: Bool[Array, " T"] | None = None,
) -> Routing:
    """Chooses experts and their gates, in float32.

    s = softmax over all experts of the router's logits; the gates are the s of the top-k experts
    and stay as they are (Deng et al., 2025, arXiv:2502.18965, Eq. 2) or are renormalised. With a
    bias the choice is by s + bias while the gates remain s (Wang et al., 2024, arXiv:2408.15664).

    Args:
      config: the layer's configuration.
      tokens: inputs of the layer, any float dtype.
      kernel: router weights.
      bias: selection bias per expert, or None.
      token_mask: True at tokens that count; None: all.

    Returns:
      The routing.
    """
    logits_TE = jnp.dot(
        tokens.astype(jnp.float32), kernel.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST
    )
    scores_TE = jax.nn.softmax(logits_TE, axis=-1)
    if bias is None:
        gates_TC, experts_TC = jax.lax.top_k(scores_TE, config.experts_per_token)
    else:
        preference_TE = jax.lax.stop_gradient(scores_TE + bias[None, :])
        _, experts_TC = jax.lax.top_k(preference_TE, config.experts_per_token)
        gates_TC = jnp.take_along_axis(scores_TE, experts_TC, axis=-1)
    if config.gate_normalisation is GateNormalisation.RENORMALISE:
        gates_TC = gates_TC / jnp.sum(gates_TC, axis=-1, keepdims=True)
    if token_mask is not None:
        gates_TC = jnp.where(token_mask[:, None], gates_TC, 0.0)
        experts_TC = jnp.where(token_mask[:, None], experts_TC, config.num_experts)
    return Routing(
        experts=experts_TC, gates=gates_TC, load=count_tokens(experts_TC, config.num_experts)
    )


def count_tokens(experts: Int[Array, "T C"], num_experts: int) -> Float[Array, " E"]:
    """Tokens routed to each expert, as float32; choices outside [0, num_experts) do not count."""
    hits_TCE = experts[:, :, None] == jnp.arange(num_experts)[None, None, :]
    return jnp.sum(hits_TCE, axis=(0, 1), dtype=jnp.float32)


def balance_term(bias: Float[Array, " E"] | None, load: Float[Array, " E"]) -> Float[Array, ""]:
    """A zero whose gradient with respect to the bias is load - mean(load).

    Added to the loss it costs nothing and carries the load error to the optimizer, which moves
    the bias by a fixed rate against its sign (Wang et al., 2024, arXiv:2408.15664, Alg. 1).

    Args:
      bias: selection bias per expert, or None without loss-free balancing.
      load: tokens per expert over all devices.

    Returns:
      Exactly 0.0.
    """
    if bias is None:
        return jnp.zeros((), jnp.float32)
    excess_E = jax.lax.stop_gradient(load - jnp.mean(load))
    return jnp.sum((bias - jax.lax.stop_gradient(bias)) * excess_E)
