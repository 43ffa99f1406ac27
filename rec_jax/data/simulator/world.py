r"""The world: videos, users, their requests and their drifting tastes, all drawn from a config.

With $\hat x = x / |x|$ and $n \sim N(0, I / D)$ drawn anew at each place (a vector of length
about 1):

    topic t          v_t = \hat n
    video i          topic t_i uniform, vector x_i = hat(v_{t_i} + item_noise n)
    creator c        quality part g_c ~ N(0, 1)
    quality          q_i = sqrt(creator_share) g_{c_i} + sqrt(1 - creator_share) N(0, 1)
    appeal           a_i = r q_i + sqrt(1 - r^2) N(0, 1), r = appeal_quality_correlation
    duration         median_seconds exp(duration_spread N(0, 1)), clipped, in whole milliseconds
    user u           1 to topics_per_user topics, weights Dirichlet(1, ..., 1),
                     first taste p_{u,0} = hat(sum_t w_t v_t + taste_noise n)
    drift            p_{u,r+1} = hat(p_{u,r} + drift n), from request r to the next
    requests         round(requests_per_user exp(s N(0, 1) - s^2 / 2)), s = activity_spread, within
                     1 and max_requests; uniform over the days, at least request_gap_ms apart
    patience, propensity to like, to follow    N(0, spread^2) each

Dimension key: U users, I items, T topics, C creators, D latent dimensions, Q requests (tastes) of
a user, S sessions asked about.
"""

import dataclasses
import json
import os
import pathlib
import zipfile

import numpy as np

from core_jax.arrays import Float, Int
from core_jax.config import from_dict, to_dict
from core_jax.errors import ConfigError, DataError
from rec_jax.data.simulator.config import MILLISECONDS_PER_DAY, SimulatorConfig
from rec_jax.data.simulator.noise import Stream, generator
from rec_jax.data.simulator.texts import make_texts

FILE = "world.npz"
"""What `save_world` writes into a folder."""
START_MS = 1_704_067_200_000
"""The log starts on 2024-01-01 (UTC)."""
NEVER_MS = np.iinfo(np.int64).max
"""Time of a request that is not made: padding of `World.request_ms`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
    """Everything that is true of the world; models get to see its log only."""

    config: SimulatorConfig
    """What it was made from; holds the parameters of the response and of the logging policy."""
    item_ids: np.ndarray
    """Str [I]: item number -> id."""
    user_ids: np.ndarray
    """Str [U]: user number -> id."""
    topic_names: np.ndarray
    """Str [T]."""
    item_topic: np.ndarray
    """Int64 [I]."""
    item_creator: np.ndarray
    """Int64 [I]."""
    item_vector: np.ndarray
    """Float64 [I, D], of length 1."""
    item_quality: np.ndarray
    """Float64 [I]: what makes everybody watch."""
    item_appeal: np.ndarray
    """Float64 [I]: what makes the logging policy show a video."""
    item_duration_ms: np.ndarray
    """Float64 [I]: whole milliseconds."""
    item_title: np.ndarray
    """Str [I]."""
    item_text: np.ndarray
    """Str [I]."""
    creator_quality: np.ndarray
    """Float64 [C]: the part of quality that a creator's videos share."""
    topic_vector: np.ndarray
    """Float64 [T, D], of length 1."""
    user_patience: np.ndarray
    """Float64 [U]: taken off the logit of leaving."""
    user_like: np.ndarray
    """Float64 [U]: added to the logit of a like."""
    user_follow: np.ndarray
    """Float64 [U]: added to the logit of a follow."""
    num_requests: np.ndarray
    """Int64 [U]: how many requests each user makes."""
    request_ms: np.ndarray
    """Int64 [U, Q]: times of the requests, rising; `NEVER_MS` where there are no more."""
    taste: np.ndarray
    """Float64 [U, Q, D]: taste from each request on, of length 1; after the last request it stays
    what it was."""


def make_world(config: SimulatorConfig) -> World:
    """Draws a world: the same config gives the same world, bit for bit.

    Args:
      config: see `SimulatorConfig`; the module's docstring has the formulas.

    Returns:
      The world.
    """
    topics_TD = _unit(generator(config.seed, Stream.TOPICS), (config.num_topics, config.latent_dim))
    items = _items(config, topics_TD)
    users = _users(config, topics_TD)
    texts = make_texts(items["item_topic"], config.num_topics, generator(config.seed, Stream.TEXT))
    return World(
        config=config,
        item_ids=np.array([f"v{number:05d}" for number in range(config.num_items)]),
        user_ids=np.array([f"u{number:05d}" for number in range(config.num_users)]),
        topic_names=texts.topic_names,
        topic_vector=topics_TD,
        item_title=texts.titles,
        item_text=texts.texts,
        **items,
        **users,
    )


def user_state(
    world: World, users: Int[np.ndarray, " S"], times_ms: Int[np.ndarray, " S"]
) -> Int[np.ndarray, " S"]:
    """Number of the taste in force: that of the user's latest request at or before the time.

    Before the first request it is the first taste, after the last one the last.

    Args:
      world: the world.
      users: user numbers.
      times_ms: times, milliseconds since 1970.

    Returns:
      Places along the second axis of `World.taste`.

    Raises:
      DataError: a user number that the world does not have.
    """
    check_numbers(users, len(world.user_ids), "user", lowest=0)
    num_past_S = (world.request_ms[users] <= times_ms[:, None]).sum(axis=1)
    return np.maximum(num_past_S - 1, 0)


def taste_at(
    world: World, users: Int[np.ndarray, " S"], times_ms: Int[np.ndarray, " S"]
) -> Float[np.ndarray, "S D"]:
    """The taste in force; see `user_state`."""
    return world.taste[users, user_state(world, users, times_ms)]


def item_numbers(world: World, item_ids: list[str]) -> Int[np.ndarray, " N"]:
    """World numbers of item ids, for example of a catalogue's in its own order.

    Args:
      world: the world.
      item_ids: ids as in the log.

    Returns:
      A number per id.

    Raises:
      DataError: an id that is not of this world.
    """
    return _numbers(world.item_ids, item_ids, "item")


def user_numbers(world: World, user_ids: list[str]) -> Int[np.ndarray, " N"]:
    """World numbers of user ids; see `item_numbers`."""
    return _numbers(world.user_ids, user_ids, "user")


def sessions_in_world(
    numbers: Int[np.ndarray, " N"], sessions: Int[np.ndarray, "*S M"]
) -> Int[np.ndarray, "*S M"]:
    """Sessions of dense catalogue numbers as sessions of world numbers.

    Args:
      numbers: catalogue number -> world number, from `item_numbers`.
      sessions: catalogue numbers, -1 for no item.

    Returns:
      World numbers, -1 for no item.

    Raises:
      DataError: a number outside the catalogue.

    >>> sessions_in_world(np.array([40, 50]), np.array([[1, -1]])).tolist()
    [[50, -1]]
    """
    check_numbers(sessions, len(numbers), "item", lowest=-1)
    return np.append(numbers, -1)[sessions]


def check_numbers(numbers: np.ndarray, count: int, noun: str, *, lowest: int) -> None:
    """Raises a DataError for the first number outside `lowest` to `count` - 1."""
    outside = numbers[(numbers < lowest) | (numbers >= count)]
    if outside.size:
        raise DataError(
            f"{noun} number {outside.flat[0]} does not exist: the {noun}s are numbered 0 to "
            f"{count - 1}; map ids with {noun}_numbers of this world"
        )


def save_world(world: World, folder: str | os.PathLike[str]) -> None:
    """Writes a world as one file, for `load_world`: every array bit for bit."""
    arrays = {field.name: getattr(world, field.name) for field in dataclasses.fields(world)}
    arrays["config"] = np.array(json.dumps(to_dict(world.config)))
    np.savez(pathlib.Path(folder) / FILE, **arrays)


def load_world(folder: str | os.PathLike[str]) -> World:
    """Reads what `save_world` wrote.

    Raises:
      DataError: there is no such file, or it is not whole.
    """
    path = pathlib.Path(folder) / FILE
    names = {field.name for field in dataclasses.fields(World)}
    try:
        # Opened here, since NumPy leaves the file open when it is no archive.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in names}
        config = from_dict(SimulatorConfig, json.loads(str(arrays.pop("config"))))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, ConfigError) as error:
        raise DataError(
            f"'{path}' does not hold a whole simulated world ({error}); make it again with "
            "save_world, or run the stage that simulates the log"
        ) from error
    return World(config=config, **arrays)


def _items(config: SimulatorConfig, topics_TD: np.ndarray) -> dict[str, np.ndarray]:
    """Draws the videos; see the module's docstring."""
    draw = generator(config.seed, Stream.ITEMS)
    num_items, dim = config.num_items, config.latent_dim
    topic_I = draw.integers(config.num_topics, size=num_items)
    creator_I = draw.integers(config.num_creators, size=num_items)
    creator_C = draw.standard_normal(config.num_creators)
    own = 1 - config.creator_share
    quality_I = np.sqrt(config.creator_share) * creator_C[creator_I]
    quality_I = quality_I + np.sqrt(own) * draw.standard_normal(num_items)
    r = config.appeal_quality_correlation
    appeal_I = r * quality_I + np.sqrt(1 - r * r) * draw.standard_normal(num_items)
    seconds_I = config.median_seconds * np.exp(
        config.duration_spread * draw.standard_normal(num_items)
    )
    seconds_I = np.clip(seconds_I, config.min_seconds, config.max_seconds)
    noise_ID = draw.standard_normal((num_items, dim)) / np.sqrt(dim)
    return {
        "item_topic": topic_I,
        "item_creator": creator_I,
        "item_vector": _normalised(topics_TD[topic_I] + config.item_noise * noise_ID),
        "item_quality": quality_I,
        "item_appeal": appeal_I,
        "item_duration_ms": np.rint(1000 * seconds_I),
        "creator_quality": creator_C,
    }


def _users(config: SimulatorConfig, topics_TD: np.ndarray) -> dict[str, np.ndarray]:
    """Draws the users, their requests and tastes; see the module's docstring."""
    draw = generator(config.seed, Stream.USERS)
    num_users, dim = config.num_users, config.latent_dim
    most = min(config.topics_per_user, config.num_topics)
    order_UT = np.argsort(draw.random((num_users, config.num_topics)), axis=1)[:, :most]
    is_used = np.arange(most) < draw.integers(1, most + 1, size=num_users)[:, None]
    weight = draw.exponential(size=(num_users, most)) * is_used  # Dirichlet(1) after division
    weight /= weight.sum(axis=1, keepdims=True)
    mixture_UD = (weight[:, :, None] * topics_TD[order_UT]).sum(axis=1)
    noise_UD = draw.standard_normal((num_users, dim)) / np.sqrt(dim)
    taste_UD = _normalised(mixture_UD + config.taste_noise * noise_UD)
    spread = config.activity_spread
    activity_U = np.exp(spread * draw.standard_normal(num_users) - spread**2 / 2)
    wanted_U = np.rint(config.requests_per_user * activity_U).astype(np.int64)
    num_requests_U = np.clip(wanted_U, 1, config.max_requests)
    return {
        "user_patience": config.patience_spread * draw.standard_normal(num_users),
        "user_like": config.like_spread * draw.standard_normal(num_users),
        "user_follow": config.follow_spread * draw.standard_normal(num_users),
        "num_requests": num_requests_U,
        "request_ms": _request_times(config, num_requests_U),
        "taste": _tastes(config, taste_UD, num_requests_U),
    }


def _request_times(config: SimulatorConfig, num_requests: np.ndarray) -> np.ndarray:
    """Uniform times with a least gap: sorted uniforms on what is left of the days, plus gaps."""
    draw = generator(config.seed, Stream.REQUESTS)
    shape = (len(num_requests), num_requests.max())
    is_made_UQ = np.arange(shape[1]) < num_requests[:, None]
    gap = config.request_gap_ms
    room_U = config.num_days * MILLISECONDS_PER_DAY - num_requests * gap
    places_UQ = np.sort(np.where(is_made_UQ, draw.random(shape), 1.0), axis=1)
    times_UQ = START_MS + np.floor(places_UQ * room_U[:, None]).astype(np.int64)
    return np.where(is_made_UQ, times_UQ + gap * np.arange(shape[1]), NEVER_MS)


def _tastes(config: SimulatorConfig, first: np.ndarray, num_requests: np.ndarray) -> np.ndarray:
    """The random walk on the sphere."""
    draw = generator(config.seed, Stream.DRIFT)
    scale = config.drift / np.sqrt(config.latent_dim)
    tastes = [first]
    for request in range(1, num_requests.max()):
        step_UD = scale * draw.standard_normal(first.shape)
        is_made_U = request < num_requests
        tastes.append(np.where(is_made_U[:, None], _normalised(tastes[-1] + step_UD), tastes[-1]))
    return np.stack(tastes, axis=1)


def _unit(draw: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return _normalised(draw.standard_normal(shape))


def _normalised(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.sqrt((vectors * vectors).sum(axis=-1, keepdims=True))


def _numbers(known: np.ndarray, ids: list[str], noun: str) -> np.ndarray:
    place = {name: number for number, name in enumerate(known.tolist())}
    for name in ids:
        if name not in place:
            raise DataError(
                f"{noun} '{name}' is not of this simulated world, whose {noun}s are '{known[0]}' "
                f"to '{known[-1]}'; use the world of the run whose log it is from"
            )
    return np.array([place[name] for name in ids], np.int64)
