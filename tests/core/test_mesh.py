"""The mesh has four automatic axes, and sizes that cannot work are refused with the remedy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from core_jax.errors import ConfigError
from core_jax.mesh import (
    AXES,
    MeshConfig,
    batch_sharding,
    check_batch_divisible,
    make_mesh,
    replicated,
)


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (MeshConfig(), (8, 1, 1, 1)),
        (MeshConfig(fsdp=2, tensor=2), (2, 2, 1, 2)),
        (MeshConfig(data=2, expert=-1), (2, 1, 4, 1)),
        (MeshConfig(data=1, fsdp=2, expert=2, tensor=2), (1, 2, 2, 2)),
    ],
)
def test_axes_and_sizes(config, shape):
    mesh = make_mesh(config)
    assert tuple(mesh.shape.items()) == tuple(zip(AXES, shape, strict=True))
    assert mesh.axis_types == (AxisType.Auto,) * 4
    assert set(mesh.devices.flat) == set(jax.devices())


def test_a_mesh_of_some_devices():
    mesh = make_mesh(MeshConfig(tensor=3), devices=jax.devices()[:3])
    assert list(mesh.devices.flat) == jax.devices()[:3]
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "expert": 1, "tensor": 3}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"fsdp": 0}, "mesh.fsdp is 0; it must be at least 1, or -1 for the remaining devices"),
        ({"tensor": -2}, "mesh.tensor is -2; it must be at least 1"),
        ({"expert": -1}, "mesh.data and mesh.expert are all -1; only one axis can take"),
        ({"fsdp": 3}, "mesh fsdp=3 x expert=1 x tensor=1 needs a multiple of 3 devices, but there"),
        ({"data": 2}, "mesh data=2 x fsdp=1 x expert=1 x tensor=1 needs 2 devices, but there are"),
        ({"data": 16}, "needs 16 devices, but there are 8; set one axis to -1"),
    ],
)
def test_impossible_sizes(sizes, message):
    with pytest.raises(ConfigError, match=message):
        make_mesh(MeshConfig(**sizes))


def test_batch_is_split_over_all_axes_but_tensor():
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2))
    batch = jax.device_put(jnp.arange(12 * 3).reshape(12, 3), batch_sharding(mesh))
    assert {shard.data.shape for shard in batch.addressable_shards} == {(3, 3)}
    whole = jax.device_put(batch, replicated(mesh))
    assert {shard.data.shape for shard in whole.addressable_shards} == {(12, 3)}


@pytest.mark.parametrize(
    ("batch_size", "num_microbatches", "message"),
    [
        (12, 2, r"batch_size 12 is not a positive multiple of 8, which is 2 microbatches x 4 batch "
         r"shards \(mesh data=2 x fsdp=2 x expert=1\); set batch_size to a multiple of 8"),
        (0, 1, "batch_size 0 is not a positive multiple of 4"),
        (8, 0, "num_microbatches is 0; it must be at least 1"),
    ],
)  # fmt: skip
def test_a_batch_that_does_not_split_evenly(batch_size, num_microbatches, message):
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2))
    check_batch_divisible(24, 3, mesh)
    with pytest.raises(ConfigError, match=message):
        check_batch_divisible(batch_size, num_microbatches, mesh)


@dataclasses.dataclass(frozen=True)
class FakeChip:
    """A chip of a slice of 2 x 2, as JAX shows it."""

    slice_index: int
    id: int
    coords: tuple[int, int, int]
    platform: str = "tpu"
    device_kind: str = "TPU v5p"
    core_on_chip: int = 0
    process_index: int = 0


def fake_slices(count, platform="tpu"):
    """Chips of several slices, slice by slice in reverse."""
    places = [(x, y, 0) for y in range(2) for x in range(2)]
    return [
        FakeChip(number, 4 * number + at, place, platform=platform, process_index=number)
        for number in reversed(range(count))
        for at, place in enumerate(places)
    ]


@pytest.mark.parametrize("config", [MeshConfig(), MeshConfig(fsdp=4), MeshConfig(fsdp=2, tensor=2)])
def test_only_the_axis_data_goes_from_slice_to_slice(config):
    mesh = make_mesh(config, fake_slices(3))
    slices = np.vectorize(lambda chip: chip.slice_index)(mesh.devices)
    parts = np.split(slices, 3, axis=0)
    assert [set(part.flat) for part in parts] == [{0}, {1}, {2}]
    assert len({chip.id for chip in mesh.devices.flat}) == 12


def test_a_mesh_that_joins_slices_by_another_axis_is_an_error():
    with pytest.raises(ConfigError, match=r"mesh.data is 1, but there are 3 slices.*multiple of 3"):
        make_mesh(MeshConfig(data=1, fsdp=12), fake_slices(3))
    with pytest.raises(ConfigError, match=r"unequal numbers of devices \(\{0: 4, 1: 4, 2: 2\}\)"):
        make_mesh(MeshConfig(data=10), fake_slices(3)[2:])


def test_hosts_of_gpus_may_be_joined_by_any_axis():
    """In the order of the hosts: neighbours along the inner axes are on one host first."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=12), fake_slices(3, platform="gpu"))
    assert [chip.id for chip in mesh.devices.flat] == list(range(12))
