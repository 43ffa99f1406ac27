"""Devices that are only described: a slice of TPUs, a number of GPUs, for the compiler alone.

Dimension key: none.
"""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from core_jax.errors import AlignaxError, ConfigError
from launch.aot.chips import Chip, chip_of
from launch.aot.gpu_targets import gpu_target

_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # no question to a metadata server that is not there
    "TPU_WORKER_HOSTNAMES": "localhost",  # this and the next: no warning that they are absent
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several processes may compile at once
}
_NAME = re.compile(r"(?P<family>[a-z0-9]+):(?P<shape>\d+(x\d+)*)")


class CannotCompileError(AlignaxError):
    """A program cannot be compiled for a target here."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """Devices to compile for.

    Attributes:
      name: of the topology ("v5e:4x4").
      chip: what they are.
      shape: devices along the dimensions of the torus; of GPUs their number.
      devices: for `core_jax.mesh.make_mesh`.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]
    devices: tuple[Any, ...]


def parse_name(name: str) -> tuple[Chip, tuple[int, ...]]:
    """The chip and the shape of a topology's name.

    Raises:
      ConfigError: it is no such name.

    >>> parse_name("v5e:4x4")[1]
    (4, 4)
    """
    found = _NAME.fullmatch(name)
    if found is None:
        raise ConfigError(
            f"topology '{name}' is not FAMILY:SHAPE; for example v5e:4x4, v5p:4x4x4, v6e:16x16, "
            "h100:8"
        )
    chip = chip_of(found["family"])
    shape = tuple(int(size) for size in found["shape"].split("x"))
    dims = chip.torus_dims or 1
    if len(shape) != dims or 0 in shape:
        raise ConfigError(
            f"topology '{name}' has {len(shape)} dimensions, {chip.name} has {dims}; "
            f"for example {chip.name}:{chip.slices[min(3, len(chip.slices) - 1)]}"
        )
    return chip, shape


def load_target(name: str) -> Target:
    """Describes the devices of a topology to the compiler.

    Raises:
      ConfigError: no such name.
      CannotCompileError: the compiler is not installed, or does not know the topology.
    """
    chip, shape = parse_name(name)
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    if not os.environ.get("JAX_PLATFORMS"):
        jax.config.update("jax_platforms", "cpu")  # nothing runs: libtpu is only the compiler
    described = _gpus(chip, math.prod(shape)) if chip.is_gpu else _tpus(chip, shape, name)
    return Target(name=name, chip=chip, shape=shape, devices=tuple(described))


def _tpus(chip: Chip, shape: tuple[int, ...], name: str) -> Any:
    """A slice."""
    if importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ:
        raise CannotCompileError(
            f"{name} needs the TPU compiler, which is not installed; "
            "pip install '.[tpu]' (or 'jax[tpu]'), which needs no TPU"
        )
    options: dict[str, Any] = dict(chip.options)
    if math.prod(shape) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    return _described(name, platform="tpu", topology_name=name, **options)


def _gpus(chip: Chip, number: int) -> Any:
    """GPUs of hosts with 8 each, or of one host with fewer."""
    if importlib.util.find_spec("jax_cuda12_plugin") is None:
        raise CannotCompileError(
            f"{chip.name} needs the CUDA compiler, which is not installed; pip install --no-deps "
            "jax-cuda12-plugin jax-cuda12-pjrt nvidia-cuda-nvcc-cu12 in jax's version; no GPU is "
            "needed"
        )
    per_host = min(number, 8)
    if number % per_host:
        raise ConfigError(f"{number} GPUs are no whole hosts of 8; give a multiple of 8")
    return _described(
        f"{chip.name}:{number}",
        platform="cuda",
        target_config=gpu_target(chip.name),
        topology=f"1x{number // per_host}x{per_host}",
    )


def _described(name: str, **options: Any) -> Sequence[Any]:
    """The devices of a description."""
    try:
        return topologies.get_topology_desc(**options).devices
    except Exception as error:  # the compiler's own kinds of error differ from chip to chip
        reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        raise CannotCompileError(f"the compiler does not take '{name}': {reason}") from error
