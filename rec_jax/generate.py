"""Sessions for many users: batches of one fixed shape through beam search or sampling.

Dimension key: U users, B users per batch, H items of the longest history, N history items that
the model reads, K beams, M session items, L code levels, I catalogue items.
"""

import dataclasses

import jax
import numpy as np
from jax.sharding import Mesh

from core_jax.arrays import Array, Int, Key, Params
from core_jax.errors import ConfigError, DataError
from core_jax.mesh import batch_sharding, check_batch_divisible
from rec_jax.beam import beam_search
from rec_jax.host_batches import batch_rows, run_batches
from rec_jax.model import onerec
from rec_jax.model.config import OneRecConfig
from rec_jax.sampling import SamplingConfig, sample
from rec_jax.semantic_ids.prefix_index import PrefixIndex
from rec_jax.session_decoding import BeamConfig, Beams


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recommendations:
    """Generated sessions of many users. NumPy arrays; row u belongs to history u."""

    items: np.ndarray
    """Int32 [U, K, M]: item numbers in order; -1 where there is none."""
    codes: np.ndarray
    """Int32 [U, K, M, L]: semantic IDs; 0 where a session is not alive."""
    scores: np.ndarray
    """Float32 [U, K]: log-probabilities of the sessions; -inf where not alive."""
    item_scores: np.ndarray
    """Float32 [U, K, M]: the part of the score that each item adds."""
    alive: np.ndarray
    """Bool [U, K]: False where a user has fewer legal sessions than there are beams."""


def generate_sessions(
    model_config: OneRecConfig,
    config: BeamConfig,
    params: Params,
    index: PrefixIndex,
    codes: Int[np.ndarray, "I L"],
    histories: Int[np.ndarray, "U H"],
    *,
    batch_size: int = 64,
    sampling: SamplingConfig | None = None,
    key: Key[Array, ""] | None = None,
    mesh: Mesh | None = None,
    progress: bool = True,
) -> Recommendations:
    """Generates sessions for every history.

    All batches have one shape, so the search compiles once; the last one is padded with empty
    histories, which are dropped. The next batch is on its way while one is read back.

    Args:
      model_config: architecture.
      config: beams, items per session, constraint.
      params: the model's parameters.
      index: the catalogue as a prefix tree.
      codes: semantic ID of every item of the catalogue.
      histories: items in time order, the last column the most recent, padded with -1 on the left.
        The model reads the last `history_items` columns; all columns are excluded.
      batch_size: users per compiled call, at most; a multiple of the mesh's batch shards.
      sampling: draw sessions instead of searching the most probable ones, or None.
      key: random key, needed for sampling only.
      mesh: device mesh to split users over, or None.
      progress: whether to show a progress bar.

    Returns:
      The sessions, best first (in the order drawn if sampled).

    Raises:
      ConfigError: the request does not fit model, catalogue or mesh, or a user's history leaves
        too little of the catalogue.
      DataError: a history names an item that the catalogue does not have.
    """
    if (sampling is None) != (key is None):
        raise ConfigError("sampling and key belong together; give both, or none for beam search")
    num_users = histories.shape[0]
    batch_size = batch_rows(num_users, batch_size, mesh)
    if mesh is not None:
        check_batch_divisible(batch_size, 1, mesh)
    histories = _widened(histories, model_config.history_items)
    _check_histories(config, index, codes, histories)
    params = _for_many_steps(model_config, params, mesh)

    def dispatch(first: int) -> Beams:
        rows_BH = histories[first : first + batch_size]
        missing = batch_size - rows_BH.shape[0]
        rows_BH = np.pad(rows_BH, ((0, missing), (0, 0)), constant_values=-1)
        read_BN = rows_BH[:, -model_config.history_items :]
        inputs = (codes[np.maximum(read_BN, 0)], read_BN >= 0, rows_BH)
        inputs = jax.device_put(inputs, None if mesh is None else batch_sharding(mesh))
        if sampling is None:
            return beam_search(model_config, config, params, index, *inputs, mesh=mesh)
        assert key is not None
        batch_key = jax.random.fold_in(key, first)
        return sample(
            model_config,
            config,
            params,
            index,
            *inputs,
            key=batch_key,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            mesh=mesh,
        )

    done = run_batches(dispatch, num_users, batch_size, name="generate", progress=progress)
    return _recommendations(model_config, config, done, num_users)


_for_many_steps = jax.jit(onerec.for_many_steps, static_argnums=(0, 2))


def _recommendations(
    model_config: OneRecConfig, config: BeamConfig, batches: list[Beams], num_users: int
) -> Recommendations:
    """Joins the batches and drops the padding."""
    if not batches:
        shape = (0, config.num_beams, config.num_items)
        return Recommendations(
            items=np.zeros(shape, np.int32),
            codes=np.zeros((*shape, model_config.num_levels), np.int32),
            scores=np.zeros(shape[:2], np.float32),
            item_scores=np.zeros(shape, np.float32),
            alive=np.zeros(shape[:2], bool),
        )
    joined = jax.tree.map(lambda *parts: np.concatenate(parts)[:num_users], *batches)
    return Recommendations(**{f.name: getattr(joined, f.name) for f in dataclasses.fields(joined)})


def _widened(histories: Int[np.ndarray, "U H"], width: int) -> Int[np.ndarray, "U H_or_N"]:
    """Pads histories on the left to at least the width that the model reads."""
    missing = max(0, width - histories.shape[1])
    padded = np.pad(histories, ((0, 0), (missing, 0)), constant_values=-1)
    return padded.astype(np.int32)


def _check_histories(
    config: BeamConfig,
    index: PrefixIndex,
    codes: Int[np.ndarray, "I L"],
    histories: Int[np.ndarray, "U H"],
) -> None:
    """Raises if a history has an unknown item or leaves too few semantic IDs for a session."""
    if codes.shape[0] != index.num_items:
        raise ConfigError(
            f"there are codes of {codes.shape[0]} items but the prefix index has "
            f"{index.num_items}; build it from the same item index"
        )
    is_unknown_UH = histories >= index.num_items
    if is_unknown_UH.any():
        user, column = np.argwhere(is_unknown_UH)[0]
        raise DataError(
            f"history {user} has item {histories[user, column]}, but the catalogue ends at item "
            f"{index.num_items - 1}; run the tokenize stage on the log that has this item"
        )
    if not (config.constrained and config.exclude_history):
        return
    leaf_of_item_I = np.asarray(index.leaf_of_item)
    leaf_sizes_V = np.diff(np.asarray(index.item_starts, np.int64))
    num_known_U = (histories >= 0).sum(axis=1)
    for user in np.flatnonzero(index.num_leaves - num_known_U < config.num_items):
        known = np.unique(histories[user][histories[user] >= 0])
        counts_V = np.bincount(leaf_of_item_I[known], minlength=index.num_leaves)
        num_free = int((counts_V < leaf_sizes_V).sum())
        if num_free < config.num_items:
            raise ConfigError(
                f"the history of user {user} leaves {num_free} of the catalogue's "
                f"{index.num_leaves} semantic IDs, fewer than beam.num_items = "
                f"{config.num_items}; set beam.num_items lower, set beam.exclude_history to "
                "False, or use a larger catalogue"
            )
