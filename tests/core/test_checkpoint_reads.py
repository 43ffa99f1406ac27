"""A restore reads each byte of a checkpoint once; reads that were given up end in silence."""

import gc
import pathlib
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from core_jax import checkpoint_step
from core_jax.checkpoint import Checkpoints, restore_params

IO = pathlib.Path("/proc/self/io")
SLACK = 1 << 20
"""Bytes that other parts of a process may read meanwhile: a small part of the checkpoint."""


def bytes_read():
    return int(IO.read_text().split()[1])


@pytest.mark.skipif(not IO.exists(), reason="only Linux counts the bytes that a process reads")
@pytest.mark.parametrize(("num_devices", "split"), [(8, True), (4, True), (1, True), (8, False)])
def test_each_byte_is_read_once(tmp_path, num_devices, split):
    """Checksums are taken of what is on the devices, not read again; replicas share a read."""

    def layout(count, split):
        devices = jax.devices()[:count]
        mesh = jax.make_mesh((count,), ("x",), axis_types=(AxisType.Auto,), devices=devices)
        return NamedSharding(mesh, PartitionSpec("x" if split else None))

    words = np.random.default_rng(0).integers(0, 2**32, (1024, 1031), dtype=np.uint32)
    params = {f"w{number}": words + number for number in range(4)}
    with Checkpoints(tmp_path) as checkpoints:
        state = {"params": jax.device_put(params, layout(8, True))}
        checkpoints.save(1, state, position={}, fingerprint="f")
    size = sum(path.stat().st_size for path in tmp_path.rglob("*"))
    assert size > 4 * words.nbytes > 15 * SLACK
    sharding = layout(num_devices, split)
    target = jax.ShapeDtypeStruct(words.shape, words.dtype, sharding=sharding)
    wanted = {"params": dict.fromkeys(params, target)}
    with Checkpoints(tmp_path) as checkpoints:
        before = bytes_read()
        found = checkpoints.restore(wanted, fingerprint="f")
        jax.block_until_ready(found.state)
        assert 0.99 * size < bytes_read() - before < size + SLACK
    before = bytes_read()
    jax.block_until_ready(restore_params(tmp_path, wanted["params"]))
    assert bytes_read() - before < size + SLACK


def test_reads_that_were_given_up_say_nothing():
    """The frames of a failure hold what had not begun; it must not warn when they go."""

    async def read():
        raise AssertionError("nobody waits for it")

    def reads():
        given_up = [read(), read()]
        raise ValueError(f"{len(given_up)} arrays are lost")

    said = []
    before, sys.unraisablehook = sys.unraisablehook, said.append
    try:
        with (
            pytest.raises(ValueError, match="2 arrays are lost"),
            checkpoint_step._strays_silenced(),
        ):
            reads()
        gc.collect()
    finally:
        sys.unraisablehook = before
    assert said == []
