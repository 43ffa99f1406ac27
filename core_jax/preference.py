r"""The weighted core of all preference losses: from token log-ratios to margins of pairs.

Everything starts from per-token log-ratios :math:`\delta_t = \log\pi(y_t) - \log\pi_{ref}(y_t)`
(`log_ratios`). `weighted_sum` makes of them what a loss calls the log-ratio of a response,
:math:`\Delta = \sum_t a_t \delta_t`. Weights of one, the default, give the published sequence
losses; other weights give token-weighted ones. `margins` is the difference between the responses of
a pair, :math:`h = \Delta_w - \Delta_l`, and `position_margins` that of single positions.

Conventions of the whole family, which `core_jax.preference_pairs` (against a reference),
`core_jax.preference_likelihood` and `core_jax.preference_groups` share:

- `where` says which tokens count: a pair (chosen, rejected), as `weights` is. What masked places
  hold, infinities and NaN included, reaches neither value nor gradient.
- The result has one value per example, in nats, float32 whatever the inputs; callers reduce.
- A response without tokens has :math:`\Delta = 0` and no gradient. The loss of a pair of two such
  responses is a constant (log 2 for `dpo`), so leave padded examples out of the mean.

The papers call the chosen response w (winner) and the rejected one l (loser).

Dimension key: B examples (any number of dimensions, none included), T tokens (of the chosen
response), U tokens of the rejected response.
"""

import jax
import jax.numpy as jnp

from core_jax.arrays import Array, Bool, Float
from core_jax.errors import ConfigError

PairMask = tuple[Bool[Array, "*B T"], Bool[Array, "*B U"]]
"""Which tokens count, of the chosen and of the rejected response."""

PairWeights = tuple[Float[Array, "*B T"], Float[Array, "*B U"]] | None
"""Weights of the tokens of the chosen and of the rejected response; None: all one."""


def log_ratios(
    policy: Float[Array, "*B T"], reference: Float[Array, "*B T"], *, where: Bool[Array, "*B T"]
) -> Float[Array, "*B T"]:
    r"""Log-ratio of each token, zero where masked; no gradient reaches the reference.

    .. math:: \delta_t = \log \pi(y_t) - \log \pi_{ref}(y_t)

    Args:
      policy: log-probabilities of the tokens under the trained model, in nats.
      reference: the same under the reference model.
      where: which tokens count.

    Returns:
      Log-ratios in nats, float32.

    >>> import jax.numpy as jnp
    >>> from math import isclose, log
    >>> policy, reference = jnp.log(jnp.asarray([0.5, 0.0])), jnp.log(jnp.asarray([0.25, 0.0]))
    >>> first, second = log_ratios(policy, reference, where=jnp.asarray([True, False]))
    >>> isclose(float(first), log(0.5 / 0.25), rel_tol=1e-6), float(second)
    (True, 0.0)
    """
    reference = jax.lax.stop_gradient(reference)
    return _masked(policy, where) - _masked(reference, where)


def weighted_sum(
    values: Float[Array, "*B T"],
    *,
    where: Bool[Array, "*B T"],
    weights: Float[Array, "*B T"] | None = None,
) -> Float[Array, "*B"]:
    r"""Weighted sum over the tokens of each response: the core that all losses share.

    .. math:: \Delta = \sum_{t: where_t} a_t \delta_t

    Args:
      values: one number per token: log-ratios, or log-probabilities for losses without reference.
      where: which tokens count.
      weights: a_t. None: all one. They are not normalised, and gradients pass through them: stop
        those of a scorer that is not to be trained.

    Returns:
      Sums, float32.

    >>> import jax.numpy as jnp
    >>> weights = jnp.asarray([0.5, 2.0, 9.0])
    >>> where = jnp.asarray([True, True, False])
    >>> float(weighted_sum(jnp.asarray([3.0, 5.0, 7.0]), where=where, weights=weights)) == (
    ...     0.5 * 3 + 2 * 5
    ... )
    True
    """
    values_BT = _masked(values, where)
    if weights is not None:
        values_BT = values_BT * _masked(weights, where)
    return jnp.sum(values_BT, axis=-1)


def weighted_mean(
    values: Float[Array, "*B T"],
    *,
    where: Bool[Array, "*B T"],
    weights: Float[Array, "*B T"] | None = None,
) -> Float[Array, "*B"]:
    r"""Like `weighted_sum`, divided by the number of tokens (not by the sum of the weights).

    .. math:: \frac{1}{|y|} \sum_{t: where_t} a_t \delta_t

    Args:
      values: one number per token.
      where: which tokens count; a response without any has the mean 0.
      weights: a_t. None: all one.

    Returns:
      Means, float32.

    >>> import jax.numpy as jnp
    >>> weights = jnp.asarray([0.5, 2.0, 9.0])
    >>> where = jnp.asarray([True, True, False])
    >>> float(weighted_mean(jnp.asarray([3.0, 5.0, 7.0]), where=where, weights=weights)) == (
    ...     (0.5 * 3 + 2 * 5) / 2
    ... )
    True
    """
    num_tokens_B = jnp.sum(where, axis=-1, dtype=jnp.float32)
    return weighted_sum(values, where=where, weights=weights) / jnp.maximum(num_tokens_B, 1.0)


def margins(
    chosen: Float[Array, "*B T"],
    rejected: Float[Array, "*B U"],
    *,
    where: PairMask,
    weights: PairWeights = None,
) -> Float[Array, "*B"]:
    r"""Margin of each pair: the difference between the weighted sums of its two responses.

    .. math:: h = \sum_t a_t \delta^w_t - \sum_u b_u \delta^l_u

    Args:
      chosen: log-ratios of the tokens of the chosen response, in nats.
      rejected: those of the rejected response.
      where: which tokens count, of each.
      weights: (a, b). None: all one.

    Returns:
      Margins in nats, float32.

    >>> import jax.numpy as jnp
    >>> chosen, rejected = jnp.asarray([3.0, 5.0]), jnp.asarray([2.0])
    >>> where = (jnp.asarray([True, True]), jnp.asarray([True]))
    >>> weights = (jnp.asarray([1.0, 0.5]), jnp.asarray([0.25]))
    >>> float(margins(chosen, rejected, where=where, weights=weights)) == (3 + 0.5 * 5) - 0.25 * 2
    True
    """
    chosen_weights, rejected_weights = (None, None) if weights is None else weights
    chosen_B = weighted_sum(chosen, where=where[0], weights=chosen_weights)
    return chosen_B - weighted_sum(rejected, where=where[1], weights=rejected_weights)


def mean_margins(
    chosen: Float[Array, "*B T"],
    rejected: Float[Array, "*B U"],
    *,
    where: PairMask,
    weights: PairWeights = None,
) -> Float[Array, "*B"]:
    r"""Like `margins`, of means over tokens: the margin does not grow with the length.

    .. math:: \bar h = \frac{1}{|y_w|}\sum_t a_t\delta^w_t - \frac{1}{|y_l|}\sum_u b_u\delta^l_u

    Args:
      chosen: log-ratios, or log-probabilities, of the tokens of the chosen response, in nats.
      rejected: those of the rejected response.
      where: which tokens count, of each.
      weights: (a, b). None: all one.

    Returns:
      Margins in nats per token, float32.

    >>> import jax.numpy as jnp
    >>> chosen, rejected = jnp.asarray([3.0, 5.0]), jnp.asarray([2.0])
    >>> where = (jnp.asarray([True, True]), jnp.asarray([True]))
    >>> float(mean_margins(chosen, rejected, where=where)) == (3 + 5) / 2 - 2 / 1
    True
    """
    chosen_weights, rejected_weights = (None, None) if weights is None else weights
    chosen_B = weighted_mean(chosen, where=where[0], weights=chosen_weights)
    return chosen_B - weighted_mean(rejected, where=where[1], weights=rejected_weights)


def position_margins(
    chosen: Float[Array, "*B T"],
    rejected: Float[Array, "*B T"],
    *,
    where: tuple[Bool[Array, "*B T"], Bool[Array, "*B T"]],
    weights: tuple[Float[Array, "*B T"], Float[Array, "*B T"]] | None = None,
) -> Float[Array, "*B T"]:
    r"""Margin of each position: token t of the chosen against token t of the rejected response.

    .. math:: h_t = a_t \delta^w_t - b_t \delta^l_t

    Args:
      chosen: log-ratios of the tokens of the chosen response, in nats.
      rejected: those of the rejected response, padded to the same length.
      where: which tokens count, of each; a masked one contributes 0 to its position.
      weights: (a, b). None: all one.

    Returns:
      Margins in nats, float32; summed over T they are `margins`.

    >>> import jax.numpy as jnp
    >>> chosen, rejected = jnp.asarray([3.0, 5.0]), jnp.asarray([2.0, 7.0])
    >>> where = (jnp.asarray([True, True]), jnp.asarray([True, False]))
    >>> weights = (jnp.asarray([1.0, 0.5]), jnp.asarray([0.25, 1.0]))
    >>> position_margins(chosen, rejected, where=where, weights=weights).tolist() == [
    ...     3 - 0.25 * 2, 0.5 * 5
    ... ]
    True
    """
    # A sum over one token is that token, masked and weighted.
    expanded = jax.tree.map(lambda array: array[..., None], (chosen, rejected, where, weights))
    chosen, rejected, where, weights = expanded
    return margins(chosen, rejected, where=where, weights=weights)


def negative_log_sigmoid(values: Float[Array, "*B"]) -> Float[Array, "*B"]:
    r"""Logistic loss of margins, exact to float32 at any size.

    .. math:: -\log \sigma(z) = \log(1 + e^{-z})

    Args:
      values: z.

    Returns:
      Losses in nats, float32, with gradients in [-1, 0].

    >>> import jax.numpy as jnp
    >>> from math import isclose, log
    >>> value = negative_log_sigmoid(jnp.log(jnp.asarray(3.0)))
    >>> isclose(float(value), log(1 + 1 / 3), rel_tol=1e-6)
    True
    >>> negative_log_sigmoid(jnp.asarray([-1e4, 1e4])).tolist()
    [10000.0, 0.0]
    """
    return jax.nn.softplus(-values.astype(jnp.float32))


def check_label_noise(label_noise: float) -> None:
    """Raises ConfigError unless a label's probability of being wrong is in [0, 0.5)."""
    if not 0.0 <= label_noise < 0.5:
        raise ConfigError(
            f"label_noise is {label_noise:g}, expected a probability in [0, 0.5): from 0.5 on the "
            "labels say nothing or the opposite; swap chosen and rejected, or set a smaller one"
        )


def _masked(values: Array, where: Array) -> Array:
    """Values in float32, zero where masked. Selects before any arithmetic, so that NaN stay out."""
    return jnp.where(where, values.astype(jnp.float32), 0.0)
