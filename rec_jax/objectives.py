"""What OneRec is trained on: pure objectives over a model's output.

Dimension key: B batch, M session items, L code levels, C codes of a level, Y decoder layers,
E experts.
"""

import jax.numpy as jnp
from jax.sharding import Mesh

from core_jax.arrays import Array, Bool, Float, Int, Key, Params
from core_jax.losses import token_log_probs
from core_jax.metrics import Metrics, Ratio
from rec_jax.batch import SessionBatch
from rec_jax.model import onerec
from rec_jax.model.config import OneRecConfig
from rec_jax.moe.layer import MoeAux


def next_token_loss(
    config: OneRecConfig,
    mesh: Mesh | None,
    params: Params,
    batch: SessionBatch,
    *,
    key: Key[Array, ""] | None = None,
) -> tuple[Ratio, Metrics]:
    r"""Next-token prediction over the codes of the session.

    .. math::
       L_{NTP} = - \sum_{i=1}^{m} \sum_{j=0}^{L-1} \log P(s_i^{j+1} \mid BOS, s_1, ..., s_i^j)

    (paper, Eq. 4, whose inner index is off by one; its successor, arXiv:2506.13695, writes it as
    here.) The balance term of the experts has value zero; it only carries a gradient for the
    loss-free router bias.

    Args:
      config: architecture.
      mesh: device mesh of the batch, or None.
      params: model parameters.
      batch: histories and target sessions.
      key: dropout key, or None for evaluation.

    Returns:
      Summed negative log-likelihood in nats over the number of target codes, and metrics: loss
      and accuracy per level, routed tokens per expert [Y, E], tokens dropped by experts.
    """
    output = onerec.apply(config, params, batch, key=key, mesh=mesh)
    loss, metrics = session_loss(output.logits, batch.target_codes, batch.target_mask)
    loss = Ratio(total=loss.total + jnp.sum(output.moe.balance), count=loss.count)
    return loss, metrics | expert_metrics(output.moe)


def session_loss(
    logits: tuple[Float[Array, "B M _"], ...],
    codes: Int[Array, "B M L"],
    mask: Bool[Array, "B M"],
) -> tuple[Ratio, Metrics]:
    """Summed negative log-likelihood of sessions over the number of their codes; by level too.

    Args:
      logits: scores of the codes of every item, one array per level.
      codes: the sessions that were logged.
      mask: True where there is an item.

    Returns:
      The loss in nats, and metrics: loss and accuracy per level.
    """
    num_items = jnp.sum(mask, dtype=jnp.float32)
    metrics: Metrics = {}
    total = jnp.zeros((), jnp.float32)
    for level, logits_BMC in enumerate(logits):
        codes_BM = codes[:, :, level]
        log_probs_BM = token_log_probs(logits_BMC, codes_BM)
        level_total = -jnp.sum(jnp.where(mask, log_probs_BM, 0.0))
        correct_BM = (jnp.argmax(logits_BMC, axis=-1) == codes_BM) & mask
        metrics[f"loss_level_{level}"] = Ratio(total=level_total, count=num_items)
        metrics[f"accuracy_level_{level}"] = Ratio(
            total=jnp.sum(correct_BM, dtype=jnp.float32), count=num_items
        )
        total = total + level_total
    return Ratio(total=total, count=num_items * len(logits)), metrics


def expert_metrics(aux: MoeAux) -> Metrics:
    """Routed tokens per expert [Y, E] as shares of all, and the share that experts dropped."""
    routed = jnp.sum(aux.load)
    return {
        "expert_load": Ratio(total=aux.load, count=routed),
        "tokens_dropped": Ratio(total=jnp.sum(aux.dropped), count=routed),
    }
