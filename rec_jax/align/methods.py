r"""The alignment methods of the paper's Table 1 and of its successors, as one choice.

A *group* is a context with G responses (sessions). Ranked methods read its order: response 0 is
the chosen one, the others are rejected (one for losses over pairs, any number for S-DPO). Advantage
methods read a number per response instead.

Dimension key: P groups, G responses of a group, M session items, L code levels, T tokens of a
response (M * L), U samples of a response that have a ratio of their own.
"""

import dataclasses
import enum
from collections.abc import Callable

import jax.numpy as jnp

from core_jax import preference_pairs
from core_jax.arrays import Array, Bool, Float
from core_jax.errors import ConfigError
from core_jax.metrics import Metrics, Ratio
from core_jax.preference import PairMask, check_label_noise, log_ratios
from core_jax.preference_groups import softmax_dpo
from core_jax.preference_likelihood import cpo, rpo, simpo
from core_jax.preference_policy import check_clip, ecpo, ecpo_ratio, gbpo, gbpo_ratio


class Method(enum.Enum):
    """Which preference loss.

    "conservative" is DPO with smoothed labels (cDPO in Table 1), "contrastive" DPO with token
    weights (cDPO of arXiv:2411.19943).
    """

    DPO = "dpo"
    IPO = "ipo"
    IPO_TOKEN_MEAN = "ipo_token_mean"
    CONSERVATIVE = "conservative"
    RDPO = "rdpo"
    CPO = "cpo"
    SIMPO = "simpo"
    SDPO = "sdpo"
    HINGE = "hinge"
    RPO = "rpo"
    DPOP = "dpop"
    ECPO = "ecpo"
    GBPO = "gbpo"
    CONTRASTIVE = "contrastive"


class RatioUnit(enum.Enum):
    """What counts as one sample of ECPO and GBPO."""

    ITEM = "item"
    SESSION = "session"


_WITHOUT_REFERENCE = (Method.CPO, Method.SIMPO)
_WITH_ADVANTAGES = (Method.ECPO, Method.GBPO)

DEFAULT_BETA = {
    Method.DPO: 0.1,  # usual
    Method.IPO: 0.1,  # ours, to compare with DPO; the authors vary it
    Method.IPO_TOKEN_MEAN: 0.1,  # as IPO
    Method.CONSERVATIVE: 0.1,  # as DPO
    Method.RDPO: 0.1,  # as DPO
    Method.CPO: 0.1,  # usual
    Method.SIMPO: 2.0,  # the authors: 2 to 10
    Method.SDPO: 1.0,  # paper
    Method.HINGE: 0.1,  # as DPO
    Method.RPO: 0.1,  # paper
    Method.DPOP: 0.3,  # paper
    Method.CONTRASTIVE: 0.1,  # the authors' code, and as DPO (their paper: 1)
}
"""Inverse temperature of each method where the configuration names none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """A preference loss and its numbers; a method reads those that its description names."""

    method: Method = Method.DPO
    """Which loss."""
    beta: float | None = None
    """Inverse temperature (tau of IPO); None: the method's own published or usual value. ECPO and
    GBPO have none."""
    label_noise: float = 0.1
    """conservative, rdpo: share of the pairs assumed to be swapped, in [0, 0.5)."""
    target_margin: float = 1.0
    """simpo: gamma, outside of beta (the authors: 0.3 to 0.8 times beta)."""
    nll_weight: float = 1.0
    """cpo, rpo: weight of the chosen response's mean negative log-likelihood (1 in both papers)."""
    penalty: float = 50.0
    """dpop: lambda, for a chosen response less probable than under the reference (paper: 50)."""
    epsilon: float = 0.2
    """ecpo: half width of the clip of the ratio (0.2 is usual; the paper gives none)."""
    delta: float = 0.1
    """ecpo: how far beyond 1 + epsilon a ratio may go (paper: 0.1)."""
    ratio_unit: RatioUnit = RatioUnit.ITEM
    """ecpo, gbpo: one ratio per item (the papers generate single items) or per session. The
    probability of a whole session is so small that 1 - pi of GBPO is 1 for all of them, and its
    ratio is the product of its items' ratios."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        if self.beta is not None and not self.beta > 0:
            raise ConfigError(f"method.beta is {self.beta:g}; it must be above 0, or None")
        for name in ("target_margin", "nll_weight", "penalty"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"method.{name} is {getattr(self, name):g}; it must be 0 or more")
        check_label_noise(self.label_noise)
        check_clip(self.epsilon, self.delta)

    @property
    def effective_beta(self) -> float:
        """The inverse temperature that a method with one uses."""
        return DEFAULT_BETA[self.method] if self.beta is None else self.beta


def needs_reference(method: Method) -> bool:
    """Whether the loss reads the reference's log-probabilities (metrics always do)."""
    return method not in _WITHOUT_REFERENCE


def uses_advantages(method: Method) -> bool:
    """Whether the loss reads advantages instead of the order of a group."""
    return method in _WITH_ADVANTAGES


def uses_negatives(method: Method) -> bool:
    """Whether the loss takes more than one rejected response."""
    return method is Method.SDPO


def uses_token_weights(method: Method) -> bool:
    """Whether the loss weighs every code, with weights that are part of the data."""
    return method is Method.CONTRASTIVE


def check_group_size(method: Method, num_responses: int) -> None:
    """Raises ConfigError unless groups of `num_responses` fit the method."""
    takes_any = uses_advantages(method) or uses_negatives(method)
    if num_responses < 2 or (num_responses > 2 and not takes_any):
        expected = "2 or more" if takes_any else "2, the chosen and the rejected one"
        raise ConfigError(
            f"method {method.value} got groups of {num_responses} responses, expected {expected}; "
            "make groups of that size, or choose another method (sdpo takes many rejected ones)"
        )


def takes_part(
    method: Method, response_mask: Bool[Array, "P G M"], has_pair: Bool[Array, " P"]
) -> Bool[Array, " P"]:
    """Which groups have something to compare.

    Args:
      method: the loss.
      response_mask: True where a response has an item; a response without any does not exist.
      has_pair: False where a group is padding.

    Returns:
      True for real groups with a chosen and a rejected response, or, with advantages, with any.
    """
    exists_PG = jnp.any(response_mask, axis=-1)
    if uses_advantages(method):
        return has_pair & jnp.any(exists_PG, axis=-1)
    return has_pair & exists_PG[:, 0] & jnp.any(exists_PG[:, 1:], axis=-1)


def group_losses(
    config: MethodConfig,
    log_probs: Float[Array, "P G M L"],
    reference_log_probs: Float[Array, "P G M L"],
    advantages: Float[Array, "P G"],
    *,
    where: Bool[Array, "P G M"],
    weights: Float[Array, "P G M L"] | None = None,
) -> Float[Array, " P"]:
    """The method's loss of each group.

    Args:
      config: the method and its numbers.
      log_probs: log-probability of every code under the trained model, in nats.
      reference_log_probs: the same under the frozen model; cpo and simpo do not read it.
      advantages: of each response; ecpo and gbpo alone read it.
      where: True where a response has an item. What masked places hold reaches neither value nor
        gradient.
      weights: of every code; contrastive alone reads it, and needs it.

    Returns:
      Losses, float32. What groups get that do not take part (`takes_part`) is a finite constant.

    Raises:
      ConfigError: the groups do not fit the method, or its token weights are missing.
    """
    check_group_size(config.method, log_probs.shape[1])
    where_PGML = jnp.broadcast_to(where[..., None], log_probs.shape)
    if uses_advantages(config.method):
        return _advantage_losses(config, log_probs, reference_log_probs, advantages, where_PGML)
    flat = (*log_probs.shape[:2], -1)
    where_PGT = where_PGML.reshape(flat)
    log_probs_PGT = log_probs.reshape(flat)
    if config.method in _LIKELIHOOD_LOSSES:
        values_PGT = log_probs_PGT
    else:
        values_PGT = log_ratios(log_probs_PGT, reference_log_probs.reshape(flat), where=where_PGT)
    if uses_negatives(config.method):
        return softmax_dpo(
            values_PGT[:, 0],
            values_PGT[:, 1:],
            where=(where_PGT[:, 0], where_PGT[:, 1:]),
            is_negative=jnp.any(where_PGT[:, 1:], axis=-1),
            beta=config.effective_beta,
        )
    pair = (where_PGT[:, 0], where_PGT[:, 1])
    chosen_PT, rejected_PT = values_PGT[:, 0], values_PGT[:, 1]
    if config.method is Method.RPO:
        return rpo(
            chosen_PT,
            rejected_PT,
            log_probs_PGT[:, 0],
            where=pair,
            beta=config.effective_beta,
            nll_weight=config.nll_weight,
        )
    if uses_token_weights(config.method):
        weights_PGT = _checked_weights(config.method, weights).reshape(flat)
        return preference_pairs.dpo(
            chosen_PT,
            rejected_PT,
            where=pair,
            beta=config.effective_beta,
            weights=(weights_PGT[:, 0], weights_PGT[:, 1]),
        )
    losses = _LIKELIHOOD_LOSSES | _RATIO_LOSSES
    return losses[config.method](config, chosen_PT, rejected_PT, pair)


def _checked_weights(method: Method, weights: Array | None) -> Array:
    """The weights; a method that needs them raises a ConfigError where there are none."""
    if weights is None:
        raise ConfigError(
            f"method {method.value} weighs every code, but the batch has no weights; give those of "
            "the round's stage of scores, or choose dpo, which weighs all codes alike"
        )
    return weights


def policy_metrics(
    config: MethodConfig,
    log_probs: Float[Array, "P G M L"],
    reference_log_probs: Float[Array, "P G M L"],
    advantages: Float[Array, "P G"],
    *,
    where: Bool[Array, "P G M"],
) -> Metrics:
    """What ECPO or GBPO makes of the ratios; see `group_losses` for the arguments.

    Returns:
      Over the samples whose advantage is not 0: `policy_ratio`, the mean of the losses' own ratio,
      and `bounded_share`, the share whose slope is not that of the plain ratio of probabilities:
      the old probability is another one, or PPO's clip makes the loss constant.
    """
    where_PGML = jnp.broadcast_to(where[..., None], log_probs.shape)
    samples = _samples(config, log_probs, reference_log_probs, advantages, where_PGML)
    ratio_PGU, advantages_PGU = samples.ratio(config), samples.advantages
    plain_PGU = jnp.exp(samples.log_probs - samples.old_log_probs)
    is_bounded_PGU = ratio_PGU < plain_PGU * (1.0 - 1e-5)
    if config.method is Method.ECPO:
        is_high_PGU = (advantages_PGU > 0) & (ratio_PGU > 1.0 + config.epsilon)
        is_low_PGU = (advantages_PGU < 0) & (ratio_PGU < 1.0 - config.epsilon)
        is_bounded_PGU |= is_high_PGU | is_low_PGU
    counts_PGU = samples.exist & (advantages_PGU != 0)
    count = jnp.sum(counts_PGU, dtype=jnp.float32)
    bounded = jnp.sum(is_bounded_PGU & counts_PGU, dtype=jnp.float32)
    return {
        "policy_ratio": Ratio(total=jnp.sum(jnp.where(counts_PGU, ratio_PGU, 0.0)), count=count),
        "bounded_share": Ratio(total=bounded, count=count),
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Samples:
    """What has a ratio of its own: U items, or one session, of every response."""

    log_probs: Array
    """Float32 [P, G, U]: under the trained model, 0 where masked."""
    old_log_probs: Array
    """Float32 [P, G, U]: under the frozen model, 0 where masked."""
    advantages: Array
    """Float32 [P, G, U]: of the response; 0 where it does not exist."""
    exist: Array
    """Bool [P, G, U]."""

    def ratio(self, config: MethodConfig) -> Array:
        """The method's ratio, [P, G, U]."""
        if config.method is Method.GBPO:
            return gbpo_ratio(self.log_probs, self.old_log_probs, self.advantages)
        return ecpo_ratio(
            self.log_probs, self.old_log_probs, epsilon=config.epsilon, delta=config.delta
        )


def _samples(
    config: MethodConfig,
    log_probs: Float[Array, "P G M L"],
    old_log_probs: Float[Array, "P G M L"],
    advantages: Float[Array, "P G"],
    where: Bool[Array, "P G M L"],
) -> _Samples:
    """Sums over the codes of each sample."""
    by_session = config.ratio_unit is RatioUnit.SESSION

    def of_samples(values_PGML: Array) -> Array:
        sums_PGM = jnp.sum(jnp.where(where, values_PGML, 0.0), axis=-1)
        return jnp.sum(sums_PGM, axis=-1, keepdims=True) if by_session else sums_PGM

    exist_PGU = jnp.any(where, axis=-1)
    if by_session:
        exist_PGU = jnp.any(exist_PGU, axis=-1, keepdims=True)
    exists_PG = jnp.any(where, axis=(-2, -1))
    advantages_PG1 = jnp.where(exists_PG, advantages, 0.0)[..., None]
    return _Samples(
        log_probs=of_samples(log_probs),
        old_log_probs=of_samples(old_log_probs),
        advantages=jnp.broadcast_to(advantages_PG1, exist_PGU.shape),
        exist=exist_PGU,
    )


def _advantage_losses(
    config: MethodConfig,
    log_probs: Float[Array, "P G M L"],
    old_log_probs: Float[Array, "P G M L"],
    advantages: Float[Array, "P G"],
    where: Bool[Array, "P G M L"],
) -> Float[Array, " P"]:
    """ECPO or GBPO: the mean over the samples of a response, then over the responses that exist."""
    samples = _samples(config, log_probs, old_log_probs, advantages, where)
    new_PGU, old_PGU = samples.log_probs, samples.old_log_probs
    if config.method is Method.ECPO:
        epsilon, delta = config.epsilon, config.delta
        losses_PGU = ecpo(new_PGU, old_PGU, samples.advantages, epsilon=epsilon, delta=delta)
    else:
        losses_PGU = gbpo(new_PGU, old_PGU, samples.advantages)
    totals_PG = jnp.sum(jnp.where(samples.exist, losses_PGU, 0.0), axis=-1)
    counts_PG = jnp.sum(samples.exist, axis=-1, dtype=jnp.float32)
    num_P = jnp.sum(counts_PG > 0, axis=-1, dtype=jnp.float32)
    means_PG = totals_PG / jnp.maximum(counts_PG, 1.0)
    return jnp.sum(means_PG, axis=-1) / jnp.maximum(num_P, 1.0)


PairLoss = Callable[[MethodConfig, Array, Array, PairMask], Array]
"""(config, chosen [P, T], rejected [P, T], where) -> losses [P]."""

_RATIO_LOSSES: dict[Method, PairLoss] = {
    Method.DPO: lambda config, chosen, rejected, where: preference_pairs.dpo(
        chosen, rejected, where=where, beta=config.effective_beta
    ),
    Method.IPO: lambda config, chosen, rejected, where: preference_pairs.ipo(
        chosen, rejected, where=where, beta=config.effective_beta
    ),
    Method.IPO_TOKEN_MEAN: lambda config, chosen, rejected, where: preference_pairs.ipo_token_mean(
        chosen, rejected, where=where, beta=config.effective_beta
    ),
    Method.CONSERVATIVE: lambda config, chosen, rejected, where: preference_pairs.conservative_dpo(
        chosen,
        rejected,
        where=where,
        beta=config.effective_beta,
        label_noise=config.label_noise,
    ),
    Method.RDPO: lambda config, chosen, rejected, where: preference_pairs.robust_dpo(
        chosen,
        rejected,
        where=where,
        beta=config.effective_beta,
        label_noise=config.label_noise,
    ),
    Method.HINGE: lambda config, chosen, rejected, where: preference_pairs.hinge(
        chosen, rejected, where=where, beta=config.effective_beta
    ),
    Method.DPOP: lambda config, chosen, rejected, where: preference_pairs.dpop(
        chosen, rejected, where=where, beta=config.effective_beta, penalty=config.penalty
    ),
}
"""Losses over the log-ratios of a pair."""

_LIKELIHOOD_LOSSES: dict[Method, PairLoss] = {
    Method.CPO: lambda config, chosen, rejected, where: cpo(
        chosen, rejected, where=where, beta=config.effective_beta, nll_weight=config.nll_weight
    ),
    Method.SIMPO: lambda config, chosen, rejected, where: simpo(
        chosen,
        rejected,
        where=where,
        beta=config.effective_beta,
        target_margin=config.target_margin,
    ),
}
"""Losses over the log-probabilities of a pair."""
