"""Stage `round_t_groups`: which candidates are compared, and their log-probabilities under M_t.

Dimension key: U contexts, Q groups, G responses of a group, K candidates, M session items,
L code levels, H history items, J sessions sampled without the constraint.
"""

import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from core_jax.mesh import make_mesh
from core_jax.run_folder import read_done, run_stage, stage_folder
from rec_jax.align.array_file import read_arrays, write_arrays
from rec_jax.align.batch import group_log_probs
from rec_jax.align.candidates import Candidates
from rec_jax.align.groups import Groups, choose_groups, standardised_advantages
from rec_jax.align.methods import uses_advantages, uses_negatives
from rec_jax.align.run_config import AlignRunConfig, Folders
from rec_jax.align.source import Preferences
from rec_jax.data.sessions import SessionData, histories
from rec_jax.generate import generate_sessions
from rec_jax.sampling import SamplingConfig
from rec_jax.semantic_ids.item_index import ItemIndex
from rec_jax.semantic_ids.prefix_index import build_prefix_index
from rec_jax.session_decoding import BeamConfig
from rec_jax.stages import candidates, generators, prepare, tokenize

_LOGGER = logging.getLogger(__name__)


def stage_name(number: int) -> str:
    """Name of the stage in round `number`."""
    return f"round_{number}_groups"


def run(folders: Folders, config: AlignRunConfig, number: int) -> bool:
    """Chooses groups and computes reference log-probabilities. Returns whether it is done."""

    def work(folder: pathlib.Path) -> Mapping[str, Any]:
        _, data = prepare.load(folders.base)
        found = candidates.load(folders, config, number)
        groups = choose_groups(
            found,
            config.align.groups,
            num_members=num_members(config),
            ranked=not uses_advantages(config.align.method.method),
            seed=_seed(config, number),
        )
        index = tokenize.load(folders.base)
        preferences = _preferences(folders, config, data, index, found, groups, number)
        kept = {name: value for name, value in vars(preferences).items() if value is not None}
        write_arrays(folder / "preferences.npz", kept)
        facts = groups.counts | _gaps(found, groups)
        _LOGGER.info(
            "round %d: %s", number, ", ".join(f"{name} {value}" for name, value in facts.items())
        )
        return facts

    parts = {
        "method": config.align.method.method,
        "groups": config.align.groups,
        "seed": config.seed,
        "candidates": read_done(candidates.run_dir(folders, number), candidates.stage_name(number))[
            "fingerprint"
        ],
    }
    return run_stage(folders.run, stage_name(number), parts, work)


def load(folders: Folders, number: int) -> Preferences:
    """The groups of a round, ready for training.

    Raises:
      DataError: they are missing or cannot be read.
    """
    path = stage_folder(folders.run, stage_name(number)) / "preferences.npz"
    remedy = f"remove '{path.parent}' and run the round again"
    return Preferences(**read_arrays(path, remedy=remedy))


def num_members(config: AlignRunConfig) -> int:
    """G: candidates in a group."""
    if uses_advantages(config.align.method.method):
        return config.align.groups.group_size
    return (
        1 + config.align.groups.num_negatives if uses_negatives(config.align.method.method) else 2
    )


def _seed(config: AlignRunConfig, number: int) -> int:
    """Seed of the random choices of a round."""
    return int(np.random.SeedSequence((config.seed, number)).generate_state(1)[0])


def _preferences(
    folders: Folders,
    config: AlignRunConfig,
    data: SessionData,
    index: ItemIndex,
    found: Candidates,
    groups: Groups,
    number: int,
) -> Preferences:
    """Codes, masks, advantages and reference log-probabilities of the chosen candidates."""
    mesh = make_mesh(config.pipeline.mesh)
    model, params = generators.load(folders, number - 1, mesh)
    rows_Q1 = groups.rows[:, None]
    items_QGM = np.where(
        groups.has_member[..., None], found.items[rows_Q1, groups.members], -1
    ).astype(np.int32)
    rewards_QG = np.where(groups.has_member, found.rewards[rows_Q1, groups.members], 0.0)
    codes_QGML = np.where(items_QGM[..., None] >= 0, index.codes[np.maximum(items_QGM, 0)], 0)
    mask_QGM = items_QGM >= 0
    advantages_QG = standardised_advantages(rewards_QG, groups.has_member)
    examples_Q = found.examples[groups.rows]
    num_samples = config.align.groups.legality_samples
    if num_samples and uses_advantages(config.align.method.method):
        history_QH = histories(data, "train", model.history_items, examples_Q)
        sampled = generate_sessions(
            model,
            BeamConfig(num_beams=num_samples, num_items=model.session_items, constrained=False),
            params,
            build_prefix_index(index, data.train_item_counts),
            index.codes,
            history_QH,
            batch_size=config.align.candidates.batch_size,
            sampling=SamplingConfig(),
            key=jax.random.key(_seed(config, number)),
            mesh=mesh,
        )
        # Legal sessions are rewarded; illegal ones are left out (arXiv:2506.13695, Section 4.3).
        is_legal_QJ = np.all(sampled.items >= 0, axis=-1)
        codes_QGML = np.concatenate([codes_QGML, sampled.codes], axis=1)
        mask_QJM = np.broadcast_to(is_legal_QJ[..., None], sampled.items.shape)
        mask_QGM = np.concatenate([mask_QGM, mask_QJM], axis=1)
        advantages_QG = np.concatenate([advantages_QG, is_legal_QJ.astype(np.float32)], axis=1)
    return Preferences(
        examples=examples_Q,
        codes=codes_QGML.astype(np.int32),
        mask=mask_QGM,
        reference_log_probs=group_log_probs(
            model,
            params,
            index.codes,
            histories(data, "train", model.history_items, examples_Q),
            codes_QGML.astype(np.int32),
            mask_QGM,
            batch_size=config.align.candidates.batch_size,
            mesh=mesh,
        ),
        advantages=advantages_QG.astype(np.float32),
    )


def _gaps(found: Candidates, groups: Groups) -> dict[str, float]:
    """How far apart the members of a group are, in reward."""
    rewards_QG = found.rewards[groups.rows[:, None], groups.members]
    best_Q = np.where(groups.has_member, rewards_QG, -np.inf).max(axis=1)
    worst_Q = np.where(groups.has_member, rewards_QG, np.inf).min(axis=1)
    return {
        "mean reward of the best": round(float(best_Q.mean()), 4),
        "mean reward of the worst": round(float(worst_Q.mean()), 4),
    }
