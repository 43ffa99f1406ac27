"""Token log-probabilities and cross-entropy: functions of arrays, per-token values out.

Dimension key: V classes.
"""

import jax
import jax.numpy as jnp

from core_jax.arrays import Array, Float, Int


def token_log_probs(
    logits: Float[Array, "*dims V"], targets: Int[Array, "*dims"]
) -> Float[Array, "*dims"]:
    r"""Log-probability of each target under the softmax of its logits.

    .. math:: \log p(y) = z_y - \log \sum_v e^{z_v}

    Args:
      logits: unnormalised scores; computed in float32.
      targets: class index in [0, V).

    Returns:
      Log-probabilities in nats, float32.

    >>> import jax.numpy as jnp
    >>> from math import isclose, log
    >>> value = token_log_probs(jnp.log(jnp.asarray([[1.0, 3.0]])), jnp.asarray([1]))
    >>> isclose(float(value[0]), log(3 / 4), rel_tol=1e-6)
    True
    """
    logits = logits.astype(jnp.float32)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return picked - jax.nn.logsumexp(logits, axis=-1)
