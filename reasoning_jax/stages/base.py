"""Stage: make a small base model from nothing, good at about half of the problems.

A model that solves everything has nothing to prefer, one that solves nothing has nothing to prefer
it to. So training stops by what is sampled: at the first measurement whose accuracy is high enough.

Dimension key: none.
"""

import dataclasses
import functools
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from core_jax.arrays import Params
from core_jax.config import fingerprint
from core_jax.data.pipeline import host_share, make_pipeline
from core_jax.errors import ConfigError, DataError
from core_jax.loop import Evaluate, FitResult, fit
from core_jax.mesh import make_mesh
from core_jax.optim import make_optimizer
from core_jax.run_folder import run_stage
from core_jax.train_state import TrainState, init_state
from core_jax.train_step import make_train_step
from reasoning_jax.answers.grader import Grader
from reasoning_jax.base_config import BaseConfig
from reasoning_jax.data.load import load_problems
from reasoning_jax.data.packing import PackedRows, to_packed_batch
from reasoning_jax.data.problems import Problem
from reasoning_jax.data.prompts import render_prompt, stop_strings
from reasoning_jax.data.sft_examples import examples_from_problems
from reasoning_jax.model import decoder_lm
from reasoning_jax.model.shardings import RULES
from reasoning_jax.objectives import sft_objective
from reasoning_jax.sampling.engine import SampleRequest, sample
from reasoning_jax.sampling.weights import turner
from reasoning_jax.text.joint import encode_pair, encode_prompt
from reasoning_jax.text.sentencepiece_tokenizer import (
    SentencePieceTokenizer,
    least_vocabulary,
    train_sentencepiece,
)
from reasoning_jax.weights.hf_export import export_model

NAME = "base"
ACCURACY = "accuracy"
"""What is measured: the share of sampled solutions that are correct."""

_TEXTS_OF_THE_TOKENIZER = 2000
_LOGGER = logging.getLogger(__name__)


def run(config: BaseConfig) -> bool:
    """Runs the stage unless it is done. Returns whether it is done now."""
    parts = _parts(config) | {"loop": config.loop}
    return run_stage(config.run_dir, NAME, parts, functools.partial(_train, config))


def model_folder(run_dir: str) -> pathlib.Path:
    """The folder of a finished run's model."""
    return pathlib.Path(run_dir) / "model"


def _train(config: BaseConfig, folder: pathlib.Path) -> Mapping[str, Any] | None:
    """Wires data, model, objective and optimizer; trains from measurement to measurement."""
    mesh = make_mesh(config.mesh)
    learnt, measured = _problems(config)
    tokenizer = _tokenizer(config, learnt, folder / "text")
    rows = _rows(config, learnt, tokenizer)
    optimizer = make_optimizer(config.optim, config.loop.num_steps)
    init_key, loop_key = jax.random.split(jax.random.key(config.seed))
    state, shardings = init_state(
        functools.partial(decoder_lm.init_params, config.model),
        optimizer,
        mesh=mesh,
        rules=RULES,
        key=init_key,
    )
    objective = functools.partial(
        sft_objective,
        config=config.model,
        chunk=min(config.chunk, config.packing.row_length),
        mesh=mesh if mesh.size > 1 else None,
    )
    train_step = make_train_step(objective, optimizer, mesh=mesh, state_shardings=shardings)
    evaluate = _measurement(config, measured, tokenizer, mesh)
    every = config.loop.evaluate_every
    for stop in range(every, config.loop.num_steps + 1, every):
        # It goes on where it stopped, as a run that was cut off does.
        result = fit(
            state=state,
            train_step=train_step,
            pipeline=make_pipeline(
                rows,
                batch_size=config.batch_size,
                seed=config.seed,
                transform=to_packed_batch,
                share=host_share(mesh),
            ),
            key=loop_key,
            folder=folder,
            config=dataclasses.replace(config.loop, num_steps=stop, evaluate_every=0),
            fingerprint=fingerprint(_parts(config) | {"tokenizer": tokenizer.fingerprint}),
            evaluate=evaluate,
            tokens_per_batch=config.batch_size * config.packing.row_length,
        )
        state = result.state
        if result.preempted:
            return None
        if result.step > stop:
            continue  # a run that was cut off had come further
        accuracy = _accuracy(result, evaluate)
        _LOGGER.info("step %d: sampling accuracy %.3f", stop, accuracy)
        if accuracy >= config.lowest_accuracy:
            _check_overshoot(config, stop, accuracy)
            _export(config, state.params, folder)
            facts = {"steps": stop, ACCURACY: accuracy, "num_params": config.model.num_params}
            return facts | dataclasses.asdict(rows.report)
    raise DataError(
        f"after {config.loop.num_steps} steps the sampling accuracy is still below "
        f"{config.lowest_accuracy:g}; train longer (loop.num_steps), or take easier problems"
    )


def _parts(config: BaseConfig) -> dict[str, Any]:
    """What a checkpoint depends on: all but the folder, the devices and how long to train."""
    ignored = ("run_dir", "mesh", "loop", "engine")
    names = [field.name for field in dataclasses.fields(config) if field.name not in ignored]
    return {name: getattr(config, name) for name in names}


def _accuracy(result: FitResult, evaluate: Evaluate) -> float:
    """The accuracy at the end of a run; measured anew where its last row has none."""
    last = result.history[-1] if result.history else {}
    if last.get("step") == result.step and last.get(ACCURACY) is not None:
        return last[ACCURACY]
    return evaluate(result.state)[ACCURACY]


def _check_overshoot(config: BaseConfig, step: int, accuracy: float) -> None:
    """Raises DataError for a model that became too good between two measurements."""
    if accuracy > config.highest_accuracy:
        raise DataError(
            f"at step {step} the sampling accuracy is {accuracy:.3f}, above highest_accuracy "
            f"{config.highest_accuracy:g}; measure more often (loop.evaluate_every), lower "
            "optim.learning_rate, or take harder problems"
        )


def _problems(config: BaseConfig) -> tuple[list[Problem], list[Problem]]:
    """Problems to learn from, and those kept back."""
    found = load_problems(config.problems)
    written = [one for one in found if (one.solution or "").strip()]
    if len(written) <= config.measured:
        raise DataError(
            f"'{config.problems.task}' gave {len(written)} problems with a written solution, and "
            f"{config.measured} are kept back (measured); give more"
        )
    return written[: -config.measured], written[-config.measured :]


def _pair(config: BaseConfig, problem: Problem) -> tuple[str, str]:
    """Prompt and response of a problem; after "Answer:" a model goes on with a space."""
    return render_prompt(problem, config.prompt, None).text, f" {problem.solution}"


def _tokenizer(
    config: BaseConfig, problems: Sequence[Problem], folder: pathlib.Path
) -> SentencePieceTokenizer:
    """The tokenizer of the first problems' texts; its files as an exported model carries them."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = ["".join(_pair(config, one)) for one in problems[:_TEXTS_OF_THE_TOKENIZER]]
    needed = least_vocabulary(texts, config.pieces)
    if needed > config.model.vocab_size:
        raise ConfigError(
            f"model.vocab_size is {config.model.vocab_size}; a token per character of the problems "
            f"and per piece needs {needed}"
        )
    tokenizer = train_sentencepiece(
        texts, folder / "tokenizer.model", vocab_size=needed, pieces=config.pieces
    )
    ids = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_ids[0],
        "pad_token_id": tokenizer.pad_id,
    }
    (folder / "config.json").write_text(json.dumps(ids) + "\n", encoding="utf-8")
    return tokenizer


def _rows(
    config: BaseConfig, problems: Sequence[Problem], tokenizer: SentencePieceTokenizer
) -> PackedRows:
    """Training rows."""
    pairs = {one.problem_id: _pair(config, one) for one in problems}
    found = examples_from_problems(
        problems,
        prompt_of=lambda one: pairs[one.problem_id][0],
        response_of=lambda one: pairs[one.problem_id][1],
        encode=functools.partial(encode_pair, tokenizer),
    )
    rows = PackedRows(found.examples, config.packing, pad_id=tokenizer.pad_id)
    _LOGGER.info(
        "%d rows of %d tokens, %.0f%% filled",
        rows.report.num_rows,
        config.packing.row_length,
        100 * rows.report.efficiency,
    )
    return rows


def _measurement(
    config: BaseConfig, problems: Sequence[Problem], tokenizer: SentencePieceTokenizer, mesh: Mesh
) -> Evaluate:
    """The sampling accuracy on the problems kept back: the same draws at every step."""
    answers = {one.problem_id: one.answer for one in problems}
    requests = [
        SampleRequest(
            problem_id=one.problem_id,
            sample=number,
            prompt=tuple(encode_prompt(tokenizer, _pair(config, one)[0])),
        )
        for one in problems
        for number in range(config.sampling.num_samples)
    ]
    stop = config.sampling.stop or stop_strings(config.prompt.style)
    sampling = dataclasses.replace(config.sampling, stop=stop)
    init = functools.partial(decoder_lm.init_params, config.model, key=jax.random.key(0))
    turn = turner(config.model, jax.eval_shape(init), mesh)

    def measure(state: TrainState) -> dict[str, float]:
        completions = sample(
            config.model,
            turn(state.params),
            requests,
            sampling=sampling,
            engine=config.engine,
            decode=tokenizer.decode,
            eos_ids=tokenizer.eos_ids,
            mesh=mesh if mesh.size > 1 else None,
        )
        pairs = [(answers[one.request.problem_id], one.text) for one in completions]
        with Grader(config.grader) as grader:
            verdicts = grader.grade(pairs)
        return {ACCURACY: sum(one.is_correct for one in verdicts) / len(verdicts)}

    return measure


def _export(config: BaseConfig, params: Params, folder: pathlib.Path) -> None:
    """Writes the model's folder, whole or not at all."""
    scratch, target = folder / "model.part", model_folder(config.run_dir)
    for old in (scratch, target):  # of a run that was cut off
        shutil.rmtree(old, ignore_errors=True)
    export_model(scratch, config.model, params, source_folder=folder / "text")
    os.replace(scratch, target)
