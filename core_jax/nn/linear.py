"""Linear maps with float32 parameters, low-precision compute and float32 accumulation.

Dimension key: none (shapes are the caller's).
"""

import enum
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from core_jax.arrays import Array, Float


class ComputeDtype(enum.Enum):
    """The dtype of activations and of the operands of matrix products."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"

    @property
    def dtype(self) -> jnp.dtype:
        """The NumPy dtype."""
        return jnp.dtype(self.value)


class Linear(nn.Module):
    """A bias-free linear map over the last `contracted_dims` dimensions of its input.

    The kernel is stored in float32, cast to `dtype` for the product, accumulated in float32
    and cast back, which is exact on TPU and GPU tensor cores and the fast path of CPUs with
    matrix units. Initialised with variance 1 / fan-in.

    Attributes:
      features: shape of the output's trailing dimensions, for example (num_heads, head_dim).
      contracted_dims: how many trailing input dimensions are summed over.
      dtype: compute dtype.
    """

    features: tuple[int, ...]
    contracted_dims: int = 1
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, inputs: Float[Array, "*in"]) -> Float[Array, "*out"]:
        """Applies the map: [..., *in_dims] -> [..., *features], in `dtype`."""
        in_dims = inputs.shape[inputs.ndim - self.contracted_dims :]
        stddev = 1.0 / math.sqrt(math.prod(in_dims))
        kernel = self.param(
            "kernel", nn.initializers.normal(stddev), (*in_dims, *self.features), jnp.float32
        )
        lhs_dims = tuple(range(inputs.ndim - self.contracted_dims, inputs.ndim))
        rhs_dims = tuple(range(self.contracted_dims))
        outputs = jax.lax.dot_general(
            inputs.astype(self.dtype),
            kernel.astype(self.dtype),
            ((lhs_dims, rhs_dims), ((), ())),
            preferred_element_type=jnp.float32,
        )
        return outputs.astype(self.dtype)
