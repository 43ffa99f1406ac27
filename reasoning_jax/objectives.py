"""What a language model is fine-tuned on: pure objectives over packed rows.

Dimension key: B rows, T tokens of a row.
"""

import jax.numpy as jnp
from jax.sharding import Mesh

from core_jax.arrays import Array, Key, Params
from core_jax.errors import ConfigError
from core_jax.frozen_head import frozen_head_scores
from core_jax.losses import chunked_token_scores
from core_jax.metrics import Metrics, Ratio
from reasoning_jax.data.packing import PackedBatch
from reasoning_jax.model import decoder_lm
from reasoning_jax.model.config import DecoderConfig, LoraConfig
from reasoning_jax.model.lora import attach


def sft_objective(
    params: Params,
    batch: PackedBatch,
    *,
    config: DecoderConfig,
    chunk: int,
    lora: LoraConfig | None = None,
    frozen: Params | None = None,
    key: Key[Array, ""] | None = None,
    mesh: Mesh | None = None,
) -> tuple[Ratio, Metrics]:
    r"""Negative log-likelihood of the responses, given their prompts.

    .. math::
       L = - \sum_i \sum_{t=s_i}^{T_i - 1} \log P(y_{i,t} \mid y_{i,0}, ..., y_{i,t-1})

    over the examples i of T_i tokens whose responses start at s_i; prompts are read and not
    learnt. Each token weighs the same, whatever the length of its response. How examples are laid
    into rows does not matter.

    Args:
      params: what is trained: the model's parameters, or with `frozen` the adapters.
      batch: packed rows.
      config: architecture and compute.
      chunk: tokens of a row whose logits exist at a time.
      lora: scale and dropout of the adapters; needed with `frozen`, and only then.
      frozen: the parameters of the model that the adapters stand beside.
      key: dropout key, or None for evaluation.
      mesh: device mesh of the batch, or None.

    Returns:
      Summed loss in nats over the number of response tokens, and metrics: "token_accuracy", the
      share of response tokens that the model ranks first, and "response_tokens" per row.

    Raises:
      ConfigError: `lora` without `frozen` or the other way round.
    """
    if (lora is None) != (frozen is None):
        given, missing = ("lora", "frozen") if frozen is None else ("frozen", "lora")
        raise ConfigError(
            f"{given} is given but {missing} is not: adapters (lora) stand beside the parameters "
            f"of a model (frozen); give {missing} too, or neither to train all parameters"
        )
    dropout = 0.0
    if lora is not None and frozen is not None:
        params, dropout = attach(frozen, params, lora.scale), lora.dropout
    inputs = decoder_lm.TokenInputs(
        tokens=batch.tokens, positions=batch.positions, segment_ids=batch.segment_ids
    )
    output = decoder_lm.apply(config, params, inputs, key=key, lora_dropout=dropout, mesh=mesh)
    head = decoder_lm.output_matrix(params, mesh)
    score = chunked_token_scores if lora is None else frozen_head_scores
    scores = score(output.hidden, head, batch.targets, chunk=chunk)
    count = jnp.sum(batch.loss_mask, dtype=jnp.float32)
    num_right = jnp.sum(scores.is_top & batch.loss_mask, dtype=jnp.float32)
    num_rows = jnp.asarray(batch.loss_mask.shape[0], jnp.float32)
    loss = Ratio(total=-jnp.sum(jnp.where(batch.loss_mask, scores.log_probs, 0.0)), count=count)
    return loss, {
        "token_accuracy": Ratio(total=num_right, count=count),
        "response_tokens": Ratio(total=count, count=num_rows),
    }
