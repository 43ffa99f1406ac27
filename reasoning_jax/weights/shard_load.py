"""Named tensors straight into a mesh's shards: no host ever holds more than one shard of a leaf.

A leaf is made shard by shard, a shard layer by layer: of each tensor only the rows and columns
that the shard needs are read, turned, cast and written to their place in the shard's buffer. The
buffer goes to its devices before the next one is made.

Dimension key: none (shapes are the leaves').
"""

import logging
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from core_jax.arrays import Array, Params, PyTree
from core_jax.errors import ConfigError, DataError
from core_jax.sharding import Rules, match_rules
from reasoning_jax.weights.hf_names import Leaf
from reasoning_jax.weights.tensor_source import TensorSource

_LOG = logging.getLogger(__name__)

PARAMETER_DTYPES = ("float32", "bfloat16")
"""Dtypes that parameters can have."""


def load_leaves(
    source: TensorSource,
    leaves: Sequence[Leaf],
    *,
    mesh: Mesh,
    rules: Rules,
    dtype: jax.typing.DTypeLike = "float32",
    passed_over: str = "",
) -> Params:
    """Loads leaves onto a mesh.

    Args:
      source: where the tensors are.
      leaves: what to make of them.
      mesh: device mesh.
      rules: sharding of every leaf.
      dtype: of the parameters, float32 or bfloat16; stored values are rounded to it.
      passed_over: a regular expression; tensors with such names are no parameters. They are
        counted and reported.

    Returns:
      The tree.

    Raises:
      ConfigError: another dtype, or a leaf without a rule.
      DataError: lists every tensor that is missing, unexpected or of another shape.
    """
    wanted = jnp.dtype(dtype)
    if wanted.name not in PARAMETER_DTYPES:
        raise ConfigError(
            f"parameters of dtype {wanted.name} were asked for; they can be "
            f"{' or '.join(PARAMETER_DTYPES)}"
        )
    check_tensors(source, leaves, passed_over=passed_over)
    shardings = match_rules(rules, abstract_params(leaves, wanted), mesh)
    loaded = {
        leaf.path: _load_leaf(source, leaf, _at(shardings, leaf.path), wanted) for leaf in leaves
    }
    return nested(loaded)


def abstract_params(leaves: Sequence[Leaf], dtype: jax.typing.DTypeLike = "float32") -> PyTree:
    """Shapes and dtypes of the leaves as a tree of `jax.ShapeDtypeStruct`."""
    return nested(
        {leaf.path: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype)) for leaf in leaves}
    )


def check_tensors(source: TensorSource, leaves: Sequence[Leaf], *, passed_over: str = "") -> None:
    """Raises DataError that names every missing, unexpected and misshapen tensor."""
    specs = source.specs
    expected = {name: leaf.file_shape for leaf in leaves for name in leaf.names}
    extra = [name for name in specs if name not in expected]
    known = [name for name in extra if passed_over and re.search(passed_over, name)]
    rows = [f"missing: '{name}'" for name in expected if name not in specs]
    rows += [f"unexpected: '{name}'" for name in extra if name not in known]
    rows += [
        f"misshapen: '{name}' is {specs[name].shape}, expected {shape}"
        for name, shape in expected.items()
        if name in specs and specs[name].shape != shape
    ]
    if rows:
        raise DataError(
            f"the tensors of '{source.origin}' are not those of the configured architecture:\n  "
            + "\n  ".join(rows)
            + "\nUse the config that belongs to these weights."
        )
    if known:
        _LOG.info("%s: passed over %d tensors: %s", source.origin, len(known), ", ".join(known))


def read_shard(
    source: TensorSource, leaf: Leaf, index: Sequence[slice], dtype: jax.typing.DTypeLike
) -> np.ndarray:
    """Reads one shard of a leaf into a new buffer, layer by layer.

    Args:
      source: where the tensors are.
      leaf: what to make of them.
      index: the shard's slice of every dimension of `leaf.shape`.
      dtype: of the shard.

    Returns:
      The shard. Beside it, memory is needed for one layer's part of it.
    """
    bounds = [slice(*part.indices(size)[:2]) for part, size in zip(index, leaf.shape, strict=True)]
    shard = np.empty([part.stop - part.start for part in bounds], jnp.dtype(dtype))
    layer_bounds = bounds[1:] if leaf.num_layers else bounds
    names = leaf.names[bounds[0]] if leaf.num_layers else leaf.names
    for place, name in enumerate(names):
        part = source.read(name, leaf.file_bounds(layer_bounds))
        target = shard[place] if leaf.num_layers else shard
        target[...] = leaf.from_file(part, layer_bounds)
    return shard


def nested(by_path: dict[str, PyTree]) -> PyTree:
    """A tree of dicts from its leaves by path.

    >>> nested({"embed/table": 1, "layers/mlp/up": 2})
    {'embed': {'table': 1}, 'layers': {'mlp': {'up': 2}}}
    """
    tree: dict[str, PyTree] = {}
    for path, value in by_path.items():
        *groups, last = path.split("/")
        place = tree
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = value
    return tree


def _at(tree: PyTree, path: str) -> PyTree:
    """The leaf of a tree at a path."""
    for part in path.split("/"):
        tree = tree[part]
    return tree


def _load_leaf(source: TensorSource, leaf: Leaf, sharding: NamedSharding, dtype: np.dtype) -> Array:
    """Makes one leaf, a shard at a time; devices with the same shard share one reading.

    `jax.make_array_from_callback` would hold the shards of all of a host's devices at once.
    """
    devices: dict[tuple[tuple[int, int], ...], list[Any]] = {}
    for device, index in sharding.addressable_devices_indices_map(leaf.shape).items():
        assert index is not None
        bounds = tuple(part.indices(size)[:2] for part, size in zip(index, leaf.shape, strict=True))
        devices.setdefault(bounds, []).append(device)
    arrays = []
    for bounds, holders in devices.items():
        shard = read_shard(source, leaf, [slice(*pair) for pair in bounds], dtype)
        placed = [jax.device_put(shard, device) for device in holders]
        arrays += jax.block_until_ready(placed)
        del shard
    return jax.make_array_from_single_device_arrays(leaf.shape, sharding, arrays)
