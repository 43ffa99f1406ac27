"""The sparse mixture-of-experts layer: router, dispatch, experts, statistics.

Dimension key: T tokens, D model, E experts, F hidden.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from core_jax.arrays import Array, Bool, Float, Params, PyTree
from rec_jax.moe.expert_parallel import sharded_experts
from rec_jax.moe.experts import apply_experts, chosen_backend
from rec_jax.moe.router import Balance, MoeBackend, MoeConfig, balance_term, route


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class MoeAux:
    """What the layer did.

    Attributes:
      load: Float32 [E], tokens routed to each expert over all devices, masked ones left out.
      dropped: Float32 [], (token, choice) pairs over an expert's capacity, over all devices;
        always 0 without expert parallelism.
      balance: Float32 [], exactly 0; its gradient with respect to the router's bias is
        load - mean(load).
    """

    load: PyTree
    dropped: PyTree
    balance: PyTree


class SparseMoe(nn.Module):
    """sum over the top-k experts of gate * FFN(x) (Deng et al., 2025, arXiv:2502.18965, Eq. 2).

    The residual connection is the caller's. Weights are float32 and initialised with variance
    1 / fan-in; products run in `dtype` and accumulate in float32; the router is float32.
    """

    config: MoeConfig
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*lead D"],
        token_mask: Bool[Array, "*lead"] | None = None,
        mesh: Mesh | None = None,
    ) -> tuple[Float[Array, "*lead D"], MoeAux]:
        """Applies the layer.

        Args:
          x: inputs; every leading index is a token.
          token_mask: True at tokens that count; others give 0 and load no expert.
          mesh: device mesh with the axes of `core_jax.mesh`, or None on one device.

        Returns:
          Outputs in `dtype`, and statistics over all devices.

        Raises:
          ConfigError: tokens or weights do not split evenly over the mesh.
        """
        config = self.config
        kernel, bias = _Router(config, name="router")()
        experts = _Experts(config, name="experts")()
        x_TD = x.reshape(-1, x.shape[-1]).astype(self.dtype)
        mask_T = None if token_mask is None else token_mask.reshape(-1)
        if mesh is None or mesh.size == 1 or self.is_initializing():
            # The mesh knows better than this process, which may compile for another machine.
            platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
            routing = route(config, x_TD, kernel, bias, mask_T)
            y_TD = apply_experts(config, experts, x_TD, routing, platform=platform)
            load_E, dropped = routing.load, jnp.zeros((), jnp.float32)
        else:
            y_TD, load_E, dropped = sharded_experts(
                config, experts, kernel, bias, x_TD, mask_T, mesh
            )
        aux = MoeAux(load=load_E, dropped=dropped, balance=balance_term(bias, load_E))
        return y_TD.reshape(x.shape), aux


def experts_apart(config: MoeConfig, params: Params, platform: str) -> Params:
    """The layer's parameters for many uses without gradients: experts apart, if that is faster.

    The block backend then reads each expert's weights where they lie instead of copying them.
    """
    if chosen_backend(config, platform) is not MoeBackend.BLOCK:
        return params
    return {**params, "experts": {name: tuple(held) for name, held in params["experts"].items()}}


class _Router(nn.Module):
    """Declares the router's parameters."""

    config: MoeConfig

    @nn.compact
    def __call__(self) -> tuple[Array, Array | None]:
        """The kernel [D, E] and the selection bias [E], if there is one."""
        config = self.config
        init = nn.initializers.normal(1.0 / math.sqrt(config.d_model))
        kernel = self.param("kernel", init, (config.d_model, config.num_experts), jnp.float32)
        if config.balance is Balance.NONE:
            return kernel, None
        zeros = nn.initializers.zeros
        return kernel, self.param("bias", zeros, (config.num_experts,), jnp.float32)


class _Experts(nn.Module):
    """Declares the experts' parameters."""

    config: MoeConfig

    @nn.compact
    def __call__(self) -> Params:
        """Declares up and gate [E, D, F], down [E, F, D], or hands on what `experts_apart` made."""
        config = self.config
        inward = (config.num_experts, config.d_model, config.d_hidden)
        outward = (config.num_experts, config.d_hidden, config.d_model)
        shapes = {"up": inward, "down": outward}
        if config.activation.is_gated:
            shapes["gate"] = inward
        if isinstance(self.get_variable("params", "down"), tuple):
            return {name: self.get_variable("params", name) for name in shapes}
        return {
            name: self.param(
                name, nn.initializers.normal(1.0 / math.sqrt(shape[1])), shape, jnp.float32
            )
            for name, shape in shapes.items()
        }
