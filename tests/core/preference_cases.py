"""Every preference loss as a function of one signature, and made-up inputs.

Dimension key: B examples, T chosen tokens, U rejected tokens, N rejected responses.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from core_jax import (
    preference_groups,
    preference_likelihood,
    preference_pairs,
    preference_tokens,
)

B, T, U, N = 5, 7, 11, 3
BETA, NOISE, ALPHA = 0.7, 0.2, 0.6


def _by_position(chosen, rejected, *, where, weights=None):
    """`dpo_by_position` of responses that are padded to one length."""
    width = max(chosen.shape[-1], rejected.shape[-1])

    def pad(array):
        widths = [(0, 0)] * (array.ndim - 1) + [(0, width - array.shape[-1])]
        return jnp.pad(array, widths)

    padded = jax.tree.map(pad, (chosen, rejected, where, weights))
    return preference_pairs.dpo_by_position(
        padded[0], padded[1], where=padded[2], weights=padded[3], beta=BETA
    )


def _rpo(chosen, rejected, *, where, weights=None):
    """`rpo` whose likelihood is that of a uniform reference: log-probability = ratio - 1."""
    return preference_likelihood.rpo(
        chosen, rejected, chosen - 1.0, where=where, weights=weights, beta=BETA, nll_weight=0.3
    )


def _softmax_dpo(chosen, rejected, *, where, weights=None):
    """`softmax_dpo` against the rejected response and a second, fixed one."""
    second = jnp.zeros_like(rejected)
    stacked = jnp.stack([rejected, second], axis=-2)
    pair = (where[0], jnp.stack([where[1], where[1]], axis=-2))
    if weights is not None:
        weights = (weights[0], jnp.stack([weights[1], jnp.ones_like(weights[1])], axis=-2))
    is_negative = jnp.ones(stacked.shape[:-1], bool)
    return preference_groups.softmax_dpo(
        chosen, stacked, where=pair, is_negative=is_negative, weights=weights, beta=BETA
    )


def _kto(chosen, rejected, *, where, weights=None):
    """`kto` of both responses, one judged good and one bad; the losses are added."""
    chosen_weights, rejected_weights = (None, None) if weights is None else weights
    loss = functools.partial(
        preference_groups.kto, reference_point=jnp.asarray(0.5), beta=BETA, undesirable_weight=1.5
    )
    good = jnp.ones(chosen.shape[:-1], bool)
    return loss(chosen, good, where=where[0], weights=chosen_weights) + loss(
        rejected, ~good, where=where[1], weights=rejected_weights
    )


def token_numbers(values, size):
    """A number of each token that does not depend on padding: size (1 + sin t / 2)."""
    row = size * (1 + 0.5 * jnp.sin(jnp.arange(values.shape[-1], dtype=jnp.float32)))
    return jnp.broadcast_to(row.reshape((1,) * (values.ndim - 1) + (-1,)), values.shape)


def _cdpo(chosen, rejected, *, where, weights=None):
    """`cdpo`, which weighs the rejected tokens alone."""
    rejected_weights = jnp.ones_like(rejected) if weights is None else weights[1]
    return preference_tokens.cdpo(chosen, rejected, rejected_weights, where=where, gamma=BETA)


def _with_numbers(loss, size):
    """A loss that reads one more number of each token."""

    def case(chosen, rejected, **arguments):
        numbers = token_numbers(chosen, size), token_numbers(rejected, 2 * size)
        return loss(chosen, rejected, numbers, beta=BETA, **arguments)

    return case


def _tgdpo(chosen, rejected, *, where, weights=None):
    """`tgdpo`, whose weights are its own: given ones do not enter."""
    del weights
    loss = functools.partial(preference_tokens.tgdpo, alpha=ALPHA)
    return _with_numbers(loss, 0.3)(chosen, rejected, where=where)


LOSSES = {
    "dpo": functools.partial(preference_pairs.dpo, beta=BETA),
    "conservative_dpo": functools.partial(
        preference_pairs.conservative_dpo, beta=BETA, label_noise=NOISE
    ),
    "robust_dpo": functools.partial(preference_pairs.robust_dpo, beta=BETA, label_noise=NOISE),
    "ipo": functools.partial(preference_pairs.ipo, beta=BETA),
    "ipo_token_mean": functools.partial(preference_pairs.ipo_token_mean, beta=BETA),
    "hinge": functools.partial(preference_pairs.hinge, beta=BETA),
    "dpop": functools.partial(preference_pairs.dpop, beta=BETA, penalty=3.0),
    "cpo": functools.partial(preference_likelihood.cpo, beta=BETA, nll_weight=0.3),
    "simpo": functools.partial(preference_likelihood.simpo, beta=BETA, target_margin=0.4),
    "dpo_by_position": _by_position,
    "rpo": _rpo,
    "softmax_dpo": _softmax_dpo,
    "kto": _kto,
    "cdpo": _cdpo,
    "tdpo1": _with_numbers(preference_tokens.tdpo1, 0.3),
    "tdpo2": _with_numbers(functools.partial(preference_tokens.tdpo2, alpha=ALPHA), 0.3),
    "tgdpo": _tgdpo,
}
"""Every loss, as a function of (chosen, rejected)."""


def inputs(seed=0):
    """Chosen [B, T], rejected [B, U] and their masks: every response has tokens and padding."""
    rng = np.random.default_rng(seed)
    chosen = rng.normal(size=(B, T)).astype(np.float32)
    rejected = rng.normal(size=(B, U)).astype(np.float32)
    lengths = rng.integers(2, T, size=B), rng.integers(2, U, size=B)
    where = (np.arange(T) < lengths[0][:, None], np.arange(U) < lengths[1][:, None])
    return jnp.asarray(chosen), jnp.asarray(rejected), jax.tree.map(jnp.asarray, where)


def token_weights(seed=1):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.uniform(0.1, 2, size=(B, n)), jnp.float32) for n in (T, U))


def gradients(loss, chosen, rejected, where, weights=None):
    def total(chosen, rejected):
        return jnp.sum(loss(chosen, rejected, where=where, weights=weights))

    return jax.grad(total, argnums=(0, 1))(chosen, rejected)
