"""Job `recommend`: sessions for one user of a run, or for any history, in words.

Dimension key: none.
"""

import dataclasses
import json
import pathlib

import numpy as np

from core_jax.config import from_dict
from core_jax.errors import ConfigError
from core_jax.mesh import MeshConfig, make_mesh
from rec_jax.catalogue import make_catalogue
from rec_jax.generate import generate_sessions
from rec_jax.recommend import make_sample, request_of_history, request_of_user, sample_text
from rec_jax.semantic_ids.prefix_index import build_prefix_index
from rec_jax.session_decoding import BeamConfig
from rec_jax.stages import prepare, pretrain, tokenize


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecommendConfig:
    """Whom to recommend for, and how."""

    run_dir: str = "runs/demo"
    """Folder of a trained run."""
    user: str = ""
    """Id of a user of the log; give this or a history."""
    history: str = ""
    """Item ids in time order, parted by commas, for somebody who is not in the log."""
    num_sessions: int = 3
    """Sessions to print, best first."""
    num_beams: int = 32
    """Beams of whole sessions."""

    def __post_init__(self) -> None:
        """Checks ranges; whether user or history is given is checked when the job runs."""
        if not 1 <= self.num_sessions <= self.num_beams:
            raise ConfigError(
                f"num_sessions is {self.num_sessions}; it must lie between 1 and num_beams "
                f"({self.num_beams})"
            )


def run(config: RecommendConfig) -> None:
    """Prints generated sessions.

    Raises:
      ConfigError: neither or both of user and history are given.
      DataError: the run is not trained, or the user or an item is unknown (near ones are named).
    """
    if bool(config.user) == bool(config.history):
        raise ConfigError(
            f"user is '{config.user}' and history is '{config.history}'; give one of them: "
            "--user 7, or --history 50,172,181"
        )
    mesh = make_mesh(_mesh_config(config.run_dir))
    log, data = prepare.load(config.run_dir)
    model, params = pretrain.load(config.run_dir, mesh)
    index = tokenize.load(config.run_dir)
    catalogue = make_catalogue(data.item_ids, log.items)
    if config.user:
        request = request_of_user(data, config.user)
    else:
        request = request_of_history(catalogue, config.history)
    generated = generate_sessions(
        model,
        params=params,
        index=build_prefix_index(index, data.train_item_counts),
        codes=index.codes,
        config=BeamConfig(num_beams=config.num_beams, num_items=model.session_items),
        histories=request.history[None].astype(np.int32),
        batch_size=mesh.size,
        mesh=mesh,
    )
    sample = make_sample(
        catalogue,
        request,
        sessions=generated.items[0],
        scores=generated.scores[0],
        item_scores=generated.item_scores[0],
        num_sessions=config.num_sessions,
    )
    print(sample_text(sample))


def _mesh_config(run_dir: str) -> MeshConfig:
    """The mesh that the run was configured for."""
    path = pathlib.Path(run_dir) / "config.json"
    if not path.is_file():
        raise ConfigError(f"run_dir '{run_dir}' has no config.json; name the folder of a run")
    return from_dict(MeshConfig, json.loads(path.read_text(encoding="utf-8"))["mesh"])
