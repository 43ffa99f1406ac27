"""The jobs of contrastive cDPO on the command line.

Dimension key: none.
"""

import dataclasses

from core_jax.jobs import Job
from core_jax.optim import OptimConfig, Schedule
from core_jax.processes import is_first, several
from reasoning_jax.align.methods import MethodConfig, WeightSource
from reasoning_jax.align.pair_rows import PairRowsConfig
from reasoning_jax.align_config import (
    PipelineConfig,
    PreferConfig,
    TemperatureJobConfig,
    TrainConfig,
)
from reasoning_jax.align_presets import ALL_MAPS
from reasoning_jax.base_config import BaseConfig
from reasoning_jax.config import EvaluateConfig
from reasoning_jax.contrastive import run_pipeline, run_table
from reasoning_jax.data.load import ProblemsConfig
from reasoning_jax.pod_presets import PIPELINE_PRESETS
from reasoning_jax.programs import pipeline_programs, prefer_programs
from reasoning_jax.sampling.config import SamplingConfig
from reasoning_jax.stages import base, prefer, temperature
from reasoning_jax.stages.view import ViewConfig, run_view
from reasoning_jax.weights.model_source import PACKAGED, ModelConfig


def run_temperature(config: TemperatureJobConfig) -> bool:
    """Looks for the sampling temperature, prints what was tried. Returns whether it is found."""
    sampled = EvaluateConfig(
        run_dir=config.run_dir,
        model=config.model,
        problems=config.problems,
        prompt=config.prompt,
        sampling=config.sampling,
        engine=config.engine,
        grader=config.grader,
        mesh=config.mesh,
    )
    done = temperature.run(sampled, config.search)
    if done:
        print(f"Temperature: {temperature.found_temperature(config.run_dir):g}")
    return done


def table(config: PipelineConfig) -> bool:
    """The table of methods, without critical tokens and page. Returns whether it is done."""
    return run_table(config) or config.plan


def run_prefer(config: PreferConfig) -> bool:
    """Trains by one method, and writes the model for others. Returns whether all is done.

    Several processes only train: the same command in one process then writes the model.
    """
    if not prefer.run(config):
        return False
    if several():
        if is_first():
            print(
                f"Trained: {config.run_dir}; python -m launch.local reasoning.prefer --run-dir "
                f"{config.run_dir} writes the model for others, in one process"
            )
        return True
    written = prefer.export_policy(config)
    print(f"Trained: {written.adapter or written.source}")
    return True


def run_base(config: BaseConfig) -> bool:
    """Makes a small model from nothing. Returns whether it is done."""
    done = base.run(config)
    if done:
        print(f"Model: {base.model_folder(config.run_dir)}")
    return done


def view(config: ViewConfig) -> None:
    """Writes the page of tokens."""
    print(f"Token by token: {run_view(config)}")


def _prefer_smollm2() -> PreferConfig:
    """Contrastive cDPO on the files of the pipeline's run runs/cdpo_smollm2."""
    folder = "runs/cdpo_smollm2/seed0/contrast/stages"
    return PreferConfig(
        run_dir="runs/cdpo_prefer",
        model=ModelConfig(source=PACKAGED),
        pairs=f"{folder}/sets/pairs.jsonl",
        reference=f"{folder}/reference/reference.jsonl",
        scores=f"{folder}/score/scores.jsonl",
        train=TrainConfig(
            optim=OptimConfig(learning_rate=4e-5, schedule=Schedule.LINEAR, clip_norm=1.0),
            rows=PairRowsConfig(row_length=512),
            lora=ALL_MAPS,
        ),
        method=MethodConfig(source=WeightSource.CONTRAST),
    )


def _temperature_smollm2() -> TemperatureJobConfig:
    """SmolLM2-135M-Instruct on products: the temperature at which 10 of 64 answers are wrong."""
    return TemperatureJobConfig(
        run_dir="runs/temperature",
        model=ModelConfig(source=PACKAGED),
        problems=ProblemsConfig(task="products", split="train"),
        sampling=SamplingConfig(top_p=0.95, max_new_tokens=96),
    )


def _base_of(preset: str) -> BaseConfig:
    """The small model of a preset of reasoning.pipeline."""
    config = PIPELINE_PRESETS[preset]().base
    assert config is not None, "the presets named below make their model"
    return dataclasses.replace(config, run_dir=f"runs/base_{preset}")


def _base_tiny() -> BaseConfig:
    """The model of reasoning.pipeline --preset tiny, by itself."""
    return _base_of("tiny")


def _base_demo() -> BaseConfig:
    """The model of reasoning.pipeline --preset demo, by itself."""
    return _base_of("demo")


def _view_defaults() -> ViewConfig:
    """The page of a seed of a pipeline's run: reasoning.view runs/cdpo_tiny/seed0."""
    return ViewConfig()


PROBLEM_FLAGS = {"--task": "--problems.task", "--limit": "--problems.limit"}
"""Short names of the flags that choose problems."""

_MAY_CHANGE = ("engine", "mesh", "rows", "seeds", "critical", "view_limit", "score")

CONTRASTIVE_JOBS: dict[str, Job] = {
    "reasoning.pipeline": Job(
        run_pipeline,
        PIPELINE_PRESETS,
        "Contrastive cDPO and its rivals: samples, scores, table, critical tokens, page.",
        may_change=_MAY_CHANGE,
        short_flags=PROBLEM_FLAGS,
        preview="plan",
        programs=pipeline_programs,
    ),
    "reasoning.table": Job(
        table,
        PIPELINE_PRESETS,
        "The table of preference methods alone.",
        may_change=_MAY_CHANGE,
        short_flags=PROBLEM_FLAGS,
        preview="plan",
        programs=pipeline_programs,
    ),
    "reasoning.base": Job(
        run_base,
        {"demo": _base_demo, "tiny": _base_tiny},
        "Make a small model from nothing on written solutions.",
    ),
    "reasoning.prefer": Job(
        run_prefer,
        {"smollm2": _prefer_smollm2},
        "Train on pairs by one preference method.",
        programs=prefer_programs,
        may_change=("mesh",),
    ),
    "reasoning.temperature": Job(
        run_temperature,
        {"smollm2": _temperature_smollm2},
        "Find the temperature that gives a wanted number of wrong answers.",
    ),
    "reasoning.view": Job(
        view,
        {"default": _view_defaults},
        "A page that shows where solutions went wrong (reasoning.view RUN/seed0).",
        owns_run=False,
    ),
}
"""Every job of contrastive cDPO by its name on the command line."""
