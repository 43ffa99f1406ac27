import numpy as np
import pytest

from core_jax.errors import CheckpointError, DataError
from rec_jax.semantic_ids.item_index import (
    build_item_index,
    items_of,
    load_item_index,
    save_item_index,
)
from rec_jax.semantic_ids.residual import CollisionPolicy

SIZES = (5, 3)
EXTRA, SHARE = CollisionPolicy.EXTRA_LEVEL, CollisionPolicy.SHARE


def draw(seed, num_items=97, sizes=SIZES):
    rng = np.random.default_rng(seed)
    codes = np.stack([rng.integers(0, size, num_items) for size in sizes], axis=-1)
    return codes.astype(np.int32), rng.integers(0, 13, num_items)


def groups(codes):
    """Items by their codes, in item order."""
    found = {}
    for item, code in enumerate(map(tuple, codes.tolist())):
        found.setdefault(code, []).append(item)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_extra_level_gives_every_item_an_id_of_its_own(seed):
    codes, popularity = draw(seed)
    index = build_item_index(codes, SIZES, EXTRA, popularity)
    assert len(np.unique(index.codes, axis=0)) == len(codes)
    np.testing.assert_array_equal(index.codes[:, :2], codes)
    largest = max(map(len, groups(codes).values()))
    assert index.level_sizes == (*SIZES, largest)
    assert index.codes.dtype == np.int32 and index.num_levels == 3 and index.num_items == 97


@pytest.mark.parametrize("with_popularity", [True, False])
def test_extra_codes_count_from_zero_by_popularity_then_item(with_popularity):
    codes, popularity = draw(7)
    index = build_item_index(codes, SIZES, EXTRA, popularity if with_popularity else None)
    weight = popularity if with_popularity else np.zeros(97)
    for items in groups(codes).values():
        expected = sorted(items, key=lambda item: (-weight[item], item))
        assert index.codes[expected, 2].tolist() == list(range(len(items)))


def test_new_items_at_the_end_leave_item_numbered_ids_alone():
    codes, _ = draw(8)
    old = build_item_index(codes[:61], SIZES, EXTRA)
    new = build_item_index(codes, SIZES, EXTRA)
    np.testing.assert_array_equal(new.codes[:61], old.codes)


def test_nothing_is_appended_where_nothing_collides():
    codes = np.array([[0, 2], [4, 1], [0, 1]], np.int32)
    index = build_item_index(codes, SIZES, EXTRA)
    np.testing.assert_array_equal(index.codes, codes)
    assert index.level_sizes == SIZES


def test_shared_ids_are_kept_and_expanded():
    codes, popularity = draw(9)
    index = build_item_index(codes, SIZES, SHARE, popularity)
    np.testing.assert_array_equal(index.codes, codes)
    assert index.level_sizes == SIZES
    by_code = groups(codes)
    queries = np.array(list(by_code), np.int32)
    assert items_of(index, queries) == list(by_code.values())
    best_first = [sorted(items, key=lambda i: (-popularity[i], i)) for items in by_code.values()]
    assert items_of(index, queries, popularity) == best_first


@pytest.mark.parametrize("policy", [EXTRA, SHARE])
def test_encode_and_decode_of_every_item_after_reload(policy, tmp_path):
    codes, popularity = draw(10)
    index = build_item_index(codes, SIZES, policy, popularity, codebook_fingerprint="0a1b")
    save_item_index(index, tmp_path / "items.npz")
    loaded = load_item_index(tmp_path / "items.npz")
    assert loaded.codes.tobytes() == index.codes.tobytes() and loaded.codes.dtype == np.int32
    assert (loaded.level_sizes, loaded.fingerprint) == (index.level_sizes, index.fingerprint)
    assert loaded.codebook_fingerprint == "0a1b"
    found = items_of(loaded, loaded.codes)
    assert all(item in items for item, items in enumerate(found))
    if policy is EXTRA:
        assert found == [[item] for item in range(97)]


def test_codes_without_an_item_have_none():
    index = build_item_index(np.array([[0, 0], [4, 2]], np.int32), SIZES, SHARE)
    assert items_of(index, np.array([[0, 1], [4, 2], [2, 2]], np.int32)) == [[], [1], []]


def test_fingerprint_covers_codes_sizes_and_codebook():
    codes, _ = draw(11)
    other = codes.copy()
    other[96, 1] = (other[96, 1] + 1) % 3
    indices = [
        build_item_index(codes, SIZES, SHARE),
        build_item_index(other, SIZES, SHARE),
        build_item_index(codes, (5, 7), SHARE),
        build_item_index(codes, SIZES, SHARE, codebook_fingerprint="0a1b"),
    ]
    assert len({index.fingerprint for index in indices}) == 4
    assert build_item_index(codes, SIZES, SHARE).fingerprint == indices[0].fingerprint


def test_tampered_index_is_refused(tmp_path):
    codes, _ = draw(12)
    save_item_index(build_item_index(codes, SIZES, EXTRA), tmp_path / "items.npz")
    with np.load(tmp_path / "items.npz") as file:
        content = {name: file[name] for name in file.files}
    content["codes"][0, 0] = (content["codes"][0, 0] + 1) % 5
    np.savez(tmp_path / "items.npz", **content)
    with pytest.raises(CheckpointError, match="content of item index"):
        load_item_index(tmp_path / "items.npz")


@pytest.mark.parametrize(
    ("codes", "sizes", "message"),
    [
        ([[0, 3]], SIZES, r"1 codes of level 1 lie outside 0\.\.2, the first in row 0: 3"),
        ([[0, 0], [-1, 0]], SIZES, r"level 0 lie outside 0\.\.4, the first in row 1: -1"),
        ([[0, 0, 0]], SIZES, r"must be int32 \[items, 2\]"),
        ([[0, 0, 0]], (2**31, 2**31, 2**31), r"more than 2\*\*63"),
    ],
)
def test_bad_codes_are_named(codes, sizes, message):
    with pytest.raises(DataError, match=message):
        build_item_index(np.array(codes, np.int32), sizes, SHARE)


def test_wrong_dtype_is_named():
    with pytest.raises(DataError, match=r"codes are int64.*must be int32"):
        build_item_index(np.zeros((3, 2), np.int64), SIZES, SHARE)
