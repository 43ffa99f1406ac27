"""Jobs of the simulated world: write its log, and test two policies in it.

Dimension key: U users, K sessions of a user, M session items.
"""

import dataclasses
import json
import pathlib
from typing import Annotated

import numpy as np
import tyro

from core_jax.config import to_dict
from core_jax.errors import ConfigError, DataError, nearest_name
from core_jax.mesh import MeshConfig, make_mesh
from rec_jax.ab_test import ab_test, describe_ab_test
from rec_jax.align.panel import REFERENCES, Moments, choose_moments, world_references
from rec_jax.align.run_config import Folders
from rec_jax.data.interactions import describe, write_log
from rec_jax.data.sessions import SessionData
from rec_jax.data.simulator.config import SimulatorConfig
from rec_jax.data.simulator.facts import describe_world
from rec_jax.data.simulator.log import simulate_log
from rec_jax.data.simulator.world import (
    World,
    item_numbers,
    make_world,
    save_world,
    sessions_in_world,
    user_numbers,
)
from rec_jax.generate import generate_sessions
from rec_jax.semantic_ids.prefix_index import build_prefix_index
from rec_jax.session_decoding import BeamConfig
from rec_jax.stages import generators, prepare, tokenize


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimulateConfig:
    """A simulated log to write."""

    run_dir: str = "runs/world"
    """Folder that gets interactions.parquet, items.parquet, users.parquet and the world."""
    world: SimulatorConfig = dataclasses.field(default_factory=SimulatorConfig)
    """The world."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AbTestConfig:
    """Two policies, and how they are compared."""

    a: Annotated[str, tyro.conf.Positional] = "popularity"
    """Policy A: random, popularity, oracle, or a run folder; RUN:round_2 is the model after round
    2, RUN alone the last one."""
    b: Annotated[str, tyro.conf.Positional] = "runs/align_demo"
    """Policy B, likewise. At least one of the two is a run in a simulated world."""
    run_dir: str = "runs/ab_test"
    """Folder that gets the result as ab_test.txt and ab_test.json."""
    num_users: int = 500
    """Test users that both serve."""
    num_beams: int = 32
    """Beams of a run's search; the most probable session is served."""
    num_replications: int = 20
    """How often each user answers, on noise that both policies share."""
    confidence: float = 0.95
    """Probability mass of the intervals."""
    bootstrap_samples: int = 2000
    """Resamples of the users."""
    seed: int = 0
    """Seed of users, responses and resamples."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        if min(self.num_users, self.num_beams) < 1:
            raise ConfigError(
                f"num_users is {self.num_users} and num_beams {self.num_beams}; set 1 or more"
            )


def run_simulate(config: SimulateConfig) -> None:
    """Writes a simulated log and says what is true of its world."""
    world = make_world(config.world)
    log = simulate_log(world)
    folder = pathlib.Path(config.run_dir)
    write_log(log, folder)
    save_world(world, folder)
    print(f"{describe(log)}\n\n{describe_world(world)}\n\nWritten to {folder}")


def run_ab_test(config: AbTestConfig) -> None:
    """Delivers both policies' sessions to the same users of the world and prints who wins.

    Raises:
      ConfigError: no policy is a run, or both are and their worlds differ.
      DataError: a run is not trained, its log is not simulated, or a name is unknown.
    """
    runs = [name for name in (config.a, config.b) if name not in REFERENCES]
    if not runs:
        raise ConfigError(
            f"A is '{config.a}' and B is '{config.b}': neither is a run; name a run folder, whose "
            "world and users are asked"
        )
    home = generators.base_of(_split(runs[0])[0])
    world = prepare.load_world(home)
    for name in runs[1:]:
        other = prepare.load_world(generators.base_of(_split(name)[0]))
        if other.config != world.config:
            raise ConfigError(f"'{runs[0]}' and '{name}' are of different worlds; compare in one")
    _, data = prepare.load(home)
    moments = choose_moments(data, config.num_users, seed=config.seed)
    sessions = [_policy(name, config, world, data, moments) for name in (config.a, config.b)]
    result = ab_test(
        world,
        user_numbers(world, list(moments.user_ids)),
        moments.times_ms,
        *sessions,
        seed=config.seed,
        num_replications=config.num_replications,
        confidence=config.confidence,
        bootstrap_samples=config.bootstrap_samples,
    )
    text = describe_ab_test(result, name_a=config.a, name_b=config.b)
    folder = pathlib.Path(config.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ab_test.txt").write_text(text + "\n", encoding="utf-8")
    about = {"policies": [config.a, config.b], "result": to_dict(result)}
    (folder / "ab_test.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    print(text)


def _policy(
    name: str, config: AbTestConfig, world: World, data: SessionData, moments: Moments
) -> np.ndarray:
    """Sessions of one policy as world numbers [U, M]."""
    numbers_I = item_numbers(world, data.item_ids)
    if name in REFERENCES:
        found = world_references(
            world, moments, data, session_items=data.num_session_items, seed=config.seed
        )
        return sessions_in_world(numbers_I, found[name])
    run_dir, number = _split(name)
    base = generators.base_of(run_dir)
    mesh = make_mesh(MeshConfig())
    folders = Folders(base=base, shared=run_dir, first=run_dir, run=run_dir)
    model, params = generators.load(folders, number, mesh)
    index = tokenize.load(base)
    _, own = prepare.load(base)
    generated = generate_sessions(
        model,
        BeamConfig(num_beams=config.num_beams, num_items=model.session_items),
        params,
        build_prefix_index(index, own.train_item_counts),
        index.codes,
        moments.history,
        mesh=mesh,
    )
    return sessions_in_world(item_numbers(world, own.item_ids), generated.items[:, 0])


def _split(name: str) -> tuple[str, int]:
    """RUN or RUN:round_t as folder and t; the last round that is done where none is named."""
    run_dir, colon, which = name.partition(":")
    if not pathlib.Path(run_dir).is_dir():
        hint = nearest_name(run_dir, REFERENCES)
        raise DataError(f"policy '{name}' is no run folder and no known policy. {hint}")
    done = generators.rounds_done(run_dir)
    if not colon:
        return run_dir, max(done)
    known = {f"round_{number}": number for number in done}
    if which not in known:
        raise DataError(f"'{run_dir}' has no '{which}'. {nearest_name(which, known)}")
    return run_dir, known[which]
