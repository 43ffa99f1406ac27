"""The whole job shrunk to a made-up log of a few users, for the tests of a whole run."""

import dataclasses
import pathlib

import numpy as np
import polars as pl

from core_jax.loop import LoopConfig
from core_jax.mesh import MeshConfig
from rec_jax.config import GenerateConfig, PipelineConfig, PretrainConfig
from rec_jax.data.own_logs import OwnLogConfig, TimestampUnit
from rec_jax.data.session_config import EventRule, EventRuleConfig
from rec_jax.presets import demo_tiny
from rec_jax.semantic_ids.residual import SemanticIdConfig

NUM_USERS, NUM_ITEMS, NUM_GENRES = 61, 53, 4


def write_log(folder: pathlib.Path) -> None:
    """Users who walk through the items of one genre at a time, with column names of their own."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(NUM_USERS):
        genre, items = rng.integers(NUM_GENRES), []
        while len(items) < 17:
            genre = genre if rng.random() < 0.9 else rng.integers(NUM_GENRES)
            item = int(rng.integers(NUM_ITEMS // NUM_GENRES) * NUM_GENRES + genre)
            if item not in items:
                items.append(item)
        rows += [
            {"uid": f"u{user}", "movie": f"i{item}", "when": 60 * place + 86_400 * user, "stars": 5}
            for place, item in enumerate(items)
        ]
    pl.DataFrame(rows).write_csv(folder / "log.csv")
    items = [
        {"item_id": f"i{i}", "title": f"Film {i}", "categories": f"genre{i % NUM_GENRES}"}
        for i in range(NUM_ITEMS)
    ]
    pl.DataFrame(items).write_csv(folder / "items.csv")


def shrunk_config(folder: pathlib.Path) -> PipelineConfig:
    """The tiny demo on that log."""
    base = demo_tiny()
    return dataclasses.replace(
        base,
        run_dir=str(folder / "run"),
        log=OwnLogConfig(
            path=str(folder / "log.csv"),
            items_path=str(folder / "items.csv"),
            columns=("user_id=uid", "item_id=movie", "timestamp=when", "stars=stars"),
            timestamp_unit=TimestampUnit.SECONDS,
        ),
        sessions=dataclasses.replace(
            base.sessions,
            positive=EventRuleConfig(rule=EventRule.THRESHOLD, column="stars", threshold=4.0),
        ),
        semantic_ids=SemanticIdConfig(level_sizes=(5, 5)),
        pretrain=PretrainConfig(
            batch_size=16,
            loop=LoopConfig(num_steps=6, log_every=2, evaluate_every=3, checkpoint_every=3),
            pointwise_steps=3,
        ),
        optim=dataclasses.replace(base.optim, warmup_steps=1),
        generate=GenerateConfig(session_beams=3, item_beams=11, batch_size=32),
        evaluate=dataclasses.replace(base.evaluate, bootstrap_samples=50, legality_users=16),
        mesh=MeshConfig(data=8),
    )
