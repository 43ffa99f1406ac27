"""What is computed per token of packed rows: contrastive scores of two models, log-probabilities.

Only what predicts a response is wanted, and logits are a good part of the work: they are made for
those places alone.

Dimension key: B rows, T tokens of a row, P response tokens of a row, C tokens of a block, D model,
V vocabulary, S streams.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from core_jax.arrays import Array, Float, Params, PyTree
from core_jax.contrast import ContrastScores, contrast_scores
from core_jax.losses import head_logits, map_token_blocks, token_log_probs
from core_jax.mesh import replicated
from reasoning_jax.data.packing import PackedBatch, at_places
from reasoning_jax.model import decoder_lm, lora
from reasoning_jax.model.config import DecoderConfig

NUM_STREAMS = 2
"""The positive and the negative model."""
POSITIVE, NEGATIVE, LOG_PROB = "positive", "negative", "log_prob"
"""Names of values: log-probabilities under the two models, and under a single one."""


def score_name(beta: float) -> str:
    """The name of the contrastive scores, log s, at a strength of contrast.

    >>> score_name(1.0)
    'log_score@1.0'
    """
    return f"log_score@{beta}"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterPair:
    """A positive and a negative model as adapters to one model, which is held once."""

    base: PyTree
    """The model's parameters."""
    adapters: PyTree
    """Of both, from `reasoning_jax.model.lora.stack_adapters`."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class FullPair:
    """A positive and a negative model that share nothing."""

    positive: PyTree
    """Parameters of the positive model."""
    negative: PyTree
    """Parameters of the negative model."""


@functools.partial(jax.jit, static_argnames=("config", "num_predictions", "chunk", "betas", "mesh"))
def score_batch(
    config: DecoderConfig,
    pair: AdapterPair | FullPair,
    batch: PackedBatch,
    num_predictions: int,
    *,
    chunk: int,
    betas: tuple[float, ...],
    mesh: Mesh | None = None,
) -> Mapping[str, Float[Array, "B T"]]:
    """Contrastive scores of every target (Lin et al., arXiv 2411.19943, Eq. 1).

    The two models of an `AdapterPair` are two streams of one pass: every product with the base's
    weights sees the rows of both, so that the weights are read once and held once. The logits of
    `chunk` tokens of every row exist at a time, and serve all betas.

    Args:
      config: architecture and compute.
      pair: the two models.
      batch: packed rows.
      num_predictions: P, at least as many as any row has response tokens.
      chunk: tokens of a row whose logits exist at a time.
      betas: strengths of contrast.
      mesh: devices over which the rows are split, or None for one.

    Returns:
      By name the values of the target of each place, in nats, float32, on every device:
      `score_name` of each beta, `POSITIVE` and `NEGATIVE`; 0 where the target is no response token
      (`batch.loss_mask`).
    """
    positive_BTD, negative_BTD = _hidden(config, pair, batch, mesh)
    heads = _heads(pair, mesh)

    def of_block(positive_BCD: Array, negative_BCD: Array, targets_BC: Array) -> PyTree:
        logits = head_logits(positive_BCD, heads[0]), head_logits(negative_BCD, heads[1])
        scores: list[ContrastScores] = [
            contrast_scores(*logits, targets_BC, beta=beta) for beta in betas
        ]
        named = {score_name(beta): one.log_scores for beta, one in zip(betas, scores, strict=True)}
        return named | {POSITIVE: scores[0].positive, NEGATIVE: scores[0].negative}

    hidden = positive_BTD, negative_BTD
    return _everywhere(_of_predictions(of_block, hidden, batch, num_predictions, chunk), mesh)


@functools.partial(jax.jit, static_argnames=("config", "num_predictions", "chunk", "mesh"))
def log_prob_batch(
    config: DecoderConfig,
    params: Params,
    batch: PackedBatch,
    num_predictions: int,
    *,
    chunk: int,
    mesh: Mesh | None = None,
) -> Mapping[str, Float[Array, "B T"]]:
    """Log-probabilities of every target under one model.

    Args:
      config: architecture and compute.
      params: the model's parameters, with adapters attached or without.
      batch: packed rows.
      num_predictions: as in `score_batch`.
      chunk: tokens of a row whose logits exist at a time.
      mesh: devices over which the rows are split, or None for one.

    Returns:
      {LOG_PROB: log-probability of the target of each place, in nats, float32, on every device}; 0
      where the target is no response token.
    """
    hidden_BTD = decoder_lm.apply(config, params, _inputs(batch), mesh=mesh).hidden
    head = decoder_lm.output_matrix(params, mesh)

    def of_block(hidden_BCD: Array, targets_BC: Array) -> PyTree:
        return {LOG_PROB: token_log_probs(head_logits(hidden_BCD, head), targets_BC)}

    hidden = (hidden_BTD,)
    return _everywhere(_of_predictions(of_block, hidden, batch, num_predictions, chunk), mesh)


def _of_predictions(
    of_block: Callable[..., PyTree],
    hidden: tuple[Float[Array, "B T D"], ...],
    batch: PackedBatch,
    num_predictions: int,
    chunk: int,
) -> PyTree:
    """A function of blocks of hidden states and targets, of predictions alone; 0 elsewhere."""
    # A stable order of False before True: the first P are the predictions, in their order.
    places_BP = jnp.argsort(~batch.loss_mask, axis=1, stable=True)[:, :num_predictions]
    ranks_BT = jnp.clip(jnp.cumsum(batch.loss_mask, axis=1) - 1, 0)

    def led_back(values_BP: Array) -> Array:
        return jnp.where(batch.loss_mask, at_places(values_BP, ranks_BT), 0)

    parts = tuple(at_places(part, places_BP) for part in (*hidden, batch.targets))
    values = map_token_blocks(of_block, parts, token_dim=1, chunk=chunk)
    return jax.tree.map(led_back, values)


def _hidden(
    config: DecoderConfig, pair: AdapterPair | FullPair, batch: PackedBatch, mesh: Mesh | None
) -> tuple[Float[Array, "B T D"], Float[Array, "B T D"]]:
    """The last hidden states of the positive and of the negative model."""
    inputs = _inputs(batch)
    if isinstance(pair, FullPair):
        positive, negative = (
            decoder_lm.apply(config, params, inputs, mesh=mesh).hidden
            for params in (pair.positive, pair.negative)
        )
        return positive, negative
    # Streams are neighbours, so that both copies of a row stay on the row's device.
    doubled = jax.tree.map(lambda rows: jnp.repeat(rows, NUM_STREAMS, axis=0), inputs)
    params = lora.attach(pair.base, pair.adapters, 1.0)
    hidden = decoder_lm.apply(config, params, doubled, mesh=mesh).hidden
    hidden_BSTD = hidden.reshape(-1, NUM_STREAMS, *hidden.shape[1:])
    return hidden_BSTD[:, 0], hidden_BSTD[:, 1]


def _heads(
    pair: AdapterPair | FullPair, mesh: Mesh | None
) -> tuple[Float[Array, "D V"], Float[Array, "D V"]]:
    """The output matrices of the positive and of the negative model."""
    if isinstance(pair, AdapterPair):
        head = decoder_lm.output_matrix(pair.base, mesh)
        return head, head
    positive, negative = pair.positive, pair.negative
    return decoder_lm.output_matrix(positive, mesh), decoder_lm.output_matrix(negative, mesh)


def _inputs(batch: PackedBatch) -> decoder_lm.TokenInputs:
    """What the model reads of packed rows."""
    return decoder_lm.TokenInputs(
        tokens=batch.tokens, positions=batch.positions, segment_ids=batch.segment_ids
    )


def _everywhere(values: PyTree, mesh: Mesh | None) -> PyTree:
    """Values whole on every device, so that every host can read them."""
    if mesh is None:
        return values
    return jax.lax.with_sharding_constraint(values, replicated(mesh))
