"""Popularity and item-kNN against dense arithmetic, and what they may not do."""

import dataclasses

import numpy as np
import polars as pl
import pytest

from core_jax.errors import ConfigError
from rec_jax.baselines import item_knn
from rec_jax.baselines.methods import BaselinesConfig, baseline_lists, training_sequences
from rec_jax.baselines.popularity import recommend_popular
from rec_jax.baselines.top_items import top_items
from rec_jax.data.interactions import clean_log
from rec_jax.data.sessions import SessionConfig, build_sessions, histories, targets
from rec_jax.ranking_metrics import recall_at_k

NUM_USERS, NUM_ITEMS, LENGTH = 17, 29, 11


def random_log(seed=0):
    """Users with LENGTH different items each, in time order."""
    rng = np.random.default_rng(seed)
    items = np.stack([rng.permutation(NUM_ITEMS)[:LENGTH] for _ in range(NUM_USERS)])
    return np.repeat(np.arange(NUM_USERS), LENGTH), items.ravel().astype(np.int32)


def ring_log():
    """Every user walks the whole ring of items once, from a start of their own."""
    walk = (np.arange(NUM_ITEMS)[:, None] + np.arange(NUM_ITEMS)) % NUM_ITEMS
    return np.repeat(np.arange(NUM_ITEMS), NUM_ITEMS), walk.ravel().astype(np.int32), walk


def test_top_items_masks_exactly_the_history():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(NUM_USERS, NUM_ITEMS))
    history = rng.integers(-1, NUM_ITEMS, size=(NUM_USERS, 7)).astype(np.int32)
    listed = top_items(scores, history, np.zeros(NUM_ITEMS, np.int32), k=NUM_ITEMS)
    for row, seen in zip(listed, history, strict=True):
        assert set(row[row >= 0]) == set(range(NUM_ITEMS)) - set(seen)


def test_top_items_orders_by_score_then_popularity_then_index():
    scores = np.array([[1.0, 1.0, 1.0, 3.0]])
    listed = top_items(scores, np.array([[-1]]), np.array([2, 7, 2, 0]), k=4)
    assert listed.tolist() == [[3, 1, 0, 2]]


def test_lists_longer_than_what_is_left_are_padded():
    listed = recommend_popular(np.array([3, 1, 2]), np.array([[0, -1]]), k=5)
    assert listed.tolist() == [[2, 1, -1, -1, -1]]


def test_users_in_pieces_get_the_same_lists():
    users, items = random_log()
    popularity = np.bincount(items, minlength=NUM_ITEMS)
    history = items.reshape(NUM_USERS, LENGTH)
    whole = recommend_popular(popularity, history, k=5)
    np.testing.assert_array_equal(
        whole, recommend_popular(popularity, history, k=5, users_at_once=3)
    )
    counts = item_knn.company_counts(users, items, num_items=NUM_ITEMS, distance=0)
    lists = [
        item_knn.recommend_item_knn(
            counts, popularity, history, window=3, k=5, users_at_once=users_at_once
        )
        for users_at_once in (512, 5)
    ]
    np.testing.assert_array_equal(*lists)


@pytest.mark.parametrize("distance", [0, 1, 3, 100])
def test_company_counts_are_the_double_loop(distance):
    users, items = random_log()
    expected = np.zeros((NUM_ITEMS, NUM_ITEMS))
    for i in range(len(items)):
        for j in range(len(items)):
            near = distance == 0 or abs(i - j) <= distance
            if i != j and users[i] == users[j] and near:
                expected[items[i], items[j]] += 1
    counts = item_knn.company_counts(users, items, num_items=NUM_ITEMS, distance=distance)
    np.testing.assert_array_equal(counts.toarray(), expected)


def test_repeated_item_is_in_a_profile_once_and_never_its_own_company():
    users, items = np.array([0, 0, 0]), np.array([1, 1, 0])
    profile = item_knn.company_counts(users, items, num_items=2, distance=0).toarray()
    nearby = item_knn.company_counts(users, items, num_items=2, distance=2).toarray()
    np.testing.assert_array_equal(profile, [[0, 1], [1, 0]])
    np.testing.assert_array_equal(nearby, [[0, 2], [2, 0]])


def test_empty_training_gives_empty_company():
    nothing = np.zeros(0, np.int32)
    for distance in (0, 3):
        counts = item_knn.company_counts(nothing, nothing, num_items=5, distance=distance)
        assert counts.shape == (5, 5) and counts.nnz == 0


def test_plain_cosine_is_one_for_items_always_together_and_shrinkage_lowers_it():
    users, items = np.repeat(np.arange(7), 2), np.tile([0, 1], 7)
    counts = item_knn.company_counts(users, items, num_items=2, distance=0)
    for shrinkage in (0.0, 3.0):
        similarity = item_knn.shrunk_cosine(counts, np.array([7, 7]), shrinkage=shrinkage)
        np.testing.assert_allclose(similarity.toarray()[0, 1], 7 / (7 + shrinkage))


@pytest.mark.parametrize("window", [1, 3, 100])
def test_scores_are_the_sum_over_the_last_window_items(window):
    users, items = random_log()
    popularity = np.bincount(items, minlength=NUM_ITEMS)
    counts = item_knn.company_counts(users, items, num_items=NUM_ITEMS, distance=0)
    similarity = item_knn.shrunk_cosine(counts, popularity, shrinkage=2.0)
    history = random_log(seed=1)[1].reshape(NUM_USERS, LENGTH)
    history[:, :2] = -1
    dense = similarity.toarray().astype(np.float32)
    expected = np.stack([dense[row[-window:][row[-window:] >= 0]].sum(axis=0) for row in history])
    listed = item_knn.recommend_item_knn(similarity, popularity, history, window=window, k=7)
    for row, scores, seen in zip(listed, expected, history, strict=True):
        scores[seen[seen >= 0]] = -np.inf
        np.testing.assert_allclose(scores[row], np.sort(scores)[::-1][:7], rtol=1e-5)


def test_choice_finds_the_next_item_of_a_ring():
    """All profiles are equal, so only near company tells; the last item alone says where next."""
    users, items, walk = ring_log()
    choice = item_knn.choose_item_knn(
        users,
        items,
        num_items=NUM_ITEMS,
        history=walk[:, :3].astype(np.int32),
        targets=walk[:, 3:4].astype(np.int32),
        grid=item_knn.ItemKnnGrid(windows=(1, 7), shrinkages=(0.0, 5.0), distances=(0, 1), k=1),
    )
    assert choice.best.config == item_knn.ItemKnnConfig(window=1, shrinkage=0.0, distance=1)
    assert choice.best.recall == 1 and choice.best.ndcg == 1
    assert len(choice.trials) == 2 * 2 * 2 and choice.k == 1


def test_choice_is_what_the_same_config_reaches_alone():
    users, items = random_log()
    history = random_log(seed=1)[1].reshape(NUM_USERS, LENGTH)
    history, targets = history[:, :-3], history[:, -3:]
    best = item_knn.choose_item_knn(
        users,
        items,
        num_items=NUM_ITEMS,
        history=history,
        targets=targets,
        grid=item_knn.ItemKnnGrid(windows=(1, 3), shrinkages=(0.0, 7.0), k=5),
    ).best
    popularity = np.bincount(items, minlength=NUM_ITEMS)
    counts = item_knn.company_counts(users, items, num_items=NUM_ITEMS, distance=0)
    similarity = item_knn.shrunk_cosine(counts, popularity, shrinkage=best.config.shrinkage)
    listed = item_knn.recommend_item_knn(
        similarity, popularity, history, window=best.config.window, k=5
    )
    assert best.recall == recall_at_k(listed, targets, k=5).mean()


@pytest.mark.parametrize("wrong", [{"window": 0}, {"window": 1, "shrinkage": -1.0}])
def test_impossible_configs_are_named(wrong):
    with pytest.raises(ConfigError, match="window >= 1, shrinkage >= 0"):
        item_knn.ItemKnnConfig(**wrong)


def test_empty_grid_is_an_error():
    with pytest.raises(ConfigError, match="a value in every field"):
        item_knn.ItemKnnGrid(windows=())


def session_data():
    """Users with LENGTH positives: one item as history, three blocks of three and some more."""
    users, items = random_log()
    log = clean_log(
        pl.DataFrame(
            {
                "user_id": [str(user) for user in users],
                "item_id": [str(item) for item in items],
                "timestamp": np.arange(len(users)),
            }
        ),
        source="random",
    )
    return build_sessions(log, SessionConfig(session_items=3, history_items=5))


def small_grids():
    grid = item_knn.ItemKnnGrid(windows=(1, 3), shrinkages=(0.0, 5.0), k=5)
    near = dataclasses.replace(grid, distances=(2,))
    return BaselinesConfig(item_knn=grid, item_knn_near=near)


def test_training_sequences_end_before_validation():
    data = session_data()
    users, items = training_sequences(data)
    np.testing.assert_array_equal(
        np.bincount(items, minlength=len(data.item_ids)), data.train_item_counts
    )
    first_train = histories(data, "valid", 0)
    for user, seen in zip(data.valid.user, first_train, strict=True):
        np.testing.assert_array_equal(items[users == user], seen[seen >= 0])


def test_every_baseline_leaves_out_the_whole_history():
    data = session_data()
    for split in ("valid", "test"):
        seen = histories(data, split, 0)
        for lists in baseline_lists(data, split, small_grids(), k=5):
            assert not (lists.items[:, :, None] == seen[:, None, :]).any(), lists.name


def test_test_targets_reach_nothing():
    """Other test targets: same choice, same lists, for every baseline."""
    data = session_data()
    is_test = np.zeros(len(data.positives), bool)
    for end, size in zip(data.test.history_end, [3] * len(data.test), strict=True):
        is_test[end : end + size] = True
    changed = dataclasses.replace(data, positives=np.where(is_test, 0, data.positives))
    before = baseline_lists(data, "test", small_grids(), k=5)
    after = baseline_lists(changed, "test", small_grids(), k=5)
    assert is_test.sum() == targets(data, "test").size
    for old, new in zip(before, after, strict=True):
        assert old.choice == new.choice
        np.testing.assert_array_equal(old.items, new.items)
