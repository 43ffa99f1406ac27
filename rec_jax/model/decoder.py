"""The causal decoder layer: self-attention, cross-attention, sparse mixture of experts.

One layer serves training (a whole session at once) and generation (a few tokens of many beams
against a cache): tokens always carry a beam dimension, of size 1 in training, and the caller says
what self-attention looks at.

Dimension key: B batch, K beams, T new tokens, S history tokens, D model, H heads, X head dimension,
R rows (B * K).
"""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax.sharding import Mesh

from core_jax.arrays import Array, Bool, Float, PyTree
from core_jax.nn.attention import Attention, attend
from rec_jax.model.config import OneRecConfig
from rec_jax.moe.layer import MoeAux, SparseMoe

KeysValues = tuple[Float[Array, "..."], Float[Array, "..."]]
"""Keys and values of one layer, in that order."""
AttendSelf = Callable[[Array, Array, Array], tuple[Array, PyTree]]
"""Self-attention: queries, keys and values [R, T, H, X] of the new tokens -> what these take from
all tokens that they may look at [R, T, H, X], and what the caller wants back."""


def attend_among_new(queries: Array, keys: Array, values: Array) -> tuple[Array, None]:
    """`AttendSelf` where the new tokens are all there are, each seeing itself and those before."""
    length = queries.shape[1]
    causal_1TT = jnp.tril(jnp.ones((1, length, length), bool))
    return attend(queries, keys, values, visible=causal_1TT), None


class DecoderLayer(nn.Module):
    """Pre-norm decoder layer of OneRec (paper, Eq. 2 and Figure 2)."""

    config: OneRecConfig
    mesh: Mesh | None = None

    def setup(self) -> None:
        """Declares the sub-layers."""
        config, dtype = self.config, self.config.compute_dtype.dtype
        sizes = (config.num_heads, config.head_dim, config.d_model, dtype)
        self.self_attention_norm = nn.RMSNorm(dtype=dtype)
        self.self_attention = Attention(*sizes)
        self.cross_attention_norm = nn.RMSNorm(dtype=dtype)
        self.cross_attention = Attention(*sizes)
        self.moe_norm = nn.RMSNorm(dtype=dtype)
        self.moe = SparseMoe(config.moe, dtype)
        self.drop = nn.Dropout(config.dropout)

    def cross_keys_values(self, encoded: Float[Array, "B S D"]) -> KeysValues:
        """This layer's cross-attention keys and values [B, S, H, X] of an encoded history."""
        return self.cross_attention.keys_values(encoded)

    def __call__(
        self,
        tokens: Float[Array, "B K T D"],
        cross: KeysValues,
        cross_visible: Bool[Array, "B 1 S"],
        attend_self: AttendSelf = attend_among_new,
        token_mask: Bool[Array, "B K T"] | None = None,
        deterministic: bool = True,
    ) -> tuple[Float[Array, "B K T D"], MoeAux, PyTree]:
        """Updates the residual stream.

        Args:
          tokens: new tokens of every beam.
          cross: keys and values [B, S, H, X] of the history, shared by a user's beams.
          cross_visible: True at real history tokens.
          attend_self: self-attention between the projections.
          token_mask: True at tokens that count for the experts' load; None: all.
          deterministic: whether dropout is off.

        Returns:
          The new residual stream, the experts' statistics, and what `attend_self` gave back.
        """
        batch, beams, length, width = tokens.shape
        normed = self.self_attention_norm(tokens).reshape(batch * beams, length, width)
        queries = self.self_attention.query(normed)
        mixed, given_back = attend_self(queries, *self.self_attention.keys_values(normed))
        mixed = self.self_attention.out(mixed)
        tokens = tokens + self.drop(mixed.reshape(tokens.shape), deterministic=deterministic)

        normed = self.cross_attention_norm(tokens).reshape(batch, beams * length, width)
        mixed = self.cross_attention.mix(normed, *cross, cross_visible)
        tokens = tokens + self.drop(mixed.reshape(tokens.shape), deterministic=deterministic)

        experts, aux = self.moe(self.moe_norm(tokens), token_mask=token_mask, mesh=self.mesh)
        tokens = tokens + self.drop(experts, deterministic=deterministic)
        return tokens, aux, given_back
