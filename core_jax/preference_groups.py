r"""Preference losses beyond pairs: one chosen and several rejected, and single judged responses.

They take log-ratios of tokens, as `core_jax.preference_pairs` does, and follow the conventions of
`core_jax.preference` on masks, weights, empty responses and results.

Dimension key: B examples (any number of dimensions), T tokens (of the chosen response), N rejected
responses of an example, U tokens of a rejected response.
"""

import jax
import jax.numpy as jnp

from core_jax.arrays import Array, Bool, Float
from core_jax.preference import weighted_sum


def softmax_dpo(
    chosen: Float[Array, "*B T"],
    rejected: Float[Array, "*B N U"],
    *,
    where: tuple[Bool[Array, "*B T"], Bool[Array, "*B N U"]],
    is_negative: Bool[Array, "*B N"],
    beta: float,
    weights: tuple[Float[Array, "*B T"], Float[Array, "*B N U"]] | None = None,
) -> Float[Array, "*B"]:
    r"""S-DPO (Chen et al., arXiv 2406.09215): one chosen, many rejected, by softmax.

    .. math:: -\log\sigma\left(-\log\sum_{n} e^{\beta(\Delta_{l_n} - \Delta_w)}\right)

    The sum runs over the negatives that exist. With one it is `dpo`. With none the sum is empty:
    the loss is 0, its limit there, without gradient. Such an example has nothing to prefer against;
    leave it out of the mean if that is not to count as a solved one.

    Args:
      chosen: log-ratios of the chosen tokens, in nats.
      rejected: log-ratios of the rejected tokens.
      where: which tokens count, of the chosen and of each rejected response.
      is_negative: which rejected responses exist. One that exists without any token counts, with a
        log-ratio of 0; one that does not may hold anything.
      beta: inverse temperature (the paper: 1).
      weights: token weights, of the chosen and the rejected. None: all one.

    Returns:
      Losses in nats, float32.

    >>> import jax.numpy as jnp
    >>> from math import exp, isclose, log
    >>> chosen, rejected = jnp.asarray([3.0]), jnp.asarray([[2.0], [1.0], [jnp.nan]])
    >>> value = softmax_dpo(
    ...     chosen,
    ...     rejected,
    ...     where=(jnp.asarray([True]), jnp.asarray([[True], [True], [True]])),
    ...     is_negative=jnp.asarray([True, True, False]),
    ...     beta=0.5,
    ... )
    >>> isclose(float(value), log(1 + exp(0.5 * (2 - 3)) + exp(0.5 * (1 - 3))), rel_tol=1e-6)
    True
    """
    chosen_weights, rejected_weights = (None, None) if weights is None else weights
    where_BNU = where[1] & is_negative[..., None]
    chosen_B = weighted_sum(chosen, where=where[0], weights=chosen_weights)
    rejected_BN = weighted_sum(rejected, where=where_BNU, weights=rejected_weights)
    scaled_BN = beta * (rejected_BN - chosen_B[..., None])
    # The logarithm of an empty sum is -inf, without gradient, and its softplus is 0.
    return jax.nn.softplus(jax.nn.logsumexp(scaled_BN, axis=-1, where=is_negative))


def kto(
    log_ratios: Float[Array, "*B T"],
    is_desirable: Bool[Array, "*B"],
    *,
    where: Bool[Array, "*B T"],
    reference_point: Float[Array, ""],
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    weights: Float[Array, "*B T"] | None = None,
) -> Float[Array, "*B"]:
    r"""Kahneman-Tversky optimisation (Ethayarajh et al., arXiv 2402.01306, eq. 7): no pairs.

    .. math::
       \lambda_D (1 - \sigma(\beta(\Delta - z))) \text{ if desirable, else }
       \lambda_U (1 - \sigma(\beta(z - \Delta))), \qquad z = \max(0, \hat{KL})

    Args:
      log_ratios: log-ratios of the tokens of each response, in nats.
      is_desirable: whether the response was judged good.
      where: which tokens count.
      reference_point: estimate of the KL divergence of policy from reference: the mean, over the
        whole batch on all devices, of `weighted_sum` for mismatched responses (each prompt with the
        response of another). Clamped at 0 here, and no gradient reaches it, as in paper and TRL.
      beta: inverse temperature.
      desirable_weight: lambda_D.
      undesirable_weight: lambda_U.
      weights: token weights. None: all one.

    Returns:
      Losses in [0, lambda], float32. A response without tokens has a constant loss.

    >>> import jax.numpy as jnp
    >>> from math import exp, isclose
    >>> good, bad = kto(
    ...     jnp.asarray([[3.0], [2.0]]),
    ...     jnp.asarray([True, False]),
    ...     where=jnp.asarray([[True], [True]]),
    ...     reference_point=jnp.asarray(1.0),
    ...     beta=0.5,
    ...     undesirable_weight=4.0,
    ... )
    >>> isclose(float(good), 1 - 1 / (1 + exp(-0.5 * (3 - 1))), rel_tol=1e-6)
    True
    >>> isclose(float(bad), 4 * (1 - 1 / (1 + exp(-0.5 * (1 - 2)))), rel_tol=1e-6)
    True
    """
    point = jax.lax.stop_gradient(jnp.maximum(reference_point.astype(jnp.float32), 0.0))
    scaled_B = beta * (weighted_sum(log_ratios, where=where, weights=weights) - point)
    # 1 - sigma(x) = sigma(-x), which keeps its digits where it is small.
    desirable_B = desirable_weight * jax.nn.sigmoid(-scaled_B)
    return jnp.where(is_desirable, desirable_B, undesirable_weight * jax.nn.sigmoid(scaled_B))
