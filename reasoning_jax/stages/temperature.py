"""Stage: which sampling temperature gives a wanted number of wrong answers.

Every temperature has a run folder of its own, `stages/temperature/tries/TEMPERATURE`, so that a
search that is cut off goes on where it was.

Dimension key: P problems.
"""

import collections
import dataclasses
import functools
import json
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from core_jax.errors import ConfigError
from core_jax.run_folder import read_done, run_stage
from reasoning_jax.align.temperature import (
    Outcome,
    TemperatureConfig,
    TemperatureSearch,
    search_temperature,
)
from reasoning_jax.config import EvaluateConfig
from reasoning_jax.data.trajectories import Trajectory, read_trajectories
from reasoning_jax.stages import rollout

NAME = "temperature"

_LOGGER = logging.getLogger(__name__)

_SENTENCES = {
    Outcome.REACHED: "gives what is wanted",
    Outcome.TOO_FEW_WRONG: "is the nearest: even the highest gives too few wrong answers; raise "
    "the highest (high), or take harder problems",
    Outcome.TOO_MANY_WRONG: "is the nearest: even the lowest gives too many wrong answers; lower "
    "the lowest (low), or take easier problems",
    Outcome.OUT_OF_TRIES: "is the nearest of those tried; raise max_tries or tolerance, or solve "
    "more problems at each (num_problems, num_samples)",
}


def run(config: EvaluateConfig, search: TemperatureConfig) -> bool:
    """Runs the stage unless it is done.

    Args:
      config: how solutions are sampled and graded, but for the temperature and how many; the
        results lie in its run folder.
      search: which temperature is wanted.

    Returns:
      Whether it is done now.
    """
    if config.imported:
        raise ConfigError(
            f"imported is '{config.imported}'; a temperature is looked for by sampling: leave it "
            "empty"
        )
    first = _at(config, search, search.low, config.run_dir)
    parts = {
        "search": search,
        "model": first.model,
        "problems": first.problems,
        "prompt": first.prompt,
        "sampling": first.sampling,
        "grader": first.grader,
    }
    return run_stage(config.run_dir, NAME, parts, functools.partial(_search, config, search))


def found_temperature(run_dir: str) -> float:
    """The temperature of a finished search, the nearest one where none gave what is wanted.

    Raises:
      DataError: the stage is not done.
    """
    return float(read_done(run_dir, NAME)["facts"]["temperature"])


def _search(
    config: EvaluateConfig, search: TemperatureConfig, folder: pathlib.Path
) -> Mapping[str, Any]:
    """Tries temperatures, writes what came of them."""
    rows: list[dict[str, float]] = []

    def wrong_at(temperature: float) -> float:
        tried = _at(config, search, temperature, str(folder / "tries" / f"{temperature:.4f}"))
        done = rollout.run(tried)
        assert done, "a rollout ends or raises"
        samples = list(read_trajectories(rollout.trajectories_path(tried.run_dir)))
        rows.append({"temperature": temperature} | summarise(samples, search))
        _LOGGER.info("temperature %.4f: %.2f wrong", temperature, rows[-1]["wrong"])
        return rows[-1]["wrong"]

    found = search_temperature(wrong_at, search)
    result = {
        "outcome": found.outcome.value,
        "temperature": found.nearest.temperature,
        "wrong": found.nearest.wrong,
        "wanted_wrong": search.wanted_wrong,
        "of_samples": search.of_samples,
    }
    table = search_table(found, rows, search)
    (folder / "temperature.json").write_text(
        json.dumps(result | {"tried": rows}, indent=2) + "\n", encoding="utf-8"
    )
    (folder / "temperature.md").write_text(table + "\n", encoding="utf-8")
    level = logging.INFO if found.outcome is Outcome.REACHED else logging.WARNING
    _LOGGER.log(level, "temperature search:\n%s", table)
    return result


def _at(
    config: EvaluateConfig, search: TemperatureConfig, temperature: float, run_dir: str
) -> EvaluateConfig:
    """A small rollout at one temperature."""
    limit = min(config.problems.limit or search.num_problems, search.num_problems)
    return dataclasses.replace(
        config,
        run_dir=run_dir,
        problems=dataclasses.replace(config.problems, limit=limit),
        sampling=dataclasses.replace(
            config.sampling, temperature=temperature, num_samples=search.num_samples
        ),
    )


def summarise(samples: list[Trajectory], search: TemperatureConfig) -> dict[str, float]:
    """What a temperature gave.

    Args:
      samples: graded solutions.
      search: what counts as wrong, and of how many.

    Returns:
      "wrong", wrong answers per problem of `of_samples` solutions, "standard_error", of that over
      problems, and the shares of the solutions "correct", "without_answer" and "cut_off".
    """
    by_problem: dict[str, list[bool]] = collections.defaultdict(list)
    for one in samples:
        is_kept = one.finish == "stop" or search.keep_cut_off
        is_wrong = is_kept and not one.is_correct and bool((one.answer or "").strip())
        by_problem[one.problem_id].append(is_wrong)
    wrong_P = search.of_samples * np.array([np.mean(row) for row in by_problem.values()])
    error = np.std(wrong_P, ddof=1) / np.sqrt(len(wrong_P)) if len(wrong_P) > 1 else 0.0
    return {
        "wrong": float(np.mean(wrong_P)),
        "standard_error": float(error),
        "correct": float(np.mean([bool(one.is_correct) for one in samples])),
        "without_answer": float(np.mean([not (one.answer or "").strip() for one in samples])),
        "cut_off": float(np.mean([one.finish == "length" for one in samples])),
    }


def search_table(
    found: TemperatureSearch, rows: list[dict[str, float]], search: TemperatureConfig
) -> str:
    """The search as a table in Markdown, its temperatures in rising order."""
    lines = [
        f"Wanted: {search.wanted_wrong:g} wrong answers of {search.of_samples} per problem, within "
        f"{search.tolerance:g}. Temperature {found.nearest.temperature:g} "
        f"{_SENTENCES[found.outcome]}.",
        "",
        "| temperature | wrong | standard error | correct | without answer | cut off |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for row in sorted(rows, key=lambda row: row["temperature"]):
        lines.append(
            f"| {row['temperature']:g} | {row['wrong']:.2f} | {row['standard_error']:.2f} | "
            f"{row['correct']:.1%} | {row['without_answer']:.1%} | {row['cut_off']:.1%} |"
        )
    return "\n".join(lines)
