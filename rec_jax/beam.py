"""Beam search over whole sessions, under the catalogue constraint, as one compiled function.

Dimension key: B batch, K beams, N history items, H excluded items, L code levels, W candidates
per beam, X scores, Y chunks, Z scores of a chunk.
"""

import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from core_jax.arrays import Array, Bool, Float, Int, Params
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

__all__ = ["BeamConfig", "Beams", "beam_search", "largest", "select_best"]

SMALLEST_CHUNK = 8
"""Scores are looked at in chunks of at least so many, or all at once."""


def beam_search(
    model_config: OneRecConfig,
    config: BeamConfig,
    params: Params,
    index: PrefixIndex,
    history_codes: Int[Array, "B N L"],
    history_mask: Bool[Array, "B N"],
    history_items: Int[Array, "B H"],
    *,
    mesh: Mesh | None = None,
) -> Beams:
    """Finds the most probable sessions of every user.

    A session's score is the sum of log-softmax values over the codes of each level, not
    renormalised over the legal ones. No semantic ID occurs twice in a session, and with
    `exclude_history` no item of the history occurs; where items share a semantic ID, the session
    gets its most popular item outside the history. One beam is greedy decoding.

    Args:
      model_config: architecture.
      config: beams, items per session, constraint.
      params: the model's parameters.
      index: the catalogue.
      history_codes: semantic IDs of the history, right-aligned.
      history_mask: True at real history items.
      history_items: items to leave out if `config.exclude_history`, in any order; -1 is padding.
        May hold more items than the model reads.
      mesh: device mesh that users are sharded over, or None.

    Returns:
      K sessions per user, best first.

    Raises:
      ConfigError: more beams or items than model or catalogue have, or another catalogue's model.
    """
    check_request(model_config, config, index, history_codes)
    num_sessions = math.perm(index.num_leaves, config.num_items)
    if config.constrained and config.num_beams > num_sessions:
        raise ConfigError(
            f"beam.num_beams is {config.num_beams} but the catalogue has only {num_sessions} "
            f"sessions of {config.num_items} items; set beam.num_beams to at most {num_sessions}"
        )
    model_config, params = onerec.for_shorter_sessions(model_config, params, config.num_items)
    return _beam_search(
        model_config, config, params, index, history_codes, history_mask, history_items, mesh
    )


def select_best(candidates: Candidates, num_beams: int) -> Selection:
    """Takes the codes that give the `num_beams` best scores over all beams of a user.

    Ties go to the better beam, then to the smaller code.
    """
    log_probs_BKW, scores_BK = candidates.log_probs, candidates.scores
    batch_size, _, width = log_probs_BKW.shape
    totals_BX = (scores_BK[..., None] + log_probs_BKW).reshape(batch_size, -1)
    num_missing = max(0, num_beams - totals_BX.shape[-1])
    totals_BX = jnp.pad(totals_BX, ((0, 0), (0, num_missing)), constant_values=-jnp.inf)
    best_BK, index_BK = largest(totals_BX, num_beams)
    index_BK = jnp.where(best_BK > -jnp.inf, index_BK, 0)
    parents_BK, choices_BK = index_BK // width, index_BK % width
    flat_BX = log_probs_BKW.reshape(batch_size, -1)
    taken_BK = jnp.take_along_axis(flat_BX, index_BK, axis=1)
    return Selection(
        parents=parents_BK,
        choices=choices_BK,
        log_probs=jnp.where(best_BK > -jnp.inf, taken_BK, -jnp.inf),
    )


def largest(
    scores: Float[Array, "B X"], num_largest: int
) -> tuple[Float[Array, "B K"], Int[Array, "B K"]]:
    """`jax.lax.top_k`, in two stages where there are many more scores than are kept.

    The K largest scores lie in the K chunks whose maxima are largest: a score in any other chunk
    has K maxima before it. Chunks are looked at in their order, so that equal scores are taken
    in the order of their places, as `top_k` takes them.

    Args:
      scores: at least K scores per row, no NaN; -inf is allowed.
      num_largest: K.

    Returns:
      The scores in falling order, and their places.

    >>> largest(jnp.array([[3.0, 5.0, 4.0, 5.0]]), 2)
    (Array([[5., 5.]], dtype=float32), Array([[1, 3]], dtype=int32))
    """
    batch_size, num_scores = scores.shape
    # X / Z maxima and K * Z scores are sorted: least where Z is the root of X / K.
    chunk = 2 ** round(math.log2(num_scores / num_largest) / 2)
    if chunk < SMALLEST_CHUNK:
        largest_BK, place_BK = jax.lax.top_k(scores, num_largest)
        return largest_BK, place_BK
    scores_BX = jnp.pad(scores, ((0, 0), (0, -num_scores % chunk)), constant_values=-jnp.inf)
    scores_BYZ = scores_BX.reshape(batch_size, -1, chunk)
    _, chunks_BK = jax.lax.top_k(scores_BYZ.max(axis=-1), num_largest)
    chunks_BK = jnp.sort(chunks_BK, axis=-1)
    near_BKZ = jnp.take_along_axis(scores_BYZ, chunks_BK[..., None], axis=1)
    largest_BK, place_BK = jax.lax.top_k(near_BKZ.reshape(batch_size, -1), num_largest)
    chunk_BK = jnp.take_along_axis(chunks_BK, place_BK // chunk, axis=1)
    return largest_BK, chunk_BK * chunk + place_BK % chunk


def _search(
    model_config: OneRecConfig,
    config: BeamConfig,
    params: Params,
    index: PrefixIndex,
    history_codes: Int[Array, "B N L"],
    history_mask: Bool[Array, "B N"],
    history_items: Int[Array, "B H"],
    mesh: Mesh | None,
) -> Beams:
    """The pure function behind `beam_search`."""

    def select(candidates: Candidates) -> Selection:
        return select_best(candidates, config.num_beams)

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


_beam_search = jax.jit(_search, static_argnames=("model_config", "config", "mesh"))
