"""The causal decoder layer: self-attention, cross-attention, sparse mixture of experts.

One layer serves training (a whole session at once) and generation (a few tokens of many beams
against a cache): tokens always carry a beam dimension, of size 1 in training.

Dimension key: B batch, K beams, T new tokens, P cached positions, S history tokens, D model,
H heads, X head dimension, R rows (B * K).
"""

import flax.linen as nn
import jax
from jax.sharding import Mesh

from core_jax.arrays import Array, Bool, Float, Int
from core_jax.nn.attention import Attention
from rec_jax.model.config import OneRecConfig
from rec_jax.moe.layer import MoeAux, SparseMoe

KeysValues = tuple[Float[Array, "..."], Float[Array, "..."]]
"""Keys and values of one layer, in that order."""


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
        self_visible: Bool[Array, "1 T P"],
        cache: KeysValues | None = None,
        start: Int[Array, ""] | int = 0,
        token_mask: Bool[Array, "B K T"] | None = None,
        deterministic: bool = True,
    ) -> tuple[Float[Array, "B K T D"], MoeAux, KeysValues | None]:
        """Updates the residual stream.

        Args:
          tokens: new tokens of every beam.
          cross: keys and values [B, S, H, X] of the history, shared by a user's beams.
          cross_visible: True at real history tokens.
          self_visible: which of the P positions each new token may look at.
          cache: keys and values [B, K, P, H, X] of earlier tokens, or None to attend only among
            the new tokens (P = T).
          start: position of the first new token in the cache.
          token_mask: True at tokens that count for the experts' load; None: all.
          deterministic: whether dropout is off.

        Returns:
          The new residual stream, the experts' statistics, and the new tokens' keys and values
          [B, K, T, H, X], for the caller to put into the cache (None without one).
        """
        batch, beams, length, width = tokens.shape
        rows = (batch * beams, length, width)
        normed = self.self_attention_norm(tokens).reshape(rows)
        keys, values = self.self_attention.keys_values(normed)
        new = None
        if cache is not None:
            new = _split_beams(keys, beams), _split_beams(values, beams)
            keys, values = _extend(cache[0], keys, start), _extend(cache[1], values, start)
        mixed = self.self_attention.mix(normed, keys, values, self_visible)
        tokens = tokens + self.drop(mixed.reshape(tokens.shape), deterministic=deterministic)

        normed = self.cross_attention_norm(tokens).reshape(batch, beams * length, width)
        mixed = self.cross_attention.mix(normed, *cross, cross_visible)
        tokens = tokens + self.drop(mixed.reshape(tokens.shape), deterministic=deterministic)

        experts, aux = self.moe(self.moe_norm(tokens), token_mask=token_mask, mesh=self.mesh)
        return tokens + self.drop(experts, deterministic=deterministic), aux, new


def _extend(
    held: Float[Array, "B K P H X"], new: Float[Array, "R T H X"], start: Int[Array, ""] | int
) -> Float[Array, "R P H X"]:
    """Earlier keys or values with the new ones in their place, flat over beams."""
    held_RPHX = held.reshape(-1, *held.shape[2:])
    return jax.lax.dynamic_update_slice_in_dim(held_RPHX, new, start, axis=1)


def _split_beams(rows: Float[Array, "R T H X"], beams: int) -> Float[Array, "B K T H X"]:
    """Users and beams as two dimensions."""
    return rows.reshape(-1, beams, *rows.shape[1:])
