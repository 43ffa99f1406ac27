"""Layers of the reward model: item embeddings, how user and session meet, towers.

Dimension key: B users, N history items, K sessions of a user, M session items, R = K * M items of
all sessions, L code levels, D model, T heads that are targets, F hidden units of a tower.
"""

import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from core_jax.arrays import Array, Bool, Float
from core_jax.nn.attention import MASKED_SCORE, Attention
from core_jax.nn.linear import Linear
from rec_jax.reward.batch import RewardBatch
from rec_jax.reward.config import RewardArchitecture, RewardModelConfig

_SMALL = nn.initializers.normal(0.02)
_SMALL_CODES = 0.1


class RewardNet(nn.Module):
    """The whole model; `rec_jax.reward.model` gives it to the rest as two functions."""

    config: RewardModelConfig

    @nn.compact
    def __call__(self, batch: RewardBatch, deterministic: bool = True) -> Float[Array, "B K T"]:
        """Logits of every head, float32."""
        config = self.config
        drop = nn.Dropout(config.dropout, deterministic=deterministic)
        items = ItemEmbeddings(config, name="embeddings")
        history_BND = drop(items(batch.history_items, batch.history_codes))
        session_BKMD = drop(items(batch.session_items, batch.session_codes))
        arguments = (history_BND, batch.history_mask, session_BKMD, batch.session_mask, drop)
        if config.architecture is RewardArchitecture.TARGET_ATTENTION:
            session_BKD = TargetAttentionBody(config, name="body")(*arguments)
        else:
            session_BKD = PooledBody(config, name="body")(*arguments)
        logits_BKT = Towers(config, name="towers")(session_BKD, drop)
        return logits_BKT + WidePart(config, name="wide")(*arguments)


class ItemEmbeddings(nn.Module):
    """An item's vector: the sum of its codes' embeddings, and one of its own where wanted.

    Codes start small beside an item's own vector, which `init_params` can start from what the
    catalogue knows: with a few ten thousand sessions, what is random at first is overfitted.
    """

    config: RewardModelConfig

    @nn.compact
    def __call__(self, items: Array, codes: Array) -> Float[Array, "*lead D"]:
        """Looks up [...] item numbers with [..., L] codes, in the compute dtype."""
        config = self.config
        offsets = tuple(itertools.accumulate(config.level_sizes, initial=0))
        spread = _SMALL_CODES if config.use_item_ids else 1.0
        table = self.param(
            "codes",
            nn.initializers.normal(spread / math.sqrt(config.num_levels)),
            (offsets[-1], config.d_model),
        )
        rows = codes + jnp.asarray(offsets[:-1], jnp.int32).reshape((1,) * items.ndim + (-1,))
        vectors = jnp.take(table, rows, axis=0).sum(axis=-2)
        if config.use_item_ids:
            own = self.param(
                "items", nn.initializers.normal(1.0), (config.num_items, config.d_model)
            )
            vectors = vectors + jnp.take(own, items, axis=0)
        return vectors.astype(config.compute_dtype.dtype)


class TargetAttentionBody(nn.Module):
    """Target attention to the history, self-attention over the session, sum (Section 3.3.1)."""

    config: RewardModelConfig

    @nn.compact
    def __call__(
        self,
        history: Float[Array, "B N D"],
        history_mask: Bool[Array, "B N"],
        session: Float[Array, "B K M D"],
        session_mask: Bool[Array, "B K M"],
        drop: nn.Dropout,
    ) -> Float[Array, "B K D"]:
        """One vector per session. Keys and values of a history serve all sessions of its user."""
        config, dtype = self.config, self.config.compute_dtype.dtype
        width, (batch, sessions, length) = config.d_model, session.shape[:3]
        attention = (config.num_heads, config.head_dim, width, dtype)
        positions = self.param("history_positions", _SMALL, (config.history_items, width))
        source_BND = history + positions[None, -history.shape[1] :].astype(dtype)
        norm = nn.RMSNorm(dtype=dtype, name="history_norm")
        item_BRD = session.reshape(batch, sessions * length, width)
        # e_i = v_i (.) u: the item asks the history what the user did with items like it.
        user_BRD = Attention(*attention, name="target_attention")(
            nn.RMSNorm(dtype=dtype, name="item_norm")(item_BRD),
            norm(source_BND),
            history_mask[:, None],
        )
        # Without a visible key attention averages padding; a user without a history adds nothing.
        user_BRD = user_BRD * history_mask.any(axis=1)[:, None, None].astype(dtype)
        likeness_BRZ = _likeness(item_BRD, history, history_mask)
        met_BRZ = jnp.concatenate([item_BRD, user_BRD, item_BRD * user_BRD, likeness_BRZ], axis=-1)
        met_BRD = jax.nn.gelu(Linear((width,), dtype=dtype, name="meet")(met_BRZ))
        aware_BRD = item_BRD + drop(met_BRD)
        # h_f = SelfAttention(h), with where in the session an item stands.
        places = self.param("session_positions", _SMALL, (config.session_items, width))
        item_SMD = aware_BRD.reshape(batch * sessions, length, width)
        item_SMD = item_SMD + places[None, :length].astype(dtype)
        normed_SMD = nn.RMSNorm(dtype=dtype, name="session_norm")(item_SMD)
        mask_SM = session_mask.reshape(batch * sessions, length)
        mixed_SMD = Attention(*attention, name="session_attention")(
            normed_SMD, normed_SMD, mask_SM[:, None]
        )
        mixed_SMD = nn.RMSNorm(dtype=dtype, name="out_norm")(item_SMD + drop(mixed_SMD))
        # Sum(h_f) over the items that are there.
        summed_SD = jnp.where(mask_SM[:, :, None], mixed_SMD, 0).sum(axis=1)
        return summed_SD.reshape(batch, sessions, width)


class PooledBody(nn.Module):
    """Pooled history, an MLP per item, pooled session: no attention; ours, for a second judge."""

    config: RewardModelConfig

    @nn.compact
    def __call__(
        self,
        history: Float[Array, "B N D"],
        history_mask: Bool[Array, "B N"],
        session: Float[Array, "B K M D"],
        session_mask: Bool[Array, "B K M"],
        drop: nn.Dropout,
    ) -> Float[Array, "B K D"]:
        """One vector per session."""
        config, dtype = self.config, self.config.compute_dtype.dtype
        width, length = config.d_model, session.shape[2]
        recency = self.param("recency", _recency, (config.history_items,))
        pooled = [
            _masked_mean(history, jnp.where(history_mask, weights[None], MASKED_SCORE))
            for weights in (jnp.zeros(history.shape[1]), recency[-history.shape[1] :])
        ]
        has_history_B1 = history_mask.any(axis=1, keepdims=True)
        pooled_BZ = jnp.where(has_history_B1, jnp.concatenate(pooled, axis=-1), 0).astype(dtype)
        user_BD = Linear((width,), dtype=dtype, name="user")(pooled_BZ)
        user_BKMD = jnp.broadcast_to(user_BD[:, None, None], session.shape)
        met_BKMZ = jnp.concatenate([session, user_BKMD, session * user_BKMD], axis=-1)
        hidden_BKMD = drop(jax.nn.gelu(Linear((width,), dtype=dtype, name="meet")(met_BKMZ)))
        item_BKMD = Linear((width,), dtype=dtype, name="mix")(hidden_BKMD)
        item_BKMD = jnp.where(session_mask[..., None], jax.nn.gelu(item_BKMD), 0)
        places = self.param("places", nn.initializers.ones, (config.session_items,))
        count_BK1 = jnp.maximum(session_mask.sum(axis=-1, keepdims=True), 1).astype(dtype)
        mean_BKD = item_BKMD.sum(axis=2) / count_BK1
        weighted_BKD = jnp.einsum("bkmd,m->bkd", item_BKMD, places[:length].astype(dtype))
        joined_BKZ = jnp.concatenate([mean_BKD, weighted_BKD], axis=-1)
        return Linear((width,), dtype=dtype, name="join")(joined_BKZ)


class WidePart(nn.Module):
    """A linear shortcut to the logits, beside the paper's deep path (Cheng et al., 2016).

    What is simple (long videos are watched longer, users like what is like their history) is
    learned here within a few steps; from ten thousand sessions the deep path alone does not.
    """

    config: RewardModelConfig

    @nn.compact
    def __call__(
        self,
        history: Float[Array, "B N D"],
        history_mask: Bool[Array, "B N"],
        session: Float[Array, "B K M D"],
        session_mask: Bool[Array, "B K M"],
        drop: nn.Dropout,
    ) -> Float[Array, "B K T"]:
        """Linear in the items' vectors, in their products with the user's mean, in likeness."""
        batch, sessions, length, width = session.shape
        session, history = session.astype(jnp.float32), history.astype(jnp.float32)
        shown_BRD = session.reshape(batch, sessions * length, width)
        likeness_BKMZ = _likeness(shown_BRD, history, history_mask).reshape(
            batch, sessions, length, -1
        )
        mask_BN1 = history_mask[:, :, None]
        count_B1 = jnp.maximum(history_mask.sum(axis=1, keepdims=True), 1)
        user_BD = jnp.where(mask_BN1, history, 0.0).sum(axis=1) / count_B1
        features_BKMZ = jnp.concatenate(
            [session, session * user_BD[:, None, None], likeness_BKMZ], axis=-1
        )
        mask_BKM1 = session_mask[..., None]
        total_BKZ = jnp.where(mask_BKM1, features_BKMZ, 0.0).sum(axis=2)
        count_BK1 = session_mask.sum(axis=2, keepdims=True).astype(jnp.float32)
        mean_BKZ = total_BKZ / jnp.maximum(count_BK1, 1.0)
        wide_BKZ = jnp.concatenate([mean_BKZ, count_BK1 / self.config.session_items], axis=-1)
        kernel = self.param(
            "kernel", nn.initializers.zeros, (wide_BKZ.shape[-1], self.config.num_outputs)
        )
        return jnp.einsum("bkz,zt->bkt", drop(wide_BKZ), kernel)


class Towers(nn.Module):
    """One small network per target, and the head of the P-score where it is wanted."""

    config: RewardModelConfig

    @nn.compact
    def __call__(self, session: Float[Array, "B K D"], drop: nn.Dropout) -> Float[Array, "B K T"]:
        """Logits, float32; the sigmoid is the loss's and the scorer's."""
        config, dtype = self.config, self.config.compute_dtype.dtype
        heads, hidden = config.num_targets, config.d_tower
        scale = nn.initializers.normal(1.0 / math.sqrt(config.d_model))
        up = self.param("up", scale, (heads, config.d_model, hidden))
        up_bias = self.param("up_bias", nn.initializers.zeros, (heads, hidden))
        down = self.param("down", _SMALL, (heads, hidden))
        bias = self.param("bias", nn.initializers.zeros, (heads,))
        hidden_BKTF = jnp.einsum(
            "bkd,tdf->bktf", session, up.astype(dtype), preferred_element_type=jnp.float32
        )
        hidden_BKTF = drop(jax.nn.gelu(hidden_BKTF + up_bias[None, None]))
        logits_BKT = jnp.einsum("bktf,tf->bkt", hidden_BKTF, down) + bias[None, None]
        if not config.p_score:
            return logits_BKT
        # arXiv:2506.13695: hidden states of the towers and the representation -> one score.
        seen_BKZ = jnp.concatenate(
            [hidden_BKTF.reshape(*session.shape[:2], -1), session.astype(jnp.float32)], axis=-1
        )
        joined_BKF = jax.nn.gelu(Linear((hidden,), name="p_up")(seen_BKZ))
        score_BK = Linear((1,), name="p_down")(drop(joined_BKF))
        p_bias = self.param("p_bias", nn.initializers.zeros, (1,))
        return jnp.concatenate([logits_BKT, score_BK + p_bias[None, None]], axis=-1)


def _likeness(
    items: Float[Array, "B R D"], history: Float[Array, "B N D"], history_mask: Bool[Array, "B N"]
) -> Float[Array, "B R 2"]:
    """Greatest and mean cosine of each item to the history, 0 without one.

    Projections have to be learned before attention tells like from unlike; vectors that share
    codes are alike from the first step.
    """
    unit_BRD, unit_BND = (
        vectors * jax.lax.rsqrt(jnp.sum(vectors**2, axis=-1, keepdims=True) + 1e-6)
        for vectors in (items.astype(jnp.float32), history.astype(jnp.float32))
    )
    cosine_BRN = jnp.einsum("brd,bnd->brn", unit_BRD, unit_BND)
    mask_B1N = history_mask[:, None]
    greatest_BR = jnp.max(jnp.where(mask_B1N, cosine_BRN, -1.0), axis=-1)
    greatest_BR = jnp.where(mask_B1N.any(axis=-1), greatest_BR, 0.0)
    count_B1 = jnp.maximum(mask_B1N.sum(axis=-1), 1)
    mean_BR = jnp.where(mask_B1N, cosine_BRN, 0.0).sum(axis=-1) / count_B1
    return jnp.stack([greatest_BR, mean_BR], axis=-1).astype(items.dtype)


def _recency(key: Array, shape: tuple[int, ...]) -> Array:
    """Initial log-weights that fall by half every five items."""
    del key
    return jnp.log(2.0) / 5 * jnp.arange(1.0 - shape[0], 1.0)


def _masked_mean(
    history: Float[Array, "B N D"], scores: Float[Array, "B N"]
) -> Float[Array, "B D"]:
    """Average with the softmax of the scores as weights."""
    weights_BN = jax.nn.softmax(scores, axis=-1).astype(history.dtype)
    return jnp.einsum("bn,bnd->bd", weights_BN, history)
