"""Scores sessions with a trained reward model.

Dimension key: U users, H history items given, N history items read, K sessions of a user,
M session items, T heads, I items, L code levels.
"""

import dataclasses
import functools

import jax
import numpy as np
from jax.sharding import Mesh

from core_jax.arrays import Array, Float, Int, Params
from core_jax.errors import CheckpointError, ConfigError, DataError
from core_jax.mesh import batch_sharding, check_batch_divisible, replicated
from rec_jax.host_batches import batch_rows, num_batch_shards, run_batches
from rec_jax.reward import model as network
from rec_jax.reward.batch import RewardBatch, make_batch
from rec_jax.reward.config import RewardModelConfig
from rec_jax.reward.fusion import Fusion


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardModel:
    """A trained reward model and what belongs to it."""

    config: RewardModelConfig
    """Architecture, with catalogue and targets known."""
    params: Params
    """Its parameters, on the mesh that it was loaded for."""
    codes: np.ndarray
    """Int32 [I, L]: semantic ID of every item."""
    fusion: Fusion
    """How the heads become one number."""
    names: tuple[str, ...]
    """Heads, in the order of the outputs."""
    fingerprint: str
    """Of the parameters' checkpoint and the catalogue: what a stored score depends on."""
    catalogue_fingerprint: str
    """Of the semantic IDs that it was trained on."""
    score_batch: int
    """Users per compiled call."""


def check_catalogue(trained_on: str, fingerprint: str) -> None:
    """Checks that sessions to score are numbered as a reward model's own items are.

    Args:
      trained_on: `RewardModel.catalogue_fingerprint`.
      fingerprint: of the semantic IDs (`ItemIndex.fingerprint`) that the sessions belong to.

    Raises:
      CheckpointError: it is another catalogue.
    """
    if trained_on != fingerprint:
        raise CheckpointError(
            f"the reward model was trained on the catalogue {trained_on}, but the sessions to "
            f"score are of {fingerprint}: item numbers mean other items there; train a reward "
            "model on this run, or score sessions of its own run"
        )


def score_sessions(
    model: RewardModel,
    histories: Int[np.ndarray, "U H"],
    sessions: Int[np.ndarray, "U K M"],
    *,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    progress: bool = False,
    catalogue: str | None = None,
) -> Float[np.ndarray, "U K T"]:
    """Probabilities of all heads for candidate sessions.

    All batches have one shape, so the model compiles once; the last one is padded with empty
    users, which are dropped. The next batch is on its way while one is read back.

    Args:
      model: the reward model.
      histories: items in time order, the last column the most recent, padded with -1 on the left;
        the last `history_items` columns are read.
      sessions: items in the order shown, -1 is padding; at most `session_items`.
      batch_size: users per compiled call; None means the model's own. It becomes a multiple of the
        mesh's batch shards.
      mesh: device mesh to split users over, or None.
      progress: whether to show a progress bar.
      catalogue: fingerprint of the semantic IDs that the sessions belong to, to be checked.

    Returns:
      Float32 probabilities.

    Raises:
      CheckpointError: the sessions are of another catalogue.
      ConfigError: a session is longer than the model reads.
      DataError: an item number is beyond the catalogue, or a session has no item.
    """
    config, num_users = model.config, histories.shape[0]
    if catalogue is not None:
        check_catalogue(model.catalogue_fingerprint, catalogue)
    if sessions.shape[2] > config.session_items:
        raise ConfigError(
            f"the sessions have {sessions.shape[2]} items, but the reward model reads "
            f"{config.session_items}; set its model.session_items to {sessions.shape[2]}"
        )
    _check_items(model, histories, sessions)
    num_shards = num_batch_shards(mesh)
    wanted = max(1, -(-(batch_size or model.score_batch) // num_shards)) * num_shards
    batch_size = batch_rows(num_users, wanted, mesh)
    if mesh is not None:
        check_batch_divisible(batch_size, 1, mesh)
    missing = max(0, config.history_items - histories.shape[1])
    histories = np.pad(histories, ((0, 0), (missing, 0)), constant_values=-1)
    histories = histories[:, -config.history_items :]
    sessions = np.pad(
        sessions,
        ((0, 0), (0, 0), (0, config.session_items - sessions.shape[2])),
        constant_values=-1,
    )

    def dispatch(first: int) -> Array:
        rows, shown = (array[first : first + batch_size] for array in (histories, sessions))
        lacking = batch_size - len(rows)
        rows = np.pad(rows, ((0, lacking), (0, 0)), constant_values=-1)
        shown = np.pad(shown, ((0, lacking), (0, 0), (0, 0)), constant_values=-1)
        batch = make_batch(model.codes, rows, shown)
        batch = jax.device_put(batch, None if mesh is None else batch_sharding(mesh))
        return _probabilities(config, model.params, batch, mesh)

    done = run_batches(dispatch, num_users, batch_size, name="reward", progress=progress)
    if not done:
        return np.zeros((0, sessions.shape[1], len(model.names)), np.float32)
    return np.concatenate(done)[:num_users]


@functools.partial(jax.jit, static_argnames=("config", "mesh"))
def _probabilities(
    config: RewardModelConfig, params: Params, batch: RewardBatch, mesh: Mesh | None
) -> Float[Array, "U K T"]:
    """Sigmoid of the logits, whole on every device so that any host can read them."""
    probabilities = jax.nn.sigmoid(network.apply(config, params, batch, mesh=mesh))
    if mesh is None:
        return probabilities
    return jax.lax.with_sharding_constraint(probabilities, replicated(mesh))


def _check_items(
    model: RewardModel, histories: Int[np.ndarray, "U H"], sessions: Int[np.ndarray, "U K M"]
) -> None:
    """Raises for items that the catalogue does not have, and for sessions without an item."""
    num_items = len(model.codes)
    for name, items in (("history", histories), ("session", sessions)):
        if (items >= num_items).any():
            place = np.argwhere(items >= num_items)[0]
            raise DataError(
                f"the {name} of user {place[0]} has item {items[tuple(place)]}, but the reward "
                f"model's catalogue ends at item {num_items - 1}; score sessions of its own run"
            )
    is_empty_UK = (sessions < 0).all(axis=2)
    if is_empty_UK.any():
        user, session = np.argwhere(is_empty_UK)[0]
        raise DataError(
            f"session {session} of user {user} has no item ({is_empty_UK.sum()} such sessions); "
            "leave empty sessions out"
        )
