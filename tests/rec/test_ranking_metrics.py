"""Ranking metrics: bounds, agreement with a plain loop, and intervals that cover."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_jax.errors import ConfigError
from rec_jax import ranking_metrics as metrics

NUM_USERS, NUM_ITEMS, LIST_LENGTH, TARGET_LENGTH = 13, 31, 11, 5


def random_case(seed=0):
    """Lists without repeats; targets of 1 to TARGET_LENGTH items, padded."""
    rng = np.random.default_rng(seed)
    items = np.stack([rng.permutation(NUM_ITEMS)[:LIST_LENGTH] for _ in range(NUM_USERS)])
    targets = np.full((NUM_USERS, TARGET_LENGTH), -1)
    for row in targets:
        size = rng.integers(1, TARGET_LENGTH + 1)
        row[:size] = rng.permutation(NUM_ITEMS)[:size]
    return items, targets


@pytest.mark.parametrize("k", [1, 3, 5, 11])
def test_agrees_with_the_definition_written_as_a_loop(k):
    items, targets = random_case()
    for user in range(NUM_USERS):
        truth = {int(t) for t in targets[user] if t >= 0}
        hit = [int(i) in truth for i in items[user, :k]]
        best = sum(1 / math.log2(j + 2) for j in range(min(k, len(truth))))
        gain = sum(h / math.log2(j + 2) for j, h in enumerate(hit))
        recall = metrics.recall_at_k(items, targets, k=k)[user]
        ndcg = metrics.ndcg_at_k(items, targets, k=k)[user]
        assert recall == pytest.approx(sum(hit) / min(k, len(truth)))
        assert ndcg == pytest.approx(gain / best)
        assert metrics.hit_at_k(items, targets, k=k)[user] == float(any(hit))


@pytest.mark.parametrize("k", [1, 5, 7])
def test_a_perfect_list_scores_one_and_a_disjoint_list_zero(k):
    targets = np.arange(5)[None]
    perfect, disjoint = np.arange(7)[None], 11 + np.arange(7)[None]
    for metric in (metrics.recall_at_k, metrics.ndcg_at_k, metrics.hit_at_k):
        assert metric(perfect, targets, k=k).item() == pytest.approx(1)
        assert metric(disjoint, targets, k=k).item() == 0


def test_order_of_targets_and_padding_change_nothing():
    items, targets = random_case()
    shuffled = np.concatenate([np.full((NUM_USERS, 2), -1), targets[:, ::-1]], axis=1)
    for metric in (metrics.recall_at_k, metrics.ndcg_at_k, metrics.hit_at_k):
        np.testing.assert_array_equal(metric(items, targets, k=7), metric(items, shuffled, k=7))


def test_an_item_listed_twice_hits_once_and_padding_never_hits():
    repeated = np.array([[4, 4, 4], [-1, -1, -1]])
    targets = np.array([[4, 6, -1], [4, -1, -1]])
    np.testing.assert_array_equal(metrics.recall_at_k(repeated, targets, k=3), [1 / 2, 0])


def test_user_without_target_is_visible_as_nan():
    for metric in (metrics.recall_at_k, metrics.ndcg_at_k, metrics.hit_at_k):
        assert np.isnan(metric(np.array([[1, 2]]), np.array([[-1, -1]]), k=2)).all()


@pytest.mark.parametrize("k", [0, 12])
def test_k_outside_the_list_is_an_error_that_names_both(k):
    with pytest.raises(ConfigError, match=f"k = {k} .* hold 11"):
        metrics.recall_at_k(*random_case(), k=k)


def test_coverage_counts_every_shown_item_once():
    items = np.arange(NUM_USERS)[:, None] % 7
    assert metrics.coverage(items, num_items=NUM_ITEMS) == 7 / NUM_ITEMS


def test_diversity_is_zero_for_equal_and_one_for_disjoint_categories():
    categories = np.eye(5, dtype=bool)[[0, 0, 1, 2]]
    lists = np.array([[0, 1, -1], [0, 2, 3]])
    np.testing.assert_allclose(metrics.category_diversity(lists, categories), [0, 1])


def test_diversity_leaves_out_items_without_categories():
    categories = np.array([[True, False], [False, True], [False, False]])
    lists = np.array([[0, 1, 2], [2, 2, 0]])
    np.testing.assert_array_equal(metrics.category_diversity(lists, categories), [1, np.nan])


def test_strata_carry_a_third_each_up_to_one_item():
    counts = np.random.default_rng(3).geometric(1 / 53, size=997)
    strata = metrics.popularity_strata(counts)
    mass = np.bincount(strata, weights=counts) / counts.sum()
    assert abs(mass[:2].sum() - 2 / 3) <= counts.max() / counts.sum()
    assert counts[strata == 0].min() >= counts[strata == 1].max()
    assert counts[strata == 1].min() >= counts[strata == 2].max()


def test_unseen_items_are_tail_whatever_the_counts():
    assert metrics.popularity_strata(np.zeros(7, np.int32)).tolist() == [2] * 7


def test_strata_recalls_add_up_to_the_pooled_recall():
    items, targets = random_case()
    strata = np.arange(NUM_ITEMS) % 3
    recall = metrics.recall_by_stratum(items, targets, strata, k=LIST_LENGTH)
    sizes = np.bincount(strata[targets[targets >= 0]], minlength=3)
    assert (recall * sizes).sum() == pytest.approx(metrics.hits(items, targets).sum())
    assert metrics.stratum_shares(items, strata).sum() == pytest.approx(1)


def test_bootstrap_width_is_the_normal_one():
    """For many users the percentile interval is mean +- 1.96 * std / sqrt(U)."""
    values = np.random.default_rng(1).normal(size=1009)
    interval = metrics.bootstrap_interval(values, key=jax.random.key(0), num_samples=4001)
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low < interval.mean < interval.high
    assert interval.half_width == pytest.approx(1.96 * values.std() / math.sqrt(1009), rel=0.05)


def test_bootstrap_draws_in_pieces_are_all_counted(monkeypatch):
    values = np.random.default_rng(1).normal(size=101)
    whole = metrics.bootstrap_interval(values, key=jax.random.key(0), num_samples=499)
    monkeypatch.setattr(metrics, "DRAWN_AT_ONCE", 101 * 7)
    pieces = metrics.bootstrap_interval(values, key=jax.random.key(0), num_samples=499)
    assert pieces.half_width == pytest.approx(whole.half_width, rel=0.2)


def test_pairing_removes_what_both_methods_share():
    shared = np.random.default_rng(2).normal(size=211)
    difference = metrics.paired_bootstrap(
        shared + 1 / 8, shared, key=jax.random.key(0), num_samples=101
    )
    assert difference.low == pytest.approx(1 / 8) and difference.high == pytest.approx(1 / 8)


def test_same_key_same_interval_other_key_another():
    values = np.random.default_rng(2).normal(size=29)
    draw = [
        metrics.bootstrap_interval(values, key=jax.random.key(seed), num_samples=101)
        for seed in (0, 0, 1)
    ]
    assert draw[0] == draw[1] != draw[2]


def test_entropy_of_uniform_certain_and_masked_predictions():
    """Uniform over n possible codes: log n. One possible code: 0, although others are -inf."""
    logits = jnp.array([[0.0] * 7, [0.0] * 3 + [-jnp.inf] * 4, [5.0] + [-jnp.inf] * 6], jnp.float32)
    expected = [math.log(7), math.log(3), 0]
    np.testing.assert_allclose(metrics.prediction_entropy(logits), expected, atol=1e-6)


def test_legal_share_compares_whole_tuples():
    catalogue = np.array([[0, 1, 2], [3, 1, 0]])
    codes = np.array([[0, 1, 2], [0, 1, 0], [3, 1, 2], [3, 1, 0], [0, 1, 2]])
    assert metrics.legal_share(codes, catalogue) == 3 / 5
