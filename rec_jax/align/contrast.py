r"""Contrastive scores of the codes of sessions: which choice made a rejected session a bad one.

Two models of the round's own candidates, one of the best and one of the worst, disagree about a
code; with their logits :math:`z^+`, :math:`z^-`

.. math:: s = \mathrm{softmax}_{v \in C}((1 + \beta) z^+_v - \beta z^-_v)[code]

(Lin et al., 2024, arXiv:2411.19943, Eq. 1). C holds the codes that the catalogue allows after the
codes before it in the item, not all codes of the level: the search chose among these, and a code
that has no alternative (often the last of a semantic ID) gets s = 1, hence no blame. Over all codes
the ratio of two tiny probabilities of a code that no item has could take the mass of s.

Dimension key: P groups of a batch, Q groups, G responses of a group, M session items, L code
levels, C codes of a level, N history items, I catalogue items, U contexts, K candidates per
context, S sessions, T codes of a session (M * L).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from core_jax.arrays import Array, Bool, Float, Int, Key, Params
from core_jax.contrast import ContrastScores, contrast_scores
from core_jax.errors import DataError
from core_jax.mesh import replicated
from core_jax.preference import weighted_mean
from core_jax.token_weights import token_weights
from rec_jax.align.batch import map_groups
from rec_jax.align.candidates import Candidates
from rec_jax.align.contrast_config import ContrastConfig, WeightScale
from rec_jax.align.source import Preferences, Record
from rec_jax.data.inputs import SessionSource
from rec_jax.model import onerec
from rec_jax.model.config import OneRecConfig
from rec_jax.semantic_ids.prefix_index import PrefixIndex, legal_codes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sessions:
    """Candidates that a model learns to write. NumPy arrays."""

    examples: np.ndarray
    """Int64 [S]: the training example that each session answers."""
    items: np.ndarray
    """Int32 [S, M]: item numbers."""

    def __len__(self) -> int:
        return len(self.examples)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SessionScores:
    """Contrastive scores, and the codes that they belong to. NumPy arrays."""

    codes: np.ndarray
    """Int32 [Q, G, M, L]: semantic IDs of the responses."""
    log_scores: np.ndarray
    """Float32 [Q, G, M, L]: log s in nats, 0 where masked."""
    positive: np.ndarray
    """Float32 [Q, G, M, L]: log-probability under the positive model, 0 where masked."""
    negative: np.ndarray
    """Float32 [Q, G, M, L]: log-probability under the negative model, 0 where masked."""


def choose_sessions(candidates: Candidates, *, share: float, best: bool) -> Sessions:
    """The best, or the worst, candidates of every context.

    Args:
      candidates: scored candidates.
      share: of a context's candidates, rounded down, but at least one; at most 0.5, so that best
        and worst have no session in common.
      best: whether those of the highest rewards are wanted.

    Returns:
      Sessions in the order of the contexts, the most extreme first. A context whose candidates are
      all worth the same has none.

    Raises:
      DataError: no context has two candidates of different reward.
    """
    alive_UK = np.isfinite(candidates.log_probs) & np.isfinite(candidates.rewards)
    rewards_UK = np.where(alive_UK, candidates.rewards, np.nan)
    key_UK = np.where(alive_UK, -rewards_UK if best else rewards_UK, np.inf)
    order_UK = np.argsort(key_UK, axis=1, kind="stable")
    count_U = alive_UK.sum(axis=1)
    lowest_U = np.where(alive_UK, candidates.rewards, np.inf).min(axis=1)
    highest_U = np.where(alive_UK, candidates.rewards, -np.inf).max(axis=1)
    number_U = np.where(highest_U > lowest_U, np.maximum(1, np.floor(share * count_U)), 0)
    rows_S, places_S = np.nonzero(np.arange(key_UK.shape[1]) < number_U[:, None])
    if not len(rows_S):
        raise DataError(
            f"no context of {len(candidates)} has candidates of different reward, so there is "
            "nothing to contrast; use more beams, or look at the reward model's quality"
        )
    columns_S = order_UK[rows_S, places_S]
    return Sessions(
        examples=candidates.examples[rows_S],
        items=candidates.items[rows_S, columns_S].astype(np.int32),
    )


class WrittenSource:
    """Random access to sessions with the histories that they answer, as Grain reads them.

    An example is {"history": Int32 [N], "target": Int32 [M]}, as of `SessionSource`.
    """

    def __init__(self, logged: SessionSource, written: Sessions):
        """Takes the histories of the logged sessions and the targets of the written ones."""
        self._logged = logged
        self._written = written

    def __len__(self) -> int:
        return len(self._written)

    def __getitem__(self, index: int) -> Record:
        """Returns one example; see the class."""
        history = self._logged[int(self._written.examples[index])]["history"]
        return {"history": history, "target": self._written.items[index]}


def response_contrast(
    config: OneRecConfig,
    positive: Params,
    negative: Params,
    prefixes: PrefixIndex,
    history_codes: Int[Array, "P N L"],
    history_mask: Bool[Array, "P N"],
    codes: Int[Array, "P G M L"],
    mask: Bool[Array, "P G M"],
    *,
    beta: float,
    mesh: Mesh | None = None,
) -> ContrastScores:
    """Contrastive score of every code of every response, without dropout; see the module.

    Args:
      config: architecture of both models.
      positive: parameters of the model of good sessions.
      negative: parameters of the model of bad sessions.
      prefixes: the catalogue.
      history_codes: one context per group.
      history_mask: True where there is a history item.
      codes: responses; padding has code 0.
      mask: True where a response has an item.
      beta: strength of the contrast.
      mesh: device mesh that groups are split over, or None.

    Returns:
      Log-scores and both log-probabilities among the allowed codes, nats, float32 [P, G, M, L]; 0
      where masked.
    """

    def logits_of(params: Params) -> tuple[Array, ...]:
        encoded_PSD, seen_PS = onerec.encode_tokens(
            config, params, history_codes, history_mask, mesh=mesh
        )
        return onerec.score_sessions(
            config, params, encoded_PSD, seen_PS, codes, mask, mesh=mesh
        ).logits

    of_levels = zip(
        logits_of(positive),
        logits_of(negative),
        jnp.moveaxis(codes, -1, 0),
        legal_codes(prefixes, codes),
        strict=True,
    )
    levels = [
        contrast_scores(good, bad, codes_PGM, beta=beta, legal=legal)
        for good, bad, codes_PGM, legal in of_levels
    ]
    stacked = jax.tree.map(lambda *parts: jnp.stack(parts, axis=-1), *levels)
    return jax.tree.map(lambda leaf: jnp.where(mask[..., None], leaf, 0.0), stacked)


_jitted_contrast = functools.partial(jax.jit, static_argnames=("config", "beta", "mesh"))(
    response_contrast
)


def group_contrast(
    config: OneRecConfig,
    positive: Params,
    negative: Params,
    prefixes: PrefixIndex,
    item_codes: Int[np.ndarray, "I L"],
    histories: Int[np.ndarray, "Q N"],
    codes: Int[np.ndarray, "Q G M L"],
    mask: Bool[np.ndarray, "Q G M"],
    *,
    beta: float,
    batch_size: int,
    mesh: Mesh | None = None,
) -> SessionScores:
    """`response_contrast` of a whole data set, in batches of one shape.

    Args:
      config: architecture of both models.
      positive: parameters of the model of good sessions.
      negative: parameters of the model of bad sessions.
      prefixes: the catalogue.
      item_codes: semantic ID of every item of the catalogue.
      histories: items in time order, the last column the most recent, -1 where there is none.
      codes: responses; padding has code 0.
      mask: True where a response has an item.
      beta: strength of the contrast.
      batch_size: groups per compiled call, at most; a multiple of the mesh's batch shards.
      mesh: device mesh to split groups over, or None.

    Returns:
      The scores.

    Raises:
      ConfigError: the batch does not split over the mesh.
    """
    if mesh is not None:
        prefixes = jax.device_put(prefixes, replicated(mesh))
    call = functools.partial(
        _jitted_contrast, config, positive, negative, prefixes, beta=beta, mesh=mesh
    )
    found = map_groups(call, item_codes, histories, codes, mask, batch_size=batch_size, mesh=mesh)
    return SessionScores(
        codes=codes,
        log_scores=found.log_scores,
        positive=found.positive,
        negative=found.negative,
    )


def pair_weights(
    scores: SessionScores, preferences: Preferences, config: ContrastConfig, *, key: Key[Array, ""]
) -> Float[np.ndarray, "Q 2 M L"]:
    """Weights of the codes of pairs: 1 for the chosen session, from the scores for the rejected.

    The paper weighs the rejected side alone: scoring right responses "can inadvertently penalize
    valid tokens" (Section 3.2).

    Args:
      scores: of these pairs.
      preferences: the pairs, the chosen session first.
      config: from scores to weights; a session is what is shuffled, averaged over or scaled.
      key: of controls that draw at random.

    Returns:
      Float32, 0 where masked.

    Raises:
      DataError: the scores are of other codes.
    """
    check_codes(scores, preferences)
    mask_Q2ML = np.broadcast_to(preferences.mask[..., None], preferences.codes.shape)
    mask_QT = mask_Q2ML[:, 1].reshape(len(preferences), -1)
    scores_QT = np.exp(scores.log_scores[:, 1]).reshape(mask_QT.shape)
    weights_QT = token_weights(
        jnp.asarray(scores_QT), where=jnp.asarray(mask_QT), config=config.weights, key=key
    )
    if config.scale is WeightScale.MEAN_ONE:
        means_Q1 = weighted_mean(weights_QT, where=jnp.asarray(mask_QT))[:, None]
        # A session that nobody blames keeps its weights of 0.
        weights_QT = weights_QT / jnp.where(means_Q1 > 0, means_Q1, 1.0)
    weights_Q2ML = mask_Q2ML.astype(np.float32)
    weights_Q2ML[:, 1] = np.asarray(weights_QT).reshape(weights_Q2ML[:, 1].shape)
    return weights_Q2ML


def check_codes(scores: SessionScores, preferences: Preferences) -> None:
    """Raises a DataError unless the scores belong to the codes of these groups."""
    if scores.codes.shape != preferences.codes.shape:
        raise DataError(
            f"the contrastive scores are of codes {list(scores.codes.shape)}, the groups of codes "
            f"{list(preferences.codes.shape)} (groups, responses, items, levels); remove the "
            "round's stage of scores and run the round again"
        )
    is_other_Q = np.any(scores.codes != preferences.codes, axis=(1, 2, 3))
    if is_other_Q.any():
        first = int(np.argmax(is_other_Q))
        raise DataError(
            f"the contrastive scores of {int(is_other_Q.sum())} of {len(preferences)} groups are "
            f"of other codes (group {first}: {scores.codes[first].tolist()} were scored, "
            f"{preferences.codes[first].tolist()} are compared); remove the round's stage of "
            "scores and run the round again"
        )
