"""Writing sessions code by code: the loop that beam search and sampling share.

The items after the first are a `lax.scan`; the code levels inside an item are unrolled, because
each has its own number of codes and its own widest branching. Before the first code all beams of a
user are one, so the first position is decoded once per user.

Dimension key: B batch, K beams, M session items, L code levels, N history items, H excluded items,
W candidates per beam, C codes of a level, D model.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from core_jax.arrays import Array, Bool, Float, Int, Params, PyTree
from core_jax.errors import ConfigError
from rec_jax.model import onerec
from rec_jax.model.config import OneRecConfig
from rec_jax.model.decoder_cache import follow, init_cache
from rec_jax.model.embeddings import BOS, code_tokens
from rec_jax.semantic_ids.constraint import (
    Children,
    Exclusion,
    build_exclusion,
    chosen_edges,
    items_of_leaves,
    legal_children,
    put_at,
)
from rec_jax.semantic_ids.prefix_index import PrefixIndex, find_leaves

MAX_BEAMS = 512
"""Largest supported number of beams (the largest published serving setting)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BeamConfig:
    """How sessions are searched or sampled."""

    num_beams: int
    """K: sessions kept per user (128 in the paper), at most 512; for sampling, samples per user."""
    num_items: int
    """m: items per session, at most the model's `session_items`; 1 ranks first items."""
    exclude_history: bool = True
    """Whether items of the user's history are never generated."""
    constrained: bool = True
    """Whether only semantic IDs of the catalogue are generated; False measures legality."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        if not 1 <= self.num_beams <= MAX_BEAMS:
            raise ConfigError(
                f"beam.num_beams is {self.num_beams}; it must lie in 1..{MAX_BEAMS}: "
                f"set beam.num_beams to at most {MAX_BEAMS}"
            )
        if self.num_items < 1:
            raise ConfigError(f"beam.num_items is {self.num_items}; it must be at least 1")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Beams:
    """Generated sessions of a batch of users."""

    items: PyTree
    """Int32 [B, K, M]: item numbers in order; -1 where a beam is not alive, or (only without the
    constraint) where the codes belong to no item."""
    codes: PyTree
    """Int32 [B, K, M, L]: semantic IDs; 0 where a beam is not alive."""
    scores: PyTree
    """Float32 [B, K]: log-probability of the session, the sum over all its codes; -inf where a
    beam is not alive."""
    item_scores: PyTree
    """Float32 [B, K, M]: the part of the score that each item adds; -inf where not alive."""
    alive: PyTree
    """Bool [B, K]: False where a user has fewer legal sessions than there are beams."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidates:
    """The next codes that every beam could take."""

    log_probs: PyTree
    """Float32 [B, K, W]: log-softmax over all codes of the level; -inf where illegal."""
    scores: PyTree
    """Float32 [B, K]: scores of the beams so far."""
    step: PyTree
    """Int32 []: number of codes written so far, the same for all beams."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """The codes that were taken."""

    parents: PyTree
    """Int32 [B, K]: the beam that each new beam extends; None: each extends itself."""
    choices: PyTree
    """Int32 [B, K]: position among the parent's candidates."""
    log_probs: PyTree
    """Float32 [B, K]: log-probability of the code taken; -inf: nothing legal was left."""


Selector = Callable[[Candidates], Selection]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class _State:
    """What a beam carries from code to code."""

    cache: PyTree
    """`DecoderCache` of the tokens fed so far."""
    scores: PyTree
    """Float32 [B, K]."""
    item_scores: PyTree
    """Float32 [B, K, M]."""
    paths: PyTree
    """Int32 [B, K, M, L]: edges taken (without the constraint: codes); -1 where not yet."""
    nodes: PyTree
    """Int32 [B, K]: the last edge taken, which is the node that the beam stands on."""
    codes: PyTree
    """Int32 [B, K]: the last code taken."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Task:
    """Everything that stays the same during a call."""

    model_config: OneRecConfig
    config: BeamConfig
    params: Params
    index: PrefixIndex
    encoded: onerec.EncodedHistory
    exclusion: Exclusion
    select: Selector
    mesh: Mesh | None


def check_request(
    model_config: OneRecConfig,
    config: BeamConfig,
    index: PrefixIndex,
    history_codes: Int[Array, "B N L"],
) -> None:
    """Raises ConfigError, before anything compiles, if the parts do not fit together."""
    if tuple(model_config.level_sizes) != tuple(index.level_sizes):
        raise ConfigError(
            f"the model has level_sizes {model_config.level_sizes} but the catalogue has "
            f"{index.level_sizes}; use the catalogue that the model was trained with"
        )
    if config.num_items > model_config.session_items:
        raise ConfigError(
            f"beam.num_items is {config.num_items} but the model was trained for sessions of "
            f"{model_config.session_items}; set beam.num_items to at most "
            f"{model_config.session_items} or train with a larger model.session_items"
        )
    if history_codes.shape[1] != model_config.history_items:
        raise ConfigError(
            f"histories have {history_codes.shape[1]} items but model.history_items is "
            f"{model_config.history_items}; keep the most recent ones and pad on the left"
        )
    if not config.constrained:
        return
    if config.num_items > index.num_leaves:
        raise ConfigError(
            f"beam.num_items is {config.num_items} but the catalogue has only {index.num_leaves} "
            f"semantic IDs; set beam.num_items to at most {index.num_leaves}"
        )


def write_sessions(
    model_config: OneRecConfig,
    config: BeamConfig,
    params: Params,
    index: PrefixIndex,
    history_codes: Int[Array, "B N L"],
    history_mask: Bool[Array, "B N"],
    history_items: Int[Array, "B H"],
    select: Selector,
    mesh: Mesh | None = None,
) -> Beams:
    """Writes `num_items` items with every beam; `select` decides which codes are taken.

    Args:
      model_config: architecture, for sessions of exactly `num_items` (`for_shorter_sessions`).
      config: numbers of beams and items, and the constraint.
      params: the model's parameters.
      index: the catalogue.
      history_codes: semantic IDs of the history.
      history_mask: True at real history items.
      history_items: items to leave out if `exclude_history`; -1 is padding. It may be longer than
        the history that the model reads.
      select: chooses among the candidates; called once per code.
      mesh: device mesh that users are sharded over, or None.

    Returns:
      The sessions in the order that `select` gives.
    """
    if not (config.exclude_history and config.constrained):
        history_items = history_items[:, :0]
    params = onerec.for_many_steps(model_config, params, mesh)
    encoded = onerec.encode(model_config, params, history_codes, history_mask, mesh=mesh)
    task = _Task(
        model_config=model_config,
        config=config,
        params=params,
        index=index,
        encoded=encoded,
        exclusion=build_exclusion(index, history_items),
        select=select,
        mesh=mesh,
    )
    state, hidden_BKD = _first_state(task, history_codes.shape[0])
    state = _take_code(task, state, hidden_BKD, 0, 0)
    state = _finish_item(task, state, 0)

    def write_item(state: _State, item: Array) -> tuple[_State, None]:
        hidden_BKD, state = _feed(task, state, index.num_levels - 1, item - 1, starts_item=True)
        state = _take_code(task, state, hidden_BKD, 0, item)
        return _finish_item(task, state, item), None

    if config.num_items > 1:
        later_items = jnp.arange(1, config.num_items, dtype=jnp.int32)
        state, _ = jax.lax.scan(write_item, state, later_items)
    return _beams(task, state)


def _first_state(task: _Task, batch_size: int) -> tuple[_State, Float[Array, "B 1 D"]]:
    """The one beam per user that has read `BOS`."""
    num_items, num_levels = task.config.num_items, task.index.num_levels
    cache = init_cache(task.model_config, batch_size, task.config.num_beams)
    cache = follow(cache, jnp.zeros((batch_size, 1), jnp.int32))
    bos_B11 = jnp.full((batch_size, 1, 1), BOS, jnp.int32)
    hidden_B11D, cache = onerec.decode(
        task.model_config, task.params, task.encoded, cache, bos_B11, 0, mesh=task.mesh
    )
    state = _State(
        cache=cache,
        scores=jnp.zeros((batch_size, 1), jnp.float32),
        item_scores=jnp.zeros((batch_size, 1, num_items), jnp.float32),
        paths=jnp.full((batch_size, 1, num_items, num_levels), -1, jnp.int32),
        nodes=jnp.zeros((batch_size, 1), jnp.int32),
        codes=jnp.zeros((batch_size, 1), jnp.int32),
    )
    return state, hidden_B11D[:, :, 0]


def _finish_item(task: _Task, state: _State, item: Array | int) -> _State:
    """Writes the codes of levels 1.. of an item whose first code is taken."""
    for level in range(1, task.index.num_levels):
        hidden_BKD, state = _feed(task, state, level - 1, item)
        state = _take_code(task, state, hidden_BKD, level, item)
    return state


def _feed(
    task: _Task, state: _State, level: int, item: Array | int, *, starts_item: bool = False
) -> tuple[Float[Array, "B K D"], _State]:
    """Feeds the code taken last, and `BOS` with it where the next item starts."""
    tokens_BKT = code_tokens(task.model_config, state.codes, level)[..., None]
    if starts_item:
        tokens_BKT = jnp.concatenate([tokens_BKT, jnp.full_like(tokens_BKT, BOS)], axis=-1)
    start = item * (task.index.num_levels + 1) + level + 1
    hidden_BKTD, cache = onerec.decode(
        task.model_config,
        task.params,
        task.encoded,
        state.cache,
        tokens_BKT,
        start,
        mesh=task.mesh,
    )
    return hidden_BKTD[:, :, -1], dataclasses.replace(state, cache=cache)


def _take_code(
    task: _Task,
    state: _State,
    hidden: Float[Array, "B K D"],
    level: int,
    item: Array | int,
) -> _State:
    """Scores the next codes of one level, selects, and moves the beams on."""
    logits_BKC = onerec.level_logits(task.model_config, task.params, hidden, level)
    children = None
    if task.config.constrained:
        children = legal_children(
            task.index, task.exclusion, level, state.nodes, state.paths[..., level]
        )
    log_probs_BKW = candidate_log_probs(logits_BKC, children)
    step = jnp.asarray(item * task.index.num_levels + level, jnp.int32)
    selection = task.select(Candidates(log_probs=log_probs_BKW, scores=state.scores, step=step))
    if selection.parents is not None:
        state = _reordered(state, selection.parents)
    if children is not None:
        nodes_BK = chosen_edges(task.index, children, selection.parents, selection.choices)
        codes_BK = task.index.codes[level][nodes_BK]
    else:
        nodes_BK = codes_BK = selection.choices
    is_here_M = jnp.arange(task.config.num_items) == item
    is_here_ML = is_here_M[:, None] & (jnp.arange(task.index.num_levels) == level)[None]
    return dataclasses.replace(
        state,
        scores=state.scores + selection.log_probs,
        item_scores=jnp.where(
            is_here_M[None, None],
            state.item_scores + selection.log_probs[..., None],
            state.item_scores,
        ),
        paths=jnp.where(is_here_ML[None, None], nodes_BK[..., None, None], state.paths),
        nodes=nodes_BK,
        codes=codes_BK,
    )


def candidate_log_probs(
    logits: Float[Array, "B K C"], children: Children | None
) -> Float[Array, "B K W"]:
    """Log-softmax over all codes of a level, read at the candidates; -inf where illegal.

    Args:
      logits: scores of all codes of the level.
      children: the candidates; None: all codes.
    """
    log_total_BK1 = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    if children is None:
        return logits - log_total_BK1
    if children.codes is not None:
        logits = jnp.take_along_axis(logits, children.codes, axis=-1, mode="promise_in_bounds")
    log_probs_BKW = jnp.where(children.legal, logits - log_total_BK1, -jnp.inf)
    if children.closed is None:
        return log_probs_BKW
    return put_at(log_probs_BKW, children.closed, -jnp.inf)


def _reordered(state: _State, parents: Int[Array, "B K"]) -> _State:
    """Lets every new beam continue from its parent."""

    def rows(array: Array) -> Array:
        return jax.vmap(lambda old, row: old.at[row].get(mode="promise_in_bounds"))(array, parents)

    cache = follow(state.cache, parents)
    rest = dataclasses.replace(state, cache=None)
    return dataclasses.replace(jax.tree.map(rows, rest), cache=cache)


def _beams(task: _Task, state: _State) -> Beams:
    """Turns the final state into items and codes."""
    alive_BK = state.scores > -jnp.inf
    if task.config.constrained:
        codes_BKML = jnp.stack(
            [
                task.index.codes[level][state.paths[..., level]]
                for level in range(task.index.num_levels)
            ],
            axis=-1,
        )
        leaves_BKM = state.paths[..., -1]
    else:
        codes_BKML = state.paths
        leaves_BKM = find_leaves(task.index, codes_BKML)
    items_BKM = items_of_leaves(task.index, task.exclusion, leaves_BKM)
    return Beams(
        items=jnp.where(alive_BK[..., None], items_BKM, -1),
        codes=jnp.where(alive_BK[..., None, None], codes_BKML, 0),
        scores=state.scores,
        item_scores=jnp.where(alive_BK[..., None], state.item_scores, -jnp.inf),
        alive=alive_BK,
    )
