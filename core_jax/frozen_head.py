"""Scores of targets under an output matrix that is not trained, with their gradient on the way.

Where nothing but the hidden states gets a gradient, that of a token's log-probability is one vector
that does not depend on what the log-probability enters. The forward pass makes it of the logits
that it has anyway: two products with the output matrix per token, where a backward pass that
computes the logits again takes three.

Dimension key: B leading dimensions, T tokens, C tokens of a block, D model, V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp

from core_jax.arrays import Array, Float, Int
from core_jax.losses import (
    TokenScores,
    chunked_token_scores,
    head_logits,
    is_top,
    map_token_blocks,
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _scores(hidden: Array, head: Array, targets: Array, chunk: int) -> TokenScores:
    """Without a gradient there is nothing to be made on the way."""
    return chunked_token_scores(hidden, head, targets, chunk=chunk)


def frozen_head_scores(
    hidden: Float[Array, "*lead T D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "*lead T"],
    *,
    chunk: int,
) -> TokenScores:
    r"""`core_jax.losses.chunked_token_scores` whose gradient reaches `hidden` alone.

    .. math:: \frac{\partial \log p(y)}{\partial h} = W_y - \sum_v p(v) W_v

    Args:
      hidden: the model's last hidden states.
      head: the output matrix; it gets no gradient.
      targets: class index in [0, V) of each token.
      chunk: tokens of a row whose logits exist at a time.

    Returns:
      Log-probabilities and which targets are on top; no entropies.

    Raises:
      ConfigError: `chunk` is not positive.
    """
    return _scores(hidden, jax.lax.stop_gradient(head), targets, chunk)


def frozen_head_log_probs(
    hidden: Float[Array, "*lead T D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "*lead T"],
    *,
    chunk: int,
) -> Float[Array, "*lead T"]:
    """The log-probabilities of `frozen_head_scores`, in nats, float32.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> hidden = jnp.log(jnp.asarray([[1.0, 3.0]]))
    >>> def log_prob(hidden):
    ...     return frozen_head_log_probs(hidden, jnp.eye(2), jnp.asarray([1]), chunk=1)[0]
    >>> [round(float(value), 4) for value in jax.grad(log_prob)(hidden)[0]]
    [-0.25, 0.25]
    """
    return frozen_head_scores(hidden, head, targets, chunk=chunk).log_probs


def _forward(hidden: Array, head: Array, targets: Array, chunk: int) -> tuple[TokenScores, Array]:
    """Scores, and for each token the gradient of its log-probability [*lead, T, D]."""

    def of_block(hidden_BCD: Array, targets_BC: Array) -> tuple[TokenScores, Array]:
        logits_BCV = head_logits(hidden_BCD, head)
        top_BC1 = jnp.max(logits_BCV, axis=-1, keepdims=True)
        powers_BCV = jnp.exp(logits_BCV - top_BC1)
        totals_BC1 = jnp.sum(powers_BCV, axis=-1, keepdims=True)
        picked_BC1 = jnp.take_along_axis(logits_BCV, targets_BC[..., None], axis=-1)
        log_probs_BC1 = picked_BC1 - top_BC1 - jnp.log(totals_BC1)
        mean_BCD = head_logits(powers_BCV.astype(hidden.dtype), head.T) / totals_BC1
        own_BCD = head.T[targets_BC].astype(jnp.float32)
        scores = TokenScores(
            log_probs=log_probs_BC1[..., 0], is_top=is_top(logits_BCV, picked_BC1, targets_BC)
        )
        return scores, (own_BCD - mean_BCD).astype(hidden.dtype)

    return map_token_blocks(of_block, (hidden, targets), token_dim=targets.ndim - 1, chunk=chunk)


def _backward(_: int, gradients: Array, outer: TokenScores) -> tuple[Array, None, None]:
    """Each token's gradient, times that of its log-probability."""
    return (outer.log_probs[..., None] * gradients).astype(gradients.dtype), None, None


_scores.defvjp(_forward, _backward)
