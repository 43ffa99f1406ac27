"""Stage `prepare`: a log becomes a checked log and sessions.

Dimension key: none.
"""

import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import polars as pl

from core_jax.config import difference, from_dict, to_dict
from core_jax.errors import ConfigError, DataError
from core_jax.run_folder import Workers, read_done, run_stage, stage_folder
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
from rec_jax.data.simulator.config import SimulatorConfig
from rec_jax.data.simulator.log import simulate_log
from rec_jax.data.simulator.world import World, make_world, save_world
from rec_jax.data.simulator.world import load_world as read_world

NAME = "prepare"
_LOGGER = logging.getLogger(__name__)


def run(config: PipelineConfig) -> bool:
    """Reads the log, makes sessions, saves both. Returns whether the stage is done."""

    def work(folder: pathlib.Path) -> Mapping[str, Any]:
        log = _read(config, folder)
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
    return run_stage(config.run_dir, NAME, parts, work, workers=Workers.FIRST)


def load(run_dir: str) -> tuple[InteractionLog, SessionData]:
    """The checked log and the sessions of a run."""
    folder = stage_folder(run_dir, NAME)
    return read_log(folder), load_sessions(folder)


def item_table(log: InteractionLog, data: SessionData) -> pl.DataFrame:
    """The item table in the order of the dense item indices."""
    order = pl.DataFrame({"item_id": data.item_ids})
    return order.join(log.items, on="item_id", how="left", maintain_order="left")


def load_world(run_dir: str) -> World:
    """The simulated world that a run's log is from.

    Raises:
      DataError: the stage is not done, its log is not simulated, or its folder does not hold the
        world of this log.
    """
    settings = read_done(run_dir, NAME)["config"]["log"]
    try:
        config = from_dict(SimulatorConfig, settings)
    except ConfigError as error:
        raise DataError(
            f"the log of run '{run_dir}' is not simulated (its config is {settings}), so that "
            "nobody knows what its users would do; make a run whose log is a SimulatorConfig"
        ) from error
    world = read_world(stage_folder(run_dir, NAME))
    if world.config != config:
        changes = "; ".join(difference(to_dict(world.config), to_dict(config)))
        raise DataError(
            f"the world in '{stage_folder(run_dir, NAME)}' is not that of the run's log "
            f"({changes}); remove the folder and prepare the run again"
        )
    return world


def _read(config: PipelineConfig, folder: pathlib.Path) -> InteractionLog:
    """Reads the configured log, or simulates it and saves its world into the folder."""
    if isinstance(config.log, SimulatorConfig):
        world = make_world(config.log)
        save_world(world, folder)
        return simulate_log(world)
    if isinstance(config.log, MovielensConfig):
        return load_movielens(config.log.variant, source=config.log.source or None)
    return read_own_log(config.log)
