"""Sessions of real logs: the demo's protocol, gaps, days. Skipped where the data are not."""

import os
import pathlib

import polars as pl
import pytest

from core_jax.errors import DataError
from rec_jax.data.builders.movielens import load_movielens
from rec_jax.data.interactions import InteractionLog
from rec_jax.data.own_logs import OwnLogConfig, TimestampUnit, read_own_log
from rec_jax.data.sessions import (
    SPLITS,
    EventRule,
    EventRuleConfig,
    QualityConfig,
    SessionConfig,
    SessionData,
    SessionRule,
    SplitConfig,
    SplitRule,
    TrainWindows,
    build_sessions,
    examples,
)
from tests.rec.session_cases import LIKED, TEMPORAL, found_examples


@pytest.mark.real_data
def test_real_movielens_protocol():
    """The demo's protocol: 897 users, target = last five positives, validation = five before."""
    try:
        log = load_movielens("100k")
    except DataError as error:
        pytest.skip(f"MovieLens-100k cannot be had here: {error}")
    positive = EventRuleConfig(rule=EventRule.THRESHOLD, column="rating", threshold=4.0)
    config = SessionConfig(positive=positive, min_positives=10, train_windows=TrainWindows.SLIDING)
    data = build_sessions(log, config)
    assert len(data.test) == 897
    assert len(data.valid) == 876  # 21 users have exactly ten positives: no history before five
    assert len(data.item_ids) == 1682
    liked = log.interactions.filter(pl.col("rating") >= 4).sort("user_id", "timestamp", "row")
    per_user = (
        liked.group_by("user_id", maintain_order=True)
        .agg("item_id")
        .filter(pl.col("item_id").list.len() >= 10)
    )
    expected = dict(per_user.iter_rows())
    for split, stop in (("test", None), ("valid", -5)):
        for user, found in zip(
            examples(data, split).user, found_examples(data, split), strict=True
        ):
            items = expected[data.user_ids[user]][:stop]
            assert found == (items[:-5], items[-5:])
    assert len(data.train) == sum(max(len(items) - 15, 0) for items in per_user["item_id"])
    assert data.train_item_counts.sum() == sum(len(items) - 10 for items in per_user["item_id"])


def real_log(name: str) -> InteractionLog:
    """Returns a real log or skips the test."""
    root = pathlib.Path(os.environ.get("ALIGNAX_REAL_DATA", "/nowhere")) / name
    if not root.is_dir():
        pytest.skip(f"ALIGNAX_REAL_DATA is not set to a folder that holds '{name}'")
    if name == "ml_latest_small":
        return read_own_log(
            OwnLogConfig(
                path=str(root / "ratings.csv"),
                columns=("user_id=userId", "item_id=movieId"),
                timestamp_unit=TimestampUnit.SECONDS,
            )
        )
    return read_own_log(
        OwnLogConfig(
            path=str(root / "processed_standard_kcore_15.tsv"),
            columns=(
                *("item_id=video_id", "timestamp=time_ms", "watch_time_ms=play_time_ms"),
                "like=label",
            ),
        )
    )


@pytest.mark.real_data
def test_real_short_video_sessions():
    log = real_log("kuairand27k_like_hate")
    config = SessionConfig(
        rule=SessionRule.TIME_GAP,
        positive=LIKED,
        split=TEMPORAL,
        quality=QualityConfig(
            min_items=5, watch_time_quantile=0.5, strong_feedback=("is_follow", "like")
        ),
    )
    data = build_sessions(log, config)
    assert data.counts["sessions"] == 20_756
    assert 1_490 >= data.counts["sessions_with_min_items"] > data.counts["test"] > 0
    assert_times_part(data)


@pytest.mark.real_data
@pytest.mark.parametrize("rule", [SessionRule.TIME_GAP, SessionRule.SAME_TIMESTAMP])
@pytest.mark.parametrize("split_rule", SplitRule)
def test_real_movie_sessions(rule, split_rule):
    log = real_log("ml_latest_small")
    positive = EventRuleConfig(rule=EventRule.THRESHOLD, column="rating", threshold=4.0)
    split = SplitConfig(rule=split_rule, valid_days=365, test_days=365)
    data = build_sessions(log, SessionConfig(rule=rule, positive=positive, split=split))
    assert_times_part(data)


def assert_times_part(data: SessionData) -> None:
    """Every history ends strictly before its targets; training ends before what is held out."""
    for split in SPLITS:
        chosen = examples(data, split)
        assert (chosen.history_end > chosen.history_start).all()
        last_past = data.positive_times[chosen.history_end - 1]
        first_left = data.positive_times[chosen.history_end]
        assert (last_past < first_left).all()
    for split in ("valid", "test"):
        chosen = examples(data, split)
        assert (data.train_ends[chosen.user] <= chosen.history_end).all()
