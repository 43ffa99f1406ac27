"""The reward model as two functions: from users and sessions to one logit per head.

R(u, S): items that know the user, mixed within the session, summed, one tower per target
(Deng et al., 2025, arXiv:2502.18965, Section 3.3.1).

Dimension key: B users, K sessions of a user, T heads (the P-score's last, where there is one),
I items, D model.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from core_jax.arrays import Array, Float, Key, Params
from core_jax.errors import ConfigError
from core_jax.sharding import match_rules
from rec_jax.reward.batch import RewardBatch
from rec_jax.reward.config import RewardModelConfig
from rec_jax.reward.layers import RewardNet
from rec_jax.reward.shardings import RULES


def init_params(
    config: RewardModelConfig,
    *,
    key: Key[Array, ""],
    item_vectors: Float[np.ndarray, "I D"] | None = None,
) -> Params:
    """Initialises all parameters, float32.

    Args:
      config: architecture, with catalogue and targets known.
      key: random key.
      item_vectors: what the items' own embeddings start as, with entries of about 1
        (`rec_jax.reward.item_vectors`); None means random ones.

    Returns:
      {"embeddings", "body", "towers", "wide"}.

    Raises:
      ConfigError: `level_sizes`, `num_items` or `num_targets` is not known yet.
    """
    for name in ("level_sizes", "num_items", "num_targets"):
        if not getattr(config, name):
            raise ConfigError(
                f"model.{name} is not known; set it, or let the reward stage take it from the "
                "catalogue and the targets"
            )
    history = (1, config.history_items)
    session = (1, 1, config.session_items)
    levels = (len(config.level_sizes),)
    example = RewardBatch(
        history_items=jnp.zeros(history, jnp.int32),
        history_codes=jnp.zeros(history + levels, jnp.int32),
        history_mask=jnp.ones(history, bool),
        session_items=jnp.zeros(session, jnp.int32),
        session_codes=jnp.zeros(session + levels, jnp.int32),
        session_mask=jnp.ones(session, bool),
        labels=jnp.zeros((1, config.num_targets)),
        label_mask=jnp.ones((1, config.num_targets), bool),
    )
    params = RewardNet(config).init(key, example)["params"]
    if item_vectors is None or not config.use_item_ids:
        return params
    tables = {**params["embeddings"], "items": jnp.asarray(item_vectors, jnp.float32)}
    return {**params, "embeddings": tables}


def abstract_params(config: RewardModelConfig, mesh: Mesh) -> Params:
    """Shapes, dtypes and shardings of the parameters on a mesh, without making any."""
    abstract = jax.eval_shape(lambda: init_params(config, key=jax.random.key(0)))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        match_rules(RULES, abstract, mesh),
    )


def apply(
    config: RewardModelConfig,
    params: Params,
    batch: RewardBatch,
    *,
    key: Key[Array, ""] | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, "B K T"]:
    """Judges sessions; all K sessions of a user share one pass over the history.

    Args:
      config: architecture.
      params: from `init_params`.
      batch: at most `history_items` history items and `session_items` session items.
      key: dropout key, or None for a deterministic pass.
      mesh: device mesh that the batch is sharded over, or None.

    Returns:
      Logits, float32: the sigmoid is the probability of a target.
    """
    batch = jax.tree.map(jnp.asarray, batch)
    if mesh is not None:
        whole = jax.lax.with_sharding_constraint(
            params["embeddings"], NamedSharding(mesh, PartitionSpec())
        )
        params = {**params, "embeddings": whole}
    logits = RewardNet(config).apply(
        {"params": params},
        batch,
        deterministic=key is None,
        rngs=None if key is None else {"dropout": key},
    )
    return jnp.asarray(logits, jnp.float32)
