"""Leaf tables: what each array of a state is (dtype, shape) and an exact checksum of its bits.

The checksum is computed where the data is and does not depend on how it is sharded.

Dimension key:
  X: all dimensions of one leaf, of any number and size
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from core_jax.arrays import Array, PyTree, Shaped
from core_jax.errors import CheckpointError
from core_jax.processes import settled

LeafTable = dict[str, list[Any]]
"""Path of a leaf -> [checksum (16 hex digits), dtype name, shape]."""


def leaf_table(tree: PyTree) -> LeafTable:
    """Returns checksum, dtype and shape of every leaf by its path.

    Args:
      tree: pytree of arrays, sharded in any way.

    Returns:
      Path joined by "/" -> [checksum as 16 hex digits, dtype name, shape]; JSON-able.
    """
    named = named_leaves(tree)
    lanes = jax.device_get(
        {path: settled(_checksum(jnp.asarray(leaf))) for path, leaf in named.items()}
    )
    return {
        path: [f"{int(lanes[path][0]):08x}{int(lanes[path][1]):08x}", *_dtype_and_shape(leaf)]
        for path, leaf in named.items()
    }


@jax.jit
def _checksum(values: Shaped[Array, "*X"]) -> tuple[Array, Array]:
    """Returns an order-sensitive 64-bit checksum as two uint32 lanes.

    Each element's bits are joined with its row-major position (modulo 2^32) and mixed by a
    bijection of 32-bit words (the finaliser of MurmurHash3 with two constants of its own per
    lane); a lane is the sum modulo 2^32. Integer sums do not depend on the order of addition, so
    neither sharding nor device count changes the value; as the mix is a bijection, a change of
    one word always changes both lanes, and swapped elements change their positions.
    """
    words_X = _words(values)
    position_X = jnp.zeros(words_X.shape, jnp.uint32)
    for dim, size in enumerate(words_X.shape):
        index_X = jax.lax.broadcasted_iota(jnp.uint32, words_X.shape, dim)
        position_X = position_X * jnp.uint32(size) + index_X
    lanes = []
    for first, second in ((0x85EBCA6B, 0xC2B2AE35), (0xCC9E2D51, 0x1B873593)):
        place_X = _mix(position_X + jnp.uint32(first), second, first)
        lanes.append(jnp.sum(_mix(words_X ^ place_X, first, second), dtype=jnp.uint32))
    return lanes[0], lanes[1]


def _mix(words: Array, first: int, second: int) -> Array:
    """Mixes 32-bit words by a bijection: xor-shifts and products with odd constants."""
    words = (words ^ (words >> jnp.uint32(16))) * jnp.uint32(first)
    words = (words ^ (words >> jnp.uint32(13))) * jnp.uint32(second)
    return words ^ (words >> jnp.uint32(16))


def _words(values: Array) -> Array:
    """Views any array as uint32 words, one or more for each element."""
    if jnp.issubdtype(values.dtype, jax.dtypes.prng_key):
        values = jax.random.key_data(values)
    if values.dtype == jnp.bool_:
        return values.astype(jnp.uint32)
    if jnp.issubdtype(values.dtype, jnp.complexfloating):
        values = jnp.stack([values.real, values.imag], axis=-1)
    bits = jax.dtypes.itemsize_bits(values.dtype)
    unsigned = {2: jnp.uint2, 4: jnp.uint4, 8: jnp.uint8, 16: jnp.uint16}.get(bits, jnp.uint32)
    return jax.lax.bitcast_convert_type(values, unsigned).astype(jnp.uint32)


def structure_problem(abstract_tree: PyTree, saved: LeafTable) -> str:
    """Compares the leaves that are asked for with those that were saved.

    Args:
      abstract_tree: pytree of arrays or `jax.ShapeDtypeStruct`.
      saved: the table of the saved tree.

    Returns:
      What differs in paths, dtypes or shapes, naming the first leaf; empty if nothing does.
    """
    asked = named_leaves(abstract_tree)
    missing = [path for path in asked if path not in saved]
    unexpected = [path for path in saved if path not in asked]
    problems = [f"it lacks {_first_of(missing)}"] if missing else []
    problems += [f"it has {_first_of(unexpected)}, which is not asked for"] if unexpected else []
    for path in [] if problems else asked:
        dtype, shape = _dtype_and_shape(asked[path])
        if [dtype, shape] != saved[path][1:]:
            problems.append(
                f"'{path}' was saved as {saved[path][1]}{saved[path][2]}, but {dtype}{shape} is "
                "asked for"
            )
            break
    return " and ".join(problems)


def checksum_problem(found: LeafTable, saved: LeafTable) -> str:
    """Compares checksums of two tables with the same paths; empty if all are equal."""
    wrong = [path for path in saved if found[path][0] != saved[path][0]]
    return f"the data of {_first_of(wrong)} is not what was saved (checksum)" if wrong else ""


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """Returns the leaves by path, in flattening order."""
    flat = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}
    if len(named) != len(flat):
        raise CheckpointError(
            "Two leaves of the state have the same path once joined by '/'; rename one of the "
            f"keys that contain '/': {[path for path in named if '/' in path][:5]}."
        )
    return named


def _dtype_and_shape(leaf: Any) -> list[Any]:
    """Returns dtype name and shape, JSON-able."""
    return [str(jnp.asarray(leaf).dtype if np.isscalar(leaf) else leaf.dtype), [*np.shape(leaf)]]


def _first_of(paths: Sequence[str]) -> str:
    """Names the first path and counts the others."""
    others = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"'{paths[0]}'{others}"
