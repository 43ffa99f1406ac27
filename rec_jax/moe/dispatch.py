"""Where each (token, choice) pair goes: padded blocks of rows that share one expert.

A *slot* is a (token, choice) pair, numbered token * C + choice. Slots of one expert fill
consecutive rows, and each expert's rows are padded up to whole blocks, so that every block is
multiplied by the weights of exactly one expert. Nothing is dropped, whatever the skew.

Dimension key: T tokens, C choices, S slots (T * C), E experts, N blocks, R rows (N * block size).
"""

import dataclasses

import jax
import jax.numpy as jnp

from core_jax.arrays import Array, Int, PyTree

_SMALLEST_BLOCK = 8


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockPlan:
    """The block-padded layout of all slots.

    Attributes:
      row_of_slot: Int32 [S], the row of each slot; R at slots of masked tokens.
      slot_of_row: Int32 [R], the slot that fills each row; S at padding rows.
      expert_of_block: Int32 [N]; blocks beyond `num_used` hold no rows.
      num_used: Int32 [], blocks that hold rows; the others are never computed.
    """

    row_of_slot: PyTree
    slot_of_row: PyTree
    expert_of_block: PyTree
    num_used: PyTree


def choose_block_size(num_slots: int, num_experts: int, largest: int) -> int:
    """Rows per block: about half of the even load, a power of two, at most `largest`.

    Large blocks make efficient matrix products, small ones waste fewer padding rows (on average
    half a block per expert).

    >>> choose_block_size(8192, 24, 128), choose_block_size(256, 8, 128)
    (128, 16)
    """
    even_load = -(-num_slots // num_experts)
    size = _SMALLEST_BLOCK
    while size * 4 <= even_load:
        size *= 2
    return min(size, largest)


def num_blocks(num_slots: int, num_experts: int, block_size: int) -> int:
    """The most blocks that any assignment of slots to experts can need."""
    busy = min(num_slots, num_experts)
    return (num_slots + busy * (block_size - 1)) // block_size


def plan_blocks(experts: Int[Array, "T C"], num_experts: int, block_size: int) -> BlockPlan:
    """Lays out all slots in blocks.

    Args:
      experts: expert of every slot; `num_experts` at slots that are to be left out.
      num_experts: number of experts.
      block_size: rows per block.

    Returns:
      The layout. Within an expert, rows keep the order of the tokens.
    """
    expert_S = experts.reshape(-1)
    num_slots = expert_S.shape[0]
    blocks = num_blocks(num_slots, num_experts, block_size)
    order_S = jnp.argsort(expert_S, stable=True).astype(jnp.int32)
    sorted_S = expert_S[order_S]
    first_E = jnp.searchsorted(sorted_S, jnp.arange(num_experts + 1)).astype(jnp.int32)
    count_E = jnp.diff(first_E)
    last_block_E = jnp.cumsum(-(-count_E // block_size))
    first_row_E = (last_block_E - (-(-count_E // block_size))) * block_size

    # One extra entry sends left-out slots past the last row.
    shift_E = jnp.append(first_row_E - first_E[:-1], blocks * block_size)
    row_S = jnp.minimum(shift_E[sorted_S] + jnp.arange(num_slots), blocks * block_size)
    row_of_slot_S = jnp.zeros(num_slots, jnp.int32).at[order_S].set(row_S.astype(jnp.int32))
    slot_of_row_R = jnp.full(blocks * block_size, num_slots, jnp.int32)
    slot_of_row_R = slot_of_row_R.at[row_S].set(order_S, mode="drop")
    expert_of_block_N = jnp.searchsorted(last_block_E, jnp.arange(blocks), side="right")
    return BlockPlan(
        row_of_slot=row_of_slot_S,
        slot_of_row=slot_of_row_R,
        expert_of_block=jnp.minimum(expert_of_block_N, num_experts - 1).astype(jnp.int32),
        num_used=last_block_E[-1].astype(jnp.int32),
    )
