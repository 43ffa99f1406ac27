"""The models of an alignment run: M_0, which was pre-trained, and M_t, which round t left.

Dimension key: none.
"""

import json
import pathlib

from jax.sharding import Mesh

from core_jax.arrays import Params
from core_jax.checkpoint import restore_params
from core_jax.config import fingerprint, from_dict
from core_jax.errors import DataError
from core_jax.run_folder import DONE, read_done, stage_folder
from rec_jax.align.run_config import Folders
from rec_jax.model import onerec
from rec_jax.model.config import OneRecConfig
from rec_jax.stages import pretrain


def train_stage(number: int) -> str:
    """Name of the stage that trains in round `number`."""
    return f"round_{number}_train"


def load(folders: Folders, number: int, mesh: Mesh) -> tuple[OneRecConfig, Params]:
    """M_t: the pre-trained model (0) or the one that round `number` handed over, on `mesh`.

    Raises:
      CheckpointError: the semantic IDs are no longer those it was trained on, or its parameters
        are damaged.
      DataError: the stage that makes it is not done.
    """
    if number == 0:
        return pretrain.load(folders.base, mesh)
    name = train_stage(number)
    step = read_done(folders.run, name)["facts"]["last_step"]
    folder = stage_folder(folders.run, name)
    model = from_dict(OneRecConfig, json.loads((folder / "model.json").read_text()))
    abstract = onerec.abstract_params(model, mesh)
    return model, restore_params(folder / "checkpoints", abstract, step=step)


def model_fingerprint(folders: Folders, number: int) -> str:
    """Fingerprint of M_t: of everything that made it, and of the step that was kept.

    Raises:
      DataError: the stage that makes it is not done.
    """
    if number == 0:
        done, step = read_done(folders.base, pretrain.NAME), "best_step"
    else:
        done, step = read_done(folders.run, train_stage(number)), "last_step"
    return fingerprint({"stage": done["fingerprint"], "step": done["facts"][step]})


def reward_fingerprint(run_dir: str, name: str) -> str:
    """Fingerprint of a reward model: of everything that made it, and of the step that was kept.

    Raises:
      DataError: the stage that makes it is not done.
    """
    done = read_done(run_dir, name)
    return fingerprint({"stage": done["fingerprint"], "step": done["facts"]["best_step"]})


def rounds_done(run_dir: str) -> list[int]:
    """Rounds of a run whose model is there, in order; 0 is the pre-trained one."""
    found = [0]
    while (stage_folder(run_dir, train_stage(found[-1] + 1)) / DONE).is_file():
        found.append(found[-1] + 1)
    return found


def base_of(run_dir: str) -> str:
    """The run that has log, semantic IDs and pre-trained model: itself, or what it started from.

    Raises:
      DataError: it is not trained.
    """
    config = pathlib.Path(run_dir) / "config.json"
    if config.is_file():
        start = json.loads(config.read_text(encoding="utf-8")).get("from_run")
        if start:
            return start
    read_done(run_dir, pretrain.NAME)
    return run_dir


def choose_round(run_dir: str, number: int) -> int:
    """The round whose model is wanted; -1 is the last one that is done.

    Raises:
      DataError: the run has no such round.
    """
    done = rounds_done(run_dir)
    if number < 0:
        return done[-1]
    if number not in done:
        raise DataError(
            f"run '{run_dir}' has no round {number}; it has the models of rounds "
            f"{', '.join(map(str, done))} (0 is the pre-trained one)"
        )
    return number
