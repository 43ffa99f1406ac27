"""Job `recommend`: sessions for one user of a run, or for any history, in words.

Dimension key: none.
"""

import dataclasses
import enum
import json
import pathlib

import numpy as np
from jax.sharding import Mesh

from core_jax.config import from_dict
from core_jax.errors import ConfigError
from core_jax.mesh import MeshConfig, make_mesh
from rec_jax.align.run_config import Folders
from rec_jax.catalogue import make_catalogue
from rec_jax.generate import generate_sessions
from rec_jax.recommend import make_sample, request_of_history, request_of_user, sample_text
from rec_jax.reward.fusion import describe, fuse
from rec_jax.reward.score import RewardModel, score_sessions
from rec_jax.semantic_ids.prefix_index import build_prefix_index
from rec_jax.session_decoding import BeamConfig
from rec_jax.stages import generators, prepare, reward, tokenize


class Rerank(enum.Enum):
    """What orders the generated sessions."""

    NONE = "none"
    REWARD = "reward"


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
    """Beams of whole sessions: N of best-of-N."""
    model_round: int = -1
    """Of an alignment run, the model after this round; 0 is the pre-trained one, -1 the last."""
    rerank: Rerank = Rerank.NONE
    """reward: the reward model of an alignment run orders the beams, the best of N first; none:
    the most probable first."""

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
      DataError: the run is not trained, has no such round or no reward model, or the user or an
        item is unknown (near ones are named).
    """
    if bool(config.user) == bool(config.history):
        raise ConfigError(
            f"user is '{config.user}' and history is '{config.history}'; give one of them: "
            "--user 7, or --history 50,172,181"
        )
    mesh = make_mesh(_mesh_config(config.run_dir))
    base = generators.base_of(config.run_dir)
    log, data = prepare.load(base)
    folders = Folders(base=base, shared=config.run_dir, first=config.run_dir, run=config.run_dir)
    model, params = generators.load(
        folders, generators.choose_round(config.run_dir, config.model_round), mesh
    )
    index = tokenize.load(base)
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
    scores_K, score_name = generated.scores[0], "log-probability"
    if config.rerank is Rerank.REWARD:
        judge = reward.load(config.run_dir, base, mesh)
        scores_K = _rewards(judge, request.history, generated.items[0], generated.alive[0], mesh)
        score_name = "reward"
        print(f"{describe(judge.fusion)}\n")
    order_K = np.argsort(-scores_K, kind="stable")
    sample = make_sample(
        catalogue,
        request,
        sessions=generated.items[0][order_K],
        scores=scores_K[order_K],
        item_scores=generated.item_scores[0][order_K],
        num_sessions=config.num_sessions,
        score_name=score_name,
    )
    print(sample_text(sample))


def _rewards(
    judge: RewardModel, history: np.ndarray, items: np.ndarray, alive: np.ndarray, mesh: Mesh
) -> np.ndarray:
    """Float [K]: fused reward of each session, -inf where it does not exist."""
    scored_1KM = np.where(alive[:, None], items, items[:1])[None]
    probabilities_1KT = score_sessions(
        judge, history[None].astype(np.int32), scored_1KM, batch_size=mesh.size, mesh=mesh
    )
    return np.where(alive, fuse(judge.fusion, probabilities_1KT)[0], -np.inf)


def _mesh_config(run_dir: str) -> MeshConfig:
    """The mesh that the run was configured for."""
    path = pathlib.Path(run_dir) / "config.json"
    if not path.is_file():
        raise ConfigError(f"run_dir '{run_dir}' has no config.json; name the folder of a run")
    values = json.loads(path.read_text(encoding="utf-8"))
    return from_dict(MeshConfig, values.get("pipeline", values)["mesh"])
