"""Evaluation of recommendation lists and sessions against the next session of every user.

Every method is read through the same door: item lists as arrays. Intervals are bootstrap
percentile intervals over users; differences are paired, on the same resampled users.

Dimension key: U users, K listed items (best first), M session items, H history items,
I catalogue items, C categories, S popularity strata, L code levels.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import polars as pl

from core_jax.arrays import Array, Key
from core_jax.errors import ConfigError, DataError, nearest_name
from rec_jax import ranking_metrics
from rec_jax.data.sessions import SessionData, histories, targets
from rec_jax.ranking_metrics import PADDING, Interval

RANKED = {
    "recall": ranking_metrics.recall_at_k,
    "ndcg": ranking_metrics.ndcg_at_k,
    "hit": ranking_metrics.hit_at_k,
}
"""Metrics of a ranked list against the set of target items."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What is measured."""

    ks: tuple[int, ...] = (5, 10)
    """List lengths at which Recall, NDCG and Hit are read; the longest also serves coverage,
    diversity and popularity strata."""
    bootstrap_samples: int = 2000
    """Resamples of the users per interval."""
    confidence: float = 0.95
    """Probability mass of an interval."""
    num_strata: int = 3
    """Popularity strata of equal training interactions, head first."""
    mask_history: bool = True
    """No method may list an item of the user's history; a list that does is an error."""
    legality_users: int = 128
    """Users whose sessions are also generated without the catalogue constraint, to count how many
    of those code tuples name an item; 0 leaves it out."""
    seed: int = 0
    """Seed of the bootstrap resamples."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if not self.ks or min(self.ks) < 1 or list(self.ks) != sorted(set(self.ks)):
            raise ConfigError(f"evaluate.ks must be rising positive lengths, got {self.ks}")
        if self.bootstrap_samples < 1 or self.num_strata < 1 or self.legality_users < 0:
            raise ConfigError(
                "evaluate needs bootstrap_samples >= 1, num_strata >= 1 and legality_users >= 0, "
                f"got {self.bootstrap_samples}, {self.num_strata} and {self.legality_users}"
            )
        if not 0 < self.confidence < 1:
            raise ConfigError(f"evaluate.confidence must lie between 0 and 1: {self.confidence}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationCase:
    """What every method is held against. NumPy arrays."""

    targets: np.ndarray
    """Int [U, M]: items of the next session in time order, padded with -1."""
    history: np.ndarray
    """Int [U, H]: all positives before that session, padded with -1."""
    item_counts: np.ndarray
    """Int [I]: training interactions per item."""
    categories: np.ndarray | None = None
    """Bool [I, C], or None where the catalogue has no categories."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodLists:
    """What one method recommends. NumPy arrays; user u is row u of the case."""

    name: str
    items: np.ndarray
    """Int [U, K]: ranked single items, best first, padded with -1. For OneRec the distinct first
    items of the beam."""
    sessions: np.ndarray | None = None
    """Int [U, M]: the best generated session in the order generated, or None."""
    legality: float | None = None
    """Share of code tuples generated without the constraint that name an item, or None."""
    code_entropy: tuple[float, ...] | None = None
    """Entropy in nats of the predicted code distribution per level (Fig. 5), or None."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodRow:
    """One method's results."""

    name: str
    metrics: dict[str, Interval]
    """recall@k, ndcg@k, hit@k of the list against the set; next_hit@k, next_ndcg@k against the
    very next item; session_recall, session_ndcg, session_hit of the best session at its length;
    diversity of the longest list where there are categories."""
    coverage: float
    stratum_recall: tuple[float | None, ...]
    """Pooled recall of the targets of each stratum, head first; None without such a target."""
    stratum_share: tuple[float, ...]
    """Share of the listed places that each stratum fills."""
    legality: float | None
    code_entropy: tuple[float, ...] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """Paired difference of two methods: mean(method - baseline) per metric."""

    method: str
    baseline: str
    metrics: dict[str, Interval]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """Results of all methods on one case."""

    num_users: int
    num_items: int
    ks: tuple[int, ...]
    session_length: int
    """Items M of a generated session; 0 where no method generates sessions."""
    confidence: float
    rows: tuple[MethodRow, ...]
    differences: tuple[Difference, ...]
    per_user: dict[str, dict[str, np.ndarray]]
    """Float [U] per method and metric, for pooling several seeds."""


def make_case(
    data: SessionData, split: str, *, categories: np.ndarray | None = None
) -> EvaluationCase:
    """The case of one split: whole targets, whole histories, training counts.

    Args:
      data: the sessions.
      split: "valid" or "test".
      categories: Bool [I, C], True where an item belongs to a category, or None.

    Returns:
      One row per example of the split.

    Raises:
      ConfigError: an unknown split.
    """
    return EvaluationCase(
        targets=targets(data, split, 0),
        history=histories(data, split, 0),
        item_counts=data.train_item_counts,
        categories=categories,
    )


def evaluate(
    methods: Sequence[MethodLists],
    case: EvaluationCase,
    config: EvaluateConfig,
    *,
    compare: Sequence[tuple[str, str]] = (),
    key: Key[Array, ""] | None = None,
) -> EvaluationReport:
    """Measures every method on the same users.

    Args:
      methods: the lists and sessions of each method.
      case: targets, histories and catalogue facts.
      config: what is measured.
      compare: (method, baseline) names whose paired difference is wanted.
      key: draws the resamples; by default made of `config.seed`. All methods share it.

    Returns:
      One row per method and one difference per pair.

    Raises:
      DataError: lists that do not fit the case, hold an item of the history, or an unknown name.
      ConfigError: lists shorter than the largest k.
    """
    key = jax.random.key(config.seed) if key is None else key
    _check_case(case)
    for method in methods:
        _check_method(method, case, config)
    per_user = {method.name: _per_user(method, case, config) for method in methods}

    columns = {(name, m): v for name, metrics in per_user.items() for m, v in metrics.items()}
    for name, baseline in compare:
        ours, theirs = (_metrics_of(per_user, which) for which in (name, baseline))
        columns |= {(name, baseline, m): ours[m] - theirs[m] for m in ours if m in theirs}
    columns = {name: values for name, values in columns.items() if not np.isnan(values).all()}
    drawn = ranking_metrics.bootstrap_intervals(
        np.stack(list(columns.values()), axis=1),
        key=key,
        num_samples=config.bootstrap_samples,
        confidence=config.confidence,
    )
    intervals: dict[tuple[str, ...], dict[str, Interval]] = {}
    for (*names, metric), interval in zip(columns, drawn, strict=True):
        intervals.setdefault(tuple(names), {})[metric] = interval
    sessions = [method.sessions for method in methods if method.sessions is not None]
    return EvaluationReport(
        num_users=len(case.targets),
        num_items=len(case.item_counts),
        ks=config.ks,
        session_length=sessions[0].shape[1] if sessions else 0,
        confidence=config.confidence,
        rows=tuple(_row(method, intervals[method.name,], case, config) for method in methods),
        differences=tuple(
            Difference(method=name, baseline=baseline, metrics=intervals[name, baseline])
            for name, baseline in compare
        ),
        per_user=per_user,
    )


def save_report(report: EvaluationReport, folder: str | os.PathLike[str]) -> None:
    """Writes evaluation.json and per_user_metrics.parquet into a folder."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        f"{name}/{metric}": values
        for name, metrics in report.per_user.items()
        for metric, values in metrics.items()
    }
    pl.DataFrame(values).write_parquet(folder / "per_user_metrics.parquet")
    (folder / "evaluation.json").write_text(json.dumps(to_dict(report), indent=1, allow_nan=False))


def load_report(folder: str | os.PathLike[str]) -> EvaluationReport:
    """Reads what `save_report` wrote.

    Raises:
      DataError: the folder holds no evaluation.
    """
    folder = pathlib.Path(folder)
    if not (folder / "evaluation.json").is_file():
        raise DataError(f"'{folder}' has no evaluation.json; run rec.evaluate first")
    per_user: dict[str, dict[str, np.ndarray]] = {}
    for column in pl.read_parquet(folder / "per_user_metrics.parquet"):
        name, metric = column.name.rsplit("/", 1)
        per_user.setdefault(name, {})[metric] = column.to_numpy()
    return from_dict(json.loads((folder / "evaluation.json").read_text()), per_user=per_user)


def to_dict(report: EvaluationReport) -> dict[str, Any]:
    """The report without the per-user values, as JSON-able data."""
    fields = dataclasses.asdict(dataclasses.replace(report, per_user={}))
    del fields["per_user"]
    return fields


def from_dict(
    data: Mapping[str, Any], *, per_user: dict[str, dict[str, np.ndarray]] | None = None
) -> EvaluationReport:
    """Rebuilds a report from `to_dict`'s data."""

    def intervals(metrics: Mapping[str, Any]) -> dict[str, Interval]:
        return {name: Interval(**fields) for name, fields in metrics.items()}

    def row(fields: Mapping[str, Any]) -> MethodRow:
        entropy = fields["code_entropy"]
        return MethodRow(
            **{
                **fields,
                "metrics": intervals(fields["metrics"]),
                "stratum_recall": tuple(fields["stratum_recall"]),
                "stratum_share": tuple(fields["stratum_share"]),
                "code_entropy": None if entropy is None else tuple(entropy),
            }
        )

    return EvaluationReport(
        **{
            **data,
            "ks": tuple(data["ks"]),
            "rows": tuple(row(fields) for fields in data["rows"]),
            "differences": tuple(
                Difference(**{**fields, "metrics": intervals(fields["metrics"])})
                for fields in data["differences"]
            ),
            "per_user": per_user or {},
        }
    )


def _per_user(
    method: MethodLists, case: EvaluationCase, config: EvaluateConfig
) -> dict[str, np.ndarray]:
    """Every metric's value for every user."""
    values = {
        f"{name}@{k}": metric(method.items, case.targets, k=k)
        for k in config.ks
        for name, metric in RANKED.items()
    }
    next_item_U1 = case.targets[:, :1]
    for k in config.ks:
        values[f"next_hit@{k}"] = ranking_metrics.hit_at_k(method.items, next_item_U1, k=k)
        values[f"next_ndcg@{k}"] = ranking_metrics.ndcg_at_k(method.items, next_item_U1, k=k)
    if method.sessions is not None:
        length = method.sessions.shape[1]
        for name, metric in RANKED.items():
            values[f"session_{name}"] = metric(method.sessions, case.targets, k=length)
    if case.categories is not None:
        values["diversity"] = ranking_metrics.category_diversity(
            method.items[:, : config.ks[-1]], case.categories
        )
    return values


def _row(
    method: MethodLists, metrics: dict[str, Interval], case: EvaluationCase, config: EvaluateConfig
) -> MethodRow:
    """Everything that is told about one method."""
    strata_I = ranking_metrics.popularity_strata(case.item_counts, num_strata=config.num_strata)
    longest_UK = method.items[:, : config.ks[-1]]
    recall_S = ranking_metrics.recall_by_stratum(
        longest_UK, case.targets, strata_I, k=config.ks[-1], num_strata=config.num_strata
    )
    share_S = ranking_metrics.stratum_shares(longest_UK, strata_I, num_strata=config.num_strata)
    return MethodRow(
        name=method.name,
        metrics=metrics,
        coverage=ranking_metrics.coverage(longest_UK, num_items=len(case.item_counts)),
        stratum_recall=tuple(None if np.isnan(value) else float(value) for value in recall_S),
        stratum_share=tuple(share_S.tolist()),
        legality=method.legality,
        code_entropy=method.code_entropy,
    )


def _metrics_of(per_user: dict[str, dict[str, np.ndarray]], name: str) -> dict[str, np.ndarray]:
    """A method's per-user values, or an error that names the near one."""
    if name not in per_user:
        raise DataError(f"no method '{name}' to compare. {nearest_name(name, per_user)}")
    return per_user[name]


def _check_case(case: EvaluationCase) -> None:
    """Every user needs a target, and items must be of the catalogue."""
    num_without = int((case.targets[:, :1] == PADDING).sum())
    if num_without or not len(case.targets):
        raise DataError(
            f"{num_without} of {len(case.targets)} users have no target item in first place; "
            "evaluate on users with a next session, whose items stand left-aligned"
        )
    highest = max(int(case.targets.max()), int(case.history.max(initial=PADDING)))
    if highest >= len(case.item_counts):
        raise DataError(
            f"item {highest} is outside the catalogue of {len(case.item_counts)} items; "
            "targets, histories and item counts must come from the same sessions"
        )


def _check_method(method: MethodLists, case: EvaluationCase, config: EvaluateConfig) -> None:
    """Lists must be of the same users and catalogue and must leave the history out."""
    for what, items in (("items", method.items), ("sessions", method.sessions)):
        if items is None:
            continue
        if len(items) != len(case.targets):
            raise DataError(
                f"'{method.name}': {what} has {len(items)} users, the case has {len(case.targets)}"
            )
        if items.min() < PADDING or items.max() >= len(case.item_counts):
            raise DataError(
                f"'{method.name}': {what} holds an index outside -1 to "
                f"{len(case.item_counts) - 1}; it was made for another catalogue"
            )
        num_seen = sum(
            int(np.isin(row[row != PADDING], seen).sum())
            for row, seen in zip(items, case.history, strict=True)
        )
        if config.mask_history and num_seen:
            raise DataError(
                f"'{method.name}': {num_seen} places of {what} hold an item of the user's "
                "history; leave the whole history out, or set evaluate.mask_history to False"
            )
