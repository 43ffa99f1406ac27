"""The fully visible encoder over the user's history.

Dimension key: B batch, S history tokens, D model.
"""

import flax.linen as nn
from jax.sharding import Mesh

from core_jax.arrays import Array, Bool, Float
from core_jax.nn.attention import Attention
from core_jax.nn.feed_forward import FeedForward
from rec_jax.model.config import OneRecConfig


class EncoderLayer(nn.Module):
    """Pre-norm self-attention and dense feed-forward network (paper, Section 3.2)."""

    config: OneRecConfig
    mesh: Mesh | None = None

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "B S D"],
        token_mask: Bool[Array, "B S"],
        deterministic: bool = True,
    ) -> Float[Array, "B S D"]:
        """Updates the residual stream of every history token; `token_mask` is True at real ones."""
        config, dtype = self.config, self.config.compute_dtype.dtype
        drop = nn.Dropout(config.dropout, deterministic=deterministic)
        normed = nn.RMSNorm(dtype=dtype, name="attention_norm")(tokens)
        attention = Attention(
            config.num_heads,
            config.head_dim,
            config.d_model,
            dtype,
            kernel=config.attention_kernel,
            mesh=self.mesh,
            name="attention",
        )
        tokens = tokens + drop(attention.to_keys(normed, normed, token_mask))
        normed = nn.RMSNorm(dtype=dtype, name="feed_forward_norm")(tokens)
        feed_forward = FeedForward(config.d_ff, config.activation, dtype, name="feed_forward")
        return tokens + drop(feed_forward(normed))
