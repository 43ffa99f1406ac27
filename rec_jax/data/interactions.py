"""The canonical interaction log: one schema for every source, checked once, nothing silent.

`interactions`, one row per event:

    column         type      meaning
    user_id        String    who
    item_id        String    what
    timestamp      Int64     when, milliseconds since 1970-01-01 UTC, at least 0
    row            Int64     position of the row in its file, from 0; breaks ties of time
    session_id     String    optional: session or request id
    watch_time_ms  Float64   optional: how long the item was watched, milliseconds
    duration_ms    Float64   optional: how long the item is, milliseconds
    any other      Boolean or Float64: feedback, kept by its name (rating, like, follow, ...)

`items`, one row per item of the catalogue: item_id, title, text (what an embedding reads),
categories (list of strings), and any further columns. `users`: user_id and any further columns.
A float that is no number (NaN) is an absent value.

Dimension key: none.
"""

import dataclasses
import datetime
import enum
import json
import os
import pathlib

import polars as pl

from core_jax.errors import DataError, nearest_name

REQUIRED = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}
"""Columns that every interaction log has."""
OPTIONAL = {"session_id": pl.String, "watch_time_ms": pl.Float64, "duration_ms": pl.Float64}
"""Columns with a fixed meaning that a log may have."""
ITEM_COLUMNS = {
    "item_id": pl.String,
    "title": pl.String,
    "text": pl.String,
    "categories": pl.List(pl.String),
}
"""Columns that every item table has after cleaning."""


class DefectPolicy(enum.Enum):
    """What happens to rows that break the schema."""

    DROP = "drop"
    ERROR = "error"


@dataclasses.dataclass(frozen=True, kw_only=True)
class InteractionLog:
    """A checked log: see the module's docstring for the columns."""

    interactions: pl.DataFrame
    """Events in file order."""
    items: pl.DataFrame
    """The catalogue; every event's item is in it."""
    users: pl.DataFrame
    """The users; every event's user is in it."""
    drops: dict[str, int]
    """How many rows were dropped, by reason; a reason that never occurred has 0."""
    source: str
    """Where the log came from."""


def clean_log(
    interactions: pl.DataFrame,
    items: pl.DataFrame | None = None,
    users: pl.DataFrame | None = None,
    *,
    source: str,
    items_source: str = "items",
    users_source: str = "users",
    earlier_drops: dict[str, int] | None = None,
    defects: DefectPolicy = DefectPolicy.DROP,
) -> InteractionLog:
    """Checks a log against the schema, and drops and counts the rows that break it.

    A missing column, a column of a wrong type and an empty table are errors. Dropped and counted,
    or errors under `DefectPolicy.ERROR`, are rows with an absent user or item id, with an absent
    or negative time or a negative duration, equal to an earlier row in every column, or with an
    item or user that the given table does not have; and rows of the tables with an absent or a
    repeated id.

    Args:
      interactions: the columns of the module's docstring; `row` is added where it is absent.
      items: the catalogue; None makes one of the items that occur, titled by their ids.
      users: the users; None makes a table of the users that occur.
      source: name of the interactions' file, for messages.
      items_source: name of the item table's file, for messages.
      users_source: name of the user table's file, for messages.
      earlier_drops: rows that the reader had to leave out, by reason; they join the counts.
      defects: drop and count, or raise.

    Returns:
      The checked log.

    Raises:
      DataError: names file, column, number of rows and remedy.
    """
    drops = dict(earlier_drops or {})
    events = _checked_columns(interactions, source)
    absent = {"user_id": "user_id", "item_id": "item_id", "timestamp": "time"}
    for name, noun in absent.items():
        events = _drop(events, pl.col(name).is_null(), f"absent_{noun}", drops)
    events = _drop(events, pl.col("timestamp") < 0, "negative_time", drops)
    for name in ("watch_time_ms", "duration_ms"):
        if name in events.columns:
            events = _drop(events, pl.col(name).fill_null(0) < 0, f"negative_{name}", drops)
    is_repeat = pl.struct(pl.exclude("row")).is_first_distinct().not_()
    events = _drop(events, is_repeat, "duplicate_row", drops)
    item_table = _item_table(items, events, items_source, drops)
    user_table = _id_table(users, events, "user_id", users_source, drops)
    events = _drop_unknown(events, item_table, "item_id", drops)
    events = _drop_unknown(events, user_table, "user_id", drops)
    if defects is DefectPolicy.ERROR:
        _raise_on_drops(drops, source, items_source, users_source)
    if events.is_empty():
        raise DataError(
            f"'{source}': none of its {interactions.height} rows is usable ({_told(drops)}); "
            "check the column mapping, the time unit and that the ids match those of the tables"
        )
    return InteractionLog(
        interactions=events, items=item_table, users=user_table, drops=drops, source=source
    )


def clean_items(items: pl.DataFrame, *, source: str) -> tuple[pl.DataFrame, dict[str, int]]:
    """Checks an item table without a log, and completes it as `clean_log` does.

    Args:
      items: at least the column item_id.
      source: name of its file, for messages.

    Returns:
      The columns of `ITEM_COLUMNS` and all others, one row per id in the table's order; and the
      counts of rows dropped since their id is absent or repeated, by reason.

    Raises:
      DataError: names file, column, number of rows and remedy.
    """
    drops: dict[str, int] = {}
    return _item_table(items, None, source, drops), drops


def describe(log: InteractionLog) -> str:
    """Returns a few lines on a log: sizes, time span, feedback columns, dropped rows."""
    events = log.interactions
    first, last = (_date(events["timestamp"].min()), _date(events["timestamp"].max()))
    dropped = {name: count for name, count in log.drops.items() if count}
    return "\n".join(
        [
            f"log       {log.source}",
            f"events    {events.height:,} by {events['user_id'].n_unique():,} users on "
            f"{events['item_id'].n_unique():,} of {log.items.height:,} items",
            f"time      {first} to {last} (UTC)",
            f"feedback  {', '.join(feedback_columns(log)) or 'none'}",
            f"dropped   {_told(dropped) or 'nothing'}",
        ]
    )


def feedback_columns(log: InteractionLog) -> list[str]:
    """Returns the names of a log's feedback columns (Boolean or Float64), in file order."""
    fixed = {*REQUIRED, *OPTIONAL, "row"}
    return [name for name in log.interactions.columns if name not in fixed]


def write_log(log: InteractionLog, folder: str | os.PathLike[str]) -> None:
    """Writes a log as three Parquet files and one JSON file, for `read_log`."""
    target = pathlib.Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    log.interactions.write_parquet(target / "interactions.parquet")
    log.items.write_parquet(target / "items.parquet")
    log.users.write_parquet(target / "users.parquet")
    about = {"source": log.source, "drops": log.drops}
    (target / "log.json").write_text(json.dumps(about, indent=2), encoding="utf-8")


def read_log(folder: str | os.PathLike[str]) -> InteractionLog:
    """Reads what `write_log` wrote.

    Raises:
      DataError: if a file is missing or cannot be read.
    """
    origin = pathlib.Path(folder)
    try:
        about = json.loads((origin / "log.json").read_text(encoding="utf-8"))
        frames = {
            name: pl.read_parquet(origin / f"{name}.parquet")
            for name in ("interactions", "items", "users")
        }
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        raise DataError(
            f"'{origin}' does not hold a whole log ({error}); write it again with write_log"
        ) from error
    return InteractionLog(drops=about["drops"], source=about["source"], **frames)


def require_columns(frame: pl.DataFrame, names: list[str], source: str, remedy: str) -> None:
    """Raises a DataError that names the first of `names` that a table lacks.

    Args:
      frame: the table.
      names: the columns it must have.
      source: name of its file, for the message.
      remedy: what the user can do, the end of the message.
    """
    for name in names:
        if name not in frame.columns:
            raise DataError(
                f"'{source}' ({frame.height} rows) has no column '{name}'. "
                f"{nearest_name(name, frame.columns)} {remedy}"
            )


def _checked_columns(frame: pl.DataFrame, source: str) -> pl.DataFrame:
    """Checks names and types of the interactions' columns; adds `row`; NaN becomes absent."""
    if frame.is_empty():
        raise DataError(f"'{source}' has no rows; give a log with at least one event")
    remedy = "Map it from the file's own column, as in 'user_id=uid'"
    require_columns(frame, list(REQUIRED), source, remedy)
    for name, expected in {**REQUIRED, **OPTIONAL}.items():
        if name in frame.columns and frame.schema[name] != expected:
            _raise_wrong_type(frame, name, str(expected), source)
    fixed = {*REQUIRED, *OPTIONAL, "row"}
    for name in frame.columns:
        if name not in fixed and frame.schema[name] not in (pl.Boolean, pl.Float64):
            _raise_wrong_type(frame, name, "Boolean or Float64 (feedback)", source)
    if "row" not in frame.columns:
        frame = frame.with_row_index("row")
    return frame.with_columns(pl.col("row").cast(pl.Int64), pl.col(pl.Float64).fill_nan(None))


def _raise_wrong_type(frame: pl.DataFrame, name: str, expected: str, source: str) -> None:
    raise DataError(
        f"'{source}': column '{name}' is {frame.schema[name]} in all {frame.height} rows, "
        f"expected {expected}; cast it or leave it out"
    )


def _drop(
    frame: pl.DataFrame, is_defect: pl.Expr, reason: str, drops: dict[str, int]
) -> pl.DataFrame:
    """Removes the rows where `is_defect` holds and counts them under `reason`."""
    kept = frame.filter(is_defect.not_())
    drops[reason] = drops.get(reason, 0) + frame.height - kept.height
    return kept


def _drop_unknown(
    events: pl.DataFrame, table: pl.DataFrame, key: str, drops: dict[str, int]
) -> pl.DataFrame:
    is_unknown = pl.col(key).is_in(table[key].implode()).not_()
    return _drop(events, is_unknown, f"unknown_{key.removesuffix('_id')}", drops)


def _id_table(
    table: pl.DataFrame | None,
    events: pl.DataFrame | None,
    key: str,
    source: str,
    drops: dict[str, int],
) -> pl.DataFrame:
    """Returns a table with one row per id, in the table's order, or the sorted ids that occur."""
    if table is None:
        assert events is not None
        return events.select(pl.col(key).unique().sort())
    if table.is_empty():
        raise DataError(f"'{source}' has no rows; give a table with one row per {key}, or none")
    require_columns(table, [key], source, "Map it from the file's own column, as in 'id=uid'")
    if table.schema[key] != pl.String:
        _raise_wrong_type(table, key, "String", source)
    noun = key.removesuffix("_id")
    table = _drop(table, pl.col(key).is_null(), f"absent_id_in_{noun}s", drops)
    return _drop(table, pl.col(key).is_first_distinct().not_(), f"duplicate_{noun}", drops)


def _item_table(
    items: pl.DataFrame | None, events: pl.DataFrame | None, source: str, drops: dict[str, int]
) -> pl.DataFrame:
    """Returns the catalogue with every standard column; an absent text is title and categories."""
    table = _id_table(items, events, "item_id", source, drops)
    for name, expected in ITEM_COLUMNS.items():
        if name in table.columns and table.schema[name] != expected:
            _raise_wrong_type(table, name, str(expected), source)
    if "title" not in table.columns:
        table = table.with_columns(title=pl.col("item_id"))
    table = table.with_columns(pl.col("title").fill_null(pl.col("item_id")))
    if "categories" not in table.columns:
        table = table.with_columns(categories=pl.lit([], dtype=pl.List(pl.String)))
    table = table.with_columns(pl.col("categories").fill_null([]))
    if "text" not in table.columns:
        table = table.with_columns(text=pl.lit(None, dtype=pl.String))
    joined = pl.concat_list("title", "categories").list.join(", ")
    table = table.with_columns(pl.col("text").fill_null(joined))
    extras = [name for name in table.columns if name not in ITEM_COLUMNS]
    return table.select([*ITEM_COLUMNS, *extras])


def _raise_on_drops(
    drops: dict[str, int], source: str, items_source: str, users_source: str
) -> None:
    """Raises for the first defect found, naming the file and column that it is in."""
    places = {
        "absent_user_id": (source, "user_id", "fill it in"),
        "absent_item_id": (source, "item_id", "fill it in"),
        "absent_time": (source, "timestamp", "fill it in"),
        "unreadable_time": (source, "timestamp", "correct them"),
        "negative_time": (source, "timestamp", "check the time unit"),
        "negative_watch_time_ms": (source, "watch_time_ms", "correct them"),
        "negative_duration_ms": (source, "duration_ms", "correct them"),
        "duplicate_row": (source, "all columns", "remove the repeated rows"),
        "absent_id_in_items": (items_source, "item_id", "fill it in"),
        "duplicate_item": (items_source, "item_id", "keep one row per item"),
        "absent_id_in_users": (users_source, "user_id", "fill it in"),
        "duplicate_user": (users_source, "user_id", "keep one row per user"),
        "unknown_item": (source, "item_id", f"add the items to '{items_source}'"),
        "unknown_user": (source, "user_id", f"add the users to '{users_source}'"),
    }
    for reason, count in drops.items():
        if count:
            file, column, remedy = places[reason]
            raise DataError(
                f"'{file}', column '{column}': {count} rows with {reason.replace('_', ' ')}; "
                f"{remedy}, or set defects to 'drop' to leave them out and count them"
            )


def _told(drops: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in drops.items())


def _date(milliseconds: object) -> str:
    """Formats a time as a date; a unit mistake shows here as a date far off."""
    if not isinstance(milliseconds, int) or milliseconds > 253402300799999:
        return f"{milliseconds} ms (beyond the year 9999: check the time unit)"
    moment = datetime.datetime.fromtimestamp(milliseconds / 1000, datetime.UTC)
    return moment.strftime("%Y-%m-%d %H:%M")
