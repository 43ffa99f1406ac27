"""What sessions are worth: most probable, mean, max, best of N; judges before the truth."""

import dataclasses
import itertools

import numpy as np
import pytest

from core_jax.errors import DataError
from rec_jax.align.policy_metrics import (
    PolicySessions,
    best_of_n,
    concordance,
    load_sessions,
    per_user_metrics,
    save_sessions,
)

U, K, M, NUM_ITEMS = 7, 5, 3, 23
NOTHING = np.zeros((U, 0))


def sessions(truth=True):
    rng = np.random.default_rng(0)
    items = np.stack([rng.permutation(NUM_ITEMS)[: K * M].reshape(K, M) for _ in range(U)])
    alive = np.ones((U, K), bool)
    alive[2, 3:] = False
    return PolicySessions(
        items=items.astype(np.int32),
        alive=alive,
        reward_targets=rng.random((U, K, 2)).astype(np.float32),
        reward=rng.normal(size=(U, K)).astype(np.float32),
        judge_targets=rng.random((U, K, 1)).astype(np.float32),
        judge=rng.normal(size=(U, K)).astype(np.float32),
        truth=rng.random((U, K)) if truth else NOTHING,
        first_items=items[:, 0].astype(np.int32),
        legality=np.array([0.5]),
    )


def measured(found, **options):
    return per_user_metrics(
        found,
        targets=found.items[:, 0, :2],
        categories=np.arange(NUM_ITEMS)[:, None] % 4 == np.arange(4),
        heads=("a", "b"),
        judge_heads=("c",),
        **{"best_of": (1, 2, 5), "list_length": 3, **options},
    )


def test_mean_and_max_are_over_the_sessions_that_exist():
    found = sessions()
    values = measured(found)
    np.testing.assert_allclose(values["reward"], found.reward[:, 0])
    np.testing.assert_allclose(values["truth/mean"][2], found.truth[2, :3].mean())
    np.testing.assert_allclose(values["judge/max"][2], found.judge[2, :3].max())
    np.testing.assert_allclose(values["reward:b/max"][0], found.reward_targets[0, :, 1].max())
    np.testing.assert_allclose(values["judge:c/mean"][1], found.judge_targets[1, :, 0].mean())


def test_best_of_n_is_chosen_by_the_reward_model_alone():
    found = sessions()
    values = measured(found)
    np.testing.assert_allclose(values["best_of/1/truth"], found.truth[:, 0])
    for user in range(U):
        best = max(range(5 if user != 2 else 3), key=lambda k: found.reward[user, k])
        np.testing.assert_allclose(values["best_of/5/judge"][user], found.judge[user, best])
    assert (best_of_n(found.reward, found.alive, 2) < 2).all()


def test_reward_of_best_of_n_never_falls_with_n():
    values = measured(sessions(), best_of=range(1, K + 1))
    curve = np.stack([values[f"best_of/{n}/reward"] for n in range(1, K + 1)])
    assert (np.diff(curve, axis=0) >= 0).all()


def test_a_perfect_list_recalls_everything_and_no_list_is_no_number():
    found = sessions()
    assert (measured(found)["recall"] == 1).all()
    assert (measured(found)["session_recall"] == 1).all()
    unranked = dataclasses.replace(found, first_items=found.first_items[:, :0])
    assert np.isnan(measured(unranked)["ndcg"]).all()


def test_without_a_world_there_is_no_truth():
    values = measured(sessions(truth=False))
    assert not any("truth" in name for name in values)


def test_concordance_counts_pairs():
    """Against the definition, pair by pair, with ties on both sides."""
    rng = np.random.default_rng(1)
    judged = rng.integers(0, 4, (U, K)).astype(float)
    truth = rng.integers(0, 4, (U, K)).astype(float)
    alive = rng.random((U, K)) < 0.8
    for user, found in enumerate(concordance(judged, truth, alive)):
        scores = [
            0.5
            * (1 + np.sign((judged[user, i] - judged[user, j]) * (truth[user, i] - truth[user, j])))
            for i, j in itertools.combinations(np.flatnonzero(alive[user]), 2)
            if truth[user, i] != truth[user, j]
        ]
        np.testing.assert_allclose(found, np.mean(scores) if scores else np.nan)


def test_concordance_is_one_for_the_truth_and_zero_for_its_opposite():
    truth = np.random.default_rng(2).random((U, K))
    alive = np.ones((U, K), bool)
    np.testing.assert_array_equal(concordance(truth, truth, alive), np.ones(U))
    np.testing.assert_array_equal(concordance(-truth, truth, alive), np.zeros(U))
    assert np.isnan(concordance(truth, np.ones((U, K)), alive)).all()


def test_sessions_come_back_from_disk(tmp_path):
    found = sessions()
    save_sessions(found, tmp_path)
    again = load_sessions(tmp_path)
    for field in dataclasses.fields(found):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(found, field.name))


def test_absent_sessions_are_named(tmp_path):
    with pytest.raises(DataError, match=r"sessions\.npz.*evaluate again"):
        load_sessions(tmp_path)
