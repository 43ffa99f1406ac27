"""The next token of every row, from its logits and one uniform number.

Drawing by one uniform number per token, from the cumulated probabilities in the vocabulary's order,
needs neither a noise value per entry of the vocabulary nor a sorted vocabulary. Truncation finds
its threshold by bisection over the bits of a float, which are ordered as the floats are: exact, in
31 passes, without a sort.

Dimension key: V vocabulary, B rows, C blocks of the vocabulary, W width of a block.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from core_jax.arrays import Array, Float, Int

_BLOCK = 256
_BITS_ABOVE_ONE = 0x3F800001
_BISECTIONS = 30
_BELOW_ONE = 1 - 1e-7
"""Keeps a draw that rounds up inside the total."""


def choose_tokens(
    logits: Float[Array, "V B"],
    uniforms: Float[Array, "B"],
    *,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Int[Array, "B"]:
    """Draws one token per column.

    Args:
      logits: scores, one column per row of the batch.
      uniforms: one number in [0, 1) per row; unused at temperature 0.
      temperature: divides the logits; 0 takes the best token.
      top_k: only that many best tokens; 0: all.
      top_p: then, of what is left, only the best tokens that reach this share of its
        probability; 1: all. Tokens exactly as probable as the last one stay as well.

    Returns:
      Token ids, int32.

    >>> import jax.numpy as jnp
    >>> logits = jnp.log(jnp.asarray([[0.5], [0.2], [0.3]]))
    >>> [int(choose_tokens(logits, jnp.asarray([u]), temperature=1.0)[0]) for u in (0.4, 0.6, 0.8)]
    [0, 1, 2]
    >>> int(choose_tokens(logits, jnp.asarray([0.7]), temperature=1.0, top_k=2)[0])
    2
    """
    if temperature == 0:
        return _best(logits)
    scaled_VB = logits / temperature
    weights_VB = jnp.exp(scaled_VB - jnp.max(scaled_VB, axis=0, keepdims=True))
    if top_k:
        weights_VB = _keep(weights_VB, jnp.ones_like, jnp.full(uniforms.shape, top_k))
    if top_p < 1:
        weights_VB = _keep(weights_VB, lambda kept: kept, top_p * jnp.sum(weights_VB, axis=0))
    return _draw(weights_VB, uniforms)


def _best(logits_VB: Array) -> Array:
    """The first of the highest logits; two plain reductions, which CPUs do faster than argmax."""
    tokens_V1 = jnp.arange(logits_VB.shape[0], dtype=jnp.int32)[:, None]
    is_best_VB = logits_VB == jnp.max(logits_VB, axis=0, keepdims=True)
    return jnp.min(jnp.where(is_best_VB, tokens_V1, logits_VB.shape[0] - 1), axis=0)


def _keep(weights_VB: Array, measure: Callable[[Array], Array], goal_B: Array) -> Array:
    """Zeroes weights below the highest threshold at which what is kept still measures `goal`."""
    measures_VB = measure(weights_VB)
    goal_B = goal_B.astype(jnp.float32)

    def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low_B, high_B = bounds
        middle_B = low_B + (high_B - low_B) // 2
        threshold_1B = jax.lax.bitcast_convert_type(middle_B, jnp.float32)[None]
        reached_B = jnp.sum(jnp.where(weights_VB >= threshold_1B, measures_VB, 0), axis=0)
        enough_B = reached_B >= goal_B
        return jnp.where(enough_B, middle_B, low_B), jnp.where(enough_B, high_B, middle_B)

    # Weights lie in [0, 1]: at the low bound everything is kept, at the high bound nothing.
    low_B = jnp.zeros(goal_B.shape, jnp.int32)
    high_B = jnp.full(goal_B.shape, _BITS_ABOVE_ONE, jnp.int32)
    low_B, _ = jax.lax.fori_loop(0, _BISECTIONS, halve, (low_B, high_B))
    threshold_1B = jax.lax.bitcast_convert_type(low_B, jnp.float32)[None]
    return jnp.where(weights_VB >= threshold_1B, weights_VB, 0)


def _draw(weights_VB: Array, uniforms_B: Array) -> Array:
    """The first token at which the cumulated weights exceed uniform * total, block by block."""
    padding = -weights_VB.shape[0] % _BLOCK
    padded_VB = jnp.pad(weights_VB, ((0, padding), (0, 0)))
    blocks_CWB = padded_VB.reshape(-1, _BLOCK, padded_VB.shape[1])
    cumulated_CB = jnp.cumsum(jnp.sum(blocks_CWB, axis=1), axis=0)
    target_B = uniforms_B * _BELOW_ONE * cumulated_CB[-1]
    block_B = jnp.sum(cumulated_CB <= target_B[None], axis=0)
    rows_B = jnp.arange(weights_VB.shape[1])
    before_B = jnp.where(block_B > 0, cumulated_CB[block_B - 1, rows_B], 0)
    inside_BW = blocks_CWB[block_B, :, rows_B]
    within_BW = jnp.cumsum(inside_BW, axis=1) <= (target_B - before_B)[:, None]
    # A block's sum and its cumulated weights can differ in the last bit: stay where weight is.
    last_B = _BLOCK - 1 - jnp.argmax(inside_BW[:, ::-1] > 0, axis=1)
    entry_B = jnp.minimum(jnp.sum(within_BW, axis=1), last_B)
    return (block_B * _BLOCK + entry_B).astype(jnp.int32)
