r"""The policy that wrote the log: popular, personal and random videos, never one twice to a user.

Every place of a slate is filled by one of three rules, drawn anew with the configured shares, from
the videos that the user has not been shown yet, with a probability proportional to

    popular_share    exp(appeal_sharpness a_i), a_i the appeal, which is hardly quality
    taste_share      exp(taste_sharpness y . x_i), y = hat(p + estimate_noise n), p the taste
                     `staleness` requests ago and n ~ N(0, I / D) drawn per request
    the rest         1

so that slates differ in quality, and every video has a chance everywhere.

Dimension key: U users, I items, M slate items, Q requests of a user, S slates of all users.
"""

import dataclasses

import numpy as np

from rec_jax.data.simulator.noise import Stream, generator
from rec_jax.data.simulator.world import World


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slates:
    """Delivered slates, in the order (user, request)."""

    user: np.ndarray
    """Int64 [S]: user number."""
    time_ms: np.ndarray
    """Int64 [S]: time of the request."""
    items: np.ndarray
    """Int64 [S, M]: item numbers in playing order."""


def logged_slates(world: World) -> Slates:
    """Draws the slates of all requests; see the module's docstring."""
    config = world.config
    draw = generator(config.seed, Stream.LOGGING)
    num_users, num_requests = world.request_ms.shape
    shared_UI = np.exp(config.appeal_sharpness * world.item_appeal)
    is_fresh_UI = np.ones((num_users, config.num_items), bool)
    slates = []
    for request in range(num_requests):
        personal_UI = _personal_weights(world, request, draw)
        slate = np.empty((num_users, config.slate_items), np.int64)
        for place in range(config.slate_items):
            rule_U1 = draw.random((num_users, 1))
            weight_UI = np.where(rule_U1 < config.popular_share, shared_UI, 1.0)
            is_personal_U1 = (rule_U1 >= config.popular_share) & (
                rule_U1 < config.popular_share + config.taste_share
            )
            weight_UI = np.where(is_personal_U1, personal_UI, weight_UI) * is_fresh_UI
            slate[:, place] = _draw_rows(weight_UI, draw)
            is_fresh_UI[np.arange(num_users), slate[:, place]] = False
        slates.append(slate)
    is_made_UQ = np.arange(num_requests) < world.num_requests[:, None]
    user_UQ = np.broadcast_to(np.arange(num_users)[:, None], is_made_UQ.shape)
    return Slates(
        user=user_UQ[is_made_UQ],
        time_ms=world.request_ms[is_made_UQ],
        items=np.stack(slates, axis=1)[is_made_UQ],
    )


def _personal_weights(world: World, request: int, draw: np.random.Generator) -> np.ndarray:
    """Weights [U, I] by an estimate of the taste some requests ago."""
    config = world.config
    taste_UD = world.taste[:, max(request - config.staleness, 0)]
    noise_UD = draw.standard_normal(taste_UD.shape) / np.sqrt(config.latent_dim)
    estimate_UD = taste_UD + config.estimate_noise * noise_UD
    estimate_UD /= np.sqrt((estimate_UD**2).sum(axis=1, keepdims=True))
    return np.exp(config.taste_sharpness * (estimate_UD @ world.item_vector.T))


def _draw_rows(weight_UI: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """One item per row, with probability proportional to its weight."""
    edges_UI = np.cumsum(weight_UI, axis=1)
    # 1 - random() lies in (0, 1]: an item of weight 0 is never the first to reach the target.
    target_U = (1 - draw.random(len(edges_UI))) * edges_UI[:, -1]
    return (edges_UI < target_U[:, None]).sum(axis=1)
