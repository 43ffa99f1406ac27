r"""Contrastive scores: how a model of good and a model of bad examples together judge each token.

Contrastive estimation (Lin et al., arXiv 2411.19943, Eq. 1) reads two models, one trained on right
and one on wrong responses, and asks where they part: a token that the positive model finds much
less likely than the negative one has a score near 0 and is *critical*, one that both would write
has a score near 1. The scores become weights of a preference loss in `core_jax.token_weights`.

Dimension key: B leading dimensions, T tokens, C tokens of a block, D hidden width, V classes.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from core_jax.arrays import Array, Bool, Float, Int, PyTree
from core_jax.errors import ConfigError
from core_jax.losses import head_logits, map_token_blocks


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class ContrastScores:
    """How two models judged each target; every field is float32 and has the targets' shape."""

    log_scores: PyTree
    """log s, in nats, at most 0: the lower, the more critical is the target."""
    positive: PyTree
    """Log-probability of the target under the positive model, in nats."""
    negative: PyTree
    """Log-probability of the target under the negative model, in nats."""


def contrast_scores(
    positive_logits: Float[Array, "*dims V"],
    negative_logits: Float[Array, "*dims V"],
    targets: Int[Array, "*dims"],
    *,
    beta: float,
    legal: Bool[Array, "*dims V"] | None = None,
) -> ContrastScores:
    r"""Contrastive estimation of each target (Lin et al., arXiv 2411.19943, Eq. 1).

    .. math:: \log s = (1 + \beta) \log P_p(y) - \beta \log P_n(y) - \log Z, \qquad
       Z = \sum_v P_p(v)^{1 + \beta} P_n(v)^{-\beta}

    so that s is the softmax of :math:`(1 + \beta) z_p - \beta z_n`: what normalises each model is
    the same for all classes and cancels, which is why logits serve as well as log-probabilities.
    At beta = 0, s is the probability under the positive model. (The paper: beta = 1.)

    Args:
      positive_logits: scores of the positive model; computed in float32.
      negative_logits: scores of the negative model.
      targets: class index in [0, V).
      beta: how strongly the negative model is held against the positive one; a number, not traced.
      legal: which classes may be written here; only they count, in Z as in both probabilities.
        None: all. An illegal target has -inf everywhere, and so has a place where nothing is legal.

    Returns:
      The scores.

    Raises:
      ConfigError: beta is negative or not finite.

    >>> import jax.numpy as jnp
    >>> from math import isclose, log
    >>> positive, negative = jnp.asarray([0.6, 0.3, 0.1]), jnp.asarray([0.2, 0.6, 0.2])
    >>> scores = contrast_scores(jnp.log(positive), jnp.log(negative), jnp.asarray(1), beta=1.0)
    >>> z = 0.6**2 / 0.2 + 0.3**2 / 0.6 + 0.1**2 / 0.2
    >>> isclose(float(scores.log_scores), log(0.3**2 / 0.6 / z), rel_tol=1e-6)
    True
    >>> isclose(float(scores.positive), log(0.3), rel_tol=1e-6)
    True
    """
    check_contrast(beta)
    positive_BV, negative_BV = (
        logits.astype(jnp.float32) for logits in (positive_logits, negative_logits)
    )
    contrast_BV = (1.0 + beta) * positive_BV - beta * negative_BV  # Eq. 1, up to log Z

    def picked(logits_BV: Array) -> Array:
        if legal is not None:
            logits_BV = jnp.where(legal, logits_BV, -jnp.inf)
        value_B = jnp.take_along_axis(logits_BV, targets[..., None], axis=-1)[..., 0]
        log_z_B = jax.nn.logsumexp(logits_BV, axis=-1)
        # An illegal target is -inf, also where log Z is: there the difference would be NaN.
        return jnp.where(value_B == -jnp.inf, -jnp.inf, value_B - log_z_B)

    return ContrastScores(
        log_scores=picked(contrast_BV),
        positive=picked(positive_BV),
        negative=picked(negative_BV),
    )


def chunked_contrast_scores(
    positive_hidden: Float[Array, "*lead T D"],
    negative_hidden: Float[Array, "*lead T D"],
    positive_head: Float[Array, "D V"],
    negative_head: Float[Array, "D V"],
    targets: Int[Array, "*lead T"],
    *,
    chunk: int,
    beta: float,
) -> ContrastScores:
    """`contrast_scores` of `hidden @ head` of both models that never holds all tokens' logits.

    The logits of `chunk` tokens of every row exist at a time, one array per model and one of their
    contrast. Operands of the products have the dtype of the hidden states; sums are float32.

    Args:
      positive_hidden: the last hidden states of the positive model.
      negative_hidden: those of the negative model.
      positive_head: the output matrix of the positive model.
      negative_head: that of the negative model; the same array where the two share it.
      targets: class index in [0, V) of each token.
      chunk: tokens of a row per block; T need not be a multiple.
      beta: as in `contrast_scores`.

    Returns:
      The scores.

    Raises:
      ConfigError: `chunk` is not positive; beta is negative or not finite.

    >>> import jax.numpy as jnp
    >>> positive = jnp.log(jnp.asarray([[1.0, 3.0], [1.0, 1.0], [4.0, 1.0]]))
    >>> negative = jnp.log(jnp.asarray([[1.0, 1.0], [1.0, 3.0], [1.0, 2.0]]))
    >>> head, targets = jnp.eye(2), jnp.asarray([1, 0, 1])
    >>> scores = chunked_contrast_scores(
    ...     positive, negative, head, head, targets, chunk=2, beta=1.0
    ... )
    >>> expected = [9 / (9 + 1), 1 / (1 + 1 / 3), (1 / 2) / (1 / 2 + 16)]
    >>> [round(float(jnp.exp(s)) / e, 5) for s, e in zip(scores.log_scores, expected)]
    [1.0, 1.0, 1.0]
    """
    check_contrast(beta)

    def score(positive_BCD: Array, negative_BCD: Array, targets_BC: Array) -> ContrastScores:
        return contrast_scores(
            head_logits(positive_BCD, positive_head),
            head_logits(negative_BCD, negative_head),
            targets_BC,
            beta=beta,
        )

    parts = positive_hidden, negative_hidden, targets
    return map_token_blocks(score, parts, token_dim=targets.ndim - 1, chunk=chunk)


def check_contrast(beta: float) -> None:
    """Raises ConfigError unless beta is a strength of contrast: finite, 0 or more."""
    if not 0.0 <= beta < math.inf:
        raise ConfigError(
            f"beta of the contrastive scores is {beta:g}, expected a finite number, 0 or more: a "
            "negative one would call tokens critical that the positive model prefers; set 1 (the "
            "paper's), or 0 for the positive model's own probabilities"
        )
