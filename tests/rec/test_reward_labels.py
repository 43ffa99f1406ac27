"""Labels by formula for every kind, absent values, constants, unknown columns."""

import numpy as np
import pytest

from core_jax.errors import CheckpointError, ConfigError, DataError
from rec_jax.reward.config import TargetConfig, TargetKind
from rec_jax.reward.labels import (
    Labels,
    SessionRows,
    check_labels,
    columns_of,
    load_references,
    make_labels,
    make_references,
    percentile_in_group,
    save_references,
)
from tests.rec.reward_cases import as_log, delivered_frame

NAN = float("nan")
IS_ITEM = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 0]], bool)
ROWS = SessionRows(
    columns={
        "watch_time_ms": np.array(
            [[1000, 2000, 4000], [500, 1500, NAN], [NAN, NAN, NAN], [7000, 0, NAN]]
        ),
        "duration_ms": np.array(
            [[2000, 2000, 9000], [2000, 9000, NAN], [2000, NAN, NAN], [9000, 2000, NAN]]
        ),
        "like": np.array([[1, 0, 1], [0, 0, NAN], [NAN, NAN, NAN], [NAN, 1, NAN]]),
        "rating": np.array([[1, 3, 5], [5, 5, NAN], [2, NAN, NAN], [NAN, NAN, NAN]]),
    },
    is_item=IS_ITEM,
    user=np.array([0, 0, 1, 1]),
    is_train=np.array([True, True, True, False]),
)


def labels_of(kind: TargetKind, **values) -> list[float | None]:
    target = TargetConfig(name="x", kind=kind, **values)
    made = make_labels([target], ROWS, make_references([target], ROWS))
    return [
        round(float(value), 6) if there else None
        for value, there in zip(made.values[:, 0], made.mask[:, 0], strict=True)
    ]


def test_watch_time_is_a_rank_among_training_sessions():
    """Sums are 7000, 2000, absent (train) and 7000 (held out); of two values the ranks with ties
    half are 3/4 and 1/4, and 7000 ranks like its equal."""
    assert labels_of(TargetKind.WATCH_TIME_PERCENTILE) == [0.75, 0.25, None, 0.75]


def test_watch_time_above_a_quantile():
    """Half-way between 2000 and 7000 lies 4500."""
    assert labels_of(TargetKind.WATCH_TIME_ABOVE, quantile=0.5) == [1.0, 0.0, None, 1.0]


def test_any_and_share_count_items_with_a_value():
    assert labels_of(TargetKind.ANY, column="like") == [1.0, 0.0, None, 1.0]
    assert labels_of(TargetKind.SHARE, column="like") == [0.666667, 0.0, None, 1.0]
    assert labels_of(TargetKind.SHARE, column="rating", threshold=3.0) == [
        *(0.666667, 1.0, 0.0),
        None,
    ]


def test_mean_and_its_rank():
    """Means 3, 5, 2 on the scale 1 to 5, and their ranks (k - 1/2) / 3."""
    assert labels_of(TargetKind.MEAN, column="rating", low=1.0, high=5.0) == [0.5, 1.0, 0.25, None]
    assert labels_of(TargetKind.PERCENTILE, column="rating") == [0.5, 0.833333, 0.166667, None]


def test_a_mean_beyond_its_scale_is_an_error():
    with pytest.raises(DataError, match=r"'x': the mean of 'rating' is 5 .* low 1 to high 4"):
        labels_of(TargetKind.MEAN, column="rating", low=1.0, high=4.0)


def test_duration_aware_ranks_in_the_users_own_bucket():
    """Buckets floor(log2(seconds + 1)): 2 s -> 1, 9 s -> 3. User 0 trains on 1000, 2000, 500 in
    bucket 1 (ranks 1/2, 5/6, 1/6) and on 4000, 1500 in bucket 3 (3/4, 1/4). User 1 has no
    training watch time, so its 7000 of bucket 3 ranks above all (1), and 0 of bucket 1 below (0).
    """
    own = {"bucket_events": 1}
    assert labels_of(TargetKind.DURATION_PERCENTILE, **own) == [
        *(round((1 / 2 + 5 / 6 + 3 / 4) / 3, 6), round((1 / 6 + 1 / 4) / 2, 6)),
        *(None, 0.5),
    ]
    assert labels_of(TargetKind.DURATION_SHARE, quantile=0.7, **own) == [0.666667, 0.0, None, 0.5]


def test_a_small_bucket_falls_back_to_everybodys():
    rows = SessionRows(
        columns={
            "watch_time_ms": np.array([[1.0], [2.0], [3.0], [9.0]]),
            "duration_ms": np.full((4, 1), 2000.0),
        },
        is_item=np.ones((4, 1), bool),
        user=np.array([0, 1, 1, 1]),
        is_train=np.ones(4, bool),
    )
    target = TargetConfig(name="x", kind=TargetKind.DURATION_PERCENTILE, bucket_events=2)
    made = make_labels([target], rows, make_references([target], rows)).values[:, 0]
    np.testing.assert_allclose(made, [1 / 8, 1 / 6, 3 / 6, 5 / 6], rtol=1e-6)


def test_bucket_base_is_the_base_of_the_logarithm():
    """With base 11 videos of 2 s and 9 s share bucket 0: user 0 has five values there."""
    found = labels_of(TargetKind.DURATION_PERCENTILE, bucket_base=11.0, bucket_events=5)
    assert found[0] == round((3 / 10 + 7 / 10 + 9 / 10) / 3, 6)


def test_percentile_in_group_equals_brute_force():
    generator = np.random.default_rng(0)
    groups, values = generator.integers(0, 5, 97), generator.integers(0, 11, 97).astype(float)
    asked, queries = generator.integers(0, 7, 53), generator.integers(0, 13, 53).astype(float)
    ranks, sizes = percentile_in_group(groups, values, asked, queries)
    for rank, size, group, query in zip(ranks, sizes, asked, queries, strict=True):
        own = values[groups == group]
        assert size == len(own)
        if len(own):
            assert rank == pytest.approx(np.mean((own < query) + 0.5 * (own == query)))
        else:
            assert np.isnan(rank)


def test_references_make_the_same_labels_again(tmp_path):
    targets = [
        TargetConfig(name="a", kind=TargetKind.WATCH_TIME_PERCENTILE),
        TargetConfig(name="b", kind=TargetKind.DURATION_SHARE),
    ]
    references = make_references(targets, ROWS)
    save_references(references, tmp_path / "labels.npz")
    loaded = load_references(tmp_path / "labels.npz")
    for first, second in zip(
        *(make_labels(targets, ROWS, held).values.T for held in (references, loaded)), strict=True
    ):
        np.testing.assert_array_equal(first, second)
    with pytest.raises(CheckpointError, match="does not exist"):
        load_references(tmp_path / "other.npz")


def test_unknown_columns_name_the_target_and_what_the_log_has():
    log = as_log(delivered_frame())
    liked = TargetConfig(name="ltr", kind=TargetKind.ANY, column="liked")
    with pytest.raises(ConfigError, match=r"'ltr'.*'liked'.*watch_time_ms, duration_ms, like"):
        columns_of([liked], log)
    without = as_log(delivered_frame().drop("watch_time_ms", "duration_ms"))
    watch = TargetConfig(name="swt", kind=TargetKind.WATCH_TIME_PERCENTILE)
    with pytest.raises(ConfigError, match=r"'swt'.*'watch_time_ms'.*drop the target"):
        columns_of([watch], without)
    dur = TargetConfig(name="q", kind=TargetKind.DURATION_SHARE)
    with pytest.raises(ConfigError, match=r"'q'.*'duration_ms'"):
        columns_of([dur], as_log(delivered_frame().drop("duration_ms")))
    assert columns_of([watch, dur], log) == ["watch_time_ms", "duration_ms"]


def test_a_head_without_anything_to_learn_is_an_error():
    target = TargetConfig(name="wtr", kind=TargetKind.ANY, column="follow")
    constant = Labels(values=np.ones((5, 1), np.float32), mask=np.ones((5, 1), bool))
    with pytest.raises(DataError, match=r"'wtr' is constant: all 5 .* labelled 1.*drop the target"):
        check_labels([target], constant, "fold 0")
    absent = Labels(values=np.zeros((5, 1), np.float32), mask=np.zeros((5, 1), bool))
    with pytest.raises(DataError, match=r"'wtr' has no label in the 5 .*drop the target"):
        check_labels([target], absent, "fold 0")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "a", "kind": TargetKind.ANY}, "has no column"),
        (
            {"name": "a", "kind": TargetKind.WATCH_TIME_ABOVE, "column": "like"},
            "leave column empty",
        ),
        ({"name": "", "kind": TargetKind.DURATION_SHARE}, "give a name"),
        ({"name": "p_score", "kind": TargetKind.DURATION_SHARE}, "give a name"),
        ({"name": "a", "kind": TargetKind.DURATION_SHARE, "quantile": 1.0}, "quantile 1.0"),
        ({"name": "a", "kind": TargetKind.MEAN, "column": "r", "low": 2.0}, "low < high"),
        ({"name": "a", "kind": TargetKind.DURATION_SHARE, "bucket_base": 1.0}, "above 1"),
        ({"name": "a", "kind": TargetKind.DURATION_SHARE, "p_weight": -1.0}, "p_weight"),
    ],
)
def test_a_target_that_cannot_work_is_an_error(values, message):
    with pytest.raises(ConfigError, match=message):
        TargetConfig(**values)
