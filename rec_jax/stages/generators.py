"""The models of an alignment run: M_0, which was pre-trained, and M_t, which round t left.

Dimension key: none.
"""

import json

from jax.sharding import Mesh

from core_jax.arrays import Params
from core_jax.checkpoint import restore_params
from core_jax.config import fingerprint, from_dict
from core_jax.run_folder import read_done, stage_folder
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
