"""Stage: how well contrastive scores find the critical tokens that rollouts found.

What it writes: estimate.md, the table; estimate.json, all numbers; estimate.png, how the ranks of
the critical tokens are spread, which is flat for a score that knows nothing.

Dimension key: S solutions, T response tokens.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")  # before pyplot: no screen is needed
import matplotlib.pyplot as plt
import numpy as np

from core_jax.errors import DataError
from core_jax.run_folder import read_done, run_stage
from reasoning_jax.accuracy import Interval, wilson_interval
from reasoning_jax.align.estimate import (
    EstimateConfig,
    EstimateRow,
    ScoredSolution,
    by_task,
    percentile_rank,
    table,
)
from reasoning_jax.data.token_values import Key, TokenValues, matching, read_token_values
from reasoning_jax.stages import critical
from reasoning_jax.stages.critical_results import critical_index

NAME = "estimate"
CRITICAL_TOKEN = "critical token"
FIRST_ERROR = "first error"

FirstError = Callable[[TokenValues], int | None]
"""The response token that writes a solution's first error, or None where there is none."""

_NUM_BINS = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Solution:
    """A solution that was rolled out and scored."""

    task: str
    scores: TokenValues
    targets: Mapping[str, int]
    """What is looked for to its token; what the solution does not have is absent."""


def run(
    run_dir: str,
    *,
    sources: Mapping[str, str],
    config: EstimateConfig,
    first_error: FirstError | None = None,
) -> bool:
    """Runs the stage unless it is done with the same files.

    Args:
      run_dir: the run's folder.
      sources: run folders whose stage `critical` is done, for example one per task, each with the
        file of token values that scores its solutions.
      config: what is measured of which values.
      first_error: finds the first error, for tasks that know it; it is then looked for as well,
        in the solutions that have one.

    Returns:
      Whether it is done now.

    Raises:
      DataError: a solution without scores or with those of other tokens; no critical token at all.
    """
    parts = {
        "estimate": config,
        "critical": {folder: read_done(folder, critical.NAME)["fingerprint"] for folder in sources},
        "scores": {path: _digest(path) for path in sources.values()},
        "first_error": {"given": first_error is not None},
    }
    work = functools.partial(_estimate, sources, config, first_error)
    return run_stage(run_dir, NAME, parts, work, repeatable=True)


def _digest(path: str) -> str:
    """SHA-256 of a file of scores."""
    if not pathlib.Path(path).is_file():
        raise DataError(f"there is no file of scores '{path}'; score the solutions first")
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def _estimate(
    sources: Mapping[str, str],
    config: EstimateConfig,
    first_error: FirstError | None,
    folder: pathlib.Path,
) -> Mapping[str, Any]:
    """Reads rollouts and scores, writes results."""
    solutions = [
        one
        for run_dir, path in sources.items()
        for one in _solutions(run_dir, read_token_values(path), first_error)
    ]
    any_error = any(FIRST_ERROR in one.targets for one in solutions)
    looked_for = [CRITICAL_TOKEN] + [FIRST_ERROR] * any_error
    rows = [
        EstimateRow(target=target, task=task, value=value, estimate=one)
        for target in looked_for
        for value in config.values
        for task, one in by_task(_scored(solutions, target, value), config).items()
    ]
    agreement = _agreement(solutions, config) if first_error is not None else None
    text = table(rows, confidence=config.confidence)
    if agreement is not None:
        text += f"\n\n{_sentence(agreement)}"
    (folder / "estimate.md").write_text(text + "\n", encoding="utf-8")
    results = {"rows": [dataclasses.asdict(row) for row in rows], "agreement": agreement}
    (folder / "estimate.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    ranks = {
        (target, value): [
            percentile_rank(one.scores, one.target) for one in _scored(solutions, target, value)
        ]
        for target in looked_for
        for value in config.values
    }
    _plot(ranks, folder / "estimate.png")
    return {
        "num_solutions": len(solutions),
        "num_without_critical": sum(CRITICAL_TOKEN not in one.targets for one in solutions),
        "auc": {f"{row.target}, {row.value}, {row.task}": row.estimate.auc.mean for row in rows},
    }


def _solutions(
    run_dir: str, scored: Mapping[Key, TokenValues], first_error: FirstError | None
) -> list[_Solution]:
    """The solutions of a run with their scores and what is looked for in them."""
    lines = critical.solutions_path(run_dir).read_text(encoding="utf-8").splitlines()
    tasks = {(row["problem_id"], row["sample"]): row["task"] for row in map(json.loads, lines)}
    found = []
    for values in read_token_values(critical.critical_path(run_dir)).values():
        index = critical_index(values)
        error = first_error(values) if first_error is not None else None
        targets = {CRITICAL_TOKEN: index, FIRST_ERROR: error}
        found.append(
            _Solution(
                task=tasks[values.key],
                scores=matching(scored, values),
                targets={name: place for name, place in targets.items() if place is not None},
            )
        )
    return found


def _scored(solutions: Sequence[_Solution], target: str, value: str) -> list[ScoredSolution]:
    """The solutions that have what is looked for."""
    found = [
        ScoredSolution(
            task=one.task, scores=np.array(one.scores.named(value)), target=one.targets[target]
        )
        for one in solutions
        if target in one.targets
    ]
    if not found:
        raise DataError(
            f"none of {len(solutions)} solutions has a {target}; roll out more solutions, or look "
            "at another rule"
        )
    return found


def _agreement(solutions: Sequence[_Solution], config: EstimateConfig) -> dict[str, Any]:
    """Where the critical token is, seen from the first error."""
    names = {CRITICAL_TOKEN, FIRST_ERROR}
    both = [one.targets for one in solutions if names <= one.targets.keys()]
    distances = [one[CRITICAL_TOKEN] - one[FIRST_ERROR] for one in both]
    counts = {
        "same": sum(distance == 0 for distance in distances),
        "before": sum(distance < 0 for distance in distances),
        "after": sum(distance > 0 for distance in distances),
    }
    other = counts["before"] + counts["after"]
    share = wilson_interval(other, len(both), confidence=config.confidence) if both else None
    return {
        **counts,
        "other": None if share is None else dataclasses.asdict(share),
        "median_distance": float(np.median(distances)) if both else None,
    }


def _sentence(agreement: Mapping[str, Any]) -> str:
    """The agreement in words."""
    number = agreement["same"] + agreement["before"] + agreement["after"]
    if not number:
        return "No solution has both a critical token and a first error."
    share = Interval(**agreement["other"])
    return (
        f"Of {number:,} solutions with both, the critical token is another one than the first "
        f"error's in {share.mean:.1%} ({share.low:.1%} to {share.high:.1%}): before it in "
        f"{agreement['before']:,}, after it in {agreement['after']:,}; the median distance is "
        f"{agreement['median_distance']:g} tokens. (The paper's Table 1 has 65.0 % on GSM8K and "
        "87.0 % on MATH, against errors marked by people.)"
    )


def _plot(ranks: Mapping[tuple[str, str], Sequence[float]], path: pathlib.Path) -> None:
    """Histograms of percentile ranks, one panel for each thing that is looked for."""
    targets = list(dict.fromkeys(target for target, _ in ranks))
    figure, panels = plt.subplots(
        1, len(targets), figsize=(6 * len(targets), 4), layout="constrained", squeeze=False
    )
    for axes, target in zip(panels[0], targets, strict=True):
        for (other, value), found in ranks.items():
            if other == target:
                weights = np.full(len(found), 1 / len(found))
                bins = np.linspace(0, 1, _NUM_BINS + 1)
                label = f"{value}, {len(found):,} solutions"
                axes.hist(found, bins, weights=weights, histtype="step", linewidth=2, label=label)
        axes.axhline(1 / _NUM_BINS, color="grey", linestyle=":", label="a score without knowledge")
        axes.set_xlim(0, 1)
        axes.set_xlabel(f"percentile rank of the {target} (0: the lowest score)")
        axes.set_ylabel("share of solutions")
        axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
