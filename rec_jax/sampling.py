"""Ancestral sampling of whole sessions, under the same constraint as beam search.

Dimension key: B batch, K samples per user, N history items, H excluded items, L code levels,
W candidates per sample.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from core_jax.arrays import Array, Bool, Float, Int, Key, Params
from core_jax.errors import ConfigError
from rec_jax.model import onerec
from rec_jax.model.config import OneRecConfig
from rec_jax.semantic_ids.prefix_index import PrefixIndex
from rec_jax.session_decoding import (
    BeamConfig,
    Beams,
    Candidates,
    Selection,
    check_request,
    write_sessions,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """From which distribution codes are drawn."""

    temperature: float = 1.0
    """Divides the log-probabilities; above 0, below 1 sharpens."""
    top_k: int | None = None
    """Keep this many of the most probable codes, and codes that tie with the last; None: all."""
    top_p: float | None = None
    """Keep the fewest most probable codes whose probabilities reach this sum; None: all."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        if self.temperature <= 0:
            raise ConfigError(
                f"sampling.temperature is {self.temperature}; it must be above 0 "
                "(for the most probable session use beam search)"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(
                f"sampling.top_k is {self.top_k}; it must be at least 1, or None for all codes"
            )
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            raise ConfigError(
                f"sampling.top_p is {self.top_p}; it must lie in (0, 1], or be None for all codes"
            )


def sample(
    model_config: OneRecConfig,
    config: BeamConfig,
    params: Params,
    index: PrefixIndex,
    history_codes: Int[Array, "B N L"],
    history_mask: Bool[Array, "B N"],
    history_items: Int[Array, "B H"],
    *,
    key: Key[Array, ""],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    mesh: Mesh | None = None,
) -> Beams:
    """Draws `config.num_beams` independent sessions per user, code by code.

    Every code is drawn from softmax(log-probabilities / temperature) over the legal codes, after
    `top_k` and then `top_p`. The filters look at legal codes only, so they never leave none.

    Args:
      model_config: architecture.
      config: number of samples (`num_beams`), items per session, constraint.
      params: the model's parameters.
      index: the catalogue.
      history_codes: semantic IDs of the history, right-aligned.
      history_mask: True at real history items.
      history_items: items to leave out if `config.exclude_history`; -1 is padding.
      key: random key.
      temperature: see `SamplingConfig`.
      top_k: see `SamplingConfig`.
      top_p: see `SamplingConfig`.
      mesh: device mesh that users are sharded over, or None.

    Returns:
      K sessions per user in the order drawn, which may repeat. Scores are the model's own
      log-probabilities, comparable to those of `beam_search`: without temperature, filters and
      renormalisation.

    Raises:
      ConfigError: a filter out of range, or what `beam_search` raises.
    """
    SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)  # Checks the ranges.
    check_request(model_config, config, index, history_codes)
    model_config, params = onerec.for_shorter_sessions(model_config, params, config.num_items)
    return _sample_sessions(
        model_config,
        config,
        params,
        index,
        history_codes,
        history_mask,
        history_items,
        key,
        jnp.float32(temperature),
        top_k,
        top_p,
        mesh,
    )


def filter_codes(
    logits: Float[Array, "*dims W"], *, top_k: int | None = None, top_p: float | None = None
) -> Float[Array, "*dims W"]:
    """Sets all but the most probable codes to -inf; codes at -inf count as absent.

    Args:
      logits: unnormalised log-probabilities.
      top_k: how many codes to keep, at least 1; ties with the last are kept; None: all.
      top_p: probability mass to reach, after `top_k`, in (0, 1]; None: all.

    Returns:
      The logits with filtered codes at -inf.

    >>> filter_codes(jnp.log(jnp.array([0.5, 0.2, 0.3])), top_p=0.6) > -jnp.inf
    Array([ True, False,  True], dtype=bool)
    """
    width = logits.shape[-1]
    if top_k is None and top_p is None:
        return logits
    num_sorted = width if top_k is None else min(top_k, width)
    sorted_W = jax.lax.top_k(logits, num_sorted)[0]
    smallest = sorted_W[..., -1:]
    if top_p is not None:
        probs_W = jax.nn.softmax(sorted_W, axis=-1, where=sorted_W > -jnp.inf)
        before_W = jnp.cumsum(probs_W, axis=-1) - probs_W
        smallest = jnp.min(jnp.where(before_W < top_p, sorted_W, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits >= smallest, logits, -jnp.inf)


def _select_at_random(
    candidates: Candidates,
    config: BeamConfig,
    key: Key[Array, ""],
    temperature: Float[Array, ""],
    top_k: int | None,
    top_p: float | None,
) -> Selection:
    """Draws one of each sample's candidates."""
    log_probs_BKW = candidates.log_probs
    batch_size, num_rows, width = log_probs_BKW.shape
    # Before the first code all samples of a user are one.
    is_first = num_rows != config.num_beams
    log_probs_BKW = jnp.broadcast_to(log_probs_BKW, (batch_size, config.num_beams, width))
    logits_BKW = filter_codes(log_probs_BKW / temperature, top_k=top_k, top_p=top_p)
    choices_BK = jax.random.categorical(jax.random.fold_in(key, candidates.step), logits_BKW)
    taken_BK1 = jnp.take_along_axis(log_probs_BKW, choices_BK[..., None], axis=-1)
    return Selection(
        parents=jnp.zeros_like(choices_BK) if is_first else None,
        choices=choices_BK.astype(jnp.int32),
        log_probs=taken_BK1[..., 0],
    )


@partial(jax.jit, static_argnames=("model_config", "config", "top_k", "top_p", "mesh"))
def _sample_sessions(
    model_config: OneRecConfig,
    config: BeamConfig,
    params: Params,
    index: PrefixIndex,
    history_codes: Int[Array, "B N L"],
    history_mask: Bool[Array, "B N"],
    history_items: Int[Array, "B H"],
    key: Key[Array, ""],
    temperature: Float[Array, ""],
    top_k: int | None,
    top_p: float | None,
    mesh: Mesh | None,
) -> Beams:
    """The pure function behind `sample`."""

    def select(candidates: Candidates) -> Selection:
        return _select_at_random(candidates, config, key, temperature, top_k, top_p)

    return write_sessions(
        model_config,
        config,
        params,
        index,
        history_codes,
        history_mask,
        history_items,
        select,
        mesh,
    )
