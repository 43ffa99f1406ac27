"""Ready-made reward models: functions that return a full configuration.

Dimension key: none.
"""

import dataclasses

from core_jax.loop import LoopConfig
from core_jax.optim import OptimConfig, Schedule
from rec_jax.reward.config import (
    RewardArchitecture,
    RewardConfig,
    RewardModelConfig,
    TargetConfig,
    TargetKind,
)

LIKED_RATING = 4.0
"""Least rating that counts as liked, as in the MovieLens demo."""
_NO_DECAY = (r"norm/scale$", r"bias$", r"positions$", r"recency$", r"places$")


def short_video() -> RewardConfig:
    """The paper's heads for a log that has them: watch time, view, follow, like.

    For the simulated world; needs watch_time_ms and the feedback columns viewed, follow and like.
    Under a minute on 2 cores; `docs/alignment.md` has the quality reached.
    """
    return RewardConfig(
        targets=(
            TargetConfig(name="swt", kind=TargetKind.WATCH_TIME_PERCENTILE),
            TargetConfig(name="vtr", kind=TargetKind.SHARE, column="viewed"),
            TargetConfig(name="wtr", kind=TargetKind.ANY, column="follow"),
            TargetConfig(name="ltr", kind=TargetKind.ANY, column="like"),
        ),
        model=RewardModelConfig(dropout=0.2),
        optim=OptimConfig(
            learning_rate=2e-3,
            schedule=Schedule.COSINE,
            warmup_steps=50,
            final_fraction=0.02,
            weight_decay=0.1,
            no_decay=_NO_DECAY,
            clip_norm=1.0,
        ),
        loop=LoopConfig(num_steps=600, log_every=50, evaluate_every=50, checkpoint_every=200),
    )


def kuairand_like_hate() -> RewardConfig:
    """Heads for KuaiRand rows with an explicit like or hate: watch time, likes, long views.

    Needs watch_time_ms and the feedback columns like and long_view; there are too few follows for
    a head. Most held-out rows are of items that the training period does not show, so what is
    learned of single items is held back more than in `short_video`. Under a minute on 2 cores.
    """
    config = short_video()
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, dropout=0.3),
        optim=dataclasses.replace(config.optim, learning_rate=1e-3, weight_decay=3.0),
        targets=(
            TargetConfig(name="swt", kind=TargetKind.WATCH_TIME_PERCENTILE),
            TargetConfig(name="ltr", kind=TargetKind.SHARE, column="like"),
            TargetConfig(name="lvtr", kind=TargetKind.SHARE, column="long_view"),
        ),
    )


def ratings() -> RewardConfig:
    """Heads for a log of ratings from 1 to 5, such as MovieLens: mean rating, share liked.

    A log of ratings has no watch time, view or follow, so there is no such head.
    """
    return dataclasses.replace(
        short_video(),
        targets=(
            TargetConfig(name="rating", kind=TargetKind.MEAN, column="rating", low=1.0, high=5.0),
            TargetConfig(
                name="liked", kind=TargetKind.SHARE, column="rating", threshold=LIKED_RATING
            ),
        ),
    )


def training_judge(config: RewardConfig) -> RewardConfig:
    """The model that chooses pairs: the first of two halves of the users."""
    return dataclasses.replace(config, user_folds=2, user_fold=0)


def held_out_judge(config: RewardConfig) -> RewardConfig:
    """The judge that only measures: other users, another architecture, another seed."""
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, architecture=RewardArchitecture.POOLED),
        user_folds=2,
        user_fold=1,
        seed=config.seed + 1,
    )
