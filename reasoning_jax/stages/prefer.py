"""Stage: train on pairs by one preference method, all parameters or adapters.

Dimension key: none.
"""

import dataclasses
import functools
import json
import logging
import math
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from core_jax.arrays import Params
from core_jax.config import fingerprint, to_dict
from core_jax.data.pipeline import Pipeline, host_share, make_pipeline
from core_jax.loop import LoopConfig, fit
from core_jax.mesh import make_mesh
from core_jax.optim import make_optimizer, make_schedule
from core_jax.run_folder import Workers, read_done, run_stage, stage_folder
from core_jax.train_step import make_train_step
from reasoning_jax.align.contrast_model import LOG_PROB
from reasoning_jax.align.methods import WeightSource
from reasoning_jax.align.objective import preference_objective
from reasoning_jax.align.pair_file import Pair, read_pairs
from reasoning_jax.align.pair_rows import PairRows, TokenPair, to_pair_batch
from reasoning_jax.align.pair_weights import SideWeights, Values, WeightInputs, pair_weights
from reasoning_jax.align.scoring import check_ids, check_tokenizer, responses_of
from reasoning_jax.align_config import PreferConfig
from reasoning_jax.data.token_values import matching, read_token_values
from reasoning_jax.data.trajectories import Trajectory
from reasoning_jax.model import lora
from reasoning_jax.stages.score import check_rows, file_digest
from reasoning_jax.stages.trainee import born, looks, restored
from reasoning_jax.text.tokenizer import Tokenizer
from reasoning_jax.weights.hf_export import export_model
from reasoning_jax.weights.model_source import LoadedModel, ModelConfig, load_source
from reasoning_jax.weights.peft import Adapter, export_adapter

NAME = "prefer"
EXPORTED = "exported"
"""Folder with the trained model or adapter in the formats of others, in the run's folder."""

_LOGGER = logging.getLogger(__name__)


def run(config: PreferConfig) -> bool:
    """Runs the stage unless it is done. Returns whether it is done now."""
    work = functools.partial(_train, config)
    return run_stage(config.run_dir, NAME, _parts(config), work, workers=Workers.ALL)


def load_policy(config: PreferConfig, mesh: Mesh) -> LoadedModel:
    """The trained model of a finished run, adapters merged.

    Raises:
      DataError: the run is not finished.
    """
    model = load_source(config.model, mesh)
    trained = _restore(config, model, mesh)
    if config.train.lora.rank:
        trained = lora.merge(model.params, trained, config.train.lora.scale)
    return dataclasses.replace(model, params=trained)


def export_policy(config: PreferConfig) -> ModelConfig:
    """Writes the trained model for others: its adapter alone, or the whole of it.

    Returns:
      The model as a source.

    Raises:
      DataError: the run is not finished.
    """
    folder = pathlib.Path(config.run_dir) / EXPORTED
    done = folder / "exported.json"
    identity = read_done(config.run_dir, NAME)["fingerprint"]
    if not done.is_file() or json.loads(done.read_text(encoding="utf-8")) != identity:
        shutil.rmtree(folder, ignore_errors=True)  # of an export that was cut off
        mesh = make_mesh(config.mesh)
        if _is_adapter(config):
            model = load_source(config.model, mesh)
            adapter = Adapter(config=config.train.lora, params=_restore(config, model, mesh))
            export_adapter(folder, model.config, adapter)
        else:
            model = load_policy(config, mesh)
            export_model(folder, model.config, model.params, source_folder=_folder(config.model))
        scratch = done.with_suffix(".part")
        scratch.write_text(json.dumps(identity), encoding="utf-8")
        os.replace(scratch, done)
    return exported(config)


def exported(config: PreferConfig) -> ModelConfig:
    """The trained model as a source, which is there once `export_policy` has written it."""
    folder = str(pathlib.Path(config.run_dir) / EXPORTED)
    if _is_adapter(config):
        return dataclasses.replace(config.model, adapter=folder)
    # A folder's tokenizer came along; a source without one keeps naming its own.
    tokenizer = config.model.tokenizer or ("" if _folder(config.model) else config.model.source)
    return dataclasses.replace(config.model, source=folder, adapter="", tokenizer=tokenizer)


def _is_adapter(config: PreferConfig) -> bool:
    """Whether the result is an adapter of the start; one that has its own is written whole."""
    return config.train.lora.rank > 0 and not config.model.adapter


def _folder(model: ModelConfig) -> pathlib.Path | None:
    """The folder that a model came from, if it is one."""
    path = pathlib.Path(model.source)
    return path if path.is_dir() else None


def _parts(config: PreferConfig) -> dict[str, Any]:
    """What the result depends on: files by what they hold."""
    files = {
        name: file_digest(getattr(config, name))
        for name in ("pairs", "reference", "scores", "guide")
    }
    train = to_dict(config.train)
    del train["profile_steps"]  # what is recorded changes no result
    rest = ("model", "method", "seed")
    return files | {"train": train} | {name: getattr(config, name) for name in rest}


def _train(config: PreferConfig, folder: pathlib.Path) -> Mapping[str, Any] | None:
    """Wires pairs, model, objective and optimizer, and trains."""
    check_rows(config.pairs, "pairs")
    for path in filter(None, (config.reference, config.scores, config.guide)):
        check_rows(path, "num_sequences")
    mesh = make_mesh(config.mesh)
    model = load_source(config.model, mesh)
    pairs, weights = load_weighted_pairs(config, model)
    reference = read_token_values(config.reference)
    token_pairs = [
        _token_pair(pair, reference, own) for pair, own in zip(pairs, weights, strict=True)
    ]
    train = config.train
    rows = PairRows(token_pairs, train.rows, pad_id=model.tokenizer.pad_id)
    fitting = [pair for pair in token_pairs if pair.length <= train.rows.row_length]
    watched = PairRows(fitting[: train.watched], train.rows, pad_id=model.tokenizer.pad_id)
    num_steps = max(1, round(train.epochs * len(rows) / train.batch_size))
    _LOGGER.info("%s: %d steps over %s", NAME, num_steps, rows.report)
    frozen = model.params if config.holds_reference else None
    objective = functools.partial(
        preference_objective,
        config=dataclasses.replace(model.config, remat=train.remat, unroll=train.unroll),
        method=config.method,
        chunk=min(train.chunk, train.rows.row_length),
        lora=train.lora if train.lora.rank else None,
        mesh=mesh if mesh.size > 1 else None,
    )
    optimizer = make_optimizer(train.optim, num_steps)
    init_key, dropout_key = jax.random.split(jax.random.key(config.seed))
    state, shardings = born(model, train.lora, optimizer, mesh=mesh, key=init_key)
    result = fit(
        state=state,
        train_step=make_train_step(
            objective,
            optimizer,
            mesh=mesh,
            state_shardings=shardings,
            num_microbatches=train.num_microbatches,
            schedule=make_schedule(train.optim, num_steps),
            frozen=frozen,
        ),
        pipeline=_pipeline(config, rows, mesh),
        key=dropout_key,
        folder=folder,
        config=_loop(config, num_steps),
        fingerprint=fingerprint(_parts(config) | {"weights": model.fingerprint}),
        evaluate=looks(
            objective, watched, train.batch_size, mesh=mesh, frozen=frozen, prefix="watched_"
        ),
        tokens_per_batch=train.batch_size * train.rows.row_length,
    )
    if result.preempted:
        return None
    last = [row for row in result.history if "watched_margin" in row][-1]
    facts = {name: value for name, value in last.items() if name.startswith("watched_")}
    tokens = result.step * train.batch_size * train.rows.row_length
    steps = {"last_step": result.step, "trained_tokens": tokens}
    return facts | dataclasses.asdict(rows.report) | steps


def _pipeline(config: PreferConfig, rows: PairRows, mesh: Mesh) -> Pipeline:
    """This process' share of the batches of pairs."""
    return make_pipeline(
        rows,
        batch_size=config.train.batch_size,
        seed=config.seed,
        transform=to_pair_batch,
        share=host_share(mesh),
    )


def load_weighted_pairs(
    config: PreferConfig, model: LoadedModel
) -> tuple[tuple[Pair, ...], list[SideWeights]]:
    """The pairs of a run with the weights of their tokens.

    Raises:
      DataError: no pairs, tokens of another tokenizer or that the model does not have, or numbers
        of other tokens.
    """
    pairs = read_pairs(config.pairs)
    responses = responses_of(pairs)
    check_tokenizer(responses, model.tokenizer.fingerprint)
    check_ids(responses, model.config)
    tokenizer = model.tokenizer
    wanted = config.method.source

    def read(path: str, *, by: bool) -> Values | None:
        return read_token_values(path) if path and by else None

    inputs = WeightInputs(
        scores=read(config.scores, by=config.method.needs_scores),
        reference=read(config.reference, by=wanted is WeightSource.TGDPO),
        guide=read(config.guide, by=wanted is WeightSource.TGDPO),
        eos_ids=frozenset(tokenizer.eos_ids),
        is_break=_breaks(tokenizer),
    )
    return pairs, pair_weights(pairs, config.method, inputs, seed=config.seed)


def _breaks(tokenizer: Tokenizer) -> Callable[[int], bool]:
    """Whether a token has a line break in it."""

    @functools.cache
    def is_break(token: int) -> bool:
        return "\n" in tokenizer.decode([token])

    return is_break


def _token_pair(pair: Pair, reference: Values, weights: SideWeights) -> TokenPair:
    """A pair with all that its loss reads."""

    def under_reference(one: Trajectory) -> np.ndarray:
        return np.asarray(matching(reference, one).named(LOG_PROB), np.float32)

    return TokenPair(
        token_ids=(pair.chosen.token_ids, pair.rejected.token_ids),
        response_starts=(pair.chosen.response_start, pair.rejected.response_start),
        reference=(under_reference(pair.chosen), under_reference(pair.rejected)),
        weights=weights,
    )


def _loop(config: PreferConfig, num_steps: int) -> LoopConfig:
    """Looks spread evenly, and a checkpoint with each."""
    every = max(1, math.ceil(num_steps / config.train.num_looks))
    return LoopConfig(
        num_steps=num_steps,
        log_every=max(1, every // 4),
        evaluate_every=every,
        checkpoint_every=every,
        keep_checkpoints=1,
        profile_steps=config.train.profile_steps,
    )


def _restore(config: PreferConfig, model: LoadedModel, mesh: Mesh) -> Params:
    """What a finished run trained."""
    step = read_done(config.run_dir, NAME)["facts"]["last_step"]
    folder = stage_folder(config.run_dir, NAME) / "checkpoints"
    return restored(model, config.train.lora, folder, step=step, mesh=mesh)
