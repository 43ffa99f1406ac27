"""Stage `round_t_evaluate`: the sessions of M_t before every judge; and of the references.

Dimension key: U users, K sessions of a user, M session items, L code levels.
"""

import functools
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh

from core_jax.mesh import make_mesh
from core_jax.run_folder import read_done, run_stage, stage_folder
from rec_jax.align.panel import Moments, Panel, choose_moments, judged, reference_sessions
from rec_jax.align.policy_metrics import PolicySessions, load_sessions, save_sessions
from rec_jax.align.run_config import AlignRunConfig, Folders
from rec_jax.data.sessions import SessionData
from rec_jax.data.simulator.config import SimulatorConfig
from rec_jax.generate import generate_sessions
from rec_jax.ranking_metrics import legal_share
from rec_jax.semantic_ids.prefix_index import build_prefix_index
from rec_jax.session_decoding import BeamConfig
from rec_jax.stages import generators, prepare, reward, tokenize

_LOGGER = logging.getLogger(__name__)


def stage_name(number: int) -> str:
    """Name of the stage of M_t."""
    return f"round_{number}_evaluate"


def run(folders: Folders, config: AlignRunConfig, number: int) -> bool:
    """Generates with M_t for the test users and asks every judge. Returns whether it is done."""

    def work(folder: pathlib.Path) -> Mapping[str, Any]:
        mesh = make_mesh(config.pipeline.mesh)
        _, data = prepare.load(folders.base)
        panel = load_panel(folders, config, mesh)
        moments = load_moments(config, data)
        sessions = _generated(folders, config, data, panel, moments, number)
        save_sessions(sessions, folder)
        facts = {
            "users": len(sessions.items),
            "reward": round(float(sessions.reward[:, 0].mean()), 4),
            "judge": round(float(sessions.judge[:, 0].mean()), 4),
        }
        if sessions.has_truth:
            facts["true seconds"] = round(float(sessions.truth[:, 0].mean()), 3)
        _LOGGER.info("M_%d: %s", number, ", ".join(f"{k} {v}" for k, v in facts.items()))
        return facts

    parts = _parts(folders, config) | {"model": generators.model_fingerprint(folders, number)}
    return run_stage(_run_dir(folders, number), stage_name(number), parts, work, repeatable=True)


def run_references(folders: Folders, config: AlignRunConfig) -> bool:
    """Judges random, popularity and oracle sessions. Returns whether the stage is done."""

    def work(folder: pathlib.Path) -> Mapping[str, Any]:
        mesh = make_mesh(config.pipeline.mesh)
        _, data = prepare.load(folders.base)
        panel = load_panel(folders, config, mesh)
        moments = load_moments(config, data)
        found = reference_sessions(
            panel,
            moments,
            data,
            session_items=config.pipeline.model.session_items,
            seed=config.seed,
        )
        for name, items_UM in found.items():
            (folder / name).mkdir(exist_ok=True)
            sessions = judged(
                panel, moments, items_UM[:, None], batch_size=config.evaluate.batch_size
            )
            save_sessions(sessions, folder / name)
        return {"policies": list(found)}

    return run_stage(folders.shared, "references", _parts(folders, config), work, repeatable=True)


def load(folders: Folders, number: int) -> PolicySessions:
    """The judged sessions of M_t."""
    return load_sessions(stage_folder(_run_dir(folders, number), stage_name(number)))


def load_references(folders: Folders) -> dict[str, PolicySessions]:
    """The judged sessions of the references, by name."""
    folder = stage_folder(folders.shared, "references")
    names = read_done(folders.shared, "references")["facts"]["policies"]
    return {name: load_sessions(folder / name) for name in names}


def load_panel(folders: Folders, config: AlignRunConfig, mesh: Mesh) -> Panel:
    """The judges of a run."""
    _, data = prepare.load(folders.base)
    is_simulated = isinstance(config.pipeline.log, SimulatorConfig)
    return Panel(
        reward=reward.load(folders.shared, folders.base, mesh),
        judge=reward.load(folders.shared, folders.base, mesh, name=reward.JUDGE_NAME),
        world=prepare.load_world(folders.base) if is_simulated else None,
        item_ids=tuple(data.item_ids),
        mesh=mesh,
    )


def load_moments(config: AlignRunConfig, data: SessionData) -> Moments:
    """The test moments of a run."""
    return choose_moments(data, config.evaluate.num_users, seed=config.seed)


def _run_dir(folders: Folders, number: int) -> str:
    """M_0 is the same for every method."""
    return folders.shared if number == 0 else folders.run


def _parts(folders: Folders, config: AlignRunConfig) -> dict[str, Any]:
    """What a judgement depends on besides the model; intervals are made when it is read."""
    evaluate = config.evaluate
    return {
        "users": evaluate.num_users,
        "beams": [evaluate.num_beams, evaluate.item_beams, evaluate.batch_size],
        "list": evaluate.list_length,
        "legality": evaluate.legality_users,
        "seed": config.seed,
        "judges": [
            generators.reward_fingerprint(folders.shared, name)
            for name in (reward.NAME, reward.JUDGE_NAME)
        ],
    }


def _generated(
    folders: Folders,
    config: AlignRunConfig,
    data: SessionData,
    panel: Panel,
    moments: Moments,
    number: int,
) -> PolicySessions:
    """Sessions, first-item list and legality of M_t."""
    settings = config.evaluate
    index = tokenize.load(folders.base)
    model, params = generators.load(folders, number, panel.mesh)
    generate = functools.partial(
        generate_sessions,
        model,
        params=params,
        index=build_prefix_index(index, data.train_item_counts),
        codes=index.codes,
        batch_size=settings.batch_size,
        mesh=panel.mesh,
    )
    found = generate(
        config=BeamConfig(num_beams=settings.num_beams, num_items=model.session_items),
        histories=moments.history,
    )
    first = generate(
        config=BeamConfig(num_beams=settings.item_beams, num_items=1), histories=moments.history
    )
    legality = float("nan")
    if settings.legality_users:
        free = generate(
            config=BeamConfig(
                num_beams=settings.num_beams, num_items=model.session_items, constrained=False
            ),
            histories=moments.history[: settings.legality_users],
        )
        legality = legal_share(free.codes[free.alive].reshape(-1, model.num_levels), index.codes)
    return judged(
        panel,
        moments,
        np.where(found.alive[..., None], found.items, -1),
        batch_size=settings.batch_size,
        first_items=first.items[:, : settings.list_length, 0],
        legality=legality,
    )
