r"""The objective of token-weighted preference training, over rows of pairs.

Dimension key: B rows, T tokens of a row, P response tokens of a row, D model, K pairs of a row,
U tokens of a response.
"""

import dataclasses

import jax.numpy as jnp
from jax.sharding import Mesh

from core_jax.arrays import Array, Float, Key, Params, PyTree
from core_jax.errors import ConfigError
from core_jax.frozen_head import frozen_head_log_probs
from core_jax.losses import chunked_token_kl, chunked_token_log_probs
from core_jax.metrics import Metrics, Ratio
from core_jax.preference import log_ratios, margins, weighted_sum
from core_jax.preference_likelihood import mean_nll, rpo
from core_jax.preference_pairs import dpo, dpo_by_position
from core_jax.preference_tokens import tdpo1, tdpo2
from reasoning_jax.align.methods import Loss, MethodConfig
from reasoning_jax.align.pair_rows import PairBatch, by_pair
from reasoning_jax.data.packing import at_places
from reasoning_jax.model import decoder_lm
from reasoning_jax.model.config import DecoderConfig, LoraConfig
from reasoning_jax.model.lora import attach


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Sides:
    """Numbers [B, K, U] of both responses of every pair."""

    log_probs: tuple[Array, Array]
    ratios: tuple[Array, Array]
    where: tuple[Array, Array]
    weights: tuple[Array, Array]


def preference_objective(
    params: Params,
    batch: PairBatch,
    *,
    config: DecoderConfig,
    method: MethodConfig,
    chunk: int,
    lora: LoraConfig | None = None,
    frozen: Params | None = None,
    key: Key[Array, ""] | None = None,
    mesh: Mesh | None = None,
) -> tuple[Ratio, Metrics]:
    """The method's loss, one value per pair, summed over the pairs of the batch.

    Args:
      params: what is trained: the model's parameters, or with `lora` the adapters.
      batch: rows of pairs, with reference log-probabilities and weights.
      config: architecture and compute.
      method: the loss and its numbers.
      chunk: response tokens of a row whose logits exist at a time.
      lora: scale and dropout of the adapters, or None where all parameters are trained.
      frozen: the model that the adapters stand beside; also the reference, which the TDPO losses
        run, with or without adapters.
      key: dropout key, or None for evaluation.
      mesh: device mesh of the batch, or None.

    Returns:
      Summed loss over the number of pairs, and metrics per pair: "accuracy" (weighted margin
      above 0), "margin" (weighted, in nats), "chosen_log_ratio", "rejected_log_ratio",
      "chosen_log_prob", "rejected_log_prob" (sums over the response, in nats; the paper's Figure
      4), and "rejected_weight", the mean per rejected token.

    Raises:
      ConfigError: adapters or a TDPO loss without `frozen`.
    """
    if frozen is None and (lora is not None or method.needs_reference_pass):
        needs = "adapters stand beside" if lora is not None else f"{method.loss.value} runs"
        raise ConfigError(f"frozen is not given, but {needs} a model that is not trained; give it")
    dropout = 0.0
    policy = params
    if lora is not None and frozen is not None:
        policy, dropout = attach(frozen, params, lora.scale), lora.dropout
    inputs = decoder_lm.TokenInputs(
        tokens=batch.tokens, positions=batch.positions, segment_ids=batch.segment_ids
    )
    output = decoder_lm.apply(config, policy, inputs, key=key, lora_dropout=dropout, mesh=mesh)
    head = decoder_lm.output_matrix(policy, mesh)
    # The output matrix is a fifth of a small model: prompts and padding need no logits.
    hidden_BPD = at_places(output.hidden, batch.predictions)
    targets_BP = at_places(batch.targets, batch.predictions)
    score = chunked_token_log_probs if lora is None else frozen_head_log_probs
    log_probs_BP = score(hidden_BPD, head, targets_BP, chunk=chunk)
    divergences_BP = None
    if method.needs_reference_pass and frozen is not None:
        reference = decoder_lm.apply(config, frozen, inputs, mesh=mesh)
        reference_BPD = at_places(reference.hidden, batch.predictions)
        divergences_BP = chunked_token_kl(
            reference_BPD, decoder_lm.output_matrix(frozen, mesh), hidden_BPD, head, chunk=chunk
        )
    return token_loss(log_probs_BP, batch, method=method, divergences=divergences_BP)


def token_loss(
    log_probs: Float[Array, "B P"],
    batch: PairBatch,
    *,
    method: MethodConfig,
    divergences: Float[Array, "B P"] | None = None,
) -> tuple[Ratio, Metrics]:
    """The method's loss from what a model says of every response token.

    Args:
      log_probs: of the response tokens of every row, in nats.
      batch: rows of pairs, with reference log-probabilities and weights.
      method: the loss and its numbers.
      divergences: KL(reference || model) at every response token; the TDPO losses need them.

    Returns:
      As `preference_objective`.
    """
    sides = _sides(log_probs, batch)
    losses_BK = _losses(sides, method, divergences, batch)
    is_pair_BK = jnp.any(batch.is_token, axis=(2, 3))
    return _over_pairs(losses_BK, is_pair_BK), _metrics(sides, is_pair_BK)


def _sides(log_probs_BP: Array, batch: PairBatch) -> _Sides:
    """Log-probabilities of the rows' response tokens as those of the pairs."""
    log_probs = _apart(by_pair(log_probs_BP, batch))
    where, reference, weights = map(_apart, (batch.is_token, batch.reference, batch.weights))
    ratios = tuple(
        log_ratios(ours, theirs, where=mask)
        for ours, theirs, mask in zip(log_probs, reference, where, strict=True)
    )
    return _Sides(log_probs=log_probs, ratios=(ratios[0], ratios[1]), where=where, weights=weights)


def _apart(values: PyTree) -> tuple[Array, Array]:
    """[B, K, 2, U] -> [B, K, U] of the chosen and of the rejected responses."""
    return values[:, :, 0], values[:, :, 1]


def _losses(
    sides: _Sides, method: MethodConfig, divergences_BP: Array | None, batch: PairBatch
) -> Array:
    """One loss per place of a pair [B, K]."""
    common = {"where": sides.where, "weights": sides.weights, "beta": method.beta}
    chosen, rejected = sides.ratios
    match method.loss:
        case Loss.SFT:
            return mean_nll(sides.log_probs[0], where=sides.where[0])
        case Loss.DPO:
            return dpo(chosen, rejected, **common)
        case Loss.POSITION:
            return dpo_by_position(chosen, rejected, **common)
        case Loss.RPO:
            nll_weight = method.nll_weight
            return rpo(chosen, rejected, sides.log_probs[0], nll_weight=nll_weight, **common)
    assert divergences_BP is not None, "checked with frozen"
    divergences = _apart(by_pair(divergences_BP, batch))
    if method.loss is Loss.TDPO1:
        return tdpo1(chosen, rejected, divergences, **common)
    return tdpo2(chosen, rejected, divergences, alpha=method.alpha, **common)


def _metrics(sides: _Sides, is_pair_BK: Array) -> Metrics:
    """What a pair's loss is made of."""
    margins_BK = margins(*sides.ratios, where=sides.where, weights=sides.weights)
    found = {
        "margin": _over_pairs(margins_BK, is_pair_BK),
        "accuracy": _over_pairs((margins_BK > 0).astype(jnp.float32), is_pair_BK),
    }
    for index, side in enumerate(("chosen", "rejected")):
        where = sides.where[index]
        for name, values in (("ratio", sides.ratios), ("prob", sides.log_probs)):
            sums_BK = weighted_sum(values[index], where=where)
            found[f"{side}_log_{name}"] = _over_pairs(sums_BK, is_pair_BK)
    num_tokens = jnp.sum(sides.where[1], dtype=jnp.float32)
    total = jnp.sum(weighted_sum(sides.weights[1], where=sides.where[1]))
    found["rejected_weight"] = Ratio(total=total, count=num_tokens)
    return found


def _over_pairs(values_BK: Array, is_pair_BK: Array) -> Ratio:
    """Sum over the pairs that there are, and their number."""
    return Ratio(
        total=jnp.sum(jnp.where(is_pair_BK, values_BK, 0.0)),
        count=jnp.sum(is_pair_BK, dtype=jnp.float32),
    )
