r"""Preference losses that tell tokens apart: contrastive cDPO, TDPO, TIS-DPO and TGDPO.

All stand on the weighted core of `core_jax.preference`, whose conventions hold here: `chosen` and
`rejected` are log-ratios of tokens in nats, `where` is a pair of masks, one value per example comes
out. Methods that are only a choice of weights are functions that return weights, for any loss of
the family; a step of a response by itself (Step-DPO, arXiv 2406.18629) is `dpo` with a mask of it.

"cDPO" has two meanings in print. Here it is *contrastive* DPO (Lin et al., arXiv 2411.19943), which
weighs the tokens of the rejected response. Other projects abbreviate *conservative* DPO that way,
DPO with smoothed labels: that is `core_jax.preference_pairs.conservative_dpo`.

Dimension key: B examples (any number of dimensions), T tokens (of the chosen response), U tokens of
the rejected response.
"""

import math

import jax
import jax.numpy as jnp

from core_jax.arrays import Array, Float
from core_jax.errors import ConfigError
from core_jax.preference import (
    PairMask,
    PairWeights,
    margins,
    negative_log_sigmoid,
    weighted_sum,
)
from core_jax.preference_pairs import dpo

PairValues = tuple[Float[Array, "*B T"], Float[Array, "*B U"]]
"""One number per token of the chosen and of the rejected response."""


def cdpo(
    chosen: Float[Array, "*B T"],
    rejected: Float[Array, "*B U"],
    rejected_weights: Float[Array, "*B U"],
    *,
    where: PairMask,
    gamma: float,
) -> Float[Array, "*B"]:
    r"""Contrastive DPO (Lin et al., arXiv 2411.19943, section 3.2): the paper's sequence form.

    .. math:: -\log\sigma\left(
       \gamma\sum_t \delta^w_t - \gamma\sum_u (1 - s_u)\,\delta^l_u\right)

    Critical tokens of the rejected response, those of a low score s, are pushed down with full
    force, and tokens that a right answer shares with it hardly at all. The chosen response is not
    weighed, and no length divides. It is `dpo` with weights (1, 1 - s); the form by position of the
    paper's released code is `core_jax.preference_pairs.dpo_by_position` with the same weights.

    Args:
      chosen: log-ratios of the chosen tokens, in nats.
      rejected: log-ratios of the rejected tokens.
      rejected_weights: 1 - s of the rejected tokens, or another function of the scores
        (`core_jax.token_weights`).
      where: which tokens count, of each.
      gamma: inverse temperature, DPO's beta (the paper: 1; its released code: 0.1).

    Returns:
      Losses in nats, float32; log 2 where policy and reference agree.

    >>> import jax.numpy as jnp
    >>> from math import exp, isclose, log
    >>> where = (jnp.asarray([True]), jnp.asarray([True, True]))
    >>> scores = jnp.asarray([0.75, 0.0])
    >>> value = cdpo(
    ...     jnp.asarray([3.0]), jnp.asarray([2.0, 1.0]), 1 - scores, where=where, gamma=0.5
    ... )
    >>> isclose(float(value), log(1 + exp(-0.5 * (3 - (0.25 * 2 + 1)))), rel_tol=1e-6)
    True
    """
    weights = jnp.ones_like(chosen), rejected_weights
    return dpo(chosen, rejected, where=where, beta=gamma, weights=weights)


def tdpo1(
    chosen: Float[Array, "*B T"],
    rejected: Float[Array, "*B U"],
    divergences: PairValues,
    *,
    where: PairMask,
    beta: float,
    weights: PairWeights = None,
) -> Float[Array, "*B"]:
    r"""Token-level DPO, first form (Zeng et al., arXiv 2404.11999): divergences move the margin.

    .. math:: -\log\sigma(\beta(h - (K_l - K_w))), \qquad
       K = \sum_t \mathrm{KL}(\pi_{ref}(\cdot|y_{<t}) \| \pi(\cdot|y_{<t}))

    Gradients reach both divergences: the loss lowers K_l, and raises K_w.

    Args:
      chosen: log-ratios of the chosen tokens, in nats.
      rejected: log-ratios of the rejected tokens.
      divergences: of the reference from the policy over all classes, at each token of the chosen
        and of the rejected response, in nats (`core_jax.losses.chunked_token_kl`).
      where: which tokens count, of each.
      beta: inverse temperature (the paper: 0.1).
      weights: token weights in h, of each. None: all one.

    Returns:
      Losses in nats, float32; log 2 where policy and reference agree.

    >>> import jax.numpy as jnp
    >>> from math import exp, isclose, log
    >>> one = jnp.asarray([True])
    >>> divergences = (jnp.asarray([0.25]), jnp.asarray([0.75]))
    >>> value = tdpo1(
    ...     jnp.asarray([3.0]), jnp.asarray([1.0]), divergences, where=(one, one), beta=0.5
    ... )
    >>> isclose(float(value), log(1 + exp(-0.5 * ((3 - 1) - (0.75 - 0.25)))), rel_tol=1e-6)
    True
    """
    chosen_B, rejected_B = _sums(divergences, where)
    margins_B = margins(chosen, rejected, where=where, weights=weights)
    return negative_log_sigmoid(beta * (margins_B - (rejected_B - chosen_B)))


def tdpo2(
    chosen: Float[Array, "*B T"],
    rejected: Float[Array, "*B U"],
    divergences: PairValues,
    *,
    where: PairMask,
    beta: float,
    alpha: float,
    weights: PairWeights = None,
) -> Float[Array, "*B"]:
    r"""Token-level DPO, second form (Zeng et al., arXiv 2404.11999): the chosen's K is fixed.

    .. math:: -\log\sigma(\beta(h - \alpha(K_l - \mathrm{sg}[K_w])))

    K as in `tdpo1`. Where the first form rewards a policy that drifts away from the reference on
    the chosen response, no gradient reaches K_w here, and alpha says how much the rest counts. The
    authors' TDPO2 command runs the first form, its setting for the second being off.

    Args:
      chosen: log-ratios of the chosen tokens, in nats.
      rejected: log-ratios of the rejected tokens.
      divergences: as in `tdpo1`.
      where: which tokens count, of each.
      beta: inverse temperature (the paper: 0.1).
      alpha: weight of the difference of divergences (the paper: 0.5); 0 is `dpo`.
      weights: token weights in h, of each. None: all one.

    Returns:
      Losses in nats, float32; log 2 where policy and reference agree.

    >>> import jax.numpy as jnp
    >>> from math import exp, isclose, log
    >>> one = jnp.asarray([True])
    >>> divergences = (jnp.asarray([0.25]), jnp.asarray([0.75]))
    >>> chosen, rejected = jnp.asarray([3.0]), jnp.asarray([1.0])
    >>> value = tdpo2(chosen, rejected, divergences, where=(one, one), beta=0.5, alpha=2.0)
    >>> isclose(float(value), log(1 + exp(-0.5 * ((3 - 1) - 2 * (0.75 - 0.25)))), rel_tol=1e-6)
    True
    """
    chosen_B, rejected_B = _sums(divergences, where)
    margins_B = margins(chosen, rejected, where=where, weights=weights)
    offsets_B = rejected_B - jax.lax.stop_gradient(chosen_B)
    return negative_log_sigmoid(beta * (margins_B - alpha * offsets_B))


def tis_weights(
    positive: Float[Array, "*B T"],
    negative: Float[Array, "*B T"],
    *,
    sign: int,
    scale: float,
    mu: float,
    low: float,
    high: float,
) -> Float[Array, "*B T"]:
    r"""Token weights of TIS-DPO (Liu et al., arXiv 2410.04350): importance from two models.

    .. math:: k \exp\left(\pm\mu\,\mathrm{clip}\left(
       \log\frac{\pi^+(y_t)}{\pi^-(y_t)}, L, U\right)\right)

    A chosen token counts the more, the better the positive model likes it; a rejected one the more,
    the worse. Use them as the weights of `core_jax.preference_pairs.dpo`. The authors' code ranks
    the ratios and maps them to [0.7, 1.3] instead, which this is not.

    Args:
      positive: log-probabilities of the tokens under the positive model, in nats.
      negative: the same under the negative model.
      sign: 1 for the tokens of chosen responses, -1 for those of rejected ones.
      scale: k, the weight where the two models agree.
      mu: how strongly the ratio counts; 0 makes all weights k.
      low: L, of the ratio, in nats.
      high: U, of the ratio, in nats.

    Returns:
      Weights, float32, from scale times exp(mu low) to exp(mu high) for the sign 1; no gradient
      passes. What masked places hold comes out as it may.

    Raises:
      ConfigError: a sign that is none, a scale or mu below 0, or bounds in the wrong order.

    >>> import jax.numpy as jnp
    >>> from math import exp, isclose, log
    >>> positive, negative = jnp.log(jnp.asarray([0.5, 0.9])), jnp.log(jnp.asarray([0.25, 0.01]))
    >>> first, second = tis_weights(
    ...     positive, negative, sign=-1, scale=2.0, mu=0.5, low=-1.0, high=1.5
    ... )
    >>> isclose(float(first), 2 * exp(-0.5 * log(0.5 / 0.25)), rel_tol=1e-6)
    True
    >>> isclose(float(second), 2 * exp(-0.5 * 1.5), rel_tol=1e-6)
    True
    """
    if sign not in (1, -1):
        raise ConfigError(
            f"sign of the TIS-DPO weights is {sign}; set 1 for tokens of chosen responses, or -1 "
            "for those of rejected ones"
        )
    if not (0.0 < scale < math.inf and 0.0 <= mu < math.inf and low <= high):
        raise ConfigError(
            f"TIS-DPO weights have scale {scale:g}, mu {mu:g} and the ratio's bounds [{low:g}, "
            f"{high:g}]; scale must be positive, mu 0 or more, and low not above high"
        )
    ratios_BT = positive.astype(jnp.float32) - negative.astype(jnp.float32)
    return jax.lax.stop_gradient(scale * jnp.exp(sign * mu * jnp.clip(ratios_BT, low, high)))


def tgdpo_weights(guides: PairValues, *, beta: float, alpha: float) -> PairValues:
    r"""Token weights of TGDPO (Zhu et al., arXiv 2506.14574): a first DPO run guides a second.

    .. math:: a_t = 1 + \alpha\beta\rho^w_t, \qquad b_u = 1 - \alpha\beta\rho^l_u, \qquad
       \rho = \log\pi_{DPO} - \log\pi_{ref}

    Tokens that the first run raised count more in the chosen response and less in the rejected one.
    A weight is below 0 where the guide is strong against its token: nothing is clipped.

    Args:
      guides: rho of the tokens of the chosen and of the rejected response, in nats
        (`core_jax.preference.log_ratios` of the first run's policy).
      beta: inverse temperature of the second run.
      alpha: how strongly the guide counts (the paper: 0.5); 0 makes all weights one.

    Returns:
      (a, b), float32; no gradient passes. What masked places hold comes out as it may.

    >>> import jax.numpy as jnp
    >>> chosen, rejected = tgdpo_weights(
    ...     (jnp.asarray([2.0]), jnp.asarray([-3.0, 1.0])), beta=0.5, alpha=0.5
    ... )
    >>> chosen.tolist(), rejected.tolist()
    ([1.5], [1.75, 0.75])
    """
    chosen_BT, rejected_BU = (
        jax.lax.stop_gradient(guide.astype(jnp.float32)) * (alpha * beta) for guide in guides
    )
    return 1.0 + chosen_BT, 1.0 - rejected_BU


def tgdpo(
    chosen: Float[Array, "*B T"],
    rejected: Float[Array, "*B U"],
    guides: PairValues,
    *,
    where: PairMask,
    beta: float,
    alpha: float,
) -> Float[Array, "*B"]:
    r"""DPO with token-level reward guidance (Zhu et al., arXiv 2506.14574).

    .. math:: -\log\sigma\left(\sum_t \beta(1 + \alpha\beta\rho^w_t)\,\delta^w_t
       - \sum_u \beta(1 - \alpha\beta\rho^l_u)\,\delta^l_u\right)

    Args:
      chosen: log-ratios of the chosen tokens, in nats.
      rejected: log-ratios of the rejected tokens.
      guides: rho, as in `tgdpo_weights`.
      where: which tokens count, of each.
      beta: inverse temperature.
      alpha: how strongly the guide counts (the paper: 0.5); 0 is `dpo`.

    Returns:
      Losses in nats, float32; log 2 where policy and reference agree.

    >>> import jax.numpy as jnp
    >>> from math import exp, isclose, log
    >>> one = jnp.asarray([True])
    >>> guides = (jnp.asarray([2.0]), jnp.asarray([-3.0]))
    >>> value = tgdpo(
    ...     jnp.asarray([3.0]), jnp.asarray([1.0]), guides, where=(one, one), beta=0.5, alpha=0.5
    ... )
    >>> isclose(float(value), log(1 + exp(-0.5 * (1.5 * 3 - 1.75 * 1))), rel_tol=1e-6)
    True
    """
    weights = tgdpo_weights(guides, beta=beta, alpha=alpha)
    return dpo(chosen, rejected, where=where, beta=beta, weights=weights)


def _sums(
    divergences: PairValues, where: PairMask
) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
    """K of the chosen and of the rejected response."""
    chosen_B, rejected_B = (
        weighted_sum(values, where=mask) for values, mask in zip(divergences, where, strict=True)
    )
    return chosen_B, rejected_B
