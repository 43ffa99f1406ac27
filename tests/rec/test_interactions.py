"""Interaction logs: every defect is an error that says what and where, or a counted drop."""

import polars as pl
import pytest

from core_jax.errors import DataError
from rec_jax.data.interactions import (
    DefectPolicy,
    clean_log,
    describe,
    feedback_columns,
    read_log,
    write_log,
)

EVENTS = pl.DataFrame(
    {
        "user_id": ["u1", "u1", "u2", "u3", "u2"],
        "item_id": ["a", "b", "a", "c", "b"],
        "timestamp": [10, 20, 30, 40, 50],
        "watch_time_ms": [1.0, 2.0, None, 4.0, 5.0],
        "like": [True, False, None, True, False],
        "rating": [1.0, float("nan"), 3.0, 4.0, 5.0],
    }
)
ITEMS = pl.DataFrame(
    {
        "item_id": ["a", "b", "c"],
        "title": ["Alpha", None, "Gamma"],
        "categories": [["x", "y"], [], None],
    }
)
USERS = pl.DataFrame({"user_id": ["u1", "u2", "u3"], "age": [7, 11, 13]})


def with_row(frame: pl.DataFrame, **values) -> pl.DataFrame:
    """Adds a row: the first one with some values replaced."""
    row = frame[:1].with_columns(
        pl.lit(value, dtype=frame.schema[name]).alias(name) for name, value in values.items()
    )
    return pl.concat([frame, row])


DEFECTS = {
    "absent_user_id": {"user_id": None},
    "absent_item_id": {"item_id": None},
    "absent_time": {"timestamp": None},
    "negative_time": {"timestamp": -7},
    "negative_watch_time_ms": {"watch_time_ms": -1.0},
    "duplicate_row": {},
    "unknown_item": {"item_id": "zz"},
    "unknown_user": {"user_id": "zz"},
}


def test_clean_log_fills_the_schema():
    log = clean_log(EVENTS, ITEMS, USERS, source="log.csv")
    assert log.interactions["row"].to_list() == [0, 1, 2, 3, 4]
    assert log.interactions.schema["timestamp"] == pl.Int64
    assert log.interactions["rating"].to_list() == [1.0, None, 3.0, 4.0, 5.0]
    assert log.items["title"].to_list() == ["Alpha", "b", "Gamma"]
    assert log.items["text"].to_list() == ["Alpha, x, y", "b", "Gamma"]
    assert log.items["categories"].to_list() == [["x", "y"], [], []]
    assert feedback_columns(log) == ["like", "rating"]
    assert set(log.drops.values()) == {0}
    assert "1970-01-01 00:00" in describe(log)
    assert "dropped   nothing" in describe(log)


def test_tables_are_made_of_the_ids_that_occur():
    log = clean_log(EVENTS, source="log.csv")
    assert log.items["item_id"].to_list() == ["a", "b", "c"]
    assert log.items["title"].to_list() == ["a", "b", "c"]
    assert log.users["user_id"].to_list() == ["u1", "u2", "u3"]


@pytest.mark.parametrize("reason", DEFECTS)
def test_defects_are_dropped_and_counted(reason):
    log = clean_log(with_row(EVENTS, **DEFECTS[reason]), ITEMS, USERS, source="log.csv")
    assert log.interactions.height == EVENTS.height
    assert {name: count for name, count in log.drops.items() if count} == {reason: 1}
    assert f"1 {reason.replace('_', ' ')}" in describe(log)


@pytest.mark.parametrize("reason", DEFECTS)
def test_defects_are_errors_on_demand(reason):
    broken = with_row(EVENTS, **DEFECTS[reason])
    with pytest.raises(DataError, match=f"'log.csv'.*1 rows with {reason.replace('_', ' ')};.*'dr"):
        clean_log(broken, ITEMS, USERS, source="log.csv", defects=DefectPolicy.ERROR)


def test_every_row_is_kept_or_counted():
    broken = EVENTS
    for values in DEFECTS.values():
        broken = with_row(with_row(broken, **values), **values)
    log = clean_log(broken, ITEMS, USERS, source="log.csv")
    assert log.interactions.height + sum(log.drops.values()) == broken.height
    assert log.interactions["row"].to_list() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("table", "key", "reason"),
    [("items", "item_id", "duplicate_item"), ("users", "user_id", "duplicate_user")],
)
def test_repeated_ids_of_tables_are_counted(table, key, reason):
    tables = {"items": ITEMS, "users": USERS}
    tables[table] = with_row(with_row(tables[table]), **{key: None})
    log = clean_log(EVENTS, source="log.csv", **tables)
    assert log.drops[reason] == 1
    assert log.drops[f"absent_id_in_{table}"] == 1
    assert (
        getattr(log, table)[key].to_list() == {"items": ITEMS, "users": USERS}[table][key].to_list()
    )
    with pytest.raises(DataError, match=f"'the {table}', column '{key}': 1 rows with absent id"):
        clean_log(
            EVENTS,
            source="log.csv",
            items_source="the items",
            users_source="the users",
            defects=DefectPolicy.ERROR,
            **tables,
        )


@pytest.mark.parametrize("column", ["user_id", "item_id", "timestamp"])
def test_missing_column(column):
    with pytest.raises(DataError, match=rf"'log.csv' \(5 rows\) has no column '{column}'.*Map it"):
        clean_log(EVENTS.drop(column), source="log.csv")


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ("user_id", pl.Binary),
        ("timestamp", pl.Float64),
        ("watch_time_ms", pl.String),
        ("rating", pl.String),
    ],
)
def test_wrong_type(column, kind):
    broken = EVENTS.with_columns(pl.col(column).cast(kind))
    with pytest.raises(
        DataError, match=f"'log.csv': column '{column}' is {kind}.*5 rows.*expected"
    ):
        clean_log(broken, source="log.csv")


def test_wrong_type_of_categories():
    with pytest.raises(DataError, match=r"'items': column 'categories' is String.*3 rows"):
        clean_log(EVENTS, ITEMS.with_columns(categories=pl.lit("x")), source="log.csv")


@pytest.mark.parametrize("name", ["events", "items", "users"])
def test_empty_tables(name):
    tables = {"events": EVENTS, "items": ITEMS, "users": USERS}
    tables[name] = tables[name].clear()
    with pytest.raises(DataError, match="has no rows; give"):
        clean_log(tables["events"], tables["items"], tables["users"], source="log.csv")


def test_nothing_usable():
    broken = EVENTS.with_columns(timestamp=pl.lit(-1, dtype=pl.Int64))
    with pytest.raises(DataError, match=r"none of its 5 rows is usable.*5 negative time"):
        clean_log(broken, source="log.csv")


def test_write_and_read(tmp_path):
    log = clean_log(with_row(EVENTS), ITEMS, USERS, source="log.csv")
    write_log(log, tmp_path / "log")
    again = read_log(tmp_path / "log")
    assert again.drops == log.drops
    assert again.source == log.source
    for name in ("interactions", "items", "users"):
        assert getattr(again, name).equals(getattr(log, name))
    (tmp_path / "log" / "items.parquet").unlink()
    with pytest.raises(DataError, match="does not hold a whole log"):
        read_log(tmp_path / "log")


def test_time_beyond_the_calendar_is_told():
    late = EVENTS.with_columns(pl.col("timestamp") + 10**17)
    assert "check the time unit" in describe(clean_log(late, source="log.csv"))
