r"""The objective of a preference step: next-token prediction, and preferences beside it.

Dimension key: P groups, Z samples per group, B samples (P * Z), G responses of a group, S history
tokens, M session items, L code levels, C codes of a level, D model.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from core_jax.arrays import Array, Bool, Float, Key, Params
from core_jax.metrics import Metrics, Ratio
from core_jax.preference import log_ratios
from rec_jax.align.batch import PreferenceBatch, code_log_probs
from rec_jax.align.methods import (
    MethodConfig,
    check_group_size,
    group_losses,
    policy_metrics,
    takes_part,
    uses_advantages,
    uses_token_weights,
)
from rec_jax.model import onerec
from rec_jax.model.config import OneRecConfig
from rec_jax.moe.layer import MoeAux
from rec_jax.objectives import expert_metrics, session_loss


def align_loss(
    config: OneRecConfig,
    method: MethodConfig,
    preference_weight: float,
    mesh: Mesh | None,
    params: Params,
    batch: PreferenceBatch,
    *,
    key: Key[Array, ""] | None = None,
) -> tuple[Ratio, Metrics]:
    r"""Next-token loss of every sample plus the preference loss of those that carry a group.

    .. math:: L = \frac{1}{n}\sum_b (L_{NTP, b} + \lambda [has\_pair_b] L_{pref, b})

    (paper, Algorithm 2: every sample has the next-token loss, Eq. 4, the sum over its codes; those
    with a group have lambda times the preference loss besides.) The sum over samples is divided by
    the number n of target codes, as in `next_token_loss`, so the first term is that loss; totals
    and counts add up exactly over microbatches and devices. More groups per batch weigh more, as
    in the paper. The metric `preference_loss` is the mean over real groups.

    Logged sessions and responses share one encoder pass. The balance term of the experts counts
    the tokens of both.

    Args:
      config: architecture.
      method: preference loss.
      preference_weight: lambda.
      mesh: device mesh of the batch, or None.
      params: model parameters.
      batch: samples and groups.
      key: dropout key, or None for evaluation. With dropout the trained model's log-probabilities
        are noisy and the reference's are not; a rate of 0 is what the losses are derived for.

    Returns:
      The loss, and metrics: those of `next_token_loss`; `ntp_loss`; `preference_loss`; `margin`,
      the mean log-ratio of chosen responses minus that of rejected ones, and `margin_accuracy`,
      the share above 0; `chosen_log_ratio`, `rejected_log_ratio`; `kl_per_code`; `group_share`,
      the groups over the samples; `response_share`, the responses that exist over those of real
      groups. With advantages, responses above 0 count as chosen and those below as rejected;
      besides, `flat_groups`, the real groups whose advantages are all 0, which teach nothing, and
      `policy_ratio` and `bounded_share` of `policy_metrics`. With token weights,
      `rejected_weight`, the mean weight of a rejected code.

    Raises:
      ConfigError: the groups do not fit the method, or its token weights are missing.
    """
    check_group_size(method.method, batch.response_mask.shape[1])
    where_PGM = batch.response_mask & batch.has_pair[:, None, None]
    scored = _score(config, params, batch, where_PGM, key=key, mesh=mesh)
    sessions, aux = batch.sessions, scored.moe
    loss, metrics = session_loss(
        scored.logged, _flat(sessions.target_codes), _flat(sessions.target_mask)
    )
    is_real_P = takes_part(method.method, where_PGM, batch.has_pair)
    losses_P = group_losses(
        method,
        scored.responses,
        batch.reference_log_probs,
        batch.advantages,
        where=where_PGM,
        weights=batch.weights,
    )
    preference = jnp.sum(jnp.where(is_real_P, losses_P, 0.0))
    metrics |= {"ntp_loss": loss, **expert_metrics(aux)}
    metrics["preference_loss"] = Ratio(total=preference, count=_count(is_real_P))
    metrics["group_share"] = Ratio(
        total=_count(is_real_P), count=jnp.asarray(sessions.target_mask[..., 0].size, jnp.float32)
    )
    metrics |= _preference_metrics(method, scored.responses, batch, where_PGM, is_real_P)
    total = loss.total + jnp.sum(aux.balance) + preference_weight * preference
    return Ratio(total=total, count=loss.count), metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Scored:
    """What the model says of a batch."""

    logged: tuple[Array, ...]
    """Per level [B, M, C]: logits of the logged sessions."""
    responses: Array
    """[P, G, M, L]: log-probabilities of the responses' codes."""
    moe: MoeAux
    """Statistics of the experts over both."""


def _score(
    config: OneRecConfig,
    params: Params,
    batch: PreferenceBatch,
    where: Bool[Array, "P G M"],
    *,
    key: Key[Array, ""] | None,
    mesh: Mesh | None,
) -> _Scored:
    """One encoder pass, and a decoder pass over logged sessions and responses."""
    encoder_key = session_key = response_key = None
    if key is not None:
        encoder_key, session_key, response_key = jax.random.split(key, 3)
    sessions, codes_PGML = batch.sessions, batch.response_codes
    num_groups, samples = sessions.target_mask.shape[:2]
    encoded_BSD, seen_BS = onerec.encode_tokens(
        config,
        params,
        _flat(sessions.history_codes),
        _flat(sessions.history_mask),
        key=encoder_key,
        mesh=mesh,
    )
    codes_B1ML = _flat(sessions.target_codes)[:, None]
    mask_B1M = _flat(sessions.target_mask)[:, None]
    score = functools.partial(onerec.score_sessions, config, params, mesh=mesh)
    if samples == 1:
        # Every sample has a group: its cross-attention's keys and values are shared too.
        codes = jnp.concatenate([codes_B1ML, codes_PGML], axis=1)
        mask = jnp.concatenate([mask_B1M, where], axis=1)
        both = score(encoded_BSD, seen_BS, codes, mask, key=session_key)
        logged = tuple(logits[:, 0] for logits in both.logits)
        responses = tuple(logits[:, 1:] for logits in both.logits)
        moe = both.moe
    else:
        encoded_PSD, seen_PS = (
            leaf.reshape(num_groups, samples, *leaf.shape[1:])[:, 0]
            for leaf in (encoded_BSD, seen_BS)
        )
        one = score(encoded_BSD, seen_BS, codes_B1ML, mask_B1M, key=session_key)
        other = score(encoded_PSD, seen_PS, codes_PGML, where, key=response_key)
        logged = tuple(logits[:, 0] for logits in one.logits)
        responses = other.logits
        moe = jax.tree.map(jnp.add, one.moe, other.moe)
    return _Scored(logged=logged, responses=code_log_probs(responses, codes_PGML), moe=moe)


def _preference_metrics(
    method: MethodConfig,
    log_probs: Float[Array, "P G M L"],
    batch: PreferenceBatch,
    where: Bool[Array, "P G M"],
    is_real: Bool[Array, " P"],
) -> Metrics:
    """Where the policy went, measured the same way for every method; see `align_loss`."""
    where_PGM = where & is_real[:, None, None]
    where_PGML = jnp.broadcast_to(where_PGM[..., None], log_probs.shape)
    ratios_PGML = log_ratios(log_probs, batch.reference_log_probs, where=where_PGML)
    ratios_PG = jnp.sum(ratios_PGML, axis=(-2, -1))
    exists_PG = jnp.any(where_PGM, axis=-1)
    if uses_advantages(method.method):
        is_chosen_PG = exists_PG & (batch.advantages > 0)
        is_rejected_PG = exists_PG & (batch.advantages < 0)
    else:
        is_first_1G = (jnp.arange(exists_PG.shape[1]) == 0)[None]
        is_chosen_PG, is_rejected_PG = exists_PG & is_first_1G, exists_PG & ~is_first_1G
    chosen, rejected = _mean(ratios_PG, is_chosen_PG), _mean(ratios_PG, is_rejected_PG)
    has_both_P = jnp.any(is_chosen_PG, axis=-1) & jnp.any(is_rejected_PG, axis=-1)
    margin_P = _mean_of_rows(ratios_PG, is_chosen_PG) - _mean_of_rows(ratios_PG, is_rejected_PG)
    metrics = {
        "chosen_log_ratio": chosen,
        "rejected_log_ratio": rejected,
        "margin": _mean(margin_P, has_both_P),
        "margin_accuracy": _mean((margin_P > 0).astype(jnp.float32), has_both_P),
        "kl_per_code": _mean(jnp.expm1(ratios_PGML) - ratios_PGML, where_PGML),
        "response_share": Ratio(
            total=_count(exists_PG), count=_count(is_real) * exists_PG.shape[1]
        ),
    }
    if uses_advantages(method.method):
        is_flat_P = is_real & ~jnp.any(is_chosen_PG | is_rejected_PG, axis=-1)
        metrics["flat_groups"] = Ratio(total=_count(is_flat_P), count=_count(is_real))
        metrics |= policy_metrics(
            method, log_probs, batch.reference_log_probs, batch.advantages, where=where_PGM
        )
    if uses_token_weights(method.method):
        is_rejected_PGML = where_PGML & is_rejected_PG[..., None, None]
        metrics["rejected_weight"] = _mean(batch.weights, is_rejected_PGML)
    return jax.lax.stop_gradient(metrics)


def _flat(leaf: Array) -> Array:
    """[P, Z, ...] -> [B, ...]."""
    return leaf.reshape(-1, *leaf.shape[2:])


def _count(where: Bool[Array, "..."]) -> Float[Array, ""]:
    """How many are True, as float32."""
    return jnp.sum(where, dtype=jnp.float32)


def _mean(values: Float[Array, "*dims"], where: Bool[Array, "*dims"]) -> Ratio:
    """Mean of the values that count."""
    return Ratio(total=jnp.sum(jnp.where(where, values, 0.0)), count=_count(where))


def _mean_of_rows(values: Float[Array, "P G"], where: Bool[Array, "P G"]) -> Float[Array, " P"]:
    """Mean of each row's values that count; 0 where none does."""
    totals_P = jnp.sum(jnp.where(where, values, 0.0), axis=-1)
    return totals_P / jnp.maximum(jnp.sum(where, axis=-1), 1)
