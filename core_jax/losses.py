"""Token log-probabilities and cross-entropy: functions of arrays, per-token values out.

Dimension key: B leading dimensions, T tokens, D and E hidden widths, V classes, N blocks, C tokens
of a block.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from core_jax.arrays import Array, Bool, Float, Int, PyTree
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

    def score(hidden_BCD: Array, targets_BC: Array) -> TokenScores:
        return _scores(hidden_BCD, targets_BC, head, with_entropy)

    return map_token_blocks(score, (hidden, targets), token_dim=targets.ndim - 1, chunk=chunk)


def chunked_token_kl(
    reference_hidden: Float[Array, "*lead T E"],
    reference_head: Float[Array, "E V"],
    hidden: Float[Array, "*lead T D"],
    head: Float[Array, "D V"],
    *,
    chunk: int,
) -> Float[Array, "*lead T"]:
    r"""Divergence of a model from a reference over all classes, per token and block by block.

    .. math:: \mathrm{KL}(p_{ref} \| p)
       = \sum_v p_{ref}(v) \left(\log p_{ref}(v) - \log p(v)\right)

    No gradient reaches the reference. Memory, precision and errors are those of
    `chunked_token_scores`; here the logits of both models exist for a block at a time.

    Args:
      reference_hidden: the last hidden states of the reference model.
      reference_head: its output matrix.
      hidden: the last hidden states of the model; its width may be another.
      head: its output matrix, of the same classes.
      chunk: tokens of a row per block; T need not be a multiple.

    Returns:
      Divergences in nats, float32; exactly 0 where both models give the same logits.

    >>> import jax.numpy as jnp
    >>> from math import isclose, log
    >>> reference, hidden = jnp.log(jnp.asarray([[1.0, 3.0]])), jnp.log(jnp.asarray([[1.0, 1.0]]))
    >>> value = chunked_token_kl(reference, jnp.eye(2), hidden, jnp.eye(2), chunk=1)
    >>> isclose(float(value[0]), log(2 / 4) / 4 + 3 * log(6 / 4) / 4, rel_tol=1e-5)
    True
    """
    reference_hidden = jax.lax.stop_gradient(reference_hidden)
    reference_head = jax.lax.stop_gradient(reference_head)

    def divergence(reference_BCE: Array, hidden_BCD: Array) -> Array:
        expected_BCV = jax.nn.log_softmax(head_logits(reference_BCE, reference_head), axis=-1)
        log_probs_BCV = jax.nn.log_softmax(head_logits(hidden_BCD, head), axis=-1)
        return jnp.sum(jnp.exp(expected_BCV) * (expected_BCV - log_probs_BCV), axis=-1)

    parts = reference_hidden, hidden
    return map_token_blocks(divergence, parts, token_dim=hidden.ndim - 2, chunk=chunk)


def map_token_blocks(
    function: Callable[..., PyTree], parts: tuple[Array, ...], *, token_dim: int, chunk: int
) -> PyTree:
    """Applies a function to blocks of tokens in turn: what all chunked functions here stand on.

    Its inner values exist for one block at a time, in the backward pass too, where they are
    computed again.

    Args:
      function: gets one block of each of `parts`, [*lead, C, ...], and returns arrays
        [*lead, C, ...]. The last block is filled up with zeros, whose results are dropped.
      parts: arrays [*lead, T, ...].
      token_dim: the dimension of T, the number of leading dimensions.
      chunk: most tokens of a row per block; T need not be a multiple. Blocks are of one size C, as
        even as can be.

    Returns:
      What the function returns, [*lead, T, ...].

    Raises:
      ConfigError: `chunk` is not positive.

    >>> import jax.numpy as jnp
    >>> rows = jnp.arange(5.0)
    >>> map_token_blocks(lambda block: block**2, (rows,), token_dim=0, chunk=2).tolist()
    [0.0, 1.0, 4.0, 9.0, 16.0]
    """
    if chunk < 1:
        raise ConfigError(
            f"chunk is {chunk}; it is the number of tokens whose logits exist at a time, so it "
            "must be at least 1 (128 to 1024 are usual)"
        )
    length = parts[0].shape[token_dim]
    num_blocks = max(1, -(-length // chunk))
    chunk = max(1, -(-length // num_blocks))
    padding = num_blocks * chunk - length

    def blocks(values: Array) -> Array:
        """[*lead, T, ...] -> [N, *lead, C, ...]."""
        widths = [(0, padding if dim == token_dim else 0) for dim in range(values.ndim)]
        shape = (*values.shape[:token_dim], -1, chunk, *values.shape[token_dim + 1 :])
        return jnp.moveaxis(jnp.pad(values, widths).reshape(shape), token_dim, 0)

    def joined(values: Array) -> Array:
        """[N, *lead, C, ...] -> [*lead, T, ...]."""
        rows = jnp.moveaxis(values, 0, token_dim)
        shape = (*rows.shape[:token_dim], -1, *rows.shape[token_dim + 2 :])
        return jax.lax.slice_in_dim(rows.reshape(shape), 0, length, axis=token_dim)

    def step(_: None, block: tuple[Array, ...]) -> tuple[None, PyTree]:
        return None, function(*block)

    inputs = tuple(blocks(values) for values in parts)
    _, results = jax.lax.scan(jax.checkpoint(step, prevent_cse=False), None, inputs)
    return jax.tree.map(joined, results)


def head_logits(
    hidden: Float[Array, "*dims D"], head: Float[Array, "D V"]
) -> Float[Array, "*dims V"]:
    """Logits in float32, from a product of operands in the dtype of `hidden`.

    >>> import jax.numpy as jnp
    >>> head_logits(jnp.asarray([1.0, 2.0]), jnp.asarray([[1.0, 0.5], [3.0, 0.0]])).tolist()
    [7.0, 0.5]
    """
    return jnp.matmul(hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32)


def is_top(
    logits: Float[Array, "*dims V"],
    picked: Float[Array, "*dims 1"],
    targets: Int[Array, "*dims"],
) -> Bool[Array, "*dims"]:
    """Whether the target's logit, `picked`, is larger than every other; a tie is not larger.

    >>> import jax.numpy as jnp
    >>> logits = jnp.asarray([[1.0, 3.0], [2.0, 2.0]])
    >>> is_top(logits, logits[:, 1:], jnp.asarray([1, 1])).tolist()
    [True, False]
    """
    # Any of bits, and not their sum: counting takes as many integers as there are logits.
    classes = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1)
    is_other = classes != targets[..., None]
    return ~jnp.any((logits >= picked) & is_other, axis=-1)


def _scores(
    hidden: Float[Array, "*lead C D"],
    targets: Int[Array, "*lead C"],
    head: Float[Array, "D V"],
    with_entropy: bool,
) -> TokenScores:
    """The scores of one block, whose logits are held whole."""
    logits = head_logits(hidden, head)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)
    log_total = jax.nn.logsumexp(logits, axis=-1)
    entropies = None
    if with_entropy:
        entropies = log_total - jnp.sum(jax.nn.softmax(logits, axis=-1) * logits, axis=-1)
    return TokenScores(
        log_probs=picked[..., 0] - log_total,
        is_top=is_top(logits, picked, targets),
        entropies=entropies,
    )
