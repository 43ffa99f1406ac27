"""The table of the paper's Table 1: every preference method in one harness, over several seeds.

All methods of a seed share the log, the semantic IDs, the pre-trained model, both judges and the
candidates of round 1. `rec_jax.alignment_cells` says which runs that makes.

Layout: `RUN/seed_S/base`, `RUN/seed_S/METHOD`, `RUN/report/{table.md, table.csv, ...}`.

Dimension key: U users of all seeds.
"""

import csv
import json
import os
import pathlib
from collections.abc import Sequence

import jax
import numpy as np

from core_jax.config import to_dict
from rec_jax.align.methods import Method
from rec_jax.align.panel import REFERENCES
from rec_jax.align.plots import plot_methods
from rec_jax.align.summary import Measures, PolicySummary, summarise
from rec_jax.align.tables import best_of_table, concordance_table, head_table, policy_table
from rec_jax.alignment import run_base, run_rounds, run_shared
from rec_jax.alignment_cells import (
    IPA,
    LONG,
    AlignmentTableConfig,
    contrast_rows,
    iterated_name,
    table_cells,
    training_steps,
)
from rec_jax.evaluation_tables import Table, to_markdown, to_text
from rec_jax.ranking_metrics import Interval, bootstrap_interval, paired_bootstrap
from rec_jax.report_page import Plot, ReportInputs, write_page
from rec_jax.stages import align_report
from rec_jax.stages.align_report import BASELINE


def run_table(config: AlignmentTableConfig) -> bool:
    """Runs every cell that is not done yet, then writes and prints the table."""
    for seed in config.seeds:
        cells = table_cells(config, seed)
        first = cells[0]
        if not (run_base(first.folders, first.config) and run_shared(first.folders, first.config)):
            return False
        for cell in cells:
            if not run_rounds(cell.folders, cell.config):
                return False
    page = _write(config, pathlib.Path(config.run_dir) / "report")
    print(f"\n{(page.parent / 'table.txt').read_text()}\nReport: {page}")
    return True


def _policies(config: AlignmentTableConfig, seed: int) -> dict[str, Measures]:
    """Every policy's measures on one seed."""
    cells = table_cells(config, seed)
    most = max(config.template.evaluate.best_of)
    ipa = cells[0]
    last = ipa.config.align.num_rounds
    rounds = align_report.policies_of_round(ipa.folders, ipa.config, range(last + 1))
    policies = align_report.reference_policies(ipa.folders, ipa.config)
    oracle = {name: policies.pop(name) for name in ("oracle",) if name in policies}
    policies[BASELINE] = rounds[BASELINE]
    policies[f"{BASELINE}, best of {most}"] = rounds[f"{BASELINE}, best of {most}"]
    policies["+DPO"] = rounds[f"{BASELINE} after round 1"]
    iterated: dict[str, Measures] = {}
    for cell in cells[1:]:
        last_of_cell = cell.config.align.num_rounds
        found = align_report.policies_of_round(cell.folders, cell.config, [1, last_of_cell])
        policies[f"+{cell.name}"] = found[f"{BASELINE} after round 1"]
        if last_of_cell > 1:
            iterated[iterated_name(cell.name)] = found[f"{BASELINE} after round {last_of_cell}"]
    policies[f"+{IPA}"] = rounds[f"{BASELINE} after round {last}"]
    policies[f"+{IPA}, best of {most}"] = rounds[f"{BASELINE} after round {last}, best of {most}"]
    return policies | iterated | oracle


def _write(config: AlignmentTableConfig, folder: pathlib.Path) -> pathlib.Path:
    """Tables as text, Markdown and CSV, the picture, and the page."""
    folder.mkdir(parents=True, exist_ok=True)
    evaluate = config.template.evaluate
    seeds = [_policies(config, seed) for seed in config.seeds]
    policies = {name: [found[name] for found in seeds] for name in seeds[0]}
    summaries = summarise(
        policies,
        baseline=BASELINE,
        num_samples=evaluate.bootstrap_samples,
        confidence=evaluate.confidence,
    )
    tables = _tables(config, policies, summaries)
    text = "\n\n".join(to_text(table) for table in tables)
    (folder / "table.txt").write_text(text + "\n", encoding="utf-8")
    markdown = "\n\n".join(to_markdown(table) for table in tables)
    (folder / "table.md").write_text(markdown + "\n", encoding="utf-8")
    _write_csv(folder / "table.csv", summaries)
    (folder / "summaries.json").write_text(json.dumps(to_dict({s.name: s for s in summaries})))
    models = [summary for summary in summaries if summary.name not in REFERENCES]
    plot_methods(folder / "methods.png", models, baseline=BASELINE)
    inputs = ReportInputs(
        title="Preference methods side by side",
        summary={
            "Seeds": ", ".join(map(str, config.seeds)),
            "Users": f"{sum(len(found[BASELINE]['reward']) for found in seeds):,} over all seeds",
            "Hardware": f"{jax.device_count()} x {jax.devices()[0].device_kind}, "
            f"{os.cpu_count()} CPU cores",
        },
        tables=tables,
        plots=(
            Plot(
                path=os.fspath(folder / "methods.png"),
                caption="Paired gain of the most probable session over the pre-trained model. "
                "Where the reward model gains and the others do not, it is being exploited.",
                description="One panel per judge, one dot with its interval per method.",
            ),
        ),
        config=to_dict(config),
    )
    return write_page(inputs, folder)


def _tables(
    config: AlignmentTableConfig,
    policies: dict[str, list[Measures]],
    summaries: list[PolicySummary],
) -> tuple[Table, ...]:
    """The main table, what iterating buys, heads, best-of-N, judges, seeds."""
    template = config.template
    judges = [judge for judge in ("truth", "reward", "judge") if judge in summaries[0].measures]
    tables = [
        policy_table(
            summaries,
            baseline=BASELINE,
            list_length=template.evaluate.list_length,
            confidence=template.evaluate.confidence,
            steps=training_steps(config),
        ),
        _iterating(config, policies, judges),
        *_weighing(config, policies, judges),
        _seed_table(config, summaries, judges),
        head_table(
            summaries,
            judge="reward",
            heads=template.reward.head_names,
            title="Heads of the reward model (chose the pairs)",
        ),
        head_table(
            summaries,
            judge="judge",
            heads=template.judge.head_names,
            title="Heads of the held-out judge",
        ),
        best_of_table(summaries, numbers=template.evaluate.best_of, judges=judges),
    ]
    if "truth" in judges:
        tables.append(concordance_table(_concordances(config)))
    return tuple(tables)


def _iterating(
    config: AlignmentTableConfig, policies: dict[str, list[Measures]], judges: Sequence[str]
) -> Table:
    """Paired differences of IPA to what it must beat."""
    most = max(config.template.evaluate.best_of)
    others = (BASELINE, "+DPO", f"+{LONG}", f"{BASELINE}, best of {most}")
    return _differences(
        config,
        policies,
        judges,
        [(f"+{IPA}", other) for other in others],
        title=f"What {config.template.align.num_rounds} rounds buy",
        note="Best of N: of the session chosen. ",
    )


def _weighing(
    config: AlignmentTableConfig, policies: dict[str, list[Measures]], judges: Sequence[str]
) -> list[Table]:
    """Paired differences of contrastive cDPO to the controls of its weights; none without it."""
    pairs = []
    for scale in config.weight_scales if Method.CONTRASTIVE in config.methods else ():
        ours, *controls = (row.name for row in contrast_rows(config) if row.scale is scale)
        others = ("+DPO", f"+{LONG}", *(f"+{control}" for control in controls))
        pairs += [(f"+{ours}", other) for other in others]
        if config.template.align.num_rounds > 1:
            others = (f"+{IPA}", *map(iterated_name, controls))
            pairs += [(iterated_name(ours), other) for other in others]
    if not pairs:
        return []
    return [
        _differences(
            config,
            policies,
            judges,
            pairs,
            title="What the choice of codes buys",
            note="DPO and IPA are the control of uniform weights; the other controls have the same "
            "scores and positive and negative models. ",
        )
    ]


def _differences(
    config: AlignmentTableConfig,
    policies: dict[str, list[Measures]],
    judges: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    *,
    title: str,
    note: str,
) -> Table:
    """Paired differences of policies, the first of a pair minus the second."""
    evaluate = config.template.evaluate
    rows = []
    for pair in pairs:
        cells = []
        for judge in judges:
            ours, theirs = (
                np.concatenate([measures[judge] for measures in policies[name]]) for name in pair
            )
            found = paired_bootstrap(
                ours,
                theirs,
                key=jax.random.key(0),
                num_samples=evaluate.bootstrap_samples,
                confidence=evaluate.confidence,
            )
            verdict = "better" if found.low > 0 else "worse" if found.high < 0 else "undecided"
            cells.append(f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}] {verdict}")
        rows.append((f"{pair[0]} minus {pair[1]}", *cells))
    return Table(
        title=title,
        note=f"Paired differences of the most probable sessions. {note}"
        f"{evaluate.confidence:.0%} intervals over users. Better or worse: the interval excludes "
        "zero.",
        header=("difference", *judges),
        rows=tuple(rows),
    )


def _seed_table(
    config: AlignmentTableConfig, summaries: list[PolicySummary], judges: Sequence[str]
) -> Table:
    """Every policy's mean, seed by seed."""
    header = [f"{judge}, seed {seed}" for judge in judges for seed in config.seeds]
    rows = [
        (
            summary.name,
            *(f"{value:.3f}" for judge in judges for value in summary.seed_means[judge]),
        )
        for summary in summaries
    ]
    return Table(
        title="Seed by seed",
        note="Means over users. Every seed has its own world, training and users.",
        header=("policy", *header),
        rows=tuple(rows),
    )


def _concordances(config: AlignmentTableConfig) -> dict[str, dict[str, Interval]]:
    """Both judges before the truth, on the beams of the first and of the last model."""
    rows = {}
    last = config.template.align.num_rounds
    for number, name in ((0, f"beams of {BASELINE}"), (last, f"beams of +{IPA}")):
        found = [
            align_report.concordances(cells[0].folders, cells[0].config, number)
            for cells in (table_cells(config, seed) for seed in config.seeds)
        ]
        rows[name] = {
            judge: bootstrap_interval(
                np.concatenate([part[judge] for part in found]),
                key=jax.random.key(0),
                num_samples=config.template.evaluate.bootstrap_samples,
                confidence=config.template.evaluate.confidence,
            )
            for judge in ("reward", "judge")
        }
    return rows


def _write_csv(path: pathlib.Path, summaries: list[PolicySummary]) -> None:
    """Every measure of every policy, one per line."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["policy", "measure", "mean", "low", "high", "gain", "gain_low", "gain_high"]
        )
        for summary in summaries:
            for measure, found in summary.measures.items():
                gain = summary.gains.get(measure)
                cells = ["", "", ""] if gain is None else [gain.mean, gain.low, gain.high]
                writer.writerow([summary.name, measure, found.mean, found.low, found.high, *cells])
