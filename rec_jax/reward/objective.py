"""What the reward model is trained on.

Dimension key: B sessions, T heads.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax.sharding import Mesh

from core_jax.arrays import Array, Float, Key, Params
from core_jax.metrics import Metrics, Ratio
from rec_jax.reward import model
from rec_jax.reward.batch import RewardBatch
from rec_jax.reward.config import P_SCORE, RewardModelConfig, TargetConfig


def binary_cross_entropy(
    logits: Float[Array, "*dims"], labels: Float[Array, "*dims"]
) -> Float[Array, "*dims"]:
    r"""Cross-entropy of soft labels against the sigmoid of logits.

    .. math:: -[y \log \sigma(z) + (1 - y) \log(1 - \sigma(z))] = \max(z, 0) - y z +
       \log(1 + e^{-|z|})

    Args:
      logits: z; computed in float32.
      labels: y in [0, 1].

    Returns:
      Nats per label, float32.

    >>> from math import isclose, log
    >>> value = binary_cross_entropy(jnp.log(jnp.asarray([3.0])), jnp.asarray([0.25]))
    >>> isclose(float(value[0]), -(0.25 * log(0.75) + 0.75 * log(0.25)), rel_tol=1e-6)
    True
    """
    logits, labels = logits.astype(jnp.float32), labels.astype(jnp.float32)
    return jnp.maximum(logits, 0) - labels * logits + jnp.log1p(jnp.exp(-jnp.abs(logits)))


def reward_loss(
    config: RewardModelConfig,
    targets: Sequence[TargetConfig],
    mesh: Mesh | None,
    params: Params,
    batch: RewardBatch,
    *,
    key: Key[Array, ""] | None = None,
) -> tuple[Ratio, Metrics]:
    r"""Cross-entropy of every label that is there, summed over the heads.

    .. math:: L = \sum_x BCE(y_x, \hat r_x) + \sum_x w_x BCE(y_x, p)

    (arXiv:2502.18965, Section 3.3.1; the second sum, arXiv:2506.13695, with the P-score's head
    only.)

    Args:
      config: architecture.
      targets: the heads; their names and P-score weights are read.
      mesh: device mesh of the batch, or None.
      params: model parameters.
      batch: one session per user row, with its labels.
      key: dropout key, or None for evaluation.

    Returns:
      Summed loss over the number of sessions with a label, and the loss of every head over its
      labels.
    """
    logits_BT = model.apply(config, params, batch, key=key, mesh=mesh)[:, 0]
    labels_BT, mask_BT = jnp.asarray(batch.labels), jnp.asarray(batch.label_mask)
    num_targets = len(targets)
    nats_BT = binary_cross_entropy(logits_BT[:, :num_targets], labels_BT)
    nats_BT = jnp.where(mask_BT, nats_BT, 0.0)
    total = jnp.sum(nats_BT)
    counts_T = jnp.sum(mask_BT, axis=0, dtype=jnp.float32)
    metrics: Metrics = {
        f"loss_{target.name}": Ratio(total=jnp.sum(nats_BT[:, place]), count=counts_T[place])
        for place, target in enumerate(targets)
    }
    if config.p_score:
        weights_T = jnp.asarray([target.p_weight for target in targets], jnp.float32)
        p_logit_BT = jnp.broadcast_to(logits_BT[:, -1:], labels_BT.shape)
        p_nats_BT = jnp.where(mask_BT, binary_cross_entropy(p_logit_BT, labels_BT), 0.0)
        p_total = jnp.sum(p_nats_BT * weights_T[None])
        metrics[f"loss_{P_SCORE}"] = Ratio(total=p_total, count=jnp.sum(mask_BT * weights_T[None]))
        total = total + p_total
    count = jnp.sum(jnp.any(mask_BT, axis=1), dtype=jnp.float32)
    return Ratio(total=total, count=count), metrics
