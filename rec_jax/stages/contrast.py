"""Stages `round_t_{positive,negative,scores}` of contrastive cDPO: two models, and their contrast.

Both models start from M_{t-1}; the positive one learns its best candidates, the negative one its
worst. The scores say of every code of a pair how much the positive model would rather have written
it. Other methods have nothing to do here.

Dimension key: Q groups, G responses of a group, M session items, L code levels.
"""

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from core_jax.arrays import Params
from core_jax.checkpoint import restore_params
from core_jax.config import fingerprint
from core_jax.data.pipeline import host_share, make_pipeline
from core_jax.loop import fit
from core_jax.mesh import make_mesh
from core_jax.optim import make_optimizer, make_schedule
from core_jax.run_folder import Workers, read_done, run_stage, stage_folder
from core_jax.train_state import init_state
from core_jax.train_step import make_train_step
from rec_jax.align.array_file import read_arrays, write_arrays
from rec_jax.align.contrast import (
    SessionScores,
    WrittenSource,
    choose_sessions,
    group_contrast,
    pair_weights,
)
from rec_jax.align.methods import uses_token_weights
from rec_jax.align.run_config import AlignRunConfig, Folders
from rec_jax.align.source import Preferences
from rec_jax.data.inputs import SessionSource, batch_to_codes
from rec_jax.data.sessions import histories
from rec_jax.model import onerec
from rec_jax.model.config import OneRecConfig
from rec_jax.model.shardings import RULES
from rec_jax.objectives import next_token_loss
from rec_jax.semantic_ids.prefix_index import build_prefix_index
from rec_jax.stages import candidates, generators, groups, prepare, tokenize

SIDES = ("positive", "negative")
"""The two models; also the order in which they are trained."""
_WEIGHT_STREAM, _TRAIN_STREAM = 13, 17
_LOGGER = logging.getLogger(__name__)


def stage_name(number: int) -> str:
    """Name of the stage that scores the groups of round `number`."""
    return f"round_{number}_scores"


def model_stage(number: int, side: str) -> str:
    """Name of the stage that trains the positive or the negative model of round `number`."""
    return f"round_{number}_{side}"


def run(folders: Folders, config: AlignRunConfig, number: int) -> bool:
    """Trains both models and scores the groups, if the method weighs codes.

    In round 1 both models are made from the pre-trained one and its candidates alone: runs that
    share these share the models too.

    Returns whether the stages are done.
    """
    if not uses_token_weights(config.align.method.method):
        return True
    for side in SIDES:
        train = functools.partial(_train, folders, config, number, side)
        parts = _model_parts(folders, config, number)
        run_dir = candidates.run_dir(folders, number)
        name = model_stage(number, side)
        if not run_stage(run_dir, name, parts, train, workers=Workers.ALL):
            return False
    score = functools.partial(_score, folders, config, number)
    parts = _score_parts(folders, config, number)
    return run_stage(folders.run, stage_name(number), parts, score)


def weighted(
    folders: Folders, config: AlignRunConfig, number: int, preferences: Preferences
) -> Preferences:
    """The groups of a round with the weights of their codes, if the method weighs codes.

    Raises:
      DataError: the scores are missing, cannot be read, or are of other codes.
    """
    if not uses_token_weights(config.align.method.method):
        return preferences
    words = np.random.SeedSequence((_WEIGHT_STREAM, config.seed, number)).generate_state(1)
    weights = pair_weights(
        load(folders, number),
        preferences,
        config.align.contrast,
        key=jax.random.key(int(words[0])),
    )
    rejected_mask = np.broadcast_to(preferences.mask[:, 1, :, None], weights[:, 1].shape)
    _LOGGER.info(
        "round %d: a rejected code weighs %.4f in the mean",
        number,
        weights[:, 1][rejected_mask].mean(),
    )
    return dataclasses.replace(preferences, weights=weights)


def load(folders: Folders, number: int) -> SessionScores:
    """The scores of a round.

    Raises:
      DataError: they are missing or cannot be read.
    """
    path = stage_folder(folders.run, stage_name(number)) / "scores.npz"
    remedy = f"remove '{path.parent}' and run the round again"
    return SessionScores(**read_arrays(path, remedy=remedy))


def _model_parts(folders: Folders, config: AlignRunConfig, number: int) -> dict[str, Any]:
    """What either model depends on."""
    settings = config.align.contrast
    found = read_done(candidates.run_dir(folders, number), candidates.stage_name(number))
    return {
        "share": settings.share,
        "batch_size": settings.batch_size,
        "optim": settings.optim,
        "loop": settings.loop,
        "seed": config.seed,
        "start": generators.model_fingerprint(folders, number - 1),
        "candidates": found["fingerprint"],
    }


def _score_parts(folders: Folders, config: AlignRunConfig, number: int) -> dict[str, Any]:
    """What the scores depend on."""
    run_dir = candidates.run_dir(folders, number)
    models = {side: read_done(run_dir, model_stage(number, side))["fingerprint"] for side in SIDES}
    return models | {
        "beta": config.align.contrast.beta,
        "groups": read_done(folders.run, groups.stage_name(number))["fingerprint"],
    }


def _train(
    folders: Folders, config: AlignRunConfig, number: int, side: str, folder: pathlib.Path
) -> Mapping[str, Any] | None:
    """Next-token training on the best or the worst candidates, from M_{t-1}."""
    settings, loop = config.align.contrast, config.align.contrast.loop
    mesh = make_mesh(config.pipeline.mesh)
    start, params = generators.load(folders, number - 1, mesh)
    model = dataclasses.replace(start, dropout=config.align.dropout)
    _, data = prepare.load(folders.base)
    written = choose_sessions(
        candidates.load(folders, config, number), share=settings.share, best=side == SIDES[0]
    )
    optimizer = make_optimizer(settings.optim, loop.num_steps)
    state, shardings = init_state(
        functools.partial(onerec.init_params, model),
        optimizer,
        mesh=mesh,
        rules=RULES,
        key=jax.random.key(0),
    )
    state = dataclasses.replace(state, params=params)
    train_step = make_train_step(
        functools.partial(next_token_loss, model, mesh),
        optimizer,
        mesh=mesh,
        state_shardings=shardings,
        schedule=make_schedule(settings.optim, loop.num_steps),
    )
    words = np.random.SeedSequence((_TRAIN_STREAM, config.seed, number)).generate_state(2)
    logged = SessionSource(data, "train", model.history_items, model.session_items)
    result = fit(
        state=state,
        train_step=train_step,
        pipeline=make_pipeline(
            WrittenSource(logged, written),
            batch_size=settings.batch_size,
            seed=int(words[0]),
            transform=batch_to_codes(tokenize.load(folders.base).codes),
            share=host_share(mesh),
        ),
        key=jax.random.key(int(words[1])),
        folder=folder,
        config=loop,
        fingerprint=fingerprint(_model_parts(folders, config, number)),
        tokens_per_batch=settings.batch_size * model.decoder_tokens,
    )
    if result.preempted:
        return None
    return {"last_step": result.step, "sessions": len(written)}


def _score(
    folders: Folders, config: AlignRunConfig, number: int, folder: pathlib.Path
) -> Mapping[str, Any]:
    """Scores every session of the groups."""
    mesh = make_mesh(config.pipeline.mesh)
    _, data = prepare.load(folders.base)
    index = tokenize.load(folders.base)
    preferences = groups.load(folders, number)
    model, _ = generators.load(folders, number - 1, mesh)
    positive, negative = (_load_model(folders, number, side, model, mesh) for side in SIDES)
    scores = group_contrast(
        model,
        positive,
        negative,
        build_prefix_index(index, data.train_item_counts),
        index.codes,
        histories(data, "train", model.history_items, preferences.examples),
        preferences.codes,
        preferences.mask,
        beta=config.align.contrast.beta,
        batch_size=config.align.candidates.batch_size,
        mesh=mesh,
    )
    write_arrays(folder / "scores.npz", vars(scores))
    facts = _facts(scores, preferences)
    _LOGGER.info(
        "round %d: %s", number, ", ".join(f"{name} {value}" for name, value in facts.items())
    )
    return facts


def _load_model(
    folders: Folders, number: int, side: str, model: OneRecConfig, mesh: Mesh
) -> Params:
    """Parameters of the positive or the negative model."""
    run_dir, name = candidates.run_dir(folders, number), model_stage(number, side)
    step = read_done(run_dir, name)["facts"]["last_step"]
    abstract = onerec.abstract_params(model, mesh)
    return restore_params(stage_folder(run_dir, name) / "checkpoints", abstract, step=step)


def _facts(scores: SessionScores, preferences: Preferences) -> dict[str, Any]:
    """How much the scores say: 1 - s by level, and whether they tell chosen from rejected."""
    mask_QGML = np.broadcast_to(preferences.mask[..., None], scores.codes.shape)
    blame_QGML = np.where(mask_QGML, -np.expm1(scores.log_scores), np.nan)
    contrast_QG = (scores.positive - scores.negative).sum(axis=(2, 3))
    rejected_QML = blame_QGML[:, 1]
    return {
        "mean 1 - s of chosen codes": round(float(np.nanmean(blame_QGML[:, 0])), 4),
        "mean 1 - s of rejected codes": round(float(np.nanmean(rejected_QML)), 4),
        "of rejected codes by level": [
            round(float(np.nanmean(rejected_QML[..., level])), 4)
            for level in range(rejected_QML.shape[-1])
        ],
        "log p+/p- of chosen sessions": round(float(contrast_QG[:, 0].mean()), 4),
        "log p+/p- of rejected sessions": round(float(contrast_QG[:, 1].mean()), 4),
        "pairs ordered right": round(float((contrast_QG[:, 0] > contrast_QG[:, 1]).mean()), 4),
    }
