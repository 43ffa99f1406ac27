"""Stage `round_t_train`: M_t learns from its own candidates and becomes M_{t+1} (Algorithm 2).

The trained model starts from M_t; the frozen M_t is present as the log-probabilities that the
stage before computed once.

Dimension key: none.
"""

import dataclasses
import functools
import json
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from core_jax.config import fingerprint, to_dict
from core_jax.data.pipeline import Pipeline, host_share, make_pipeline
from core_jax.loop import fit
from core_jax.mesh import BATCH_AXES, make_mesh
from core_jax.optim import make_optimizer, make_schedule
from core_jax.processes import is_first
from core_jax.run_folder import Workers, read_done, run_stage
from core_jax.train_state import TrainState, init_state
from core_jax.train_step import TrainStep, make_train_step
from rec_jax.align.config import AlignConfig
from rec_jax.align.methods import uses_token_weights
from rec_jax.align.objective import align_loss
from rec_jax.align.run_config import AlignRunConfig, Folders
from rec_jax.align.source import BundleSource, Slots, bundles_to_batch, fill, plan_slots
from rec_jax.data.inputs import SessionSource
from rec_jax.model import onerec
from rec_jax.model.config import OneRecConfig
from rec_jax.model.shardings import RULES
from rec_jax.stages import contrast, generators, groups, prepare, tokenize

_LOGGER = logging.getLogger(__name__)


def run(folders: Folders, config: AlignRunConfig, number: int) -> bool:
    """Trains round `number`, from the newest checkpoint if there is one.

    Returns whether the stage is done.
    """

    def work(folder: pathlib.Path) -> Mapping[str, Any] | None:
        return _train(folders, config, number, folder)

    return run_stage(
        folders.run,
        generators.train_stage(number),
        _parts(folders, config, number),
        work,
        workers=Workers.ALL,
    )


def trained_model(start: OneRecConfig, settings: AlignConfig) -> OneRecConfig:
    """The architecture as a round trains it."""
    return dataclasses.replace(start, dropout=settings.dropout)


def optimizer_of(settings: AlignConfig) -> optax.GradientTransformation:
    """The optimizer of a round."""
    return make_optimizer(settings.optim, settings.loop.num_steps)


def step_of(
    settings: AlignConfig, model: OneRecConfig, mesh: Mesh, shardings: TrainState
) -> TrainStep:
    """The train step of a round, for the architecture of `trained_model`."""
    return make_train_step(
        functools.partial(align_loss, model, settings.method, settings.effective_weight, mesh),
        optimizer_of(settings),
        mesh=mesh,
        state_shardings=shardings,
        num_microbatches=settings.num_microbatches,
        schedule=make_schedule(settings.optim, settings.loop.num_steps),
    )


def slots_of(settings: AlignConfig, mesh: Mesh) -> Slots:
    """How the preferences of a step are spread over its samples and the mesh."""
    shards = int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))
    return plan_slots(
        settings.batch_size,
        settings.preference_ratio,
        multiple=shards * settings.num_microbatches,
    )


def _parts(folders: Folders, config: AlignRunConfig, number: int) -> dict[str, Any]:
    """What the result of a round's training depends on."""
    weight = {"preference_weight": config.align.effective_weight}
    align = to_dict(config.align) | weight
    for name in ("num_rounds", "candidates", "groups", "contrast"):
        del align[name]
    contrasted = {}
    if uses_token_weights(config.align.method.method):
        contrasted = {
            "scores": read_done(folders.run, contrast.stage_name(number))["fingerprint"],
            "weights": config.align.contrast.weights,
            "scale": config.align.contrast.scale,
        }
    return contrasted | {
        "align": align,
        "seed": config.seed,
        "start": generators.model_fingerprint(folders, number - 1),
        "groups": read_done(folders.run, groups.stage_name(number))["fingerprint"],
    }


def _train(
    folders: Folders, config: AlignRunConfig, number: int, folder: pathlib.Path
) -> Mapping[str, Any] | None:
    """Wires data, model, objective and optimizer, and trains."""
    settings, loop = config.align, config.align.loop
    mesh = make_mesh(config.pipeline.mesh)
    start, params = generators.load(folders, number - 1, mesh)
    model = trained_model(start, settings)
    # What is handed on is the model of the start: dropout is a setting of this training alone.
    if is_first():
        (folder / "model.json").write_text(json.dumps(to_dict(start), indent=2))
    state, shardings = init_state(
        functools.partial(onerec.init_params, model),
        optimizer_of(settings),
        mesh=mesh,
        rules=RULES,
        key=jax.random.key(0),
    )
    state = dataclasses.replace(state, params=params)
    result = fit(
        state=state,
        train_step=step_of(settings, model, mesh, shardings),
        pipeline=_pipeline(folders, config, model, mesh, number),
        key=jax.random.fold_in(jax.random.key(config.seed), number),
        folder=folder,
        config=loop,
        fingerprint=fingerprint(_parts(folders, config, number)),
        tokens_per_batch=settings.batch_size * model.decoder_tokens,
    )
    if result.preempted:
        return None
    return {"last_step": result.step, "skipped": _skipped(result.state)}


def _pipeline(
    folders: Folders, config: AlignRunConfig, model: OneRecConfig, mesh: Mesh, number: int
) -> Pipeline:
    """Bundles of training samples and preferences."""
    settings = config.align
    _, data = prepare.load(folders.base)
    index = tokenize.load(folders.base)
    preferences = contrast.weighted(folders, config, number, groups.load(folders, number))
    sessions = SessionSource(data, "train", model.history_items, model.session_items)
    slots = slots_of(settings, mesh)
    _LOGGER.info(
        "round %d: %s preferences; %d of %d samples of a step can hold one, %.0f %% do; "
        "%.1f passes over the preferences",
        number,
        f"{len(preferences):,}",
        slots.per_batch,
        settings.batch_size,
        100 * slots.filled,
        settings.num_samples * settings.preference_ratio / len(preferences),
    )
    return make_pipeline(
        BundleSource(sessions, preferences, slots),
        batch_size=slots.per_batch,
        seed=int(np.random.SeedSequence((config.seed, number)).generate_state(1)[0]),
        random_map=functools.partial(fill, sessions, settings.augment),
        transform=bundles_to_batch(index.codes),
        share=host_share(mesh),
    )


def _skipped(state: TrainState) -> int:
    """Steps that were not finite."""
    return int(jax.device_get(state.skipped_total))
