"""Delivered sessions and labels of a real log. Skipped where the data are not."""

import pytest

from rec_jax.data.session_config import SessionConfig, SessionRule
from rec_jax.data.sessions import build_sessions
from rec_jax.reward.labels import check_labels
from rec_jax.reward.presets import kuairand_like_hate
from rec_jax.reward.sessions import build_reward_data
from tests.rec.session_cases import LIKED, TEMPORAL
from tests.rec.test_real_sessions import real_log


@pytest.mark.real_data
def test_real_short_video_rewards():
    """Every event of the log is delivered once, in pieces of at most five; no head is constant."""
    log = real_log("kuairand27k_like_hate")
    config = SessionConfig(rule=SessionRule.TIME_GAP, positive=LIKED, split=TEMPORAL, min_history=0)
    targets = kuairand_like_hate().targets
    data = build_reward_data(log, config, build_sessions(log, config), targets, session_items=5)
    assert (data.items >= 0).sum() == log.interactions.height
    assert data.counts["train"] > data.counts["test"] > 1000
    assert data.labels.mask.all()
    check_labels(targets, data.labels, "all users")
    watch = data.labels.values[data.is_train, 0]
    assert abs(watch.mean() - 0.5) < 1e-3  # ranks among themselves
