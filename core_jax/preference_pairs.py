r"""Preference losses over pairs of responses, from log-ratios to a reference model.

All are functions of the margin :math:`h = \Delta_w - \Delta_l` of `core_jax.preference`, whose
conventions on masks, weights, empty responses and results hold here. Arguments that they share:

- `chosen`, `rejected`: log-ratios of the tokens of the two responses, in nats (`log_ratios`);
- `where`: a pair of masks, which tokens count;
- `beta`: inverse temperature of the implicit reward :math:`\beta\Delta`;
- `weights`: a pair of token weights. None: all one, the published losses.

"cDPO" has two meanings in print. Here, `conservative_dpo` is DPO with smoothed labels, which other
projects abbreviate that way; *contrastive* cDPO (arXiv 2411.19943) is token-weighted `dpo`: one for
each chosen token, and one minus its score for each rejected token.

Dimension key: B examples (any number of dimensions), T tokens (of the chosen response), U tokens of
the rejected response.
"""

import jax

from core_jax.arrays import Array, Bool, Float
from core_jax.preference import (
    PairMask,
    PairWeights,
    check_label_noise,
    margins,
    mean_margins,
    negative_log_sigmoid,
    position_margins,
    weighted_mean,
    weighted_sum,
)


def dpo(
    chosen: Float[Array, "*B T"],
    rejected: Float[Array, "*B U"],
    *,
    where: PairMask,
    beta: float,
    weights: PairWeights = None,
) -> Float[Array, "*B"]:
    r"""Direct preference optimisation (Rafailov et al., arXiv 2305.18290, eq. 7).

    .. math:: -\log \sigma(\beta h)

    With token weights (1, 1 - s) it is the sequence form of contrastive cDPO (arXiv 2411.19943).

    Args:
      chosen: log-ratios of the chosen tokens, in nats.
      rejected: log-ratios of the rejected tokens.
      where: which tokens count, of each.
      beta: inverse temperature.
      weights: token weights, of each. None: all one.

    Returns:
      Losses in nats, float32; log 2 where policy and reference agree.

    >>> import jax.numpy as jnp
    >>> from math import exp, isclose, log
    >>> where = (jnp.asarray([True, True]), jnp.asarray([True]))
    >>> value = dpo(jnp.asarray([3.0, 1.0]), jnp.asarray([2.0]), where=where, beta=0.5)
    >>> isclose(float(value), log(1 + exp(-0.5 * (3 + 1 - 2))), rel_tol=1e-6)
    True
    """
    return negative_log_sigmoid(beta * margins(chosen, rejected, where=where, weights=weights))


def dpo_by_position(
    chosen: Float[Array, "*B T"],
    rejected: Float[Array, "*B T"],
    *,
    where: tuple[Bool[Array, "*B T"], Bool[Array, "*B T"]],
    beta: float,
    weights: tuple[Float[Array, "*B T"], Float[Array, "*B T"]] | None = None,
) -> Float[Array, "*B"]:
    r"""DPO of each position by itself, averaged: what contrastive cDPO's released code computes.

    .. math:: \frac{1}{|P|} \sum_{t \in P} -\log\sigma(\beta (a_t\delta^w_t - b_t\delta^l_t))

    P holds the positions where at least one response has a token. The released code of arXiv
    2411.19943 (the paper sums inside the logarithm, as `dpo` does) averages over all T positions of
    the padded batch, prompt included, and each position outside P adds log 2 and no gradient: its
    value is (\|P\| ours + (T - \|P\|) log 2) / T. Ours does not change with the padding.

    Args:
      chosen: log-ratios of the chosen tokens, in nats.
      rejected: log-ratios of the rejected tokens, padded to the same length.
      where: which tokens count, of each.
      beta: inverse temperature.
      weights: token weights, of each. None: all one.

    Returns:
      Losses in nats, float32; 0 where neither response has a token.

    >>> import jax.numpy as jnp
    >>> from math import exp, isclose, log
    >>> where = (jnp.asarray([True, True]), jnp.asarray([True, False]))
    >>> value = dpo_by_position(
    ...     jnp.asarray([3.0, 1.0]), jnp.asarray([2.0, 7.0]), where=where, beta=0.5
    ... )
    >>> expected = (log(1 + exp(-0.5 * (3 - 2))) + log(1 + exp(-0.5 * 1))) / 2
    >>> isclose(float(value), expected, rel_tol=1e-6)
    True
    """
    margins_BT = position_margins(chosen, rejected, where=where, weights=weights)
    return weighted_mean(negative_log_sigmoid(beta * margins_BT), where=where[0] | where[1])


def conservative_dpo(
    chosen: Float[Array, "*B T"],
    rejected: Float[Array, "*B U"],
    *,
    where: PairMask,
    beta: float,
    label_noise: float,
    weights: PairWeights = None,
) -> Float[Array, "*B"]:
    r"""DPO with smoothed labels (Mitchell 2023, "A note on DPO with noisy preferences").

    .. math:: -(1-\epsilon) \log \sigma(\beta h) - \epsilon \log \sigma(-\beta h)

    Least where :math:`\sigma(\beta h) = 1 - \epsilon`, so margins stay finite. Some projects call
    it cDPO; contrastive cDPO is another method. TRL's "sigmoid" no longer has the smoothing; its
    `CPOTrainer` has.

    Args:
      chosen: log-ratios of the chosen tokens, in nats.
      rejected: log-ratios of the rejected tokens.
      where: which tokens count, of each.
      beta: inverse temperature.
      label_noise: epsilon, the share of pairs assumed to be swapped, in [0, 0.5).
      weights: token weights, of each. None: all one.

    Returns:
      Losses in nats, float32.

    Raises:
      ConfigError: label_noise is outside [0, 0.5).

    >>> import jax.numpy as jnp
    >>> from math import exp, isclose, log
    >>> one = jnp.asarray([True])
    >>> value = conservative_dpo(
    ...     jnp.asarray([3.0]), jnp.asarray([1.0]), where=(one, one), beta=0.5, label_noise=0.25
    ... )
    >>> z = 0.5 * (3 - 1)
    >>> isclose(float(value), 0.75 * log(1 + exp(-z)) + 0.25 * log(1 + exp(z)), rel_tol=1e-6)
    True
    """
    check_label_noise(label_noise)
    scaled_B = beta * margins(chosen, rejected, where=where, weights=weights)
    kept_B, swapped_B = negative_log_sigmoid(scaled_B), negative_log_sigmoid(-scaled_B)
    return (1.0 - label_noise) * kept_B + label_noise * swapped_B


def robust_dpo(
    chosen: Float[Array, "*B T"],
    rejected: Float[Array, "*B U"],
    *,
    where: PairMask,
    beta: float,
    label_noise: float,
    weights: PairWeights = None,
) -> Float[Array, "*B"]:
    r"""Robust DPO, rDPO (Chowdhury et al., arXiv 2403.00409): unbiased under swapped labels.

    .. math:: \frac{-(1-\epsilon)\log\sigma(\beta h) + \epsilon\log\sigma(-\beta h)}{1-2\epsilon}

    Its expectation over labels that are swapped with probability epsilon is `dpo` of the clean
    labels. It is not bounded below: it falls without limit as the margin grows.

    Args:
      chosen: log-ratios of the chosen tokens, in nats.
      rejected: log-ratios of the rejected tokens.
      where: which tokens count, of each.
      beta: inverse temperature.
      label_noise: epsilon, the probability that a pair is swapped, in [0, 0.5).
      weights: token weights, of each. None: all one.

    Returns:
      Losses in nats, float32.

    Raises:
      ConfigError: label_noise is outside [0, 0.5).

    >>> import jax.numpy as jnp
    >>> from math import exp, isclose, log
    >>> one = jnp.asarray([True])
    >>> value = robust_dpo(
    ...     jnp.asarray([3.0]), jnp.asarray([1.0]), where=(one, one), beta=0.5, label_noise=0.25
    ... )
    >>> z = 0.5 * (3 - 1)
    >>> expected = (0.75 * log(1 + exp(-z)) - 0.25 * log(1 + exp(z))) / (1 - 2 * 0.25)
    >>> isclose(float(value), expected, rel_tol=1e-5)
    True
    """
    check_label_noise(label_noise)
    scaled_B = beta * margins(chosen, rejected, where=where, weights=weights)
    kept_B, swapped_B = negative_log_sigmoid(scaled_B), negative_log_sigmoid(-scaled_B)
    return ((1.0 - label_noise) * kept_B - label_noise * swapped_B) / (1.0 - 2.0 * label_noise)


def ipo(
    chosen: Float[Array, "*B T"],
    rejected: Float[Array, "*B U"],
    *,
    where: PairMask,
    beta: float,
    weights: PairWeights = None,
) -> Float[Array, "*B"]:
    r"""Identity preference optimisation (Azar et al., arXiv 2310.12036, eq. 17), of summed ratios.

    .. math:: \left(h - \frac{1}{2\beta}\right)^2

    As the paper prints it; TRL divides by the lengths first: `ipo_token_mean`.

    Args:
      chosen: log-ratios of the chosen tokens, in nats.
      rejected: log-ratios of the rejected tokens.
      where: which tokens count, of each.
      beta: the paper's tau; the margin is drawn to 1 / (2 beta).
      weights: token weights, of each. None: all one.

    Returns:
      Losses in nats squared, float32.

    >>> import jax.numpy as jnp
    >>> where = (jnp.asarray([True, True]), jnp.asarray([True]))
    >>> value = ipo(jnp.asarray([3.0, 1.0]), jnp.asarray([2.0]), where=where, beta=0.25)
    >>> float(value) == ((3 + 1 - 2) - 1 / (2 * 0.25)) ** 2
    True
    """
    return (margins(chosen, rejected, where=where, weights=weights) - 0.5 / beta) ** 2


def ipo_token_mean(
    chosen: Float[Array, "*B T"],
    rejected: Float[Array, "*B U"],
    *,
    where: PairMask,
    beta: float,
    weights: PairWeights = None,
) -> Float[Array, "*B"]:
    r"""IPO of means over tokens, which TRL computes after asking the paper's authors.

    .. math:: \left(\bar h - \frac{1}{2\beta}\right)^2

    Args:
      chosen: log-ratios of the chosen tokens, in nats.
      rejected: log-ratios of the rejected tokens.
      where: which tokens count, of each.
      beta: the paper's tau; the margin per token is drawn to 1 / (2 beta).
      weights: token weights, of each. None: all one.

    Returns:
      Losses in nats squared, float32.

    >>> import jax.numpy as jnp
    >>> where = (jnp.asarray([True, True]), jnp.asarray([True]))
    >>> value = ipo_token_mean(jnp.asarray([3.0, 2.0]), jnp.asarray([2.0]), where=where, beta=0.25)
    >>> float(value) == ((3 + 2) / 2 - 2 - 1 / (2 * 0.25)) ** 2
    True
    """
    return (mean_margins(chosen, rejected, where=where, weights=weights) - 0.5 / beta) ** 2


def hinge(
    chosen: Float[Array, "*B T"],
    rejected: Float[Array, "*B U"],
    *,
    where: PairMask,
    beta: float,
    weights: PairWeights = None,
) -> Float[Array, "*B"]:
    r"""Hinge loss: SLiC (Zhao et al., arXiv 2305.10425) in the form of RSO (arXiv 2309.06657).

    .. math:: \max(0, 1 - \beta h)

    Args:
      chosen: log-ratios of the chosen tokens, in nats.
      rejected: log-ratios of the rejected tokens.
      where: which tokens count, of each.
      beta: inverse temperature; a margin of 1 / beta is enough.
      weights: token weights, of each. None: all one.

    Returns:
      Losses, float32.

    >>> import jax.numpy as jnp
    >>> one = jnp.asarray([True])
    >>> value = hinge(jnp.asarray([3.0]), jnp.asarray([2.0]), where=(one, one), beta=0.25)
    >>> float(value) == 1 - 0.25 * (3 - 2)
    True
    """
    return jax.nn.relu(1.0 - beta * margins(chosen, rejected, where=where, weights=weights))


def dpop(
    chosen: Float[Array, "*B T"],
    rejected: Float[Array, "*B U"],
    *,
    where: PairMask,
    beta: float,
    penalty: float,
    weights: PairWeights = None,
) -> Float[Array, "*B"]:
    r"""DPO-Positive (Pal et al., "Smaug", arXiv 2402.13228, eq. 3): the chosen may not sink.

    .. math:: -\log \sigma(\beta (h - \lambda \max(0, -\Delta_w)))

    Args:
      chosen: log-ratios of the chosen tokens, in nats.
      rejected: log-ratios of the rejected tokens.
      where: which tokens count, of each.
      beta: inverse temperature (the paper: 0.3).
      penalty: lambda, for a chosen response less probable than under the reference (the paper: 50).
      weights: token weights, of each, in the penalty too. None: all one.

    Returns:
      Losses in nats, float32; `dpo` where the chosen response is no less probable than before.

    >>> import jax.numpy as jnp
    >>> from math import exp, isclose, log
    >>> one = jnp.asarray([True])
    >>> value = dpop(
    ...     jnp.asarray([-1.0]), jnp.asarray([-3.0]), where=(one, one), beta=0.5, penalty=5.0
    ... )
    >>> isclose(float(value), log(1 + exp(-0.5 * ((-1 + 3) - 5 * 1))), rel_tol=1e-6)
    True
    """
    chosen_weights = None if weights is None else weights[0]
    chosen_B = weighted_sum(chosen, where=where[0], weights=chosen_weights)
    margins_B = margins(chosen, rejected, where=where, weights=weights)
    # Not jnp.maximum, which passes half a gradient at 0: that is where training starts.
    return negative_log_sigmoid(beta * (margins_B - penalty * jax.nn.relu(-chosen_B)))
