"""Session settings that cannot work, alone or with a log, and logs that leave nothing."""

import pytest

from core_jax.errors import ConfigError, DataError
from rec_jax.data.interactions import clean_log
from rec_jax.data.sessions import (
    EventRule,
    EventRuleConfig,
    QualityConfig,
    SessionConfig,
    SessionRule,
    SplitConfig,
    SplitRule,
    TrainWindows,
    build_sessions,
    examples,
)
from tests.rec.session_cases import random_log


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"session_items": 0}, "session_items is 0; set 1 or more"),
        ({"gap_minutes": 0.0}, "gap_minutes is 0.0; set it above 0"),
        (
            {"rule": SessionRule.TIME_GAP, "train_windows": TrainWindows.SLIDING},
            "does not go with rule 'time_gap'",
        ),
    ],
)
def test_session_settings_that_cannot_work(values, message):
    with pytest.raises(ConfigError, match=message):
        SessionConfig(**values)


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        (EventRuleConfig, {"rule": EventRule.THRESHOLD}, "needs a feedback column"),
        (EventRuleConfig, {"rule": EventRule.ANY_OF}, "needs feedback columns"),
        (EventRuleConfig, {"rule": EventRule.WATCH_RATIO}, "set it above 0"),
        (QualityConfig, {"min_items": -1}, "min_items is -1"),
        (QualityConfig, {"watch_time_quantile": 1.0}, "watch_time_quantile is 1.0"),
        (SplitConfig, {"test_days": 0}, "must be at least 1"),
        (SplitConfig, {"test_from": "2020-01-01"}, "set both or none"),
        (SplitConfig, {"valid_from": "x", "test_from": "y"}, "'x' is no ISO date"),
        (
            SplitConfig,
            {"valid_from": "2020-01-02", "test_from": "2020-01-01"},
            "must lie before",
        ),
    ],
)
def test_parts_of_settings_that_cannot_work(part, values, message):
    with pytest.raises(ConfigError, match=message):
        part(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"positive": EventRuleConfig(rule=EventRule.ANY_OF, columns=("lik",))},
            r"positive.columns names 'lik'.*Did you mean 'like'",
        ),
        (
            {"quality": QualityConfig(strong_feedback=("item",))},
            r"quality.strong_feedback names 'item'",
        ),
        ({"rule": SessionRule.REQUEST_ID}, r"'request_id' needs the column 'session_id'"),
        (
            {"quality": QualityConfig(watch_time_quantile=0.5)},
            r"watch_time_quantile needs the column 'watch_time_ms'",
        ),
        (
            {"positive": EventRuleConfig(rule=EventRule.WATCH_RATIO, watch_ratio=0.5)},
            r"needs the column 'watch_time_ms'",
        ),
    ],
)
def test_settings_that_the_log_does_not_allow(values, message):
    log = random_log(0)
    events = log.interactions.drop("session_id", "watch_time_ms")
    with pytest.raises(ConfigError, match=message):
        build_sessions(clean_log(events, source="random"), SessionConfig(**values))


def test_logs_that_leave_nothing():
    log = random_log(0)
    never = EventRuleConfig(rule=EventRule.THRESHOLD, column="like", threshold=2.0)
    with pytest.raises(DataError, match=r"no event of 149 is positive"):
        build_sessions(log, SessionConfig(positive=never))
    with pytest.raises(DataError, match=r"no session is left for 'train' \(events 149"):
        build_sessions(log, SessionConfig(session_items=101))
    late = SplitConfig(rule=SplitRule.TEMPORAL, valid_days=2, test_days=99)
    with pytest.raises(DataError, match="choose moments inside the log"):
        build_sessions(log, SessionConfig(split=late))
    with pytest.raises(ConfigError, match=r"no split 'tests'. Did you mean 'test'"):
        examples(build_sessions(log, SessionConfig()), "tests")
