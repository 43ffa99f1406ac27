"""Runs and files by URL, on fsspec's store in memory: it has no folders and no rename."""

import json
import os
import pathlib
import shutil
import threading

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest

from core_jax import storage
from core_jax.checkpoint import Checkpoints
from core_jax.errors import ConfigError, StorageError
from core_jax.jobs import Job
from core_jax.run_folder import read_done, run_stage, stage_folder
from launch import cli, exits, runtime
from rec_jax.data.own_logs import OwnLogConfig, read_own_log
from tests.launch.fake_jobs import FakeConfig

URL = "memory://bucket/run"


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    """An empty store, and an empty cache on the disk."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    storage._pulled.clear()
    monkeypatch.setenv("ALIGNAX_CACHE", str(tmp_path / "cache"))
    yield system
    system.store.clear()


def another_machine(tmp_path, monkeypatch, name="other"):
    storage._pulled.clear()
    monkeypatch.setenv("ALIGNAX_CACHE", str(tmp_path / name))


def names(system):
    return sorted(path.removeprefix("/bucket/run/") for path in system.store)


def test_paths_and_urls():
    assert storage.working_copy("runs/demo") == pathlib.Path("runs/demo")
    folder = storage.working_copy("gs://bucket/a/b/")
    assert folder.parts[-5:] == ("runs", "gs", "bucket", "a", "b")
    assert storage.url_of(folder / "stages") == "gs://bucket/a/b/stages"
    assert storage.url_of("runs/demo") is None
    assert storage.checkpoint_place(folder) == str(folder), "one process writes on its disk"


def test_several_processes_write_checkpoints_at_the_url(monkeypatch):
    folder = storage.working_copy("gs://bucket/run") / "checkpoints"
    monkeypatch.setattr(storage, "several", lambda: True)
    assert storage.checkpoint_place(folder) == "gs://bucket/run/checkpoints"
    assert storage.checkpoint_place("runs/a") == "runs/a"
    monkeypatch.setattr(runtime, "several", lambda: True)
    with (
        pytest.raises(ConfigError, match=r"run_dir is 's3://b/run'.*gs:// or to a folder that all"),
        runtime.on_disk(FakeConfig(run_dir="s3://b/run")),
    ):
        pass


def test_a_mirror_sends_fetches_and_removes(store, tmp_path, monkeypatch):
    with storage.Mirror(URL) as folder:
        (folder / "a").mkdir()
        (folder / "a" / "x.txt").write_text("one")
        (folder / "b.bin").write_bytes(b"\0" * 100)
        (folder / ".hidden").write_text("not sent")
        (folder / "c.part").write_text("not sent")
        (folder / "7.orbax-checkpoint-tmp").mkdir()
        (folder / "7.orbax-checkpoint-tmp" / "d").write_text("not sent")
    assert names(store) == ["a/x.txt", "b.bin"]
    another_machine(tmp_path, monkeypatch)
    with storage.Mirror(URL) as other:
        assert other != folder and (other / "a" / "x.txt").read_text() == "one"
        (other / "a" / "x.txt").write_text("two, longer")
        (other / "b.bin").unlink()
        (other / "new").write_text("new")
    assert names(store) == ["a/x.txt", "new"]
    monkeypatch.setenv("ALIGNAX_CACHE", str(tmp_path / "cache"))
    (folder / "unsent").write_text("work of a machine that was lost before it could send")
    with storage.Mirror(URL) as again:
        assert again == folder and (folder / "a" / "x.txt").read_text() == "two, longer"
        assert not (folder / "b.bin").exists() and (folder / "unsent").exists()
    assert names(store) == ["a/x.txt", "new", "unsent"]


def test_only_what_has_changed_is_sent_and_fetched(store, monkeypatch):
    sent, fetched = [], []
    put, get = type(store).put_file, type(store).get_file
    monkeypatch.setattr(
        type(store), "put_file", lambda self, a, b: (sent.append(b), put(self, a, b))[1]
    )
    monkeypatch.setattr(
        type(store), "get_file", lambda self, a, b: (fetched.append(a), get(self, a, b))[1]
    )
    with storage.Mirror(URL) as folder:
        (folder / "x").write_text("1")
        (folder / "y").write_text("1")
    with storage.Mirror(URL) as folder:
        (folder / "y").write_text("22")
    assert [path.rpartition("/")[2] for path in sent] == ["x", "y", "y"]
    assert fetched == []
    store.pipe_file("/bucket/run/x", b"from elsewhere")
    storage.pull(URL, folder)
    assert [path.rpartition("/")[2] for path in fetched] == ["x"]
    assert (folder / "x").read_text() == "from elsewhere"


def test_what_completes_a_stage_goes_last(store, monkeypatch):
    """A machine that is lost while it sends leaves no stage that counts as done but is not."""
    put, files = type(store).put_file, storage._Copy._files
    monkeypatch.setattr(storage._Copy, "_files", lambda self: iter(sorted(files(self))))
    monkeypatch.setattr(type(store), "put_file", lambda self, a, b: fail_at_third(put, self, a, b))
    calls = []

    def fail_at_third(put, self, a, b):
        calls.append(b)
        if len(calls) == 3:
            raise OSError("the network is gone")
        return put(self, a, b)

    with (
        pytest.raises(StorageError, match=r"'memory://bucket/run' cannot .*the network is gone"),
        storage.Mirror(URL) as folder,
    ):
        run_stage(folder, "a", {}, write_two)
    assert names(store) == ["stages/a/one", "stages/a/two"]
    with storage.Mirror(URL):
        pass
    assert names(store) == ["stages/a/done.json", "stages/a/one", "stages/a/two"]


def write_two(folder):
    (folder / "one").write_text("1")
    (folder / "two").write_text("2")
    return {"n": 2}


def test_sends_while_the_job_runs_and_outlives_a_store_that_fails(store, monkeypatch, caplog):
    monkeypatch.setattr(storage, "SYNC_SECONDS", 0.02)
    failed, arrived = threading.Event(), threading.Event()
    put = type(store).put_file

    def flaky(self, a, b):
        if not failed.is_set():
            failed.set()
            raise TimeoutError("slow")
        put(self, a, b)
        arrived.set()

    monkeypatch.setattr(type(store), "put_file", flaky)
    with storage.Mirror(URL) as folder:
        (folder / "x").write_text("1")
        assert arrived.wait(20)
        assert names(store) == ["x"]
    assert "TimeoutError: slow" in caplog.text and "tried again" in caplog.text


def test_a_finished_stage_is_read_at_its_url(store, tmp_path, monkeypatch):
    with storage.Mirror(URL) as folder:
        run_stage(folder, "a", {}, write_two)
    another_machine(tmp_path, monkeypatch)
    assert read_done(URL, "a")["facts"] == {"n": 2}
    assert (stage_folder(URL, "a") / "two").read_text() == "2"
    with pytest.raises(StorageError, match="'memory://bucket/nothing' has no files; check the"):
        read_done("memory://bucket/nothing", "a")


def test_a_stage_cut_off_in_training_goes_on_on_another_machine(store, tmp_path, monkeypatch):
    state = {"params": {"w": jnp.arange(1 << 16, dtype=jnp.float32)}}
    with storage.Mirror(URL) as folder, Checkpoints(folder / "checkpoints", keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state, position={"at": step}, fingerprint="f")
    steps = {name.split("/")[1] for name in names(store)}
    assert steps == {"2", "3"}, "what is no longer kept is gone there too"
    another_machine(tmp_path, monkeypatch)
    with storage.Mirror(URL) as folder, Checkpoints(folder / "checkpoints") as checkpoints:
        found = checkpoints.restore(state, fingerprint="f")
    assert (found.step, found.position, found.passed_over) == (3, {"at": 3}, ())
    np.testing.assert_array_equal(found.state["params"]["w"], state["params"]["w"])
    store.rm_file("/bucket/run/checkpoints/3/meta/metadata")
    another_machine(tmp_path, monkeypatch, "third")
    with storage.Mirror(URL) as folder, Checkpoints(folder / "checkpoints") as checkpoints:
        found = checkpoints.restore(state, fingerprint="f")
    assert found.step == 2 and found.passed_over[0].startswith("step 3: ")


def test_a_job_with_its_run_folder_at_a_url(store, tmp_path, monkeypatch, capsys):
    """Started on one machine, gone on with on another, refused with another config."""
    seen = []

    def run(config):
        seen.append(config.run_dir)
        run_stage(config.run_dir, "a", {"seed": config.seed}, write_two)
        (pathlib.Path(config.run_dir) / "report.txt").write_text("fine")

    jobs = {"fake.job": Job(run=run, presets={"one": FakeConfig}, summary="x")}

    def start(*flags):
        return cli.main(jobs, ["fake.job", "--run-dir", URL, *flags], program="p")

    assert start("--preset", "one", "--seed", "5") == 0
    expected = [
        "config.json",
        "report.txt",
        *(f"stages/a/{n}" for n in ("done.json", "one", "two")),
    ]
    assert names(store) == expected
    assert json.loads(store.cat_file("/bucket/run/config.json"))["seed"] == 5
    another_machine(tmp_path, monkeypatch)
    assert start() == 0, capsys.readouterr().err
    assert seen[0] != seen[1]
    another_machine(tmp_path, monkeypatch, "third")
    assert start("--seed", "6") == exits.ERROR
    assert "seed: 5 -> 6" in capsys.readouterr().err


def test_a_job_that_fails_leaves_what_it_has_at_the_url(store):
    def run(config):
        (pathlib.Path(config.run_dir) / "log.txt").write_text("so far")
        raise ConfigError("no")

    jobs = {"fake.job": Job(run=run, presets={"one": FakeConfig}, summary="x")}
    words = ["fake.job", "--preset", "one", "--run-dir", URL]
    assert cli.main(jobs, words, program="p") == exits.ERROR
    assert names(store) == ["config.json", "log.txt"]


def test_input_files_and_folders(store, tmp_path):
    store.pipe_file("/data/items.csv", b"a,b\n1,2\n")
    store.pipe_file("/data/model/config.json", b"{}")
    assert storage.local_path("x.csv") == pathlib.Path("x.csv")
    copy = storage.local_path("memory://data/items.csv")
    assert copy.name == "items.csv" and copy.read_text() == "a,b\n1,2\n"
    stamp = copy.stat().st_mtime_ns
    assert storage.local_path("memory://data/items.csv").stat().st_mtime_ns == stamp
    store.pipe_file("/data/items.csv", b"a,b\n3,4\n")
    assert storage.local_path("memory://data/items.csv").read_text() == "a,b\n3,4\n"
    assert (storage.local_path("memory://data/model") / "config.json").read_text() == "{}"
    with pytest.raises(StorageError, match=r"'memory://data/lost\.csv' has no files; check"):
        storage.local_path("memory://data/lost.csv")


def test_a_log_at_a_url(store, tmp_path):
    table = pl.DataFrame({"user_id": ["u", "u"], "item_id": ["a", "b"], "timestamp": [1, 2]})
    table.write_csv(tmp_path / "log.csv")
    store.put_file(str(tmp_path / "log.csv"), "/data/log.csv")
    local = read_own_log(OwnLogConfig(path=str(tmp_path / "log.csv")))
    remote = read_own_log(OwnLogConfig(path="memory://data/log.csv"))
    assert remote.interactions.equals(local.interactions)


def test_an_unknown_or_absent_store_is_named():
    with pytest.raises(StorageError, match=r"'nowhere://a/b': .*nowhere.*; known are gs://, s3://"):
        storage.local_path("nowhere://a/b")


def test_a_store_whose_package_is_absent_is_named(monkeypatch):
    def missing(url):
        raise ImportError("Please install s3fs")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(StorageError, match=r"s3:// needs another package .*; pip install s3fs"):
        storage.local_path("s3://bucket/x")


def test_nothing_of_a_url_is_written_beside_the_cache(store, tmp_path, monkeypatch):
    """A URL that is taken for a path would make a folder 'memory:' here."""
    monkeypatch.chdir(tmp_path)
    with storage.Mirror(URL) as folder:
        run_stage(folder, "a", {}, write_two)
    read_done(URL, "a")
    assert os.listdir(tmp_path) == ["cache"]
    shutil.rmtree(tmp_path / "cache")
    assert jax.process_count() == 1
