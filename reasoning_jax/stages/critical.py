"""Stage: roll out wrong solutions from every prefix, find their critical tokens, replace them.

`rollouts.jsonl` keeps every prefix as it is done, which is the work itself; what is made of it in
the end stands in `reasoning_jax.stages.critical_results`.

Dimension key: P prompts, T tokens of a prompt, V vocabulary.
"""

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from core_jax.config import fingerprint
from core_jax.errors import DataError
from core_jax.mesh import make_mesh
from core_jax.nn.flash_attention import AttentionKernel
from core_jax.run_folder import run_stage, stage_folder
from reasoning_jax.align.critical import CriticalConfig, CriticalToken, critical_token
from reasoning_jax.align.prefix_rollouts import (
    RememberedVerdicts,
    Roller,
    Unit,
    draw_key,
    draw_others,
    prefix_units,
    roll_out,
)
from reasoning_jax.align.rollout_file import Rollouts, RolloutWriter, UnitKey
from reasoning_jax.config import EvaluateConfig
from reasoning_jax.data.load import load_problems
from reasoning_jax.data.prompts import stop_strings
from reasoning_jax.data.trajectories import Trajectory
from reasoning_jax.model.decoding import DecodingWeights
from reasoning_jax.sampling.config import SamplingConfig
from reasoning_jax.sampling.engine import sample
from reasoning_jax.sampling.rows import read_prompts
from reasoning_jax.sampling.weights import turner
from reasoning_jax.stages.critical_results import CRITICAL, SOLUTIONS, write_results
from reasoning_jax.stages.judge import Judge
from reasoning_jax.weights.model_source import LoadedModel, load_source

NAME = "critical"
ROLLOUTS = "rollouts.jsonl"
"""Every prefix, as it is done; the schema stands in `reasoning_jax.align.rollout_file`."""

_LOGGER = logging.getLogger(__name__)


def critical_path(run_dir: str) -> pathlib.Path:
    """The token values of a run: "success" and "critical"."""
    return stage_folder(run_dir, NAME) / CRITICAL


def solutions_path(run_dir: str) -> pathlib.Path:
    """The facts of a run's solutions."""
    return stage_folder(run_dir, NAME) / SOLUTIONS


def run(
    run_dir: str,
    *,
    sampled: EvaluateConfig,
    trajectories: Sequence[Trajectory],
    config: CriticalConfig,
) -> bool:
    """Runs the stage unless it is done.

    Args:
      run_dir: the run's folder.
      sampled: how the solutions were sampled: model, problems, prompt, stop strings and grader are
        those of the completions too; engine and mesh as well. Temperature, `top_p` and length are
        the config's own.
      trajectories: wrong solutions, for example the rejected ones of the pairs; the first
        `config.num_solutions` different ones are rolled out.
      config: how.

    Returns:
      Whether it is done now.

    Raises:
      DataError: no solution, one that is not wrong, or of another tokenizer or other problems.
    """
    solutions = choose_solutions(trajectories, config.num_solutions)
    identity = fingerprint({str(one.key): list(one.token_ids) for one in solutions})
    parts = {
        "model": sampled.model,
        "problems": sampled.problems,
        "prompt": sampled.prompt,
        "stop": {"strings": _stop(sampled)},
        "grader": sampled.grader,
        "score": sampled.score,
        "critical": config,
        "solutions": {"identity": identity, "count": len(solutions)},
    }
    return run_stage(run_dir, NAME, parts, functools.partial(_roll_out, sampled, solutions, config))


def choose_solutions(trajectories: Sequence[Trajectory], most: int) -> list[Trajectory]:
    """The first different solutions that have a token.

    Args:
      trajectories: wrong solutions.
      most: how many are wanted.

    Raises:
      DataError: there is none, or one is not graded as wrong.
    """
    chosen: dict[tuple[str, int], Trajectory] = {}
    num_empty = 0
    for one in trajectories:
        if len(chosen) == most:
            break
        if one.is_correct is not False:
            said = "right" if one.is_correct else "not graded"
            raise DataError(
                f"solution {one.key} is {said}; critical tokens are those of wrong solutions: "
                "give rejected ones"
            )
        if len(one.token_ids) == one.response_start:
            num_empty += 1
        else:
            chosen.setdefault(one.key, one)
    if num_empty:
        _LOGGER.info("%s: %d solutions without a token are left out", NAME, num_empty)
    if not chosen:
        raise DataError(
            "there is no wrong solution with a token to roll out; sample more problems, or at a "
            "higher temperature"
        )
    return list(chosen.values())


def _stop(sampled: EvaluateConfig) -> tuple[str, ...]:
    """What ends a response besides the end of sequence."""
    return sampled.sampling.stop or stop_strings(sampled.prompt.style)


def _roll_out(
    sampled: EvaluateConfig,
    solutions: Sequence[Trajectory],
    config: CriticalConfig,
    folder: pathlib.Path,
) -> Mapping[str, Any]:
    """Rolls out what is missing in the folder's file, then the replacements; writes results."""
    mesh = make_mesh(sampled.mesh)
    model = load_source(sampled.model, mesh)
    problems = {problem.problem_id: problem for problem in load_problems(sampled.problems)}
    _check_solutions(solutions, model, problems)
    weights = turner(model.config, model.params, mesh)(model.params)
    sampling = SamplingConfig(
        temperature=config.temperature,
        top_p=config.top_p,
        max_new_tokens=config.max_new_tokens,
        stop=_stop(sampled),
        num_samples=config.num_rollouts,
        seed=config.seed,
    )
    identity = fingerprint(
        {"weights": model.fingerprint, "sampling": sampling, "grader": sampled.grader}
    )
    asked = [problems[name] for name in dict.fromkeys(one.problem_id for one in solutions)]
    with (
        Judge(sampled, asked) as judge,
        RolloutWriter(folder / ROLLOUTS, identity=identity) as writer,
    ):
        verdicts = RememberedVerdicts(
            lambda answered: [strict.is_correct for strict, _ in judge.verdicts(answered)]
        )
        roller = Roller(
            sample=functools.partial(
                sample,
                model.config,
                weights,
                sampling=sampling,
                engine=sampled.engine,
                decode=model.tokenizer.decode,
                eos_ids=model.tokenizer.eos_ids,
                mesh=mesh if mesh.size > 1 else None,
            ),
            decode=model.tokenizer.decode,
            judge=verdicts,
            eos_ids=model.tokenizer.eos_ids,
            stop=sampling.stop,
            max_positions=model.config.max_positions,
            num_rollouts=config.num_rollouts,
            identity=identity,
        )
        _do([unit for one in solutions for unit in prefix_units(one)], roller, writer, NAME)
        found = [_found(one, writer.done, config, roller.eos_ids) for one in solutions]
        if config.replacement:
            units = _replacements(solutions, found, model, weights, mesh, sampled, config)
            _do(units, roller, writer, "replacement")
        rows = [
            _facts(one, token, writer.done, model)
            for one, token in zip(solutions, found, strict=True)
        ]
    return write_results(folder, rows, solutions, identity, config.num_rollouts, sampled.score)


def _check_solutions(
    solutions: Sequence[Trajectory], model: LoadedModel, problems: Mapping[str, Any]
) -> None:
    """Raises DataError for solutions of other tokens or problems."""
    for one in solutions:
        if one.tokenizer != model.tokenizer.fingerprint:
            raise DataError(
                f"the tokens of solution {one.key} are of another tokenizer than the model's; "
                "roll out with the model that sampled it"
            )
        if one.problem_id not in problems:
            raise DataError(
                f"solution {one.key} solves no problem of the {len(problems)} that are loaded; "
                "give the problems that it was sampled for"
            )


def _do(units: Sequence[Unit], roller: Roller, writer: RolloutWriter, title: str) -> None:
    """Rolls out those units that are not in the file."""
    missing = [unit for unit in units if unit.key not in writer.done]
    with tqdm(
        total=len(units), initial=len(units) - len(missing), desc=title, unit="prefix"
    ) as bar:
        for batch in roll_out(missing, roller):
            writer.write(batch)
            bar.update(len(batch))


def _curve(solution: Trajectory, done: Mapping[UnitKey, Rollouts]) -> np.ndarray:
    """Right completions of every prefix, that of no token first."""
    return np.array([done[unit.key].successes for unit in prefix_units(solution)])


def _found(
    solution: Trajectory,
    done: Mapping[UnitKey, Rollouts],
    config: CriticalConfig,
    eos_ids: Sequence[int],
) -> CriticalToken:
    """The critical token of a solution, the end of the sequence not being one."""
    curve = _curve(solution, done)
    if solution.token_ids[-1] in eos_ids:
        curve = curve[:-1]
    if len(curve) == 1:
        return CriticalToken(index=None)
    return critical_token(curve[1:], int(curve[0]), config.num_rollouts, config)


def _replacements(
    solutions: Sequence[Trajectory],
    found: Sequence[CriticalToken],
    model: LoadedModel,
    weights: DecodingWeights,
    mesh: Mesh,
    sampled: EvaluateConfig,
    config: CriticalConfig,
) -> list[Unit]:
    """One unit per solution with a critical token: other tokens drawn in its place."""
    kept = [
        Unit(solution=one, length=token.index)
        for one, token in zip(solutions, found, strict=True)
        if token.index is not None
    ]
    units = []
    engine = sampled.engine
    kernel = AttentionKernel.AUTO if mesh.size == 1 else AttentionKernel.EINSUM
    for start in range(0, len(kept), engine.prompts_per_prefill):
        group = kept[start : start + engine.prompts_per_prefill]
        longest = max(len(unit.prompt) for unit in group)
        length = -(-longest // engine.prompt_multiple) * engine.prompt_multiple
        tokens_PT = np.zeros((engine.prompts_per_prefill, length), np.int32)
        lengths_P = np.ones((engine.prompts_per_prefill,), np.int32)
        for index, unit in enumerate(group):
            tokens_PT[index, : len(unit.prompt)] = unit.prompt
            lengths_P[index] = len(unit.prompt)
        logits_VP, _ = read_prompts(
            model.config, weights, tokens_PT, lengths_P, jnp.dtype("float32"), kernel
        )
        for index, unit in enumerate(group):
            drawn = draw_others(
                logits_VP[:, index],
                jnp.int32(unit.solution.token_ids[len(unit.prompt)]),
                draw_key(config.seed, unit),
                num_draws=config.num_rollouts,
                temperature=config.temperature,
                top_p=config.top_p,
            )
            units.append(dataclasses.replace(unit, forced=tuple(np.asarray(drawn).tolist())))
    return units


def _facts(
    solution: Trajectory,
    found: CriticalToken,
    done: Mapping[UnitKey, Rollouts],
    model: LoadedModel,
) -> dict[str, Any]:
    """The row of a solution."""
    prefixes = [done[unit.key] for unit in prefix_units(solution)]
    curve = _curve(solution, done).tolist()
    index = found.index
    replaced = None if index is None else done.get((*solution.key, index, True))
    token = None if index is None else solution.token_ids[solution.response_start + index]
    return {
        "problem_id": solution.problem_id,
        "sample": solution.sample,
        "task": solution.task,
        "num_tokens": len(prefixes) - 1,
        "prompt_successes": curve[0],
        "successes": curve[1:],
        "critical": index,
        "is_fallback": found.is_fallback,
        "token": None if token is None else model.tokenizer.decode([token], keep_special=True),
        "kept_successes": None if index is None else curve[1 + index],
        "replaced_successes": None if replaced is None else replaced.successes,
        "sampled_tokens": sum(one.sampled_tokens for one in prefixes),
        "read_tokens": sum(one.read_tokens for one in prefixes),
        "replacement_tokens": 0
        if replaced is None
        else replaced.sampled_tokens + replaced.read_tokens,
    }
