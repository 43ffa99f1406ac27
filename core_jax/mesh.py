"""The device mesh: four named axes, the same code from one device to a pod.

Dimension key: none.
"""

import collections
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from core_jax.arrays import Array
from core_jax.errors import ConfigError

AXES = ("data", "fsdp", "expert", "tensor")
"""Mesh axes, outermost first: neighbouring devices share a tensor group."""

BATCH_AXES = ("data", "fsdp", "expert")
"""The axes over which the batch dimension is split."""

_REST = -1


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices per mesh axis; at most one axis may be -1, which takes the remaining devices."""

    data: int = _REST
    """Data parallel replicas of the whole model; -1: all devices that the other axes leave."""
    fsdp: int = 1
    """Devices that share the parameters and each work on their part of the batch."""
    expert: int = 1
    """Devices that share the experts and each work on their part of the batch."""
    tensor: int = 1
    """Devices that share the heads and hidden units of every layer."""

    def __post_init__(self) -> None:
        """Checks every size on its own."""
        sizes = {name: getattr(self, name) for name in AXES}
        for name, size in sizes.items():
            if size < 1 and size != _REST:
                raise ConfigError(
                    f"mesh.{name} is {size}; it must be at least 1, or -1 for the remaining devices"
                )
        rest = [name for name, size in sizes.items() if size == _REST]
        if len(rest) > 1:
            named = " and ".join(f"mesh.{name}" for name in rest)
            raise ConfigError(f"{named} are all -1; only one axis can take the remaining devices")


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Arranges devices along the named axes.

    Devices of several slices (TPU slices that only a data-center network joins) are arranged so
    that nothing but the outermost axis, `data`, goes from slice to slice.

    Args:
      config: devices per axis.
      devices: the devices to use; all of them by default.

    Returns:
      A mesh with the axes `AXES`, all of them automatic: the compiler places the collectives.

    Raises:
      ConfigError: the sizes do not multiply to the number of devices, or `data` does not split
        over the slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = {name: getattr(config, name) for name in AXES}
    fixed = math.prod(size for size in sizes.values() if size != _REST)
    rest = [name for name, size in sizes.items() if size == _REST]
    text = " x ".join(f"{name}={size}" for name, size in sizes.items() if name not in rest)
    if rest and len(devices) % fixed:
        raise ConfigError(
            f"mesh {text} needs a multiple of {fixed} devices, but there are {len(devices)}; "
            f"set the sizes so that their product divides {len(devices)}"
        )
    if not rest and fixed != len(devices):
        raise ConfigError(
            f"mesh {text} needs {fixed} devices, but there are {len(devices)}; "
            "set one axis to -1 to take the remaining devices"
        )
    shape = tuple(len(devices) // fixed if name in rest else sizes[name] for name in AXES)
    return Mesh(_arrange(shape, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def slices_of(devices: Sequence[Any]) -> dict[int, int]:
    """Devices per slice, by the slice's number; one slice where devices know of none."""
    return dict(sorted(collections.Counter(map(_slice_of, devices)).items()))


def _slice_of(device: Any) -> int:
    """The number of a device's slice."""
    return getattr(device, "slice_index", 0) or 0


def _arrange(shape: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
    """The devices in the shape of the mesh, neighbours along the inner axes."""
    slices = slices_of(devices)
    if len(slices) == 1:
        return _on_torus(shape, devices)
    if devices[0].platform != "tpu":
        # Hosts of GPUs: each is a "slice", and the inner axes may go from host to host.
        ordered = sorted(devices, key=lambda one: (_slice_of(one), one.process_index, one.id))
        return np.asarray(ordered).reshape(shape)
    num_slices = len(slices)
    if len(set(slices.values())) > 1:
        raise ConfigError(
            f"the slices have unequal numbers of devices ({slices}); use slices of one kind"
        )
    if shape[0] % num_slices:
        raise ConfigError(
            f"mesh.data is {shape[0]}, but there are {num_slices} slices, which only the axis "
            f"'data' may join; set mesh.data to a multiple of {num_slices}, or to -1 and the "
            f"other axes so that their product divides a slice's {len(devices) // num_slices} "
            "devices"
        )
    inner = (shape[0] // num_slices, *shape[1:])
    blocks = [
        _on_torus(inner, [one for one in devices if _slice_of(one) == number]) for number in slices
    ]
    return np.concatenate(blocks, axis=0)


def _on_torus(shape: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
    """Devices of one slice; an axis of the torus is split only where there is no other way."""
    try:
        return mesh_utils.create_device_mesh(shape, devices)
    except NotImplementedError:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of a batch: the leading dimension over `BATCH_AXES`, the others whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def over_batch(array: Array, mesh: Mesh | None, dim: int = 0) -> Array:
    """Keeps activations split over `BATCH_AXES` along one dimension, whole along every other.

    Where tokens are many, it is then weights that travel between devices. Without a mesh nothing
    is asked for.
    """
    if mesh is None:
        return array
    spec = PartitionSpec(*(None,) * dim, BATCH_AXES)
    return jax.lax.with_sharding_constraint(array, NamedSharding(mesh, spec))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch_divisible(batch_size: int, num_microbatches: int, mesh: Mesh) -> None:
    """Checks, before anything compiles, that a batch splits evenly.

    Args:
      batch_size: examples per step over all devices and hosts.
      num_microbatches: sequential parts of a step.
      mesh: device mesh with the axes `AXES`.

    Raises:
      ConfigError: the batch does not split into microbatches and then over the devices.
    """
    if num_microbatches < 1:
        raise ConfigError(f"num_microbatches is {num_microbatches}; it must be at least 1")
    sizes = {name: mesh.shape[name] for name in BATCH_AXES}
    shards = math.prod(sizes.values())
    if batch_size < 1 or batch_size % (num_microbatches * shards):
        axes = " x ".join(f"{name}={size}" for name, size in sizes.items())
        raise ConfigError(
            f"batch_size {batch_size} is not a positive multiple of {num_microbatches * shards}, "
            f"which is {num_microbatches} microbatches x {shards} batch shards (mesh {axes}); "
            f"set batch_size to a multiple of {num_microbatches * shards}"
        )
