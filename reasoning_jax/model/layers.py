"""The layers of a Llama-family decoder, each linear map with room for a low-rank adapter.

Dimension key: B batch, T tokens, D model, H query heads, K key heads, X head dimension, F hidden,
R rank of an adapter, S streams.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from core_jax.arrays import Array, Float, Int
from core_jax.nn.flash_attention import AttentionKernel
from reasoning_jax.model.attention import attend_causally
from reasoning_jax.model.config import DecoderConfig
from reasoning_jax.model.low_rank import low_rank_product
from reasoning_jax.model.rope import rotate


class RmsNorm(nn.Module):
    """Root-mean-square norm in float32, cast to the input's dtype before the scale is applied.

    The order of the reference (Hugging Face's Llama): multiplying first rounds differently in
    bfloat16.
    """

    eps: float

    @nn.compact
    def __call__(self, inputs: Float[Array, "*lead D"]) -> Float[Array, "*lead D"]:
        """Normalises the last dimension."""
        scale = self.param("scale", nn.initializers.ones, (inputs.shape[-1],), jnp.float32)
        return rms_norm(inputs, scale, self.eps)


def rms_norm(
    inputs: Float[Array, "*lead D"], scale: Float[Array, "D"], eps: float
) -> Float[Array, "*lead D"]:
    """`RmsNorm` on arrays: inputs / sqrt(mean(inputs^2) + eps) * scale."""
    wide = inputs.astype(jnp.float32)
    normed = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    aligned = scale.astype(inputs.dtype).reshape((1,) * (inputs.ndim - 1) + (-1,))
    return normed.astype(inputs.dtype) * aligned


class Projection(nn.Module):
    """A linear map of the last `contracted_dims` dimensions, with an adapter where one is given.

    The parameters are `kernel` [*in, *out], `bias` [*out] if `use_bias`, and, only where
    `reasoning_jax.model.lora.attach` has put them, `lora_a` [*in, R] and `lora_b` [R, *out],
    which already carries the factor alpha / rank. Products accumulate in float32.

    Adapters of S streams (`reasoning_jax.model.lora.stack_adapters`) lie side by side along R, and
    `lora_streams` [S, R] says whose each place is; rows take turns, row i being of stream i mod S.
    The kernel and both factors then see all rows in one product each, and what a row has of other
    streams is set to zero between the factors.
    """

    features: tuple[int, ...]
    contracted_dims: int = 1
    use_bias: bool = False
    dtype: jnp.dtype = jnp.dtype("float32")
    lora_dropout: float = 0.0

    @nn.compact
    def __call__(self, inputs: Float[Array, "*in"]) -> Float[Array, "*out"]:
        """Applies the map and its adapter, in `dtype`."""
        in_dims = inputs.shape[inputs.ndim - self.contracted_dims :]
        initialiser = nn.initializers.normal(1.0 / math.sqrt(math.prod(in_dims)))
        kernel = self.param("kernel", initialiser, (*in_dims, *self.features), jnp.float32)
        outputs = _contract(inputs, kernel, self.contracted_dims, self.dtype)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, self.features, jnp.float32)
            lead = (1,) * (outputs.ndim - len(self.features))
            outputs = outputs + bias.astype(self.dtype).reshape(lead + self.features)
        if self.has_variable("params", "lora_a"):
            outputs = outputs + self._adapted(self._drop(inputs))
        return outputs

    def _adapted(self, inputs: Float[Array, "*in"]) -> Float[Array, "*out"]:
        """The adapter's product, or each row's own of several streams."""
        down = self.get_variable("params", "lora_a")
        up = self.get_variable("params", "lora_b")
        if not self.has_variable("params", "lora_streams"):
            return low_rank_product(self.contracted_dims, self.dtype, inputs, down, up)
        narrow = _contract(inputs, down, self.contracted_dims, self.dtype)
        own = _own_stream(narrow, self.get_variable("params", "lora_streams"))
        return _contract(own, up, 1, self.dtype)

    def _drop(self, inputs: Float[Array, "*in"]) -> Float[Array, "*in"]:
        """The adapter's inputs, some left out while training (there is a key then)."""
        if not self.lora_dropout or not self.has_rng("dropout"):
            return inputs
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.lora_dropout, inputs.shape)
        return jnp.where(keep, inputs / (1 - self.lora_dropout), 0).astype(inputs.dtype)


def _contract(inputs: Array, kernel: Array, dims: int, dtype: jnp.dtype) -> Array:
    """Sums the last `dims` dimensions of `inputs` against the first of `kernel`."""
    last = tuple(range(inputs.ndim - dims, inputs.ndim))
    product = jax.lax.dot_general(
        inputs.astype(dtype),
        kernel.astype(dtype),
        ((last, tuple(range(dims))), ((), ())),
        preferred_element_type=jnp.float32,
    )
    return product.astype(dtype)


def _own_stream(narrow: Float[Array, "N *in R"], streams: Array) -> Float[Array, "N *in R"]:
    """Zero where a place along the rank is not of the row's stream."""
    num_streams, rank = streams.shape
    apart = narrow.reshape(-1, num_streams, *narrow.shape[1:])
    is_own = streams.reshape(1, num_streams, *(1,) * (narrow.ndim - 2), rank)
    return jnp.where(is_own, apart, 0).reshape(narrow.shape)


class SelfAttention(nn.Module):
    """Grouped-query attention with rotary positions."""

    config: DecoderConfig
    lora_dropout: float = 0.0

    def setup(self) -> None:
        """Declares the four projections."""
        config = self.config
        common = {"dtype": config.dtype.dtype, "lora_dropout": self.lora_dropout}
        query_heads = (config.num_heads, config.head_dim)
        key_heads = (config.num_kv_heads, config.head_dim)
        self.query = Projection(query_heads, use_bias=config.qkv_bias, **common)
        self.key = Projection(key_heads, use_bias=config.qkv_bias, **common)
        self.value = Projection(key_heads, use_bias=config.qkv_bias, **common)
        self.out = Projection((config.model_dim,), contracted_dims=2, **common)

    def __call__(
        self,
        inputs: Float[Array, "B T D"],
        rotation: tuple[Float[Array, "B T 1 Y"], Float[Array, "B T 1 Y"]],
        segment_ids: Int[Array, "B T"],
        kernel: AttentionKernel,
        mesh: Mesh | None,
    ) -> tuple[Float[Array, "B T D"], tuple[Float[Array, "B T K X"], Float[Array, "B T K X"]]]:
        """Attends within segments; also gives the rotated keys, and the values."""
        queries = rotate(self.query(inputs), *rotation)
        keys, values = rotate(self.key(inputs), *rotation), self.value(inputs)
        mixed = attend_causally(
            queries, keys, values, segment_ids=segment_ids, kernel=kernel, mesh=mesh
        )
        return self.out(mixed), (keys, values)


class GatedMlp(nn.Module):
    """down(silu(gate(x)) * up(x)) (SwiGLU; Shazeer, 2020, arXiv:2002.05202, Eq. 6)."""

    config: DecoderConfig
    lora_dropout: float = 0.0

    @nn.compact
    def __call__(self, inputs: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Maps every token by itself."""
        config = self.config
        common = {"dtype": config.dtype.dtype, "lora_dropout": self.lora_dropout}
        gate = Projection((config.hidden_dim,), name="gate", **common)(inputs)
        up = Projection((config.hidden_dim,), name="up", **common)(inputs)
        return Projection((config.model_dim,), name="down", **common)(jax.nn.silu(gate) * up)


class DecoderLayer(nn.Module):
    """Pre-norm layer: attention, then the gated network, each added to the residual stream."""

    config: DecoderConfig
    lora_dropout: float = 0.0

    def setup(self) -> None:
        """Declares the sub-layers."""
        self.attention_norm = RmsNorm(self.config.norm_eps)
        self.attention = SelfAttention(self.config, self.lora_dropout)
        self.mlp_norm = RmsNorm(self.config.norm_eps)
        self.mlp = GatedMlp(self.config, self.lora_dropout)

    def __call__(
        self,
        hidden: Float[Array, "B T D"],
        rotation: tuple[Float[Array, "B T 1 Y"], Float[Array, "B T 1 Y"]],
        segment_ids: Int[Array, "B T"],
        kernel: AttentionKernel = AttentionKernel.AUTO,
        mesh: Mesh | None = None,
    ) -> tuple[Float[Array, "B T D"], tuple[Float[Array, "B T K X"], Float[Array, "B T K X"]]]:
        """Updates the residual stream; also gives the layer's rotated keys, and its values."""
        mixed, keys_values = self.attention(
            self.attention_norm(hidden), rotation, segment_ids, kernel, mesh
        )
        hidden = hidden + mixed
        return hidden + self.mlp(self.mlp_norm(hidden)), keys_values
