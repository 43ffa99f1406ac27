r"""What a user does with a delivered session, sampled and in expectation.

A session is items i_1 ... i_M in the order in which they are played; -1 is no item, and is passed
over. With s(z) = 1 / (1 + exp(-z)), the user's taste p in force at the time, patience b, and n_j
the number of earlier items of the session with the topic of i_j, position j has

    logit        m_j = watch_bias + affinity_weight p . x_i + quality_weight q_i
                       - satiation n_j - duration_weight log(d_i / median)
    watch ratio  w_j = s(m_j + watch_noise e_j),  e_j ~ N(0, 1)
    watch time   w_j d_i
    leaving      with probability s(leave_bias - leave_weight w_j - b), after the item
    like         with probability s(like_bias + like_affinity_weight p . x_i
                                    + like_quality_weight q_i + user_like)
    follow       with probability s(follow_bias + follow_affinity_weight p . x_i
                                    + follow_creator_weight g_c + user_follow)

The first item is viewed; item j + 1 is viewed if j was and the user did not leave after it. An item
that is not viewed has no watch time, no like and no follow. All draws are independent, so that
V_j, the probability that j is viewed, is a product over the earlier positions, and with E over e
(by Gauss-Hermite quadrature)

    V_1 = 1,  V_{j+1} = V_j (1 - E s(leave_bias - leave_weight w_j(e) - b))
    E[session watch time] = sum_j V_j d_j E w_j(e)

Dimension key: R replications, S sessions or the requests they answer, K further dimensions (for
example candidates), M session items, D latent dimensions, N quadrature nodes.
"""

import dataclasses

import numpy as np

from core_jax.arrays import Bool, Float, Int
from core_jax.errors import DataError
from rec_jax.data.simulator.noise import Stream, keyed_uniforms
from rec_jax.data.simulator.world import World, check_numbers, taste_at

NO_ITEM = -1
"""Item number of an empty place of a session."""
NUM_NODES = 16
"""Quadrature nodes: the error is far below a millisecond with the default noise."""
_AT_ONCE = 1 << 18
"""Positions whose quadrature is held in memory at a time (32 MiB)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Response:
    """What users did, in every replication."""

    watch_ms: Float[np.ndarray, "R S M"]
    """Milliseconds watched; 0 where not viewed."""
    is_viewed: Bool[np.ndarray, "R S M"]
    """Whether the item was played before the user left; False where there is no item."""
    is_like: Bool[np.ndarray, "R S M"]
    """Whether it was viewed and liked."""
    is_follow: Bool[np.ndarray, "R S M"]
    """Whether it was viewed and its creator followed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpectedResponse:
    """What users do in the mean: one number per session."""

    watch_ms: np.ndarray
    """Float64 [S, *K]: session watch time, milliseconds."""
    viewed: np.ndarray
    """Float64 [S, *K]: number of viewed items."""
    likes: np.ndarray
    """Float64 [S, *K]: number of likes."""
    follows: np.ndarray
    """Float64 [S, *K]: number of follows."""
    finished: np.ndarray
    """Float64 [S, *K]: probability that the last item is viewed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Logits:
    """What decides a response before any noise; see the module's docstring."""

    watch: np.ndarray
    """Float64 [S, *K, M]: m_j."""
    like: np.ndarray
    """Float64 [S, *K, M]."""
    follow: np.ndarray
    """Float64 [S, *K, M]."""
    is_item: np.ndarray
    """Bool [S, *K, M]: False for no item."""
    duration_ms: np.ndarray
    """Float64 [S, *K, M]."""


def respond(
    world: World,
    users: Int[np.ndarray, " S"],
    times_ms: Int[np.ndarray, " S"],
    sessions: Int[np.ndarray, "S M"],
    *,
    seed: int,
    num_replications: int = 1,
) -> Response:
    """Draws what users do with sessions.

    Common random numbers: the noise is a function of (seed, replication, user, time, position) and
    of nothing else. Two policies that are asked at the same users and times with the same seed meet
    the same noise, whatever else is in the call.

    Args:
      world: the world.
      users: user numbers.
      times_ms: when the session is delivered, milliseconds since 1970; decides the taste.
      sessions: world item numbers in playing order, -1 for no item.
      seed: seed of the noise.
      num_replications: how often the same session is delivered.

    Returns:
      The responses.

    Raises:
      DataError: a user or item that the world does not have, or no replication.
    """
    if num_replications < 1:
        raise DataError(f"num_replications is {num_replications}; ask for at least 1")
    config = world.config
    logits = response_logits(world, users, times_ms, sessions)
    keys = (
        seed,
        np.arange(num_replications)[:, None, None],
        users[:, None],
        times_ms[:, None],
        np.arange(sessions.shape[1]),
    )
    ratio_RSM = _sigmoid(logits.watch + config.watch_noise * _normals(keys))
    leave_RSM = _sigmoid(_leave_logit(world, users[:, None], ratio_RSM))
    is_staying_RSM = (keyed_uniforms(Stream.LEAVE, *keys) >= leave_RSM) | ~logits.is_item
    is_viewed_RSM = logits.is_item & _before(is_staying_RSM)
    likes_RSM = keyed_uniforms(Stream.LIKE, *keys) < _sigmoid(logits.like)
    follows_RSM = keyed_uniforms(Stream.FOLLOW, *keys) < _sigmoid(logits.follow)
    return Response(
        watch_ms=np.where(is_viewed_RSM, ratio_RSM * logits.duration_ms, 0.0),
        is_viewed=is_viewed_RSM,
        is_like=is_viewed_RSM & likes_RSM,
        is_follow=is_viewed_RSM & follows_RSM,
    )


def expected_response(
    world: World,
    users: Int[np.ndarray, " S"],
    times_ms: Int[np.ndarray, " S"],
    sessions: Int[np.ndarray, "S *K M"],
) -> ExpectedResponse:
    """The mean of `respond` over its noise, without sampling.

    Args:
      world: the world.
      users: user numbers.
      times_ms: when the session is delivered, milliseconds since 1970.
      sessions: world item numbers in playing order, -1 for no item; several per request may be
        asked about, along the dimensions K.

    Returns:
      One number per session.

    Raises:
      DataError: a user or item that the world does not have.
    """
    logits = response_logits(world, users, times_ms, sessions)
    shape = sessions.shape
    user_SKM = np.broadcast_to(_align(users, sessions.ndim), shape)
    ratio_SKM, staying_SKM = mean_ratio_and_staying(world, user_SKM, logits.watch)
    staying_SKM = np.where(logits.is_item, staying_SKM, 1.0)
    reached_SKM = _before(staying_SKM)
    viewed_SKM = np.where(logits.is_item, reached_SKM, 0.0)
    return ExpectedResponse(
        watch_ms=(viewed_SKM * ratio_SKM * logits.duration_ms).sum(axis=-1),
        viewed=viewed_SKM.sum(axis=-1),
        likes=(viewed_SKM * _sigmoid(logits.like)).sum(axis=-1),
        follows=(viewed_SKM * _sigmoid(logits.follow)).sum(axis=-1),
        finished=reached_SKM[..., -1],
    )


def expected_watch_ms(
    world: World,
    users: Int[np.ndarray, " S"],
    times_ms: Int[np.ndarray, " S"],
    sessions: Int[np.ndarray, "S *K M"],
) -> Float[np.ndarray, "S *K"]:
    """Expected session watch time in milliseconds; see `expected_response`."""
    return expected_response(world, users, times_ms, sessions).watch_ms


def response_logits(
    world: World,
    users: Int[np.ndarray, " S"],
    times_ms: Int[np.ndarray, " S"],
    sessions: Int[np.ndarray, "S *K M"],
) -> Logits:
    """The logits of every position; arguments and errors as of `expected_response`."""
    config = world.config
    check_numbers(sessions, len(world.item_ids), "item", lowest=NO_ITEM)
    taste_SD = taste_at(world, users, times_ms)
    taste = taste_SD.reshape(len(users), *[1] * (sessions.ndim - 1), taste_SD.shape[-1])
    # Summed over the last axis rather than as a matrix product, whose last bits depend on how many
    # rows there are: a response must not depend on what else is asked.
    affinity = (taste * world.item_vector[sessions]).sum(axis=-1)
    is_item = sessions != NO_ITEM
    topic = world.item_topic[sessions]
    is_same = (topic[..., :, None] == topic[..., None, :]) & is_item[..., None, :]
    num_earlier = np.tril(is_same, -1).sum(axis=-1)
    quality = world.item_quality[sessions]
    creator = world.creator_quality[world.item_creator[sessions]]
    user = _align(users, sessions.ndim)
    return Logits(
        watch=config.affinity_weight * affinity
        + item_watch_logits(world)[sessions]
        - config.satiation * num_earlier,
        like=config.like_bias
        + config.like_affinity_weight * affinity
        + config.like_quality_weight * quality
        + world.user_like[user],
        follow=config.follow_bias
        + config.follow_affinity_weight * affinity
        + config.follow_creator_weight * creator
        + world.user_follow[user],
        is_item=is_item,
        duration_ms=world.item_duration_ms[sessions],
    )


def item_watch_logits(world: World) -> Float[np.ndarray, " I"]:
    """The part of the watch logit that is the same for every user and place."""
    config = world.config
    relative_I = world.item_duration_ms / (1000 * config.median_seconds)
    return (
        config.watch_bias
        + config.quality_weight * world.item_quality
        - config.duration_weight * np.log(relative_I)
    )


def mean_ratio_and_staying(
    world: World, users: Int[np.ndarray, "*S"], watch_logits: Float[np.ndarray, "*S"]
) -> tuple[Float[np.ndarray, "*S"], Float[np.ndarray, "*S"]]:
    """Means over the watch noise: the watch ratio, and the probability of staying after the item.

    Args:
      world: the world.
      users: user numbers, one per logit.
      watch_logits: m_j of the module's docstring.

    Returns:
      E s(m + watch_noise e) and 1 - E s(leave_bias - leave_weight s(m + watch_noise e) - b).
    """
    nodes_N, weights_N = np.polynomial.hermite_e.hermegauss(NUM_NODES)
    weights_N = weights_N / weights_N.sum()
    flat_users, flat_logits = users.reshape(-1), watch_logits.reshape(-1)
    ratios, stayings = np.empty(flat_logits.shape), np.empty(flat_logits.shape)
    for start in range(0, len(flat_logits), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        ratio_NS = _sigmoid(flat_logits[part] + world.config.watch_noise * nodes_N[:, None])
        leave_NS = _sigmoid(_leave_logit(world, flat_users[part], ratio_NS))
        ratios[part] = (weights_N[:, None] * ratio_NS).sum(axis=0)
        stayings[part] = 1 - (weights_N[:, None] * leave_NS).sum(axis=0)
    return ratios.reshape(users.shape), stayings.reshape(users.shape)


def _leave_logit(world: World, users: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    config = world.config
    return config.leave_bias - world.user_patience[users] - config.leave_weight * ratio


def _before(staying: np.ndarray) -> np.ndarray:
    """Product over the earlier positions (the last axis); of Booleans, whether all hold."""
    earlier = np.ones_like(staying)
    earlier[..., 1:] = np.cumprod(staying[..., :-1], axis=-1)
    return earlier


def _normals(keys: tuple[np.ndarray | int, ...]) -> np.ndarray:
    """Standard normal numbers by the Box-Muller transform of two uniforms."""
    radius = np.sqrt(-2 * np.log(keyed_uniforms(Stream.WATCH_RADIUS, *keys)))
    return radius * np.cos(2 * np.pi * keyed_uniforms(Stream.WATCH_ANGLE, *keys))


def _align(users: np.ndarray, ndim: int) -> np.ndarray:
    """Users with as many dimensions as the sessions, to broadcast against them."""
    return users.reshape(len(users), *[1] * (ndim - 1))


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    # By tanh: no overflow at either end.
    return 0.5 * (1 + np.tanh(0.5 * logits))
