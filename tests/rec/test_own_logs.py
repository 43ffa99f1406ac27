"""Own logs: four formats, one result; every defect told."""

import os
import pathlib

import polars as pl
import pytest

from core_jax.errors import ConfigError, DataError
from rec_jax.data.interactions import DefectPolicy, feedback_columns
from rec_jax.data.own_logs import OwnLogConfig, TimestampUnit, read_item_table, read_own_log

COLUMNS = ("user_id=uid", "item_id=vid", "timestamp=ts", "watch_time_ms=played", "like=is_like")
TABLE = pl.DataFrame(
    {
        "uid": ["007", "007", "12"],
        "vid": ["x1", "x2", "x1"],
        "ts": [1_500, 2_500, 3_500],
        "played": [700, None, 11],
        "is_like": [True, False, None],
        "stars": [3, 5, 2],
        "device": ["phone", "tv", "tv"],
    }
)


def write(frame: pl.DataFrame, path: pathlib.Path) -> str:
    """Writes a frame in the format of the path's suffix."""
    writers = {
        ".parquet": frame.write_parquet,
        ".csv": frame.write_csv,
        ".tsv": lambda file: frame.write_csv(file, separator="\t"),
        ".jsonl": frame.write_ndjson,
    }
    writers[path.suffix](path)
    return str(path)


def own_config(path: str, **values) -> OwnLogConfig:
    return OwnLogConfig(**{"path": path, "columns": COLUMNS, **values})


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".tsv", ".jsonl"])
def test_formats_give_the_same_log(tmp_path, suffix):
    log = read_own_log(own_config(write(TABLE, tmp_path / f"log{suffix}")))
    assert log.interactions.to_dict(as_series=False) == {
        "user_id": ["007", "007", "12"],
        "item_id": ["x1", "x2", "x1"],
        "timestamp": [1500, 2500, 3500],
        "watch_time_ms": [700.0, None, 11.0],
        "like": [True, False, None],
        "stars": [3.0, 5.0, 2.0],
        "row": [0, 1, 2],
    }
    assert feedback_columns(log) == ["like", "stars"]
    assert log.users["user_id"].to_list() == ["007", "12"]


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_item_and_user_tables(tmp_path, suffix):
    items = pl.DataFrame(
        {"id": ["x2", "x1"], "name": ["Two", "One"], "tags": ["a; b", ""], "year": [2001, 1999]}
    )
    users = pl.DataFrame({"user_id": ["12", "007", "9"], "age": [1, 2, 3]})
    config = own_config(
        write(TABLE, tmp_path / f"log{suffix}"),
        items_path=write(items, tmp_path / f"items{suffix}"),
        users_path=write(users, tmp_path / f"users{suffix}"),
        item_columns=("item_id=id", "title=name", "categories=tags"),
        category_separator=";",
    )
    log = read_own_log(config)
    assert log.items["item_id"].to_list() == ["x2", "x1"]
    assert log.items["categories"].to_list() == [["a", "b"], []]
    assert log.items["text"].to_list() == ["Two, a, b", "One"]
    assert "year" in log.items.columns
    assert log.users["user_id"].to_list() == ["12", "007", "9"]


@pytest.mark.parametrize(
    ("unit", "values", "expected"),
    [
        (TimestampUnit.SECONDS, [1, 1_600_000_000], [1000, 1_600_000_000_000]),
        (TimestampUnit.SECONDS, [1.5, 2.25], [1500, 2250]),
        (TimestampUnit.MILLISECONDS, [0, 1_649_581_149_287], [0, 1_649_581_149_287]),
        (TimestampUnit.MICROSECONDS, [1_649_581_149_287_000, 5000], [1_649_581_149_287, 5]),
        (
            TimestampUnit.ISO,
            ["1970-01-02", "1970-01-01T00:00:01.5", "1970-01-01 01:00:00+01:00"],
            [86_400_000, 1500, 0],
        ),
    ],
)
@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_time_units(tmp_path, unit, values, expected, suffix):
    frame = pl.DataFrame({"user_id": "u", "item_id": "i", "timestamp": values})
    path = write(frame, tmp_path / f"log{suffix}")
    log = read_own_log(OwnLogConfig(path=path, timestamp_unit=unit))
    assert log.interactions["timestamp"].to_list() == expected


def test_an_item_table_alone_is_read_as_that_of_a_log(tmp_path):
    """Same columns, same completion; absent and repeated ids are counted."""
    items = pl.DataFrame(
        {
            "id": ["x2", "x1", "x2", ""],
            "name": ["Two", None, "2", "No"],
            "genres": ["a;b", "", "", ""],
        }
    )
    path = write(items, tmp_path / "items.csv")
    mapping = ("item_id=id", "title=name", "categories=genres")
    table, drops = read_item_table(path, columns=mapping, category_separator=";")
    events = pl.DataFrame({"user_id": ["u"], "item_id": ["x1"], "timestamp": [5]})
    log = read_own_log(
        OwnLogConfig(
            path=write(events, tmp_path / "log.csv"),
            items_path=path,
            item_columns=mapping,
            category_separator=";",
        )
    )
    assert table.equals(log.items)
    assert table["text"].to_list() == ["Two, a, b", "x1"]
    assert drops == {"absent_id_in_items": 1, "duplicate_item": 1}
    with pytest.raises(DataError, match=r"has no column 'item_id'.*Set item_columns"):
        read_item_table(path)


def test_dates_of_parquet_need_no_unit(tmp_path):
    times = pl.Series([0, 1500]).cast(pl.Datetime("ms")).dt.replace_time_zone("UTC")
    frame = pl.DataFrame({"user_id": "u", "item_id": "i", "timestamp": times})
    log = read_own_log(OwnLogConfig(path=write(frame, tmp_path / "log.parquet")))
    assert log.interactions["timestamp"].to_list() == [0, 1500]
    dates = frame.with_columns(pl.col("timestamp").dt.offset_by("3d").cast(pl.Date))[:1]
    log = read_own_log(OwnLogConfig(path=write(dates, tmp_path / "dates.parquet")))
    assert log.interactions["timestamp"].to_list() == [3 * 86_400_000]


def test_unreadable_times_are_counted_or_errors(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,timestamp\nu,a,1\nu,b,12 http\nu,c,\nu,d,inf\nu,e,-3\n")
    log = read_own_log(OwnLogConfig(path=str(path)))
    counted = {name: count for name, count in log.drops.items() if count}
    assert counted == {"unreadable_time": 2, "absent_time": 1, "negative_time": 1}
    assert log.interactions["row"].to_list() == [0]
    with pytest.raises(DataError, match=r"log.csv', column 'timestamp': 2 rows with unreadable"):
        read_own_log(OwnLogConfig(path=str(path), defects=DefectPolicy.ERROR))


def test_times_of_another_unit(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,timestamp\nu,a,2020-01-01\nu,b,2020-01-02\n")
    with pytest.raises(
        DataError, match=r"log.csv': column 'timestamp'.*'ms'.*2 rows.*timestamp_un"
    ):
        read_own_log(OwnLogConfig(path=str(path)))
    numbers = write(TABLE, tmp_path / "log.parquet")
    with pytest.raises(DataError, match=r"is Int64 in all 3 rows, but timestamp_unit is 'iso'"):
        read_own_log(own_config(numbers, timestamp_unit=TimestampUnit.ISO))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("log.csv", "", r"log.csv' is empty"),
        ("log.csv", "user_id,item_id,timestamp\n", r"log.csv' has no rows"),
        ("log.jsonl", "", r"log.jsonl' is empty"),
        ("log.csv", "user_id,item_id\nu,a\n", r"log.csv' \(1 rows\) has no column 'timestamp'"),
        ("log.csv", "user_id,item_id,timestamp\nu,a,1,2,3\n", r"log.csv' cannot be read as csv"),
        ("log.parquet", "no parquet", r"log.parquet' cannot be read as parquet"),
        ("log.jsonl", '{"a": 1}\n{"a"', r"log.jsonl' cannot be read as jsonl"),
        ("log.xlsx", "x", r"log.xlsx' ends in '.xlsx'; expected one of"),
    ],
)
def test_broken_files(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read_own_log(OwnLogConfig(path=str(tmp_path / name)))


def test_absent_file(tmp_path):
    with pytest.raises(DataError, match="is no file; check the path"):
        read_own_log(OwnLogConfig(path=str(tmp_path / "absent.csv")))


def test_mapping_of_an_absent_column_names_the_nearest(tmp_path):
    path = write(TABLE, tmp_path / "log.csv")
    with pytest.raises(
        DataError, match=r"3 rows\) has no column 'is_likes'. Did you mean 'is_like'"
    ):
        read_own_log(own_config(path, columns=(*COLUMNS[:4], "like=is_likes")))


def test_mapped_feedback_must_be_numeric(tmp_path):
    path = write(TABLE, tmp_path / "log.csv")
    with pytest.raises(DataError, match=r"column 'tv' \(3 rows\) is not num.*row 0: 'phone'"):
        read_own_log(own_config(path, columns=(*COLUMNS, "tv=device")))


def test_fractional_ids_are_refused(tmp_path):
    path = write(TABLE.with_columns(vid=pl.Series([1.0, 2.0, None])), tmp_path / "log.parquet")
    with pytest.raises(DataError, match="column 'item_id' is Float64 in all 3 rows"):
        read_own_log(own_config(path))


def test_a_column_in_the_way_is_left_out_and_told(tmp_path, caplog):
    frame = TABLE.with_columns(timestamp=pl.lit("2020"))
    log = read_own_log(own_config(write(frame, tmp_path / "log.csv")))
    assert log.interactions["timestamp"].to_list() == [1500, 2500, 3500]
    assert "['timestamp']" in caplog.text


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (("user_id=",), "write name=column"),
        (("=uid",), "write name=column"),
        (("user_id=a", "user_id=b"), "maps 'user_id' twice"),
    ],
)
def test_broken_mappings(columns, message):
    with pytest.raises(ConfigError, match=message):
        OwnLogConfig(path="log.csv", columns=columns)


def test_one_column_for_two_names(tmp_path):
    path = write(TABLE, tmp_path / "log.csv")
    with pytest.raises(ConfigError, match="maps one column of"):
        read_own_log(own_config(path, columns=(*COLUMNS, "rating=is_like")))


def real_folder(name: str) -> pathlib.Path:
    """Returns a folder of real data or skips the test."""
    root = os.environ.get("ALIGNAX_REAL_DATA")
    if not root or not (pathlib.Path(root) / name).is_dir():
        pytest.skip(f"ALIGNAX_REAL_DATA is not set to a folder that holds '{name}'")
    return pathlib.Path(root) / name


@pytest.mark.real_data
def test_real_short_video_log():
    folder = real_folder("kuairand27k_like_hate")
    log = read_own_log(
        OwnLogConfig(
            path=str(folder / "processed_standard_kcore_15.tsv"),
            columns=("item_id=video_id", "timestamp=time_ms", "watch_time_ms=play_time_ms"),
        )
    )
    assert log.interactions.height + sum(log.drops.values()) == 41_828
    assert log.users.height == 664
    assert log.items.height == 9_359
    assert {"is_follow", "long_view", "label"} <= set(feedback_columns(log))


@pytest.mark.real_data
def test_real_movie_log():
    folder = real_folder("ml_latest_small")
    log = read_own_log(
        OwnLogConfig(
            path=str(folder / "ratings.csv"),
            items_path=str(folder / "movies.csv"),
            columns=("user_id=userId", "item_id=movieId"),
            item_columns=("item_id=movieId", "categories=genres"),
            timestamp_unit=TimestampUnit.SECONDS,
        )
    )
    assert log.interactions.height + sum(log.drops.values()) == 100_836
    assert log.items.height == 9_742
    assert log.items["text"][0].startswith("Toy Story (1995), Adventure")
