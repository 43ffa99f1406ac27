r"""Scores to token weights, and the controls that tell which token from how much.

A score s in [0, 1] says how safe a token is (`core_jax.contrast`); a weight says how much it counts
in a preference loss. `WeightFunction` makes one of the other. `WeightControl` replaces the weights
by ones that keep less and less of them: the same weights on other tokens of the response
(SHUFFLED), their mean alone (CONSTANT), random weights of that mean (RANDOM), nothing at all
(UNIFORM: DPO). A loss whose choice of tokens matters beats the first three, and not only UNIFORM:
weights below 1 also soften the push on a whole response, which alone changes what is learned.

Dimension key: B responses (any number of dimensions, none included), T tokens.
"""

import dataclasses
import enum
import math

import jax
import jax.numpy as jnp

from core_jax.arrays import Array, Bool, Float, Key
from core_jax.errors import ConfigError
from core_jax.preference import weighted_mean


class WeightFunction(enum.Enum):
    """How a score becomes a weight in [0, 1]; the lower the score, the higher the weight."""

    ONE_MINUS = "one_minus"  # 1 - s
    POWER = "power"  # (1 - s)^power
    THRESHOLD = "threshold"  # 1 where s < threshold, else 0
    RANK = "rank"  # 1 for the response's lowest score down to 0 for its highest, in equal steps
    TOP_K = "top_k"  # 1 for a share of the response's tokens, those of the lowest scores, else 0


class WeightControl(enum.Enum):
    """What is put in the place of the weights; all but NONE are controls of an experiment."""

    NONE = "none"  # nothing: the weights themselves
    UNIFORM = "uniform"  # 1 for every token
    SHUFFLED = "shuffled"  # the response's weights, each on a random token of it
    CONSTANT = "constant"  # the response's mean weight for each of its tokens
    RANDOM = "random"  # uniform draws, scaled to the response's mean weight


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightConfig:
    """Which weights the tokens of a response get."""

    function: WeightFunction = WeightFunction.ONE_MINUS
    """How a score becomes a weight (one_minus is that of arXiv 2411.19943)."""
    power: float = 1.0
    """Exponent of the function power; above 1 it favours the most critical tokens."""
    threshold: float = 0.5
    """Score below which the function threshold counts a token."""
    top_share: float = 0.1
    """Share of a response's tokens that the function top_k counts; always at least one token."""
    control: WeightControl = WeightControl.NONE
    """What is put in the place of the weights, for comparison."""

    def __post_init__(self) -> None:
        """Checks every field on its own."""
        if not 0.0 < self.power < math.inf:
            raise ConfigError(
                f"power of the token weights is {self.power:g}, expected a positive finite number; "
                "for weights of one set control to uniform"
            )
        if not 0.0 < self.threshold <= 1.0:
            raise ConfigError(
                f"threshold of the token weights is {self.threshold:g}, expected a score in "
                "(0, 1]: no score is below 0, so nothing would count; set 0.5, say"
            )
        if not 0.0 < self.top_share <= 1.0:
            raise ConfigError(
                f"top_share of the token weights is {self.top_share:g}, expected a share in "
                "(0, 1]; set 0.1, say"
            )


def token_weights(
    scores: Float[Array, "*B T"],
    *,
    where: Bool[Array, "*B T"],
    config: WeightConfig,
    key: Key[Array, ""] | None = None,
) -> Float[Array, "*B T"]:
    r"""Weights of the tokens of each response from their scores.

    With n tokens that count, and r of them more critical than token t (a lower score, or the same
    score and an earlier place), the functions are

    .. math:: 1 - s_t, \quad (1 - s_t)^p, \quad [s_t < \theta], \quad \frac{n - 1 - r}{n - 1}, \quad
       [r < \max(1, \lfloor \kappa n + 1/2 \rfloor)]

    and a single token has the rank weight 1. Mean, ranks, shuffling and draws are those of each
    response by itself, over the tokens that count. Random weights are scaled and not clipped: some
    may be above 1.

    Args:
      scores: s, in [0, 1]; rounding above 1 gives the weight 0. What masked places hold is not
        read, and no gradient passes.
      where: which tokens count.
      config: function and control.
      key: randomness of the controls shuffled and random, which need it. One key serves a whole
        batch; map over keys for draws that do not depend on what an example is batched with.

    Returns:
      Weights, float32; 0 where masked.

    Raises:
      ConfigError: the control is shuffled or random and there is no key.

    >>> import jax.numpy as jnp
    >>> scores = jnp.asarray([0.75, 0.25, 0.5, 0.0])
    >>> where = jnp.asarray([True, True, True, False])
    >>> token_weights(scores, where=where, config=WeightConfig()).tolist()
    [0.25, 0.75, 0.5, 0.0]
    >>> rank = WeightConfig(function=WeightFunction.RANK)
    >>> token_weights(scores, where=where, config=rank).tolist()
    [0.0, 1.0, 0.5, 0.0]
    >>> constant = WeightConfig(control=WeightControl.CONSTANT)
    >>> token_weights(scores, where=where, config=constant).tolist()
    [0.5, 0.5, 0.5, 0.0]
    """
    scores_BT = jax.lax.stop_gradient(jnp.where(where, scores.astype(jnp.float32), 1.0))
    weights_BT = _weights(scores_BT, where, config)
    control = config.control
    if control is WeightControl.UNIFORM:
        weights_BT = jnp.ones_like(weights_BT)
    if control is WeightControl.CONSTANT:
        weights_BT = jnp.broadcast_to(_means(weights_BT, where), weights_BT.shape)
    if control in (WeightControl.SHUFFLED, WeightControl.RANDOM):
        if key is None:
            raise ConfigError(
                f"the token weights' control {control.value!r} draws at random and got no key; "
                "hand a key to token_weights, or set another control"
            )
        draws_BT = 1.0 - jax.random.uniform(key, weights_BT.shape)  # in (0, 1]: no mean is 0
        if control is WeightControl.SHUFFLED:
            weights_BT = _shuffled(weights_BT, draws_BT, where)
        else:
            weights_BT = draws_BT * (_means(weights_BT, where) / _safe_means(draws_BT, where))
    return jnp.where(where, weights_BT, 0.0)


def _weights(scores: Array, where: Array, config: WeightConfig) -> Array:
    """The function of the config; what it gives masked places is left to the caller."""
    # Scores from exp(log s) may exceed 1 by rounding, and a negative base has no power.
    critical_BT = jnp.maximum(1.0 - scores, 0.0)
    num_tokens_B1 = jnp.sum(where, axis=-1, keepdims=True, dtype=jnp.float32)
    match config.function:
        case WeightFunction.ONE_MINUS:
            return critical_BT
        case WeightFunction.POWER:
            return critical_BT**config.power
        case WeightFunction.THRESHOLD:
            return (scores < config.threshold).astype(jnp.float32)
        case WeightFunction.RANK:
            steps_B1 = jnp.maximum(num_tokens_B1 - 1.0, 1.0)
            return 1.0 - _ranks(scores, where) / steps_B1
        case WeightFunction.TOP_K:
            top_B1 = jnp.maximum(jnp.floor(config.top_share * num_tokens_B1 + 0.5), 1.0)
            return (_ranks(scores, where) < top_B1).astype(jnp.float32)


def _order(values: Array, where: Array) -> Array:
    """Places of each response from its lowest value to its highest, then the masked places."""
    return jnp.argsort(jnp.where(where, values, jnp.inf), axis=-1, stable=True)


def _ranks(values: Array, where: Array) -> Array:
    """How many tokens of its response are below each token; earlier ones among equals, float32."""
    return jnp.argsort(_order(values, where), axis=-1).astype(jnp.float32)


def _shuffled(weights: Array, draws: Array, where: Array) -> Array:
    """The n-th token of a response gets the weight of the token whose draw is the n-th lowest."""
    nth_BT = jnp.maximum(jnp.cumsum(where, axis=-1, dtype=jnp.int32) - 1, 0)
    source_BT = jnp.take_along_axis(_order(draws, where), nth_BT, axis=-1)
    return jnp.take_along_axis(weights, source_BT, axis=-1)


def _means(values: Array, where: Array) -> Array:
    """Mean over the tokens of each response, [*B, 1]; 0 without tokens."""
    return weighted_mean(values, where=where)[..., None]


def _safe_means(values: Array, where: Array) -> Array:
    """Like `_means`, 1 without tokens."""
    return jnp.where(jnp.any(where, axis=-1, keepdims=True), _means(values, where), 1.0)
