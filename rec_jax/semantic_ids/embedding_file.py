"""The user's own item embeddings, from .npy, .npz or .parquet, matched to the item table by id.

Dimension key: I items, N rows of the file, D dimensions.
"""

import os
import pathlib
import zipfile

import numpy as np
import polars as pl

from core_jax.arrays import Float
from core_jax.errors import DataError
from core_jax.storage import local_path


def read_embeddings(path: str | os.PathLike[str], item_ids: list[str]) -> Float[np.ndarray, "I D"]:
    """Reads one embedding per item, in the order of the item table.

    Formats:

    - `.npy`: a matrix [I, D] whose rows are in the order of the item table (no ids to check, so
      the number of rows must match exactly);
    - `.npz`: arrays `item_ids` [N] (text or integers) and `embeddings` [N, D];
    - `.parquet`: a column item_id, and either a list column `embedding` or one number column per
      dimension, in file order.

    Rows whose id is not in the item table are ignored: a file may cover a larger catalogue.

    Args:
      path: the file.
      item_ids: ids of the item table.

    Returns:
      Float32.

    Raises:
      DataError: the file is absent or unreadable, an item has no row or several, rows differ in
        length, or a value is not a finite number.
    """
    path = local_path(path)
    readers = {".npy": _read_npy, ".npz": _read_npz, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise DataError(f"'{path}': embeddings are read from {', '.join(readers)} only")
    if not path.is_file():
        raise DataError(f"'{path}' does not exist; give the path of an embedding file")
    try:
        matrix, file_ids = readers[path.suffix](path)
    except (ValueError, OSError, KeyError, zipfile.BadZipFile, pl.exceptions.PolarsError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"'{path}' cannot be read as {path.suffix} embeddings ({error}); see the formats in "
            "the documentation"
        ) from error
    if matrix.ndim != 2 or matrix.dtype.kind not in "fiu" or matrix.shape[1] == 0:
        raise DataError(
            f"'{path}': embeddings are {matrix.dtype} {list(matrix.shape)}; they must be numbers "
            "[items, dimensions]"
        )
    matrix = matrix[_rows_of(path, matrix.shape[0], file_ids, item_ids)].astype(np.float32)
    is_bad_I = ~np.isfinite(matrix).all(axis=-1)
    if is_bad_I.any():
        raise DataError(
            f"'{path}': the embeddings of {is_bad_I.sum()} items hold NaN or infinity, the first "
            f"that of item '{item_ids[is_bad_I.argmax()]}'; replace them or drop the items"
        )
    return matrix


def _rows_of(
    path: pathlib.Path, num_rows: int, file_ids: list[str] | None, item_ids: list[str]
) -> np.ndarray:
    """Row of the file that belongs to every item of the table."""
    if file_ids is None:
        if num_rows != len(item_ids):
            raise DataError(
                f"'{path}' has {num_rows} rows for {len(item_ids)} items; give one row per item "
                "in the order of the item table, or a .npz or .parquet file with ids"
            )
        return np.arange(num_rows)
    if len(file_ids) != num_rows:
        raise DataError(f"'{path}' has {len(file_ids)} ids for {num_rows} rows; give one id a row")
    row_of = {item_id: row for row, item_id in enumerate(file_ids)}
    if len(row_of) < num_rows:
        raise DataError(
            f"'{path}' repeats {num_rows - len(row_of)} of its {num_rows} ids; keep one row each"
        )
    missing = [item_id for item_id in item_ids if item_id not in row_of]
    if missing:
        raise DataError(
            f"'{path}' has no embedding for {len(missing)} of {len(item_ids)} items, such as "
            f"{', '.join(map(repr, missing[:3]))}; add them, or drop those items from the log"
        )
    return np.array([row_of[item_id] for item_id in item_ids])


def _read_npy(path: pathlib.Path) -> tuple[np.ndarray, None]:
    """A bare matrix."""
    with path.open("rb") as raw:
        return np.load(raw, allow_pickle=False), None


def _read_npz(path: pathlib.Path) -> tuple[np.ndarray, list[str]]:
    """Arrays `embeddings` and `item_ids`."""
    with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
        for name in ("embeddings", "item_ids"):
            if name not in file.files:
                raise DataError(
                    f"'{path}' has the arrays {', '.join(file.files) or 'none'}; it needs "
                    f"'{name}' (embeddings [N, D] and item_ids [N])"
                )
        return file["embeddings"], [str(item_id) for item_id in file["item_ids"].ravel()]


def _read_parquet(path: pathlib.Path) -> tuple[np.ndarray, list[str]]:
    """Columns item_id and `embedding`, or item_id and one column per dimension."""
    table = pl.read_parquet(path)
    if "item_id" not in table.columns:
        raise DataError(
            f"'{path}' has the columns {', '.join(table.columns)}; it needs 'item_id' and "
            "'embedding' (a list), or one number column per dimension"
        )
    ids = table["item_id"].cast(pl.String).to_list()
    if "embedding" not in table.columns:
        return table.drop("item_id").cast(pl.Float64).to_numpy(), ids
    lengths = table["embedding"].cast(pl.List(pl.Float64)).list.len().unique().to_list()
    if len(lengths) != 1 or lengths[0] is None:
        raise DataError(
            f"'{path}': column 'embedding' has lists of lengths {sorted(map(str, lengths))}; "
            "every item needs the same number of dimensions"
        )
    return np.stack(table["embedding"].cast(pl.List(pl.Float64)).to_list()), ids
