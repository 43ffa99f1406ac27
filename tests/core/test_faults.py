"""Faults of files: every kind of file of a checkpoint damaged, full disks, things in the way.

Whatever happens to a file of a step, what is restored is the step as it was saved, or an older
one with a sentence that names the damaged one.
"""

import errno
import gc
import json
import os
import shutil
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest

from core_jax.checkpoint import Checkpoints, restore_params
from core_jax.data.records import _check_records
from core_jax.errors import CheckpointError, ConfigError, DataError, StorageError
from core_jax.report import Reporter
from core_jax.run_folder import DONE, read_done, run_stage, stage_folder
from core_jax.storage_errors import clear_storage_errors, fault_number
from launch import cli, exits, runtime
from tests.architecture.sources import ROOT
from tests.launch.fake_jobs import FakeConfig

KINDS = ("truncated", "emptied", "flipped", "removed", "a folder")


def state(step):
    random = np.random.default_rng(step)
    return {
        "params": {"w": jnp.asarray(random.normal(size=(256, 67)), jnp.float32)},
        "key": jax.random.key(step),
        "step": jnp.int32(step),
    }


def abstract(tree):
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree
    )


def data(tree):
    return {
        "key": np.asarray(jax.random.key_data(tree["key"])).tolist(),
        "params": np.asarray(tree["params"]["w"]).tobytes(),
        "step": int(tree["step"]),
    }


def save(folder, *steps):
    with Checkpoints(folder) as checkpoints:
        for step in steps:
            checkpoints.save(step, state(step), position={"at": step}, fingerprint="f")


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("template")
    save(folder, 1, 2)
    return folder


def files_of(step_folder):
    """The files of a step by kind: their names, of which random ones are made equal."""
    kinds = {}
    for path in sorted(step_folder.rglob("*")):
        if path.is_file():
            parts = list(path.relative_to(step_folder).parts)
            parts[-1] = "DATA" if parts[-2:-1] == ["d"] else parts[-1]
            kinds.setdefault("/".join(parts), []).append(path)
    return kinds


def damage(path, kind):
    content = bytearray(path.read_bytes())
    path.unlink()
    if kind == "a folder":
        path.mkdir()
    elif kind != "removed":
        if kind == "truncated":
            content = content[: len(content) // 2]
        elif kind == "emptied":
            content = bytearray()
        elif content:
            content[len(content) // 2] ^= 1
        path.write_bytes(content)


@pytest.fixture
def strays_end():
    """Reads that Orbax gives up, and reports when they are collected, do not outlive the test.

    What other tests left is out of the collector's sight meanwhile: restoring collects, often.
    """
    gc.freeze()
    yield
    time.sleep(0.2)
    gc.collect()
    gc.unfreeze()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_no_damage_of_any_file_of_a_step_is_restored_without_a_word(
    template, tmp_path, kind, strays_end
):
    """Files that carry no value may be damaged without effect: then the step is as it was."""
    names = list(files_of(template / "2"))
    assert {"_CHECKPOINT_METADATA", "meta/metadata", "state/manifest.ocdbt"} <= {*names}
    assert {"state/_METADATA", "state/ocdbt.process_0/d/DATA"} <= {*names}
    passed_over = []
    for number, name in enumerate(names):
        folder = tmp_path / str(number)
        shutil.copytree(template, folder)
        for path in files_of(folder / "2")[name]:
            damage(path, kind)
        with Checkpoints(folder) as checkpoints:
            found = checkpoints.restore(abstract(state(0)), fingerprint="f")
        assert data(found.state) == data(state(found.step)), name
        assert found.position == {"at": found.step}
        if found.step == 1:
            assert len(found.passed_over) == 1 and found.passed_over[0].startswith("step 2: ")
            passed_over.append(name)
        else:
            assert (found.step, found.passed_over) == (2, ()), name
    assert {"meta/metadata", "state/manifest.ocdbt"} <= {*passed_over}
    assert "state/ocdbt.process_0/d/DATA" in passed_over


def test_a_file_in_place_of_a_step(template, tmp_path):
    """The older step is restored, and the step is saved anew in place of the file."""
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "2")
    (tmp_path / "2").write_text("in the way")
    with Checkpoints(tmp_path) as checkpoints:
        found = checkpoints.restore(abstract(state(0)), fingerprint="f")
        assert data(found.state) == data(state(1))
        checkpoints.save(2, state(2), position={}, fingerprint="f")
    with Checkpoints(tmp_path) as checkpoints:
        found = checkpoints.restore(abstract(state(0)), fingerprint="f")
    assert (found.step, data(found.state)) == (2, data(state(2)))


def in_a_process(folder, limit):
    """Saves step 1, then step 2 under a limit of file sizes; prints what is said of that."""
    program = f"""
import resource, signal, sys
import jax.numpy as jnp, jax
from core_jax.checkpoint import Checkpoints
from core_jax.errors import CheckpointError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
state = {{"w": jax.random.normal(jax.random.key(0), (1 << 16,))}}
with Checkpoints({str(folder)!r}) as checkpoints:
    checkpoints.save(1, state, position={{}}, fingerprint="f")
    checkpoints.wait()
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, most))
    try:
        checkpoints.save(2, state, position={{}}, fingerprint="f")
        checkpoints.wait()
    except CheckpointError as error:
        print("ERROR", error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
with Checkpoints({str(folder)!r}) as checkpoints:
    found = checkpoints.restore(state, fingerprint="f")
    print("FOUND", found.step, found.passed_over)
    checkpoints.save(2, found.state, position={{}}, fingerprint="f")
with Checkpoints({str(folder)!r}) as checkpoints:
    print("THEN", checkpoints.restore(state, fingerprint="f").step)
"""
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def test_a_disk_that_takes_no_more_of_a_checkpoint(tmp_path):
    """In a process of its own, under a limit of file sizes that a step does not keep to."""
    lines = in_a_process(tmp_path / "checkpoints", 50_000)
    assert lines[0].startswith("ERROR Step 2 could not be written to")
    assert "checkpoints" in lines[0] and "File too large" in lines[0] and "ulimit -f" in lines[0]
    assert lines[1].startswith("FOUND 1 (")
    assert lines[2] == "THEN 2"


@pytest.fixture
def full_disk(tmp_path):
    """A file system of 256 KiB; skips where this user may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this user may not mount a small tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_full_disks(full_disk):
    """Checkpoint, stage, report and run folder; each message names a file and the remedy."""
    big = {"w": jax.random.normal(jax.random.key(0), (1 << 16,))}
    with (
        Checkpoints(full_disk / "checkpoints") as checkpoints,
        pytest.raises(CheckpointError, match=r"Step 1 .*No space left .*free space"),
    ):
        checkpoints.save(1, big, position={}, fingerprint="f")
        checkpoints.wait()
    shutil.rmtree(full_disk / "checkpoints")

    def parquet(folder):
        pl.DataFrame({"a": np.random.default_rng(0).random(1 << 16)}).write_parquet(folder / "a")

    def text(folder):
        (folder / "a").write_text("x" * (1 << 20))

    for work in (parquet, text):
        message = r"stage 'fill' in '.*/stages/fill': .*No space left .*; free space there, then"
        with pytest.raises(StorageError, match=message):
            run_stage(full_disk / "run", "fill", {}, work)
        assert not (stage_folder(full_disk / "run", "fill") / DONE).exists()
        (stage_folder(full_disk / "run", "fill") / "a").unlink()

    def report(folder):
        with Reporter(folder, total_steps=9, name="fill") as reporter:
            for step in range(1, 1 << 15):
                reporter.log(step, {"loss": 1.0, "long": list(range(30))})

    with pytest.raises(StorageError, match=r"stage 'report' .*No space left"):
        run_stage(full_disk / "run", "report", {}, report)
    with pytest.raises(ConfigError, match=r"No space left .*another --run-dir"):
        runtime.open_run(FakeConfig(run_dir=str(full_disk / "run")))


def test_dev_full():
    with (
        pytest.raises(StorageError, match=r"the log: No space left on device; free space"),
        clear_storage_errors("the log"),
        open("/dev/full", "w") as file,
    ):
        file.write("x")
    with (
        pytest.raises(
            StorageError, match=r"the table: No space left on device .parquet: .*free space"
        ),
        clear_storage_errors("the table"),
    ):
        pl.DataFrame({"a": [1]}).write_parquet("/dev/full")


def test_other_errors_pass_as_they_are():
    for error in (ValueError("28"), TimeoutError("slow"), DataError("bad"), KeyError(28)):
        assert fault_number(error) is None
        with pytest.raises(type(error)), clear_storage_errors("x"):
            raise error
    assert fault_number(OSError(errno.ENOSPC, "full")) == errno.ENOSPC


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "run").mkdir()
    in_the_way = tmp_path / "run" / "stages"
    in_the_way.write_text("in the way")
    message = r"stage 'a' in .*'.*/run/stages.*: .*; a file is where a folder should be; move it"
    with pytest.raises(StorageError, match=message):
        run_stage(tmp_path / "run", "a", {}, lambda folder: {})
    with pytest.raises(
        StorageError, match=r"the checkpoints in .*stages.*a file is where a folder"
    ):
        Checkpoints(in_the_way)
    with pytest.raises(
        StorageError, match=r"the checkpoints in .*stages.*a file is where a folder"
    ):
        restore_params(in_the_way, {"w": jax.ShapeDtypeStruct((1,), jnp.float32)})

    def report(folder):
        (folder / "tensorboard").write_text("in the way")
        Reporter(folder, total_steps=1, name="a")

    with pytest.raises(StorageError, match=r"stage 'a' .*tensorboard.*a file is where a folder"):
        run_stage(tmp_path / "other", "a", {}, report)


def test_a_folder_where_a_file_should_be(tmp_path):
    def work(folder):
        (folder / "metrics.jsonl").mkdir()
        Reporter(folder, total_steps=1, name="a")

    with pytest.raises(StorageError, match=r"metrics\.jsonl'.*a folder is where a file should be"):
        run_stage(tmp_path, "a", {}, work)


def write_shards(folder):
    (folder / "shards").mkdir(exist_ok=True)
    for number in range(3):
        (folder / "shards" / f"{number}.bin").write_bytes(bytes(range(100)))
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "checkpoints" / "old").write_text("kept by no one")
    return {"num": 3}


def test_a_lost_or_cut_shard_of_a_finished_stage_is_named(tmp_path):
    run_stage(tmp_path, "prepare", {}, write_shards)
    folder = stage_folder(tmp_path, "prepare")
    shutil.rmtree(folder / "checkpoints")
    done = read_done(tmp_path, "prepare")
    assert done["files"] == {f"shards/{number}.bin": 100 for number in range(3)}
    shard = folder / "shards" / "1.bin"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(DataError, match=r"1\.bin' of the finished stage .* has 99 of its 100 "):
        run_stage(tmp_path, "train", {}, lambda folder: {}, after=("prepare",))
    shard.unlink()
    with pytest.raises(DataError, match=r"1\.bin' of the finished stage 'prepare' is lost; put"):
        run_stage(tmp_path, "train", {}, lambda folder: {}, after=("prepare",))
    shard.write_bytes(content)
    assert run_stage(tmp_path, "train", {}, lambda folder: {}, after=("prepare",))


def test_a_damaged_done_file_is_named(tmp_path):
    run_stage(tmp_path, "prepare", {}, write_shards)
    path = stage_folder(tmp_path, "prepare") / DONE
    text = path.read_text()
    for broken in (text[:40], "", "[1]"):
        path.write_text(broken)
        with pytest.raises(DataError, match=r"done\.json' of stage 'prepare' cannot be read"):
            read_done(tmp_path, "prepare")
    old = json.loads(text)
    del old["files"]
    path.write_text(json.dumps(old))
    assert read_done(tmp_path, "prepare")["facts"] == {"num": 3}


def test_a_lost_shard_of_built_records_is_named(tmp_path):
    for number in range(2):
        (tmp_path / f"x.array_record-{number:05}-of-00002").write_bytes(bytes(range(99)))
    _check_records(tmp_path)
    shard = tmp_path / "x.array_record-00001-of-00002"
    content = shard.read_bytes()
    shard.unlink()
    with pytest.raises(DataError, match=rf"'.*{shard.name}' is lost; put it back from a copy"):
        _check_records(tmp_path)
    shard.write_bytes(content)
    _check_records(tmp_path)


def test_the_command_line_says_it_in_one_line(tmp_path, capsys, monkeypatch):
    """A fault of files outside of every stage; with ALIGNAX_DEBUG=1 the exception itself."""
    from core_jax.jobs import Job

    def run(config):
        (tmp_path / "page.html").mkdir()
        (tmp_path / "page.html").write_text("x")

    jobs = {"fake.job": Job(run=run, presets={"one": FakeConfig}, summary="x", owns_run=False)}
    assert cli.main(jobs, ["fake.job"], program="p") == exits.ERROR
    printed = capsys.readouterr().err.strip().splitlines()[-1]
    assert printed.startswith("StorageError: '") and "page.html" in printed
    assert "a folder is where a file should be; move it away" in printed
    (tmp_path / "page.html").rmdir()
    monkeypatch.setenv(cli.DEBUG_VARIABLE, "1")
    with pytest.raises(IsADirectoryError):
        cli.main(jobs, ["fake.job"], program="p")
