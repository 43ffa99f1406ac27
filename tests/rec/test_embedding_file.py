import numpy as np
import polars as pl
import pytest

from core_jax.errors import DataError
from rec_jax.semantic_ids.embedding_file import read_embeddings

IDS = ["7", "30", "1"]
MATRIX = np.arange(15.0).reshape(5, 3).astype(np.float32)
FILE_IDS = ["1", "2", "30", "4", "7"]
EXPECTED = MATRIX[[4, 2, 0]]


def write(path, kind, matrix=MATRIX, ids=FILE_IDS):
    """One file of each documented format, with more items than the catalogue has."""
    if kind == "npz":
        np.savez(path / "own.npz", embeddings=matrix, item_ids=np.array(ids))
    elif kind == "npz_integers":
        np.savez(path / "own.npz", embeddings=matrix, item_ids=np.array(ids).astype(int))
    elif kind == "parquet_list":
        table = pl.DataFrame({"item_id": ids, "embedding": matrix.tolist()})
        table.write_parquet(path / "own.parquet")
    elif kind == "parquet_array":
        pl.DataFrame({"item_id": ids, "embedding": matrix}).write_parquet(path / "own.parquet")
    else:
        table = pl.DataFrame(matrix, schema=[f"d{dim}" for dim in range(matrix.shape[1])])
        table.insert_column(1, pl.Series("item_id", ids)).write_parquet(path / "own.parquet")
    return next(path.iterdir())


@pytest.mark.parametrize(
    "kind", ["npz", "npz_integers", "parquet_list", "parquet_array", "parquet_columns"]
)
def test_rows_are_matched_by_id(kind, tmp_path):
    read = read_embeddings(write(tmp_path, kind), IDS)
    np.testing.assert_array_equal(read, EXPECTED)
    assert read.dtype == np.float32


def test_a_bare_matrix_is_in_item_order(tmp_path):
    np.save(tmp_path / "own.npy", MATRIX.astype(np.float64))
    np.testing.assert_array_equal(read_embeddings(tmp_path / "own.npy", FILE_IDS), MATRIX)
    with pytest.raises(DataError, match="has 5 rows for 3 items"):
        read_embeddings(tmp_path / "own.npy", IDS)


@pytest.mark.parametrize("kind", ["npz", "parquet_list", "parquet_columns"])
def test_bad_ids_and_values_are_named(kind, tmp_path):
    with pytest.raises(DataError, match="no embedding for 1 of 3 items, such as '30'"):
        read_embeddings(write(tmp_path, kind, ids=["1", "2", "3", "4", "7"]), IDS)
    with pytest.raises(DataError, match="repeats 1 of its 5 ids"):
        read_embeddings(write(tmp_path, kind, ids=["1", "1", "30", "4", "7"]), IDS)
    bad = MATRIX.copy()
    bad[2, 1] = np.inf
    with pytest.raises(DataError, match=r"embeddings of 1 items hold NaN.*item '30'"):
        read_embeddings(write(tmp_path, kind, matrix=bad), IDS)
    bad[2, 1], bad[1, 1] = 0.0, np.inf
    assert read_embeddings(write(tmp_path, kind, matrix=bad), IDS).shape == (3, 3)


def test_bad_files_are_named(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_embeddings(tmp_path / "own.npy", IDS)
    with pytest.raises(DataError, match=r"read from \.npy, \.npz, \.parquet only"):
        read_embeddings(tmp_path / "own.txt", IDS)
    for suffix in (".npy", ".npz", ".parquet"):
        path = tmp_path / f"own{suffix}"
        path.write_bytes(b"nothing of the kind")
        with pytest.raises(DataError, match=f"cannot be read as {suffix}"):
            read_embeddings(path, IDS)
    np.savez(tmp_path / "own.npz", vectors=MATRIX)
    with pytest.raises(DataError, match="has the arrays vectors; it needs 'embeddings'"):
        read_embeddings(tmp_path / "own.npz", IDS)
    np.savez(tmp_path / "own.npz", embeddings=MATRIX, item_ids=np.array(["1"]))
    with pytest.raises(DataError, match="has 1 ids for 5 rows"):
        read_embeddings(tmp_path / "own.npz", IDS)
    np.save(tmp_path / "own.npy", np.ones(3))
    with pytest.raises(DataError, match=r"embeddings are float64 \[3\]"):
        read_embeddings(tmp_path / "own.npy", IDS)
    np.save(tmp_path / "own.npy", np.array([["a"], ["b"], ["c"]]))
    with pytest.raises(DataError, match="must be numbers"):
        read_embeddings(tmp_path / "own.npy", IDS)


def test_bad_tables_are_named(tmp_path):
    path = tmp_path / "own.parquet"
    pl.DataFrame({"id": IDS, "embedding": [[1.0]] * 3}).write_parquet(path)
    with pytest.raises(DataError, match="has the columns id, embedding; it needs 'item_id'"):
        read_embeddings(path, IDS)
    pl.DataFrame({"item_id": IDS, "embedding": [[1.0], [1.0, 2.0], [3.0]]}).write_parquet(path)
    with pytest.raises(DataError, match="lists of lengths"):
        read_embeddings(path, IDS)
    pl.DataFrame({"item_id": IDS, "embedding": [[1.0], None, [3.0]]}).write_parquet(path)
    with pytest.raises(DataError, match="lists of lengths"):
        read_embeddings(path, IDS)
    pl.DataFrame({"item_id": IDS, "d0": ["a", "b", "c"]}).write_parquet(path)
    with pytest.raises(DataError, match=r"cannot be read as \.parquet"):
        read_embeddings(path, IDS)
