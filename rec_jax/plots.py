"""Pictures of a run as PNG files: loss, code usage, expert load, recall with intervals.

Colours are of Okabe and Ito's set, which people with any colour vision tell apart; nothing is
told by colour alone. Figures are drawn without pyplot, so no state is shared between them.

Dimension key: T points of a curve, N code levels, V codes of a level, L decoder layers, E experts.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from core_jax.arrays import Float
from core_jax.errors import DataError
from rec_jax.evaluate import EvaluationReport
from rec_jax.evaluation_tables import metric_title

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#767676"
"""Blue, vermilion and bluish green of Okabe and Ito, and a grey for what stands beside."""

DOTS_PER_INCH = 110
"""8 inches are 880 pixels: fits a page column unscaled."""

MOST_LABELLED_CELLS = 96
"""Heat maps of at most this many cells have their numbers written in."""

STYLE: dict[Any, Any] = {
    "font.size": 11.0,
    "axes.titlesize": 13.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "legend.frameon": False,
    "figure.facecolor": "white",
    "figure.constrained_layout.h_pad": 0.09,
    "figure.constrained_layout.w_pad": 0.09,
}
"""Matplotlib settings of every figure."""


def plot_loss(
    path: str | os.PathLike[str],
    *,
    train_steps: Sequence[int],
    train_losses: Sequence[float],
    valid_steps: Sequence[int] = (),
    valid_losses: Sequence[float] = (),
    best_step: int | None = None,
    title: str = "Training",
) -> None:
    """Draws the loss over the steps.

    Args:
      path: where the PNG goes.
      train_steps: step of each training value.
      train_losses: training loss, nats per code.
      valid_steps: step of each validation value.
      valid_losses: validation loss, nats per code.
      best_step: the step whose parameters were kept, or None.
      title: what was trained.

    Raises:
      DataError: no training value at all, or steps and values of different number.
    """
    if not train_steps or len(train_steps) != len(train_losses):
        raise DataError(
            f"a loss curve needs one loss per step and at least one, got {len(train_steps)} steps "
            f"and {len(train_losses)} losses; check the run's metrics.jsonl"
        )
    with new_figure(path, height=4.2) as figure:
        axes = figure.subplots()
        axes.plot(train_steps, train_losses, color=BLUE, lw=1, alpha=0.35)
        smoothed_T = _smoothed(np.asarray(train_losses, np.float64))
        axes.plot(train_steps, smoothed_T, color=BLUE, lw=2, label="training (smoothed)")
        if len(valid_steps):
            axes.plot(
                valid_steps, valid_losses, color=ORANGE, lw=2, marker="o", ms=5, label="validation"
            )
        if best_step is not None:
            axes.axvline(best_step, color=GREEN, ls="--", lw=1.5, label=f"kept: step {best_step}")
        axes.set(title=title, xlabel="step", ylabel="loss (nats per code)")
        axes.set_xlim(0, max([*train_steps, *valid_steps]) * 1.02)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
        axes.legend()


def plot_code_usage(
    path: str | os.PathLike[str], *, counts: Sequence[np.ndarray], title: str = "Items per code"
) -> None:
    """Draws how evenly the items fill the codes of each level.

    Args:
      path: where the PNG goes.
      counts: per level Int [V]: items that carry each code.
      title: heading of the figure.

    Raises:
      DataError: no level.
    """
    if not counts:
        raise DataError("code usage needs the counts of at least one level, got none")
    with new_figure(path, height=3.6) as figure:
        figure.suptitle(title, x=0.01, ha="left", weight="bold", size=13)
        for level, (axes, counts_V) in enumerate(
            zip(figure.subplots(1, len(counts), squeeze=False)[0], counts, strict=True)
        ):
            descending_V = np.sort(np.asarray(counts_V))[::-1]
            num_codes, used = len(descending_V), int((descending_V > 0).sum())
            axes.stairs(descending_V, np.arange(num_codes + 1), fill=True, color=BLUE, alpha=0.75)
            axes.axhline(descending_V.mean(), color=ORANGE, ls="--", lw=1.5)
            axes.text(
                num_codes,
                descending_V.mean(),
                f"even: {descending_V.mean():.3g} ",
                color=ORANGE,
                ha="right",
                va="bottom",
                size=10,
            )
            axes.set_title(f"level {level + 1}: {used:,} of {num_codes:,} used", size=11, pad=8)
            axes.set(xlabel="codes, fullest first", xlim=(0, num_codes), ylim=(0, None))
            axes.set_ylim(0, 1.15 * max(descending_V.max(), 1))
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
            if level == 0:
                axes.set_ylabel("items")


def plot_expert_load(
    path: str | os.PathLike[str],
    *,
    load: Float[np.ndarray, "L E"],
    title: str = "Expert load per decoder layer",
) -> None:
    """Draws each expert's share of the routed tokens, relative to an even share.

    Args:
      path: where the PNG goes.
      load: tokens routed to each expert of each decoder layer.
      title: heading of the figure.

    Raises:
      DataError: a layer without any routed token.
    """
    totals_L = load.sum(axis=1, keepdims=True)
    if not (totals_L > 0).all():
        raise DataError("expert load needs routed tokens in every layer; a layer has none")
    num_layers, num_experts = load.shape
    relative_LE = load / totals_L * num_experts
    with new_figure(path, height=1.9 + 0.42 * min(num_layers, 12)) as figure:
        axes = figure.subplots()
        axes.grid(False)
        highest = max(2.0, float(relative_LE.max()))
        image = axes.imshow(relative_LE, cmap="cividis", vmin=0, vmax=highest, aspect="auto")
        if relative_LE.size <= MOST_LABELLED_CELLS:
            for (layer, expert), value in np.ndenumerate(relative_LE):
                colour = "white" if value < 0.55 * highest else "black"
                axes.text(
                    expert, layer, f"{value:.2f}", ha="center", va="center", size=10, color=colour
                )
        axes.set(title=title, xlabel="expert", ylabel="decoder layer")
        axes.set_xticks(range(0, num_experts, max(1, num_experts // 16)))
        layers = range(0, num_layers, max(1, num_layers // 8))
        axes.set_yticks(layers, [str(layer + 1) for layer in layers])
        figure.colorbar(image, ax=axes, label="load (1 = even)", pad=0.02)


def plot_recall(
    path: str | os.PathLike[str],
    *,
    report: EvaluationReport,
    metrics: Sequence[str] | None = None,
    title: str = "Next session over the full catalogue",
) -> None:
    """Draws each method's mean with its interval, one panel per metric.

    Args:
      path: where the PNG goes.
      report: the evaluation.
      metrics: which metrics; by default Recall and NDCG at the largest k.
      title: heading of the figure.
    """
    k = report.ks[-1]
    metrics = metrics or (f"recall@{k}", f"ndcg@{k}")
    with new_figure(path, height=1.6 + 0.42 * len(report.rows)) as figure:
        figure.suptitle(title, x=0.01, ha="left", weight="bold", size=13)
        panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
        for axes, metric in zip(panels, metrics, strict=True):
            _interval_panel(axes, report, metric)
        panels[0].set_yticks(range(len(report.rows)), [row.name for row in report.rows])
        panels[0].invert_yaxis()


def _interval_panel(axes: Axes, report: EvaluationReport, metric: str) -> None:
    """One dot with its interval and its number per method."""
    rows = [
        (position, row.name, row.metrics[metric])
        for position, row in enumerate(report.rows)
        if metric in row.metrics
    ]
    for position, name, interval in rows:
        colour, marker = (BLUE, "o") if name.startswith("OneRec") else (GREY, "s")
        axes.plot([interval.low, interval.high], [position] * 2, color=colour, lw=2.5)
        axes.plot(interval.mean, position, color=colour, marker=marker, ms=8)
        axes.text(
            interval.mean,
            position - 0.18,
            f"{interval.mean:.3f}",
            ha="center",
            va="bottom",
            size=10,
        )
    axes.set_title(f"{metric_title(metric)} ({report.confidence:.0%} interval)", size=11)
    axes.set_xlim(0, 1.08 * max(interval.high for _, _, interval in rows))
    axes.set_ylim(-0.7, len(report.rows) - 0.5)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


@contextlib.contextmanager
def new_figure(path: str | os.PathLike[str], *, height: float) -> Iterator[Figure]:
    """An 8-inch wide figure in the house style, saved as PNG at the end."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, height), dpi=DOTS_PER_INCH, layout="constrained")
        yield figure
        figure.savefig(path, format="png")


def _smoothed(values: Float[np.ndarray, " T"]) -> Float[np.ndarray, " T"]:
    """Centred mean over about a twentieth of the curve, with shorter windows at both ends."""
    reach = len(values) // 40
    sums = np.concatenate([[0.0], np.cumsum(values)])
    place = np.arange(len(values))
    first = np.maximum(place - reach, 0)
    last = np.minimum(place + reach + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)
