"""What a job finds when it starts: logging, devices, the compilation cache and its run folder.

Dimension key: none.
"""

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import platform
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from core_jax.config import difference, to_dict
from core_jax.errors import ConfigError
from core_jax.processes import several
from core_jax.storage import NATIVE, Mirror, is_url

CONFIG_NAME = "config.json"
"""The config of a run, in its folder."""

_CACHE_VARIABLE = "ALIGNAX_CACHE"
_PACKAGES = ("core_jax", "rec_jax", "reasoning_jax", "launch")
_LOGGER = logging.getLogger(__name__)


def start() -> None:
    """Sets logging up, chooses the compilation cache and logs the devices."""
    logging.basicConfig()
    for handler in logging.getLogger().handlers:
        if type(handler) is logging.StreamHandler:  # ours, or that of a library that came first
            handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    for package in _PACKAGES:
        logging.getLogger(package).setLevel(logging.INFO)
    use_compilation_cache()
    _LOGGER.info(device_summary())


def use_compilation_cache() -> None:
    """Keeps compiled programs in `$ALIGNAX_CACHE/compilation` (default `~/.cache/alignax`).

    `JAX_COMPILATION_CACHE_DIR` chooses another folder; `JAX_ENABLE_COMPILATION_CACHE=false` turns
    caching off.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        root = pathlib.Path(os.environ.get(_CACHE_VARIABLE) or "~/.cache/alignax").expanduser()
        jax.config.update("jax_compilation_cache_dir", str(root / "compilation"))


def device_summary() -> str:
    """Returns one line that says what this run computes on, and with which versions."""
    devices = jax.devices()
    kind = devices[0].device_kind
    name = devices[0].platform if kind == devices[0].platform else f"{devices[0].platform} {kind}"
    processes = jax.process_count()
    where = f" in {processes} processes" if processes > 1 else ""
    versions = f"jax {jax.__version__}, Python {platform.python_version()}"
    return f"{len(devices)} x {name}{where}, {os.cpu_count()} CPU cores ({versions})"


@contextlib.contextmanager
def on_disk(config: Any) -> Iterator[Any]:
    """Yields the config with a run folder on this machine's disk.

    Where `run_dir` is a URL, that is its working copy, which is sent there while the block runs
    and, whatever ended it, at its end.
    """
    if not is_url(config.run_dir):
        yield config
        return
    if several() and not config.run_dir.startswith(NATIVE):
        raise ConfigError(
            f"run_dir is '{config.run_dir}', and several processes write checkpoints together "
            f"only to {NATIVE} or to a folder that all of them see; use one of these"
        )
    with Mirror(config.run_dir, sends=jax.process_index() == 0) as folder:
        yield dataclasses.replace(config, run_dir=str(folder))


def open_run(config: Any, *, may_change: Sequence[str] = ()) -> pathlib.Path:
    """Makes the run folder, or opens one that was made with the same config.

    Args:
      config: the run's config; its field `run_dir` names the folder. The name is no part of the
        comparison: a run folder may be moved.
      may_change: dotted names of fields that may differ, with all below them.

    Returns:
      The folder; its `config.json` holds the config.

    Raises:
      ConfigError: the folder belongs to a run with another config (each difference is listed), it
        cannot be made, or its `config.json` cannot be read.
    """
    folder = pathlib.Path(config.run_dir)
    path = folder / CONFIG_NAME
    new = to_dict(config)
    if path.exists():
        changes = difference(read_config(folder), new)
        refused = [line for line in changes if not _is_below(line, ("run_dir", *may_change))]
        if refused:
            raise ConfigError(
                f"run folder '{folder}' was made with another config: {'; '.join(refused)}. "
                "Start a run of its own with another --run-dir; or go on with this one: leave "
                f"out --preset and the changed flags, and say --run-dir {folder}"
            )
        if not changes:
            return folder
    if jax.process_index() == 0:
        _write_config(path, new)
    return folder


def read_config(folder: pathlib.Path) -> dict[str, Any]:
    """Reads a run's config as JSON values, for `core_jax.config.from_dict`.

    Raises:
      ConfigError: `config.json` is not a JSON object.
    """
    path = folder / CONFIG_NAME
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(_unreadable(path, str(error))) from error
    if not isinstance(data, dict):
        raise ConfigError(_unreadable(path, "it holds no JSON object"))
    return data


def _unreadable(path: pathlib.Path, reason: str) -> str:
    """The message for a damaged `config.json`."""
    return f"'{path}' cannot be read ({reason}); remove the folder, or use another --run-dir"


def _write_config(path: pathlib.Path, data: dict[str, Any]) -> None:
    """Writes all or nothing, so that a run cut off here leaves no half config."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f".{CONFIG_NAME}.part")
        scratch.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
        os.replace(scratch, path)
    except OSError as error:
        raise ConfigError(
            f"run folder '{path.parent}' cannot be made ({error}); choose another --run-dir"
        ) from error


def _is_below(line: str, names: Sequence[str]) -> bool:
    """Whether a line of `difference` is about one of the fields or a part of it."""
    field = line.partition(":")[0]
    return any(field == name or field.startswith(f"{name}.") for name in names)
