"""What is too large for the devices is refused before it is made, and the remedy works."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

from core_jax import memory
from core_jax.errors import ConfigError
from core_jax.memory import check_memory, device_bytes, device_limit, machine_bytes
from core_jax.mesh import MeshConfig, make_mesh
from core_jax.sharding import match_rules
from core_jax.train_state import init_state

GIB = 1 << 30
RULES = ((r"wide$", PartitionSpec(None, "fsdp")), (r"whole$", PartitionSpec()))
TREE = {
    "wide": jax.ShapeDtypeStruct((GIB, 8), jnp.bfloat16),
    "whole": jax.ShapeDtypeStruct((GIB // 4,), jnp.float32),
}
"""16 GiB that `fsdp` splits, 1 GiB that stays whole."""


def check(mesh, limit, monkeypatch):
    monkeypatch.setattr(memory, "device_limit", lambda _: limit)
    check_memory(TREE, match_rules(RULES, TREE, mesh), mesh=mesh, what="the weights")


@pytest.mark.parametrize(("fsdp", "gib"), [(1, 17), (2, 9), (4, 5), (8, 3)])
def test_bytes_are_those_of_a_shard(fsdp, gib):
    """16 GiB / fsdp + 1 GiB."""
    mesh = make_mesh(MeshConfig(fsdp=fsdp))
    assert device_bytes(TREE, match_rules(RULES, TREE, mesh)) == gib * GIB


def test_what_fits_exactly_is_let_through(monkeypatch):
    mesh = make_mesh(MeshConfig(fsdp=2))
    check(mesh, 9 * GIB, monkeypatch)
    with pytest.raises(ConfigError):
        check(mesh, 9 * GIB - 1, monkeypatch)


def test_what_nobody_knows_the_limit_of_is_let_through(monkeypatch):
    check(make_mesh(MeshConfig()), None, monkeypatch)


@pytest.mark.parametrize("limit", [3, 5, 7])
def test_the_axis_named_is_the_least_that_fits(limit, monkeypatch):
    """16 / (limit - 1) devices, rounded up: with so many it fits, with one less it would not."""
    mesh = make_mesh(MeshConfig())
    text = (
        rf"the weights take 17\.00 GiB on each device, but .* has {limit}\.00 GiB; set mesh\.fsdp "
        r"to at least (\d+) \(it is 1, of 8 devices\), so that more devices share them"
    )
    with pytest.raises(ConfigError, match=text) as error:
        check(mesh, limit * GIB, monkeypatch)
    found = re.search(text, str(error.value))
    assert found is not None
    least = int(found[1])
    assert least == math.ceil(16 / (limit - 1))
    assert 16 / least + 1 <= limit < 16 / (least - 1) + 1


def test_where_no_axis_helps_that_is_said(monkeypatch):
    with pytest.raises(ConfigError, match=r"no mesh axis splits enough of it; take a smaller mod"):
        check(make_mesh(MeshConfig()), GIB, monkeypatch)


def test_cpu_devices_share_the_machine(monkeypatch):
    """The mesh's own devices alone: others of the process hold nothing."""
    monkeypatch.setattr(memory, "machine_bytes", lambda: 24 * GIB)
    assert device_limit(jax.devices()) == 3 * GIB
    assert device_limit(jax.devices()[:2]) == 12 * GIB
    monkeypatch.setattr(memory, "machine_bytes", lambda: None)
    assert device_limit(jax.devices()) is None
    mesh = make_mesh(MeshConfig())
    monkeypatch.setattr(memory, "machine_bytes", lambda: 24 * GIB)
    with pytest.raises(ConfigError, match="each of the 8 CPU devices, which share this machine's"):
        check_memory(TREE, match_rules(RULES, TREE, mesh), mesh=mesh, what="the weights")


def test_the_machine_has_memory():
    found = machine_bytes()
    assert found is not None and 100 << 20 < found < 1 << 50


def test_a_container_has_less(tmp_path, monkeypatch):
    whole = machine_bytes()
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "_CONTAINER_LIMITS", (str(limit), str(tmp_path / "absent")))
    limit.write_text("1234567\n")
    assert machine_bytes() == 1234567
    limit.write_text("max\n")
    assert machine_bytes() == whole or whole is None


@dataclasses.dataclass(frozen=True)
class FakeDevice:
    """A device that says what an accelerator says."""

    limit: int | None
    platform: str = "tpu"
    device_kind: str = "TPU v5e"

    def memory_stats(self):
        return None if self.limit is None else {"bytes_in_use": 7, "bytes_limit": self.limit}


def test_accelerators_say_themselves():
    """The smallest of them counts; what one says nothing of is not checked."""
    limits = (None, 16 * GIB, 15 * GIB)
    assert device_limit([FakeDevice(limit) for limit in limits]) == 15 * GIB
    assert device_limit([FakeDevice(None)]) is None
    assert device_limit([]) is None


def test_a_train_state_is_refused_before_it_is_born(monkeypatch):
    """Adam: three trees of float32, 3 x 4 x 7 x 8 bytes and a counter; wide over 2 of 8 devices."""
    mesh = make_mesh(MeshConfig(fsdp=2))
    optimizer = optax.adam(1e-3)
    born = []

    def init(key):
        born.append(isinstance(key, Tracer))
        return {"wide": jax.random.normal(key, (7, 8))}

    def make():
        return init_state(init, optimizer, mesh=mesh, rules=RULES, key=jax.random.key(0))

    needed = 3 * 4 * 7 * 8 // 2 + 4 * 4  # and step, skipped twice, Adam's count
    monkeypatch.setattr(memory, "device_limit", lambda _: needed - 1)
    with pytest.raises(ConfigError, match=r"parameters and optimizer state take .* mesh\.fsdp"):
        make()
    assert all(born), "no array was made"
    monkeypatch.setattr(memory, "device_limit", lambda _: needed)
    state, shardings = make()
    assert isinstance(shardings.params["wide"], NamedSharding)
    assert device_bytes(state, shardings) == needed
