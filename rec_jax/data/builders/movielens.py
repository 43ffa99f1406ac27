"""MovieLens through TensorFlow Datasets builders that write ArrayRecord; no TensorFlow needed.

`MovielensLog` has one configuration per variant and table ("100k-ratings", "100k-movies",
"100k-users", ...). One example of `ratings` is a block of consecutive rows of the file, which
makes reading a whole log back a few hundred large reads instead of millions of small ones; one
example of the other tables is one movie or one user. `load_movielens` builds what is not built
yet and reads it back as the canonical log.

Dimension key: R rows of one block.
"""

import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl
import tensorflow_datasets as tfds

from core_jax.data.fetch import Address, Wheel, cache_folder, fetch_first
from core_jax.data.records import read_built
from core_jax.errors import DataError, nearest_name
from core_jax.storage import local_path
from rec_jax.data.builders.movielens_files import (
    TABLES,
    UNREADABLE_TIME,
    read_table,
    source_digest,
)
from rec_jax.data.interactions import InteractionLog, clean_log

ROWS_PER_EXAMPLE = 8192
"""Ratings in one example of a `ratings` table."""

_CITATION = (
    "F. Maxwell Harper and Joseph A. Konstan. 2015. The MovieLens Datasets: History and Context. "
    "ACM Transactions on Interactive Intelligent Systems 5, 4, Article 19."
)


def _address(name: str, sha256: str) -> Address:
    url = f"https://files.grouplens.org/datasets/movielens/{name}"
    return Address(url=url, filename=name, sha256=sha256)


# The checksums of GroupLens' archives are those that TensorFlow Datasets registers for them
# (tensorflow_datasets/url_checksums/movielens.txt).
WAYS: dict[str, tuple[Wheel | Address, ...]] = {
    "100k": (
        Wheel(
            project="recbole",
            version="1.2.1",
            filename="recbole-1.2.1-py3-none-any.whl",
            sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
        ),
        _address("ml-100k.zip", "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229"),
    ),
    "latest-small": (
        _address(
            "ml-latest-small.zip",
            "696d65a3dfceac7c45750ad32df2c259311949efec81f0f144fdfb91ebc9e436",
        ),
    ),
    "1m": (
        _address("ml-1m.zip", "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20"),
    ),
    "25m": (
        _address("ml-25m.zip", "8b21cfb7eb1706b4ec0aac894368d90acf26ebdfb6aced3ebd4ad5bd1eb9c6aa"),
    ),
}
"""Where each variant comes from, best way first."""


class MovielensLog(tfds.core.GeneratorBasedBuilder):
    """MovieLens ratings, movies and users; use it with `file_format='array_record'`."""

    VERSION = tfds.core.Version("1.0.0")
    # Checksums are `fetch`'s. Said here, the base class does not look for a checksum file, for
    # which it would import a package that it does not declare (importlib_resources).
    url_infos = None
    BUILDER_CONFIGS = [  # noqa: RUF012 (the base class reads this list)
        tfds.core.BuilderConfig(
            name=f"{variant}-{table}", description=f"{table} of MovieLens {variant}"
        )
        for variant in WAYS
        for table in TABLES[variant]
    ]

    def __init__(self, *, source: str = "", **builder_arguments: Any):
        """Makes a builder.

        Args:
          source: folder, zip or wheel with the variant's files; empty means the data cache, where
            they are fetched to if absent.
          **builder_arguments: those of every TensorFlow Datasets builder: config, data_dir,
            file_format.
        """
        self._source = source
        super().__init__(**builder_arguments)

    def _info(self) -> tfds.core.DatasetInfo:
        """Says the features of one example of this configuration's table."""
        text = tfds.features.Text
        column = {
            kind: tfds.features.Tensor(shape=(None,), dtype=kind) for kind in (np.int64, np.float64)
        }
        ids = {"user_id": column[np.int64], "item_id": column[np.int64]}
        features = {
            "ratings": {
                **ids,
                "rating": column[np.float64],
                "timestamp": column[np.int64],
                "row": column[np.int64],
            },
            "movies": {
                "item_id": np.int64,
                "title": text(),
                "genres": tfds.features.Sequence(text()),
            },
            "users": {
                "user_id": np.int64,
                **{name: text() for name in ("age", "gender", "occupation", "zip_code")},
            },
        }[self._variant_and_table()[1]]
        return tfds.core.DatasetInfo(
            builder=self,
            description="MovieLens: ratings of movies with times, titles and genres.",
            features=tfds.features.FeaturesDict(features),
            homepage="https://grouplens.org/datasets/movielens/",
            citation=_CITATION,
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        """One split, named as its table; the manager is unused, downloads are `fetch`'s."""
        del dl_manager
        variant, table = self._variant_and_table()
        source = self._source or fetch_first(WAYS[variant])
        return {table: self._generate_examples(read_table(source, table))}

    def _generate_examples(self, table: pl.DataFrame) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields (position, example)."""
        if self._variant_and_table()[1] == "ratings":
            for start in range(0, table.height, ROWS_PER_EXAMPLE):
                block_R = table.slice(start, ROWS_PER_EXAMPLE)
                yield start, {name: block_R[name].to_numpy() for name in table.columns}
        else:
            filled = table.with_columns(pl.col(pl.String).fill_null(""))
            yield from enumerate(filled.iter_rows(named=True))

    def _variant_and_table(self) -> tuple[str, str]:
        """Splits the configuration's name at its last hyphen."""
        config = self.builder_config
        assert config is not None  # the base class insists on one of BUILDER_CONFIGS
        variant, _, table = config.name.rpartition("-")
        return variant, table


def load_movielens(
    variant: str,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    source: str | os.PathLike[str] | None = None,
) -> InteractionLog:
    """Loads a MovieLens variant as a canonical log, fetching and building it the first time.

    Ratings become the feedback column `rating` (stars, Float64); times are milliseconds (the
    files have seconds). A movie's text is its title without the year, its genres and its year;
    the item table has the further column `year` (Int64, null where unknown).

    Args:
      variant: "100k", "latest-small", "1m" or "25m".
      cache_dir: the data cache, as in `fetch.cache_folder`.
      source: a folder or zip with the variant's files; None means the cache, fetched if absent.

    Returns:
      The log.

    Raises:
      DataError: if the variant is unknown, its files cannot be had or read, or the records that
        were built of them are damaged.
    """
    if variant not in WAYS:
        raise DataError(f"no MovieLens variant '{variant}'. {nearest_name(variant, WAYS)}")
    folder = cache_folder(cache_dir)
    path = local_path(source) if source else fetch_first(WAYS[variant], cache_dir=folder)
    data_dir = folder / "tfds" / f"movielens_{source_digest(path)[:16]}"
    tables = {name: _read_back(variant, name, path, data_dir) for name in TABLES[variant]}
    users = tables.get("users")
    ratings = tables["ratings"].filter(pl.col("timestamp") != UNREADABLE_TIME).sort("row")
    return clean_log(
        ratings.with_columns(
            pl.col("user_id", "item_id").cast(pl.String), pl.col("timestamp") * 1000
        ),
        _items(tables["movies"]),
        None if users is None else users.with_columns(pl.col("user_id").cast(pl.String)),
        source=f"MovieLens {variant} ({path.name})",
        items_source=f"movies of {path.name}",
        users_source=f"users of {path.name}",
        earlier_drops={"unreadable_time": tables["ratings"].height - ratings.height},
    )


def _read_back(
    variant: str, table: str, path: pathlib.Path, data_dir: pathlib.Path
) -> pl.DataFrame:
    """Builds one table if need be and reads all its records in one batch."""
    builder = MovielensLog(
        source=str(path),
        config=f"{variant}-{table}",
        data_dir=data_dir,
        file_format="array_record",
    )
    examples = read_built(builder, table)
    features = list(examples[0])
    if table == "ratings":
        return pl.DataFrame(
            {name: np.concatenate([example[name] for example in examples]) for name in features}
        )
    return pl.DataFrame(
        {name: [_plain(example[name]) for example in examples] for name in features}
    )


def _plain(value: Any) -> Any:
    """Turns bytes and arrays of bytes, as records carry them, into strings and lists."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, (list, np.ndarray)):
        return [_plain(part) for part in value]
    return int(value)


def _items(movies: pl.DataFrame) -> pl.DataFrame:
    """Makes the canonical item table: "Toy Story (1995)" -> text "Toy Story, Comedy, 1995"."""
    year = pl.col("title").str.extract(r"\((\d{4})\)\s*$")
    bare_title = pl.col("title").str.replace(r"\s*\(\d{4}\)\s*$", "")
    genres = pl.col("genres").cast(pl.List(pl.String))
    return movies.select(
        pl.col("item_id").cast(pl.String),
        "title",
        text=pl.concat_str(
            [bare_title, genres.list.join(", ").replace("", None), year],
            separator=", ",
            ignore_nulls=True,
        ),
        categories=genres,
        year=year.cast(pl.Int64),
    )
