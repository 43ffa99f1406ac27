import importlib.util
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_jax.errors import ConfigError
from rec_jax.beam import SMALLEST_CHUNK, BeamConfig, beam_search, largest
from tests.rec.generation_cases import (
    CONFIG,
    SEVEN,
    all_sessions,
    make_history,
    make_index,
    make_params,
    score_sessions,
)

HISTORIES = ([], [3, 5], [0, 4, 6])


def search(params, index, history, **options):
    return jax.device_get(beam_search(CONFIG, BeamConfig(**options), params, index, *history))


@pytest.mark.parametrize("num_scores", [2311, 4093])
@pytest.mark.parametrize("case", ["distinct", "ties", "few", "none"])
def test_two_stages_of_selection_equal_one(num_scores, case):
    rng = np.random.default_rng(num_scores)
    scores = rng.normal(size=(3, num_scores)).astype(np.float32)
    if case == "ties":  # Five values only: nearly all that is kept ties, within and over chunks.
        scores = rng.integers(0, 5, scores.shape).astype(np.float32)
    if case == "few":
        scores[rng.random(scores.shape) < 0.995] = -np.inf
    if case == "none":
        scores[:] = -np.inf
    kept = 11
    assert num_scores // kept >= SMALLEST_CHUNK**2
    values, places = jax.jit(largest, static_argnums=1)(jnp.asarray(scores), kept)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :kept]
    np.testing.assert_array_equal(values, np.take_along_axis(scores, order, axis=1))
    np.testing.assert_array_equal(places, order)


def test_all_beams_are_all_sessions_in_the_order_of_their_scores():
    params, index = make_params(0), make_index(SEVEN)
    history = make_history(HISTORIES, SEVEN)
    beams = search(params, index, history, num_beams=210, num_items=3)
    for user, excluded in enumerate(HISTORIES):
        sessions = all_sessions(7, 3, excluded)
        scores = score_sessions(params, history[0][user], history[1][user], SEVEN[sessions])
        order = np.argsort(-scores.sum((1, 2)))
        count = len(sessions)
        assert beams.alive[user].sum() == count
        assert not beams.alive[user, count:].any()
        np.testing.assert_array_equal(beams.items[user, :count], sessions[order])
        np.testing.assert_array_equal(beams.codes[user, :count], SEVEN[sessions[order]])
        np.testing.assert_allclose(
            beams.item_scores[user, :count], scores[order].sum(2), rtol=1e-4, atol=1e-4
        )
        np.testing.assert_allclose(
            beams.scores[user], beams.item_scores[user].sum(1), rtol=1e-5, atol=1e-5
        )
        assert (beams.items[user, count:] == -1).all()
        assert np.isneginf(beams.scores[user, count:]).all()


def test_one_beam_is_greedy():
    params, index = make_params(1), make_index(SEVEN)
    history = make_history(HISTORIES, SEVEN)
    beams = search(params, index, history, num_beams=1, num_items=3)
    for user, excluded in enumerate(HISTORIES):
        sessions = all_sessions(7, 3, excluded)
        scores = score_sessions(params, history[0][user], history[1][user], SEVEN[sessions])
        for item in range(3):
            for level in range(3):
                best = scores[:, item, level] == scores[:, item, level].max()
                sessions, scores = sessions[best], scores[best]
        np.testing.assert_array_equal(beams.items[user, 0], sessions[0])


@pytest.mark.long
def test_cached_search_equals_recomputation():
    params, index = make_params(2), make_index(SEVEN)
    history = make_history(HISTORIES, SEVEN)
    path = Path(__file__).parents[2] / "benchmarks" / "recomputed_beam.py"
    spec = importlib.util.spec_from_file_location("recomputed_beam", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["recomputed_beam"] = module
    spec.loader.exec_module(module)
    config = BeamConfig(num_beams=11, num_items=2, exclude_history=False)
    expected = module.recomputed_beam_search(CONFIG, config, params, index, *history)
    found = beam_search(CONFIG, config, params, index, *history)
    np.testing.assert_array_equal(found.items, expected.items)
    np.testing.assert_array_equal(found.codes, expected.codes)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)
    np.testing.assert_allclose(found.item_scores, expected.item_scores, rtol=1e-4, atol=1e-5)
    # What the user knows may come again where that is allowed.
    assert set(HISTORIES[2]) & set(np.asarray(found.items[2]).ravel())


def test_random_tries_give_only_legal_sessions():
    # 23 items on 30 possible semantic IDs: many share one.
    rng = np.random.default_rng(0)
    codes = rng.integers(0, CONFIG.level_sizes, (23, 3)).astype(np.int32)
    popularity = rng.integers(0, 100, 23)
    index = make_index(codes, popularity)
    assert index.max_items_per_leaf > 1
    for seed in range(17):
        rng = np.random.default_rng(seed)
        histories = [rng.choice(23, rng.integers(0, 4), replace=False) for _ in range(5)]
        beams = search(
            make_params(seed), index, make_history(histories, codes), num_beams=13, num_items=3
        )
        assert beams.alive.all()
        for user, kept in np.ndindex(5, 13):
            items = beams.items[user, kept]
            np.testing.assert_array_equal(beams.codes[user, kept], codes[items])
            assert len({tuple(codes[item]) for item in items}) == 3
            for item in items:
                rivals = np.flatnonzero((codes == codes[item]).all(axis=1))
                rivals = [rival for rival in rivals if rival not in histories[user]]
                assert item == max(rivals, key=lambda rival: popularity[rival])


def test_the_catalogue_can_be_used_up_item_by_item():
    # On the way most prefixes become dead ends: their last item is in the history.
    params, index = make_params(3), make_index(SEVEN)
    codes, mask, _ = make_history([[1, 2]], SEVEN)
    used = np.full((1, 7), -1, np.int32)
    scores = score_sessions(params, codes[0], mask[0], SEVEN[:, None]).sum((1, 2))
    for step in range(7):
        history = codes, mask, jnp.asarray(used)
        beams = search(params, index, history, num_beams=7, num_items=1)
        count = 7 - step
        assert beams.alive[0].tolist() == [True] * count + [False] * step
        expected = [item for item in np.argsort(-scores) if item not in used[0]]
        np.testing.assert_array_equal(beams.items[0, :count, 0], expected)
        used[0, step] = beams.items[0, step % count, 0]
    beams = search(params, index, (codes, mask, jnp.asarray(used)), num_beams=7, num_items=1)
    assert not beams.alive.any()
    assert (beams.items == -1).all()


def test_without_the_constraint_illegal_codes_are_marked():
    params, index = make_params(4), make_index(SEVEN)
    history = make_history([[0, 4, 6]], SEVEN)
    options = {"num_beams": 30, "num_items": 1, "constrained": False}
    beams = search(params, index, history, **options)
    everything = np.stack(np.meshgrid(*map(np.arange, CONFIG.level_sizes), indexing="ij"), -1)
    everything = everything.reshape(30, 1, 3).astype(np.int32)
    scores = score_sessions(params, history[0][0], history[1][0], everything).sum((1, 2))
    np.testing.assert_array_equal(beams.codes[0], everything[np.argsort(-scores)])
    for codes, item in zip(beams.codes[0, :, 0], beams.items[0, :, 0], strict=True):
        matches = np.flatnonzero((codes == SEVEN).all(axis=1))
        assert item == (matches[0] if len(matches) else -1)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_beams": 513, "num_items": 1}, "at most 512"),
        ({"num_beams": 0, "num_items": 1}, "num_beams is 0"),
        ({"num_beams": 1, "num_items": 0}, "num_items is 0"),
        ({"num_beams": 1, "num_items": 4}, "model.session_items"),
        ({"num_beams": 8, "num_items": 1}, "num_beams to at most 7"),
        ({"num_beams": 43, "num_items": 2}, "42 sessions"),
    ],
)
def test_impossible_requests_are_refused(options, match):
    history = make_history([[0]], SEVEN)
    with pytest.raises(ConfigError, match=match):
        search(None, make_index(SEVEN), history, **options)


def test_a_model_of_another_catalogue_is_refused():
    other = make_index(SEVEN[:2])
    history = make_history([[0]], SEVEN)
    with pytest.raises(ConfigError, match="2 semantic IDs"):
        search(None, other, history, num_beams=1, num_items=3)
    with pytest.raises(ConfigError, match="history_items"):
        history = history[0][:, 1:], history[1][:, 1:], history[2]
        search(None, make_index(SEVEN), history, num_beams=1, num_items=1)
