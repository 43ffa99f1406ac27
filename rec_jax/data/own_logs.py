"""Your own log: Parquet, CSV, TSV or JSON lines with a column mapping, as a canonical log.

A mapping entry is `name=column` ("user_id=uid": the canonical column `user_id` is the file's
`uid`) or just `name`. In the interactions' file every further Boolean or numeric column is kept
under its own name as feedback; further columns of the item and user tables are kept as they are.
Text files are read as strings first, so that an id such as "007" stays what it is.

Dimension key: none.
"""

import dataclasses
import enum
import logging
import pathlib

import polars as pl

from core_jax.errors import ConfigError, DataError
from core_jax.storage import local_path
from rec_jax.data.interactions import (
    ITEM_COLUMNS,
    OPTIONAL,
    REQUIRED,
    DefectPolicy,
    InteractionLog,
    clean_items,
    clean_log,
    require_columns,
)

_LOGGER = logging.getLogger(__name__)

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl", ".ndjson")
_TRUTH = {"true": 1.0, "false": 0.0}


class TimestampUnit(enum.Enum):
    """What the time column holds."""

    SECONDS = "s"
    MILLISECONDS = "ms"
    MICROSECONDS = "us"
    ISO = "iso"


_MILLISECONDS = {
    TimestampUnit.SECONDS: 1000.0,
    TimestampUnit.MILLISECONDS: 1.0,
    TimestampUnit.MICROSECONDS: 0.001,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnLogConfig:
    """Where your log is and how its columns are called."""

    path: str
    """Interactions: a .parquet, .csv, .tsv or .jsonl file."""
    items_path: str = ""
    """Item table, in any of these formats; none makes one of the items that occur."""
    users_path: str = ""
    """User table, likewise."""
    columns: tuple[str, ...] = ()
    """Mapping of the interactions' columns, as in 'user_id=uid' 'timestamp=time_ms' 'like=is_like'.
    Canonical: user_id, item_id, timestamp, session_id, watch_time_ms, duration_ms; any other name
    is feedback."""
    item_columns: tuple[str, ...] = ()
    """Mapping of the item table's columns. Canonical: item_id, title, text, categories."""
    user_columns: tuple[str, ...] = ()
    """Mapping of the user table's columns. Canonical: user_id."""
    timestamp_unit: TimestampUnit = TimestampUnit.MILLISECONDS
    """Unit of the time column; iso is a date and time as text, UTC where it says no zone."""
    category_separator: str = "|"
    """Between the categories of an item, where they are one string."""
    defects: DefectPolicy = DefectPolicy.DROP
    """What happens to rows that break the schema: dropped and counted, or an error."""

    def __post_init__(self):
        if not self.path:
            raise ConfigError("path is empty; give the interactions' file")
        if not self.category_separator:
            raise ConfigError("category_separator is empty; give one, as in '|'")
        for name in ("columns", "item_columns", "user_columns"):
            _mapping(getattr(self, name), name)


def read_own_log(config: OwnLogConfig) -> InteractionLog:
    """Reads, maps and checks your own log.

    Args:
      config: files and column mapping.

    Returns:
      The canonical log. Rows whose time cannot be read are dropped and counted as
      `unreadable_time`, next to the counts of `clean_log`.

    Raises:
      ConfigError: if a mapping names a canonical column twice.
      DataError: names file, column, number of rows and remedy.
    """
    mapping = _mapping(config.columns, "columns")
    table = _renamed(_read(config.path), mapping, config.path, "columns")
    require_columns(table, list(REQUIRED), config.path, "Set columns, as in 'user_id=uid'")
    events, num_unreadable = _events(table, mapping, config)
    return clean_log(
        events,
        _item_table(config.items_path, config.item_columns, config.category_separator)
        if config.items_path
        else None,
        _users(config) if config.users_path else None,
        source=config.path,
        items_source=config.items_path,
        users_source=config.users_path,
        earlier_drops={"unreadable_time": num_unreadable},
        defects=config.defects,
    )


def read_item_table(
    path: str, *, columns: tuple[str, ...] = (), category_separator: str = "|"
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Reads and checks an item table alone, as `read_own_log` does with that of a log.

    Args:
      path: a .parquet, .csv, .tsv or .jsonl file.
      columns: mapping of its columns, as in `OwnLogConfig.item_columns`.
      category_separator: between the categories of an item, where they are one string.

    Returns:
      The table with all columns of `ITEM_COLUMNS`, and the counts of dropped rows by reason.

    Raises:
      ConfigError: the mapping cannot be read, or names a column twice.
      DataError: names file, column, number of rows and remedy.
    """
    return clean_items(_item_table(path, columns, category_separator), source=path)


def _mapping(entries: tuple[str, ...], setting: str) -> dict[str, str]:
    """Parses 'name=column' entries into canonical name -> column of the file."""
    mapping: dict[str, str] = {}
    for entry in entries:
        name, has_column, column = entry.partition("=")
        if not name or (has_column and not column):
            raise ConfigError(f"{setting} has '{entry}'; write name=column, as in 'user_id=uid'")
        if name in mapping:
            raise ConfigError(f"{setting} maps '{name}' twice; keep one of the two")
        mapping[name] = column or name
    return mapping


def _read(path: str) -> pl.DataFrame:
    """Reads a file by its suffix; text columns come as strings."""
    path = str(local_path(path))
    suffix = pathlib.Path(path).suffix.lower()
    if suffix not in _SUFFIXES:
        raise DataError(f"'{path}' ends in '{suffix}'; expected one of {', '.join(_SUFFIXES)}")
    if not pathlib.Path(path).is_file():
        raise DataError(f"'{path}' is no file; check the path")
    if not pathlib.Path(path).stat().st_size:
        raise DataError(f"'{path}' is empty; give a file with at least one row")
    try:
        if suffix == ".parquet":
            table = pl.read_parquet(path)
        elif suffix in _SEPARATORS:
            table = pl.read_csv(path, separator=_SEPARATORS[suffix], infer_schema=False)
        else:
            table = pl.read_ndjson(path, infer_schema_length=None)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(
            f"'{path}' cannot be read as {suffix[1:]} ({error}); check that it is whole"
        ) from error
    if table.is_empty():
        raise DataError(f"'{path}' has no rows; give a file with at least one row")
    return table


def _renamed(table: pl.DataFrame, mapping: dict[str, str], path: str, setting: str) -> pl.DataFrame:
    """Gives mapped columns their canonical names; a column in their way is left out and logged."""
    remedy = f"Correct the entry of {setting}"
    require_columns(table, list(mapping.values()), path, remedy)
    in_the_way = [
        name for name in table.columns if name in mapping and name not in mapping.values()
    ]
    if in_the_way:
        _LOGGER.warning("'%s': columns left out, mapped from others: %s", path, in_the_way)
    chosen = {column: name for name, column in mapping.items() if name != column}
    if len(set(mapping.values())) < len(mapping):
        raise ConfigError(f"{setting} maps one column of '{path}' to two names; keep one of them")
    return table.drop(in_the_way).rename(chosen)


def _events(
    table: pl.DataFrame, mapping: dict[str, str], config: OwnLogConfig
) -> tuple[pl.DataFrame, int]:
    """Casts the interactions' columns; returns them and the number of rows without a legible time.

    Columns are the canonical ones, the mapped ones, and all that are Boolean or numeric.
    """
    path = config.path
    expressions = [_id(table, name, path) for name in ("user_id", "item_id", "session_id")]
    kept = [expression for expression in expressions if expression is not None]
    kept.append(_time(table, config))
    left_out = []
    for name in table.columns:
        if name in (*REQUIRED, "session_id"):
            continue
        numbers = None if name == "row" else _numbers(table[name])
        if numbers is not None:
            kept.append(pl.lit(numbers.alias(name)))
        elif name in mapping or name in OPTIONAL:
            raise DataError(
                f"'{path}': column '{name}' ({table.height} rows) is not numeric or Boolean in "
                f"every row, as in {_example(table[name])}; correct it or leave it out of the "
                "mapping"
            )
        else:
            left_out.append(name)
    if left_out:
        _LOGGER.info("'%s': columns left out: %s", path, left_out)
    events = table.select(kept).with_columns(row=pl.int_range(pl.len(), dtype=pl.Int64))
    is_unreadable = events["timestamp"].is_null() & table["timestamp"].is_not_null()
    num_unreadable = int(is_unreadable.sum())
    if num_unreadable == table.height - table["timestamp"].null_count() > 0:
        raise DataError(
            f"'{path}': column 'timestamp' has no time that can be read as "
            f"'{config.timestamp_unit.value}' in any of {table.height} rows, as in "
            f"'{table['timestamp'].drop_nulls()[0]}'; set timestamp_unit"
        )
    return events.filter(~is_unreadable), num_unreadable


def _id(table: pl.DataFrame, name: str, path: str) -> pl.Expr | None:
    """Casts an id column to String; empty text is absent. None where there is no such column."""
    if name not in table.columns:
        return None
    kind = table.schema[name]
    if not (kind == pl.String or kind.is_integer() or kind in (pl.Categorical, pl.Enum)):
        if kind == pl.Null:
            return pl.col(name).cast(pl.String)
        raise DataError(
            f"'{path}': column '{name}' is {kind} in all {table.height} rows; ids are text or "
            "integers: cast it"
        )
    return pl.col(name).cast(pl.String).replace("", None)


def _time(table: pl.DataFrame, config: OwnLogConfig) -> pl.Expr:
    """Turns the time column into Int64 milliseconds; what cannot be read is null."""
    column, kind = pl.col("timestamp"), table.schema["timestamp"]
    if kind == pl.Date or isinstance(kind, pl.Datetime):
        moment = column.cast(pl.Datetime("ms")) if kind == pl.Date else column
        return moment.dt.timestamp("ms")
    if config.timestamp_unit is TimestampUnit.ISO:
        if kind == pl.String:
            return _iso_time(column)
        raise DataError(
            f"'{config.path}': column 'timestamp' is {kind} in all {table.height} rows, but "
            "timestamp_unit is 'iso', which is text; set it to 's', 'ms' or 'us'"
        )
    if kind == pl.String or kind.is_numeric() or kind == pl.Null:
        number = column.cast(pl.Float64, strict=False) * _MILLISECONDS[config.timestamp_unit]
        return pl.when(number.is_finite()).then(number.round()).cast(pl.Int64, strict=False)
    raise DataError(
        f"'{config.path}': column 'timestamp' is {kind} in all {table.height} rows; expected "
        "numbers, text or dates"
    )


def _iso_time(column: pl.Expr) -> pl.Expr:
    """Reads ISO dates and times, with or without a zone; without one they are UTC."""
    text = column.str.strip_chars().str.replace(" ", "T", literal=True)
    zoned = text.str.to_datetime("%+", time_unit="ms", time_zone="UTC", strict=False)
    plain = text.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", time_unit="ms", strict=False)
    date = text.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("ms"))
    return pl.coalesce(
        moment.dt.timestamp("ms") for moment in (zoned.dt.replace_time_zone(None), plain, date)
    )


def _numbers(column: pl.Series) -> pl.Series | None:
    """Returns a column as Boolean or Float64, or None if a value is neither."""
    kind = column.dtype
    if kind == pl.Boolean:
        return column
    if kind.is_numeric():
        return column.cast(pl.Float64)
    if kind != pl.String:
        return None
    stripped = column.str.strip_chars().replace("", None)
    lower = stripped.str.to_lowercase()
    if lower.drop_nulls().is_in(list(_TRUTH)).all() and stripped.null_count() < len(stripped):
        return lower == "true"
    numbers = stripped.cast(pl.Float64, strict=False)
    return numbers if numbers.null_count() == stripped.null_count() else None


def _example(column: pl.Series) -> str:
    """Returns the first text of a column that is no number, with its row."""
    if column.dtype != pl.String:
        return f"its type {column.dtype}"
    is_bad = column.cast(pl.Float64, strict=False).is_null() & column.is_not_null()
    place = is_bad.arg_true()[0]
    return f"row {place}: '{column[place]}'"


def _item_table(path: str, columns: tuple[str, ...], category_separator: str) -> pl.DataFrame:
    """Reads the item table; categories that are one string are split."""
    table = _side_table(path, columns, "item_id", "item_columns")
    expressions = []
    for name, expected in ITEM_COLUMNS.items():
        if name in table.columns and name != "item_id":
            kind = table.schema[name]
            column = pl.col(name)
            if name == "categories" and kind == pl.String:
                parts = column.fill_null("").str.split(category_separator)
                part = pl.element().str.strip_chars()
                column = parts.list.eval(part.filter(part != ""))
            elif not (kind.is_numeric() or kind in (pl.String, pl.Null) or name == "categories"):
                raise DataError(
                    f"'{path}': column '{name}' is {kind} in all {table.height} rows; expected text"
                )
            expressions.append(column.cast(expected))
    return table.with_columns(expressions)


def _users(config: OwnLogConfig) -> pl.DataFrame:
    return _side_table(config.users_path, config.user_columns, "user_id", "user_columns")


def _side_table(path: str, entries: tuple[str, ...], key: str, setting: str) -> pl.DataFrame:
    """Reads an item or user table and casts its id."""
    table = _renamed(_read(path), _mapping(entries, setting), path, setting)
    require_columns(table, [key], path, f"Set {setting}, as in '{key}=id'")
    return table.with_columns(_id(table, key, path))
