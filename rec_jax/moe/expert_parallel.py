"""The mixture of experts over a device mesh.

Tokens are split over the batch axes, experts over the axis `expert`, their hidden units over
`tensor`, and their remaining dimension over `fsdp` (gathered for use, reduced and scattered in the
backward pass). With one expert group every device runs its own tokens through all experts and
drops nothing. With several, each device fills a buffer of fixed capacity per expert, the buffers
are exchanged all-to-all, and what does not fit is dropped and counted.

Dimension key: T tokens (t per device), C choices, S slots (t * C), D model, E experts (e per
expert group), F hidden, K capacity, G rows per expert after the exchange.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from core_jax.arrays import Array, Bool, Float, Params
from core_jax.errors import ConfigError
from core_jax.mesh import BATCH_AXES
from core_jax.nn.feed_forward import activate
from rec_jax.moe.dispatch import plan_capacity, take_rows
from rec_jax.moe.experts import apply_experts
from rec_jax.moe.router import MoeConfig, Routing, route

_SPECS = {
    "up": P("expert", "fsdp", "tensor"),
    "gate": P("expert", "fsdp", "tensor"),
    "down": P("expert", "tensor", "fsdp"),
}


def capacity(config: MoeConfig, num_tokens: int) -> int:
    """Rows per expert in the buffer that one device sends.

    ceil(capacity_factor * tokens * choices / experts), and never more than the tokens, since a
    token chooses an expert at most once.
    """
    even_load = num_tokens * config.experts_per_token / config.num_experts
    return min(num_tokens, math.ceil(config.capacity_factor * even_load))


def check_mesh(config: MoeConfig, num_tokens: int, mesh: Mesh) -> None:
    """Checks that tokens and weights split evenly over the mesh.

    Raises:
      ConfigError: they do not.
    """
    shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    if num_tokens % shards:
        axes = " x ".join(f"{axis}={mesh.shape[axis]}" for axis in BATCH_AXES)
        raise ConfigError(
            f"the mixture of experts got {num_tokens} tokens, which do not split over {shards} "
            f"devices (mesh {axes}); make batch size x tokens per example a multiple of {shards}"
        )
    for axis, field in (("expert", "num_experts"), ("fsdp", "d_model"), ("tensor", "d_hidden")):
        size, parts = getattr(config, field), mesh.shape[axis]
        if size % parts:
            raise ConfigError(
                f"moe.{field} is {size}, not divisible by mesh axis '{axis}' of size {parts}; "
                f"set moe.{field} to a multiple of {parts}, or mesh.{axis} to a divisor of {size}"
            )


def sharded_experts(
    config: MoeConfig,
    params: Params,
    kernel: Float[Array, "D E"],
    bias: Float[Array, " E"] | None,
    tokens: Float[Array, "T D"],
    token_mask: Bool[Array, " T"] | None,
    mesh: Mesh,
) -> tuple[Float[Array, "T D"], Float[Array, " E"], Float[Array, ""]]:
    """Routes and runs tokens over a mesh.

    Args:
      config: the layer's configuration.
      params: experts' weights up, gate, down.
      kernel: router weights.
      bias: selection bias per expert, or None.
      tokens: inputs in the compute dtype, the first dimension split over the batch axes.
      token_mask: True at tokens that count; None: all.
      mesh: device mesh.

    Returns:
      Gated sums of the experts' outputs, the load per expert over all devices, and the number of
      (token, choice) pairs dropped over all devices.

    Raises:
      ConfigError: tokens or weights do not split evenly over the mesh.
    """
    check_mesh(config, tokens.shape[0], mesh)
    body = jax.shard_map(
        functools.partial(_local, config, mesh),
        mesh=mesh,
        in_specs=(
            {name: _SPECS[name] for name in params},
            P(),
            None if bias is None else P(),
            P(BATCH_AXES),
            None if token_mask is None else P(BATCH_AXES),
        ),
        out_specs=(P(BATCH_AXES), P(), P()),
        # The block backend's loops and the grouped TPU kernels do not state how their values vary
        # over the mesh; without the check, gradients are summed over every axis not in a spec.
        check_vma=False,
    )
    return body(params, kernel, bias, tokens, token_mask)


def _local(
    config: MoeConfig,
    mesh: Mesh,
    params: Params,
    kernel: Array,
    bias: Array | None,
    tokens: Array,
    token_mask: Array | None,
) -> tuple[Array, Array, Array]:
    """One device's part."""
    if mesh.shape["fsdp"] > 1:
        params = {
            name: jax.lax.all_gather(
                weights.astype(tokens.dtype),
                "fsdp",
                axis=_SPECS[name].index("fsdp"),
                tiled=True,
            )
            for name, weights in params.items()
        }
    routing = route(config, tokens, kernel, bias, token_mask)
    if mesh.shape["expert"] == 1:
        platform = mesh.devices.flat[0].platform
        outputs_tD = apply_experts(config, params, tokens, routing, platform=platform)
        dropped = jnp.zeros((), jnp.float32)
    else:
        outputs_tD, dropped = _exchange(config, params, tokens, routing)
    if mesh.shape["tensor"] > 1:
        outputs_tD = jax.lax.psum(outputs_tD, "tensor")
    load_E = jax.lax.psum(routing.load, BATCH_AXES)
    return outputs_tD, load_E, jax.lax.psum(dropped, BATCH_AXES)


def _exchange(
    config: MoeConfig, params: Params, tokens: Array, routing: Routing
) -> tuple[Array, Array]:
    """Sends rows to the devices that hold their experts, and the outputs back.

    Returns:
      Outputs [t, D] (of this device's hidden units only), and this device's dropped slots.
    """
    num_tokens, width = tokens.shape
    num_experts, num_choices = config.num_experts, config.experts_per_token
    size = capacity(config, num_tokens)
    rows, dropped = plan_capacity(routing.experts, num_experts, size)
    tokens_SD = jnp.repeat(tokens, num_choices, axis=0)
    send_EKD = take_rows(tokens_SD, rows.slot_of_row, rows.row_of_slot)
    send_EKD = send_EKD.reshape(num_experts, size, width)
    inputs_eGD = jax.lax.all_to_all(send_EKD, "expert", 0, 1, tiled=True)

    def project(inputs: Array, weights: Array) -> Array:
        products = jnp.einsum(
            "egi,eio->ego",
            inputs,
            weights.astype(tokens.dtype),
            preferred_element_type=jnp.float32,
        )
        return products.astype(tokens.dtype)

    gate = project(inputs_eGD, params["gate"]) if config.activation.is_gated else None
    hidden_eGF = activate(config.activation, project(inputs_eGD, params["up"]), gate)
    outputs_eGD = project(hidden_eGF, params["down"])

    back_EKD = jax.lax.all_to_all(outputs_eGD, "expert", 1, 0, tiled=True)
    outputs_SD = take_rows(back_EKD.reshape(-1, width), rows.row_of_slot, rows.slot_of_row)
    outputs_tD = jnp.einsum(
        "tcd,tc->td",
        outputs_SD.reshape(num_tokens, num_choices, width),
        routing.gates,
        preferred_element_type=jnp.float32,
    )
    return outputs_tD.astype(tokens.dtype), dropped
