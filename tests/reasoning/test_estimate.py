"""How well scores find critical tokens: measures against counting, ties, chance, and the table."""

import itertools

import numpy as np
import pytest

from core_jax.errors import ConfigError, DataError
from reasoning_jax.align.estimate import (
    EstimateConfig,
    EstimateRow,
    ScoredSolution,
    auc,
    by_task,
    estimate,
    percentile_rank,
    table,
    top_k_overlap,
)

CONFIG = EstimateConfig(bootstrap_samples=101, top_ks=(1, 3))


def solution(scores, target, task="sums"):
    return ScoredSolution(task=task, scores=np.array(scores, float), target=target)


def random_solutions(number, length, seed=0, num_levels=5):
    generator = np.random.default_rng(seed)
    return [
        solution(generator.integers(0, num_levels, length), int(generator.integers(length)))
        for _ in range(number)
    ]


def test_the_area_counts_pairs():
    for one in random_solutions(31, 7):
        others = np.delete(one.scores, one.target)
        mine = one.scores[one.target]
        pairs = [1.0 if mine < other else 0.5 if mine == other else 0.0 for other in others]
        assert auc(one.scores, one.target) == pytest.approx(sum(pairs) / 6)


def test_ranks_and_overlaps_are_means_over_the_orders_of_ties():
    """Sorted with ties broken in every order; the rank counts from one, less one half."""
    for one in random_solutions(13, 5, num_levels=3):
        places = []
        for order in itertools.permutations(range(5)):
            ranked = sorted(range(5), key=lambda token, o=order: (one.scores[token], o[token]))
            places.append(ranked.index(one.target))
        rank = np.mean([(place + 0.5) / 5 for place in places])
        assert percentile_rank(one.scores, one.target) == pytest.approx(rank)
        for k in range(1, 7):
            share = np.mean([place < k for place in places])
            assert top_k_overlap(one.scores, one.target, k) == pytest.approx(share)


def test_a_score_that_knows_and_one_that_knows_nothing():
    """The lowest score at the target: AUC 1, rank 1/2T. Equal scores: 1/2, 1/2, chance k/T."""
    sharp = estimate([solution(np.arange(7.0), 0), solution(-np.arange(11.0), 10)], CONFIG)
    assert sharp.auc.mean == 1 and [one.found.mean for one in sharp.overlaps] == [1, 1]
    assert sharp.rank.mean == pytest.approx((1 / 14 + 1 / 22) / 2)
    blunt = estimate([solution(np.zeros(7), 3), solution(np.zeros(2), 1)], CONFIG)
    assert blunt.auc.mean == blunt.rank.mean == 0.5
    for one, chance in zip(blunt.overlaps, [(1 / 7 + 1 / 2) / 2, (3 / 7 + 1) / 2], strict=True):
        assert one.found.mean == pytest.approx(chance) == one.chance


def test_measures_do_not_depend_on_a_scale_and_average_over_solutions():
    """Solutions weigh the same, however long; the logarithm of a score ranks as the score."""
    short, long = solution([0.1, 0.9], 0), solution(np.linspace(0.1, 0.9, 17), 16)
    both = estimate([short, long], CONFIG)
    assert both.auc.mean == (1 + 0) / 2
    logs = [solution(np.log(one.scores), one.target) for one in (short, long)]
    assert estimate(logs, CONFIG) == both


def test_random_scores_are_at_chance():
    """500 solutions of 19 tokens, no ties: AUC has standard error sqrt(1/12 * 20/18 / 500)."""
    generator = np.random.default_rng(3)
    found = estimate(
        [solution(generator.random(19), int(generator.integers(19))) for _ in range(500)], CONFIG
    )
    assert abs(found.auc.mean - 0.5) < 3 * np.sqrt(20 / 18 / 12 / 500)
    assert found.auc.low < found.auc.mean < found.auc.high
    assert found.overlaps[1].chance == pytest.approx(3 / 19)
    assert abs(found.overlaps[1].found.mean - 3 / 19) < 3 * np.sqrt(3 / 19 * 16 / 19 / 500)


def test_solutions_of_one_token_are_left_out_and_counted():
    found = estimate([solution([0.3], 0), solution([0.3, 0.1], 0)], CONFIG)
    assert (found.num_solutions, found.num_left_out, found.auc.mean) == (1, 1, 0)
    with pytest.raises(DataError, match="none of 1 solutions has a token to be found among"):
        estimate([solution([0.3], 0)], CONFIG)


def test_tasks_apart_and_together_in_a_table():
    sums = [solution([0.1, 0.2, 0.3], 0)] * 2
    found = by_task([*sums, solution([0.1, 0.2, 0.3], 2, task="steps")], CONFIG)
    assert {task: one.auc.mean for task, one in found.items()} == {
        "sums": 1,
        "steps": 0,
        "all": pytest.approx(2 / 3),
    }
    assert list(by_task(sums, CONFIG)) == ["sums"]
    named = [
        EstimateRow(target="critical token", task=task, value="log_score@1.0", estimate=one)
        for task, one in found.items()
    ]
    lines = table(named, confidence=0.95)
    rows = [line for line in lines.splitlines() if line.startswith("| ")]
    assert len(rows) == 4 and all(row.count("|") == rows[0].count("|") for row in rows)
    assert rows[1].startswith(
        "| critical token | sums | log_score@1.0 | 2 | 1.000 [1.000, 1.000] | 0.167 ["
    )
    assert rows[2].endswith("| 0.000 [0.000, 0.000] (0.333) | 1.000 [1.000, 1.000] (1.000) |")


def test_errors_name_what_is_wrong():
    with pytest.raises(DataError, match="the token to be found is 3 of 3 scored tokens"):
        solution([0.1, 0.2, 0.3], 3)
    with pytest.raises(DataError, match="a score is not a number"):
        solution([0.1, np.nan], 0)
    with pytest.raises(ConfigError, match=r"estimate\.values is empty"):
        EstimateConfig(values=())
    with pytest.raises(ConfigError, match=r"estimate\.top_ks is \(0, 3\); give counts"):
        EstimateConfig(top_ks=(0, 3))
