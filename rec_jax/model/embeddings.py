"""Token, level and position embeddings, and the output weights of every code level.

Vocabulary: BOS, SEP, then the codes of level 0, level 1, ...; a token is looked up in one table.
The paper leaves the positional scheme open: here an item's position is its distance from the
most recent item (encoder) or its place in the session (decoder), plus one embedding for the role
of the token within the item (marker, level 0, level 1, ...).

Dimension key: B batch, N history items, L code levels, D model, V vocabulary, C codes.
"""

import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from core_jax.arrays import Array, Float, Int, Key, Params
from rec_jax.model.config import OneRecConfig

BOS = 0
"""Token that starts every item of the decoder's input; fed, never predicted."""
SEP = 1
"""Token that starts every item of the encoder's input."""
NUM_SPECIAL = 2


def level_offsets(level_sizes: tuple[int, ...]) -> tuple[int, ...]:
    """First code row of each level, not counting the special tokens, and the total at the end.

    >>> level_offsets((4, 3))
    (0, 4, 7)
    """
    return tuple(itertools.accumulate(level_sizes, initial=0))


def code_tokens(
    config: OneRecConfig, codes: Int[Array, "*dims"], level: int
) -> Int[Array, "*dims"]:
    """Token ids of the codes of one level."""
    return codes + (NUM_SPECIAL + level_offsets(config.level_sizes)[level])


def item_tokens(
    config: OneRecConfig, codes: Int[Array, "B N L"], marker: int
) -> Int[Array, "B N L_plus_1"]:
    """Token ids of whole items: the marker, then the code of every level."""
    offsets_L = jnp.asarray(level_offsets(config.level_sizes)[:-1], jnp.int32)
    tokens_BNL = codes + (offsets_L + NUM_SPECIAL)[None, None]
    return jnp.pad(tokens_BNL, ((0, 0), (0, 0), (1, 0)), constant_values=marker)


class Embeddings(nn.Module):
    """All lookup tables of the model.

    Tables have unit-variance rows after the scale by sqrt(D); the output weights start small, so
    that the loss of a fresh model is close to the logarithm of the number of codes.
    """

    config: OneRecConfig

    def setup(self) -> None:
        """Declares the tables."""
        config, width = self.config, self.config.d_model
        num_codes = level_offsets(config.level_sizes)[-1]
        normal = nn.initializers.normal(1.0 / math.sqrt(width))
        self.tokens = self.param("tokens", normal, (NUM_SPECIAL + num_codes, width))
        self.roles = self.param("roles", normal, (config.num_levels + 1, width))
        self.history_positions = self.param(
            "history_positions", normal, (config.history_items, width)
        )
        self.session_positions = self.param(
            "session_positions", normal, (config.session_items, width)
        )
        if not config.tie_embeddings:
            self.outputs = self.param("outputs", nn.initializers.normal(0.02), (num_codes, width))

    def _embed(
        self, tokens: Int[Array, "*dims"], positions: Float[Array, "*dims D"]
    ) -> Float[Array, "*dims D"]:
        """Adds token, position and role embeddings; `positions` are already looked up."""
        embedded = jnp.take(self.tokens, tokens, axis=0) + positions
        return (embedded * math.sqrt(self.config.d_model)).astype(self.config.compute_dtype.dtype)

    def history(self, codes: Int[Array, "B N L"]) -> Float[Array, "B S D"]:
        """Encoder input `SEP s1 .. sL SEP ...`, S = N * (L + 1) tokens (paper, Figure 2)."""
        tokens_BNR = item_tokens(self.config, codes, SEP)
        places_NRD = self.history_positions[:, None] + self.roles[None]
        embedded_BNRD = self._embed(
            tokens_BNR, jnp.broadcast_to(places_NRD, (*tokens_BNR.shape, self.config.d_model))
        )
        return embedded_BNRD.reshape(codes.shape[0], -1, self.config.d_model)

    def session(
        self, tokens: Int[Array, "B K T"], start: Int[Array, ""]
    ) -> Float[Array, "B K T D"]:
        """Decoder input tokens that lie at positions start .. start + T - 1 of a session."""
        num_roles = self.config.num_levels + 1
        index_T = start + jnp.arange(tokens.shape[-1])
        places_TD = self.session_positions[index_T // num_roles] + self.roles[index_T % num_roles]
        return self._embed(
            tokens, jnp.broadcast_to(places_TD, (*tokens.shape, self.config.d_model))
        )

    def output_weights(self, level: int) -> Float[Array, "C D"]:
        """The row of every code of one level whose product with a hidden state is its score."""
        offsets = level_offsets(self.config.level_sizes)
        if self.config.tie_embeddings:
            table, shift = self.tokens, NUM_SPECIAL
        else:
            table, shift = self.outputs, 0
        rows = slice(shift + offsets[level], shift + offsets[level + 1])
        return table[rows].astype(self.config.compute_dtype.dtype)

    def __call__(self, codes: Int[Array, "B N L"]) -> Float[Array, "B S D"]:
        """Declares every parameter; used for initialisation."""
        return self.history(codes)


def init_embeddings(config: OneRecConfig, *, key: Key[Array, ""]) -> Params:
    """Initialises the tables."""
    example = jnp.zeros((1, config.history_items, config.num_levels), jnp.int32)
    return Embeddings(config).init(key, example)["params"]


def num_parameters(params: Params) -> int:
    """Number of scalars in a parameter tree (arrays or abstract values)."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
