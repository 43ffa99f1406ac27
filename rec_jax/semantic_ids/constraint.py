"""Which next codes are legal for a beam: the catalogue, minus what is used up.

A child is legal if and only if some leaf below it is neither excluded (the user's history) nor
already in the beam's session. Counting leaves, not codes, means that a legal prefix can always be
completed: there are no dead ends. Two facts keep the check cheap and independent of the size of
the catalogue: only nodes above excluded leaves can be used up by the history (one sorted list per
user and level, made once), and only the nodes above a beam's own items by its session.

Dimension key: B batch, K beams, M session items, N excluded items, W widest branching of a level
(at the root C, all codes of the level), Q queries, P items per leaf, X places of a chunk.
"""

import dataclasses

import jax
import jax.numpy as jnp

from core_jax.arrays import Array, Bool, Int, PyTree, Shaped
from rec_jax.semantic_ids.prefix_index import PrefixIndex

NOWHERE = 2**31 - 1
"""Padding of sorted lists: larger than every item, leaf and node."""
CHUNK = 8
"""Used-up children of a node that are looked at together."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Exclusion:
    """What a user's history takes away from the catalogue; N may be 0."""

    items: PyTree
    """Int32 [B, N]: excluded items, sorted, no item twice, padded with `NOWHERE`."""
    leaves: PyTree
    """Int32 [B, N]: leaves all of whose items are excluded, sorted and padded likewise."""
    used_up: PyTree
    """Tuple over levels 1.. of Int32 [B, N]: children without a leaf left, sorted and padded."""
    root_left: PyTree
    """Int32 [B, C]: leaves that the history leaves below each code of the first level."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Children:
    """What could follow every beam: at the root any code, elsewhere a window of W edges.

    The edges of a window are consecutive and hold all children of the beam's node; the edge at
    offset w, `windows + w`, is valid, though perhaps of another node, which `legal` then says.
    The root has nearly as many children as the level has codes, so that picking their logits would
    cost more than looking at all of them: there candidate c is code c.
    """

    windows: PyTree
    """Int32 [B, K]: first edge of every window; None at the root."""
    codes: PyTree
    """Int32 [B, K, W]: codes that the edges add; None at the root."""
    legal: PyTree
    """Bool [B, K, W], at the root [B, 1, W]: True at candidates that are children and can be
    completed, `closed` ones aside."""
    closed: PyTree
    """Int32 [B, K, M]: candidates that are not legal for one beam, W for none; None but at the
    root. Writing the few of them costs less than a mask of all codes of every beam."""


def build_exclusion(index: PrefixIndex, excluded_items: Int[Array, "B N"]) -> Exclusion:
    """Prepares the lookup of what a user's history uses up.

    A leaf that several items share is excluded only if all of them are.

    Args:
      index: the catalogue.
      excluded_items: item numbers in any order, perhaps repeated; negative or unknown ones are
        ignored.

    Returns:
      Sorted lists per user.
    """
    is_known_BN = (excluded_items >= 0) & (excluded_items < index.num_items)
    items_BN = _each_once(jnp.sort(jnp.where(is_known_BN, excluded_items, NOWHERE), axis=-1))
    leaf_of_item_BN = index.leaf_of_item.at[items_BN].get(mode="clip")
    touched_BN = jnp.sort(jnp.where(items_BN == NOWHERE, NOWHERE, leaf_of_item_BN), axis=-1)
    leaves_BN = _complete(touched_BN, index.item_starts)
    used_up, first_edges_BN = [], leaves_BN
    for level, leaf_starts in enumerate(index.leaf_starts[1:-1]):
        above_BN = jnp.searchsorted(leaf_starts, leaves_BN, side="right").astype(jnp.int32) - 1
        above_BN = jnp.where(leaves_BN == NOWHERE, NOWHERE, above_BN)
        if level == 0:
            first_edges_BN = above_BN
        else:
            used_up.append(_complete(above_BN, leaf_starts))
    if index.num_levels > 1:
        used_up.append(leaves_BN)
    return Exclusion(
        items=items_BN,
        leaves=leaves_BN,
        used_up=tuple(used_up),
        root_left=_leaves_left(index, first_edges_BN),
    )


def _leaves_left(index: PrefixIndex, used_edges: Int[Array, "B N"]) -> Int[Array, "B C"]:
    """Leaves below every first code, less one for each time that its edge is listed."""
    codes_E, num_codes = index.codes[0], index.level_sizes[0]
    size_C = jnp.zeros(num_codes, jnp.int32).at[codes_E].set(jnp.diff(index.leaf_starts[1]))
    code_BN = codes_E.at[used_edges].get(mode="fill", fill_value=num_codes)

    def left(code_N: Array) -> Array:
        return size_C.at[code_N].add(-1, mode="drop")

    return jax.vmap(left)(code_BN)


def legal_children(
    index: PrefixIndex,
    exclusion: Exclusion,
    level: int,
    nodes: Int[Array, "B K"],
    session_edges: Int[Array, "B K M"],
) -> Children:
    """Children of the beams' nodes, and which of them can be completed.

    Args:
      index: the catalogue.
      exclusion: what the history uses up.
      level: level of the nodes, the number of codes in the prefix so far.
      nodes: node numbers; ignored at level 0, where every beam stands on the root.
      session_edges: for every item that is in the session already, the edge of this level on the
        way to it; -1 for items to come.

    Returns:
      The children.
    """
    if level == 0:
        return _first_codes(index, exclusion, session_edges)
    width = index.max_branching[level]
    offset_11W = jnp.arange(width, dtype=jnp.int32)[None, None]
    starts_BK, ends_BK = index.starts[level][nodes], index.starts[level][nodes + 1]
    windows_BK = jnp.minimum(starts_BK, index.codes[level].shape[0] - width)
    edges_BKW = windows_BK[..., None] + offset_11W
    legal_BKW = (edges_BKW >= starts_BK[..., None]) & (edges_BKW < ends_BK[..., None])
    legal_BKW &= ~_in_window(exclusion.used_up[level - 1], windows_BK, width)
    used_up_BKM = _used_up_by_session(index, exclusion, level, session_edges)
    offset_BKM = jnp.where(used_up_BKM, session_edges - windows_BK[..., None], -1)
    legal_BKW = put_at(legal_BKW, jnp.where(offset_BKM < 0, width, offset_BKM), False)
    codes_BKW = _windows_of(index.codes[level], windows_BK, width)
    return Children(windows=windows_BK, codes=codes_BKW, legal=legal_BKW, closed=None)


def chosen_edges(
    index: PrefixIndex,
    children: Children,
    parents: Int[Array, "B K"] | None,
    choices: Int[Array, "B K"],
) -> Int[Array, "B K"]:
    """Edges of candidates that were chosen.

    Args:
      index: the catalogue.
      children: from `legal_children`, of the beams before the choice.
      parents: the beam among whose candidates each choice is; None: each beam's own.
      choices: position among the parent's candidates.

    Returns:
      Edge numbers, int32; valid even where the choice is not legal.
    """
    if children.windows is None:
        return index.root_edges[choices]
    windows_BK = children.windows
    if parents is not None:
        windows_BK = jnp.take_along_axis(windows_BK, parents, axis=1)
    return windows_BK + choices


def _first_codes(
    index: PrefixIndex, exclusion: Exclusion, session_edges: Int[Array, "B K M"]
) -> Children:
    """`legal_children` at the root."""
    codes_BKM = index.codes[0].at[session_edges].get(mode="clip")
    left_BKM = jax.vmap(lambda left_C, codes_KM: left_C[codes_KM])(exclusion.root_left, codes_BKM)
    used_up_BKM = _times_in_session(session_edges) >= left_BKM
    closed_BKM = jnp.where((session_edges >= 0) & used_up_BKM, codes_BKM, index.level_sizes[0])
    open_B1C = (exclusion.root_left > 0)[:, None]
    return Children(windows=None, codes=None, legal=open_B1C, closed=closed_BKM)


def put_at(
    values: Shaped[Array, "B K W"], places: Int[Array, "B K M"], value: float | bool
) -> Shaped[Array, "B K W"]:
    """Writes a value to each beam's given places; place W means none.

    A few writes per beam: compared with every candidate, XLA works out the places anew for each.
    """

    def put(values_W: Array, places_M: Array) -> Array:
        return values_W.at[places_M].set(value, mode="drop")

    return jax.vmap(jax.vmap(put))(values, places)


def items_of_leaves(
    index: PrefixIndex, exclusion: Exclusion, leaves: Int[Array, "B K M"]
) -> Int[Array, "B K M"]:
    """The item that each leaf stands for: its most popular one that is not excluded.

    Args:
      index: the catalogue.
      exclusion: what the history uses up.
      leaves: leaf numbers; -1 for none.

    Returns:
      Item numbers, int32; -1 where there is no leaf or all its items are excluded.
    """
    starts_BKM = index.item_starts.at[leaves].get(mode="clip")
    ends_BKM = index.item_starts.at[leaves + 1].get(mode="clip")
    position_P = jnp.arange(index.max_items_per_leaf, dtype=jnp.int32)
    positions_BKMP = starts_BKM[..., None] + position_P[None, None, None]
    items_BKMP = index.items.at[positions_BKMP].get(mode="clip")
    is_free_BKMP = (positions_BKMP < ends_BKM[..., None]) & (leaves >= 0)[..., None]
    if exclusion.items.shape[-1] > 0:
        ranks_BKMP = _ranks(exclusion.items, items_BKMP)
        is_free_BKMP &= _at_ranks(exclusion.items, ranks_BKMP) != items_BKMP
    best_BKM1 = jnp.argmax(is_free_BKMP, axis=-1, keepdims=True)
    best_BKM = jnp.take_along_axis(items_BKMP, best_BKM1, axis=-1)[..., 0]
    return jnp.where(is_free_BKMP.any(axis=-1), best_BKM, -1)


def _used_up_by_session(
    index: PrefixIndex, exclusion: Exclusion, level: int, session_edges: Int[Array, "B K M"]
) -> Bool[Array, "B K M"]:
    """True at edges to which history and session together leave no leaf."""
    is_real_BKM = session_edges >= 0
    if level == index.num_levels - 1:
        return is_real_BKM
    leaf_starts = index.leaf_starts[level + 1]
    first_BKM = leaf_starts.at[session_edges].get(mode="clip")
    end_BKM = leaf_starts.at[session_edges + 1].get(mode="clip")
    ranks_B2KM = _ranks(exclusion.leaves, jnp.stack([first_BKM, end_BKM], axis=1))
    num_used_BKM = ranks_B2KM[:, 1] - ranks_B2KM[:, 0] + _times_in_session(session_edges)
    return is_real_BKM & (num_used_BKM >= end_BKM - first_BKM)


def _times_in_session(session_edges: Int[Array, "B K M"]) -> Int[Array, "B K M"]:
    """How many of the session's edges are the same one, itself included."""
    is_same_BKMM = session_edges[..., None] == session_edges[..., None, :]
    return jnp.sum(is_same_BKMM, axis=-1, dtype=jnp.int32)


def _in_window(
    sorted_edges: Int[Array, "B N"], windows: Int[Array, "B K"], width: int
) -> Bool[Array, "B K W"]:
    """True at offsets of a window whose edge is in the user's sorted list.

    The edges of a window are consecutive, so the listed ones are too: the loop runs as often as
    the fullest window needs, at most N / CHUNK times and almost always once or never.
    """
    offset_11W = jnp.arange(width, dtype=jnp.int32)[None, None]
    empty_BKW = jnp.zeros((*windows.shape, width), bool)
    if sorted_edges.shape[-1] == 0:
        return empty_BKW
    place_11X = jnp.arange(CHUNK, dtype=jnp.int32)[None, None]
    ranks_B2K = _ranks(sorted_edges, jnp.stack([windows, windows + width], axis=1))
    first_BK = ranks_B2K[:, 0]
    num_steps = -(-jnp.max(ranks_B2K[:, 1] - first_BK) // CHUNK)

    def add_chunk(step: Array, found_BKW: Array) -> Array:
        rank_BKX = first_BK[..., None] + (step * CHUNK + place_11X)
        offset_BKX = _at_ranks(sorted_edges, rank_BKX) - windows[..., None]
        for place in range(CHUNK):
            found_BKW = found_BKW | (offset_BKX[..., place, None] == offset_11W)
        return found_BKW

    return jax.lax.fori_loop(0, num_steps, add_chunk, empty_BKW)


def _windows_of(
    values: Int[Array, "E"], windows: Int[Array, "B K"], width: int
) -> Int[Array, "B K W"]:
    """Runs of `width` consecutive values."""

    def window(start: Array) -> Array:
        return jax.lax.dynamic_slice(values, (start,), (width,))

    return jax.vmap(jax.vmap(window))(windows)


def _complete(
    members: Int[Array, "B N"], group_starts: Int[Array, "G_plus_1"]
) -> Int[Array, "B N"]:
    """Groups all of whose members are listed: sorted, each once, padded.

    Args:
      members: sorted group numbers, one entry per listed member; padding `NOWHERE`.
      group_starts: a group's size is the difference of neighbours.
    """
    group_BN = jnp.minimum(members, group_starts.shape[0] - 2)
    size_BN = group_starts[group_BN + 1] - group_starts[group_BN]
    # Complete: the entry `size - 1` places further on is still of the same group.
    place_1N = jnp.arange(members.shape[-1], dtype=jnp.int32)[None]
    last_BN = _at_ranks(
        jnp.pad(members, ((0, 0), (0, 1)), constant_values=-1), place_1N + size_BN - 1
    )
    return _each_once(members, keep=last_BN == members)


def _each_once(
    sorted_values: Int[Array, "B N"], keep: Bool[Array, "B N"] | None = None
) -> Int[Array, "B N"]:
    """One of equal values, and only where `keep`: sorted, padded with `NOWHERE`."""
    is_first_BN = jnp.diff(sorted_values, axis=-1, prepend=-1) != 0
    if keep is not None:
        is_first_BN &= keep
    return jnp.sort(jnp.where(is_first_BN, sorted_values, NOWHERE), axis=-1)


def _ranks(sorted_values: Int[Array, "B N"], queries: Int[Array, "B *Q"]) -> Int[Array, "B *Q"]:
    """How many of a row's sorted values are below each query, int32."""
    if sorted_values.shape[-1] == 0:
        return jnp.zeros(queries.shape, jnp.int32)

    def row(values: Array, row_queries: Array) -> Array:
        return jnp.searchsorted(values, row_queries).astype(jnp.int32)

    return jax.vmap(row)(sorted_values, queries)


def _at_ranks(sorted_values: Int[Array, "B N"], ranks: Int[Array, "B *Q"]) -> Int[Array, "B *Q"]:
    """The values of a row at the given places; the last one beyond the end."""
    places_BQ = jnp.minimum(ranks, sorted_values.shape[-1] - 1).reshape(ranks.shape[0], -1)
    return jnp.take_along_axis(sorted_values, places_BQ, axis=1).reshape(ranks.shape)
