"""Logistic regression on hand-made features: what a reward model has to beat.

Dimension key: S sessions, N history items, M session items, I items, C categories, D embedding,
X features, T targets, W training sessions.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from core_jax.arrays import Array, Bool, Float
from rec_jax.reward.item_vectors import ItemFacts
from rec_jax.reward.sessions import RewardData, histories

_SMOOTHING = 10.0
"""Sessions' worth of the global mean that a rate starts with."""
_PENALTY = 1.0
"""L2 penalty of every weight, in sessions' worth of nats."""
_MOST_STEPS = 200


def baseline_probabilities(
    data: RewardData,
    facts: ItemFacts,
    trains: Bool[np.ndarray, "S"],
    *,
    history_items: int,
    knows_user: bool = True,
) -> Float[np.ndarray, "S T"]:
    """Trains one regression per target and predicts all sessions.

    Features, standardised on the training sessions: mean label rate of the items (smoothed, and
    without the session itself where it trains), log of how often other training sessions show
    them, log duration, cosine to the
    history's mean (mean and greatest over the items), share of items with a category of the
    history, number of categories, the user's mean label in earlier sessions of the training period,
    number of items, log length of the history.

    Args:
      data: all sessions.
      facts: of the items.
      trains: which sessions are trained on.
      history_items: N, most recent items that are read.
      knows_user: whether the user's mean label so far is a feature. A reward model reads items and
        not what users did with them, so only without it do both know the same of the user.

    Returns:
      Probabilities of every session.
    """
    shared_SX = _shared_features(data, facts, history_items)
    columns = []
    for target in range(data.labels.values.shape[1]):
        label_S, mask_S = data.labels.values[:, target], data.labels.mask[:, target]
        own = [_item_rates(data, label_S, trains & mask_S, len(facts.embeddings))]
        if knows_user:
            own.append(_user_rates(data, label_S, mask_S))
        own_SX = np.stack(own, axis=1)
        features_SX = np.concatenate([shared_SX, own_SX], axis=1)
        chosen = trains & mask_S
        mean_X, std_X = features_SX[chosen].mean(axis=0), features_SX[chosen].std(axis=0)
        scaled_SX = (features_SX - mean_X) / np.where(std_X > 0, std_X, 1.0)
        weights_X, bias = fit_logistic(
            scaled_SX[chosen].astype(np.float32), label_S[chosen], penalty=_PENALTY
        )
        logit_S = scaled_SX @ np.asarray(weights_X, np.float64) + float(bias)
        columns.append(0.5 * (1 + np.tanh(logit_S / 2)))
    return np.stack(columns, axis=1)


def fit_logistic(
    features: Float[np.ndarray, "W X"], labels: Float[np.ndarray, "W"], *, penalty: float
) -> tuple[Float[Array, "X"], Float[Array, ""]]:
    r"""Minimises :math:`\sum_w BCE(y_w, x_w^T \beta + b) + \lambda \|\beta\|^2 / 2` by L-BFGS.

    Args:
      features: standardised.
      labels: y in [0, 1].
      penalty: lambda; the bias has none.

    Returns:
      Weights and bias.
    """
    num_rows = float(len(labels))

    def loss(params: tuple[Array, Array]) -> Array:
        logits_W = jnp.asarray(features) @ params[0] + params[1]
        nats = jnp.sum(optax.sigmoid_binary_cross_entropy(logits_W, jnp.asarray(labels)))
        return (nats + penalty / 2 * jnp.sum(params[0] ** 2)) / num_rows

    solver = optax.lbfgs()
    start = (jnp.zeros(features.shape[1]), jnp.zeros(()))

    @jax.jit
    def solve(params: tuple[Array, Array]) -> tuple[Array, Array]:
        value_and_grad = optax.value_and_grad_from_state(loss)

        def step(carry: tuple) -> tuple:
            params, state, count, _ = carry
            value, grad = value_and_grad(params, state=state)
            updates, state = solver.update(
                grad, state, params, value=value, grad=grad, value_fn=loss
            )
            return optax.apply_updates(params, updates), state, count + 1, optax.tree.norm(grad)

        def goes_on(carry: tuple) -> Array:
            return (carry[2] < _MOST_STEPS) & (carry[3] > 1e-5)

        return jax.lax.while_loop(
            goes_on, step, (params, solver.init(params), jnp.zeros((), jnp.int32), jnp.inf)
        )[0]

    return solve(start)


def _shared_features(data: RewardData, facts: ItemFacts, history_items: int) -> np.ndarray:
    """Float64 [S, X]: features that do not depend on the target."""
    is_item_SM, item_SM = data.items >= 0, np.maximum(data.items, 0)
    history_SN = histories(data, history_items)
    is_history_SN, history_SN = history_SN >= 0, np.maximum(history_SN, 0)
    columns = [
        is_item_SM.sum(axis=1).astype(np.float64),
        np.log1p(data.history_end - data.history_start),
        _mean(
            np.log1p(_other_sessions(data, item_SM, is_item_SM, len(facts.embeddings))), is_item_SM
        ),
    ]
    if facts.durations is not None:
        log_I = np.log1p(facts.durations)
        known_I = np.where(np.isnan(log_I), np.nanmean(log_I), log_I)
        columns.append(_mean(known_I[item_SM], is_item_SM))
    length_I1 = np.linalg.norm(facts.embeddings, axis=1, keepdims=True)
    unit_ID = facts.embeddings / np.where(length_I1 > 0, length_I1, 1.0)
    taste_SD = np.einsum("snd,sn->sd", unit_ID[history_SN], is_history_SN.astype(unit_ID.dtype))
    length_S1 = np.linalg.norm(taste_SD, axis=1, keepdims=True)
    taste_SD = taste_SD / np.where(length_S1 > 0, length_S1, 1.0)
    cosine_SM = np.einsum("smd,sd->sm", unit_ID[item_SM], taste_SD)
    columns.append(_mean(cosine_SM, is_item_SM))
    columns.append(np.where(is_item_SM, cosine_SM, -1.0).max(axis=1))
    if facts.categories is not None and facts.categories.shape[1]:
        shown_SMC: np.ndarray = facts.categories[item_SM] & is_item_SM[..., None]
        known_SNC: np.ndarray = facts.categories[history_SN] & is_history_SN[..., None]
        known_SC = np.asarray(known_SNC.any(axis=1))
        is_known_SM = np.asarray((shown_SMC & known_SC[:, None]).any(axis=2))
        columns.append(_mean(is_known_SM, is_item_SM))
        columns.append(shown_SMC.any(axis=1).sum(axis=1))
    return np.stack(columns, axis=1).astype(np.float64)


def _other_sessions(
    data: RewardData, item_SM: np.ndarray, is_item_SM: np.ndarray, num_items: int
) -> np.ndarray:
    """Int [S, M]: how often other sessions of the training period show each item."""
    uses_SM = is_item_SM & data.is_train[:, None]
    count_I = np.bincount(item_SM[uses_SM], minlength=num_items)
    return count_I[item_SM] - _own_showings(item_SM, is_item_SM) * uses_SM


def _own_showings(item_SM: np.ndarray, is_item_SM: np.ndarray) -> np.ndarray:
    """Int [S, M]: how often the session itself shows each of its items; it may do so twice."""
    same_SMM = (item_SM[:, :, None] == item_SM[:, None, :]) & is_item_SM[:, None, :]
    return same_SMM.sum(axis=2)


def _item_rates(
    data: RewardData, label_S: np.ndarray, trains_S: np.ndarray, num_items: int
) -> np.ndarray:
    """Float64 [S]: mean over the items of their smoothed mean label in training sessions.

    A training session is taken out of its own items' rates: else its label would be its feature.
    """
    is_item_SM, item_SM = data.items >= 0, np.maximum(data.items, 0)
    uses_SM = is_item_SM & trains_S[:, None]
    shown = item_SM[uses_SM]
    label_SM = np.broadcast_to(label_S[:, None], item_SM.shape)
    total_I = np.bincount(shown, weights=label_SM[uses_SM], minlength=num_items)
    count_I = np.bincount(shown, minlength=num_items).astype(np.float64)
    overall = float(label_S[trains_S].mean())
    own_SM = _own_showings(item_SM, is_item_SM) * uses_SM
    count_SM = count_I[item_SM] - own_SM
    total_SM = total_I[item_SM] - own_SM * label_SM
    rate_SM = (total_SM + _SMOOTHING * overall) / (count_SM + _SMOOTHING)
    return _mean(rate_SM, is_item_SM)


def _user_rates(data: RewardData, label_S: np.ndarray, mask_S: np.ndarray) -> np.ndarray:
    """Float64 [S]: smoothed mean label of the user's earlier sessions in the training period.

    Earlier ones are those that ended before this one began.
    """
    counts_S = mask_S & data.is_train
    overall = float(label_S[counts_S].mean())
    order = np.lexsort((data.end_time, data.user))
    # Both orders are by user first, so a user's sessions are one range in each of them.
    user_R, end_R = data.user[order], data.end_time[order]
    gained_R = np.concatenate([[0.0], np.cumsum(np.where(counts_S, label_S, 0.0)[order])])
    number_R = np.concatenate([[0], np.cumsum(counts_S[order])])
    _, rank = np.unique(np.concatenate([end_R, data.start_time]), return_inverse=True)
    stride = np.int64(rank.max() + 1)
    key_R = user_R.astype(np.int64) * stride + rank[: len(end_R)]
    first_S = np.searchsorted(user_R, data.user, side="left")
    stop_S = np.searchsorted(key_R, data.user.astype(np.int64) * stride + rank[len(end_R) :])
    total_S = gained_R[stop_S] - gained_R[first_S]
    count_S = number_R[stop_S] - number_R[first_S]
    return (total_S + overall) / (count_S + 1.0)


def _mean(value_SM: np.ndarray, is_item_SM: np.ndarray) -> np.ndarray:
    """Mean over the items that are there."""
    return np.where(is_item_SM, value_SM, 0.0).sum(axis=1) / np.maximum(is_item_SM.sum(axis=1), 1)
