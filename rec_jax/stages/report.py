"""Stage `report`: the pictures and the page of a run.

Dimension key: none.
"""

import json
import logging
import os
import pathlib
import platform
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from core_jax.config import to_dict
from core_jax.errors import DataError
from core_jax.mesh import make_mesh
from core_jax.run_folder import read_done, run_stage, stage_folder
from rec_jax.config import PipelineConfig
from rec_jax.evaluate import load_report
from rec_jax.evaluation_tables import choice_line, choice_table
from rec_jax.model.embeddings import num_parameters
from rec_jax.model.onerec import abstract_params
from rec_jax.plots import plot_code_usage, plot_expert_load, plot_loss, plot_recall
from rec_jax.quality_tables import quality_tables
from rec_jax.recommend import sample_from_dict, sample_text
from rec_jax.report_page import Plot, ReportInputs, write_page
from rec_jax.stages import evaluate, prepare, pretrain, tokenize

NAME = "report"
_LOGGER = logging.getLogger(__name__)


def run(config: PipelineConfig) -> bool:
    """Writes `report/index.html` and its PNGs. Returns whether the stage is done."""

    def work(_: pathlib.Path) -> Mapping[str, Any]:
        page = _write(config, pathlib.Path(config.run_dir) / "report")
        _LOGGER.info("the report is in %s", page)
        return {"page": os.fspath(page)}

    after = [prepare.NAME, tokenize.NAME, pretrain.NAME, evaluate.NAME]
    return run_stage(config.run_dir, NAME, {}, work, after=after, repeatable=True)


def first_sample_text(run_dir: str) -> str:
    """The first sample user of the evaluation, in words."""
    samples = json.loads((stage_folder(run_dir, evaluate.NAME) / "samples.json").read_text())
    return sample_text(sample_from_dict(samples[0]))


def read_rows(folder: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of a stage's `metrics.jsonl`.

    Raises:
      DataError: the file is absent.
    """
    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise DataError(f"'{path}' is absent; run the stage first")
    return [json.loads(line) for line in path.read_text().splitlines()]


def _write(config: PipelineConfig, folder: pathlib.Path) -> pathlib.Path:
    """Draws the plots and writes the page."""
    folder.mkdir(parents=True, exist_ok=True)
    run_dir = config.run_dir
    evaluation = load_report(stage_folder(run_dir, evaluate.NAME))
    samples = json.loads((stage_folder(run_dir, evaluate.NAME) / "samples.json").read_text())
    quality = json.loads((stage_folder(run_dir, tokenize.NAME) / "quality.json").read_text())
    prepared = read_done(run_dir, prepare.NAME)["facts"]
    plots = [
        _loss_plot(run_dir, folder),
        _usage_plot(run_dir, folder),
        _load_plot(run_dir, folder),
        _recall_plot(folder, evaluation),
    ]
    inputs = ReportInputs(
        title="OneRec: " + _log_name(config),
        summary=_summary(config),
        evaluation=evaluation,
        plots=tuple(plots),
        semantic_ids=quality_tables(quality),
        samples=tuple(sample_from_dict(sample) for sample in samples),
        choices={
            choice_line(name, choice): choice_table(name, choice)
            for name, choice in evaluate.load_choices(run_dir).items()
        },
        counts=prepared["counts"],
        drops=prepared["drops"],
        config=to_dict(config),
    )
    return write_page(inputs, folder)


def _loss_plot(run_dir: str, folder: pathlib.Path) -> Plot:
    """Training and validation loss."""
    rows = read_rows(stage_folder(run_dir, pretrain.NAME))
    train = [row for row in rows if "loss" in row]
    valid = [row for row in rows if pretrain.BEST_METRIC in row]
    best = read_done(run_dir, pretrain.NAME)["facts"]["best_step"]
    path = folder / "loss.png"
    plot_loss(
        path,
        train_steps=[row["step"] for row in train],
        train_losses=[row["loss"] for row in train],
        valid_steps=[row["step"] for row in valid],
        valid_losses=[row[pretrain.BEST_METRIC] for row in valid],
        best_step=best,
        title="Next-token loss, nats per code",
    )
    return Plot(
        path=os.fspath(path),
        caption=f"Loss in training and on the validation sessions; step {best} is kept.",
        description="Curves of training and validation loss over training steps.",
    )


def _usage_plot(run_dir: str, folder: pathlib.Path) -> Plot:
    """How the items spread over the codes."""
    index = tokenize.load(run_dir)
    counts = [
        np.bincount(index.codes[:, level], minlength=size)
        for level, size in enumerate(index.level_sizes)
    ]
    path = folder / "code_usage.png"
    plot_code_usage(path, counts=counts)
    return Plot(
        path=os.fspath(path),
        caption="Items per code, level by level; flat is balanced.",
        description="Bars of how many items carry each code, per level of the semantic IDs.",
    )


def _load_plot(run_dir: str, folder: pathlib.Path) -> Plot:
    """How the tokens spread over the experts, at the end of training."""
    rows = read_rows(stage_folder(run_dir, pretrain.NAME))
    load = np.asarray([row["expert_load"] for row in rows if "expert_load" in row][-1])
    path = folder / "expert_load.png"
    plot_expert_load(path, load=load / load.sum(axis=-1, keepdims=True))
    return Plot(
        path=os.fspath(path),
        caption="Share of the tokens that each expert gets, over an even share.",
        description="A grid of decoder layers by experts with each expert's share of tokens.",
    )


def _recall_plot(folder: pathlib.Path, evaluation: Any) -> Plot:
    """The methods side by side."""
    path = folder / "recall.png"
    plot_recall(path, report=evaluation)
    return Plot(
        path=os.fspath(path),
        caption="Every method on the held-out sessions, with bootstrap intervals over users.",
        description="Dots with intervals: recall and NDCG of every method.",
    )


def _log_name(config: PipelineConfig) -> str:
    """What log the run is about."""
    log = to_dict(config.log)
    return f"MovieLens-{log['variant']}" if "variant" in log else str(log["path"])


def _summary(config: PipelineConfig) -> dict[str, str]:
    """The run in a few facts."""
    run_dir = config.run_dir
    prepared = read_done(run_dir, prepare.NAME)["facts"]
    index = tokenize.load(run_dir)
    model = pretrain.resolve_model(config.model, index)
    mesh = make_mesh(config.mesh)
    stages = (prepare.NAME, tokenize.NAME, pretrain.NAME, pretrain.POINTWISE_NAME, evaluate.NAME)
    seconds = {
        name: read_done(run_dir, name)["seconds"]
        for name in stages
        if (stage_folder(run_dir, name) / "done.json").is_file()
    }
    return {
        "Log": f"{_log_name(config)}, {prepared['events']:,} events",
        "Catalogue": f"{index.num_items:,} items, codes {' x '.join(map(str, index.level_sizes))}",
        "Model": f"{num_parameters(abstract_params(model, mesh)):,} parameters, "
        f"{model.num_experts} experts, {model.experts_per_token} per token",
        "Time": ", ".join(
            f"{name.replace('_', ' ')} {value:.0f} s" for name, value in seconds.items()
        ),
        "Hardware": f"{jax.device_count()} x {jax.devices()[0].device_kind}, "
        f"{os.cpu_count()} CPU cores",
        "Software": f"jax {jax.__version__}, Python {platform.python_version()}",
        "Seed": str(config.seed),
    }
