"""Stage `align_report`: what every judge says of every round, as tables, pictures and a page.

Dimension key: U users, K sessions of a user.
"""

import dataclasses
import json
import logging
import os
import pathlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from core_jax.config import to_dict
from core_jax.run_folder import read_done, run_stage, stage_folder
from rec_jax.align.panel import Moments
from rec_jax.align.plots import plot_best_of, plot_rounds
from rec_jax.align.policy_metrics import (
    PolicySessions,
    best_of_n,
    concordance,
    per_user_metrics,
)
from rec_jax.align.run_config import AlignRunConfig, Folders
from rec_jax.align.summary import Measures, PolicySummary, summarise
from rec_jax.align.tables import best_of_table, concordance_table, head_table, policy_table
from rec_jax.catalogue import Catalogue, category_matrix, make_catalogue
from rec_jax.data.sessions import SessionData
from rec_jax.evaluation_tables import Table, to_text
from rec_jax.ranking_metrics import Interval, bootstrap_interval
from rec_jax.recommend import Request, Sample, make_sample
from rec_jax.report_page import Plot, ReportInputs, write_page
from rec_jax.reward.quality import quality_table
from rec_jax.stages import align_evaluate, candidates, generators, groups, prepare, reward
from rec_jax.stages.report import read_rows

NAME = "align_report"
BASELINE = "OneRec"
"""Name of the pre-trained model among the policies."""
NUM_SAMPLES = 3
"""Users whose sessions are shown before and after."""
_LOGGER = logging.getLogger(__name__)


def run(folders: Folders, config: AlignRunConfig) -> bool:
    """Writes tables, pictures and page. Returns whether the stage is done."""

    def work(folder: pathlib.Path) -> Mapping[str, Any]:
        page = _write(folders, config, folder, pathlib.Path(folders.run) / "report")
        _LOGGER.info("the report is in %s", page)
        return {"page": os.fspath(page)}

    after = [align_evaluate.stage_name(number) for number in range(1, config.align.num_rounds + 1)]
    parts = {
        "bootstrap": [config.evaluate.bootstrap_samples, config.evaluate.confidence],
        "best_of": list(config.evaluate.best_of),
        "before": read_done(folders.shared, align_evaluate.stage_name(0))["fingerprint"],
    }
    return run_stage(folders.run, NAME, parts, work, after=after, repeatable=True)


def text(folders: Folders) -> str:
    """The report's tables for the terminal."""
    return (stage_folder(folders.run, NAME) / "report.txt").read_text(encoding="utf-8")


def policies_of_round(
    folders: Folders, config: AlignRunConfig, numbers: Sequence[int], *, name: str = BASELINE
) -> dict[str, Measures]:
    """Measures of M_t, and of best-of-N with it, by name.

    Args:
      folders: the run.
      config: its configuration.
      numbers: which rounds.
      name: M_0 is called so, the others NAME after round t.
    """
    _, data = prepare.load(folders.base)
    judge = _Judge(folders, config, data)
    policies: dict[str, Measures] = {}
    for number in numbers:
        title = name if number == 0 else f"{name} after round {number}"
        sessions = align_evaluate.load(folders, number)
        policies[title] = judge.measures(sessions, best_of=config.evaluate.best_of)
        most = max(config.evaluate.best_of)
        policies[f"{title}, best of {most}"] = judge.measures(_best_only(sessions, most))
    return policies


def reference_policies(folders: Folders, config: AlignRunConfig) -> dict[str, Measures]:
    """Measures of random, popularity and oracle sessions, by name."""
    _, data = prepare.load(folders.base)
    judge = _Judge(folders, config, data)
    found = align_evaluate.load_references(folders)
    return {name: judge.measures(sessions) for name, sessions in found.items()}


def concordances(folders: Folders, config: AlignRunConfig, number: int) -> dict[str, np.ndarray]:
    """Share of a user's session pairs that each judge orders as the truth does, for M_t."""
    sessions = align_evaluate.load(folders, number)
    return {
        name: concordance(value_UK, sessions.truth, sessions.alive)
        for name, value_UK in (("reward", sessions.reward), ("judge", sessions.judge))
    }


class _Judge:
    """What the measures of all policies share."""

    def __init__(self, folders: Folders, config: AlignRunConfig, data: SessionData):
        self.moments = align_evaluate.load_moments(config, data)
        log, _ = prepare.load(folders.base)
        self._categories = category_matrix(make_catalogue(data.item_ids, log.items))
        self._heads = config.reward.head_names
        self._judge_heads = config.judge.head_names
        self._list_length = config.evaluate.list_length

    def measures(self, sessions: PolicySessions, *, best_of: Sequence[int] = ()) -> Measures:
        """All measures of one policy, legality repeated for every user."""
        found = per_user_metrics(
            sessions,
            targets=self.moments.targets,
            categories=self._categories,
            heads=self._heads,
            judge_heads=self._judge_heads,
            best_of=best_of,
            list_length=self._list_length,
        )
        legality_U = np.full(len(sessions.items), float(sessions.legality[0]))
        return found | {"legality": legality_U}


def _best_only(sessions: PolicySessions, number: int) -> PolicySessions:
    """The policy that gives the best of N sessions, by the reward model, and no list."""
    place_U1 = best_of_n(sessions.reward, sessions.alive, number)[:, None]

    def picked(values: np.ndarray) -> np.ndarray:
        index = place_U1.reshape(place_U1.shape + (1,) * (values.ndim - 2))
        return np.take_along_axis(values, index, axis=1)

    fields = ("items", "alive", "reward_targets", "reward", "judge_targets", "judge")
    return PolicySessions(
        **{name: picked(getattr(sessions, name)) for name in fields},
        truth=picked(sessions.truth) if sessions.has_truth else sessions.truth,
        first_items=sessions.first_items[:, :0],
        legality=np.array([np.nan]),
    )


def _write(
    folders: Folders, config: AlignRunConfig, stage: pathlib.Path, folder: pathlib.Path
) -> pathlib.Path:
    """Computes the tables, draws the pictures, writes text, JSON and page."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = range(config.align.num_rounds + 1)
    references = reference_policies(folders, config)
    rounds = policies_of_round(folders, config, numbers)
    low = {name: found for name, found in references.items() if name != "oracle"}
    high = {name: found for name, found in references.items() if name == "oracle"}
    summaries = summarise(
        {name: [measures] for name, measures in (low | rounds | high).items()},
        baseline=BASELINE,
        num_samples=config.evaluate.bootstrap_samples,
        confidence=config.evaluate.confidence,
        seed=config.seed,
    )
    tables = _tables(folders, config, summaries)
    (stage / "report.txt").write_text(
        "\n\n".join(to_text(table) for table in tables) + "\n", encoding="utf-8"
    )
    (stage / "summaries.json").write_text(json.dumps(to_dict({s.name: s for s in summaries})))
    inputs = ReportInputs(
        title="Preference alignment",
        summary=_facts(folders, config),
        tables=tables,
        plots=_plots(config, summaries, folder),
        samples=tuple(_samples(folders, config)),
        config=to_dict(config),
    )
    return write_page(inputs, folder)


def _tables(
    folders: Folders, config: AlignRunConfig, summaries: list[PolicySummary]
) -> tuple[Table, ...]:
    """All tables, the most important one first."""
    judges = [judge for judge in ("reward", "judge", "truth") if judge in summaries[0].measures]
    tables = [
        policy_table(
            summaries,
            baseline=BASELINE,
            list_length=config.evaluate.list_length,
            confidence=config.evaluate.confidence,
        ),
        best_of_table(summaries, numbers=config.evaluate.best_of, judges=judges),
        head_table(
            summaries,
            judge="reward",
            heads=config.reward.head_names,
            title="Heads of the reward model",
        ),
        head_table(
            summaries,
            judge="judge",
            heads=config.judge.head_names,
            title="Heads of the held-out judge",
        ),
    ]
    if "truth" in judges:
        numbers = range(config.align.num_rounds + 1)
        rows = {f"beams of M_{number}": _intervals(folders, config, number) for number in numbers}
        tables.insert(1, concordance_table(rows))
    tables += [
        dataclasses.replace(quality_table(reward.load_quality(folders.shared, name)), title=title)
        for name, title in (
            (reward.NAME, "Reward model on held-out sessions"),
            (reward.JUDGE_NAME, "Held-out judge on held-out sessions"),
        )
    ]
    return tuple(tables)


def _intervals(folders: Folders, config: AlignRunConfig, number: int) -> dict[str, Interval]:
    """Concordance of both judges with the truth on the beams of M_t."""
    return {
        name: bootstrap_interval(
            value_U,
            key=jax.random.key(config.seed),
            num_samples=config.evaluate.bootstrap_samples,
            confidence=config.evaluate.confidence,
        )
        for name, value_U in concordances(folders, config, number).items()
    }


def _plots(
    config: AlignRunConfig, summaries: list[PolicySummary], folder: pathlib.Path
) -> tuple[Plot, ...]:
    """Rounds and best-of-N."""
    by_name = {summary.name: summary for summary in summaries}
    last = f"{BASELINE} after round {config.align.num_rounds}"
    rounds = [
        by_name[BASELINE],
        *(by_name[f"{BASELINE} after round {t}"] for t in range(1, config.align.num_rounds + 1)),
    ]
    plot_rounds(folder / "rounds.png", rounds)
    plot_best_of(
        folder / "best_of.png", [by_name[BASELINE], by_name[last]], numbers=config.evaluate.best_of
    )
    return (
        Plot(
            path=os.fspath(folder / "rounds.png"),
            caption="What the most probable session is worth after each round. A reward that rises "
            "where the held-out judge and the truth do not is reward hacking.",
            description="One curve per judge over the rounds, with intervals.",
        ),
        Plot(
            path=os.fspath(folder / "best_of.png"),
            caption="The session that the reward model prefers among the N most probable ones, "
            "before (solid) and after the last round (dashed).",
            description="One panel per judge, curves over N.",
        ),
    )


def _facts(folders: Folders, config: AlignRunConfig) -> dict[str, str]:
    """The run in a few facts."""
    align = config.align
    facts = {
        "Method": f"{align.method.method.value}, {align.num_rounds} rounds of "
        f"{align.loop.num_steps} steps of {align.batch_size}",
        "Preferences": f"{align.preference_ratio:.0%} of the samples, weight "
        f"{align.effective_weight:g}, best and worst of {align.candidates.num_beams}",
    }
    seconds = {}
    for number in range(1, align.num_rounds + 1):
        done = read_done(folders.run, groups.stage_name(number))["facts"]
        seconds[f"round {number}"] = sum(
            read_done(where, name)["seconds"]
            for where, name in (
                (candidates.run_dir(folders, number), candidates.stage_name(number)),
                (folders.run, groups.stage_name(number)),
                (folders.run, generators.train_stage(number)),
                (folders.run, align_evaluate.stage_name(number)),
            )
        )
        rows = read_rows(stage_folder(folders.run, generators.train_stage(number)))
        facts[f"Round {number}"] = (
            f"{done['groups']:,} of {done['contexts']:,} contexts have a preference; at the end "
            f"the chosen one is ahead in {rows[-1]['margin_accuracy']:.0%}"
        )
    return facts | {
        "Time": ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items()),
        "Hardware": f"{jax.device_count()} x {jax.devices()[0].device_kind}, "
        f"{os.cpu_count()} CPU cores",
        "Software": f"jax {jax.__version__}, Python {platform.python_version()}",
        "Seed": str(config.seed),
    }


def _samples(folders: Folders, config: AlignRunConfig) -> list[Sample]:
    """Sessions of a few users before and after."""
    log, data = prepare.load(folders.base)
    catalogue = make_catalogue(data.item_ids, log.items)
    moments = align_evaluate.load_moments(config, data)
    last = config.align.num_rounds
    before, after = (align_evaluate.load(folders, number) for number in (0, last))
    return [
        _sample(catalogue, moments, user, sessions, f"{when} (user {moments.user_ids[user]})")
        for user in range(min(NUM_SAMPLES, len(moments.rows)))
        for sessions, when in (
            (before, "before alignment"),
            (after, f"after round {last}"),
        )
    ]


def _sample(
    catalogue: Catalogue, moments: Moments, user: int, sessions: PolicySessions, heading: str
) -> Sample:
    """One user's sessions of one model, scored by the reward model."""
    history, targets = moments.history[user], moments.targets[user]
    request = Request(heading=heading, history=history[history >= 0], targets=targets[targets >= 0])
    return make_sample(
        catalogue,
        request,
        sessions=sessions.items[user],
        scores=np.where(sessions.alive[user], sessions.reward[user], -np.inf),
        num_sessions=2,
        score_name="reward",
    )
