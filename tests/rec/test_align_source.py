"""Bundles: the right share of preferences, contexts untouched, other samples drawn and varied."""

import functools

import numpy as np
import polars as pl
import pytest

from core_jax.data.pipeline import make_pipeline
from core_jax.errors import ConfigError
from rec_jax.align.source import (
    BundleSource,
    Preferences,
    Slots,
    bundles_to_batch,
    fill,
    plan_slots,
)
from rec_jax.data.augment import AugmentConfig, TargetOrder
from rec_jax.data.inputs import SessionSource
from rec_jax.data.interactions import clean_log
from rec_jax.data.sessions import SessionConfig, build_sessions

N, M, L, G, Q = 5, 3, 2, 2, 7


@pytest.fixture(scope="module")
def sessions() -> SessionSource:
    """Every event has an item of its own, so that no two histories are alike."""
    number = np.arange(11 * 17)
    log = clean_log(
        pl.DataFrame(
            {
                "user_id": [f"u{user}" for user in number // 17],
                "item_id": [f"i{item}" for item in number],
                "timestamp": number * 1000,
            }
        ),
        source="made up",
    )
    data = build_sessions(log, SessionConfig(session_items=M, history_items=N))
    return SessionSource(data, "train", N, M)


def preferences(*, weighted: bool = False) -> Preferences:
    """Groups that carry their own number."""
    number = np.arange(Q)
    return Preferences(
        examples=number * 2 + 1,
        codes=np.broadcast_to(number[:, None, None, None], (Q, G, M, L)).astype(np.int32),
        mask=np.ones((Q, G, M), bool),
        reference_log_probs=np.broadcast_to(-number[:, None, None, None], (Q, G, M, L)).astype(
            np.float32
        ),
        advantages=np.zeros((Q, G), np.float32),
        weights=np.full((Q, G, M, L), number[:, None, None, None] / 8, np.float32)
        if weighted
        else None,
    )


@pytest.mark.parametrize("batch_size", [8, 24, 60, 64, 512])
@pytest.mark.parametrize("ratio", [0.01, 0.1, 0.25, 1 / 3, 0.5, 1.0])
@pytest.mark.parametrize("multiple", [1, 2, 4])
def test_slots_hold_exactly_the_ratio(batch_size, ratio, multiple):
    slots = plan_slots(batch_size, ratio, multiple=multiple)
    assert slots.per_batch * slots.samples == batch_size
    assert slots.per_batch % multiple == 0 and 0 < slots.filled <= 1
    np.testing.assert_allclose(slots.per_batch * slots.filled, ratio * batch_size)


def test_slots_are_as_few_as_can_be():
    assert plan_slots(64, 0.25).per_batch == 16
    assert plan_slots(60, 0.25).per_batch == 15
    assert plan_slots(64, 0.26).per_batch == 32


def test_a_batch_that_does_not_split_is_an_error_that_names_a_size():
    with pytest.raises(ConfigError, match=r"batch_size 60 .*8 devices.*multiple of 8"):
        plan_slots(60, 0.5, multiple=8)


def test_an_epoch_has_every_preference_once_and_the_right_share(sessions):
    source = BundleSource(sessions, preferences(), Slots(per_batch=2, samples=3, filled=0.25))
    records = [source[place] for place in range(len(source))]
    assert len(records) == 4 * Q
    with_pair = [record for record in records if record["has_pair"]]
    assert [int(record["codes"][0, 0, 0]) for record in with_pair] == list(range(Q))


def test_the_context_stays_and_the_others_are_drawn(sessions):
    """With a pair sample 0 is the group's example as it was; without, it is drawn like the rest."""
    source = BundleSource(sessions, preferences(), Slots(per_batch=1, samples=5, filled=0.5))
    config = AugmentConfig(target_order=TargetOrder.SHUFFLED, history_dropout=0.5)
    for place in range(len(source)):
        bundle = fill(sessions, config, source[place], np.random.default_rng(place))
        assert bundle["history"].shape == (5, N) and bundle["target"].shape == (5, M)
        example = sessions[int(preferences().examples[min(place, Q - 1)])]
        if bundle["has_pair"]:
            np.testing.assert_array_equal(bundle["history"][0], example["history"])
            np.testing.assert_array_equal(bundle["target"][0], example["target"])
        assert len({tuple(row) for row in bundle["target"].tolist()}) > 1
    assert (source[0]["history"] == source[0]["history"][0]).all(), "fill changed its input"


@pytest.mark.parametrize("weighted", [False, True])
def test_batches_keep_each_group_with_its_context(sessions, weighted):
    codes = np.random.default_rng(0).integers(0, 9, (11 * 17, L)).astype(np.int32)
    slots = plan_slots(12, 0.25)
    pipeline = make_pipeline(
        BundleSource(sessions, preferences(weighted=weighted), slots),
        batch_size=slots.per_batch,
        seed=0,
        random_map=functools.partial(fill, sessions, AugmentConfig()),
        transform=bundles_to_batch(codes),
    )
    padded = np.concatenate([codes, np.zeros_like(codes[:1])])
    for _ in range(5):
        batch = next(pipeline)
        assert batch.sessions.history_codes.shape == (3, 4, N, L)
        assert batch.sessions.target_mask.shape == (3, 4, M)
        for place in range(3):
            number = int(batch.response_codes[place, 0, 0, 0])
            example = sessions[int(preferences().examples[number])]
            np.testing.assert_array_equal(
                batch.sessions.history_codes[place, 0], padded[example["history"]]
            )
            assert (batch.reference_log_probs[place] == -number).all()
            assert not weighted or (batch.weights[place] == number / 8).all()
        assert weighted or batch.weights is None
