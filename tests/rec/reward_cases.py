"""Small logs of delivered sessions, and reward models of prime sizes."""

import jax
import numpy as np
import polars as pl

from core_jax.loop import LoopConfig
from core_jax.optim import OptimConfig
from rec_jax.data.interactions import InteractionLog, clean_log
from rec_jax.data.session_config import (
    EventRule,
    EventRuleConfig,
    SessionConfig,
    SessionRule,
    SplitConfig,
    SplitRule,
)
from rec_jax.reward import model
from rec_jax.reward.batch import RewardBatch, make_batch
from rec_jax.reward.config import (
    RewardArchitecture,
    RewardConfig,
    RewardModelConfig,
    TargetConfig,
    TargetKind,
)

DAY = 86_400_000
NUM_ITEMS, LEVEL_SIZES = 29, (7, 5)
REQUESTS = SessionConfig(
    rule=SessionRule.REQUEST_ID,
    session_items=5,
    history_items=11,
    positive=EventRuleConfig(rule=EventRule.ANY_OF, columns=("like",)),
    split=SplitConfig(rule=SplitRule.TEMPORAL, valid_days=2, test_days=2),
)
TARGETS = (
    TargetConfig(name="swt", kind=TargetKind.WATCH_TIME_PERCENTILE),
    TargetConfig(name="ltr", kind=TargetKind.SHARE, column="like"),
)


def delivered_frame(
    seed: int = 0, num_users: int = 13, requests: int = 17, days: int = 11, rule: bool = False
) -> pl.DataFrame:
    """Slates of five items; with `rule`, an item is liked iff its number shares the user's parity.

    Item numbers below 10 are watched for long.
    """
    generator = np.random.default_rng(seed)
    rows = []
    for user in range(num_users):
        for request in range(requests):
            start = int(request * days * DAY / requests) + 60_000 * user
            for place, item in enumerate(generator.permutation(NUM_ITEMS)[:5].tolist()):
                like = item % 2 == user % 2 if rule else bool(generator.random() < 0.5)
                watch = (900.0 if item < 10 else 100.0) + float(generator.integers(0, 50))
                when, name = start + 1000 * place, f"i{item:02}"
                values = (watch, 1000.0 * (1 + item), like)
                rows.append((f"u{user:03}", name, when, f"r{request}", *values))
    columns = ["user_id", "item_id", "timestamp", "session_id", "watch_time_ms", "duration_ms"]
    return pl.DataFrame(rows, schema=[*columns, "like"], orient="row")


def as_log(frame: pl.DataFrame) -> InteractionLog:
    """The checked log; the catalogue has every item whether shown or not."""
    names = [f"i{item:02}" for item in range(NUM_ITEMS)]
    items = pl.DataFrame(
        {
            "item_id": names,
            "title": [f"title {item}" for item in range(NUM_ITEMS)],
            "text": [f"{'even' if item % 2 == 0 else 'odd'} w{item % 5}" for item in range(29)],
            "categories": [["even" if item % 2 == 0 else "odd"] for item in range(NUM_ITEMS)],
        }
    )
    return clean_log(frame, items, source="delivered")


def reward_config(**values) -> RewardConfig:
    """A reward model that trains in seconds."""
    return RewardConfig(
        **{
            "targets": TARGETS,
            "model": RewardModelConfig(
                history_items=11,
                session_items=5,
                d_model=16,
                num_heads=2,
                head_dim=8,
                d_tower=16,
                dropout=0.0,
            ),
            "optim": OptimConfig(learning_rate=5e-3),
            "batch_size": 64,
            "loop": LoopConfig(num_steps=4, log_every=2, evaluate_every=2),
            "score_batch": 24,
        }
        | values
    )


def network(architecture: RewardArchitecture, **values) -> tuple[RewardModelConfig, dict]:
    """A fresh model of prime sizes whose parameters are all away from zero."""
    config = RewardModelConfig(
        **{
            "architecture": architecture,
            "level_sizes": LEVEL_SIZES,
            "num_items": NUM_ITEMS,
            "num_targets": 3,
            "history_items": 7,
            "session_items": 5,
            "d_model": 13,
            "num_heads": 2,
            "head_dim": 3,
            "d_tower": 11,
            "dropout": 0.0,
        }
        | values
    )
    params = model.init_params(config, key=jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [
        leaf + 0.3 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return config, jax.tree.unflatten(tree, moved)


def random_batch(seed: int = 0, batch: int = 3, sessions: int = 2) -> RewardBatch:
    """Histories of different lengths, sessions with padding, labels of which some are absent."""
    generator = np.random.default_rng(seed)
    history = generator.integers(0, NUM_ITEMS, (batch, 7))
    history[np.arange(7) < generator.integers(0, 4, (batch, 1))] = -1
    session = generator.integers(0, NUM_ITEMS, (batch, sessions, 5))
    session[np.arange(5) >= generator.integers(2, 5, (batch, sessions, 1))] = -1
    return make_batch(
        CODES,
        history.astype(np.int32),
        session.astype(np.int32),
        generator.random((batch, 3)).astype(np.float32),
        generator.random((batch, 3)) < 0.7,
    )


CODES = np.stack([np.arange(NUM_ITEMS) % 7, np.arange(NUM_ITEMS) // 7], axis=1).astype(np.int32)
