"""Checkpoints: bit-equal on any mesh, and no kind of damage is restored without a word."""

import json
import logging
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from core_jax.checkpoint import Checkpoints, restore_params
from core_jax.errors import CheckpointError
from core_jax.leaf_table import leaf_table

POSITION = {"batch": 7, "nested": {"seed": [1, 2]}}


def mesh_of(num_devices):
    return jax.make_mesh(
        (num_devices,),
        ("data",),
        axis_types=(AxisType.Auto,),
        devices=jax.devices()[:num_devices],
    )


def values():
    """A state with every kind of leaf: floats, bool, ints, keys, scalars, nothing at all."""
    random = np.random.default_rng(0)
    return {
        "params": {
            "w": random.normal(size=(64, 7)).astype(np.float32),
            "half": random.normal(size=(8, 3)).astype(jnp.bfloat16),
            "v1.0": np.arange(5, dtype=np.int8),
        },
        "opt_state": (random.normal(size=(16,)).astype(np.float32), ()),
        "mask": random.random(24) < 0.5,
        "empty": np.zeros((0, 3), np.float32),
        "step": np.int32(11),
    }


def place(tree, mesh, key=3):
    """Puts leaves on a mesh, split over it where their first dimension allows."""

    def put(leaf):
        splits = leaf.ndim and leaf.shape[0] and leaf.shape[0] % mesh.size == 0
        spec = PartitionSpec("data") if splits else PartitionSpec()
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    return jax.tree.map(put, tree | {"key": jax.random.split(jax.random.key(key), 8)})


def abstract(tree):
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree
    )


def bits(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf).tobytes()


def assert_bit_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for leaf, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (leaf.dtype, leaf.shape, bits(leaf)) == (other.dtype, other.shape, bits(other))


def save(folder, *steps, keep=9, **kw):
    """Saves a state at each step; returns the state of step i as list entry i."""
    states = {}
    with Checkpoints(folder, keep=keep) as checkpoints:
        for step in steps:
            states[step] = place(values() | {"step": np.int32(step)}, mesh_of(8))
            checkpoints.save(step, states[step], position=POSITION, fingerprint="f", **kw)
    return states


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """Steps 1 and 2, saved on 8 devices; the tests damage copies."""
    folder = tmp_path_factory.mktemp("template")
    return folder, save(folder, 1, 2)


@pytest.fixture
def saved(template, tmp_path):
    shutil.copytree(template[0], tmp_path / "run")
    return tmp_path / "run", template[1]


def restore(folder, target):
    with Checkpoints(folder) as checkpoints:
        return checkpoints.restore(abstract(target), fingerprint="f")


@pytest.mark.parametrize("num_devices", [8, 4, 1])
def test_restores_bit_equal_onto_another_mesh(saved, num_devices):
    folder, states = saved
    target = place(values(), mesh_of(num_devices), key=5)
    restored = restore(folder, target)
    assert (restored.step, restored.position, restored.passed_over) == (2, POSITION, ())
    assert_bit_equal(restored.state, states[2])
    for leaf, wanted in zip(jax.tree.leaves(restored.state), jax.tree.leaves(target), strict=True):
        assert leaf.sharding == wanted.sharding


def test_a_donated_state_is_saved_as_it_was(tmp_path):
    """The buffers are overwritten while the save may still be writing."""
    state = {"w": jnp.arange(1 << 20, dtype=jnp.float32)}
    expected = np.asarray(state["w"]).copy()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, position={}, fingerprint="f")
        target = abstract(state)
        change = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * -1, tree), donate_argnums=0)
        for _ in range(5):
            state = change(state)
        restored = checkpoints.restore(target, fingerprint="f")
    np.testing.assert_array_equal(restored.state["w"], expected)


def test_nothing_to_restore(tmp_path):
    assert restore(tmp_path / "new", place(values(), mesh_of(1))) is None


def data_files(folder, step):
    """The files that hold array data, largest first."""
    files = [path for path in (folder / str(step) / "state").rglob("*") if path.parent.name == "d"]
    return sorted(files, key=lambda path: -path.stat().st_size)


def flip_bit(path, at):
    content = bytearray(path.read_bytes())
    content[at % len(content)] ^= 1
    path.write_bytes(bytes(content))


def flip_data(folder):
    for path in data_files(folder, 2):
        flip_bit(path, path.stat().st_size // 2)


def truncate_data(folder):
    for path in data_files(folder, 2):
        path.write_bytes(path.read_bytes()[:-7])


def delete_manifest(folder):
    (folder / "2" / "state" / "manifest.ocdbt").unlink()


def empty_step(folder):
    shutil.rmtree(folder / "2")
    (folder / "2").mkdir()


def truncate_meta(folder):
    path = folder / "2" / "meta" / "metadata"
    path.write_text(path.read_text()[:-20])


def change_meta(folder):
    path = folder / "2" / "meta" / "metadata"
    path.write_text(path.read_text().replace('"batch": 7', '"batch": 8'))


def delete_meta(folder):
    shutil.rmtree(folder / "2" / "meta")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip_data, r"step 2: "),
        (truncate_data, r"step 2: "),
        (delete_manifest, r"step 2: "),
        (empty_step, r"step 2: the folder is empty"),
        (truncate_meta, r"step 2: JSONDecodeError"),
        (change_meta, r"step 2: meta does not match its own sha256"),
        (delete_meta, r"step 2: FileNotFoundError"),
    ],
)
def test_damaged_step_is_named_and_passed_over(saved, caplog, damage, reason):
    folder, states = saved
    damage(folder)
    with caplog.at_level(logging.WARNING, "core_jax"):
        restored = restore(folder, states[1])
    assert restored.step == 1
    assert_bit_equal(restored.state, states[1])
    assert len(restored.passed_over) == 1
    assert restored.passed_over[0].startswith(reason)
    assert restored.passed_over[0] in caplog.text


def test_a_flipped_bit_never_changes_what_is_restored(tmp_path):
    """Flips all over the file of an array that does not compress, which Orbax alone restores.

    A byte that carries no value (the end of a block) may change without effect.
    """
    words = np.random.default_rng(1).integers(0, 2**32, 1 << 14, dtype=np.uint32)
    state = {"w": jnp.asarray(words)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": ~state["w"]}, position={}, fingerprint="f")
        checkpoints.save(2, state, position={}, fingerprint="f")
    path = data_files(tmp_path, 2)[0]
    content = path.read_bytes()
    found_by_checksum = 0
    for at in np.linspace(0, len(content) - 1, 9).astype(int):
        flip_bit(path, at)
        restored = restore(tmp_path, state)
        assert restored.step == 2 - len(restored.passed_over)
        expected = words if restored.step == 2 else ~words
        np.testing.assert_array_equal(restored.state["w"], expected)
        found_by_checksum += "(checksum)" in "".join(restored.passed_over)
        path.write_bytes(content)
    assert found_by_checksum >= 5
    assert restore(tmp_path, state).step == 2


def test_save_cut_off_by_a_kill_is_passed_over_and_can_be_made_again(saved):
    folder, states = saved
    os.rename(folder / "2", folder / "2.orbax-checkpoint-tmp")
    with Checkpoints(folder) as checkpoints:
        restored = checkpoints.restore(abstract(states[1]), fingerprint="f")
        assert restored.passed_over == ("step 2: the save was cut off before it was complete",)
        checkpoints.save(2, states[2], position=POSITION, fingerprint="f")
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]
    assert_bit_equal(restore(folder, states[2]).state, states[2])


def test_damaged_step_is_set_aside_when_it_is_reached_again(saved):
    folder, states = saved
    flip_data(folder)
    with Checkpoints(folder, keep=2) as checkpoints:
        assert checkpoints.restore(abstract(states[1]), fingerprint="f").step == 1
        checkpoints.save(2, states[2], position=POSITION, fingerprint="f")
        assert checkpoints.steps() == [1, 2]
    assert (folder / "damaged" / "2").is_dir()
    assert restore(folder, states[2]).step == 2


def test_no_good_step_is_an_error_that_names_all(saved):
    folder, states = saved
    flip_data(folder)
    (folder / "1" / "state" / "manifest.ocdbt").unlink()
    with pytest.raises(CheckpointError, match=r"(?s)None of .*step 2: .*step 1: .*Restore"):
        restore(folder, states[1])


def changed(tree, change):
    """The abstract tree after a change of its parameters."""
    target = abstract(tree)
    change(target["params"])
    return target


def as_type(dtype):
    def change(params):
        old = params["w"]
        params["w"] = jax.ShapeDtypeStruct(old.shape, dtype, sharding=old.sharding)

    return change


def as_shape(params):
    old = params["w"]
    params["w"] = jax.ShapeDtypeStruct((64, 5), old.dtype, sharding=old.sharding)


def added(params):
    params["more"] = params["w"]


def removed(params):
    del params["w"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (as_type(jnp.bfloat16), r"'params/w' was saved as float32\[64, 7\], but bfloat16\[64, 7\]"),
        (as_type(jnp.int32), r"'params/w' was saved as float32\[64, 7\], but int32"),
        (as_shape, r"'params/w' was saved as float32\[64, 7\], but float32\[64, 5\]"),
        (added, r"it lacks 'params/more'"),
        (removed, r"it has 'params/w', which is not asked for"),
    ],
)
def test_another_structure_is_refused(template, change, message):
    folder, states = template
    target = changed(states[2], change)
    with (
        Checkpoints(folder) as checkpoints,
        pytest.raises(CheckpointError, match=message),
    ):
        checkpoints.restore(target, fingerprint="f")
    if change is not removed:
        with pytest.raises(CheckpointError, match=message):
            restore_params(folder, target["params"])


def test_another_fingerprint_is_refused(template):
    folder, states = template
    with (
        Checkpoints(folder) as checkpoints,
        pytest.raises(CheckpointError, match=r"2 is of configuration f, this run of g\. Use"),
    ):
        checkpoints.restore(abstract(states[2]), fingerprint="g")


def test_params_only(saved):
    folder, states = saved
    target = abstract(place(values(), mesh_of(1)))["params"]
    assert_bit_equal(restore_params(folder, target), states[2]["params"])
    assert_bit_equal(restore_params(folder, target, step=1), states[1]["params"])
    with pytest.raises(CheckpointError, match=r"does not have step 3; it has \[1, 2\]"):
        restore_params(folder, target, step=3)
    with pytest.raises(CheckpointError, match="does not have any step; it has none"):
        restore_params(folder / "nowhere", target)
    truncate_data(folder)
    assert_bit_equal(restore_params(folder, target), states[1]["params"])
    with pytest.raises(CheckpointError, match="step 2: "):
        restore_params(folder, target, step=2)


def test_retention_keeps_the_newest_and_the_best(tmp_path):
    state = {"w": jnp.ones(3)}
    scores = {1: 0.1, 2: 0.9, 3: None, 4: float("nan"), 5: 0.9, 6: 0.2, 7: None}
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3, 4):
            checkpoints.save(step, state, position={}, fingerprint="f", score=scores[step])
        checkpoints.wait()
        assert (checkpoints.steps(), checkpoints.best()) == ([2, 3, 4], (2, 0.9))
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (5, 6, 7):
            checkpoints.save(step, state, position={}, fingerprint="f", score=scores[step])
        checkpoints.wait()
        assert (checkpoints.steps(), checkpoints.best()) == ([2, 6, 7], (2, 0.9))
        assert checkpoints.latest() == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "6", "7"]


def test_a_step_is_never_overwritten(saved):
    folder, states = saved
    with (
        Checkpoints(folder) as checkpoints,
        pytest.raises(CheckpointError, match="Step 2 is already in"),
    ):
        checkpoints.save(2, states[2], position=POSITION, fingerprint="f")


def test_one_value_on_disk(template):
    """State, data position and fingerprint lie in the same step folder."""
    meta = json.loads((pathlib.Path(template[0]) / "2" / "meta" / "metadata").read_text())["meta"]
    assert (meta["step"], meta["position"], meta["fingerprint"]) == (2, POSITION, "f")
    assert meta["leaves"]["params/half"][1:] == ["bfloat16", [8, 3]]
    assert meta["leaves"]["key"][1:] == ["key<fry>", [8]]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "uint16", "bool", "complex64"])
def test_checksum_is_of_bits_and_places_not_of_sharding(dtype):
    """Same on 1 and 8 devices; another after a swap, a change of one element, a minus zero."""
    base = np.arange(48).reshape(16, 3) % 2 if dtype == "bool" else np.arange(48).reshape(16, 3)
    base = base.astype(jnp.dtype(dtype))
    table = leaf_table({"x": jnp.asarray(base)})
    sharded = jax.device_put(base, NamedSharding(mesh_of(8), PartitionSpec("data")))
    assert leaf_table({"x": sharded}) == table
    swapped, touched = base.copy(), base.copy()
    swapped[[2, 5]] = swapped[[5, 2]]
    touched[15, 2] = not touched[15, 2] if dtype == "bool" else 7
    others = [swapped, touched, base.T.copy().reshape(16, 3)]
    if dtype in ("float32", "bfloat16"):
        others.append(np.where(base == 0, -base, base))
    for other in others:
        assert leaf_table({"x": jnp.asarray(other)})["x"][0] != table["x"][0]


def test_checksum_notices_any_single_bit():
    base = np.random.default_rng(0).integers(0, 2**32, 5, dtype=np.uint32)
    sums = {leaf_table({"x": jnp.asarray(base)})["x"][0]}
    for bit in range(5 * 32):
        flipped = base.copy()
        flipped[bit // 32] ^= np.uint32(1 << (bit % 32))
        sums.add(leaf_table({"x": jnp.asarray(flipped)})["x"][0])
    assert len(sums) == 161


def test_leaves_of_equal_path_are_an_error():
    with pytest.raises(CheckpointError, match="same path"):
        leaf_table({"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}})
