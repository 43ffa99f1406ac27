"""Job `encode`: semantic IDs of items that a run's catalogue does not have.

Dimension key: N new items, L code levels before the one that resolves collisions, K near items.
"""

import dataclasses
import json
import logging
import pathlib

import numpy as np
import polars as pl

from core_jax.errors import ConfigError, DataError
from core_jax.run_folder import read_done, stage_folder
from rec_jax.catalogue import Catalogue, make_catalogue
from rec_jax.data.own_logs import read_item_table
from rec_jax.semantic_ids.codebook import check_fingerprint, load_codebook
from rec_jax.semantic_ids.embedder import embed_items, load_embedder
from rec_jax.semantic_ids.new_items import NewItems, encode_new_items
from rec_jax.stages import prepare, tokenize

NUM_PRINTED = 20
"""Items that are printed; a file holds them all."""

_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
_LOGGER = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """Which items get codes, and where these go."""

    run_dir: str = "runs/demo"
    """Folder of a run whose stage tokenize is done."""
    items: str = ""
    """Table of the new items: a .csv, .tsv, .jsonl or .parquet file with the columns item_id,
    title, text, categories; only the first is a must."""
    output: str = ""
    """Where the codes go: a .csv, .tsv, .jsonl or .parquet file; empty: to the terminal alone."""
    item_columns: tuple[str, ...] = ()
    """Mapping of the table's columns, as in 'title=name'; empty: as in the run's own item table."""
    category_separator: str = ""
    """Between the categories of an item; empty: as in the run's own item table, or '|'."""
    embeddings: str = ""
    """Embeddings of the new items, for a run whose own are from a file: .npy, .npz or .parquet."""
    num_nearest: int = 3
    """Items of the catalogue to show beside each new one."""

    def __post_init__(self) -> None:
        """Checks ranges and the output's kind; whether items are given is checked in the job."""
        if self.num_nearest < 1:
            raise ConfigError(f"num_nearest is {self.num_nearest}; it must be at least 1")
        if self.output and pathlib.Path(self.output).suffix not in _SUFFIXES:
            raise ConfigError(f"output is '{self.output}'; it must end in {', '.join(_SUFFIXES)}")


def run(config: EncodeConfig) -> None:
    """Prints codes of new items, and writes them where an output is given.

    Raises:
      ConfigError: no item table is given.
      DataError: the run has no semantic IDs, or the item table cannot be read.
      CheckpointError: the run was tokenised before embedders were kept, or its files do not
        belong together.
    """
    if not config.items:
        raise ConfigError("items is empty; give a table of new items: --items new_items.csv")
    read_done(config.run_dir, tokenize.NAME)
    folder = stage_folder(config.run_dir, tokenize.NAME)
    index = tokenize.load(config.run_dir)
    codebook = load_codebook(folder / "codebook.npz")
    what = f"codebook '{folder / 'codebook.npz'}'"
    check_fingerprint(index.codebook_fingerprint, codebook.fingerprint, what)
    embedder = load_embedder(folder / "embedder.npz", codebook_fingerprint=codebook.fingerprint)
    log, data = prepare.load(config.run_dir)
    items = _read_items(config)
    embeddings, num_known_terms = embed_items(embedder, items, config.embeddings)
    new_items = encode_new_items(
        codebook,
        embeddings,
        catalogue_embeddings=np.load(folder / "embeddings.npy", allow_pickle=False),
        catalogue_codes=index.codes[:, : len(codebook.level_sizes)],
        num_nearest=config.num_nearest,
    )
    quality = json.loads((folder / "quality.json").read_text(encoding="utf-8"))
    mean_error = quality["nearest"]["reconstruction_loss"]
    catalogue = make_catalogue(data.item_ids, log.items)
    table = codes_table(items, new_items, catalogue, num_known_terms, mean_error)
    print(codes_text(table, catalogue, mean_error))
    if config.output:
        _write(table, config.output)


def codes_table(
    items: pl.DataFrame,
    new_items: NewItems,
    catalogue: Catalogue,
    num_known_terms: np.ndarray | None,
    mean_error: float,
) -> pl.DataFrame:
    """One row per new item.

    Args:
      items: the item table.
      new_items: what the codebook makes of it, row by row.
      catalogue: words of the catalogue's items.
      num_known_terms: Int64 [N], or None where embeddings are not made of words.
      mean_error: mean of the same error over the catalogue.

    Returns:
      Columns item_id, title, codes (list), error, relative_error, num_sharing, num_known_terms,
      in_catalogue, nearest (ids of items), shared_levels (of each of them).
    """
    nearest = [[catalogue.item_ids[item] for item in row_K] for row_K in new_items.nearest]
    return items.select(
        "item_id",
        "title",
        codes=pl.Series(new_items.codes.tolist(), dtype=pl.List(pl.Int32)),
        error=pl.Series(new_items.errors),
        relative_error=pl.Series(new_items.errors / max(mean_error, np.finfo(np.float64).tiny)),
        num_sharing=pl.Series(new_items.num_sharing),
        num_known_terms=pl.Series(
            [None] * items.height if num_known_terms is None else num_known_terms, dtype=pl.Int64
        ),
        in_catalogue=pl.col("item_id").is_in(list(catalogue.item_ids)),
        nearest=pl.Series(nearest, dtype=pl.List(pl.String)),
        shared_levels=pl.Series(new_items.shared_levels.tolist(), dtype=pl.List(pl.Int64)),
    )


def codes_text(table: pl.DataFrame, catalogue: Catalogue, mean_error: float) -> str:
    """What `codes_table` says, in words: the first items one by one, then all together."""
    titles = dict(zip(catalogue.item_ids, catalogue.titles, strict=True))
    lines = []
    for row in table.head(NUM_PRINTED).iter_rows(named=True):
        known = " [in the catalogue]" if row["in_catalogue"] else ""
        unknown = ", no known term" if row["num_known_terms"] == 0 else ""
        codes = " ".join(map(str, row["codes"]))
        lines += [
            f"{row['item_id']}  {row['title']}{known}",
            f"    codes {codes}; items of the catalogue with the same: {row['num_sharing']:,}; "
            f"error {row['error']:.3f}, {row['relative_error']:.2f} of the mean{unknown}",
        ]
        for item_id, shared in zip(row["nearest"], row["shared_levels"], strict=True):
            levels = f"{shared} of {len(row['codes'])} leading codes equal"
            lines.append(f"    near: {titles[item_id]} [{item_id}], {levels}")
    if table.height > NUM_PRINTED:
        lines.append(f"... and {table.height - NUM_PRINTED:,} more; --output writes them all")
    lines += [
        "",
        f"New items: {table.height:,}. Mean error {table['error'].mean():.4f}; of the catalogue "
        f"{mean_error:.4f}, by nearest centroids too.",
    ]
    num_unknown = table.filter(pl.col("num_known_terms") == 0).height
    if num_unknown:
        lines.append(
            f"Warning: without any word or category that the catalogue knows: {num_unknown:,}. "
            "Their codes say nothing; give them text, or categories of the catalogue's kind."
        )
    num_known = table.filter("in_catalogue").height
    if num_known:
        lines.append(
            f"Warning: in the catalogue already: {num_known:,}. They keep the IDs they have; shown "
            "is what a new item of the same words would get."
        )
    return "\n".join(lines)


def _read_items(config: EncodeConfig) -> pl.DataFrame:
    """The item table, with the run's own mapping where none is given."""
    path = pathlib.Path(config.run_dir) / "config.json"
    if not path.is_file():
        raise ConfigError(
            f"run_dir '{config.run_dir}' has no config.json; name the folder of a run"
        )
    log = json.loads(path.read_text(encoding="utf-8"))["log"]
    columns = config.item_columns or tuple(log.get("item_columns", ()))
    separator = config.category_separator or log.get("category_separator", "|")
    items, drops = read_item_table(config.items, columns=columns, category_separator=separator)
    if items.is_empty():
        raise DataError(f"'{config.items}' has no row with an item_id; fill it in")
    dropped = {reason: count for reason, count in drops.items() if count}
    if dropped:
        _LOGGER.warning("'%s': rows dropped: %s", config.items, dropped)
    return items


def _write(table: pl.DataFrame, output: str) -> None:
    """Writes the table by the output's suffix; text files part the entries of a list by '|'."""
    path = pathlib.Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        table.write_parquet(path)
    elif path.suffix == ".jsonl":
        table.write_ndjson(path)
    else:
        joined = pl.col("codes", "nearest", "shared_levels").cast(pl.List(pl.String)).list.join("|")
        flat = table.with_columns(joined)
        flat.write_csv(path, separator="\t" if path.suffix == ".tsv" else ",")
    _LOGGER.info("codes of %s items are in %s", f"{table.height:,}", path)
