r"""Preference losses that read the policy's likelihood itself: without a reference, or beside one.

`log_probs` below are log-probabilities of tokens under the trained model, in nats, where the losses
of `core_jax.preference_pairs` take log-ratios. Masks, weights, empty responses and results follow
the conventions of `core_jax.preference`.

Every negative log-likelihood here is one of the example: a mean over its own tokens. TRL averages
over all tokens of the batch, which weighs long responses more. Its value is the mean of ours with
each example weighted by its number of tokens, so the two agree where the lengths do.

Dimension key: B examples (any number of dimensions), T tokens (of the chosen response), U tokens of
the rejected response.
"""

from core_jax.arrays import Array, Bool, Float
from core_jax.preference import (
    PairMask,
    PairWeights,
    margins,
    mean_margins,
    negative_log_sigmoid,
    weighted_mean,
)
from core_jax.preference_pairs import dpo


def mean_nll(log_probs: Float[Array, "*B T"], *, where: Bool[Array, "*B T"]) -> Float[Array, "*B"]:
    r"""Negative log-likelihood of each response, averaged over its tokens.

    .. math:: -\frac{1}{|y|} \sum_t \log \pi(y_t)

    Args:
      log_probs: log-probabilities of the tokens under the trained model, in nats.
      where: which tokens count.

    Returns:
      Nats per token, float32; 0 for a response without tokens.

    >>> import jax.numpy as jnp
    >>> from math import isclose, log
    >>> value = mean_nll(jnp.log(jnp.asarray([0.5, 0.125])), where=jnp.asarray([True, True]))
    >>> isclose(float(value), (log(2) + log(8)) / 2, rel_tol=1e-6)
    True
    """
    return -weighted_mean(log_probs, where=where)


def cpo(
    chosen_log_probs: Float[Array, "*B T"],
    rejected_log_probs: Float[Array, "*B U"],
    *,
    where: PairMask,
    beta: float,
    nll_weight: float,
    weights: PairWeights = None,
) -> Float[Array, "*B"]:
    r"""Contrastive preference optimisation (Xu et al., arXiv 2401.08417, eq. 3): no reference.

    .. math::
       -\log\sigma(\beta(\log\pi(y_w) - \log\pi(y_l))) - \frac{\alpha}{|y_w|}\log\pi(y_w)

    The first term, the paper's equation, sums over tokens. The second, which the paper adds with
    alpha = 1, is a mean over tokens, as in TRL (see above for TRL's batch mean).

    Args:
      chosen_log_probs: log-probabilities of the chosen tokens, in nats.
      rejected_log_probs: log-probabilities of the rejected tokens.
      where: which tokens count, of each.
      beta: inverse temperature.
      nll_weight: alpha, of the mean negative log-likelihood of the chosen response.
      weights: token weights, of each, in the first term. None: all one.

    Returns:
      Losses in nats, float32.

    >>> import jax.numpy as jnp
    >>> from math import exp, isclose, log
    >>> one = jnp.asarray([True])
    >>> chosen, rejected = jnp.log(jnp.asarray([0.5])), jnp.log(jnp.asarray([0.25]))
    >>> value = cpo(chosen, rejected, where=(one, one), beta=2.0, nll_weight=3.0)
    >>> isclose(float(value), log(1 + (0.25 / 0.5) ** 2) + 3 * log(2), rel_tol=1e-6)
    True
    """
    margins_B = margins(chosen_log_probs, rejected_log_probs, where=where, weights=weights)
    nll_B = mean_nll(chosen_log_probs, where=where[0])
    return negative_log_sigmoid(beta * margins_B) + nll_weight * nll_B


def simpo(
    chosen_log_probs: Float[Array, "*B T"],
    rejected_log_probs: Float[Array, "*B U"],
    *,
    where: PairMask,
    beta: float,
    target_margin: float,
    weights: PairWeights = None,
) -> Float[Array, "*B"]:
    r"""Simple preference optimisation (Meng et al., arXiv 2405.14734, eq. 6): no reference.

    .. math::
       -\log\sigma\left(\frac{\beta}{|y_w|}\log\pi(y_w) - \frac{\beta}{|y_l|}\log\pi(y_l)
       - \gamma\right)

    Args:
      chosen_log_probs: log-probabilities of the chosen tokens, in nats.
      rejected_log_probs: log-probabilities of the rejected tokens.
      where: which tokens count, of each.
      beta: inverse temperature (the authors: 2 to 10).
      target_margin: gamma, outside of beta, as in the paper and TRL's `simpo_gamma` (the authors:
        0.3 to 0.8 times beta).
      weights: token weights, of each; the divisor stays the number of tokens. None: all one.

    Returns:
      Losses in nats, float32.

    >>> import jax.numpy as jnp
    >>> from math import exp, isclose, log
    >>> chosen, rejected = jnp.log(jnp.asarray([0.5, 0.5])), jnp.log(jnp.asarray([0.25]))
    >>> where = (jnp.asarray([True, True]), jnp.asarray([True]))
    >>> value = simpo(chosen, rejected, where=where, beta=2.0, target_margin=0.5)
    >>> isclose(float(value), log(1 + (0.25 / 0.5) ** 2 * exp(0.5)), rel_tol=1e-6)
    True
    """
    margins_B = mean_margins(chosen_log_probs, rejected_log_probs, where=where, weights=weights)
    return negative_log_sigmoid(beta * margins_B - target_margin)


def rpo(
    chosen: Float[Array, "*B T"],
    rejected: Float[Array, "*B U"],
    chosen_log_probs: Float[Array, "*B T"],
    *,
    where: PairMask,
    beta: float,
    nll_weight: float,
    weights: PairWeights = None,
) -> Float[Array, "*B"]:
    r"""DPO plus likelihood: RPO (Pang et al., arXiv 2404.19733, eq. 1; Liu et al., 2405.16436).

    .. math:: -\log\sigma(\beta h) - \frac{\alpha}{|y_w|} \log\pi(y_w)

    Both terms are losses: they are added, and alpha > 0 raises the chosen likelihood. TRL 1.16 says
    `loss_type=["sigmoid", "sft"], loss_weights=[1, alpha]` (with a batch mean, see above). TRL
    0.9.6 put alpha on the other term, alpha DPO + NLL: alpha times ours with nll_weight 1 / alpha.

    Args:
      chosen: log-ratios of the chosen tokens, in nats.
      rejected: log-ratios of the rejected tokens.
      chosen_log_probs: log-probabilities of the chosen tokens under the trained model, in nats.
      where: which tokens count, of each response.
      beta: inverse temperature (the paper: 0.1).
      nll_weight: alpha (the paper: 1).
      weights: token weights, of each, in the DPO term. None: all one.

    Returns:
      Losses in nats, float32.

    >>> import jax.numpy as jnp
    >>> from math import exp, isclose, log
    >>> one, log_probs = jnp.asarray([True]), jnp.log(jnp.asarray([0.5]))
    >>> chosen, rejected = jnp.asarray([3.0]), jnp.asarray([2.0])
    >>> value = rpo(chosen, rejected, log_probs, where=(one, one), beta=0.5, nll_weight=0.25)
    >>> isclose(float(value), log(1 + exp(-0.5 * (3 - 2))) + 0.25 * log(2), rel_tol=1e-6)
    True
    """
    dpo_B = dpo(chosen, rejected, where=where, beta=beta, weights=weights)
    return dpo_B + nll_weight * mean_nll(chosen_log_probs, where=where[0])
