r"""On-policy losses with a ratio that is clipped early: ECPO and GBPO.

They raise what has a positive advantage and lower what has a negative one, by the ratio of the
probability now to that under the policy which drew the sample. An unbounded ratio is what makes
negative advantages run away; both losses bound it by an old probability that moves with the new.

Conventions: one value per sample, minimised, float32 whatever the inputs; `log_probs` are those of
whole samples (sums over the tokens of what counts as one), no gradient reaches anything else, and
everything is computed from logarithms, so that a probability of exp(-200) is no special case.
Callers mask and reduce; an advantage of 0 gives a loss of 0 without gradient.

Dimension key: B samples (any number of dimensions, none included).
"""

import math

import jax
import jax.numpy as jnp

from core_jax.arrays import Array, Float
from core_jax.errors import ConfigError

_SURE = -(2.0**-24)
"""Above it exp is 1 in float32; rounding may even leave a log-probability above 0."""


def ecpo(
    log_probs: Float[Array, "*B"],
    old_log_probs: Float[Array, "*B"],
    advantages: Float[Array, "*B"],
    *,
    epsilon: float,
    delta: float,
) -> Float[Array, "*B"]:
    r"""Early-clipped GRPO (Zhou et al., arXiv 2506.13695).

    .. math::
       -\min(\rho A, \mathrm{clip}(\rho, 1-\epsilon, 1+\epsilon) A), \qquad
       \rho = \frac{\pi}{\pi'_{old}}, \qquad
       \pi'_{old} = \max\left(\frac{\mathrm{sg}(\pi)}{1+\epsilon+\delta}, \pi_{old}\right)

    GRPO (arXiv 2402.03300) without the KL term. The clip of PPO has no effect where A < 0 and the
    ratio is large, which is where GRPO explodes; here the ratio, and so the gradient in the
    log-probability, is at most :math:`1+\epsilon+\delta` times :math:`|A|`.

    Args:
      log_probs: log-probabilities of the samples under the trained policy, in nats.
      old_log_probs: the same under the policy that drew them.
      advantages: A, standardised within the group of samples that are compared.
      epsilon: half width of the clip, in (0, 1).
      delta: how far beyond 1 + epsilon a ratio may go (the paper: 0.1).

    Returns:
      Losses, float32.

    Raises:
      ConfigError: epsilon is outside (0, 1), or delta is negative.

    >>> import jax.numpy as jnp
    >>> from math import isclose
    >>> new, old = jnp.log(jnp.asarray([0.5, 0.5])), jnp.log(jnp.asarray([0.4, 0.01]))
    >>> up, down = ecpo(new, old, jnp.asarray([2.0, -2.0]), epsilon=0.2, delta=0.1)
    >>> isclose(float(up), -2 * min(0.5 / 0.4, 1 + 0.2), rel_tol=1e-6)
    True
    >>> isclose(float(down), 2 * (1 + 0.2 + 0.1), rel_tol=1e-6)
    True
    """
    ratio = ecpo_ratio(log_probs, old_log_probs, epsilon=epsilon, delta=delta)
    clipped = jnp.clip(ratio, 1.0 - epsilon, 1.0 + epsilon)
    advantages = _fixed(advantages)
    return -jnp.minimum(ratio * advantages, clipped * advantages)


def ecpo_ratio(
    log_probs: Float[Array, "*B"],
    old_log_probs: Float[Array, "*B"],
    *,
    epsilon: float,
    delta: float,
) -> Float[Array, "*B"]:
    """The ratio rho of `ecpo`, which has its arguments; at most 1 + epsilon + delta.

    >>> import jax.numpy as jnp
    >>> from math import isclose
    >>> new, old = jnp.log(jnp.asarray([0.5, 0.5])), jnp.log(jnp.asarray([0.4, 0.01]))
    >>> one, other = ecpo_ratio(new, old, epsilon=0.2, delta=0.1)
    >>> isclose(float(one), 0.5 / 0.4, rel_tol=1e-6), isclose(float(other), 1.3, rel_tol=1e-6)
    (True, True)
    """
    check_clip(epsilon, delta)
    log_probs = log_probs.astype(jnp.float32)
    earliest = jax.lax.stop_gradient(log_probs) - math.log(1.0 + epsilon + delta)
    return jnp.exp(log_probs - jnp.maximum(earliest, _fixed(old_log_probs)))


def gbpo(
    log_probs: Float[Array, "*B"],
    old_log_probs: Float[Array, "*B"],
    advantages: Float[Array, "*B"],
) -> Float[Array, "*B"]:
    r"""Gradient-bounded policy optimisation (Zhou et al., arXiv 2508.20900).

    .. math::
       -\frac{\pi}{\pi'_{old}} A, \qquad \pi'_{old} = \max(\pi_{old}, \mathrm{sg}(\pi))
       \text{ if } A \ge 0 \text{ else } \max(\pi_{old}, 1 - \mathrm{sg}(\pi))

    Nothing is clipped away; the gradient in the logit of the sample is bounded like that of binary
    cross-entropy instead: :math:`\rho (1 - \pi)|A|`, where :math:`\rho \le 1` for a positive
    advantage and :math:`\rho \le \pi / (1 - \pi)` for a negative one, so by :math:`|A|`. A sample
    that is improbable already (1 - pi near 1) is hardly lowered any further.

    Args:
      log_probs: log-probabilities of the samples under the trained policy, in nats.
      old_log_probs: the same under the policy that drew them; those of `log_probs` themselves for
        samples of another system.
      advantages: A.

    Returns:
      Losses, float32.

    >>> import jax.numpy as jnp
    >>> from math import isclose
    >>> new, old = jnp.log(jnp.asarray([0.5, 0.8])), jnp.log(jnp.asarray([0.4, 0.1]))
    >>> up, down = gbpo(new, old, jnp.asarray([2.0, -2.0]))
    >>> isclose(float(up), -2 * (0.5 / 0.5), rel_tol=1e-6)
    True
    >>> isclose(float(down), 2 * (0.8 / (1 - 0.8)), rel_tol=1e-5)
    True
    """
    return -gbpo_ratio(log_probs, old_log_probs, advantages) * _fixed(advantages)


def gbpo_ratio(
    log_probs: Float[Array, "*B"],
    old_log_probs: Float[Array, "*B"],
    advantages: Float[Array, "*B"],
) -> Float[Array, "*B"]:
    """The ratio of `gbpo`, which has its arguments: of the advantages only the sign is read.

    >>> import jax.numpy as jnp
    >>> from math import isclose
    >>> new, old = jnp.log(jnp.asarray([0.5, 0.8])), jnp.log(jnp.asarray([0.4, 0.1]))
    >>> up, down = gbpo_ratio(new, old, jnp.asarray([2.0, -2.0]))
    >>> isclose(float(up), 1, rel_tol=1e-6), isclose(float(down), 0.8 / (1 - 0.8), rel_tol=1e-5)
    (True, True)
    """
    log_probs = log_probs.astype(jnp.float32)
    now = jax.lax.stop_gradient(log_probs)
    bound = jnp.where(advantages >= 0, now, _log_complement(now))
    return jnp.exp(log_probs - jnp.maximum(bound, _fixed(old_log_probs)))


def check_clip(epsilon: float, delta: float) -> None:
    """Raises ConfigError unless ECPO's clip is one: epsilon in (0, 1), delta not negative."""
    if not (0.0 < epsilon < 1.0 and delta >= 0.0):
        raise ConfigError(
            f"epsilon is {epsilon:g} and delta {delta:g}; the ratio is clipped to 1 +- epsilon, so "
            "epsilon must lie in (0, 1), and early at 1 + epsilon + delta, so delta must be 0 or "
            "more (0.2 and 0.1 are usual)"
        )


def _log_complement(log_probs: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """log(1 - p) of log p, to float32's digits near p = 0 and near p = 1."""
    log_probs = jnp.minimum(log_probs, _SURE)
    # Each branch reads a value of its own half, so that neither takes the logarithm of 0.
    near_one = jnp.log(-jnp.expm1(jnp.maximum(log_probs, -math.log(2.0))))
    near_zero = jnp.log1p(-jnp.exp(jnp.minimum(log_probs, -math.log(2.0))))
    return jnp.where(log_probs > -math.log(2.0), near_one, near_zero)


def _fixed(values: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """In float32, without gradient."""
    return jax.lax.stop_gradient(values).astype(jnp.float32)
