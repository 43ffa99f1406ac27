"""The position-wise feed-forward network and its activations.

Dimension key: D model, F hidden.
"""

import enum

import flax.linen as nn
import jax
import jax.numpy as jnp

from core_jax.arrays import Array, Float
from core_jax.nn.linear import Linear


class Activation(enum.Enum):
    """Non-linearity of a feed-forward network or of an expert."""

    RELU = "relu"
    GELU = "gelu"
    SWIGLU = "swiglu"

    @property
    def is_gated(self) -> bool:
        """Whether the network has a second, gating projection of the input."""
        return self is Activation.SWIGLU


def activate(
    activation: Activation, hidden: Float[Array, "*dims"], gate: Float[Array, "*dims"] | None = None
) -> Float[Array, "*dims"]:
    """Applies a non-linearity; a gated one needs the second projection `gate`.

    SwiGLU (Shazeer, 2020, arXiv:2002.05202, Eq. 6): silu(gate) * hidden.
    """
    if activation is Activation.RELU:
        return jax.nn.relu(hidden)
    if activation is Activation.GELU:
        return jax.nn.gelu(hidden)
    assert gate is not None, "a gated activation needs its gate"
    return jax.nn.silu(gate) * hidden


class FeedForward(nn.Module):
    """down(activation(up(x))), or down(silu(gate(x)) * up(x)) for SwiGLU; no biases."""

    hidden_dim: int
    activation: Activation
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, inputs: Float[Array, "*lead D"]) -> Float[Array, "*lead D"]:
        """Maps [..., D] to [..., D]."""
        hidden = Linear((self.hidden_dim,), dtype=self.dtype, name="up")(inputs)
        gate = None
        if self.activation.is_gated:
            gate = Linear((self.hidden_dim,), dtype=self.dtype, name="gate")(inputs)
        hidden = activate(self.activation, hidden, gate)
        return Linear((inputs.shape[-1],), dtype=self.dtype, name="down")(hidden)
