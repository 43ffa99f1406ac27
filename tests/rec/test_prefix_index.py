from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_jax.errors import DataError
from rec_jax.semantic_ids.constraint import (
    build_exclusion,
    chosen_edges,
    items_of_leaves,
    legal_children,
)
from rec_jax.semantic_ids.item_index import ItemIndex
from rec_jax.semantic_ids.prefix_index import build_prefix_index, find_leaves, legal_codes

SIZES = (5, 3, 7)


def make_index(codes, popularity=None, sizes=SIZES):
    item_index = ItemIndex(
        codes=np.asarray(codes, np.int32), level_sizes=sizes, fingerprint="0" * 16
    )
    return build_prefix_index(item_index, popularity)


def random_codes(seed, num_items):
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(0, size, num_items) for size in SIZES], axis=1)


@pytest.mark.parametrize(("seed", "num_items"), [(0, 1), (1, 13), (2, 47), (3, 211)])
def test_tree_holds_exactly_the_catalogue(seed, num_items):
    codes = random_codes(seed, num_items)
    index = make_index(codes)

    def walk(level, node):
        if level == len(SIZES):
            return [()]
        starts = np.asarray(index.starts[level])
        edges = range(starts[node], starts[node + 1])
        return [
            (int(index.codes[level][edge]), *rest)
            for edge in edges
            for rest in walk(level + 1, edge)
        ]

    assert walk(0, 0) == sorted({tuple(map(int, row)) for row in codes})
    assert index.num_items == num_items
    for level, starts in enumerate(index.starts):
        assert index.max_branching[level] == np.diff(np.asarray(starts)).max()


def test_leaf_ranges_count_the_leaves_below_every_node():
    codes = random_codes(5, 89)
    index = make_index(codes)
    leaves = sorted({tuple(map(int, row)) for row in codes})
    for level, leaf_starts in enumerate(index.leaf_starts):
        prefixes = sorted({leaf[:level] for leaf in leaves})
        counts = [sum(leaf[:level] == prefix for leaf in leaves) for prefix in prefixes]
        np.testing.assert_array_equal(np.diff(np.asarray(leaf_starts)), counts)


def test_items_of_a_leaf_are_ordered_by_popularity():
    codes = [[1, 1, 1], [0, 2, 6], [1, 1, 1], [1, 1, 1], [0, 2, 6]]
    index = make_index(codes, popularity=np.array([3, 5, 11, 3, 7]))
    assert index.max_items_per_leaf == 3
    np.testing.assert_array_equal(index.item_starts, [0, 2, 5])
    np.testing.assert_array_equal(index.items, [4, 1, 2, 0, 3])
    np.testing.assert_array_equal(index.leaf_of_item, [1, 0, 1, 1, 0])


@pytest.mark.parametrize(("seed", "num_items"), [(1, 13), (3, 211), (5, 1)])
def test_legal_codes_are_those_with_which_an_item_goes_on(seed, num_items):
    """After every prefix, also of codes that no item begins with: there nothing is legal."""
    codes = random_codes(seed, num_items)
    everything = np.stack(np.meshgrid(*map(np.arange, SIZES), indexing="ij"), -1)
    found = jax.jit(legal_codes)(make_index(codes), jnp.asarray(everything, jnp.int32))
    leaves = {tuple(map(int, row)) for row in codes}
    for level, size in enumerate(SIZES):
        prefixes = {leaf[: level + 1] for leaf in leaves}
        assert found[level].shape == (*SIZES, size)
        for place in np.ndindex(*SIZES):
            expected = [(*place[:level], code) in prefixes for code in range(size)]
            assert np.asarray(found[level][place]).tolist() == expected


def test_find_leaves_finds_all_and_only_the_catalogue():
    codes = random_codes(7, 61)
    index = make_index(codes)
    everything = np.stack(np.meshgrid(*map(np.arange, SIZES), indexing="ij"), -1)
    found = np.asarray(find_leaves(index, jnp.asarray(everything, jnp.int32)))
    leaves = sorted({tuple(map(int, row)) for row in codes})
    for code, leaf in zip(everything.reshape(-1, 3), found.reshape(-1), strict=True):
        expected = leaves.index(tuple(code)) if tuple(code) in leaves else -1
        assert leaf == expected


def free_leaves(codes, leaves, history):
    """Leaves (numbers) that have an item outside the history."""
    items_of = [np.flatnonzero((codes == leaf).all(axis=1)) for leaf in leaves]
    return [leaf for leaf, items in enumerate(items_of) if not set(items) <= set(history)]


def legal_mask(children, num_beams):
    """True at the legal candidates of every beam: the root lists what is closed for each."""
    legal = np.asarray(children.legal)
    legal = np.repeat(legal, num_beams // legal.shape[1], axis=1)
    for beam_and_place in [] if children.closed is None else np.ndindex(children.closed.shape):
        code = int(children.closed[beam_and_place])
        if code < legal.shape[-1]:
            legal[(*beam_and_place[:2], code)] = False
    return legal


@pytest.mark.parametrize("num_items", [11, 83])
def test_legal_children_against_a_plain_count(num_items):
    codes = random_codes(num_items, num_items)
    index = make_index(codes)
    leaves = sorted({tuple(map(int, row)) for row in codes})
    legal_at = [jax.jit(partial(legal_children, index, level=level)) for level in range(3)]
    exclude = jax.jit(partial(build_exclusion, index))
    batch, beams, session = 3, 5, 2
    for seed in range(7):
        rng = np.random.default_rng(seed)
        history = rng.integers(-1, num_items, (batch, num_items))
        history[0] = -1
        free = [free_leaves(codes, leaves, row) for row in history]
        used = np.stack([[rng.permutation(row)[:session] for _ in range(beams)] for row in free])
        used[:, ::2, -1] = -1
        exclusion = exclude(jnp.asarray(history, jnp.int32))
        for level in range(3):
            prefixes = sorted({leaf[:level] for leaf in leaves})
            edges = sorted({leaf[: level + 1] for leaf in leaves})
            nodes = rng.integers(0, len(prefixes), (batch, beams))
            session_edges = np.full(used.shape, -1)
            for place in np.argwhere(used >= 0):
                edge = leaves[used[tuple(place)]][: level + 1]
                session_edges[tuple(place)] = edges.index(edge)
            children = legal_at[level](
                exclusion=exclusion,
                nodes=jnp.asarray(nodes, jnp.int32),
                session_edges=jnp.asarray(session_edges, jnp.int32),
            )
            legal = legal_mask(children, beams)
            for b, k in np.ndindex(batch, beams):
                prefix = prefixes[nodes[b, k]]
                left = [leaves[leaf] for leaf in set(free[b]) - set(used[b, k])]
                expected = {leaf[: level + 1] for leaf in left if leaf[:level] == prefix}
                found = np.zeros((batch, legal[b, k].sum()), np.int32)
                found[b] = np.flatnonzero(legal[b, k])
                found = chosen_edges(index, children, jnp.full_like(found, k), jnp.asarray(found))
                assert {edges[edge] for edge in np.asarray(found[b])} == expected


def test_a_shared_leaf_gives_its_best_item_outside_the_history():
    codes = [[1, 1, 1], [0, 2, 6], [1, 1, 1], [1, 1, 1]]
    index = make_index(codes, popularity=np.array([3, 5, 11, 7]))
    history = jnp.asarray([[-1, -1, -1], [2, -1, 2], [3, 2, 0]], jnp.int32)
    leaves = jnp.broadcast_to(jnp.asarray([1, 0, -1], jnp.int32), (3, 1, 3))

    @jax.jit
    def items_and_legal(history):
        exclusion = build_exclusion(index, history)
        nothing = jnp.full((3, 1, 2), -1, jnp.int32)
        children = legal_children(index, exclusion, 0, nothing[..., 0] * 0, nothing)
        return items_of_leaves(index, exclusion, leaves), children.legal

    items, legal = items_and_legal(history)
    np.testing.assert_array_equal(items[:, 0], [[2, 1, -1], [3, 1, -1], [-1, 1, -1]])
    unused = [False] * (SIZES[0] - 2)
    np.testing.assert_array_equal(
        legal[:, 0], [[True, True, *unused], [True, True, *unused], [True, False, *unused]]
    )


def test_a_history_in_one_node_is_seen_whole():
    codes = [[2, 1 + code, 0] for code in range(17)] + [[2, 0, 0]]
    index = make_index(codes, sizes=(3, 19, 1))

    @jax.jit
    def legal(history):
        exclusion = build_exclusion(index, history)
        nothing = jnp.full((1, 1, 1), -1, jnp.int32)
        return legal_children(index, exclusion, 1, nothing[..., 0] * 0, nothing).legal

    # Nine or more used-up children of one node take more than one chunk.
    np.testing.assert_array_equal(
        legal(jnp.arange(17, dtype=jnp.int32)[None]), [[[True] + [False] * 17]]
    )


def test_an_empty_catalogue_is_refused():
    with pytest.raises(DataError, match="no items"):
        make_index(np.zeros((0, 3)))


def test_popularity_of_another_catalogue_is_refused():
    with pytest.raises(DataError, match="2 items"):
        make_index([[0, 0, 0], [1, 1, 1]], popularity=np.zeros(3, np.int64))
