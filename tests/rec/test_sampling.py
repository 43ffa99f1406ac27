import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_jax.errors import ConfigError
from rec_jax.sampling import filter_codes, sample
from rec_jax.session_decoding import BeamConfig
from tests.rec.generation_cases import (
    CONFIG,
    SEVEN,
    all_sessions,
    make_history,
    make_index,
    make_params,
    score_sessions,
)

NUM_USERS, NUM_SAMPLES = 31, 509


def exact_distribution(params, history, excluded, adjust):
    """Sessions of two items and their probabilities, level by level over the legal codes."""
    sessions = all_sessions(7, 2, excluded)
    log_probs = score_sessions(params, history[0][0], history[1][0], SEVEN[sessions])
    codes = SEVEN[sessions].reshape(len(sessions), -1)
    flat = log_probs.reshape(len(sessions), -1)
    probs = np.ones(len(sessions))
    for depth in range(codes.shape[1]):
        prefixes = {tuple(row[:depth]) for row in codes}
        for prefix in prefixes:
            below = (codes[:, :depth] == prefix).all(axis=1)
            options = np.unique(codes[below, depth])
            firsts = [np.flatnonzero(below & (codes[:, depth] == code))[0] for code in options]
            weights = adjust(flat[firsts, depth])
            for code, weight in zip(options, weights / weights.sum(), strict=True):
                probs[below & (codes[:, depth] == code)] *= weight
    return sessions, probs


def only_largest(weights, count):
    return np.where(weights >= np.sort(weights)[-min(count, len(weights))], weights, 0)


def nucleus(weights, mass):
    weights = weights / weights.sum()
    order = np.argsort(-weights)
    before = np.cumsum(weights[order]) - weights[order]
    kept = np.zeros_like(weights)
    kept[order[before < mass]] = weights[order[before < mass]]
    return kept


@pytest.mark.parametrize(
    ("options", "adjust"),
    [
        pytest.param({}, np.exp, marks=pytest.mark.long),
        ({"temperature": 3.0}, lambda row: np.exp(row / 3)),
        (
            {"top_k": 2, "top_p": 0.7, "temperature": 2.0},
            lambda row: nucleus(only_largest(np.exp(row / 2), 2), 0.7),
        ),
    ],
)
def test_samples_follow_the_exact_distribution(options, adjust):
    params, index = make_params(0), make_index(SEVEN)
    excluded = [2, 6]
    history = make_history([excluded] * NUM_USERS, SEVEN)
    config = BeamConfig(num_beams=NUM_SAMPLES, num_items=2)
    drawn = sample(CONFIG, config, params, index, *history, key=jax.random.key(3), **options)
    sessions, probs = exact_distribution(params, history, excluded, adjust)
    rows = np.asarray(drawn.items).reshape(-1, 2)
    counts = np.array([(rows == session).all(axis=1).sum() for session in sessions])
    total = NUM_USERS * NUM_SAMPLES
    assert counts.sum() == total
    assert (counts[probs == 0] == 0).all()
    likely = probs * total >= 5
    spread = (counts - probs * total)[likely] / np.sqrt(probs * total)[likely]
    assert likely.sum() >= 4
    # Chi-square per degree of freedom: 1 in expectation, with deviation sqrt(2 / n).
    assert (spread**2).mean() < 1 + 5 * np.sqrt(2 / likely.sum())
    # Scores are the model's own log-probabilities, whatever the filters.
    scores = score_sessions(params, history[0][0], history[1][0], SEVEN[sessions]).sum((1, 2))
    places = [np.flatnonzero((sessions == row).all(axis=1))[0] for row in rows[:50]]
    np.testing.assert_allclose(np.asarray(drawn.scores).ravel()[:50], scores[places], rtol=1e-4)


@pytest.mark.parametrize("top_k", [None, 1, 3, 11])
@pytest.mark.parametrize("top_p", [None, 0.01, 1.0])
def test_filters_never_leave_nothing(top_k, top_p):
    logits = np.random.default_rng(0).normal(size=(13, 7)).astype(np.float32)
    logits[np.arange(13), np.arange(13) % 7] = -np.inf
    logits[5, 1:] = -np.inf
    kept = np.asarray(filter_codes(jnp.asarray(logits), top_k=top_k, top_p=top_p)) > -np.inf
    is_legal = logits > -np.inf
    assert (kept <= is_legal).all()
    assert kept[np.arange(13), logits.argmax(axis=1)].all()
    expected = is_legal.sum(axis=1) if top_k is None else np.minimum(is_legal.sum(axis=1), top_k)
    if top_p == 0.01:
        expected = np.ones(13)
    np.testing.assert_array_equal(kept.sum(axis=1), expected)


@pytest.mark.parametrize(
    "options", [{"temperature": 0.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}]
)
def test_impossible_filters_are_refused(options):
    history = make_history([[0]], SEVEN)
    config = BeamConfig(num_beams=1, num_items=1)
    with pytest.raises(ConfigError, match=next(iter(options))):
        sample(CONFIG, config, None, make_index(SEVEN), *history, key=jax.random.key(0), **options)
