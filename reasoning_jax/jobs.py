"""The jobs of the reasoning track.

Dimension key: none.
"""

import dataclasses
import json
import pathlib

import jax

from core_jax.config import from_dict
from core_jax.errors import DataError
from core_jax.jobs import Job
from core_jax.mesh import make_mesh
from core_jax.processes import is_first
from reasoning_jax.comparison import compare_runs
from reasoning_jax.config import (
    CompareConfig,
    EvaluateConfig,
    ExportConfig,
    LeakageJobConfig,
    SftConfig,
)
from reasoning_jax.contrastive_jobs import CONTRASTIVE_JOBS, PROBLEM_FLAGS
from reasoning_jax.data.leakage import find_leakage, leakage_text
from reasoning_jax.data.load import ProblemsConfig, load_problems
from reasoning_jax.model.lora import merge
from reasoning_jax.presets import EVALUATE_PRESETS, SFT_PRESETS
from reasoning_jax.programs import sft_programs
from reasoning_jax.sampling_programs import evaluate_programs
from reasoning_jax.stages import evaluate, rollout, sft
from reasoning_jax.weights.hf_export import export_model
from reasoning_jax.weights.peft import Adapter, export_adapter


def run_evaluate(config: EvaluateConfig) -> bool:
    """Samples, grades, sums up, and prints the table. Returns whether all is done."""
    if not (rollout.run(config) and evaluate.run(config)):
        return False
    folder = evaluate.results_folder(config.run_dir)
    print(f"\n{(folder / 'results.md').read_text(encoding='utf-8')}")
    print(f"Every solution: {rollout.trajectories_path(config.run_dir)}")
    print(f"Picture: {folder / 'accuracy.png'}")
    return True


def run_rollout(config: EvaluateConfig) -> bool:
    """Samples and grades, without a summary. Returns whether all is done."""
    done = rollout.run(config)
    if done:
        print(f"Solutions: {rollout.trajectories_path(config.run_dir)}")
    return done


def run_sft(config: SftConfig) -> bool:
    """Fine-tunes; the adapters or the model are written for others by `reasoning.export`.

    Returns whether it is done.
    """
    done = sft.run(config)
    if done and is_first():
        print(f"Trained: {config.run_dir}; write it with reasoning.export --run-dir")
    return done


def run_compare(config: CompareConfig) -> None:
    """Compares two evaluations problem by problem."""
    result = compare_runs(
        evaluate.per_problem(config.first),
        evaluate.per_problem(config.second),
        seed=config.score.seed,
        names=(config.first, config.second),
        num_samples=config.score.bootstrap_samples,
        confidence=config.score.confidence,
        method=config.score.interval,
    )
    folder = pathlib.Path(config.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "comparison.md").write_text(result.table() + "\n", encoding="utf-8")
    fields = json.dumps(dataclasses.asdict(result), indent=2)
    (folder / "comparison.json").write_text(fields + "\n", encoding="utf-8")
    print(result.table())


def run_export(config: ExportConfig) -> None:
    """Writes a fine-tuned model, or its adapters, in the formats of others."""
    path = pathlib.Path(config.run_dir) / "config.json"
    if not path.is_file():
        raise DataError(f"'{config.run_dir}' is no run: it has no config.json")
    trained = from_dict(SftConfig, json.loads(path.read_text(encoding="utf-8")))
    mesh = make_mesh(trained.mesh)
    model, adapters = sft.load_trained(dataclasses.replace(trained, run_dir=config.run_dir), mesh)
    if adapters is not None and not config.merge:
        adapter = Adapter(config=trained.lora, params=adapters)
        export_adapter(config.folder, model.config, adapter)
        print(f"Adapter: {config.folder}")
        return
    params = model.params
    if adapters is not None:
        params = merge(params, adapters, trained.lora.scale)
    params = jax.tree.map(lambda leaf: leaf.astype(config.dtype.dtype), params)
    source = pathlib.Path(trained.model.source)
    export_model(
        config.folder, model.config, params, source_folder=source if source.is_dir() else None
    )
    print(f"Model: {config.folder}")


def run_leakage(config: LeakageJobConfig) -> None:
    """Looks for test questions among the training questions."""
    train = ProblemsConfig(task=config.train_task, split="train", path=config.train_path)
    test = ProblemsConfig(task=config.test_task, split="test", path=config.test_path)
    report = find_leakage(load_problems(train), load_problems(test), config.overlap)
    folder = pathlib.Path(config.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    text = leakage_text(report)
    (folder / "leakage.txt").write_text(text + "\n", encoding="utf-8")
    print(text)


def _leakage_defaults() -> LeakageJobConfig:
    """GSM8K's test questions among its training questions; seconds."""
    return LeakageJobConfig()


def _compare_defaults() -> CompareConfig:
    """Two runs of reasoning.evaluate over the same problems; a second."""
    return CompareConfig()


def _export_defaults() -> ExportConfig:
    """Adapters in PEFT's format, or a whole model as safetensors; seconds."""
    return ExportConfig()


JOBS: dict[str, Job] = {
    "reasoning.evaluate": Job(
        run_evaluate,
        EVALUATE_PRESETS,
        "Sample solutions, grade them, report accuracy, pass@k, majority@k.",
        may_change=("score", "engine", "mesh"),
        programs=evaluate_programs,
        short_flags=PROBLEM_FLAGS,
    ),
    "reasoning.rollout": Job(
        run_rollout,
        EVALUATE_PRESETS,
        "Sample and grade alone.",
        may_change=("engine", "mesh"),
        programs=evaluate_programs,
        short_flags=PROBLEM_FLAGS,
    ),
    "reasoning.sft": Job(
        run_sft,
        SFT_PRESETS,
        "Fine-tune on solutions: all parameters, or LoRA adapters.",
        may_change=("mesh",),
        programs=sft_programs,
        short_flags=PROBLEM_FLAGS,
    ),
    "reasoning.compare": Job(
        run_compare,
        {"default": _compare_defaults},
        "Two evaluations pair by pair (--first RUN --second RUN).",
        owns_run=False,
    ),
    "reasoning.leakage": Job(
        run_leakage,
        {"default": _leakage_defaults},
        "Test questions among training questions, by shingles.",
        owns_run=False,
    ),
    "reasoning.export": Job(
        run_export,
        {"default": _export_defaults},
        "A fine-tuned model as safetensors, or its adapters in PEFT's format.",
        owns_run=False,
    ),
    **CONTRASTIVE_JOBS,
}
"""Every reasoning job by its name on the command line."""
