"""The quality of a reward model on held-out sessions, head by head, beside a baseline's.

Dimension key: S sessions, T heads that have a label.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from core_jax.arrays import Bool, Float, Int
from rec_jax.evaluation_tables import ABSENT, Table
from rec_jax.reward import judgement
from rec_jax.reward.config import P_SCORE, TargetConfig
from rec_jax.reward.judgement import Calibration
from rec_jax.reward.labels import Labels


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadQuality:
    """One head of one predictor on one set of sessions."""

    head: str
    """Name of the head."""
    predictor: str
    """Whose prediction it is."""
    users: str
    """Whose sessions these are."""
    num_sessions: int
    """Sessions with this label."""
    mean_label: float
    """Mean of the labels."""
    auc: float
    """Area under the ROC curve; NaN where all labels are of one class."""
    group_auc: float
    """The same within users, weighted by sessions."""
    num_groups: int
    """Users that have both classes."""
    log_loss: float
    """Mean cross-entropy, nats."""
    constant_log_loss: float
    """That of the training sessions' mean label as the prediction for every session."""
    calibration: Calibration
    """Bins and expected calibration error."""


def with_p_score(targets: Sequence[TargetConfig], labels: Labels) -> Labels:
    """Adds what the P-score's head is trained towards: the weighted mean of the labels there are.

    Args:
      targets: the heads, with their weights.
      labels: of the targets.

    Returns:
      Labels with one more column.
    """
    weight_ST = labels.mask * np.array([target.p_weight for target in targets], np.float64)
    total_S = weight_ST.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_S = (weight_ST * labels.values).sum(axis=1) / total_S
    mean_S = np.where(total_S > 0, mean_S, 0.0).astype(np.float32)
    return Labels(
        values=np.concatenate([labels.values, mean_S[:, None]], axis=1),
        mask=np.concatenate([labels.mask, total_S[:, None] > 0], axis=1),
    )


def measure(
    names: Sequence[str],
    predictors: Mapping[str, Float[np.ndarray, "S _"]],
    labels: Labels,
    users: Int[np.ndarray, "S"],
    groups: Mapping[str, Bool[np.ndarray, "S"]],
    trains: Bool[np.ndarray, "S"],
    *,
    num_bins: int,
) -> tuple[HeadQuality, ...]:
    """Measures every head of every predictor on every set of sessions.

    Args:
      names: the heads, in the order of the labels' columns.
      predictors: probabilities of all sessions by name; one with fewer columns has fewer heads.
      labels: of all sessions.
      users: the user of each session.
      groups: sets of held-out sessions by name.
      trains: the sessions trained on, for the constant prediction.
      num_bins: bins of the calibration.

    Returns:
      One entry per set, head and predictor; none where no session has the label.
    """
    found = []
    for group, is_inside_S in groups.items():
        for place, head in enumerate(names):
            kept_S = is_inside_S & labels.mask[:, place]
            label_S = labels.values[kept_S, place].astype(np.float64)
            trained = labels.values[trains & labels.mask[:, place], place]
            if not len(label_S):
                continue
            is_positive_S = judgement.classes(label_S)
            constant_S = np.full(len(label_S), trained.mean(dtype=np.float64))
            for predictor, all_probabilities in predictors.items():
                if place >= all_probabilities.shape[1]:
                    continue
                probability_S = all_probabilities[kept_S, place].astype(np.float64)
                within, num_groups = judgement.group_auc(
                    is_positive_S, probability_S, users[kept_S]
                )
                found.append(
                    HeadQuality(
                        head=head,
                        predictor=predictor,
                        users=group,
                        num_sessions=len(label_S),
                        mean_label=float(label_S.mean()),
                        auc=judgement.auc(is_positive_S, probability_S),
                        group_auc=within,
                        num_groups=num_groups,
                        log_loss=judgement.log_loss(label_S, probability_S),
                        constant_log_loss=judgement.log_loss(label_S, constant_S),
                        calibration=judgement.calibration(label_S, probability_S, num_bins),
                    )
                )
    return tuple(found)


def quality_table(qualities: Sequence[HeadQuality]) -> Table:
    """The qualities as one table."""
    header = (
        *("head, users, predictor", "sessions", "mean label", "AUC", "GAUC", "users with both"),
        *("log loss", "constant", "ECE"),
    )
    rows = tuple(
        (
            f"{quality.head}, {quality.users}, {quality.predictor}",
            f"{quality.num_sessions:,}",
            f"{quality.mean_label:.4f}",
            _number(quality.auc),
            _number(quality.group_auc),
            f"{quality.num_groups:,}",
            _number(quality.log_loss),
            _number(quality.constant_log_loss),
            _number(quality.calibration.error),
        )
        for quality in qualities
    )
    return Table(
        title="Reward model on held-out sessions",
        note="AUC and GAUC of a soft label: above against not above the median of these sessions; "
        "GAUC within users, weighted by sessions. Log loss in nats of the label itself; constant: "
        f"of the training sessions' mean label. ECE: calibration error. {P_SCORE}, where there is "
        "one, is held against the weighted mean of the labels.",
        header=header,
        rows=rows,
    )


def to_records(qualities: Sequence[HeadQuality]) -> list[dict]:
    """The qualities as values that JSON can hold; NaN becomes None."""
    return [
        {
            name: None if isinstance(value, float) and np.isnan(value) else value
            for name, value in dataclasses.asdict(quality).items()
        }
        for quality in qualities
    ]


def _number(value: float) -> str:
    return ABSENT if np.isnan(value) else f"{value:.4f}"


def from_records(records: Sequence[Mapping[str, Any]]) -> list[HeadQuality]:
    """Rebuilds qualities from what `to_records` wrote."""
    found = []
    for record in records:
        # JSON has no NaN: `to_records` wrote None.
        fields: dict[str, Any] = {
            name: math.nan if value is None else value for name, value in record.items()
        }
        bins: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in fields.pop("calibration").items()
        }
        found.append(HeadQuality(**fields, calibration=Calibration(**bins)))
    return found
