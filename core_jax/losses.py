"""Token log-probabilities and cross-entropy: functions of arrays, per-token values out.

Dimension key: T tokens, D hidden width, V classes, N blocks, C tokens of a block.
"""

import dataclasses

import jax
import jax.numpy as jnp

from core_jax.arrays import Array, Float, Int, PyTree
from core_jax.errors import ConfigError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenScores:
    """How a model scored each target; every field has the shape of the targets."""

    log_probs: PyTree
    """Float32: log-probability of the target in nats."""
    is_top: PyTree
    """Bool: whether the target scored higher than every other class; a tie is not higher."""
    entropies: PyTree = None
    """Float32: entropy of the whole distribution in nats, or None where it was not asked for."""


def token_log_probs(
    logits: Float[Array, "*dims V"], targets: Int[Array, "*dims"]
) -> Float[Array, "*dims"]:
    r"""Log-probability of each target under the softmax of its logits.

    .. math:: \log p(y) = z_y - \log \sum_v e^{z_v}

    Args:
      logits: unnormalised scores; computed in float32.
      targets: class index in [0, V).

    Returns:
      Log-probabilities in nats, float32.

    >>> import jax.numpy as jnp
    >>> from math import isclose, log
    >>> value = token_log_probs(jnp.log(jnp.asarray([[1.0, 3.0]])), jnp.asarray([1]))
    >>> isclose(float(value[0]), log(3 / 4), rel_tol=1e-6)
    True
    """
    logits = logits.astype(jnp.float32)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return picked - jax.nn.logsumexp(logits, axis=-1)


def chunked_token_log_probs(
    hidden: Float[Array, "*lead T D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "*lead T"],
    *,
    chunk: int,
) -> Float[Array, "*lead T"]:
    """`token_log_probs` of `hidden @ head` that never holds the logits of all tokens.

    Arguments, memory and errors are those of `chunked_token_scores`.

    >>> import jax.numpy as jnp
    >>> from math import isclose, log
    >>> hidden = jnp.log(jnp.asarray([[1.0, 3.0], [1.0, 1.0], [5.0, 1.0]]))
    >>> values = chunked_token_log_probs(hidden, jnp.eye(2), jnp.asarray([1, 0, 0]), chunk=2)
    >>> [isclose(float(v), log(p), rel_tol=1e-6) for v, p in zip(values, [3 / 4, 1 / 2, 5 / 6])]
    [True, True, True]
    """
    return chunked_token_scores(hidden, head, targets, chunk=chunk).log_probs


def chunked_token_scores(
    hidden: Float[Array, "*lead T D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "*lead T"],
    *,
    chunk: int,
    with_entropy: bool = False,
) -> TokenScores:
    r"""Log-probabilities of targets from hidden states, block by block.

    .. math:: \log p(y) = z_y - \log \sum_v e^{z_v}, \quad z = h W, \qquad
       H = \log \sum_v e^{z_v} - \sum_v p(v) z_v

    The logits of `chunk` tokens of every row exist at a time, in the backward pass too, where they
    are computed again: memory for them falls from T to `chunk` tokens of a row for one more
    product. Blocks run along T and keep all rows together, so that rows sharded over devices stay
    where they are. Operands of the products have the dtype of `hidden`; sums are float32. The
    gradient of `head` adds up over the blocks in the dtype of `head`: give it in float32.

    Args:
      hidden: the model's last hidden states.
      head: the output matrix.
      targets: class index in [0, V) of each token.
      chunk: tokens of a row per block; T need not be a multiple.
      with_entropy: whether to compute entropies, a third more work on the logits.

    Returns:
      The scores; gradients reach `hidden` and `head` through log-probabilities and entropies.

    Raises:
      ConfigError: `chunk` is not positive.
    """
    if chunk < 1:
        raise ConfigError(
            f"chunk is {chunk}; it is the number of tokens whose logits exist at a time, so it "
            "must be at least 1 (128 to 1024 are usual)"
        )
    length = targets.shape[-1]
    chunk = min(chunk, max(length, 1))
    padding = -length % chunk

    def blocks(values: Array, token_dim: int) -> Array:
        """[*lead, T, ...] -> [N, *lead, C, ...]."""
        widths = [(0, padding if dim == token_dim else 0) for dim in range(values.ndim)]
        shape = (*values.shape[:token_dim], -1, chunk, *values.shape[token_dim + 1 :])
        return jnp.moveaxis(jnp.pad(values, widths).reshape(shape), token_dim, 0)

    def joined(values: Array) -> Array:
        """[N, *lead, C] -> [*lead, T]."""
        rows = jnp.moveaxis(values, 0, -2)
        return rows.reshape(*rows.shape[:-2], -1)[..., :length]

    def score(_: None, block: tuple[Array, Array]) -> tuple[None, TokenScores]:
        return None, _scores(*block, head, with_entropy)

    token_dim = targets.ndim - 1
    parts = blocks(hidden, token_dim), blocks(targets, token_dim)
    _, scores = jax.lax.scan(jax.checkpoint(score, prevent_cse=False), None, parts)
    return jax.tree.map(joined, scores)


def _scores(
    hidden: Float[Array, "*lead C D"],
    targets: Int[Array, "*lead C"],
    head: Float[Array, "D V"],
    with_entropy: bool,
) -> TokenScores:
    """The scores of one block, whose logits are held whole."""
    logits = jnp.matmul(hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)
    log_total = jax.nn.logsumexp(logits, axis=-1)
    entropies = None
    if with_entropy:
        entropies = log_total - jnp.sum(jax.nn.softmax(logits, axis=-1) * logits, axis=-1)
    return TokenScores(
        log_probs=picked[..., 0] - log_total,
        is_top=jnp.sum(logits >= picked, axis=-1) == 1,
        entropies=entropies,
    )
