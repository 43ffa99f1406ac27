"""Groups: best against worst or random, negatives, group members, ties skipped and counted."""

import numpy as np
import pytest

from core_jax.errors import ConfigError, DataError
from rec_jax.align.candidates import Candidates
from rec_jax.align.config import GroupsConfig, RejectedRule
from rec_jax.align.groups import choose_groups, standardised_advantages

DEAD = -np.inf


def candidates(rewards):
    """Candidates with these rewards; a reward of -inf is no candidate."""
    rewards = np.asarray(rewards, np.float32)
    U, K = rewards.shape
    return Candidates(
        examples=np.arange(U) * 10,
        items=np.zeros((U, K, 3), np.int32),
        log_probs=np.where(np.isfinite(rewards), -1.0, DEAD).astype(np.float32),
        targets=np.zeros((U, K, 2), np.float32),
        rewards=rewards,
    )


def choose(rewards, num_members=2, ranked=True, seed=0, **config):
    return choose_groups(
        candidates(rewards),
        GroupsConfig(**config),
        num_members=num_members,
        ranked=ranked,
        seed=seed,
    )


def test_a_pair_is_the_best_and_the_worst():
    groups = choose([[2.0, 5.0, 1.0, 3.0], [0.0, -1.0, -2.0, -3.0]])
    np.testing.assert_array_equal(groups.members, [[1, 2], [0, 3]])
    assert groups.has_member.all()


def test_of_equal_candidates_the_more_probable_is_chosen():
    groups = choose([[1.0, 5.0, 5.0, 1.0]])
    np.testing.assert_array_equal(groups.members, [[1, 0]])


def test_contexts_without_a_difference_are_skipped_and_counted():
    groups = choose([[2.0, 2.0, 2.0], [1.0, 2.0, 3.0], [4.0, DEAD, DEAD], [DEAD, DEAD, DEAD]])
    np.testing.assert_array_equal(groups.rows, [1])
    assert groups.counts == {
        "contexts": 4,
        "skipped: fewer than two candidates": 2,
        "skipped: all rewards equal": 1,
        "groups": 1,
    }


def test_a_least_gap_skips_contexts_and_bars_members_that_are_nearer():
    rewards = [[1.0, 1.25, 1.5], [0.0, 1.0, 0.75]]
    groups = choose(rewards, num_members=3, min_gap=0.5)
    np.testing.assert_array_equal(groups.rows, [1])
    np.testing.assert_array_equal(groups.members[0, :2], [1, 0])
    np.testing.assert_array_equal(groups.has_member, [[True, True, False]])


def test_no_context_with_a_difference_is_an_error():
    with pytest.raises(DataError, match=r"no context of 2.*more beams"):
        choose([[1.0, 1.0], [2.0, 2.0]])


def test_dead_candidates_are_never_chosen():
    groups = choose([[DEAD, 1.0, 2.0, DEAD]], num_members=4)
    np.testing.assert_array_equal(groups.members[0, :2], [2, 1])
    np.testing.assert_array_equal(groups.has_member, [[True, True, False, False]])


def test_negatives_are_the_worst_ones_in_rising_order():
    groups = choose([[5.0, 4.0, 1.0, 3.0, 2.0]], num_members=4)
    np.testing.assert_array_equal(groups.members, [[0, 2, 4, 3]])


def test_a_random_rejected_one_is_worse_and_not_always_the_worst():
    rewards = np.tile([[0.0, 4.0, 1.0, 4.0, 2.0, 3.0]], (101, 1))
    groups = choose(rewards, rejected=RejectedRule.RANDOM)
    assert (groups.members[:, 0] == 1).all()
    assert set(groups.members[:, 1].tolist()) == {0, 2, 4, 5}


def test_members_of_an_unranked_group_are_random_distinct_and_alive():
    rewards = np.tile([[0.0, 4.0, DEAD, 4.0, 2.0, 3.0]], (53, 1))
    groups = choose(rewards, num_members=3, ranked=False)
    assert all(len(set(row)) == 3 and 2 not in row for row in groups.members.tolist())
    assert len({tuple(row) for row in groups.members.tolist()}) > 10
    again = choose(rewards, num_members=3, ranked=False)
    np.testing.assert_array_equal(groups.members, again.members)
    other = choose(rewards, num_members=3, ranked=False, seed=1)
    assert not np.array_equal(groups.members, other.members)


def test_advantages_have_mean_zero_and_deviation_one_over_the_members():
    rewards = np.random.default_rng(0).normal(size=(7, 5))
    has = np.ones((7, 5), bool)
    has[3, 2:] = False
    advantages = standardised_advantages(rewards, has)
    for row, members in zip(advantages, has, strict=True):
        np.testing.assert_allclose(row[members].mean(), 0, atol=1e-6)
        np.testing.assert_allclose(row[members].std(), 1, rtol=1e-6)
    assert (advantages[~has] == 0).all()


def test_equal_rewards_have_no_advantage():
    np.testing.assert_array_equal(
        standardised_advantages(np.full((1, 3), 0.1), np.ones((1, 3), bool)), np.zeros((1, 3))
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_negatives", 0), ("group_size", 1), ("legality_samples", -1), ("min_gap", -0.1)],
)
def test_values_out_of_range_are_named(field, value):
    with pytest.raises(ConfigError, match=field):
        GroupsConfig(**{field: value})
