"""The simulated log, in the canonical schema.

One row per delivered video: those that were not reached have `viewed` false and watch time 0. The
k-th video of a request (k from 1) has the time request + k ms + the watch times before it, so that
a request's rows come after it and before the user's next request.

Dimension key: S slates, M slate items, E events (S times M).
"""

import numpy as np
import polars as pl

from rec_jax.data.interactions import DefectPolicy, InteractionLog, clean_log
from rec_jax.data.simulator.logging_policy import Slates, logged_slates
from rec_jax.data.simulator.noise import Stream, keyed_bits
from rec_jax.data.simulator.response import Response, respond
from rec_jax.data.simulator.world import World


def simulate_log(world: World) -> InteractionLog:
    """Delivers the logging policy's slates, and writes down what users did.

    Args:
      world: the world; its config holds the logging policy.

    Returns:
      A log with session_id (one per request), watch_time_ms, duration_ms and the feedback columns
      viewed, like, follow; items with title, text, categories (the topic), creator and
      duration_ms; users. Whole milliseconds, in the order of time.
    """
    slates, response = deliver(world)
    watch_SM = np.rint(response.watch_ms[0])
    before_SM = np.cumsum(watch_SM, axis=1) - watch_SM
    places_M = np.arange(1, slates.items.shape[1] + 1)
    time_SM = slates.time_ms[:, None] + before_SM.astype(np.int64) + places_M
    width = len(str(len(slates.user)))
    request_S = np.array([f"r{number:0{width}d}" for number in range(len(slates.user))])
    frame = pl.DataFrame(
        {
            "user_id": np.repeat(world.user_ids[slates.user], len(places_M)),
            "item_id": world.item_ids[slates.items].ravel(),
            "timestamp": time_SM.ravel(),
            "session_id": np.repeat(request_S, len(places_M)),
            "watch_time_ms": watch_SM.ravel(),
            "duration_ms": world.item_duration_ms[slates.items].ravel(),
            "viewed": response.is_viewed[0].ravel(),
            "like": response.is_like[0].ravel(),
            "follow": response.is_follow[0].ravel(),
        }
    )
    return clean_log(
        frame.sort("timestamp", "user_id", maintain_order=True),
        _item_table(world),
        pl.DataFrame({"user_id": world.user_ids}),
        source=f"simulated short-video world, seed {world.config.seed}",
        defects=DefectPolicy.ERROR,
    )


def deliver(world: World) -> tuple[Slates, Response]:
    """The logging policy's slates, and what users did with them (one replication)."""
    slates = logged_slates(world)
    # A seed of the log's own: an A/B test with the world's seed must not replay the log's noise.
    seed = int(keyed_bits(Stream.LOG_SEED, world.config.seed) >> np.uint64(1))
    return slates, respond(world, slates.user, slates.time_ms, slates.items, seed=seed)


def _item_table(world: World) -> pl.DataFrame:
    """What a platform knows of its videos: no vector, quality or appeal."""
    return pl.DataFrame(
        {
            "item_id": world.item_ids,
            "title": world.item_title,
            "text": world.item_text,
            "categories": [[name] for name in world.topic_names[world.item_topic].tolist()],
            "creator": [f"c{number:04d}" for number in world.item_creator.tolist()],
            "duration_ms": world.item_duration_ms,
        }
    )
