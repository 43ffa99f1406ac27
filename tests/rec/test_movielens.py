"""MovieLens: every published layout gives the same log, through ArrayRecord, without TensorFlow."""

import pathlib
import shutil
import sys
import zipfile

import pytest
import tensorflow_datasets as tfds

from core_jax.errors import DataError
from rec_jax.data.builders import movielens
from rec_jax.data.builders.movielens import MovielensLog, load_movielens
from rec_jax.data.interactions import InteractionLog

RATINGS = [(2, 3, 4, 20), (1, 1, 5, 10), (2, 1, 3, 10), (1, 2, 1, 30), (3, 2, 2, 5)]
"""User, movie, stars, seconds."""
MOVIES = [
    (1, "Caf\xe9, The (1995)", ["Comedy", "Children's"]),
    (2, "Second (Deuxi\xe8me) (1996)", []),
    (3, "Third: A Story (1922)", ["Film-Noir"]),
]
USERS = [(1, "24", "M", "artist", "05201"), (2, "53", "F", "other", "94043")]
USERS.append((3, "23", "F", "writer", "T8H1N"))
GENRES = [
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime"),
    *("Documentary", "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery"),
    *("Romance", "Sci-Fi", "Thriller", "War", "Western"),
]


def lines(rows, separator, header=()) -> str:
    """Joins rows into delimited text."""
    return "\n".join(separator.join(map(str, row)) for row in [*header, *rows]) + "\n"


def atomic_files() -> dict[str, bytes]:
    movies = [
        (number, *title[:-1].rsplit(" (", 1), " ".join(genres) or "unknown")
        for number, title, genres in MOVIES
    ]
    texts = {
        "inter": lines(
            RATINGS, "\t", [("user_id:token", "item_id:token", "rating:float", "timestamp:float")]
        ),
        "item": lines(
            movies,
            "\t",
            [("item_id:token", "movie_title:token_seq", "release_year:token", "class:token_seq")],
        ),
        "user": lines(
            USERS,
            "\t",
            [("user_id:token", "age:token", "gender:token", "occupation:token", "zip_code:token")],
        ),
    }
    return {f"deep/in/a/wheel/ml-100k.{kind}": text.encode() for kind, text in texts.items()}


def original_100k_files() -> dict[str, bytes]:
    movies = [
        (number, title, "01-Jan-1995", "", "http://x", *(int(g in genres) for g in GENRES))
        for number, title, genres in MOVIES
    ]
    texts = {"data": lines(RATINGS, "\t"), "item": lines(movies, "|"), "user": lines(USERS, "|")}
    return {f"ml-100k/u.{kind}": text.encode("latin-1") for kind, text in texts.items()}


def files_1m() -> dict[str, bytes]:
    movies = [(number, title, "|".join(genres)) for number, title, genres in MOVIES]
    users = [(user, gender, age, work, code) for user, age, gender, work, code in USERS]
    texts = {"ratings": RATINGS, "movies": movies, "users": users}
    return {f"ml-1m/{k}.dat": lines(rows, "::").encode("latin-1") for k, rows in texts.items()}


def csv_files() -> dict[str, bytes]:
    movies = [
        (number, f'"{title}"', "|".join(genres) or "(no genres listed)")
        for number, title, genres in MOVIES
    ]
    texts = {
        "ratings": lines(RATINGS, ",", [("userId", "movieId", "rating", "timestamp")]),
        "movies": lines(movies, ",", [("movieId", "title", "genres")]),
    }
    return {f"ml-x/{kind}.csv": text.encode() for kind, text in texts.items()}


LAYOUTS = {
    "atomic": ("100k", atomic_files),
    "100k": ("100k", original_100k_files),
    "1m": ("1m", files_1m),
    "csv": ("25m", csv_files),
}


def write_zip(path: pathlib.Path, files: dict[str, bytes]) -> pathlib.Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_folder(path: pathlib.Path, files: dict[str, bytes]) -> pathlib.Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def assert_expected(log: InteractionLog, has_users: bool = True) -> None:
    """The log that every layout must give."""
    events = log.interactions
    assert events["row"].to_list() == [0, 1, 2, 3, 4]
    seen = zip(
        *(events[name] for name in ("user_id", "item_id", "rating", "timestamp")), strict=True
    )
    assert list(seen) == [(str(u), str(i), float(r), 1000 * t) for u, i, r, t in RATINGS]
    assert log.items["title"].to_list() == [title for _, title, _ in MOVIES]
    assert [sorted(genres) for genres in log.items["categories"]] == [
        sorted(genres) for _, _, genres in MOVIES
    ]
    assert log.items["year"].to_list() == [1995, 1996, 1922]
    assert log.items["text"][1] == "Second (Deuxi\xe8me), 1996"
    assert log.items["text"][2] == "Third: A Story, Film-Noir, 1922"
    if has_users:
        rows = log.users.select("user_id", "age", "gender", "occupation", "zip_code").rows()
        assert rows == [(str(user), *rest) for user, *rest in USERS]
    assert not any(log.drops.values())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_log(tmp_path, layout, monkeypatch):
    monkeypatch.setattr(movielens, "ROWS_PER_EXAMPLE", 2)
    variant, files = LAYOUTS[layout]
    source = write_zip(tmp_path / "source.zip", files())
    log = load_movielens(variant, cache_dir=tmp_path / "cache", source=source)
    assert_expected(log, has_users=layout != "csv")
    assert list((tmp_path / "cache").rglob("*ratings.array_record*"))
    assert "tensorflow" not in sys.modules


def test_folder_as_source_and_a_changed_source(tmp_path):
    source = write_folder(tmp_path / "source", csv_files())
    first = load_movielens("latest-small", cache_dir=tmp_path / "cache", source=source)
    assert_expected(first, has_users=False)
    changed = csv_files()
    changed["ml-x/ratings.csv"] += b"1,3,2.5,40\n"
    write_folder(source, changed)
    second = load_movielens("latest-small", cache_dir=tmp_path / "cache", source=source)
    assert second.interactions.height == first.interactions.height + 1


def test_built_tables_are_read_again_without_the_parser(tmp_path, monkeypatch):
    source = write_zip(tmp_path / "source.zip", files_1m())
    load_movielens("1m", cache_dir=tmp_path / "cache", source=source)
    monkeypatch.setattr(movielens, "read_table", None)
    assert_expected(load_movielens("1m", cache_dir=tmp_path / "cache", source=source))


def test_builder_alone_gives_random_access(tmp_path):
    source = write_zip(tmp_path / "source.zip", atomic_files())
    builder = MovielensLog(
        source=str(source), config="100k-movies", data_dir=tmp_path, file_format="array_record"
    )
    tfds.disable_progress_bar()
    builder.download_and_prepare()
    records = builder.as_data_source("movies")
    assert [record["title"].decode() for record in records] == [title for _, title, _ in MOVIES]


def test_damaged_records_are_told(tmp_path):
    source = write_zip(tmp_path / "source.zip", files_1m())
    load_movielens("1m", cache_dir=tmp_path / "cache", source=source)
    (records,) = (tmp_path / "cache").rglob("*-ratings.array_record-*")
    content = records.read_bytes()
    records.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"the built file.*has SHA-256.*; delete"):
        load_movielens("1m", cache_dir=tmp_path / "cache", source=source)
    records.unlink()
    with pytest.raises(DataError, match=r"-00000-of-00001' is lost; put it back"):
        load_movielens("1m", cache_dir=tmp_path / "cache", source=source)
    shutil.rmtree(records.parent)
    assert_expected(load_movielens("1m", cache_dir=tmp_path / "cache", source=source))


def test_unreadable_time_is_dropped_and_counted(tmp_path):
    files = csv_files()
    files["ml-x/ratings.csv"] += b"1,3,2.5,84743496 http\n"
    log = load_movielens("25m", cache_dir=tmp_path, source=write_folder(tmp_path / "s", files))
    assert log.drops["unreadable_time"] == 1
    assert log.interactions.height == len(RATINGS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ml-x/ratings.csv": b""}, r"'ratings.csv' is empty"),
        ({"ml-x/ratings.csv": b"userId,movieId\n1,1\n"}, r"'ratings.csv'.*no column 'rating'"),
        (
            {"ml-x/ratings.csv": b"userId,movieId,rating,timestamp\n1,x,3,4\n"},
            r"ratings beside.*cannot be parsed",
        ),
        ({"ml-x/movies.csv": b"movieId,title\n1,a\n"}, r"'movies.csv' \(1 rows\).*'genres'"),
    ],
)
def test_broken_files_are_told(tmp_path, change, message):
    source = write_folder(tmp_path / "source", {**csv_files(), **change})
    with pytest.raises(DataError, match=message):
        load_movielens("25m", cache_dir=tmp_path / "cache", source=source)


def test_wrong_sources_are_told(tmp_path):
    with pytest.raises(DataError, match=r"no MovieLens variant '10k'. Did you mean '100k'"):
        load_movielens("10k", cache_dir=tmp_path)
    with pytest.raises(DataError, match="neither a folder nor a zip file"):
        load_movielens("100k", cache_dir=tmp_path, source=tmp_path / "absent")
    with pytest.raises(DataError, match=r"holds none of ml-100k.inter"):
        load_movielens("100k", cache_dir=tmp_path, source=write_folder(tmp_path / "s", {"a": b""}))
    source = write_folder(tmp_path / "source", csv_files())
    with pytest.raises(DataError, match="files of a variant without users"):
        load_movielens("1m", cache_dir=tmp_path, source=source)


@pytest.mark.real_data
def test_real_movielens_100k():
    try:
        log = load_movielens("100k")
    except DataError as error:
        pytest.skip(f"MovieLens-100k cannot be had here: {error}")
    assert log.interactions.height == 100_000
    assert log.users.height == 943
    assert log.items.height == 1_682
    assert log.interactions["item_id"].n_unique() == 1_682
    assert sorted(log.interactions["rating"].unique()) == [1, 2, 3, 4, 5]
    assert log.items["title"][0] == "Toy Story (1995)"
    assert log.items["text"][0] == "Toy Story, Animation, Children's, Comedy, 1995"
    assert not any(log.drops.values())
    assert log.interactions["timestamp"].min() == 874_724_710_000
