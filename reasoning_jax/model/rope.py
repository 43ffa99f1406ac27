"""Rotary positions in the rotate-half order, with Llama 3's stretched wavelengths.

Dimension key: X head dimension, Y half of it.
"""

import math

import jax.numpy as jnp
import numpy as np

from core_jax.arrays import Array, Float, Int
from reasoning_jax.model.config import Llama3Scaling


def inverse_frequencies(
    head_dim: int, theta: float, scaling: Llama3Scaling | None = None
) -> np.ndarray:
    r"""Angle per position of each pair of dimensions, in radians per token.

    .. math:: f_i = \theta^{-2i/X}

    (Su et al., 2021, arXiv:2104.09864). With scaling, a wavelength :math:`w = 2\pi/f` above
    :math:`T/\text{low}` (T: original context) becomes `factor` times as long, one below
    :math:`T/\text{high}` stays, and between them, with
    :math:`s = (T/w - \text{low}) / (\text{high} - \text{low})`,
    :math:`f' = (1 - s) f / \text{factor} + s f`.

    Args:
      head_dim: width of a head, even.
      theta: base.
      scaling: Llama 3's, or None.

    Returns:
      Float32 [head_dim / 2], computed in float64.

    >>> inverse_frequencies(4, 100.0).tolist() == [1.0, np.float32(0.1)]
    True
    """
    frequencies_Y = theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if scaling is not None:
        wavelengths_Y = 2 * math.pi / frequencies_Y
        context = scaling.original_max_positions
        band = scaling.high_freq_factor - scaling.low_freq_factor
        kept_Y = np.clip((context / wavelengths_Y - scaling.low_freq_factor) / band, 0.0, 1.0)
        frequencies_Y = (1 - kept_Y) * frequencies_Y / scaling.factor + kept_Y * frequencies_Y
    return frequencies_Y.astype(np.float32)


def rotation(
    positions: Int[Array, "*dims"], frequencies: np.ndarray
) -> tuple[Float[Array, "*dims Y"], Float[Array, "*dims Y"]]:
    """Cosine and sine of every angle, float32."""
    angles = positions[..., None].astype(jnp.float32) * jnp.asarray(frequencies).reshape(
        (1,) * positions.ndim + (-1,)
    )
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    vectors: Float[Array, "*dims X"],
    cos: Float[Array, "*cosines Y"],
    sin: Float[Array, "*cosines Y"],
) -> Float[Array, "*dims X"]:
    """Turns the pairs (i, i + X/2) of each vector; float32 inside, the input's dtype out.

    Args:
      vectors: queries or keys.
      cos: cosines, of as many dimensions as `vectors`, broadcast against them.
      sin: sines, likewise.

    >>> import jax.numpy as jnp
    >>> quarter = (jnp.zeros((1,)), jnp.ones((1,)))
    >>> rotate(jnp.asarray([1.0, 0.0]), *quarter).tolist()
    [0.0, 1.0]
    """
    first, second = jnp.split(vectors.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(vectors.dtype)
