"""A small simulated world for tests; all sizes are different primes."""

import dataclasses

import numpy as np

from rec_jax.data.simulator.config import SimulatorConfig
from rec_jax.data.simulator.world import World, make_world

SMALL = SimulatorConfig(
    seed=5,
    num_users=31,
    num_items=211,
    num_topics=7,
    num_creators=13,
    latent_dim=5,
    num_days=2,
    requests_per_user=11,
    slate_items=3,
    topics_per_user=2,
)


def small_world(**changes) -> World:
    return make_world(dataclasses.replace(SMALL, **changes))


def array_fields(world: World) -> dict[str, np.ndarray]:
    """Every array of a world by its name."""
    names = [field.name for field in dataclasses.fields(world) if field.name != "config"]
    return {name: getattr(world, name) for name in names}


def random_requests(world: World, count: int, session_items: int, seed: int = 0):
    """Users, times and sessions with repeated topics: the arguments of `respond`."""
    draw = np.random.default_rng(seed)
    users = draw.integers(len(world.user_ids), size=count)
    requests = draw.integers(world.num_requests[users])
    sessions = draw.integers(len(world.item_ids), size=(count, session_items))
    return users, world.request_ms[users, requests], sessions
