"""Jobs of contrastive cDPO: the whole pipeline, its table, its plan.

Dimension key: none.
"""

import json
import pathlib
from collections.abc import Sequence

from core_jax.mesh import make_mesh
from core_jax.run_folder import read_done, stage_folder
from reasoning_jax import contrastive_run as runs
from reasoning_jax.align.methods import Loss, Row, row_method
from reasoning_jax.align.table import (
    Curve,
    Measured,
    Resampling,
    measure,
    plot_accuracy,
    plot_curves,
    table_text,
    write_csv,
)
from reasoning_jax.align_config import PipelineConfig
from reasoning_jax.contrastive_plan import plan_text
from reasoning_jax.stages import prefer
from reasoning_jax.stages.view import ViewConfig, run_view


def run_pipeline(config: PipelineConfig) -> bool:
    """Everything: table, critical tokens, the page of tokens."""
    if config.plan:
        print(plan_text(config))
        return True
    if not run_table(config):
        return False
    first = config.seeds[0]
    if not runs.run_critical(config, first):
        return False
    folder = pathlib.Path(config.run_dir) / f"seed{first}"
    if config.critical is not None:
        report = stage_folder(folder / "critical", "estimate") / "estimate.md"
        print(f"\n{report.read_text(encoding='utf-8')}")
    beta = config.scoring.betas[0]
    page = run_view(ViewConfig(run=str(folder), limit=config.view_limit, beta=beta))
    print(f"Token by token: {page}")
    return True


def run_table(config: PipelineConfig) -> bool:
    """Samples, trains and tests every row with every seed, and prints the table."""
    if config.plan:
        print(plan_text(config))
        return False
    make_mesh(config.mesh)  # a mesh that cannot be fails before anything is sampled
    if not runs.run_base(config):
        return False
    for seed in config.seeds:
        if not (runs.run_sets(config, seed) and runs.run_contrast(config, seed)):
            return False
        for row in config.rows:
            if not runs.run_method(config, seed, row):
                return False
    folder = pathlib.Path(config.run_dir) / "table"
    folder.mkdir(parents=True, exist_ok=True)
    columns = {
        _title(config, index): _measured(config, index) for index in range(len(config.tests))
    }
    texts = [
        table_text(measured, title=title, num_seeds=len(config.seeds))
        for title, measured in columns.items()
    ]
    text = "\n\n".join(texts)
    (folder / "table.md").write_text(text + "\n", encoding="utf-8")
    write_csv(folder / "table.csv", columns)
    plot_accuracy(folder / "table.png", columns)
    curves = {
        row: curve
        for row in config.rows
        if row is not Row.BASELINE and (curve := _curve(config, config.seeds[0], row))
    }
    if curves:
        plot_curves(folder / "curves.png", curves)
    print(f"\n{text}\n\nTable and pictures: {folder}")
    return True


def _title(config: PipelineConfig, index: int) -> str:
    """What a test set is called."""
    test = config.tests[index]
    return f"{index}: {test.task} ({test.split})" if len(config.tests) > 1 else test.task


def _measured(config: PipelineConfig, index: int) -> list[Measured]:
    """The rows on one test set."""
    seeds = config.seeds
    return measure(
        {row: [runs.results(config, seed, row, index) for seed in seeds] for row in config.rows},
        weights={row: _weight(config, seeds, row) for row in config.rows},
        tokens={
            row: round(sum(runs.tokens_spent(config, seed, row) for seed in seeds) / len(seeds))
            for row in config.rows
        },
        resampling=Resampling(
            seed=config.score.seed,
            num_samples=config.score.bootstrap_samples,
            confidence=config.score.confidence,
            method=config.score.interval,
        ),
    )


def _weight(config: PipelineConfig, seeds: Sequence[int], row: Row) -> float | None:
    """Mean weight of a rejected token over the watched pairs and the seeds."""
    method = row_method(row)
    if method is None or method.loss is Loss.SFT:
        return None
    found = [
        read_done(runs.method_config(config, seed, row).run_dir, prefer.NAME)["facts"]
        for seed in seeds
    ]
    return sum(facts["watched_rejected_weight"] for facts in found) / len(found)


def _curve(config: PipelineConfig, seed: int, row: Row) -> Curve:
    """Watched log-probabilities of a row's training."""
    folder = stage_folder(runs.method_config(config, seed, row).run_dir, prefer.NAME)
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    return [
        (one["step"], one["watched_chosen_log_prob"], one["watched_rejected_log_prob"])
        for one in found
        if "watched_chosen_log_prob" in one
    ]
