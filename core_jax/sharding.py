"""Sharding by table: ordered (path pattern, PartitionSpec) rules to one sharding per leaf.

Dimension key: none (rules apply to trees of any shape).
"""

import collections
import math
import re

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from core_jax.arrays import Array, PyTree
from core_jax.errors import ConfigError, nearest_name

Rule = tuple[str, PartitionSpec]
"""A regular expression searched in a leaf's path, and the spec of the leaves that it matches."""

Rules = tuple[Rule, ...]
"""Ordered rules; the first match wins."""


def match_rules(rules: Rules, abstract_tree: PyTree, mesh: Mesh) -> PyTree:
    """Finds the sharding of every leaf.

    Paths are joined by "/" ("decoder/moe/up/kernel"). An optimizer's state mirrors the parameters
    below a prefix of its own ("0/mu/decoder/moe/up/kernel"), so the same rules serve both as long
    as patterns are anchored at the end only. Leaves without a dimension or without an element
    need no rule: they are replicated.

    Args:
      rules: ordered rules.
      abstract_tree: arrays or `jax.ShapeDtypeStruct`, for example from `jax.eval_shape`.
      mesh: device mesh.

    Returns:
      A tree of `NamedSharding` of the same structure.

    Raises:
      ConfigError: a leaf that no rule matches; a spec with an unknown or repeated axis, or with
        more entries than the leaf has dimensions; a dimension that its axes do not divide.
    """
    patterns = [(re.compile(pattern), spec) for pattern, spec in rules]

    def sharding_of(key_path: tuple, leaf: PyTree) -> NamedSharding:
        if math.prod(leaf.shape) == 0 or not leaf.shape:
            return NamedSharding(mesh, PartitionSpec())
        path = _join(key_path)
        spec = next((spec for pattern, spec in patterns if pattern.search(path)), None)
        if spec is None:
            raise ConfigError(
                f"'{path}' of shape {leaf.shape} matches none of the {len(rules)} sharding rules; "
                "add a rule for it beside the model"
            )
        _check_spec(path, leaf.shape, spec, mesh)
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding_of, abstract_tree)


def describe(abstract_tree: PyTree, shardings: PyTree) -> str:
    """Prints where every leaf lives.

    Args:
      abstract_tree: arrays or `jax.ShapeDtypeStruct`.
      shardings: tree of `NamedSharding` of the same structure.

    Returns:
      A table with one row per leaf (path, shape, dtype, spec, bytes per device), then the totals.
    """
    leaves = jax.tree_util.tree_leaves_with_path(abstract_tree)
    rows = [("path", "shape", "dtype", "spec", "bytes/device")]
    num_elements = num_bytes = device_bytes = 0
    for (key_path, leaf), sharding in zip(leaves, jax.tree.leaves(shardings), strict=True):
        itemsize = leaf.dtype.itemsize
        leaf_bytes = math.prod(sharding.shard_shape(leaf.shape)) * itemsize
        num_elements += math.prod(leaf.shape)
        num_bytes += math.prod(leaf.shape) * itemsize
        device_bytes += leaf_bytes
        shape = "x".join(map(str, leaf.shape)) or "scalar"
        spec = _spec_text(sharding.spec)
        rows.append((_join(key_path), shape, str(leaf.dtype), spec, f"{leaf_bytes:,}"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for *texts, last in rows:
        padded = [text.ljust(width) for text, width in zip(texts, widths, strict=False)]
        lines.append("  ".join([*padded, last.rjust(widths[-1])]))
    total = (
        f"total: {len(leaves)} leaves, {num_elements:,} elements, {num_bytes:,} bytes, "
        f"{device_bytes:,} bytes/device"
    )
    return "\n".join([*lines, total])


def gathered_layer(
    rules: Rules, params: PyTree, mesh: Mesh | None, *, leaves: str, dtype: jnp.dtype
) -> PyTree:
    """One layer's parameters, those that `fsdp` splits whole along it, for the moment of their use.

    Left to itself the compiler multiplies with one device's part of a weight after the other and
    sums the products up in memory, once per device: many times the traffic of the weights, which
    are small beside the activations. The gradient of a weight is whole as well, for the same
    reason, until it is added to the others; devices sum it in `dtype`.

    Args:
      rules: of the stack, whose leaves have a leading layer dimension that is never split.
      params: the layer's, without that dimension.
      mesh: device mesh, or None.
      leaves: a regular expression, searched in the paths of the leaves to gather.
      dtype: compute dtype, in which weights travel.

    Returns:
      `params`; with several devices along `fsdp` the named leaves are in `dtype` and split over the
      other axes of their rule alone.
    """
    if mesh is None or mesh.shape["fsdp"] == 1:
        return params
    pattern = re.compile(leaves)

    def gather(key_path: tuple, leaf: Array) -> Array:
        path = _join(key_path)
        if not pattern.search(path):
            return leaf
        stacked = {path: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype)}
        axes = [_axes_of(entry) for entry in match_rules(rules, stacked, mesh)[path].spec[1:]]
        if not any("fsdp" in one for one in axes):
            return leaf
        others = [tuple(axis for axis in one if axis != "fsdp") for one in axes]
        whole = PartitionSpec(*(one[0] if len(one) == 1 else one or None for one in others))
        return jax.lax.with_sharding_constraint(leaf.astype(dtype), NamedSharding(mesh, whole))

    return jax.tree_util.tree_map_with_path(gather, params)


def _join(key_path: tuple) -> str:
    """A leaf's path in the form that rules are written for."""
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def _axes_of(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The mesh axes of one entry of a spec."""
    if entry is None:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)


def _spec_text(spec: PartitionSpec) -> str:
    """A spec as "[-, fsdp, data+tensor]"."""
    if not any(_axes_of(entry) for entry in spec):
        return "replicated"
    return "[" + ", ".join("+".join(_axes_of(entry)) or "-" for entry in spec) + "]"


def _check_spec(path: str, shape: tuple[int, ...], spec: PartitionSpec, mesh: Mesh) -> None:
    """Raises ConfigError when `spec` cannot hold for a leaf of `shape` on `mesh`."""
    if len(spec) > len(shape):
        raise ConfigError(
            f"'{path}': its sharding rule {_spec_text(spec)} has {len(spec)} entries, but its "
            f"shape {shape} has {len(shape)} dimensions; shorten the rule"
        )
    used = [axis for entry in spec for axis in _axes_of(entry)]
    for axis in used:
        if axis not in mesh.axis_names:
            raise ConfigError(
                f"'{path}': its sharding rule {_spec_text(spec)} names the mesh axis '{axis}', "
                f"which does not exist. {nearest_name(axis, mesh.axis_names)}"
            )
    repeated = [axis for axis, times in collections.Counter(used).items() if times > 1]
    if repeated:
        raise ConfigError(
            f"'{path}': its sharding rule {_spec_text(spec)} uses mesh axis '{repeated[0]}' twice; "
            "split each axis over one dimension only"
        )
    for dim, (size, entry) in enumerate(zip(shape, spec, strict=False)):
        parts = math.prod(mesh.shape[axis] for axis in _axes_of(entry))
        if size % parts:
            axes = "+".join(_axes_of(entry))
            raise ConfigError(
                f"'{path}': dim {dim} of size {size} is not divisible by mesh axis '{axes}' of "
                f"size {parts}; make the dimension a multiple of {parts}, or give that axis a "
                f"size that divides {size}"
            )
