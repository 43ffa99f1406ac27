"""An evaluation report as tables of text, for the terminal and for the page.

Dimension key: none.
"""

import dataclasses
import textwrap
from collections.abc import Callable

from rec_jax.baselines.item_knn import ItemKnnChoice
from rec_jax.evaluate import EvaluationReport, MethodRow
from rec_jax.ranking_metrics import Interval

ABSENT = "-"
"""Cell of a value that does not exist."""

TEXT_WIDTH = 100
"""Columns at which a note is wrapped."""

METRIC_TITLES = {
    "recall": "Recall",
    "ndcg": "NDCG",
    "hit": "Hit",
    "next_hit": "Next hit",
    "next_ndcg": "Next NDCG",
    "diversity": "Diversity",
}
"""Names of the metrics for people."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A titled table of text; the first column names the row."""

    title: str
    note: str
    """One or two sentences: how to read the numbers."""
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    marked: tuple[int, ...] = ()
    """Rows that the page brings out; what is special in them must also be told in a cell."""


def to_text(table: Table) -> str:
    """Aligned plain text: first column left, the others right.

    >>> print(to_text(Table(title="T", note="n", header=("a", "bb"), rows=(("xyz", "1"),))))
    T
    a    bb
    xyz   1
    n
    """
    grid = (table.header, *table.rows)
    widths = [max(len(row[column]) for row in grid) for column in range(len(table.header))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in grid
    ]
    return "\n".join([table.title, *lines, textwrap.fill(table.note, width=TEXT_WIDTH)])


def to_markdown(table: Table) -> str:
    """A Markdown table under its title, with the note below.

    >>> print(to_markdown(Table(title="T", note="n", header=("a", "bb"), rows=(("xyz", "1"),))))
    ### T
    <BLANKLINE>
    | a | bb |
    |---|---|
    | xyz | 1 |
    <BLANKLINE>
    n
    """
    lines = [table.header, ("---",) * len(table.header), *table.rows]
    rows = ["| " + " | ".join(row) + " |" for row in lines]
    rows[1] = rows[1].replace(" ", "")
    return "\n".join([f"### {table.title}", "", *rows, "", table.note])


def report_tables(report: EvaluationReport) -> tuple[Table, ...]:
    """All tables of a report, the most important one first.

    Args:
      report: results of all methods.

    Returns:
      Ranking, differences, best session, next item and catalogue tables; those without any
      value are left out.
    """
    tables = (
        _ranking(report),
        _differences(report),
        _session(report),
        _next_item(report),
        _catalogue(report),
        _strata(report),
        _entropy(report),
    )
    return tuple(table for table in tables if table is not None)


def report_text(report: EvaluationReport) -> str:
    """All tables of a report as one text."""
    return "\n\n".join(to_text(table) for table in report_tables(report))


def choice_table(name: str, choice: ItemKnnChoice) -> Table:
    """What was tried for an item-kNN on validation, windows sideways, the best one starred.

    Args:
      name: the method's name.
      choice: all trials.

    Returns:
      Recall and NDCG at the grid's k of every trial; the row of the best one is marked.
    """
    windows = sorted({trial.config.window for trial in choice.trials})
    rows: dict[tuple[int, float], dict[int, str]] = {}
    for trial in choice.trials:
        star = "*" if trial == choice.best else ""
        cells = rows.setdefault((trial.config.distance, trial.config.shrinkage), {})
        cells[trial.config.window] = f"{star}{trial.recall:.4f} / {trial.ndcg:.4f}"
    best = (choice.best.config.distance, choice.best.config.shrinkage)
    return Table(
        title=f"{name}: Recall@{choice.k} / NDCG@{choice.k} on validation",
        note="Window: history items that vote. Shrinkage: added to the cosine's denominator. "
        "Distance: steps within which items keep company. *: chosen.",
        header=("company, shrinkage", *(f"window {window}" for window in windows)),
        rows=tuple(
            (
                f"{_company(distance)}, {shrinkage:g}",
                *(cells.get(window, ABSENT) for window in windows),
            )
            for (distance, shrinkage), cells in rows.items()
        ),
        marked=(list(rows).index(best),),
    )


def choice_line(name: str, choice: ItemKnnChoice) -> str:
    """What was chosen for an item-kNN, and out of how many.

    >>> from rec_jax.baselines.item_knn import ItemKnnConfig, ItemKnnTrial
    >>> config = ItemKnnConfig(window=5, shrinkage=20.0, distance=10)
    >>> best = ItemKnnTrial(config=config, recall=0.15, ndcg=0.125)
    >>> choice_line("item-kNN", ItemKnnChoice(k=10, best=best, trials=(best,) * 30))
    'item-kNN: window 5, distance 10, shrinkage 20; the best of 30'
    """
    best = choice.best.config
    return (
        f"{name}: window {best.window}, {_company(best.distance)}, shrinkage {best.shrinkage:g}; "
        f"the best of {len(choice.trials)}"
    )


def _company(distance: int) -> str:
    """Name of a grid's distance."""
    return f"distance {distance}" if distance else "whole profile"


def interval_text(interval: Interval | None) -> str:
    """Mean and half width of the interval.

    >>> interval_text(Interval(mean=0.1444, low=0.133, high=0.157))
    '0.1444 +-0.0120'
    """
    if interval is None:
        return ABSENT
    return f"{interval.mean:.4f} +-{interval.half_width:.4f}"


def metric_title(name: str) -> str:
    """Name of a metric for people.

    >>> metric_title("ndcg@10")
    'NDCG@10'
    """
    base, _, k = name.partition("@")
    return METRIC_TITLES[base] + (f"@{k}" if k else "")


def _ranking(report: EvaluationReport) -> Table:
    """List metrics with intervals."""
    names = [f"{name}@{k}" for k in reversed(report.ks) for name in ("recall", "ndcg")]
    names.append(f"hit@{report.ks[-1]}")
    return Table(
        title="Next session: ranked items against the set of target items",
        note=f"Mean over {report.num_users:,} users, {report.num_items:,} items, +- half of the "
        f"{report.confidence:.0%} bootstrap interval.",
        header=("method", *(metric_title(name) for name in names)),
        rows=_metric_rows(report, names),
    )


def _differences(report: EvaluationReport) -> Table | None:
    """Paired differences with both ends of the interval."""
    if not report.differences:
        return None
    names = [f"{name}@{report.ks[-1]}" for name in ("recall", "ndcg", "hit")]
    return Table(
        title="Paired differences",
        note=f"Mean of the difference per user and its {report.confidence:.0%} interval.",
        header=("method - baseline", *(metric_title(name) for name in names)),
        rows=tuple(
            (
                f"{difference.method} - {difference.baseline}",
                *(_signed(difference.metrics[name]) for name in names),
            )
            for difference in report.differences
        ),
    )


def _session(report: EvaluationReport) -> Table | None:
    """The best generated session beside the list of the same length."""
    length = report.session_length
    if not length:
        return None
    list_names = [f"{name}@{length}" for name in ("recall", "ndcg", "hit")]
    if length not in report.ks:
        list_names = []
    session_names = ["session_recall", "session_ndcg", "session_hit"]
    header = [f"session {METRIC_TITLES[name.partition('_')[2]]}" for name in session_names]
    rows = [row for row in report.rows if "session_recall" in row.metrics]
    return Table(
        title=f"The best generated session of {length} items against the set of target items",
        note=f"List columns: the first {length} of the ranked items, for the same method."
        if list_names
        else "Every item of the session counts as one place of a list.",
        header=("method", *header, *(f"list {metric_title(name)}" for name in list_names)),
        rows=tuple(
            (row.name, *(interval_text(row.metrics.get(n)) for n in (*session_names, *list_names)))
            for row in rows
        ),
    )


def _next_item(report: EvaluationReport) -> Table:
    """Single-target metrics."""
    names = [f"{name}@{k}" for k in reversed(report.ks) for name in ("next_hit", "next_ndcg")]
    return Table(
        title="Next item: ranked items against the first item of the session alone",
        note="The usual next-item protocol, one target per user.",
        header=("method", *(metric_title(name) for name in names)),
        rows=_metric_rows(report, names),
    )


def _catalogue(report: EvaluationReport) -> Table:
    """Coverage, diversity, legality."""
    return _simple(
        report,
        title=f"What the first {report.ks[-1]} items are like",
        note="Coverage: share of the catalogue shown to anybody. Diversity: mean Jaccard distance "
        "of the categories within a list. Legal: share of code tuples that name an item when "
        "generated without the catalogue constraint (with it: always 1).",
        columns={
            "coverage": lambda row: f"{row.coverage:.3f}",
            "diversity": lambda row: _number(
                row.metrics["diversity"].mean if "diversity" in row.metrics else None
            ),
            "legal": lambda row: _number(row.legality),
        },
    )


def _strata(report: EvaluationReport) -> Table:
    """Recall and share of the popularity strata."""
    names = stratum_names(len(report.rows[0].stratum_share))
    columns: dict[str, Callable[[MethodRow], str]] = {}
    for position, name in enumerate(names):
        columns[f"{name} recall"] = lambda row, p=position: _number(row.stratum_recall[p])
        columns[f"{name} share"] = lambda row, p=position: _number(row.stratum_share[p])
    return _simple(
        report,
        title="Popularity strata",
        note=f"Items cut where each of {len(names)} strata carries an equal share of the training "
        f"interactions. Recall: share of that stratum's targets among the first "
        f"{report.ks[-1]}. Share: part of the listed places it fills.",
        columns=columns,
    )


def _entropy(report: EvaluationReport) -> Table | None:
    """Entropy per code level of the methods that predict codes."""
    entropies = {row.name: row.code_entropy for row in report.rows if row.code_entropy}
    if not entropies:
        return None
    num_levels = max(len(entropy) for entropy in entropies.values())
    return Table(
        title="Entropy of the predicted code (nats per level)",
        note="Mean over users, of the softmax over a level's codes given the true codes before "
        "it; a uniform guess over n codes has log n.",
        header=("method", *(f"level {level + 1}" for level in range(num_levels))),
        rows=tuple(
            (
                name,
                *(f"{value:.3f}" for value in entropy),
                *[ABSENT] * (num_levels - len(entropy)),
            )
            for name, entropy in entropies.items()
        ),
    )


def stratum_names(num_strata: int) -> tuple[str, ...]:
    """Names of the popularity strata, most popular first.

    >>> stratum_names(3)
    ('head', 'middle', 'tail')
    """
    if num_strata == 3:
        return ("head", "middle", "tail")
    return tuple(f"stratum {position + 1}" for position in range(num_strata))


def _metric_rows(report: EvaluationReport, names: list[str]) -> tuple[tuple[str, ...], ...]:
    """One row of intervals per method."""
    return tuple(
        (row.name, *(interval_text(row.metrics.get(name)) for name in names)) for row in report.rows
    )


def _simple(
    report: EvaluationReport,
    *,
    title: str,
    note: str,
    columns: dict[str, Callable[[MethodRow], str]],
) -> Table:
    """One row per method, one function per column."""
    return Table(
        title=title,
        note=note,
        header=("method", *columns),
        rows=tuple((row.name, *(cell(row) for cell in columns.values())) for row in report.rows),
    )


def _signed(interval: Interval) -> str:
    """Mean and both ends, with their signs."""
    return f"{interval.mean:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"


def _number(value: float | None) -> str:
    """Three decimals, or the absent mark."""
    return ABSENT if value is None else f"{value:.3f}"
