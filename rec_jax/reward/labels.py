"""Session labels in [0, 1] from the rows of delivered items.

A label reads the rows of its own session and, for ranks, reference values of the training period
alone, which are kept with the model so that labels can be made again. The paper (arXiv:2502.18965)
does not say how the session's watch time became a label; here it is a rank, which is a soft label.
Duration-aware kinds follow arXiv:2508.20900: bucket floor(log_beta(d + eps)) with d in seconds and
eps = 1, and the rank of the watch time among the user's own in that bucket. Their bucket history
is the user's whole training period here, so that the label of a session does not depend on how
early it lies.

Dimension key: E events, S sessions, M session items, T targets, R reference values, Q queries.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence

import numpy as np

from core_jax.arrays import Float, Int
from core_jax.errors import ConfigError, DataError, nearest_name
from rec_jax.data.interactions import InteractionLog, feedback_columns
from rec_jax.reward.config import COLUMN_KINDS, DURATION_KINDS, TargetConfig, TargetKind
from rec_jax.semantic_ids.codebook import array_fingerprint, load_arrays, save_arrays

_RANK_KINDS = (
    TargetKind.WATCH_TIME_PERCENTILE,
    TargetKind.WATCH_TIME_ABOVE,
    TargetKind.PERCENTILE,
)
_MILLISECONDS = 1000.0

References = dict[str, np.ndarray]
"""Sorted values of the training period by target ('swt'), and for duration-aware targets also
'NAME/own' and 'NAME/all', the group (user and bucket, or bucket) of each value."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SessionRows:
    """Rows of delivered sessions. NumPy arrays."""

    columns: Mapping[str, np.ndarray]
    """Float64 [S, M] per column of the log that a target reads; NaN where absent or padding."""
    is_item: np.ndarray
    """Bool [S, M]: a delivered item."""
    user: np.ndarray
    """Int [S]: user number."""
    is_train: np.ndarray
    """Bool [S]: lies in the training period."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labels:
    """Labels of every session. NumPy arrays."""

    values: np.ndarray
    """Float32 [S, T] in [0, 1]; 0 where absent."""
    mask: np.ndarray
    """Bool [S, T]: the label is there."""


def columns_of(targets: Sequence[TargetConfig], log: InteractionLog) -> list[str]:
    """Names of the log's columns that the targets read.

    Raises:
      ConfigError: names the target, the column and what the log has.
    """
    known = feedback_columns(log)
    held = [
        name for name in ("watch_time_ms", "duration_ms") if name in log.interactions.columns
    ] + known
    names: list[str] = []
    for target in targets:
        wanted = [target.column] if target.kind in COLUMN_KINDS else ["watch_time_ms"]
        if target.kind in DURATION_KINDS:
            wanted.append("duration_ms")
        for name in wanted:
            if name not in held:
                hint = nearest_name(name, held) if held else ""
                raise ConfigError(
                    f"target '{target.name}' of kind '{target.kind.value}' needs the column "
                    f"'{name}', which '{log.source}' does not have (it has "
                    f"{', '.join(held) or 'no feedback'}). {hint} Map it, or drop the target"
                )
            names.append(name)
    return list(dict.fromkeys(names))


def make_references(targets: Sequence[TargetConfig], rows: SessionRows) -> References:
    """Collects what ranks are measured against: values of the training sessions, sorted.

    Args:
      targets: the heads.
      rows: all sessions; only those of the training period are read.

    Returns:
      Float64 values and int64 groups by name.
    """
    references: References = {}
    for target in targets:
        if target.kind in _RANK_KINDS:
            value_S = _session_value(target, rows)
            kept = value_S[rows.is_train & ~np.isnan(value_S)]
            references[target.name] = np.sort(kept)
        elif target.kind in DURATION_KINDS:
            watch_SM, bucket_SM, own_SM = _watch_and_groups(target, rows)
            is_kept_SM = rows.is_train[:, None] & ~np.isnan(watch_SM)
            references[target.name] = watch_SM[is_kept_SM]
            references[f"{target.name}/own"] = own_SM[is_kept_SM]
            references[f"{target.name}/all"] = bucket_SM[is_kept_SM]
    return references


def make_labels(
    targets: Sequence[TargetConfig], rows: SessionRows, references: References
) -> Labels:
    r"""Labels every session with every target.

    With the items' values :math:`x_i` of the target's column, watch times :math:`w_i`, and the
    rank :math:`F(x) = (\#\{r < x\} + \#\{r = x\} / 2) / R` among R reference values r:
    watch_time_percentile :math:`F(\sum_i w_i)`; watch_time_above :math:`[\sum_i w_i \ge Q_q]`
    with the references' quantile; any :math:`\max_i [x_i \ge \theta]`; share
    :math:`\mathrm{mean}_i [x_i \ge \theta]`; mean :math:`\mathrm{mean}_i (x_i - low) / (high -
    low)`; percentile :math:`F(\mathrm{mean}_i\, x_i)`; duration_percentile
    :math:`\mathrm{mean}_i\, q_i`; duration_share :math:`\mathrm{mean}_i [q_i > q]` with the rank
    :math:`q_i` of :math:`w_i` in the user's bucket.

    Items whose value is absent do not count; a session without any has no label. A sum of watch
    times is absent as soon as one of them is, since the sum of the others would say too little.

    Args:
      targets: the heads.
      rows: all sessions.
      references: from `make_references`.

    Returns:
      Labels and which of them are there.

    Raises:
      DataError: a mean lies beyond the target's scale.
    """
    values, masks = [], []
    for target in targets:
        if target.kind in DURATION_KINDS:
            label_S = _duration_label(target, rows, references)
        else:
            value_S = _session_value(target, rows)
            label_S = _scaled(target, value_S, references)
        has_label_S = ~np.isnan(label_S)
        values.append(np.where(has_label_S, label_S, 0.0))
        masks.append(has_label_S)
    return Labels(values=np.stack(values, axis=1).astype(np.float32), mask=np.stack(masks, axis=1))


def check_labels(targets: Sequence[TargetConfig], labels: Labels, where: str) -> None:
    """Checks that there is something to learn in every head.

    Args:
      targets: the heads.
      labels: of the training sessions.
      where: whose they are, for messages.

    Raises:
      DataError: a head without a label, or whose labels are all equal.
    """
    for place, target in enumerate(targets):
        found = labels.values[labels.mask[:, place], place]
        if not len(found):
            raise DataError(
                f"target '{target.name}' has no label in the {len(labels.mask)} training sessions "
                f"of {where}; drop the target"
            )
        if found.min() == found.max():
            raise DataError(
                f"target '{target.name}' is constant: all {len(found)} training sessions of "
                f"{where} that have it are labelled {found[0]:g}, so there is nothing to learn; "
                "drop the target or change its threshold"
            )


def percentile(
    references: Float[np.ndarray, "R"], values: Float[np.ndarray, "*dims"]
) -> Float[np.ndarray, "*dims"]:
    """Share of sorted reference values below each value, ties half; NaN stays.

    >>> percentile(np.array([1.0, 2.0, 2.0, 5.0]), np.array([0.0, 2.0, 9.0])).tolist()
    [0.0, 0.5, 1.0]
    """
    below = np.searchsorted(references, values, side="left")
    up_to = np.searchsorted(references, values, side="right")
    with np.errstate(invalid="ignore", divide="ignore"):
        rank = (below + up_to) / 2 / np.float64(len(references))
    return np.where(np.isnan(values), np.nan, rank)


def percentile_in_group(
    reference_groups: Int[np.ndarray, "R"],
    references: Float[np.ndarray, "R"],
    groups: Int[np.ndarray, "Q"],
    values: Float[np.ndarray, "Q"],
) -> tuple[Float[np.ndarray, "Q"], Int[np.ndarray, "Q"]]:
    """`percentile` among the reference values of each value's own group, and their number.

    >>> ranks, sizes = percentile_in_group(
    ...     np.array([7, 7, 3]), np.array([1.0, 2.0, 9.0]), np.array([7, 3, 5]), np.full(3, 2.0)
    ... )
    >>> ranks.tolist(), sizes.tolist()
    ([0.75, 0.0, nan], [2, 1, 0])
    """
    _, group_rank = np.unique(np.concatenate([reference_groups, groups]), return_inverse=True)
    _, value_rank = np.unique(np.concatenate([references, values]), return_inverse=True)
    stride = np.int64(len(value_rank) + 1)
    key = group_rank.astype(np.int64) * stride + value_rank
    key_R, key_Q = np.sort(key[: len(references)]), key[len(references) :]
    start_Q, stop_Q = (
        np.searchsorted(key_R, (group_rank[len(references) :] + shift).astype(np.int64) * stride)
        for shift in (0, 1)
    )
    below_Q = np.searchsorted(key_R, key_Q, side="left") - start_Q
    up_to_Q = np.searchsorted(key_R, key_Q, side="right") - start_Q
    size_Q = stop_Q - start_Q
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(size_Q, (below_Q + up_to_Q) / 2 / size_Q, np.nan), size_Q


def save_references(references: References, path: str | os.PathLike[str]) -> None:
    """Writes reference values as .npz, complete or not at all."""
    names = sorted(references)
    arrays = {f"array_{place}": references[name] for place, name in enumerate(names)}
    save_arrays(path, arrays, {"names": names}, array_fingerprint(tuple(arrays.values()), {}))


def load_references(path: str | os.PathLike[str]) -> References:
    """Reads what `save_references` wrote.

    Raises:
      CheckpointError: the file is absent or damaged.
    """
    arrays, facts, _ = load_arrays(path)
    return {name: arrays[f"array_{place}"] for place, name in enumerate(facts["names"])}


def _session_value(target: TargetConfig, rows: SessionRows) -> np.ndarray:
    """What a session's rows sum or average to; NaN where absent."""
    if target.kind in COLUMN_KINDS:
        value_SM = rows.columns[target.column]
        has_value_SM = ~np.isnan(value_SM)
        if target.kind in (TargetKind.ANY, TargetKind.SHARE):
            value_SM = np.where(has_value_SM, value_SM >= target.threshold, np.nan)
        count_S = has_value_SM.sum(axis=1)
        total_S = np.where(has_value_SM, value_SM, 0.0).sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(count_S, total_S / count_S, np.nan)
    watch_SM = rows.columns["watch_time_ms"]
    is_absent_SM = rows.is_item & np.isnan(watch_SM)
    return np.where(is_absent_SM.any(axis=1), np.nan, np.nansum(watch_SM, axis=1))


def _scaled(target: TargetConfig, value_S: np.ndarray, references: References) -> np.ndarray:
    """Labels from the sessions' sums or means."""
    if target.kind in (TargetKind.WATCH_TIME_PERCENTILE, TargetKind.PERCENTILE):
        return percentile(references[target.name], value_S)
    if target.kind is TargetKind.WATCH_TIME_ABOVE:
        held = references[target.name]
        bound = np.quantile(held, target.quantile) if len(held) else np.nan
        return np.where(np.isnan(value_S), np.nan, value_S >= bound)
    if target.kind is TargetKind.ANY:
        return np.where(np.isnan(value_S), np.nan, value_S > 0)
    if target.kind is TargetKind.SHARE:
        return value_S
    label_S = (value_S - target.low) / (target.high - target.low)
    is_beyond_S = (label_S < 0) | (label_S > 1)
    if is_beyond_S.any():
        raise DataError(
            f"target '{target.name}': the mean of '{target.column}' is "
            f"{value_S[is_beyond_S][0]:g} in one of {is_beyond_S.sum()} sessions beyond the scale "
            f"from low {target.low:g} to high {target.high:g}; set low and high to the scale's ends"
        )
    return label_S


def _watch_and_groups(
    target: TargetConfig, rows: SessionRows
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Watch times [S, M] (NaN without a duration), duration buckets, and user with bucket."""
    duration_SM = rows.columns["duration_ms"] / _MILLISECONDS
    watch_SM = np.where(np.isnan(duration_SM), np.nan, rows.columns["watch_time_ms"])
    # arXiv:2508.20900: F(d) = floor(log_beta(d + eps)); eps = 1 s gives a video of no length 0.
    bucket_SM = np.floor(np.log(np.nan_to_num(duration_SM) + 1) / np.log(target.bucket_base))
    bucket_SM = bucket_SM.astype(np.int64)
    own_SM = rows.user[:, None].astype(np.int64) * 2**16 + bucket_SM
    return watch_SM, bucket_SM, own_SM


def _duration_label(target: TargetConfig, rows: SessionRows, references: References) -> np.ndarray:
    """Mean rank of the items, or share of items of a high rank."""
    watch_SM, bucket_SM, own_SM = _watch_and_groups(target, rows)
    has_watch_SM = ~np.isnan(watch_SM)
    held, watch_Q = references[target.name], watch_SM[has_watch_SM]
    own_rank_Q, own_size_Q = percentile_in_group(
        references[f"{target.name}/own"], held, own_SM[has_watch_SM], watch_Q
    )
    all_rank_Q, _ = percentile_in_group(
        references[f"{target.name}/all"], held, bucket_SM[has_watch_SM], watch_Q
    )
    rank_Q = np.where(own_size_Q >= target.bucket_events, own_rank_Q, all_rank_Q)
    rank_SM = np.full(watch_SM.shape, np.nan)
    rank_SM[has_watch_SM] = rank_Q
    has_rank_SM = ~np.isnan(rank_SM)
    if target.kind is TargetKind.DURATION_SHARE:
        rank_SM = rank_SM > target.quantile
    count_S = has_rank_SM.sum(axis=1)
    total_S = np.where(has_rank_SM, rank_SM, 0.0).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count_S, total_S / count_S, np.nan)
