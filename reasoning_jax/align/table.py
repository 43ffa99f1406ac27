"""The table of methods: accuracies, differences problem by problem, and what a row cost.

A row's value on a problem is its mean over seeds; intervals resample the problems. They are about
these problems and these seeds: the spread over seeds stands beside them.

Dimension key: none.
"""

import csv
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import matplotlib

matplotlib.use("Agg")  # before pyplot: no screen is needed
import matplotlib.pyplot as plt
import numpy as np

from core_jax.errors import DataError
from reasoning_jax.accuracy import Interval, IntervalMethod, bootstrap_interval
from reasoning_jax.align.methods import TITLES, Row

Solved = Mapping[str, float]
"""Problem to the share of its samples that are correct."""

_SHORT = {
    Row.RPO: "RPO",
    Row.DPO: "DPO",
    Row.CDPO_SHUFFLED: "shuffled weights",
    Row.CDPO_CONSTANT: "mean weight",
}
AGAINST = tuple(_SHORT)
"""Rows that others are compared with, where they are in the table."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """A row on one test set."""

    row: Row
    """Which."""
    accuracy: Interval
    """Mean over problems and seeds."""
    lowest: float
    """Accuracy of the worst seed."""
    highest: float
    """Accuracy of the best seed."""
    differences: Mapping[Row, Interval]
    """Minus each of `AGAINST`, paired by problem."""
    rejected_weight: float | None
    """Mean weight of a rejected token; None where nothing is rejected."""
    tokens: int
    """Tokens read in training, and in what it rests on; mean over seeds."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resampling:
    """How intervals are made."""

    seed: int
    num_samples: int
    confidence: float
    method: IntervalMethod


def measure(
    solved: Mapping[Row, Sequence[Solved]],
    *,
    weights: Mapping[Row, float | None],
    tokens: Mapping[Row, int],
    resampling: Resampling,
) -> list[Measured]:
    """Sums up one test set.

    Args:
      solved: of every row, one mapping per seed, all of the same problems.
      weights: mean weight of a rejected token.
      tokens: tokens spent.
      resampling: how intervals are made.

    Raises:
      DataError: rows over different problems.
    """
    ids = sorted(next(iter(solved.values()))[0])
    means: dict[Row, np.ndarray] = {}
    by_seed: dict[Row, list[float]] = {}
    for row, runs in solved.items():
        for run in runs:
            if sorted(run) != ids:
                raise DataError(
                    f"row {row.value} was tested on {len(run)} problems that are not the "
                    f"{len(ids)} of the first row; test all rows on one set"
                )
        values_SP = np.asarray([[run[one] for one in ids] for run in runs], np.float64)
        means[row], by_seed[row] = values_SP.mean(axis=0), values_SP.mean(axis=1).tolist()

    def interval(values: np.ndarray) -> Interval:
        return bootstrap_interval(
            values,
            seed=resampling.seed,
            num_samples=resampling.num_samples,
            confidence=resampling.confidence,
            method=resampling.method,
        )

    return [
        Measured(
            row=row,
            accuracy=interval(means[row]),
            lowest=min(by_seed[row]),
            highest=max(by_seed[row]),
            differences={
                other: interval(means[row] - means[other])
                for other in AGAINST
                if other in means and other is not row
            },
            rejected_weight=weights[row],
            tokens=tokens[row],
        )
        for row in solved
    ]


def table_text(measured: Sequence[Measured], *, title: str, num_seeds: int) -> str:
    """The table in Markdown."""
    against = [row for row in AGAINST if any(row in one.differences for one in measured)]
    head = ["method", "accuracy", "interval", "seeds", *(f"minus {_SHORT[o]}" for o in against)]
    head += ["mean rejected weight", "tokens"]
    lines = [f"{title}, {num_seeds} seeds", "", f"| {' | '.join(head)} |"]
    lines.append("|---" * len(head) + "|")
    lines += [f"| {' | '.join(_cells(one, against))} |" for one in measured]
    return "\n".join(lines)


def write_csv(path: pathlib.Path, columns: Mapping[str, Sequence[Measured]]) -> None:
    """All numbers, one line per row and test set."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["test", "row", "accuracy", "low", "high", "lowest_seed", "highest_seed"]
            + [f"minus_{row.value}{end}" for row in AGAINST for end in ("", "_low", "_high")]
            + ["rejected_weight", "tokens"]
        )
        for test, measured in columns.items():
            for one in measured:
                own = [one.accuracy.mean, one.accuracy.low, one.accuracy.high]
                cells: list[object] = [test, one.row.value, *own, one.lowest, one.highest]
                for row in AGAINST:
                    found = one.differences.get(row)
                    cells += ["", "", ""] if found is None else [found.mean, found.low, found.high]
                weight = "" if one.rejected_weight is None else one.rejected_weight
                writer.writerow([*cells, weight, one.tokens])


def plot_accuracy(path: pathlib.Path, columns: Mapping[str, Sequence[Measured]]) -> None:
    """Accuracies with intervals, and the seeds' range, one panel per test set."""
    tallest = max(map(len, columns.values()))
    figure, panels = plt.subplots(
        1, len(columns), figsize=(6.4 * len(columns), 0.36 * tallest + 1.4), squeeze=False
    )
    for panel, (test, measured) in zip(panels[0], columns.items(), strict=True):
        places = np.arange(len(measured))[::-1]
        means = np.asarray([one.accuracy.mean for one in measured])
        ends = np.asarray([[one.accuracy.low, one.accuracy.high] for one in measured])
        panel.barh(places, means, color="#b9cde5", height=0.7)
        errors = np.abs(ends.T - means)
        panel.errorbar(means, places, xerr=errors, fmt="o", color="#1f4e79", capsize=3, ms=4)
        for place, one in zip(places, measured, strict=True):
            panel.plot([one.lowest, one.highest], [place - 0.28] * 2, color="#c0504d", lw=1.5)
        panel.set_yticks(places, [TITLES[one.row] for one in measured])
        panel.set_xlabel("accuracy (red: range of seeds)")
        panel.set_title(test)
        low = min(ends.min(), min(one.lowest for one in measured))
        panel.set_xlim(max(0.0, low - 0.05), min(1.0, ends.max() + 0.03))
        panel.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


Curve = Sequence[tuple[int, float, float]]
"""(step, log-probability of the chosen, of the rejected responses)."""


def plot_curves(path: pathlib.Path, curves: Mapping[Row, Curve]) -> None:
    """Log-probabilities of chosen and rejected responses over training (the paper's Figure 4)."""
    columns = min(4, len(curves))
    rows = -(-len(curves) // columns)
    figure, panels = plt.subplots(
        rows, columns, figsize=(3.4 * columns, 2.5 * rows), squeeze=False, sharey=True
    )
    for panel in panels.flat[len(curves) :]:
        panel.set_visible(False)
    for panel, (row, curve) in zip(panels.flat, curves.items(), strict=False):
        steps = [step for step, _, _ in curve]
        panel.plot(steps, [chosen for _, chosen, _ in curve], "-o", ms=3, color="#1f4e79")
        panel.plot(steps, [rejected for _, _, rejected in curve], "--s", ms=3, color="#c0504d")
        panel.set_title(TITLES[row], fontsize=8)
        panel.grid(alpha=0.3)
        panel.tick_params(labelsize=7)
    panels[0][0].legend(["chosen", "rejected"], fontsize=7)
    figure.supylabel("log-probability, nats", fontsize=9)
    figure.supxlabel("step", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _cells(one: Measured, against: Sequence[Row]) -> list[str]:
    """A row's cells."""
    cells = [
        TITLES[one.row],
        f"{one.accuracy.mean:.4f}",
        f"{one.accuracy.low:.4f} to {one.accuracy.high:.4f}",
        f"{one.lowest:.4f} to {one.highest:.4f}",
    ]
    for row in against:
        found = one.differences.get(row)
        text = "" if found is None else f"{found.mean:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"
        cells.append(text)
    weight = "" if one.rejected_weight is None else f"{one.rejected_weight:.3f}"
    return [*cells, weight, f"{one.tokens:,}"]
