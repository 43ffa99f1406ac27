"""The log as sorted arrays: what session rules, filters and splits work on.

Dimension key: E events, P positives, U users.
"""

import dataclasses

import numpy as np
import polars as pl

from core_jax.errors import ConfigError, DataError, nearest_name
from rec_jax.data.interactions import InteractionLog, feedback_columns
from rec_jax.data.session_config import EventRule, EventRuleConfig, SessionConfig, SessionRule


@dataclasses.dataclass(frozen=True, kw_only=True)
class Events:
    """Events sorted by (user, time, file row), and the positives among them in the same order."""

    item_ids: list[str]
    """Item index -> item id: the order of the log's item table."""
    user_ids: list[str]
    """User index -> user id: the order of the log's user table."""
    user: np.ndarray
    """Int32 [E]: user index."""
    item: np.ndarray
    """Int32 [E]: item index."""
    time: np.ndarray
    """Int64 [E]: milliseconds."""
    request: np.ndarray
    """Int64 [E]: number of the session id, -1 where absent."""
    is_consumed: np.ndarray
    """Bool [E]: counts for the least number of items."""
    is_strong: np.ndarray
    """Bool [E]: carries strong feedback."""
    watch_ms: np.ndarray
    """Float64 [E]: watch time in milliseconds, 0 where absent."""
    position: np.ndarray
    """Int64 [E]: number of positives before this event, over all users; a positive event's own
    place among the positives."""
    positive_event: np.ndarray
    """Int64 [P]: the events that are positive."""
    user_starts: np.ndarray
    """Int64 [U+1]: where each user's positives start among all positives."""

    @property
    def num_items(self) -> int:
        """Size of the catalogue."""
        return len(self.item_ids)


def sort_events(log: InteractionLog, config: SessionConfig, counts: dict[str, int]) -> Events:
    """Sorts a log by (user, time, file row) and marks what counts for the session rules.

    Args:
      log: the checked log.
      config: the session rules.
      counts: gets the numbers of events and of positives, and of users and events left out.

    Returns:
      The sorted arrays.

    Raises:
      ConfigError: if a rule needs a column that the log does not have.
      DataError: if no event is positive.
    """
    frame = _numbered(
        log,
        is_positive=_rule(config.positive, log, "positive"),
        is_consumed=_rule(config.consumed, log, "consumed"),
        is_strong=_strong(config, log),
        watch_ms=_watch_time(config, log),
        request=_request(config, log),
    )
    counts["events"] = frame.height
    if config.min_positives:
        enough = pl.col("is_positive").sum().over("user") >= config.min_positives
        kept = frame.filter(enough)
        counts["users_below_min_positives"] = frame["user"].n_unique() - kept["user"].n_unique()
        counts["events_kept"] = kept.height
        frame = kept
    frame = frame.sort("user", "timestamp", "row")
    arrays = {name: frame[name].to_numpy() for name in frame.columns}
    is_positive_E = arrays["is_positive"]
    counts["positives"] = int(is_positive_E.sum())
    if not counts["positives"]:
        raise DataError(
            f"'{log.source}': no event of {counts['events']} is positive under {config.positive} "
            f"with at least {config.min_positives} positives per user; change the rule"
        )
    per_user_U = np.bincount(arrays["user"][is_positive_E], minlength=log.users.height)
    return Events(
        item_ids=log.items["item_id"].to_list(),
        user_ids=log.users["user_id"].to_list(),
        user=arrays["user"],
        item=arrays["item"],
        time=arrays["timestamp"],
        request=arrays["request"],
        is_consumed=arrays["is_consumed"],
        is_strong=arrays["is_strong"],
        watch_ms=arrays["watch_ms"],
        position=np.cumsum(is_positive_E) - is_positive_E,
        positive_event=np.flatnonzero(is_positive_E),
        user_starts=np.concatenate([[0], np.cumsum(per_user_U)]),
    )


def _numbered(log: InteractionLog, **marks: pl.Expr) -> pl.DataFrame:
    """Returns user and item as Int32 places in the log's tables, time, row and the marks."""
    place = pl.int_range(pl.len(), dtype=pl.Int32)
    frame = log.interactions.select("user_id", "item_id", "timestamp", "row", **marks)
    frame = frame.join(log.users.select("user_id", user=place), on="user_id")
    frame = frame.join(log.items.select("item_id", item=place), on="item_id")
    return frame.drop("user_id", "item_id")


def _rule(config: EventRuleConfig, log: InteractionLog, name: str) -> pl.Expr:
    """Returns the Boolean expression of a rule; null is False."""
    if config.rule is EventRule.ALL:
        return pl.lit(True)
    if config.rule is EventRule.THRESHOLD:
        _require_feedback(log, [config.column], f"{name}.column")
        return (pl.col(config.column).cast(pl.Float64) >= config.threshold).fill_null(False)
    if config.rule is EventRule.ANY_OF:
        _require_feedback(log, config.columns, f"{name}.columns")
        return _any_of(config.columns)
    for column in ("watch_time_ms", "duration_ms"):
        _require_column(log, column, f"{name}.rule 'watch_ratio'")
    ratio = pl.col("watch_time_ms") >= config.watch_ratio * pl.col("duration_ms")
    return (ratio & (pl.col("duration_ms") > 0)).fill_null(False)


def _strong(config: SessionConfig, log: InteractionLog) -> pl.Expr:
    columns = config.quality.strong_feedback
    if not columns:
        return pl.lit(False)
    _require_feedback(log, columns, "quality.strong_feedback")
    return _any_of(columns)


def _watch_time(config: SessionConfig, log: InteractionLog) -> pl.Expr:
    if not config.quality.watch_time_quantile:
        return pl.lit(0.0)
    _require_column(log, "watch_time_ms", "quality.watch_time_quantile")
    return pl.col("watch_time_ms").fill_null(0.0)


def _request(config: SessionConfig, log: InteractionLog) -> pl.Expr:
    """Numbers the session ids by rank; -1 where there is none."""
    if config.rule is not SessionRule.REQUEST_ID:
        return pl.lit(-1, dtype=pl.Int64)
    _require_column(log, "session_id", "rule 'request_id'")
    return pl.col("session_id").rank("dense").cast(pl.Int64).fill_null(-1)


def _any_of(columns: tuple[str, ...]) -> pl.Expr:
    return pl.any_horizontal(
        [(pl.col(name).cast(pl.Float64) > 0).fill_null(False) for name in columns]
    )


def _require_feedback(
    log: InteractionLog, names: tuple[str, ...] | list[str], setting: str
) -> None:
    known = feedback_columns(log)
    for name in names:
        if name not in known:
            raise ConfigError(
                f"{setting} names '{name}', which is no feedback column of '{log.source}'. "
                f"{nearest_name(name, known)}"
            )


def _require_column(log: InteractionLog, name: str, setting: str) -> None:
    if name not in log.interactions.columns:
        raise ConfigError(
            f"{setting} needs the column '{name}', which '{log.source}' does not have; map it from "
            "the file's own column or choose another setting"
        )
