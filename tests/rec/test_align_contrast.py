"""Contrastive scores of sessions: who learns what, Eq. 1 under the catalogue, weights, errors.

Dimension key: Q groups, G responses, M session items, L code levels, C codes of a level.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from core_jax.errors import ConfigError, DataError
from core_jax.token_weights import WeightConfig, WeightControl
from rec_jax.align.contrast import (
    Sessions,
    SessionScores,
    WrittenSource,
    choose_sessions,
    group_contrast,
    pair_weights,
)
from rec_jax.align.contrast_config import ContrastConfig, WeightScale
from rec_jax.align.source import Preferences
from rec_jax.data.inputs import SessionSource
from rec_jax.data.sessions import SessionConfig, build_sessions
from rec_jax.model import onerec
from rec_jax.semantic_ids.item_index import ItemIndex
from rec_jax.semantic_ids.prefix_index import build_prefix_index
from tests.rec.align_cases import CONFIG, params
from tests.rec.session_cases import random_log
from tests.rec.test_align_groups import DEAD, candidates

NUM_ITEMS, Q, G, M, L = 29, 5, 2, CONFIG.session_items, CONFIG.num_levels
KEY = jax.random.key(0)


def chosen(rewards, *, share, best):
    """(example, place of the candidate) of every session that is learned."""
    made = candidates(rewards)
    places = np.arange(made.rewards.shape[1])[None, :, None]
    items = np.broadcast_to(places, made.items.shape).astype(np.int32)
    found = choose_sessions(dataclasses.replace(made, items=items), share=share, best=best)
    return list(zip(found.examples.tolist(), found.items[:, 0].tolist(), strict=True))


def test_the_best_and_the_worst_share_of_every_context_are_learned():
    """Floor(0.4 x 5) = 2 of five alive, 1 of three and of two: one at least."""
    rewards = [
        [3.0, 5.0, 1.0, 4.0, 2.0],
        [DEAD, 7.0, 9.0, 8.0, DEAD],
        [2.0, DEAD, 1.0, DEAD, DEAD],
    ]
    best = chosen(rewards, share=0.4, best=True)
    assert best == [(0, 1), (0, 3), (10, 2), (20, 0)]
    worst = chosen(rewards, share=0.4, best=False)
    assert worst == [(0, 2), (0, 4), (10, 1), (20, 2)]
    assert not set(best) & set(worst)


def test_contexts_without_a_difference_teach_neither_model():
    rewards = [[2.0, 2.0, 2.0], [1.0, 3.0, 2.0], [4.0, DEAD, DEAD], [DEAD, DEAD, DEAD]]
    assert chosen(rewards, share=0.5, best=True) == [(10, 1)]
    with pytest.raises(DataError, match=r"no context of 2 .*nothing to contrast.*more beams"):
        chosen([[1.0, 1.0], [2.0, DEAD]], share=0.5, best=False)


def test_a_written_session_answers_the_history_of_its_example():
    written = Sessions(examples=np.array([7, 2]), items=np.arange(2 * M).reshape(2, M))
    data = build_sessions(random_log(0), SessionConfig(session_items=M, history_items=3))
    logged = SessionSource(data, "train")
    source = WrittenSource(logged, written)
    assert len(source) == 2
    for index, example in enumerate(written.examples):
        np.testing.assert_array_equal(source[index]["history"], logged[int(example)]["history"])
        np.testing.assert_array_equal(source[index]["target"], written.items[index])
    assert not np.array_equal(source[0]["history"], source[1]["history"])


@functools.cache
def catalogue():
    """29 items of which some are alone under their prefix, so that their last code is no choice."""
    rng = np.random.default_rng(4)
    codes = np.stack([rng.integers(0, size, NUM_ITEMS) for size in CONFIG.level_sizes], axis=1)
    return ItemIndex(
        codes=codes.astype(np.int32), level_sizes=CONFIG.level_sizes, fingerprint="0" * 16
    )


@functools.cache
def groups():
    """Histories, codes and mask of groups of items of the catalogue."""
    rng = np.random.default_rng(5)
    histories = rng.integers(0, NUM_ITEMS, (Q, CONFIG.history_items))
    histories[::2, 0] = -1
    mask = np.ones((Q, G, M), bool)
    mask[1, 1, -1] = False
    codes = catalogue().codes[rng.integers(0, NUM_ITEMS, (Q, G, M))]
    return histories, np.where(mask[..., None], codes, 0).astype(np.int32), mask


@functools.cache
def scored(beta, *, batch_size=Q, positive=3, negative=8):
    return group_contrast(
        CONFIG,
        params(positive),
        params(negative),
        build_prefix_index(catalogue()),
        catalogue().codes,
        *groups(),
        beta=beta,
        batch_size=batch_size,
    )


def logits_of(seed):
    """Of every code of every response, float64 [Q, G, M, C] per level."""
    histories, codes, mask = groups()
    history_codes = catalogue().codes[np.maximum(histories, 0)]
    logits = _logits(params(seed), history_codes, histories >= 0, codes, mask)
    return [np.asarray(one, np.float64) for one in logits]


@jax.jit
def _logits(params, history_codes, history_mask, codes, mask):
    encoded, seen = onerec.encode_tokens(CONFIG, params, history_codes, history_mask)
    return onerec.score_sessions(CONFIG, params, encoded, seen, codes, mask).logits


@pytest.mark.parametrize("beta", [1.0, 2.5])
def test_scores_are_equation_1_over_the_codes_that_the_catalogue_allows(beta):
    """s = p^(1+b) n^-b / sum of the same over the codes that some item has in this place."""
    _, codes, mask = groups()
    positive, negative = logits_of(3), logits_of(8)
    leaves = {tuple(row) for row in catalogue().codes.tolist()}
    found, alone = scored(beta), 0
    np.testing.assert_array_equal(found.codes, codes)
    for place in np.ndindex(Q, G, M):
        if not mask[place]:
            assert not found.log_scores[place].any() and not found.positive[place].any()
            continue
        for level in range(L):
            before = tuple(codes[place][:level].tolist())
            legal = sorted({leaf[level] for leaf in leaves if leaf[:level] == before})
            p, n = (np.exp(logits[level][place][legal]) for logits in (positive, negative))
            mass = (p / p.sum()) ** (1 + beta) * (n / n.sum()) ** -beta
            own = legal.index(codes[place][level])
            expected = np.log(mass[own] / mass.sum())
            np.testing.assert_allclose(found.log_scores[place][level], expected, atol=2e-5)
            np.testing.assert_allclose(
                found.positive[place][level], np.log(p[own] / p.sum()), atol=2e-5
            )
            np.testing.assert_allclose(
                found.negative[place][level], np.log(n[own] / n.sum()), atol=2e-5
            )
            if len(legal) == 1:
                alone += 1
                assert found.log_scores[place][level] == 0.0
    assert alone > 0


def test_scores_do_not_depend_on_the_batches():
    whole, parts = scored(1.0), scored(1.0, batch_size=2)
    for name in ("log_scores", "positive", "negative"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-5, atol=1e-5)


def test_two_equal_models_leave_the_probability_of_one():
    found = scored(1.0, negative=3)
    np.testing.assert_allclose(found.log_scores, found.positive, atol=1e-5)
    np.testing.assert_array_equal(found.positive, found.negative)


def made_up():
    """Scores of made-up pairs, and the pairs."""
    _, codes, mask = groups()
    rng = np.random.default_rng(6)
    where = np.broadcast_to(mask[..., None], codes.shape)
    log_scores = np.where(where, -rng.exponential(size=codes.shape), 0.0).astype(np.float32)
    scores = SessionScores(
        codes=codes, log_scores=log_scores, positive=log_scores, negative=log_scores
    )
    preferences = Preferences(
        examples=np.arange(Q),
        codes=codes,
        mask=mask,
        reference_log_probs=np.zeros(codes.shape, np.float32),
        advantages=np.zeros((Q, G), np.float32),
    )
    return scores, preferences, where


def test_rejected_codes_weigh_1_minus_s_and_chosen_ones_1():
    scores, preferences, where = made_up()
    weights = pair_weights(scores, preferences, ContrastConfig(), key=KEY)
    np.testing.assert_array_equal(weights[:, 0], where[:, 0].astype(np.float32))
    expected = np.where(where[:, 1], 1 - np.exp(scores.log_scores[:, 1]), 0.0)
    np.testing.assert_allclose(weights[:, 1], expected, rtol=1e-5, atol=1e-7)


def test_controls_keep_of_the_weights_of_a_session_what_they_say():
    """Shuffled: the same numbers; constant: their mean; uniform: 1. Never those of another one."""
    scores, preferences, where = made_up()

    def rejected(control, key=KEY):
        config = ContrastConfig(weights=WeightConfig(control=control))
        return pair_weights(scores, preferences, config, key=key)[:, 1]

    plain = rejected(WeightControl.NONE)
    shuffled = rejected(WeightControl.SHUFFLED)
    assert not np.array_equal(shuffled, plain)
    assert not np.array_equal(shuffled, rejected(WeightControl.SHUFFLED, jax.random.key(1)))
    for row in range(Q):
        count = where[row, 1]
        np.testing.assert_array_equal(np.sort(shuffled[row][count]), np.sort(plain[row][count]))
        constant = rejected(WeightControl.CONSTANT)[row]
        np.testing.assert_allclose(constant[count], plain[row][count].mean(), rtol=1e-5)
        np.testing.assert_array_equal(shuffled[row][~count], 0.0)
    np.testing.assert_array_equal(rejected(WeightControl.UNIFORM), where[:, 1])


def test_weights_of_mean_1_only_move_the_push_and_a_constant_one_is_dpo():
    """(1 - s) n / sum (1 - s) over the n codes of each rejected session."""
    scores, preferences, where = made_up()

    def rejected(control=WeightControl.NONE):
        config = ContrastConfig(weights=WeightConfig(control=control), scale=WeightScale.MEAN_ONE)
        return pair_weights(scores, preferences, config, key=KEY)[:, 1]

    blame = np.where(where[:, 1], 1 - np.exp(scores.log_scores[:, 1].astype(np.float64)), 0.0)
    count = where[:, 1].sum((1, 2), keepdims=True)
    expected = blame * count / blame.sum((1, 2), keepdims=True)
    np.testing.assert_allclose(rejected(), expected, rtol=1e-5)
    np.testing.assert_allclose(rejected(WeightControl.CONSTANT), where[:, 1], rtol=1e-5)
    nobody = dataclasses.replace(scores, log_scores=np.zeros_like(scores.log_scores))
    config = ContrastConfig(scale=WeightScale.MEAN_ONE)
    assert not pair_weights(nobody, preferences, config, key=KEY)[:, 1].any()


def test_scores_of_other_codes_are_refused():
    scores, preferences, _ = made_up()
    codes = scores.codes.copy()
    codes[3, 0, 1, 0] += 1
    other = dataclasses.replace(scores, codes=codes)
    with pytest.raises(DataError, match=rf"1 of {Q} groups are of other codes \(group 3.*remove"):
        pair_weights(other, preferences, ContrastConfig(), key=KEY)
    fewer = dataclasses.replace(scores, codes=codes[:-1])
    with pytest.raises(DataError, match=rf"codes \[{Q - 1}, 2, 2, 3\], the groups .*\[{Q}, 2, 2"):
        pair_weights(fewer, preferences, ContrastConfig(), key=KEY)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"share": 0.0}, r"contrast\.share is 0; it must be above 0"),
        ({"share": 0.6}, r"contrast\.share is 0\.6;.*at most 0\.5"),
        ({"beta": -1.0}, r"beta of the contrastive scores is -1"),
        ({"batch_size": 0}, r"contrast\.batch_size is 0"),
    ],
)
def test_a_number_out_of_range_is_an_error(changes, match):
    with pytest.raises(ConfigError, match=match):
        ContrastConfig(**changes)
