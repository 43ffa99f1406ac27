"""Which codes may follow which prefix, as flat arrays on the device.

The catalogue's semantic IDs form a tree: the root is the empty prefix, a node of level l is a
prefix of l codes, a leaf (level L) is a whole semantic ID. Nodes of a level are numbered in
lexicographic order of their prefixes, so the children of a node are consecutive, and so are the
leaves below it. That makes three questions cheap, whatever the size of the catalogue: the
children of a node (one range), the leaves below a node (one range), and how many leaves of a
sorted list lie below a node (a difference of two ranks).

Dimension key: I items, L code levels, E edges into the next level, V leaves, C codes of the first
level (of any level in `legal_codes`), B any lead shape, R its places in a row, W widest branching
of a level.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from core_jax.arrays import Array, Bool, Int, PyTree
from core_jax.errors import DataError
from rec_jax.semantic_ids.item_index import ItemIndex

STATIC = {"static": True}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefixIndex:
    """The prefix tree of a catalogue, in compressed sparse rows per level.

    The child that edge e of level l leads to is node e of level l + 1: edges are numbered like
    the nodes they lead to.
    """

    starts: PyTree
    """Tuple over levels 0..L-1 of Int32 [nodes + 1]: first edge of every node."""
    codes: PyTree
    """Tuple over levels 0..L-1 of Int32 [E]: the code that every edge adds."""
    root_edges: PyTree
    """Int32 [C]: the root's edge that adds each code of the first level; of codes that no item has,
    a neighbouring one."""
    leaf_starts: PyTree
    """Tuple over levels 0..L of Int32 [nodes + 1]: first leaf below every node."""
    item_starts: PyTree
    """Int32 [V + 1]: first position in `items` of every leaf's items."""
    items: PyTree
    """Int32 [I]: items by leaf, the most popular first."""
    leaf_of_item: PyTree
    """Int32 [I]: the leaf that holds an item."""
    level_sizes: tuple[int, ...] = dataclasses.field(metadata=STATIC)
    """Codes per level."""
    max_branching: tuple[int, ...] = dataclasses.field(metadata=STATIC)
    """Per level 0..L-1, the children of the node that has the most."""
    max_items_per_leaf: int = dataclasses.field(metadata=STATIC)
    """Items of the fullest leaf; 1 where every item has a semantic ID of its own."""

    @property
    def num_levels(self) -> int:
        """L: codes per semantic ID."""
        return len(self.level_sizes)

    @property
    def num_leaves(self) -> int:
        """V: distinct semantic IDs in the catalogue."""
        return self.item_starts.shape[0] - 1

    @property
    def num_items(self) -> int:
        """I: items in the catalogue."""
        return self.items.shape[0]


def build_prefix_index(
    item_index: ItemIndex, popularity: Int[np.ndarray, "I"] | None = None
) -> PrefixIndex:
    """Builds the prefix tree of a catalogue.

    Args:
      item_index: semantic ID of every item.
      popularity: interactions per item, to order the items that share a semantic ID; None: by
        item number.

    Returns:
      The tree, on the default device.

    Raises:
      DataError: no items, or popularity of another catalogue.
    """
    codes_IL = item_index.codes
    num_items, num_levels = codes_IL.shape
    if num_items == 0:
        raise DataError(
            "the catalogue has no items; run the tokenize stage on a log with at least one item"
        )
    counts_I = np.zeros(num_items, np.int32) if popularity is None else popularity
    if counts_I.shape != (num_items,):
        raise DataError(
            f"popularity has shape {counts_I.shape} but the catalogue has {num_items} items; "
            "count interactions over the same items that have semantic IDs"
        )
    # The last key sorts first: by codes, then by falling popularity (stable: then by item).
    order_I = np.lexsort((-counts_I.astype(np.int64), *codes_IL.T[::-1]))
    sorted_IL = codes_IL[order_I]
    # nodes[l][i]: the node of level l above the i-th sorted item.
    is_new_I = np.zeros(num_items, bool)
    nodes = [np.zeros(num_items, np.int64)]
    for level in range(num_levels):
        is_new_I[1:] |= sorted_IL[1:, level] != sorted_IL[:-1, level]
        nodes.append(np.cumsum(is_new_I))
    leaves_I = nodes[-1]
    firsts = [np.unique(nodes_I, return_index=True)[1] for nodes_I in nodes]
    starts, codes, leaf_starts, branching = [], [], [], []
    for level in range(num_levels):
        parents_E = nodes[level][firsts[level + 1]]
        starts.append(np.searchsorted(parents_E, np.arange(len(firsts[level]) + 1)))
        codes.append(sorted_IL[firsts[level + 1], level])
        branching.append(int(np.diff(starts[-1]).max()))
    for first in firsts:
        leaf_starts.append(np.append(leaves_I[first], leaves_I[-1] + 1))
    root_edges_C = np.searchsorted(codes[0], np.arange(item_index.level_sizes[0]))
    root_edges_C = np.minimum(root_edges_C, len(codes[0]) - 1)
    item_starts_V = np.append(firsts[-1], num_items)
    leaf_of_item_I = np.empty(num_items, np.int64)
    leaf_of_item_I[order_I] = leaves_I
    return PrefixIndex(
        starts=_on_device(starts),
        codes=_on_device(codes),
        root_edges=jnp.asarray(root_edges_C, jnp.int32),
        leaf_starts=_on_device(leaf_starts),
        item_starts=jnp.asarray(item_starts_V, jnp.int32),
        items=jnp.asarray(order_I, jnp.int32),
        leaf_of_item=jnp.asarray(leaf_of_item_I, jnp.int32),
        level_sizes=tuple(item_index.level_sizes),
        max_branching=tuple(branching),
        max_items_per_leaf=int(np.diff(item_starts_V).max()),
    )


def find_leaves(index: PrefixIndex, codes: Int[Array, "*B L"]) -> Int[Array, "*B"]:
    """Leaf of every semantic ID, or -1 where the catalogue has none.

    Walks down the tree with one binary search among the children per level.

    Args:
      index: the prefix tree.
      codes: semantic IDs, also illegal ones.

    Returns:
      Leaf numbers, int32.
    """
    nodes, found = _walk(index, codes)[-1]
    return jnp.where(found, nodes, -1)


def legal_codes(index: PrefixIndex, codes: Int[Array, "*B L"]) -> tuple[Bool[Array, "*B _"], ...]:
    """Which codes the catalogue allows in the place of each code, given those before it.

    Args:
      index: the prefix tree.
      codes: semantic IDs, also illegal ones.

    Returns:
      Per level [*B, C]: True at the codes with which some semantic ID goes on after the codes of
      the levels before; none where there is no such prefix.
    """
    legal = []
    for level, (nodes, found) in enumerate(_walk(index, codes)[:-1]):
        num_codes, width = index.level_sizes[level], index.max_branching[level]
        rows_R, found_R = nodes.reshape(-1), found.reshape(-1)
        starts_R, ends_R = index.starts[level][rows_R], index.starts[level][rows_R + 1]
        edges_RW = starts_R[:, None] + jnp.arange(width, dtype=jnp.int32)[None]
        is_child_RW = found_R[:, None] & (edges_RW < ends_R[:, None])
        child_RW = index.codes[level].at[edges_RW].get(mode="clip")
        child_RW = jnp.where(is_child_RW, child_RW, num_codes)
        row_R1 = jnp.arange(rows_R.shape[0])[:, None]
        is_legal_RC = jnp.zeros((rows_R.shape[0], num_codes), bool)
        is_legal_RC = is_legal_RC.at[row_R1, child_RW].set(True, mode="drop")
        legal.append(is_legal_RC.reshape(*nodes.shape, num_codes))
    return tuple(legal)


def _walk(
    index: PrefixIndex, codes: Int[Array, "*B L"]
) -> list[tuple[Int[Array, "*B"], Bool[Array, "*B"]]]:
    """Per level 0..L, the node of the codes before it, and whether there is one."""
    nodes = jnp.zeros(codes.shape[:-1], jnp.int32)
    found = jnp.ones(codes.shape[:-1], bool)
    steps = [(nodes, found)]
    for level in range(index.num_levels):
        wanted = codes[..., level]
        edge_codes_E = index.codes[level]
        low, end = index.starts[level][nodes], index.starts[level][nodes + 1]
        high = end
        for _ in range(index.max_branching[level].bit_length()):
            middle = (low + high) // 2
            is_left = edge_codes_E.at[middle].get(mode="clip") < wanted
            is_left &= low < high
            low, high = jnp.where(is_left, middle + 1, low), jnp.where(is_left, high, middle)
        found &= (low < end) & (edge_codes_E.at[low].get(mode="clip") == wanted)
        nodes = jnp.minimum(low, edge_codes_E.shape[0] - 1)
        steps.append((nodes, found))
    return steps


def _on_device(arrays: list[np.ndarray]) -> tuple[Array, ...]:
    """Moves per-level arrays to the device as int32."""
    return tuple(jnp.asarray(array, jnp.int32) for array in arrays)
