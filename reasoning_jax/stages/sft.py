"""Stage: fine-tune on solutions, all parameters or adapters.

Dimension key: none.
"""

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Mapping
from typing import Any, cast

import jax
from jax.sharding import Mesh

from core_jax.arrays import Params
from core_jax.config import fingerprint
from core_jax.data.pipeline import host_share, make_pipeline
from core_jax.loop import LoopConfig, fit
from core_jax.mesh import make_mesh
from core_jax.optim import make_optimizer, make_schedule
from core_jax.run_folder import Workers, read_done, run_stage, stage_folder
from core_jax.train_state import TrainState
from core_jax.train_step import Objective, TrainStep, make_train_step
from reasoning_jax.config import SftConfig, Solutions
from reasoning_jax.data.load import load_problems
from reasoning_jax.data.packing import PackedRows, to_packed_batch
from reasoning_jax.data.problems import Problem
from reasoning_jax.data.procedural import refuse_derived
from reasoning_jax.data.prompts import PromptStyle, render_prompt
from reasoning_jax.data.sft_examples import (
    SftExamples,
    examples_from_problems,
    examples_from_trajectories,
)
from reasoning_jax.data.trajectories import read_trajectories
from reasoning_jax.model.config import DecoderConfig
from reasoning_jax.objectives import sft_objective
from reasoning_jax.stages.trainee import born, looks, restored
from reasoning_jax.text.joint import encode_pair
from reasoning_jax.weights.model_source import LoadedModel, load_source

NAME = "sft"
BEST_METRIC = "valid_loss"

_LOGGER = logging.getLogger(__name__)


def run(config: SftConfig) -> bool:
    """Runs the stage unless it is done. Returns whether it is done now."""
    parts = _parts(config) | {"loop": config.loop}
    work = functools.partial(_train, config)
    return run_stage(config.run_dir, NAME, parts, work, workers=Workers.ALL)


def load_trained(config: SftConfig, mesh: Mesh) -> tuple[LoadedModel, Params | None]:
    """The model of a finished run, from its best step.

    Returns:
      The model, and its adapters where these were trained: they stand apart from it. Without
      adapters the model's parameters are the trained ones.

    Raises:
      DataError: the run is not finished.
    """
    read_done(config.run_dir, NAME)  # before the model is loaded
    model = load_source(config.model, mesh)
    trained = restore_trained(config, model, mesh)
    if config.lora.rank:
        return model, trained
    return dataclasses.replace(model, params=trained), None


def restore_trained(config: SftConfig, model: LoadedModel, mesh: Mesh) -> Params:
    """What a finished run trained, from its best step: adapters, or all parameters (float32).

    Args:
      config: of the run.
      model: the model that it started from.
      mesh: where the parameters are to be.

    Raises:
      DataError: the run is not finished.
    """
    step = read_done(config.run_dir, NAME)["facts"]["best_step"]
    folder = stage_folder(config.run_dir, NAME) / "checkpoints"
    return restored(model, config.lora, folder, step=step, mesh=mesh)


def _train(config: SftConfig, folder: pathlib.Path) -> Mapping[str, Any] | None:
    """Wires data, model, objective and optimizer, and trains."""
    mesh = make_mesh(config.mesh)
    model = load_source(config.model, mesh)
    train_rows, valid_rows = _rows(config, model)
    frozen = model.params if config.lora.rank else None
    loop = _loop(config, len(train_rows))
    init_key, dropout_key = jax.random.split(jax.random.key(config.seed))
    optimizer = make_optimizer(config.optim, loop.num_steps)
    state, shardings = born(model, config.lora, optimizer, mesh=mesh, key=init_key)
    if frozen is None:
        model = dataclasses.replace(model, params={})  # room: what is trained is a copy
    result = fit(
        state=state,
        train_step=step_of(config, loop.num_steps, model.config, mesh, shardings, frozen),
        pipeline=make_pipeline(
            train_rows,
            batch_size=config.batch_size,
            seed=config.seed,
            transform=to_packed_batch,
            share=host_share(mesh),
        ),
        key=dropout_key,
        folder=folder,
        config=loop,
        fingerprint=_identity(config, model),
        evaluate=looks(
            objective_of(config, model.config, mesh),
            valid_rows,
            config.batch_size,
            mesh=mesh,
            frozen=frozen,
            prefix="valid_",
        ),
        best_metric=BEST_METRIC,
        lower_is_better=True,
        tokens_per_batch=config.batch_size * config.packing.row_length,
        flops_per_step=train_flops(model.config, config),
    )
    if result.preempted:
        return None
    best = min(
        (row[BEST_METRIC] for row in result.history if row.get(BEST_METRIC) is not None),
        default=None,
    )
    report = dataclasses.asdict(train_rows.report)
    steps = {"best_step": result.best_step, "last_step": result.step}
    tokens = {"trained_tokens": result.step * config.batch_size * config.packing.row_length}
    return steps | tokens | {BEST_METRIC: best} | report


def objective_of(config: SftConfig, model: DecoderConfig, mesh: Mesh) -> Objective:
    """What a run minimises."""
    return functools.partial(
        sft_objective,
        config=dataclasses.replace(model, remat=config.remat, unroll=config.unroll),
        chunk=min(config.chunk, config.packing.row_length),
        lora=config.lora if config.lora.rank else None,
        mesh=mesh,
    )


def step_of(
    config: SftConfig,
    num_steps: int,
    model: DecoderConfig,
    mesh: Mesh,
    shardings: TrainState,
    frozen: Params | None,
) -> TrainStep:
    """The train step of a run of so many steps."""
    return make_train_step(
        objective_of(config, model, mesh),
        make_optimizer(config.optim, num_steps),
        mesh=mesh,
        state_shardings=shardings,
        num_microbatches=config.num_microbatches,
        schedule=make_schedule(config.optim, num_steps),
        frozen=frozen,
    )


def _loop(config: SftConfig, num_rows: int) -> LoopConfig:
    """The loop, with as many steps as the passes over the rows take."""
    if not config.epochs:
        return config.loop
    num_steps = max(1, round(config.epochs * num_rows / config.batch_size))
    return dataclasses.replace(config.loop, num_steps=num_steps)


def _parts(config: SftConfig) -> dict[str, Any]:
    """What a checkpoint depends on: all but the folder, the devices and how long to train."""
    ignored = ("run_dir", "mesh", "loop")
    names = [field.name for field in dataclasses.fields(config) if field.name not in ignored]
    return {name: getattr(config, name) for name in names}


def _identity(config: SftConfig, model: LoadedModel) -> str:
    """Fingerprint of a checkpoint's config, weights and tokenizer."""
    text = model.tokenizer.fingerprint
    return fingerprint(_parts(config) | {"weights": model.fingerprint, "tokenizer": text})


def train_flops(model: DecoderConfig, config: SftConfig) -> float:
    """FLOPs that a step needs, attention left out.

    Two per parameter and token forward, two for the gradient of the activations, and two for that
    of the weights where these are trained.
    """
    products = 3 if config.lora.rank == 0 else 2
    table = model.vocab_size * model.model_dim
    num_used = model.num_params - (0 if model.tied_embeddings else table)
    return 2.0 * products * num_used * config.batch_size * config.packing.row_length


def _rows(config: SftConfig, model: LoadedModel) -> tuple[PackedRows, PackedRows]:
    """Training and validation rows; what was left out is logged."""
    found = _examples(config, model)
    _LOGGER.info("examples: %s", found.summary())
    held_out = min(config.held_out, len(found.examples) // 2)
    pad_id = model.tokenizer.pad_id
    valid = PackedRows(found.examples[:held_out], config.packing, pad_id=pad_id)
    train = PackedRows(found.examples[held_out:], config.packing, pad_id=pad_id)
    _LOGGER.info(
        "training rows: %d of %d tokens, %.0f%% filled, %d examples too long",
        train.report.num_rows,
        config.packing.row_length,
        100 * train.report.efficiency,
        train.report.num_overlong,
    )
    return train, valid


def _examples(config: SftConfig, model: LoadedModel) -> SftExamples:
    """Tokenised examples of problems or of sampled solutions."""
    is_chat = config.prompt.style is PromptStyle.CHAT
    encode = functools.partial(encode_pair, model.tokenizer, special_prompt=is_chat)
    if config.solutions is Solutions.TRAJECTORIES:
        return examples_from_trajectories(
            read_trajectories(config.trajectories),
            choice=config.choice,
            encode=encode,
        )
    refuse_derived(config.problems.task, config.tested_on)
    solved = [
        dataclasses.replace(one, solution=one.solution or f"The answer is {one.answer}.")
        for one in load_problems(config.problems)
    ]
    return examples_from_problems(
        solved,
        prompt_of=lambda one: render_prompt(cast(Problem, one), config.prompt, model.template).text,
        # After "Answer:" a model goes on with a space; a chat's turn begins with the text itself.
        response_of=lambda one: f"{'' if is_chat else ' '}{one.solution}",
        encode=encode,
    )
