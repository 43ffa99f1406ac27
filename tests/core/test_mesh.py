"""The mesh has four automatic axes, and sizes that cannot work are refused with the remedy."""

import jax
import jax.numpy as jnp
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
