"""Stage `pretrain`: OneRec learns to write sessions (next-token prediction).

The same stage trains the point-wise model that the evaluation compares with: a session of one
item, everything else alike.

Dimension key: none.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from core_jax.arrays import Params
from core_jax.checkpoint import restore_params
from core_jax.config import fingerprint, from_dict, to_dict
from core_jax.data.pipeline import RandomMap, host_share, make_pipeline, whole_to_device
from core_jax.loop import Evaluate, fit
from core_jax.mesh import make_mesh
from core_jax.metrics import compute, merge
from core_jax.optim import make_optimizer, make_schedule
from core_jax.processes import is_first
from core_jax.run_folder import Workers, read_done, run_stage, stage_folder
from core_jax.train_state import init_state
from core_jax.train_step import make_eval_step, make_train_step
from rec_jax.config import PipelineConfig
from rec_jax.data.augment import AugmentConfig, augment
from rec_jax.data.inputs import SessionSource, batch_to_codes
from rec_jax.data.sessions import SessionData
from rec_jax.model import onerec
from rec_jax.model.config import OneRecConfig
from rec_jax.model.flops import train_flops
from rec_jax.model.shardings import RULES
from rec_jax.objectives import next_token_loss
from rec_jax.semantic_ids.codebook import check_fingerprint
from rec_jax.semantic_ids.item_index import ItemIndex
from rec_jax.stages import prepare, tokenize

NAME = "pretrain"
POINTWISE_NAME = "pretrain_pointwise"
BEST_METRIC = "valid_loss"


def run(config: PipelineConfig, *, pointwise: bool = False) -> bool:
    """Trains from the newest checkpoint, if there is one. Returns whether the stage is done.

    Args:
      config: the run.
      pointwise: trains the comparison model instead: sessions of one item,
        `pretrain.pointwise_steps` steps.
    """
    name = POINTWISE_NAME if pointwise else NAME
    if pointwise:
        config = _pointwise(config)

    def work(folder: pathlib.Path) -> Mapping[str, Any] | None:
        return _train(config, folder)

    parts = {
        "model": config.model,
        "optim": config.optim,
        "pretrain": dataclasses.replace(config.pretrain, pointwise_steps=0),
        "seed": config.seed,
    }
    return run_stage(
        config.run_dir,
        name,
        parts,
        work,
        after=(prepare.NAME, tokenize.NAME),
        workers=Workers.ALL,
    )


def load(run_dir: str, mesh: Mesh, *, pointwise: bool = False) -> tuple[OneRecConfig, Params]:
    """The trained model of a run: its resolved configuration and best parameters, on `mesh`.

    Raises:
      CheckpointError: the semantic IDs are no longer those that it was trained on, or its
        parameters are damaged.
      DataError: the stage is not done.
    """
    name = POINTWISE_NAME if pointwise else NAME
    facts = read_done(run_dir, name)["facts"]
    check_fingerprint(
        facts["item_index"],
        tokenize.load(run_dir).fingerprint,
        f"the semantic IDs that the model in '{run_dir}' was trained on",
    )
    folder = stage_folder(run_dir, name)
    model = from_dict(OneRecConfig, json.loads((folder / "model.json").read_text()))
    abstract = onerec.abstract_params(model, mesh)
    params = restore_params(folder / "checkpoints", abstract, step=facts["best_step"])
    return model, params


def resolve_model(config: OneRecConfig, index: ItemIndex) -> OneRecConfig:
    """The architecture with the catalogue's level sizes filled in."""
    return dataclasses.replace(config, level_sizes=index.level_sizes)


def _pointwise(config: PipelineConfig) -> PipelineConfig:
    """The comparison model's run."""
    loop = dataclasses.replace(config.pretrain.loop, num_steps=config.pretrain.pointwise_steps)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, session_items=1),
        pretrain=dataclasses.replace(config.pretrain, loop=loop),
    )


def _train(config: PipelineConfig, folder: pathlib.Path) -> Mapping[str, Any] | None:
    """Wires data, model, objective and optimizer, and trains."""
    _, data = prepare.load(config.run_dir)
    index = tokenize.load(config.run_dir)
    model = resolve_model(config.model, index)
    _write_model(folder, model)
    mesh = make_mesh(config.mesh)
    settings, loop = config.pretrain, config.pretrain.loop
    init_key, dropout_key = jax.random.split(jax.random.key(config.seed))
    pipeline = make_pipeline(
        SessionSource(data, "train", model.history_items, config.sessions.session_items),
        batch_size=settings.batch_size,
        seed=config.seed,
        random_map=_augmentation(settings.augment),
        transform=_first_targets(index.codes, model.session_items),
        share=host_share(mesh),
    )
    optimizer = make_optimizer(config.optim, loop.num_steps)
    state, shardings = init_state(
        functools.partial(onerec.init_params, model),
        optimizer,
        mesh=mesh,
        rules=RULES,
        key=init_key,
    )
    objective = functools.partial(next_token_loss, model, mesh)
    train_step = make_train_step(
        objective,
        optimizer,
        mesh=mesh,
        state_shardings=shardings,
        num_microbatches=settings.num_microbatches,
        schedule=make_schedule(config.optim, loop.num_steps),
    )
    result = fit(
        state=state,
        train_step=train_step,
        pipeline=pipeline,
        key=dropout_key,
        folder=folder,
        config=loop,
        fingerprint=_identity(config, model, index),
        evaluate=_validation(config, model, mesh, data, index),
        best_metric=BEST_METRIC,
        lower_is_better=True,
        tokens_per_batch=settings.batch_size
        * (model.history_items * (model.num_levels + 1) + model.decoder_tokens),
        flops_per_step=train_flops(model, settings.batch_size),
    )
    if result.preempted:
        return None
    return {
        "best_step": result.best_step,
        "last_step": result.step,
        "item_index": index.fingerprint,
    }


def _identity(config: PipelineConfig, model: OneRecConfig, index: ItemIndex) -> str:
    """What a checkpoint depends on."""
    parts = {"model": model, "optim": config.optim, "pretrain": config.pretrain}
    return fingerprint(parts | {"index": index.fingerprint})


def _write_model(folder: pathlib.Path, model: OneRecConfig) -> None:
    """Keeps the resolved architecture beside its parameters; one process writes."""
    if is_first():
        (folder / "model.json").write_text(json.dumps(to_dict(model), indent=2))


def _augmentation(config: AugmentConfig) -> RandomMap | None:
    """What varies the examples, or None where nothing does."""
    return None if config == AugmentConfig() else functools.partial(augment, config)


def _first_targets(codes: np.ndarray, num_items: int) -> Any:
    """Batches of the first `num_items` targets, as codes."""
    to_codes = batch_to_codes(codes)

    def transform(batch: Mapping[str, np.ndarray]) -> Any:
        return to_codes({**batch, "target": batch["target"][:, :num_items]})

    return transform


def _validation(
    config: PipelineConfig, model: OneRecConfig, mesh: Mesh, data: SessionData, index: ItemIndex
) -> Evaluate:
    """The loss on the validation sessions, in batches of one shape.

    The last batch is filled up with rows whose targets are masked: they count for nothing.
    """
    source = SessionSource(data, "valid", model.history_items, model.session_items)
    transform = _first_targets(index.codes, model.session_items)
    eval_step = make_eval_step(functools.partial(next_token_loss, model, mesh), mesh=mesh)
    size = config.pretrain.batch_size

    def evaluate(state: Any) -> dict[str, float]:
        totals = None
        for first in range(0, len(source), size):
            rows = np.arange(first, first + size)
            batch = dict(source.rows(np.minimum(rows, len(source) - 1)))
            batch["target"][rows >= len(source)] = -1
            metrics = eval_step(state.params, whole_to_device(transform(batch), mesh))
            totals = metrics if totals is None else merge(totals, metrics)
        assert totals is not None
        values = compute(totals)
        return {
            f"valid_{name}": value for name, value in values.items() if isinstance(value, float)
        }

    return evaluate
