"""Where each (token, choice) pair goes: rows grouped by expert.

A *slot* is a (token, choice) pair, numbered token * C + choice. Two layouts of slots in rows:

* blocks: the slots of one expert fill consecutive rows, padded up to whole blocks, so that every
  block is multiplied by the weights of exactly one expert. Nothing is dropped, whatever the skew.
* capacity: every expert has the same number of rows, which is what can be exchanged between
  devices; slots beyond it are dropped and counted.

Dimension key: T tokens, C choices, S slots (T * C), E experts, N blocks, R rows, D features.
"""

import dataclasses

import jax
import jax.numpy as jnp

from core_jax.arrays import Array, Float, Int, PyTree
from core_jax.errors import ConfigError

_SMALLEST_BLOCK = 8


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Blocks:
    """Blocks of one size.

    Attributes:
      size: rows per block.
      experts: Int32 [N], the expert of each block.
      first_rows: Int32 [N], where each block starts.
      num_used: Int32 [], how many of the N blocks hold rows; the others are never computed.
    """

    size: int = dataclasses.field(metadata={"static": True})
    experts: PyTree
    first_rows: PyTree
    num_used: PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
    """A one-to-one map between slots and some of the rows.

    Attributes:
      row_of_slot: Int32 [S], the row of each slot; R at slots without one.
      slot_of_row: Int32 [R], the slot that fills each row; S at padding rows.
    """

    row_of_slot: PyTree
    slot_of_row: PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockPlan:
    """The block-padded layout of all slots.

    Attributes:
      rows: where each slot lies; slots of masked tokens have no row.
      blocks: a tuple of `Blocks`, largest size first, which together cover all used rows.
    """

    rows: Rows
    blocks: PyTree


def choose_block_sizes(num_slots: int, num_experts: int, largest: int) -> tuple[int, ...]:
    """Rows per block: a power of two near the even load, and a quarter of it for the rest.

    Large blocks make efficient matrix products and read each expert's weights less often; small
    ones for what is left over waste fewer padding rows (half a small block per expert).

    >>> choose_block_sizes(8192, 24, 256), choose_block_sizes(256, 8, 256)
    ((256, 64), (32, 8))
    """
    even_load = num_slots // num_experts
    size = min(_SMALLEST_BLOCK, largest)
    while size * 2 <= min(even_load, largest):
        size *= 2
    small = max(size // 4, min(_SMALLEST_BLOCK, largest))
    return (size, small) if small < size else (size,)


def plan_blocks(
    experts: Int[Array, "T C"], num_experts: int, block_sizes: tuple[int, ...]
) -> BlockPlan:
    """Lays out all slots in blocks.

    Args:
      experts: expert of every slot; `num_experts` at slots that are to be left out.
      num_experts: number of experts.
      block_sizes: rows per block, largest first, each a multiple of the next. An expert's rows
        are covered by as many large blocks as fit, then by smaller ones.

    Returns:
      The layout. Within an expert, rows keep the order of the tokens.
    """
    num_slots, smallest = experts.size, block_sizes[-1]
    num_rows = most_rows(num_slots, num_experts, smallest)
    order_S, sorted_S, count_E = _sort_slots(experts, num_experts)
    padded_E = -(-count_E // smallest) * smallest
    first_row_E = jnp.cumsum(padded_E) - padded_E
    # One extra entry sends left-out slots past the last row.
    shift_E = jnp.append(first_row_E - (jnp.cumsum(count_E) - count_E), num_rows)
    row_S = jnp.minimum(shift_E[sorted_S] + jnp.arange(num_slots, dtype=jnp.int32), num_rows)

    blocks, left_E, start_E = [], padded_E, first_row_E
    for size in block_sizes:
        per_expert_E = left_E // size
        last_E = jnp.cumsum(per_expert_E)
        block_N = jnp.arange(num_rows // size, dtype=jnp.int32)
        expert_N = jnp.searchsorted(last_E, block_N, side="right").astype(jnp.int32)
        expert_N = jnp.minimum(expert_N, num_experts - 1)
        first_row_N = start_E[expert_N] + (block_N - (last_E - per_expert_E)[expert_N]) * size
        blocks.append(
            Blocks(size=size, experts=expert_N, first_rows=first_row_N, num_used=last_E[-1])
        )
        left_E, start_E = left_E - per_expert_E * size, start_E + per_expert_E * size
    return BlockPlan(rows=_place(order_S, row_S, num_rows), blocks=tuple(blocks))


def most_rows(num_slots: int, num_experts: int, smallest: int) -> int:
    """Rows that hold any assignment of slots to experts, padded to blocks of `smallest`."""
    busy = min(num_slots, num_experts)
    return (num_slots + busy * (smallest - 1)) // smallest * smallest


def plan_capacity(
    experts: Int[Array, "T C"], num_experts: int, capacity: int
) -> tuple[Rows, Float[Array, ""]]:
    """Lays out slots in `capacity` rows per expert, first come first served in token order.

    Args:
      experts: expert of every slot; `num_experts` at slots that are to be left out.
      num_experts: number of experts.
      capacity: rows per expert.

    Returns:
      The layout over num_experts * capacity rows, and the number of slots that found no row
      (left-out slots do not count).
    """
    num_rows = num_experts * capacity
    order_S, sorted_S, count_E = _sort_slots(experts, num_experts)
    first_E = jnp.append(jnp.cumsum(count_E) - count_E, 0)
    rank_S = jnp.arange(experts.size, dtype=jnp.int32) - first_E[sorted_S]
    fits_S = (rank_S < capacity) & (sorted_S < num_experts)
    row_S = jnp.where(fits_S, sorted_S * capacity + rank_S, num_rows)
    dropped = jnp.sum(jnp.maximum(count_E - capacity, 0), dtype=jnp.float32)
    return _place(order_S, row_S, num_rows), dropped


def _sort_slots(experts: Array, num_experts: int) -> tuple[Array, Array, Array]:
    """Slots sorted by expert (stable), their experts, and the slots per expert; all int32."""
    num_slots = experts.size
    if (num_experts + 1) * num_slots >= 2**31:
        raise ConfigError(
            f"{num_slots} (token, choice) pairs for {num_experts} experts on one device cannot be "
            "numbered in 32 bits; use smaller batches or more devices"
        )
    # Sorting one packed key is several times faster on CPU than sorting pairs.
    key_S = experts.reshape(-1).astype(jnp.int32) * num_slots
    key_S = jnp.sort(key_S + jnp.arange(num_slots, dtype=jnp.int32))
    counts_E = jnp.bincount(experts.reshape(-1), length=num_experts + 1)[:num_experts]
    return key_S % num_slots, key_S // num_slots, counts_E.astype(jnp.int32)


def _place(order: Array, rows: Array, num_rows: int) -> Rows:
    """The map of sorted slots `order` to `rows`; rows >= num_rows mean none."""
    num_slots = order.shape[0]
    return Rows(
        row_of_slot=jnp.zeros(num_slots, jnp.int32).at[order].set(rows.astype(jnp.int32)),
        slot_of_row=jnp.full(num_rows, num_slots, jnp.int32).at[rows].set(order, mode="drop"),
    )


@jax.custom_vjp
def take_rows(
    array: Float[Array, "in D"], index: Int[Array, " out"], inverse: Int[Array, " in"]
) -> Float[Array, "out D"]:
    """array[index] with 0 where the index is out of range; its gradient is a gather as well.

    Args:
      array: rows to pick from.
      index: which row to pick; no row is picked twice.
      inverse: where each row of `array` went; out of range where it was not picked.

    Returns:
      The picked rows.
    """
    del inverse
    return jnp.take(array, index, axis=0, mode="fill", fill_value=0)


def _take_rows_forward(
    array: Array, index: Array, inverse: Array
) -> tuple[Array, tuple[Array, Array]]:
    return take_rows(array, index, inverse), (index, inverse)


def _take_rows_backward(residuals: tuple[Array, Array], cotangent: Array) -> tuple:
    index, inverse = residuals
    return take_rows(cotangent, inverse, index), None, None


take_rows.defvjp(_take_rows_forward, _take_rows_backward)
