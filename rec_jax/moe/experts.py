"""The experts: gated sums of feed-forward networks, computed sparsely and exactly.

Three backends compute the same function of (tokens, routing, weights):

* block: rows sorted by expert and padded to blocks; one loop over the used blocks runs up,
  activation and down while the rows are in cache. Fast on CPU, exact, no dense expansion.
* ragged: `jax.lax.ragged_dot`, a grouped kernel on TPU (elsewhere XLA expands it to a dense one).
* dense: every expert on every token; the reference.

Dimension key: T tokens, C choices, S slots (T * C), D model, E experts, F hidden, R rows,
P rows of one block.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from core_jax.arrays import Array, Float, Params, PyTree
from core_jax.nn.feed_forward import Activation, activate
from rec_jax.moe.dispatch import BlockPlan, Blocks, choose_block_sizes, plan_blocks
from rec_jax.moe.router import MoeBackend, MoeConfig, Routing


def apply_experts(
    config: MoeConfig,
    params: Params,
    tokens: Float[Array, "T D"],
    routing: Routing,
    *,
    platform: str,
) -> Float[Array, "T D"]:
    """Sums the chosen experts' outputs, weighted by their gates.

    Args:
      config: the layer's configuration.
      params: up [E, D, F], gate [E, D, F] (gated activations only), down [E, F, D]; for the block
        backend, without gradients, also as tuples over the experts.
      tokens: inputs, in the compute dtype.
      routing: the router's choice.
      platform: "cpu", "gpu" or "tpu": what the backend `auto` chooses by.

    Returns:
      sum over choices of gate * down(activation(up(token))), in the dtype of `tokens`,
      accumulated in float32; 0 at masked tokens.
    """
    backend = chosen_backend(config, platform)
    if backend is MoeBackend.DENSE:
        return dense_experts(config.activation, params, tokens, routing)
    if backend is MoeBackend.RAGGED:
        return ragged_experts(config.activation, params, tokens, routing)
    num_slots = routing.experts.size
    sizes = choose_block_sizes(num_slots, config.num_experts, config.block_size)
    plan = plan_blocks(routing.experts, config.num_experts, sizes)
    inner = tuple(params[name] for name in ("up", "gate") if name in params)
    return block_experts(config.activation, inner, params["down"], tokens, routing.gates, plan)


def chosen_backend(config: MoeConfig, platform: str) -> MoeBackend:
    """The backend that `auto` stands for, or the configured one."""
    if config.backend is not MoeBackend.AUTO:
        return config.backend
    return MoeBackend.RAGGED if platform == "tpu" else MoeBackend.BLOCK


def dense_experts(
    activation: Activation, params: Params, tokens: Float[Array, "T D"], routing: Routing
) -> Float[Array, "T D"]:
    """Runs every expert on every token: the reference, E / C times the work."""
    num_experts = params["down"].shape[0]
    hits_TCE = routing.experts[:, :, None] == jnp.arange(num_experts)[None, None, :]
    gates_TE = jnp.sum(hits_TCE * routing.gates[:, :, None], axis=1)

    def project(weights: Array) -> Array:
        return jnp.einsum(
            "td,edf->etf",
            tokens,
            weights.astype(tokens.dtype),
            preferred_element_type=jnp.float32,
        ).astype(tokens.dtype)

    gate = project(params["gate"]) if activation.is_gated else None
    hidden_ETF = activate(activation, project(params["up"]), gate)
    outputs_ETD = jnp.einsum(
        "etf,efd->etd",
        hidden_ETF,
        params["down"].astype(tokens.dtype),
        preferred_element_type=jnp.float32,
    )
    return jnp.einsum("etd,te->td", outputs_ETD, gates_TE).astype(tokens.dtype)


def ragged_experts(
    activation: Activation, params: Params, tokens: Float[Array, "T D"], routing: Routing
) -> Float[Array, "T D"]:
    """Sorts rows by expert and multiplies ragged groups; masked slots lie in the last group."""
    num_experts, num_choices = params["down"].shape[0], routing.experts.shape[1]
    expert_S = jnp.minimum(routing.experts.reshape(-1), num_experts - 1)
    order_S = jnp.argsort(expert_S, stable=True)
    sizes_E = jnp.bincount(expert_S, length=num_experts).astype(jnp.int32)

    def project(rows: Array, weights: Array) -> Array:
        weights = weights.astype(tokens.dtype)
        return jax.lax.ragged_dot(rows, weights, sizes_E, preferred_element_type=jnp.float32)

    rows_SD = tokens[order_S // num_choices]
    hidden_SF = project(rows_SD, params["up"]).astype(tokens.dtype)
    gate = project(rows_SD, params["gate"]).astype(tokens.dtype) if activation.is_gated else None
    outputs_SD = project(activate(activation, hidden_SF, gate), params["down"])
    outputs_TCD = outputs_SD[jnp.argsort(order_S)].reshape(*routing.experts.shape, -1)
    return jnp.einsum("tcd,tc->td", outputs_TCD, routing.gates).astype(tokens.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def block_experts(
    activation: Activation,
    inner: tuple[PyTree, ...],
    down: PyTree,
    tokens: Float[Array, "T D"],
    gates: Float[Array, "T C"],
    plan: BlockPlan,
) -> Float[Array, "T D"]:
    """The block backend; loops over the blocks that hold rows and over no others.

    Args:
      activation: non-linearity.
      inner: the input projections: (up,) or (up, gate), each [E, D, F] or, without gradients, a
        tuple over the experts of [D, F].
      down: the output projection [E, F, D], or a tuple over the experts.
      tokens: inputs in the compute dtype.
      gates: weight of each choice.
      plan: layout of the slots in blocks.

    Returns:
      The gated sum over choices, in the dtype of `tokens`.
    """
    return _forward(activation, inner, down, tokens, gates, plan, keep=False)[0]


def _forward(
    activation: Activation,
    inner: tuple[PyTree, ...],
    down: PyTree,
    tokens: Array,
    gates: Array,
    plan: BlockPlan,
    *,
    keep: bool,
) -> tuple[Array, tuple[Array, ...]]:
    """Outputs [T, D], and the pre-activations of all rows [R, F] when they are to be kept."""
    dtype, num_rows = tokens.dtype, plan.rows.slot_of_row.shape[0]
    token_R = _token_of_row(plan, gates)
    weights, down = jax.tree.map(lambda kernel: kernel.astype(dtype), (inner, down))

    def network(rows_PD: Array, expert: Array | int) -> tuple[tuple[Array, ...], Array]:
        pre = tuple(_dot(rows_PD, kernel[expert]).astype(dtype) for kernel in weights)
        return pre, _dot(activate(activation, *pre), down[expert])

    def body(size: int, expert: Array, at: Array, carry: tuple[Any, ...]) -> tuple[Any, ...]:
        outputs_RD, kept = carry
        rows_PD = tokens[_get(token_R, at, size)]
        if isinstance(down, tuple):
            # A branch reads its expert's weights where they lie; a slice at `expert` is a copy.
            branches = [functools.partial(network, expert=number) for number in range(len(down))]
            pre, outputs_PD = jax.lax.switch(expert, branches, rows_PD)
        else:
            pre, outputs_PD = network(rows_PD, expert)
        outputs_RD = _put(outputs_RD, outputs_PD.astype(dtype), at)
        if keep:
            kept = tuple(_put(held, new, at) for held, new in zip(kept, pre, strict=True))
        return outputs_RD, kept

    kept = tuple(jnp.zeros((num_rows, down[0].shape[0]), dtype) for _ in weights) if keep else ()
    start = (jnp.zeros((num_rows, tokens.shape[1]), dtype), kept)
    outputs_RD, kept = _for_each_block(plan, body, start)
    outputs_SD = _take(outputs_RD, plan.rows.row_of_slot)
    outputs_TD = jnp.einsum(
        "tcd,tc->td",
        outputs_SD.reshape(*gates.shape, -1),
        gates,
        preferred_element_type=jnp.float32,
    )
    return outputs_TD.astype(dtype), kept


def _forward_rule(
    activation: Activation,
    inner: tuple[Array, ...],
    down: Array,
    tokens: Array,
    gates: Array,
    plan: BlockPlan,
) -> tuple[Array, tuple[Any, ...]]:
    outputs_TD, kept = _forward(activation, inner, down, tokens, gates, plan, keep=True)
    return outputs_TD, (inner, down, tokens, gates, plan, kept)


def _backward_rule(
    activation: Activation, residuals: tuple[Any, ...], cotangent: Array
) -> tuple[Any, ...]:
    """Gradients of weights (summed over blocks in float32), tokens and gates."""
    inner, down, tokens, gates, plan, kept = residuals
    dtype, num_rows = tokens.dtype, plan.rows.slot_of_row.shape[0]
    token_R = _token_of_row(plan, gates)
    # Padding rows have gate 0, so they add nothing to any gradient, whatever token they read.
    gate_R = _take(gates.reshape(-1).astype(dtype), plan.rows.slot_of_row)
    weights = tuple(kernel.astype(dtype) for kernel in inner)
    outward = down.astype(dtype)

    def body(size: int, expert: Array, at: Array, carry: tuple[Any, ...]) -> tuple[Any, ...]:
        d_inner, d_down, d_rows, d_gates = carry
        token_P, gate_P1 = _get(token_R, at, size), _get(gate_R, at, size)[:, None]
        rows_PD, cotangent_PD = tokens[token_P], cotangent[token_P]
        pre = tuple(_get(held, at, size) for held in kept)
        hidden_PF, pull_back = jax.vjp(functools.partial(activate, activation), *pre)
        # d gate = <down(hidden), cotangent> = <hidden, cotangent down^T>: no output is needed.
        d_hidden_PF = _dot(cotangent_PD, outward[expert], dims=(1, 1))
        d_gate_P = jnp.sum(hidden_PF * d_hidden_PF, axis=-1, dtype=jnp.float32)
        d_pre = pull_back((gate_P1 * d_hidden_PF).astype(dtype))
        d_down = _add(d_down, _dot(hidden_PF, gate_P1 * cotangent_PD, dims=(0, 0)), expert)
        d_inner = tuple(
            _add(held, _dot(rows_PD, new, dims=(0, 0)), expert)
            for held, new in zip(d_inner, d_pre, strict=True)
        )
        d_rows_PD = functools.reduce(
            jnp.add,
            (
                _dot(new, kernel[expert], dims=(1, 1))
                for new, kernel in zip(d_pre, weights, strict=True)
            ),
        )
        d_rows = _put(d_rows, d_rows_PD.astype(dtype), at)
        return d_inner, d_down, d_rows, _put(d_gates, d_gate_P, at)

    start = (
        tuple(jnp.zeros(kernel.shape, jnp.float32) for kernel in inner),
        jnp.zeros(down.shape, jnp.float32),
        jnp.zeros((num_rows, tokens.shape[1]), dtype),
        jnp.zeros(num_rows, jnp.float32),
    )
    d_inner, d_down, d_rows, d_gates = _for_each_block(plan, body, start)
    d_slots_TCD = _take(d_rows, plan.rows.row_of_slot).reshape(*gates.shape, -1)
    d_gates_TC = _take(d_gates, plan.rows.row_of_slot).reshape(gates.shape)
    return (
        tuple(new.astype(kernel.dtype) for new, kernel in zip(d_inner, inner, strict=True)),
        d_down.astype(down.dtype),
        jnp.sum(d_slots_TCD, axis=1, dtype=jnp.float32).astype(dtype),
        d_gates_TC.astype(gates.dtype),
        None,
    )


block_experts.defvjp(_forward_rule, _backward_rule)


def _for_each_block(
    plan: BlockPlan, body: Callable[[int, Array, Array, PyTree], PyTree], carry: PyTree
) -> PyTree:
    """Runs body(block size, expert, first row, carry) -> carry over the blocks that hold rows."""
    for blocks in plan.blocks:

        def step(n: Array, carry: PyTree, blocks: Blocks = blocks) -> PyTree:
            return body(blocks.size, blocks.experts[n], blocks.first_rows[n], carry)

        carry = jax.lax.fori_loop(0, blocks.num_used, step, carry)
    return carry


def _token_of_row(plan: BlockPlan, gates: Array) -> Array:
    """The token that each row reads: Int32 [R]; padding rows read the last one."""
    num_tokens, num_choices = gates.shape
    return jnp.minimum(plan.rows.slot_of_row // num_choices, num_tokens - 1)


def _dot(left: Array, right: Array, dims: tuple[int, int] = (1, 0)) -> Array:
    """Contracts one dimension of each matrix, accumulated in float32."""
    numbers = (((dims[0],), (dims[1],)), ((), ()))
    right = right.astype(left.dtype)
    return jax.lax.dot_general(left, right, numbers, preferred_element_type=jnp.float32)


def _take(array: Array, index: Array) -> Array:
    """array[index], with 0 where the index is out of range."""
    return jnp.take(array, index, axis=0, mode="fill", fill_value=0)


def _get(held: Array, at: Array, size: int) -> Array:
    """Reads `size` rows from `at` on."""
    return jax.lax.dynamic_slice_in_dim(held, at, size)


def _put(held: Array, new: Array, at: Array) -> Array:
    """Overwrites the rows from `at` on."""
    return jax.lax.dynamic_update_slice_in_dim(held, new, at, axis=0)


def _add(held: Array, new: Array, expert: Array) -> Array:
    """Adds to one expert's slab."""
    return jax.lax.dynamic_update_index_in_dim(held, held[expert] + new, expert, axis=0)
