"""Contrastive cDPO from samples to evaluated methods: stages of one seed, in their folders.

RUN/base                     a small model made from nothing, where there is one
RUN/baseline/test0           the model before training
RUN/seedN/sampling           solutions of the training problems
RUN/seedN/contrast           sets, scores, reference log-probabilities
RUN/seedN/positive, negative the two models of contrastive estimation
RUN/seedN/methods/ROW        a method's training; ROW/test0 its evaluation on the first test set
RUN/seedN/critical           rollouts from every prefix; how well the scores find critical tokens
RUN/table                    table.md, table.csv, table.png, curves.png

Every stage is done once and resumes where it was cut off.

Dimension key: none.
"""

import dataclasses
import pathlib
from collections.abc import Mapping

from core_jax.loop import LoopConfig
from core_jax.run_folder import read_done, stage_folder
from reasoning_jax.align.estimate import EstimateConfig
from reasoning_jax.align.methods import Loss, Row, Start, WeightSource, row_method
from reasoning_jax.align.tuned import tuned
from reasoning_jax.align_config import PipelineConfig, PreferConfig
from reasoning_jax.config import EvaluateConfig, SftConfig, Solutions
from reasoning_jax.data.arithmetic import error_token, steps_task
from reasoning_jax.data.load import load_problems
from reasoning_jax.data.sft_examples import TrajectoryChoice, Verdicts
from reasoning_jax.data.token_values import TokenValues
from reasoning_jax.stages import (
    base,
    critical,
    estimate,
    evaluate,
    prefer,
    reference,
    rollout,
    score,
    sets,
    sft,
)
from reasoning_jax.stages.sets import TrainingText
from reasoning_jax.text.pieces import text_pieces
from reasoning_jax.weights.model_source import ModelConfig, load_text_side


def run_base(config: PipelineConfig) -> bool:
    """Makes the base model, if the run makes one."""
    if config.base is None:
        return True
    return base.run(dataclasses.replace(config.base, run_dir=_path(config, "base")))


def base_model(config: PipelineConfig) -> ModelConfig:
    """The model that everything starts from."""
    if config.base is None:
        return config.model
    folder = base.model_folder(_path(config, "base"))
    return dataclasses.replace(config.model, source=str(folder))


def sampling_config(config: PipelineConfig, seed: int) -> EvaluateConfig:
    """How a seed's training solutions are sampled."""
    return EvaluateConfig(
        run_dir=_path(config, f"seed{seed}", "sampling"),
        model=base_model(config),
        problems=config.problems,
        prompt=config.prompt,
        sampling=dataclasses.replace(config.sampling, seed=seed),
        engine=config.engine,
        grader=config.grader,
        score=config.score,
        mesh=config.mesh,
    )


def run_sets(config: PipelineConfig, seed: int) -> bool:
    """Samples, grades, and makes sets and pairs."""
    sampled = sampling_config(config, seed)
    return rollout.run(sampled) and sets.run(
        contrast_folder(config, seed),
        rollout_dir=sampled.run_dir,
        grader=config.grader,
        config=dataclasses.replace(config.sets, seed=seed),
        text=TrainingText(
            model=base_model(config), problems=config.problems, prompt=config.training_prompt
        ),
    )


def contrast_folder(config: PipelineConfig, seed: int) -> str:
    """Run folder of a seed's sets, scores and reference."""
    return _path(config, f"seed{seed}", "contrast")


def contrast_model(config: PipelineConfig, seed: int, name: str) -> SftConfig:
    """The fine-tuning of the "positive" or the "negative" model."""
    own = config.contrast
    return SftConfig(
        run_dir=_path(config, f"seed{seed}", name),
        model=base_model(config),
        optim=own.optim,
        # The number of steps comes from the epochs.
        loop=LoopConfig(
            num_steps=1, log_every=5, evaluate_every=own.look_every, checkpoint_every=50
        ),
        epochs=own.epochs,
        packing=own.packing,
        lora=own.lora,
        solutions=Solutions.TRAJECTORIES,
        problems=config.problems,
        trajectories=str(sets.file_path(contrast_folder(config, seed), f"{name}.jsonl")),
        choice=TrajectoryChoice(verdicts=Verdicts.ANY, keep_cut_off=config.sets.keep_cut_off),
        prompt=config.training_prompt or config.prompt,
        held_out=own.held_out,
        batch_size=own.batch_size,
        num_microbatches=own.num_microbatches,
        chunk=own.chunk,
        remat=own.remat,
        unroll=own.unroll,
        seed=seed,
        mesh=config.mesh,
    )


def run_contrast(config: PipelineConfig, seed: int) -> bool:
    """Trains both models and scores every token of the pairs."""
    positive, negative = (contrast_model(config, seed, name) for name in ("positive", "negative"))
    folder = contrast_folder(config, seed)
    pairs = str(sets.file_path(folder, sets.PAIRS))
    return (
        sft.run(positive)
        and sft.run(negative)
        and score.run(
            folder,
            model=base_model(config),
            positive=positive,
            negative=negative,
            config=config.scoring,
            pairs=pairs,
            mesh=config.mesh,
        )
        and _run_reference(config, seed, folder, base_model(config))
    )


def _run_reference(config: PipelineConfig, seed: int, folder: str, model: ModelConfig) -> bool:
    """Log-probabilities of the pairs under a model."""
    pairs = str(sets.file_path(contrast_folder(config, seed), sets.PAIRS))
    rows = config.scoring.rows
    return reference.run(folder, model=model, pairs=pairs, rows=rows, mesh=config.mesh)


def _method_folder(config: PipelineConfig, seed: int, name: str) -> str:
    """Run folder of a row, or of what a row needs."""
    return _path(config, f"seed{seed}", "methods", name)


def method_config(config: PipelineConfig, seed: int, row: Row) -> PreferConfig:
    """The training of a row."""
    rate, method = tuned(config.tuning, row)
    contrast = contrast_folder(config, seed)
    model, reference_folder = base_model(config), contrast
    if method.start is Start.SFT:
        start = method_config(config, seed, Row.SFT)
        model = prefer.exported(start)
        reference_folder = _method_folder(config, seed, "sft_reference")
    guide = ""
    if method.source is WeightSource.TGDPO:
        guide = _values(_method_folder(config, seed, "dpo_guide"))
    train = config.train
    return PreferConfig(
        run_dir=_method_folder(config, seed, row.value),
        model=model,
        pairs=str(sets.file_path(contrast, sets.PAIRS)),
        reference=_values(reference_folder),
        scores=_scores(contrast) if method.needs_scores else "",
        guide=guide,
        train=dataclasses.replace(
            train, optim=dataclasses.replace(train.optim, learning_rate=rate)
        ),
        method=method,
        seed=seed,
        mesh=config.mesh,
    )


def _values(folder: str) -> str:
    """Where the stage `reference` of a folder writes."""
    return str(stage_folder(folder, reference.NAME) / reference.LOG_PROBS)


def _scores(folder: str) -> str:
    """Where the stage `score` of a folder writes."""
    return str(stage_folder(folder, score.NAME) / score.SCORES)


def run_method(config: PipelineConfig, seed: int, row: Row) -> bool:
    """Trains a row and evaluates it; what it starts from is trained first."""
    if row is Row.BASELINE:
        return _run_tests(config, _path(config, "baseline"), base_model(config))
    method = row_method(row)
    assert method is not None, "only the baseline has none"
    if method.start is Start.SFT and not _prepare_sft(config, seed):
        return False
    if method.source is WeightSource.TGDPO and not _prepare_guide(config, seed):
        return False
    training = method_config(config, seed, row)
    if not prefer.run(training):
        return False
    return _run_tests(config, training.run_dir, prefer.export_policy(training))


def _prepare_sft(config: PipelineConfig, seed: int) -> bool:
    """The fine-tuned start and its log-probabilities of the pairs."""
    start = method_config(config, seed, Row.SFT)
    return prefer.run(start) and _run_reference(
        config, seed, _method_folder(config, seed, "sft_reference"), prefer.export_policy(start)
    )


def _prepare_guide(config: PipelineConfig, seed: int) -> bool:
    """The first DPO run's log-probabilities of the pairs."""
    first = method_config(config, seed, Row.DPO)
    return prefer.run(first) and _run_reference(
        config, seed, _method_folder(config, seed, "dpo_guide"), prefer.export_policy(first)
    )


def test_configs(config: PipelineConfig, run_dir: str, model: ModelConfig) -> list[EvaluateConfig]:
    """One evaluation per test set."""
    return [
        EvaluateConfig(
            run_dir=str(pathlib.Path(run_dir) / f"test{index}"),
            model=model,
            problems=problems,
            prompt=config.prompt,
            sampling=config.test_sampling,
            engine=config.engine,
            grader=config.grader,
            score=config.score,
            mesh=config.mesh,
        )
        for index, problems in enumerate(config.tests)
    ]


def _run_tests(config: PipelineConfig, run_dir: str, model: ModelConfig) -> bool:
    """Evaluates a model on every test set."""
    return all(
        rollout.run(test) and evaluate.run(test) for test in test_configs(config, run_dir, model)
    )


def results(config: PipelineConfig, seed: int, row: Row, index: int) -> Mapping[str, float]:
    """Share of each test problem's samples that a row solves."""
    folder = _path(config, "baseline")
    if row is not Row.BASELINE:
        folder = _method_folder(config, seed, row.value)
    return evaluate.per_problem(str(pathlib.Path(folder) / f"test{index}"))


def run_critical(config: PipelineConfig, seed: int) -> bool:
    """Rolls out wrong solutions from every prefix; judges the scores by what that finds."""
    if config.critical is None:
        return True
    folder = _path(config, f"seed{seed}", "critical")
    contrast = contrast_folder(config, seed)
    rejected = [pair.rejected for pair in sets.finished_pairs(contrast)]
    sampled = sampling_config(config, seed)
    prompt = config.training_prompt or config.prompt
    sampled = dataclasses.replace(sampled, prompt=prompt)
    if not critical.run(folder, sampled=sampled, trajectories=rejected, config=config.critical):
        return False
    names = tuple(f"log_score@{beta}" for beta in config.scoring.betas)
    return estimate.run(
        folder,
        sources={folder: _scores(contrast)},
        config=EstimateConfig(values=(*names, "positive")),
        first_error=_first_error(config),
    )


def _first_error(config: PipelineConfig) -> estimate.FirstError | None:
    """Finds the token of the first arithmetic error, for the task that knows it."""
    if steps_task(config.problems.task) is None:
        return None
    problems = {one.problem_id: one for one in load_problems(config.problems)}
    tokenizer, _ = load_text_side(base_model(config))

    def find(values: TokenValues) -> int | None:
        response = values.token_ids[values.response_start :]
        return error_token(problems[values.problem_id], text_pieces(tokenizer.decode, response))

    return find


def tokens_spent(config: PipelineConfig, seed: int, row: Row) -> int:
    """Tokens that training a row read, beyond sampling: its own steps and what they rest on."""
    if row is Row.BASELINE:
        return 0
    training = method_config(config, seed, row)
    facts = read_done(training.run_dir, prefer.NAME)["facts"]
    spent = facts["trained_tokens"]
    if training.method.loss is not Loss.SFT:
        spent += _facts(pathlib.Path(training.reference))["num_tokens"]
    if training.method.start is Start.SFT:
        spent += tokens_spent(config, seed, Row.SFT)
    if training.method.source is WeightSource.TGDPO:
        spent += tokens_spent(config, seed, Row.DPO)
        spent += _facts(pathlib.Path(training.guide))["num_tokens"]
    if training.method.needs_scores:
        spent += 2 * _facts(pathlib.Path(training.scores))["num_tokens"]  # two streams
        for name in ("positive", "negative"):
            folder = contrast_model(config, seed, name).run_dir
            spent += read_done(folder, sft.NAME)["facts"]["trained_tokens"]
    return spent


def _facts(path: pathlib.Path) -> Mapping[str, int]:
    """Facts of the stage that wrote a file."""
    return read_done(path.parents[2], path.parent.name)["facts"]


def _path(config: PipelineConfig, *parts: str) -> str:
    """A folder of the run."""
    return str(pathlib.Path(config.run_dir, *parts))
