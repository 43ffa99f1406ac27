"""A run folder and its stages: what is done is not done again.

A stage reads earlier stages through their folders only, and leaves `done.json` when it is complete:
the configuration it depended on (with the fingerprints of the stages before it) and its facts.

Dimension key: none.
"""

import json
import logging
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from core_jax.config import difference, fingerprint, to_dict
from core_jax.errors import ConfigError, DataError
from core_jax.storage import local_run
from core_jax.storage_errors import clear_storage_errors

DONE = "done.json"
"""Written last by a stage."""

Work = Callable[[pathlib.Path], Mapping[str, Any] | None]
"""Does a stage's work in its folder and returns facts worth keeping (JSON-able), or None when it
was interrupted and is to go on later."""

_NO_RESULTS = ("checkpoints", "tensorboard", "trace")
_LOGGER = logging.getLogger(__name__)


def stage_folder(run_dir: str | os.PathLike[str], name: str) -> pathlib.Path:
    """Where a stage keeps its files; of a run at a URL, in its working copy."""
    return local_run(run_dir) / "stages" / name


def read_done(run_dir: str | os.PathLike[str], name: str) -> dict[str, Any]:
    """What a completed stage says of itself: "config", "fingerprint", "facts", "seconds".

    Raises:
      DataError: the stage is not complete, or has lost a file since.
    """
    path = stage_folder(run_dir, name) / DONE
    if not path.is_file():
        raise DataError(
            f"stage '{name}' of run '{run_dir}' is not done ('{path}' is absent); run it first, "
            "or run the whole pipeline"
        )
    try:
        done = json.loads(path.read_text(encoding="utf-8"))
        sizes = done.get("files", {})  # absent in runs of older versions
    except (ValueError, AttributeError) as error:
        raise DataError(
            f"'{path}' of stage '{name}' cannot be read ({type(error).__name__}: {error}); restore "
            f"it from a copy, or remove '{path.parent}' so that the stage is done again"
        ) from error
    _check_files(path.parent, name, sizes)
    return done


def file_sizes(folder: pathlib.Path) -> dict[str, int]:
    """Returns the sizes in bytes of a stage's files, by their paths in its folder.

    Checkpoints, traces and TensorBoard files are left out: the first have checksums of their own,
    the others are read by no stage.
    """
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.relative_to(folder).parts[0] not in (DONE, *_NO_RESULTS)
        and not path.name.startswith(".")
    }


def _check_files(folder: pathlib.Path, name: str, sizes: Mapping[str, int]) -> None:
    """Raises unless the files that a stage left are all there, in full."""
    for file, size in sizes.items():
        path = folder / file
        found = path.stat().st_size if path.is_file() else None
        if found is None or found < size:
            state = "is lost" if found is None else f"has {found} of its {size} bytes"
            raise DataError(
                f"the file '{path}' of the finished stage '{name}' {state}; put it back from a "
                f"copy, or remove '{folder}' so that the stage is done again"
            )


def run_stage(
    run_dir: str | os.PathLike[str],
    name: str,
    config: Mapping[str, Any],
    work: Work,
    *,
    after: Sequence[str] = (),
    repeatable: bool = False,
) -> bool:
    """Runs a stage unless it is done already.

    Args:
      run_dir: the run folder.
      name: the stage's name.
      config: configs that its result depends on, by name.
      work: does the work; called with the stage's folder, which exists.
      after: stages that it reads; they must be done.
      repeatable: whether a stage done under another configuration is done again, which is right
        where that is cheap and nothing else reads it. Otherwise that is an error.

    Returns:
      Whether the stage is done now; False when it was interrupted.

    Raises:
      ConfigError: the stage was done under another configuration; each difference is listed.
      DataError: a stage that it reads is not done.
      StorageError: a disk or file failed it.
    """
    folder = stage_folder(run_dir, name)
    depends = to_dict(dict(config)) | {
        f"stage {earlier}": read_done(run_dir, earlier)["fingerprint"] for earlier in after
    }
    if (folder / DONE).is_file():
        done = read_done(run_dir, name)
        if done["fingerprint"] == fingerprint(depends):
            _LOGGER.info("%s: done already", name)
            return True
        changes = "; ".join(difference(done["config"], depends))
        if not repeatable:
            raise ConfigError(
                f"stage '{name}' of run '{run_dir}' was done under another configuration "
                f"({changes}); start a run of its own with another --run-dir, or remove '{folder}'"
            )
        _LOGGER.info("%s: done again, since %s", name, changes)
        (folder / DONE).unlink()
    with clear_storage_errors(f"stage '{name}' in '{folder}'"):
        folder.mkdir(parents=True, exist_ok=True)
        _LOGGER.info("%s: starts", name)
        began = time.monotonic()
        facts = work(folder)
        if facts is None:
            _LOGGER.info("%s: interrupted; the same command goes on", name)
            return False
        seconds = time.monotonic() - began
        if jax.process_index() == 0:
            _write_done(folder, depends, facts, seconds)
    _LOGGER.info("%s: done in %.1f s", name, seconds)
    return True


def _write_done(
    folder: pathlib.Path, depends: dict[str, Any], facts: Mapping[str, Any], seconds: float
) -> None:
    """Writes `done.json` all or nothing."""
    done = {
        "fingerprint": fingerprint(depends),
        "config": depends,
        "facts": dict(facts),
        "files": file_sizes(folder),
        "seconds": round(seconds, 2),
    }
    scratch = folder / f".{DONE}.part"
    scratch.write_text(json.dumps(done, indent=2) + "\n", encoding="utf-8")
    os.replace(scratch, folder / DONE)
