"""Runs compared pair by pair: signs, exact p values, intervals of the difference."""

import itertools

import numpy as np
import pytest

from core_jax.errors import DataError
from reasoning_jax.comparison import compare_runs, sign_test


def as_run(values):
    return {f"p{number}": float(value) for number, value in enumerate(values)}


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (4, 1), (2, 5), (3, 3)])
def test_sign_test_counts_outcomes_as_extreme(wins, losses):
    """Of all 2^n outcomes of fair coins, those at least as far from even."""
    total = wins + losses
    outcomes = list(itertools.product((0, 1), repeat=total))
    extreme = [o for o in outcomes if abs(2 * sum(o) - total) >= abs(wins - losses)]
    assert sign_test(wins, losses) == len(extreme) / len(outcomes)


def test_sign_test_of_many_pairs_does_not_overflow():
    assert sign_test(2000, 2000) == 1.0
    assert 0 < sign_test(700, 600) < 0.01


def test_wins_losses_ties_and_their_signs():
    """The second run solves problems 0 to 4 anew and loses problem 5, of 11."""
    first = np.array([0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0])
    second = np.array([1, 1, 1, 1, 1, 0, 1, 1, 0, 0, 0])
    result = compare_runs(as_run(first), as_run(second), seed=0, names=("base", "tuned"))
    assert (result.wins, result.losses, result.ties) == (5, 1, 5)
    assert result.p_value == 2 * (1 + 6) / 2**6
    assert result.means == (3 / 11, 7 / 11)
    assert result.difference.mean == pytest.approx(4 / 11)
    assert result.difference.low < 4 / 11 < result.difference.high
    turned = compare_runs(as_run(second), as_run(first), seed=0)
    assert turned.difference.mean == -result.difference.mean
    assert (turned.wins, turned.losses, turned.p_value) == (1, 5, result.p_value)
    head, _, row = result.table().splitlines()
    assert head.startswith("| base | tuned |") and head.count("|") == row.count("|")
    assert row.startswith("| 0.2727 | 0.6364 | +0.3636 |")


def test_pairing_removes_what_problems_have_in_common():
    """Values that differ by 1/4 on each problem: the difference has no spread at all."""
    values = np.arange(13) / 13
    result = compare_runs(as_run(values), as_run(values + 0.25), seed=1)
    assert result.difference.low == pytest.approx(0.25)
    assert result.difference.high == pytest.approx(0.25)


def test_the_order_of_problems_does_not_matter():
    first, second = as_run([0, 1, 1, 0, 1]), as_run([1, 1, 0, 0, 1])
    turned = dict(reversed(second.items()))
    assert compare_runs(first, second, seed=3) == compare_runs(first, turned, seed=3)
    turned_first = dict(reversed(first.items()))
    assert compare_runs(first, second, seed=3) == compare_runs(turned_first, turned, seed=3)


def test_runs_of_other_problems_are_refused():
    with pytest.raises(
        DataError, match=r"problem 'p3' of run 'a' is not in run 'b', .* 2 of its 5"
    ):
        compare_runs(as_run(range(5)), as_run(range(3)), seed=0, names=("a", "b"))
    with pytest.raises(DataError, match=r"problem 'p1' of run 'second' is not in run 'first'"):
        compare_runs(as_run([0]), as_run([0, 1]), seed=0)
    with pytest.raises(DataError, match="no value"):
        compare_runs({}, {}, seed=0)
