"""A run folder and its stages: what is done is not done again.

A stage reads earlier stages through their folders only, and leaves `done.json` when it is complete:
the configuration it depended on (with the fingerprints of the stages before it) and its facts.

Dimension key: none.
"""

import enum
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
from core_jax.processes import from_first, is_first, several, wait_for_first
from core_jax.storage import local_run, publish, refresh
from core_jax.storage_errors import clear_storage_errors

DONE = "done.json"
"""Written last by a stage."""

Work = Callable[[pathlib.Path], Mapping[str, Any] | None]
"""Does a stage's work in its folder and returns facts worth keeping (JSON-able), or None when it
was interrupted and is to go on later."""

_NO_RESULTS = ("checkpoints", "tensorboard", "trace")
_LOGGER = logging.getLogger(__name__)


class Workers(enum.Enum):
    """Which processes of a job do a stage's work."""

    ALONE = "alone"
    """It runs in jobs of one process only."""
    FIRST = "first"
    """Process 0, without the mesh of all; the others wait and then read its files."""
    ALL = "all"
    """All of them together, each calling `work`; only process 0 writes files."""


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
    workers: Workers = Workers.ALONE,
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
      workers: which processes do the work, where there are several. All of them call this.

    Returns:
      Whether the stage is done now; False when it was interrupted.

    Raises:
      ConfigError: the stage was done under another configuration; each difference is listed. Or
        there are several processes, and it can only work alone.
      DataError: a stage that it reads is not done.
      StorageError: a disk or file failed it.
    """
    folder = stage_folder(run_dir, name)
    depends = to_dict(dict(config)) | {
        f"stage {earlier}": read_done(run_dir, earlier)["fingerprint"] for earlier in after
    }
    if from_first(f"{name}: is it done", lambda: _is_done(run_dir, name, depends, repeatable)):
        _LOGGER.info("%s: done already", name)
        return True
    if several() and workers is Workers.ALONE:
        raise _only_alone(run_dir, name)

    def clearly() -> Mapping[str, Any] | None:
        with clear_storage_errors(f"stage '{name}' in '{folder}'"):
            folder.mkdir(parents=True, exist_ok=True)
            return work(folder)

    _LOGGER.info("%s: starts", name)
    began = time.monotonic()
    if workers is Workers.FIRST:
        facts = from_first(f"{name}: work", lambda: _facts(clearly()))
    else:
        facts = clearly()
    if facts is None:
        _LOGGER.info("%s: interrupted; the same command goes on", name)
        return False
    seconds = time.monotonic() - began
    if is_first():
        with clear_storage_errors(f"stage '{name}' in '{folder}'"):
            _write_done(folder, depends, facts, seconds)
    _hand_over(folder, name)
    _LOGGER.info("%s: done in %.1f s", name, seconds)
    return True


def _facts(facts: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Facts as JSON has them."""
    return None if facts is None else dict(facts)


def _is_done(
    run_dir: str | os.PathLike[str], name: str, depends: dict[str, Any], repeatable: bool
) -> bool:
    """Whether a stage is done under this configuration; one to be done again is not."""
    folder = stage_folder(run_dir, name)
    if not (folder / DONE).is_file():
        return False
    done = read_done(run_dir, name)
    if done["fingerprint"] == fingerprint(depends):
        return True
    changes = "; ".join(difference(done["config"], depends))
    if not repeatable:
        raise ConfigError(
            f"stage '{name}' of run '{run_dir}' was done under another configuration "
            f"({changes}); start a run of its own with another --run-dir, or remove '{folder}'"
        )
    _LOGGER.info("%s: done again, since %s", name, changes)
    (folder / DONE).unlink()
    return False


def _only_alone(run_dir: str | os.PathLike[str], name: str) -> ConfigError:
    """The error of a stage that several processes cannot do together."""
    return ConfigError(
        f"stage '{name}' works in one process, and this job has {jax.process_count()}; run the "
        f"same job on this run folder with python -m launch.local JOB --run-dir {run_dir} on one "
        "host, which has all its devices for it. What comes after may run in several processes "
        "again: stages that are done are not done twice"
    )


def _hand_over(folder: pathlib.Path, name: str) -> None:
    """Waits until every process can read what process 0 has written in a stage's folder."""
    if not several():
        return
    if is_first():
        publish(folder)
    wait_for_first(f"{name}: done")
    if not is_first():
        refresh(folder)


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
