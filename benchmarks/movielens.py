"""OneRec and the baselines on MovieLens-100k over several seeds: the numbers of the docs.

    python -m benchmarks.movielens [--seeds 0 1 2] [--json]

Each seed is a whole run of the preset (its own codebook, initialisation and data order), kept in
`runs/movielens/seed<N>`; a run that is there is not repeated. A user's value of a metric is the
mean over the seeds; intervals are bootstrap intervals over the users. The baselines have no seed:
their hyper-parameters are chosen on validation, and the test sessions are read once.

Dimension key: S seeds, U users.
"""

import dataclasses
import json
import os
import platform

import jax
import numpy as np
import tyro

from core_jax.run_folder import read_done
from launch import runtime
from rec_jax.evaluate import EvaluationReport, load_report
from rec_jax.jobs import run_pipeline
from rec_jax.presets import PRESETS
from rec_jax.ranking_metrics import bootstrap_interval, paired_bootstrap
from rec_jax.stages import evaluate, pretrain

METRICS = ("recall@10", "ndcg@10", "recall@5", "ndcg@5", "session_recall", "session_ndcg")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Command line."""

    preset: str = "demo"
    """Preset to run."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds, one run each."""
    folder: str = "runs/movielens"
    """Where the runs go."""
    json: bool = False
    """Print one JSON object instead of the table."""


def run_seeds(options: Options) -> dict[int, EvaluationReport]:
    """Runs every seed that is not done yet; returns the evaluations."""
    reports = {}
    for seed in options.seeds:
        run_dir = f"{options.folder}/seed{seed}"
        config = dataclasses.replace(PRESETS[options.preset](), run_dir=run_dir, seed=seed)
        runtime.open_run(config)
        run_pipeline(config)
        reports[seed] = load_report(evaluate.load_folder(run_dir))
    return reports


def pool(reports: dict[int, EvaluationReport]) -> dict[str, dict[str, np.ndarray]]:
    """Per method and metric the values [S, U] of all seeds."""
    first = next(iter(reports.values()))
    return {
        method: {
            metric: np.stack([report.per_user[method][metric] for report in reports.values()])
            for metric in metrics
        }
        for method, metrics in first.per_user.items()
    }


def summarise(values: dict[str, dict[str, np.ndarray]]) -> dict[str, dict[str, dict[str, float]]]:
    """Mean, interval over users, and lowest and highest seed, per method and metric."""
    summary: dict[str, dict[str, dict[str, float]]] = {}
    for method, metrics in values.items():
        summary[method] = {}
        for metric in METRICS:
            if metric not in metrics:
                continue
            values_SU = metrics[metric]
            interval = bootstrap_interval(values_SU.mean(axis=0), key=jax.random.key(0))
            seeds_S = values_SU.mean(axis=1)
            summary[method][metric] = {
                "mean": float(interval.mean),
                "low": float(interval.low),
                "high": float(interval.high),
                "lowest_seed": float(seeds_S.min()),
                "highest_seed": float(seeds_S.max()),
            }
    return summary


def differences(values: dict[str, dict[str, np.ndarray]]) -> dict[str, dict[str, float]]:
    """Paired difference of every OneRec row minus every kNN row, in Recall@10."""
    found = {}
    for method in values:
        for baseline in values:
            if method.startswith("OneRec") and "kNN" in baseline:
                interval = paired_bootstrap(
                    values[method]["recall@10"].mean(axis=0),
                    values[baseline]["recall@10"].mean(axis=0),
                    key=jax.random.key(0),
                )
                found[f"{method} - {baseline}"] = {
                    "mean": float(interval.mean),
                    "low": float(interval.low),
                    "high": float(interval.high),
                }
    return found


def main(options: Options) -> None:
    """Runs, pools, prints."""
    runtime.start()
    reports = run_seeds(options)
    values = pool(reports)
    result = {
        "hardware": f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, jax "
        f"{jax.__version__}, Python {platform.python_version()}",
        "seeds": list(options.seeds),
        "pretrain_seconds": [
            read_done(f"{options.folder}/seed{seed}", pretrain.NAME)["seconds"]
            for seed in options.seeds
        ],
        "methods": summarise(values),
        "recall@10 differences": differences(values),
    }
    if options.json:
        print(json.dumps(result, indent=1))
        return
    print(f"\n{result['hardware']}; seeds {options.seeds}; training {result['pretrain_seconds']} s")
    for method, metrics in result["methods"].items():
        for metric, row in metrics.items():
            print(
                f"{method:32s} {metric:15s} {row['mean']:.4f} [{row['low']:.4f}, {row['high']:.4f}]"
                f"  seeds {row['lowest_seed']:.4f} .. {row['highest_seed']:.4f}"
            )
    for name, row in result["recall@10 differences"].items():
        print(f"{name:60s} {row['mean']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]")


if __name__ == "__main__":
    main(tyro.cli(Options))
