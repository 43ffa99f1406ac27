import logging

import jax
import pytest

from core_jax.config import to_dict
from core_jax.errors import ConfigError
from launch import runtime
from tests.launch.fake_jobs import FakeConfig, FakeModelConfig


def test_open_run_twice(tmp_path):
    config = FakeConfig(run_dir=str(tmp_path / "a" / "run"))
    folder = runtime.open_run(config)
    written = (folder / "config.json").read_text()
    assert runtime.open_run(config) == folder
    assert (folder / "config.json").read_text() == written
    assert [path.name for path in folder.iterdir()] == ["config.json"]


def test_open_run_lists_every_difference(tmp_path):
    runtime.open_run(FakeConfig(run_dir=str(tmp_path)))
    changed = FakeConfig(run_dir=str(tmp_path), seed=3, model=FakeModelConfig(sizes=(3, 7)))
    with pytest.raises(ConfigError) as error:
        runtime.open_run(changed)
    assert "model.sizes: [3, 5] -> [3, 7]; seed: 0 -> 3" in str(error.value)


def test_fields_that_may_change(tmp_path):
    """Allowed names cover what lies below them, not names that only begin alike."""
    changed = FakeConfig(run_dir=str(tmp_path), seed=3, model=FakeModelConfig(sizes=(3, 7)))
    runtime.open_run(FakeConfig(run_dir=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"config: model\.sizes: .* 7\]\. Start"):
        runtime.open_run(changed, may_change=("seed", "model.size", "mode"))
    assert runtime.read_config(tmp_path)["seed"] == 0
    runtime.open_run(changed, may_change=("seed", "model"))
    assert runtime.read_config(tmp_path) == to_dict(changed)


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_damaged_config(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json' cannot be read .* remove the folder"):
        runtime.open_run(FakeConfig(run_dir=str(tmp_path)))


def test_run_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="choose another --run-dir"):
        runtime.open_run(FakeConfig(run_dir=str(tmp_path / "file" / "run")))


def test_device_summary():
    summary = runtime.device_summary()
    assert summary.startswith("8 x cpu, ")
    assert f"jax {jax.__version__}" in summary


def test_compilation_cache(tmp_path, monkeypatch):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("ALIGNAX_CACHE", str(tmp_path))
    try:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "unchanged")
        runtime.use_compilation_cache()
        assert jax.config.jax_compilation_cache_dir == before
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
        runtime.use_compilation_cache()
        chosen = jax.config.jax_compilation_cache_dir
        assert chosen == str(tmp_path / "compilation")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_start_logs_the_devices(monkeypatch, caplog):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "unchanged")
    runtime.start()
    assert any("8 x cpu" in message for message in caplog.messages)
    assert logging.getLogger("rec_jax").isEnabledFor(logging.INFO)
    assert not logging.getLogger("another").isEnabledFor(logging.INFO)
