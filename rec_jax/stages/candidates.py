"""Stage `round_t_candidates`: the current model proposes sessions, the reward model judges them.

Dimension key: U contexts, H history items, K candidates, M session items.
"""

import logging
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh

from core_jax.config import fingerprint, to_dict
from core_jax.mesh import make_mesh
from core_jax.run_folder import run_stage, stage_folder
from rec_jax.align.candidates import (
    Candidates,
    Origin,
    Propose,
    check_num_beams,
    choose_contexts,
    read_candidates,
    write_candidates,
)
from rec_jax.align.run_config import AlignRunConfig, Folders
from rec_jax.data.sessions import SessionData, histories, longest_history
from rec_jax.generate import generate_sessions
from rec_jax.reward.fusion import fuse
from rec_jax.reward.score import score_sessions
from rec_jax.semantic_ids.prefix_index import build_prefix_index
from rec_jax.session_decoding import BeamConfig
from rec_jax.stages import generators, prepare, reward, tokenize

_LOGGER = logging.getLogger(__name__)


def stage_name(number: int) -> str:
    """Name of the stage in round `number`."""
    return f"round_{number}_candidates"


def run(folders: Folders, config: AlignRunConfig, number: int) -> bool:
    """Generates and scores candidates for the contexts of a round. Returns whether it is done.

    Round 1 searches with the pre-trained model, whatever the method: methods may share its
    candidates.
    """

    def work(folder: pathlib.Path) -> Mapping[str, Any]:
        mesh = make_mesh(config.pipeline.mesh)
        _, data = prepare.load(folders.base)
        contexts = _contexts(config, data, number)
        write_candidates(
            folder,
            contexts,
            _proposer(folders, config, data, number, mesh),
            origin=origin(folders, config, number),
            part_size=config.align.candidates.part_size,
        )
        return {"contexts": len(contexts)}

    parts = to_dict(origin(folders, config, number))
    return run_stage(run_dir(folders, number), stage_name(number), parts, work)


def load(folders: Folders, config: AlignRunConfig, number: int) -> Candidates:
    """The candidates of a round.

    Raises:
      DataError: they are missing, or stale: of another model, catalogue, reward model or search.
    """
    folder = stage_folder(run_dir(folders, number), stage_name(number))
    return read_candidates(folder, origin=origin(folders, config, number))


def origin(folders: Folders, config: AlignRunConfig, number: int) -> Origin:
    """What the candidates of a round are to be made with."""
    search = {
        "candidates": config.align.candidates,
        "contexts": num_contexts(config),
        "round": number,
        "seed": config.seed,
    }
    return Origin(
        model=generators.model_fingerprint(folders, number - 1),
        catalogue=tokenize.load(folders.base).fingerprint,
        reward=generators.reward_fingerprint(folders.shared, reward.NAME),
        search=fingerprint(search),
    )


def num_contexts(config: AlignRunConfig) -> int:
    """Training examples that get candidates: the share r_DPO of a round's samples."""
    return math.ceil(config.align.preference_ratio * config.align.num_samples)


def run_dir(folders: Folders, number: int) -> str:
    """The run folder with the candidates of a round."""
    return folders.first if number == 1 else folders.run


def _contexts(config: AlignRunConfig, data: SessionData, number: int) -> np.ndarray:
    """The examples of a round; says where the training examples are fewer than wanted."""
    wanted, found = num_contexts(config), len(data.train)
    if wanted > found:
        _LOGGER.info(
            "%s contexts are wanted, but there are %s training examples: all get candidates",
            f"{wanted:,}",
            f"{found:,}",
        )
    return choose_contexts(found, wanted, seed=config.seed, round_number=number)


def _proposer(
    folders: Folders, config: AlignRunConfig, data: SessionData, number: int, mesh: Mesh
) -> Propose:
    """Beam search with M_{t-1}, scored by the reward model."""
    index = tokenize.load(folders.base)
    prefixes = build_prefix_index(index, data.train_item_counts)
    model, params = generators.load(folders, number - 1, mesh)
    settings = config.align.candidates
    check_num_beams(settings.num_beams, prefixes.num_leaves)
    judge = reward.load(folders.shared, folders.base, mesh)
    width = longest_history(data)

    def propose(examples: np.ndarray) -> Candidates:
        history_UH = histories(data, "train", width, examples)
        found = generate_sessions(
            model,
            BeamConfig(num_beams=settings.num_beams, num_items=model.session_items),
            params,
            prefixes,
            index.codes,
            history_UH,
            batch_size=settings.batch_size,
            mesh=mesh,
            progress=False,
        )
        # A session that does not exist is scored as the first one and never chosen.
        targets_UKT = score_sessions(
            judge,
            history_UH,
            np.where(found.alive[..., None], found.items, found.items[:, :1]),
            batch_size=settings.batch_size,
            mesh=mesh,
        )
        rewards_UK = np.where(found.alive, fuse(judge.fusion, targets_UKT), -np.inf)
        return Candidates(
            examples=examples,
            items=found.items,
            log_probs=found.scores,
            targets=targets_UKT,
            rewards=rewards_UK.astype(np.float32),
        )

    return propose
