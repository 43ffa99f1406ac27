"""Stage: sample solutions of every problem and grade them, resumably.

Dimension key: none.
"""

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from tqdm import tqdm

from core_jax.config import fingerprint
from core_jax.mesh import make_mesh
from core_jax.run_folder import run_stage, stage_folder
from core_jax.sharding import match_rules
from reasoning_jax.answers.grader import Grader
from reasoning_jax.answers.verdict import GraderKind, OfficialTask, Verdict
from reasoning_jax.config import EvaluateConfig
from reasoning_jax.data.load import load_problems
from reasoning_jax.data.problems import Problem
from reasoning_jax.data.procedural import is_procedural
from reasoning_jax.data.prompts import Prompt, render_prompt, stop_strings
from reasoning_jax.data.trajectories import Trajectory, TrajectoryWriter
from reasoning_jax.data.verifiers import Verifiers
from reasoning_jax.model.decoding import for_decoding
from reasoning_jax.model.shardings import DECODING_RULES
from reasoning_jax.sampling.engine import Completion, SampleRequest, sample
from reasoning_jax.text.joint import encode_prompt
from reasoning_jax.weights.model_source import LoadedModel, load_source

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
    }
    return run_stage(config.run_dir, NAME, parts, functools.partial(_roll_out, config))


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
        weights = jax.jit(functools.partial(for_decoding, model.config))(model.params)
        weights = jax.device_put(weights, match_rules(DECODING_RULES, weights, mesh))
        identity = fingerprint({"weights": model.fingerprint, "sampling": sampling})
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
                writer.write(judge.grade(batch, prompts, model, identity))
                batch.clear()
            rate = num_tokens / max(bar.format_dict["elapsed"], 1e-9)
            bar.set_postfix_str(f"{rate:.0f} tokens/s", refresh=False)
            bar.update()
        writer.write(judge.grade(batch, prompts, model, identity))
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


class Judge:
    """Both graders, and the verifiers of procedural tasks; a context manager.

    Args:
      config: the graders' config.
      problems: whose solutions are judged.
    """

    def __init__(self, config: EvaluateConfig, problems: Sequence[Problem]):
        task = OfficialTask.MATH if config.problems.task.startswith("math") else OfficialTask.GSM8K
        self._problems = {problem.problem_id: problem for problem in problems}
        self._strict = Grader(config.grader)
        self._official = Grader(
            dataclasses.replace(config.grader, kind=GraderKind.OFFICIAL, task=task)
        )
        self._verifiers = Verifiers(
            num_workers=config.grader.num_workers,
            time_limit_s=config.grader.time_limit_s,
            memory_mb=config.grader.memory_mb,
        )
        self._seed = config.sampling.seed

    def __enter__(self) -> "Judge":
        self._strict.__enter__()
        self._official.__enter__()
        self._verifiers.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._strict.__exit__(*error)
        self._official.__exit__(*error)
        self._verifiers.__exit__(*error)

    def grade(
        self,
        completions: Sequence[Completion],
        prompts: Mapping[str, Prompt],
        model: LoadedModel,
        identity: str,
    ) -> list[Trajectory]:
        """Turns completions into trajectories with their verdicts."""
        pairs = [(self._problems[one.request.problem_id].answer, one.text) for one in completions]
        strict, official = self._strict.grade(pairs), self._official.grade(pairs)
        strict = self._verified(completions, strict)
        trajectories = []
        for one, verdict, lenient in zip(completions, strict, official, strict=True):
            problem = self._problems[one.request.problem_id]
            trajectories.append(
                Trajectory(
                    problem_id=problem.problem_id,
                    sample=one.request.sample,
                    task=problem.task,
                    seed=self._seed,
                    prompt=prompts[problem.problem_id].text,
                    response=one.text,
                    token_ids=one.request.prompt + one.token_ids,
                    response_start=len(one.request.prompt),
                    finish=one.finish,
                    answer=verdict.answer,
                    is_correct=verdict.is_correct,
                    official_correct=lenient.is_correct,
                    model=identity,
                    tokenizer=model.tokenizer.fingerprint,
                )
            )
        return trajectories

    def _verified(
        self, completions: Sequence[Completion], verdicts: Sequence[Verdict]
    ) -> list[Verdict]:
        """Asks the tasks' own verifiers too, whose strings are literal: either's yes is right."""
        found = list(verdicts)
        asked = [
            index
            for index, one in enumerate(completions)
            if not found[index].is_correct and is_procedural(self._problems[one.request.problem_id])
        ]
        pairs = [
            (self._problems[completions[index].request.problem_id], completions[index].text)
            for index in asked
        ]
        for index, verdict in zip(asked, self._verifiers.verify(pairs), strict=True):
            found[index] = verdict
        return found
