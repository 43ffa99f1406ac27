"""Stage: sample solutions of every problem and grade them, resumably.

Dimension key: none.
"""

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from core_jax.config import fingerprint
from core_jax.errors import DataError
from core_jax.mesh import make_mesh
from core_jax.run_folder import run_stage, stage_folder
from reasoning_jax.config import EvaluateConfig
from reasoning_jax.data.load import load_problems
from reasoning_jax.data.problems import Problem
from reasoning_jax.data.prompts import Prompt, render_prompt, stop_strings
from reasoning_jax.data.trajectories import Trajectory, TrajectoryWriter
from reasoning_jax.data.trajectory_import import import_trajectories
from reasoning_jax.sampling.engine import Completion, SampleRequest, sample
from reasoning_jax.sampling.weights import turner
from reasoning_jax.stages.judge import Judge
from reasoning_jax.text.joint import encode_prompt
from reasoning_jax.weights.model_source import LoadedModel, load_source, load_text_side

NAME = "rollout"
TRAJECTORIES = "trajectories.jsonl"
"""What the stage writes; the schema stands in `reasoning_jax.data.trajectories`."""

_GRADED_AT_ONCE = 64
_LOGGER = logging.getLogger(__name__)


def trajectories_path(run_dir: str) -> pathlib.Path:
    """The file of a run's trajectories."""
    return stage_folder(run_dir, NAME) / TRAJECTORIES


def run(config: EvaluateConfig) -> bool:
    """Runs the stage unless it is done. Returns whether it is done now."""
    parts = {
        "model": config.model,
        "problems": config.problems,
        "prompt": config.prompt,
        "sampling": config.sampling,
        "grader": config.grader,
        "imported": config.imported,
        "columns": config.columns,
    }
    work = _import if config.imported else _roll_out
    return run_stage(config.run_dir, NAME, parts, functools.partial(work, config))


def _roll_out(config: EvaluateConfig, folder: pathlib.Path) -> Mapping[str, Any]:
    """Samples what is missing in the folder's file."""
    problems = load_problems(config.problems)
    mesh = make_mesh(config.mesh)
    model = load_source(config.model, mesh)
    prompts = {
        one.problem_id: render_prompt(one, config.prompt, model.template) for one in problems
    }
    sampling = dataclasses.replace(
        config.sampling, stop=config.sampling.stop or stop_strings(config.prompt.style)
    )
    writer_path = folder / TRAJECTORIES
    with (
        TrajectoryWriter(writer_path) as writer,
        Judge(config, problems) as judge,
        tqdm(total=len(problems) * sampling.num_samples, desc=NAME, unit="sample") as bar,
    ):
        bar.update(len(writer.done))
        requests = _requests(problems, prompts, model, sampling.num_samples, writer.done)
        weights = turner(model.config, model.params, mesh)(model.params)
        model = dataclasses.replace(model, params={})  # room: decoding reads a copy
        identity = fingerprint({"weights": model.fingerprint, "sampling": sampling})
        graded = functools.partial(
            _trajectories, judge, prompts=prompts, config=config, model=model, identity=identity
        )
        batch: list[Completion] = []
        num_tokens = 0
        for completion in sample(
            model.config,
            weights,
            requests,
            sampling=sampling,
            engine=config.engine,
            decode=model.tokenizer.decode,
            eos_ids=model.tokenizer.eos_ids,
            mesh=mesh if mesh.size > 1 else None,
        ):
            batch.append(completion)
            num_tokens += len(completion.token_ids)
            if len(batch) == _GRADED_AT_ONCE:
                writer.write(graded(batch))
                batch.clear()
            rate = num_tokens / max(bar.format_dict["elapsed"], 1e-9)
            bar.set_postfix_str(f"{rate:.0f} tokens/s", refresh=False)
            bar.update()
        writer.write(graded(batch))
        num_done = len(writer.done)
    return {"num_problems": len(problems), "num_samples": num_done, "task": config.problems.task}


def _requests(
    problems: Sequence[Problem],
    prompts: Mapping[str, Prompt],
    model: LoadedModel,
    num_samples: int,
    done: set[tuple[str, int]],
) -> list[SampleRequest]:
    """What is still to be sampled, the samples of a problem together."""
    requests = []
    for problem in problems:
        prompt = prompts[problem.problem_id]
        missing = [n for n in range(num_samples) if (problem.problem_id, n) not in done]
        if not missing:
            continue
        ids = tuple(encode_prompt(model.tokenizer, prompt.text, special=prompt.special))
        requests += [
            SampleRequest(problem_id=problem.problem_id, sample=number, prompt=ids)
            for number in missing
        ]
    return requests


def _trajectories(
    judge: Judge,
    completions: Sequence[Completion],
    prompts: Mapping[str, Prompt],
    config: EvaluateConfig,
    model: LoadedModel,
    identity: str,
) -> list[Trajectory]:
    """Graded trajectories of completions."""
    judged = judge.verdicts([(one.request.problem_id, one.text) for one in completions])
    return [
        Trajectory(
            problem_id=one.request.problem_id,
            sample=one.request.sample,
            task=config.problems.task,
            seed=config.sampling.seed,
            prompt=prompts[one.request.problem_id].text,
            response=one.text,
            token_ids=one.request.prompt + one.token_ids,
            response_start=len(one.request.prompt),
            finish=one.finish,
            answer=strict.answer,
            is_correct=strict.is_correct,
            official_correct=official.is_correct,
            model=identity,
            tokenizer=model.tokenizer.fingerprint,
        )
        for one, (strict, official) in zip(completions, judged, strict=True)
    ]


def _import(config: EvaluateConfig, folder: pathlib.Path) -> Mapping[str, Any]:
    """Grades another engine's samples of the problems."""
    problems = {problem.problem_id: problem for problem in load_problems(config.problems)}
    tokenizer, _ = load_text_side(config.model)
    found = import_trajectories(config.imported, config.columns, tokenizer)
    _LOGGER.info("'%s': %s", config.imported, found.summary())
    unknown = sorted({one.problem_id for one in found.trajectories} - problems.keys())
    if unknown:
        raise DataError(
            f"'{config.imported}' answers {len(unknown)} problems that '{config.problems.task}' "
            f"({config.problems.split}) does not have, the first is '{unknown[0]}'; its ids must "
            f"be those of the problems, such as '{next(iter(problems))}'"
        )
    (folder / TRAJECTORIES).unlink(missing_ok=True)  # of an import that was cut off
    with (
        Judge(config, list(problems.values())) as judge,
        TrajectoryWriter(folder / TRAJECTORIES) as writer,
        tqdm(total=len(found.trajectories), desc="grading", unit="sample") as bar,
    ):
        for start in range(0, len(found.trajectories), _GRADED_AT_ONCE):
            batch = found.trajectories[start : start + _GRADED_AT_ONCE]
            judged = judge.verdicts([(one.problem_id, one.response) for one in batch])
            writer.write(
                [
                    dataclasses.replace(
                        one,
                        answer=strict.answer,
                        is_correct=strict.is_correct,
                        official_correct=official.is_correct,
                        task=config.problems.task,
                    )
                    for one, (strict, official) in zip(batch, judged, strict=True)
                ]
            )
            bar.update(len(batch))
    return {
        "num_problems": len({one.problem_id for one in found.trajectories}),
        "num_samples": len(found.trajectories),
        "rejected": dict(found.rejected),
        "num_cut": found.num_cut,
        "task": config.problems.task,
    }
