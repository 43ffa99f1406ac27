"""The input of a preference step, and the log-probabilities of its responses.

Dimension key: P groups, Z samples per group, B samples (P * Z), G responses of a group, N history
items, S history tokens, M session items, L code levels, Q groups of a data set, I catalogue items,
D model.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from core_jax.arrays import Array, Bool, Float, Int, Params, PyTree
from core_jax.errors import ConfigError
from core_jax.losses import token_log_probs
from core_jax.mesh import batch_sharding, check_batch_divisible
from rec_jax.batch import SessionBatch
from rec_jax.host_batches import batch_rows
from rec_jax.model import onerec
from rec_jax.model.config import OneRecConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferenceBatch:
    """Samples of which some carry a group of responses besides their logged session.

    Every leaf has the leading dimension P, so that a batch that is split over microbatches and
    devices keeps each group with its context: sample 0 of the group's Z samples.
    """

    sessions: PyTree
    """SessionBatch whose leaves are [P, Z, ...]: every sample carries the next-token loss."""
    response_codes: PyTree
    """Int32 [P, G, M, L]: semantic IDs of the responses; padding has code 0."""
    response_mask: PyTree
    """Bool [P, G, M]: True where a response has an item; all False: there is no such response."""
    has_pair: PyTree
    """Bool [P]: False where a group is padding: it counts for nothing, whatever it holds."""
    reference_log_probs: PyTree
    """Float32 [P, G, M, L]: of every code, under the frozen model, in nats."""
    advantages: PyTree
    """Float32 [P, G]: of each response; read by ECPO and GBPO alone."""
    weights: PyTree = None
    """Float32 [P, G, M, L]: of every code, for contrastive cDPO; None for other methods."""


def bundled(sessions: SessionBatch, num_groups: int) -> SessionBatch:
    """Samples [B, ...] as [P, Z, ...]: row p * (B / P) becomes the context of group p.

    Args:
      sessions: B samples.
      num_groups: P.

    Raises:
      ConfigError: B is not a multiple of P.
    """
    num_samples = sessions.target_mask.shape[0]
    if num_groups < 1 or num_samples % num_groups:
        raise ConfigError(
            f"a batch of {num_samples} samples does not split into {num_groups} groups of equal "
            f"size; set the number of groups to a divisor of {num_samples}"
        )
    return jax.tree.map(lambda leaf: leaf.reshape(num_groups, -1, *leaf.shape[1:]), sessions)


def code_log_probs(
    logits: tuple[Float[Array, "..."], ...], codes: Int[Array, "*lead L"]
) -> Float[Array, "*lead L"]:
    """Log-probability of each code under the softmax of its level, in nats."""
    levels = [
        token_log_probs(level_logits, codes[..., level])
        for level, level_logits in enumerate(logits)
    ]
    return jnp.stack(levels, axis=-1)


def response_log_probs(
    config: OneRecConfig,
    params: Params,
    history_codes: Int[Array, "P N L"],
    history_mask: Bool[Array, "P N"],
    codes: Int[Array, "P G M L"],
    mask: Bool[Array, "P G M"],
    *,
    mesh: Mesh | None = None,
) -> Float[Array, "P G M L"]:
    """Log-probability of every code of every response, without dropout.

    Args:
      config: architecture.
      params: model parameters.
      history_codes: one context per group.
      history_mask: True where there is a history item.
      codes: responses; padding has code 0.
      mask: True where a response has an item.
      mesh: device mesh that groups are split over, or None.

    Returns:
      Nats, float32; 0 where masked.
    """
    encoded_PSD, seen_PS = onerec.encode_tokens(
        config, params, history_codes, history_mask, mesh=mesh
    )
    output = onerec.score_sessions(config, params, encoded_PSD, seen_PS, codes, mask, mesh=mesh)
    return jnp.where(mask[..., None], code_log_probs(output.logits, codes), 0.0)


_jitted_log_probs = functools.partial(jax.jit, static_argnames=("config", "mesh"))(
    response_log_probs
)


def group_log_probs(
    config: OneRecConfig,
    params: Params,
    item_codes: Int[np.ndarray, "I L"],
    histories: Int[np.ndarray, "Q N"],
    codes: Int[np.ndarray, "Q G M L"],
    mask: Bool[np.ndarray, "Q G M"],
    *,
    batch_size: int,
    mesh: Mesh | None = None,
) -> Float[np.ndarray, "Q G M L"]:
    """`response_log_probs` of a whole data set: the reference's, once per round.

    All batches have one shape, so it compiles once; the last one is padded.

    Args:
      config: architecture.
      params: parameters of the frozen model.
      item_codes: semantic ID of every item of the catalogue.
      histories: items in time order, the last column the most recent, -1 where there is none.
      codes: responses; padding has code 0.
      mask: True where a response has an item.
      batch_size: groups per compiled call, at most; a multiple of the mesh's batch shards.
      mesh: device mesh to split groups over, or None.

    Returns:
      Nats, float32; 0 where masked.

    Raises:
      ConfigError: the batch does not split over the mesh.
    """
    call = functools.partial(_jitted_log_probs, config, params, mesh=mesh)
    found = map_groups(call, item_codes, histories, codes, mask, batch_size=batch_size, mesh=mesh)
    return found if len(histories) else np.zeros(codes.shape, np.float32)


def map_groups(
    call: Callable[..., Any],
    item_codes: Int[np.ndarray, "I L"],
    histories: Int[np.ndarray, "Q N"],
    codes: Int[np.ndarray, "Q G M L"],
    mask: Bool[np.ndarray, "Q G M"],
    *,
    batch_size: int,
    mesh: Mesh | None,
) -> Any:
    """Calls a compiled function batch by batch on the groups of a data set.

    Args:
      call: of history codes [P, N, L], history mask [P, N], codes [P, G, M, L] and mask [P, G, M];
        returns an array, or a tree of arrays, of leading dimension P.
      item_codes: semantic ID of every item of the catalogue.
      histories: items in time order, the last column the most recent, -1 where there is none.
      codes: responses; padding has code 0.
      mask: True where a response has an item.
      batch_size: groups per call, at most; a multiple of the mesh's batch shards.
      mesh: device mesh to split groups over, or None.

    Returns:
      The results in order, as NumPy arrays; None where there is no group.

    Raises:
      ConfigError: the batch does not split over the mesh.
    """
    num_groups = len(histories)
    batch_size = batch_rows(num_groups, batch_size, mesh)
    if mesh is not None:
        check_batch_divisible(batch_size, 1, mesh)
    found = []
    for first in range(0, num_groups, batch_size):
        rows = slice(first, first + batch_size)
        missing = batch_size - len(histories[rows])
        history_PN = _pad_rows(histories[rows], missing, -1)
        inputs = (
            item_codes[np.maximum(history_PN, 0)].astype(np.int32),
            history_PN >= 0,
            _pad_rows(codes[rows], missing, 0),
            _pad_rows(mask[rows], missing, False),
        )
        inputs = jax.device_put(inputs, None if mesh is None else batch_sharding(mesh))
        found.append(_first_rows(jax.device_get(call(*inputs)), batch_size - missing))
    if not found:
        return None
    return jax.tree.map(lambda *parts: np.concatenate(parts), *found)


def _first_rows(tree: Any, number: int) -> Any:
    """The tree with so many rows of every array."""
    return jax.tree.map(lambda array: array[:number], tree)


def _pad_rows(array: np.ndarray, missing: int, value: int | bool) -> np.ndarray:
    """The array with rows of one value behind it."""
    widths = [(0, missing)] + [(0, 0)] * (array.ndim - 1)
    return np.pad(array, widths, constant_values=value)
