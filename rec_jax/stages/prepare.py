"""Stage `prepare`: a log becomes a checked log and sessions.

Dimension key: none.
"""

import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import polars as pl

from core_jax.run_folder import run_stage, stage_folder
from rec_jax.config import MovielensConfig, PipelineConfig
from rec_jax.data.builders.movielens import load_movielens
from rec_jax.data.interactions import InteractionLog, read_log, write_log
from rec_jax.data.own_logs import read_own_log
from rec_jax.data.sessions import (
    SessionData,
    build_sessions,
    describe_counts,
    load_sessions,
    save_sessions,
)

NAME = "prepare"
_LOGGER = logging.getLogger(__name__)


def run(config: PipelineConfig) -> bool:
    """Reads the log, makes sessions, saves both. Returns whether the stage is done."""

    def work(folder: pathlib.Path) -> Mapping[str, Any]:
        log = _read(config)
        data = build_sessions(log, config.sessions)
        write_log(log, folder)
        save_sessions(data, folder)
        dropped = {reason: count for reason, count in log.drops.items() if count}
        _LOGGER.info(
            "%s: %s events of %s users and %s items; dropped: %s\n%s",
            log.source,
            f"{log.interactions.height:,}",
            f"{log.users.height:,}",
            f"{log.items.height:,}",
            dropped or "nothing",
            describe_counts(data),
        )
        return {"events": log.interactions.height, "drops": log.drops, "counts": data.counts}

    parts = {"log": config.log, "sessions": config.sessions}
    return run_stage(config.run_dir, NAME, parts, work)


def load(run_dir: str) -> tuple[InteractionLog, SessionData]:
    """The checked log and the sessions of a run."""
    folder = stage_folder(run_dir, NAME)
    return read_log(folder), load_sessions(folder)


def item_table(log: InteractionLog, data: SessionData) -> pl.DataFrame:
    """The item table in the order of the dense item indices."""
    order = pl.DataFrame({"item_id": data.item_ids})
    return order.join(log.items, on="item_id", how="left", maintain_order="left")


def _read(config: PipelineConfig) -> InteractionLog:
    """Reads the configured log."""
    if isinstance(config.log, MovielensConfig):
        return load_movielens(config.log.variant, source=config.log.source or None)
    return read_own_log(config.log)
