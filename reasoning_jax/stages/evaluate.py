"""Stage: from graded trajectories to accuracy, pass@k and majority@k with intervals.

Dimension key: P problems, K numbers of samples.
"""

import collections
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")  # before pyplot: no screen is needed
import matplotlib.pyplot as plt
import numpy as np

from core_jax.run_folder import read_done, run_stage, stage_folder
from reasoning_jax.accuracy import (
    Interval,
    bootstrap_interval,
    majority_at_k,
    pass_at_k,
    wilson_interval,
)
from reasoning_jax.answers.grader import Grader
from reasoning_jax.answers.groups import group_answers
from reasoning_jax.config import EvaluateConfig, ScoreConfig
from reasoning_jax.data.trajectories import Trajectory, read_trajectories
from reasoning_jax.stages import rollout

NAME = "evaluate"


def run(config: EvaluateConfig) -> bool:
    """Runs the stage unless it is done. Returns whether it is done now."""
    parts = {"score": config.score, "grader": config.grader}
    return run_stage(
        config.run_dir,
        NAME,
        parts,
        functools.partial(_evaluate, config),
        after=[rollout.NAME],
        repeatable=True,
    )


def results_folder(run_dir: str) -> pathlib.Path:
    """Where the results lie: results.json, results.md, problems.jsonl, accuracy.png."""
    return stage_folder(run_dir, NAME)


def per_problem(run_dir: str) -> dict[str, float]:
    """Share of each problem's samples that are correct, of a finished evaluation."""
    read_done(run_dir, NAME)  # says how to get one where there is none
    path = results_folder(run_dir) / "problems.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {row["problem_id"]: row["num_correct"] / row["num_samples"] for row in rows}


def _evaluate(config: EvaluateConfig, folder: pathlib.Path) -> Mapping[str, Any]:
    """Reads the trajectories, writes results."""
    by_problem: dict[str, list[Trajectory]] = collections.defaultdict(list)
    for one in read_trajectories(rollout.trajectories_path(config.run_dir)):
        by_problem[one.problem_id].append(one)
    samples = [sorted(group, key=lambda one: one.sample) for group in by_problem.values()]
    with Grader(config.grader) as grader:
        groups = [_votes(group, grader) for group in samples]
    results = summarise(samples, groups, config.score)
    results["task"], results["model"] = config.problems.task, config.model.source
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (folder / "results.md").write_text(table(results) + "\n", encoding="utf-8")
    with (folder / "problems.jsonl").open("w", encoding="utf-8") as file:
        for group, votes in zip(samples, groups, strict=True):
            row = {
                "problem_id": group[0].problem_id,
                "num_samples": len(group),
                "num_correct": sum(bool(one.is_correct) for one in group),
                "official_correct": sum(bool(one.official_correct) for one in group),
                "answers": [one.answer for one in group],
                "groups": votes,
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    _plot(results, folder / "accuracy.png")
    return {"accuracy": results["accuracy"]["mean"], "num_problems": len(samples)}


def _votes(group: Sequence[Trajectory], grader: Grader) -> list[int | None]:
    """The number of each sample's group of equivalent answers; None without an answer."""
    votes: list[int | None] = [None] * len(group)
    for number, indices in enumerate(group_answers([one.answer for one in group], grader)):
        for index in indices:
            votes[index] = number
    return votes


def summarise(
    samples: Sequence[Sequence[Trajectory]],
    groups: Sequence[Sequence[int | None]],
    config: ScoreConfig,
) -> dict[str, Any]:
    """All numbers of an evaluation.

    Args:
      samples: graded solutions, one sequence per problem.
      groups: for each the number of its group of equivalent answers, or None.
      config: which k, and the bootstrap.
    """
    interval = functools.partial(
        bootstrap_interval,
        seed=config.seed,
        num_samples=config.bootstrap_samples,
        confidence=config.confidence,
        method=config.interval,
    )
    verdicts = [[bool(one.is_correct) for one in group] for group in samples]
    lenient = [[bool(one.official_correct) for one in group] for group in samples]
    num_correct_P = np.array([sum(row) for row in verdicts])
    num_samples_P = np.array([len(row) for row in verdicts])
    ks = [k for k in config.ks if k <= num_samples_P.min()]
    accuracy = interval(num_correct_P / num_samples_P)
    if num_samples_P.max() == 1:
        accuracy = wilson_interval(
            int(num_correct_P.sum()), len(samples), confidence=config.confidence
        )
    majority_PK = majority_at_k(groups, verdicts, ks)
    official_P = np.array([sum(row) / len(row) for row in lenient])
    everything = [one for group in samples for one in group]
    return {
        "num_problems": len(samples),
        "num_samples": int(num_samples_P.sum()),
        "confidence": config.confidence,
        "accuracy": _plain(accuracy),
        "official_accuracy": _plain(interval(official_P)),
        "pass_at_k": {
            str(k): _plain(interval(pass_at_k(num_correct_P, num_samples_P, k))) for k in ks
        },
        "majority_at_k": {
            str(k): _plain(interval(majority_PK[:, column])) for column, k in enumerate(ks)
        },
        "share_without_answer": float(np.mean([one.answer is None for one in everything])),
        "share_cut_off": float(np.mean([one.finish == "length" for one in everything])),
        "mean_response_tokens": float(
            np.mean([len(one.token_ids) - one.response_start for one in everything])
        ),
    }


def _plain(interval: Interval) -> dict[str, float]:
    """JSON-able numbers of an interval."""
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}


def table(results: Mapping[str, Any]) -> str:
    """The results as a table in Markdown."""
    rows = [("accuracy", results["accuracy"]), ("official grader", results["official_accuracy"])]
    for name, title in (("pass_at_k", "pass@"), ("majority_at_k", "majority@")):
        rows += [(f"{title}{k}", value) for k, value in results[name].items() if k != "1"]
    confidence = f"{results['confidence']:.0%}"
    lines = [
        f"{results['model']} on {results['task']}: {results['num_problems']:,} problems, "
        f"{results['num_samples']:,} solutions",
        "",
        f"| measure | value | {confidence} interval |",
        "|---|---|---|",
        *(
            f"| {name} | {one['mean']:.3f} | {one['low']:.3f} to {one['high']:.3f} |"
            for name, one in rows
        ),
        "",
        f"{results['share_without_answer']:.1%} of the solutions have no answer, "
        f"{results['share_cut_off']:.1%} were cut off; {results['mean_response_tokens']:.0f} "
        "tokens on average.",
    ]
    return "\n".join(lines)


def _plot(results: Mapping[str, Any], path: pathlib.Path) -> None:
    """Accuracy under both graders, or for several samples pass@k and majority@k over k."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    if len(results["pass_at_k"]) > 1:
        for name, title in (("pass_at_k", "pass@k"), ("majority_at_k", "majority@k")):
            ks = [int(k) for k in results[name]]
            means, bars = _with_bars(list(results[name].values()))
            axes.errorbar(ks, means, bars, fmt="o-", capsize=3, label=title)
        axes.set_xscale("log", base=2)
        axes.set_xticks(ks, [str(k) for k in ks])
        axes.minorticks_off()
        axes.set_xlabel("samples per problem, k")
        axes.legend()
    else:
        means, bars = _with_bars([results["accuracy"], results["official_accuracy"]])
        axes.bar(["strict grader", "official grader"], means, yerr=bars, width=0.5, capsize=6)
    axes.set_ylim(0, 1)
    axes.set_ylabel(f"share of {results['num_problems']:,} problems solved")
    axes.set_title(
        f"{results['model']} on {results['task']}, {results['confidence']:.0%} intervals"
    )
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _with_bars(intervals: Sequence[Mapping[str, float]]) -> tuple[list[float], np.ndarray]:
    """Means, and how far the intervals reach below and above them, [2, number]."""
    means = [one["mean"] for one in intervals]
    reach = [[one["mean"] - one["low"] for one in intervals]]
    reach.append([one["high"] - one["mean"] for one in intervals])
    return means, np.maximum(reach, 0.0)
