"""Model inputs: one example, many examples and semantic IDs agree; padding says nothing."""

import numpy as np
import polars as pl
import pytest

from core_jax.errors import ConfigError
from rec_jax.data.inputs import SessionSource, batch_to_codes
from rec_jax.data.interactions import clean_log
from rec_jax.data.sessions import (
    SessionConfig,
    SessionData,
    SessionRule,
    TrainWindows,
    build_sessions,
    examples,
    histories,
    targets,
)

NUM_ITEMS = 23


def session_data(**values) -> SessionData:
    """Sessions of seven users with 7 to 31 positives at minutes apart."""
    generator = np.random.default_rng(0)
    rows = [
        (f"u{user}", f"i{generator.integers(NUM_ITEMS)}", 60_000 * (place + 97 * (place // 5)))
        for user in range(7)
        for place in range(7 + 4 * user)
    ]
    items = pl.DataFrame({"item_id": [f"i{item}" for item in range(NUM_ITEMS)]})
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    return build_sessions(clean_log(frame, items, source="small"), SessionConfig(**values))


BLOCKS = session_data(session_items=3, history_items=11, train_windows=TrainWindows.SLIDING)
GAPS = session_data(session_items=3, history_items=2, rule=SessionRule.TIME_GAP)


@pytest.mark.parametrize("data", [BLOCKS, GAPS], ids=["blocks", "gaps"])
@pytest.mark.parametrize("split", ["train", "valid", "test"])
@pytest.mark.parametrize("sizes", [(None, None), (13, 5), (1, 1)])
def test_one_by_one_equals_all_at_once(data, split, sizes):
    source = SessionSource(data, split, *sizes)
    assert len(source) == len(examples(data, split)) > 0
    order = np.random.default_rng(0).permutation(len(source))
    rows = source.rows(order)
    num_history, num_targets = sizes[0] or data.num_history_items, sizes[1] or 3
    assert rows["history"].shape == (len(source), num_history)
    assert rows["target"].shape == (len(source), num_targets)
    for name in ("history", "target"):
        assert rows[name].dtype == np.int32
        one_by_one = np.stack([source[int(index)][name] for index in order])
        np.testing.assert_array_equal(one_by_one, rows[name])


def test_alignment():
    """A history is the tail of the longer one, right-aligned; a target is left-aligned."""
    longest, shorter = histories(BLOCKS, "test", 0), histories(BLOCKS, "test", 5)
    np.testing.assert_array_equal(longest[:, -5:], shorter)
    assert (np.diff((longest >= 0).astype(int), axis=1) >= 0).all()
    assert (longest[:, -1] >= 0).all()
    wide = targets(GAPS, "test", 17)
    assert (np.diff((wide >= 0).astype(int), axis=1) <= 0).all()
    assert (wide[:, 0] >= 0).all()
    at = BLOCKS.test
    for place in range(len(at)):
        items = BLOCKS.positives[at.history_start[place] : at.history_end[place]]
        np.testing.assert_array_equal(longest[place][longest[place] >= 0], items)


def test_codes_of_items():
    codes = np.random.default_rng(1).integers(0, 7, (NUM_ITEMS, 3)).astype(np.int32)
    source = SessionSource(GAPS, "train", 13, 5)
    batch = source.rows(np.arange(len(source)))
    coded = batch_to_codes(codes)(batch)
    for name in ("history", "target"):
        items, mask = batch[name], getattr(coded, f"{name}_mask")
        found = getattr(coded, f"{name}_codes")
        assert found.shape == (*items.shape, 3)
        assert found.dtype == np.int32
        assert mask.dtype == bool
        np.testing.assert_array_equal(mask, items >= 0)
        np.testing.assert_array_equal(found[mask], codes[items[mask]])
        assert (found[~mask] == 0).all()
        assert (~mask).any()


def test_unknown_split():
    with pytest.raises(ConfigError, match=r"no split 'dev'. Known: test, train, valid"):
        SessionSource(BLOCKS, "dev")
