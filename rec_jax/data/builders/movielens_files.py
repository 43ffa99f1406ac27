"""MovieLens in its published file formats, read into three plain tables.

Every variant gives the same tables:
  ratings: user_id Int64, item_id Int64, rating Float64 (stars), timestamp Int64 (seconds), row
  movies:  item_id Int64, title String ("Toy Story (1995)"), genres list of String
  users:   user_id Int64, age, gender, occupation, zip_code String (not for latest-small, 25M)

A time that is no number is UNREADABLE_TIME; any other value that is no number is an error.
The data are GroupLens' (Harper and Konstan, 2015, "The MovieLens Datasets: History and
Context"); they may not be redistributed, so they are fetched and never kept in a repository.

Dimension key: none.
"""

import hashlib
import io
import os
import zipfile
from collections.abc import Callable

import polars as pl

from core_jax.errors import DataError
from core_jax.storage import local_path
from rec_jax.data.interactions import require_columns

TABLES = {
    "100k": ("ratings", "movies", "users"),
    "latest-small": ("ratings", "movies"),
    "1m": ("ratings", "movies", "users"),
    "25m": ("ratings", "movies"),
}
"""The tables of each variant."""

UNREADABLE_TIME = -1
"""Stands for a time that is no number: the record format has no null."""

NO_GENRES = ("unknown", "(no genres listed)", "")
"""What the variants write where a movie has no genre."""

_RATINGS = ["user_id", "item_id", "rating", "timestamp"]
_USERS = {
    "user_id": pl.Int64,
    "age": pl.String,
    "gender": pl.String,
    "occupation": pl.String,
    "zip_code": pl.String,
}
_GENRES_100K = [
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime"),
    *("Documentary", "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery"),
    *("Romance", "Sci-Fi", "Thriller", "War", "Western"),
]
_REMEDY = "Fetch the file again."


def read_table(source: str | os.PathLike[str], table: str) -> pl.DataFrame:
    """Reads one table of a MovieLens folder, zip or carrying wheel.

    Args:
      source: a folder or zip that holds, at most three folders deep in a folder and at any depth
        in a zip, the files of one variant as published: `ml-100k.inter` (atomic files), `u.data`
        (100K), `ratings.dat` (1M) or `ratings.csv` (latest-small, 25M).
      table: "ratings", "movies" or "users".

    Returns:
      The table with the columns of the module's docstring.

    Raises:
      DataError: if the file is not there, is empty, lacks a column or has a wrong type.
    """
    marker, folder = _locate(source)
    if table not in _READERS[marker]:
        raise DataError(
            f"'{source}' has the files of a variant without {table} ('{marker}'); name the variant "
            "that it is"
        )
    try:
        return _READERS[marker][table](lambda name: _read_member(source, folder + name))
    except pl.exceptions.PolarsError as error:
        raise DataError(
            f"'{source}': the {table} beside '{folder}{marker}' cannot be parsed ({error}). "
            f"{_REMEDY}"
        ) from error


def source_digest(source: str | os.PathLike[str]) -> str:
    """Returns a SHA-256 over a zip, or over a folder's MovieLens files and their names.

    Raises:
      DataError: if the source holds no MovieLens variant.
    """
    marker, folder = _locate(source)
    del marker
    path = local_path(source)
    if path.is_file():
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for file_path in sorted(part for part in (path / folder).iterdir() if part.is_file()):
        with open(file_path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{file_path.name} {content}\n".encode())
    return digest.hexdigest()


def _locate(source: str | os.PathLike[str]) -> tuple[str, str]:
    """Returns the first known marker file in a source, and the folder prefix it lies under."""
    path = local_path(source)
    if path.is_dir():
        files = [part for depth in ("*", "*/*", "*/*/*") for part in path.glob(depth)]
        names = [file.relative_to(path).as_posix() for file in files if file.is_file()]
    elif path.is_file() and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    else:
        raise DataError(f"'{path}' is neither a folder nor a zip file; check the source's path")
    for marker in _READERS:
        found = sorted((name for name in names if name.split("/")[-1] == marker), key=len)
        if found:
            return marker, found[0][: -len(marker)]
    raise DataError(
        f"'{path}' holds none of {', '.join(_READERS)}; give the folder or zip of one MovieLens "
        "variant as it is published"
    )


def _read_member(source: str | os.PathLike[str], name: str) -> bytes:
    """Returns the bytes of one file of a folder or zip."""
    path = local_path(source)
    try:
        if path.is_dir():
            return (path / name).read_bytes()
        with zipfile.ZipFile(path) as archive:
            return archive.read(name)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"'{path}' holds no readable '{name}' ({error}). {_REMEDY}") from error


_Read = Callable[[str], bytes]


def _atomic_ratings(read: _Read) -> pl.DataFrame:
    """100K as atomic files: tab-separated, header fields `name:type`."""
    return _ratings(_parse(read, "ml-100k.inter", "\t"), "ml-100k.inter")


def _atomic_movies(read: _Read) -> pl.DataFrame:
    """The title and the year are in two columns here; the other variants write "title (year)"."""
    table = _parse(read, "ml-100k.item", "\t")
    require_columns(table, ["item_id", "movie_title", "release_year", "class"], "ml-100k.item", "")
    year = pl.col("release_year")
    title = pl.col("movie_title").replace("unkonwn", "unknown")  # a slip of that file
    has_year = year.str.contains(r"^\d{4}$")
    return table.select(
        pl.col("item_id").cast(pl.Int64),
        title=pl.when(has_year).then(pl.format("{} ({})", title, year)).otherwise(title),
        genres=_genres(pl.col("class"), " "),
    )


def _atomic_users(read: _Read) -> pl.DataFrame:
    return _users(_parse(read, "ml-100k.user", "\t"), "ml-100k.user")


def _ratings_100k(read: _Read) -> pl.DataFrame:
    """100K as GroupLens publishes it: no headers."""
    return _ratings(_parse(read, "u.data", "\t", _RATINGS), "u.data")


def _movies_100k(read: _Read) -> pl.DataFrame:
    """One flag per genre after five other fields, Latin-1."""
    names = ["item_id", "title", "released", "video_released", "address", *_GENRES_100K]
    named = [pl.when(pl.col(name) == "1").then(pl.lit(name)) for name in _GENRES_100K[1:]]
    return _parse(read, "u.item", "|", names).select(
        pl.col("item_id").cast(pl.Int64),
        "title",
        genres=pl.concat_list(named).list.drop_nulls(),
    )


def _users_100k(read: _Read) -> pl.DataFrame:
    return _users(_parse(read, "u.user", "|", list(_USERS)), "u.user")


def _ratings_1m(read: _Read) -> pl.DataFrame:
    """1M: fields between double colons, no headers, Latin-1."""
    return _ratings(_parse(read, "ratings.dat", "::", _RATINGS), "ratings.dat")


def _movies_1m(read: _Read) -> pl.DataFrame:
    table = _parse(read, "movies.dat", "::", ["item_id", "title", "genres"])
    return _titled(table, "movies.dat")


def _users_1m(read: _Read) -> pl.DataFrame:
    names = ["user_id", "gender", "age", "occupation", "zip_code"]
    return _users(_parse(read, "users.dat", "::", names), "users.dat")


def _ratings_csv(read: _Read) -> pl.DataFrame:
    """Latest-small and 25M: comma-separated with quotes and a header, UTF-8."""
    table = _parse(read, "ratings.csv", ",")
    return _ratings(
        table.rename({"userId": "user_id", "movieId": "item_id"}, strict=False), "ratings.csv"
    )


def _movies_csv(read: _Read) -> pl.DataFrame:
    return _titled(
        _parse(read, "movies.csv", ",").rename({"movieId": "item_id"}, strict=False), "movies.csv"
    )


_READERS: dict[str, dict[str, Callable[[_Read], pl.DataFrame]]] = {
    "ml-100k.inter": {
        "ratings": _atomic_ratings,
        "movies": _atomic_movies,
        "users": _atomic_users,
    },
    "u.data": {"ratings": _ratings_100k, "movies": _movies_100k, "users": _users_100k},
    "ratings.dat": {"ratings": _ratings_1m, "movies": _movies_1m, "users": _users_1m},
    "ratings.csv": {"ratings": _ratings_csv, "movies": _movies_csv},
}


def _parse(
    read: _Read, name: str, separator: str, columns: list[str] | None = None
) -> pl.DataFrame:
    """Reads delimited text, every column as a string; `columns` names them where no header does."""
    data = read(name)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    if not text.strip():
        raise DataError(f"'{name}' is empty. {_REMEDY}")
    if len(separator) > 1:
        text, separator = text.replace(separator, "\t"), "\t"
    table = pl.read_csv(
        io.BytesIO(text.encode("utf-8")),
        separator=separator,
        quote_char='"' if separator == "," else None,
        has_header=columns is None,
        new_columns=columns,
        infer_schema=False,
    )
    return table.rename(lambda column: column.split(":")[0])


def _ratings(table: pl.DataFrame, name: str) -> pl.DataFrame:
    require_columns(table, _RATINGS, name, _REMEDY)
    return table.select(
        pl.col("user_id", "item_id").cast(pl.Int64),
        pl.col("rating").cast(pl.Float64),
        pl.col("timestamp").cast(pl.Int64, strict=False).fill_null(UNREADABLE_TIME),
        row=pl.int_range(pl.len(), dtype=pl.Int64),
    )


def _titled(table: pl.DataFrame, name: str) -> pl.DataFrame:
    """Makes the movie table of the variants that join genres with a bar."""
    require_columns(table, ["item_id", "title", "genres"], name, _REMEDY)
    return table.select(
        pl.col("item_id").cast(pl.Int64),
        pl.col("title").str.strip_chars(),
        genres=_genres(pl.col("genres"), "|"),
    )


def _users(table: pl.DataFrame, name: str) -> pl.DataFrame:
    require_columns(table, list(_USERS), name, _REMEDY)
    return table.select(pl.col(column).cast(kind) for column, kind in _USERS.items())


def _genres(joined: pl.Expr, separator: str) -> pl.Expr:
    """Splits a joined genre column; the names for "no genre" give an empty list."""
    is_genre = pl.element().is_in(list(NO_GENRES)).not_()
    return joined.fill_null("").str.split(separator).list.eval(pl.element().filter(is_genre))
