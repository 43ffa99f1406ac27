"""Whether what is to live on the devices can fit there, told before any of it is made.

Counted is what stays: parameters, an optimizer's state. Activations, gradients and the compiler's
scratch come on top, and so does what lives there already, so that passing is no promise; what is
refused could not have been held at all.

Dimension key: none.
"""

import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from core_jax.arrays import PyTree
from core_jax.errors import ConfigError

_GIB = 1 << 30
_CONTAINER_LIMITS = (
    "/sys/fs/cgroup/memory.max",  # version 2 of control groups
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",  # version 1
)
"""Files in which Linux says how much memory a container may use."""


def device_bytes(abstract_tree: PyTree, shardings: PyTree) -> int:
    """Bytes that a tree takes on each device.

    Args:
      abstract_tree: arrays or `jax.ShapeDtypeStruct`, for example from `jax.eval_shape`.
      shardings: tree of `NamedSharding` of the same structure.

    >>> import jax
    >>> from core_jax.mesh import MeshConfig, make_mesh, replicated
    >>> mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    >>> device_bytes(jax.ShapeDtypeStruct((3, 5), "float32"), replicated(mesh))
    60
    """
    return sum(_leaf_bytes(*pair) for pair in _leaves(abstract_tree, shardings))


def check_memory(abstract_tree: PyTree, shardings: PyTree, *, mesh: Mesh, what: str) -> None:
    """Raises unless a tree can be held by the devices of a mesh.

    Args:
      abstract_tree: arrays or `jax.ShapeDtypeStruct`.
      shardings: tree of `NamedSharding` of the same structure, over `mesh`.
      mesh: device mesh.
      what: names the tree in the message, in the plural.

    Raises:
      ConfigError: it takes more than `device_limit`; says how much, and which mesh axis to raise.
    """
    limit = device_limit(mesh.local_devices)
    needed = device_bytes(abstract_tree, shardings)
    if limit is None or needed <= limit:
        return
    raise ConfigError(
        f"{what} take {needed / _GIB:,.2f} GiB on each device, but {_where(mesh)} has "
        f"{limit / _GIB:,.2f} GiB; {_remedy(abstract_tree, shardings, mesh, limit)}"
    )


def device_limit(devices: Sequence[Any]) -> int | None:
    """Bytes that each of a mesh's devices in this process can hold at most; None: nobody says.

    An accelerator says so itself (`memory_stats`). The CPU devices of a process are made of the
    one memory of the machine, or of the share of it that a container has, and what each of them
    holds is there beside what the others hold: their part is that memory divided by how many of
    them the mesh has here.
    """
    if not devices:
        return None  # of a mesh that is only compiled for
    if devices[0].platform == "cpu":
        memory = machine_bytes()
        return None if memory is None else memory // len(devices)
    limits = [_stats(device).get("bytes_limit") for device in devices]
    return min((limit for limit in limits if limit), default=None)


def machine_bytes() -> int | None:
    """Memory of this machine, or what its container leaves of it; None where nobody says."""
    try:
        found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (AttributeError, OSError, ValueError):  # an operating system without them
        return None
    for name in _CONTAINER_LIMITS:
        try:
            text = pathlib.Path(name).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            continue
        found += [int(text)] if text.isdigit() else []  # "max": no limit
    return min(found)


def _stats(device: Any) -> Mapping[str, int]:
    """What a device says of its memory; nothing where it cannot."""
    return device.memory_stats() or {}


def _leaves(abstract_tree: PyTree, shardings: PyTree) -> Iterator[tuple[Any, Any]]:
    """Leaves with their shardings."""
    return zip(jax.tree.leaves(abstract_tree), jax.tree.leaves(shardings), strict=True)


def _leaf_bytes(leaf: Any, sharding: Any) -> int:
    """Bytes of a leaf on each device."""
    return math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def _where(mesh: Mesh) -> str:
    """What has too little memory."""
    device, number = mesh.local_devices[0], len(mesh.local_devices)
    if device.platform == "cpu":
        return f"each of the {number} CPU devices, which share this machine's memory,"
    return f"a device ({device.device_kind})"


def _remedy(abstract_tree: PyTree, shardings: PyTree, mesh: Mesh, limit: int) -> str:
    """Which mesh axis to raise so that the tree fits, and how far."""
    total = device_bytes(abstract_tree, shardings)
    split = {
        axis: sum(
            _leaf_bytes(leaf, sharding)
            for leaf, sharding in _leaves(abstract_tree, shardings)
            if axis in _axes(sharding)
        )
        for axis in mesh.axis_names
    }
    axis = max(split, key=lambda name: split[name])
    room = limit - (total - split[axis])
    if not split[axis] or room <= 0:
        return "no mesh axis splits enough of it; take a smaller model, or a smaller dtype"
    least = math.ceil(split[axis] * mesh.shape[axis] / room)
    now = f"it is {mesh.shape[axis]}, of {mesh.size} devices"
    return (
        f"set mesh.{axis} to at least {least} ({now}), so that more devices share them, or take a "
        "smaller model or dtype"
    )


def _axes(sharding: Any) -> set[str]:
    """The mesh axes of a sharding."""
    entries = [(one,) if isinstance(one, str) else one or () for one in sharding.spec]
    return {axis for entry in entries for axis in entry}
