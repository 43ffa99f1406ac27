"""The device mesh: four named axes, the same code from one device to a pod.

Dimension key: none.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

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

    Args:
      config: devices per axis.
      devices: the devices to use; all of them by default.

    Returns:
      A mesh with the axes `AXES`, all of them automatic: the compiler places the collectives.

    Raises:
      ConfigError: the sizes do not multiply to the number of devices.
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
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of a batch: the leading dimension over `BATCH_AXES`, the others whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


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
