"""pass@k, majority@k and intervals against enumeration, formulas and the normal limit."""

import itertools
from collections import Counter
from fractions import Fraction
from math import comb, erf, sqrt

import numpy as np
import pytest

from core_jax.errors import ConfigError, DataError
from reasoning_jax.accuracy import (
    IntervalMethod,
    bootstrap_interval,
    majority_at_k,
    pass_at_k,
    resampled_means,
    wilson_interval,
)


def test_accuracy_is_the_share_of_problems():
    is_correct = np.arange(11) < 4
    assert bootstrap_interval(is_correct.astype(float), seed=0, num_samples=7).mean == 4 / 11


@pytest.mark.parametrize("k", [1, 2, 5, 7])
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_one(k):
    num_samples = 7
    values = pass_at_k(np.arange(8), np.full(8, num_samples), k)
    for num_correct, value in enumerate(values):
        subsets = list(itertools.combinations(range(num_samples), k))
        hits = sum(min(subset) < num_correct for subset in subsets)
        assert value == pytest.approx(hits / len(subsets), rel=1e-13, abs=0)


def test_pass_at_k_keeps_its_digits_and_does_not_overflow():
    """1 - C(n-1, k) / C(n, k) = k / n; and a binomial of 5000 has over 1000 digits."""
    values = pass_at_k(np.array([1, 1, 2500]), np.array([10**12, 5000, 5000]), 3)
    assert values[0] == pytest.approx(3e-12, rel=1e-12)
    assert values[1] == pytest.approx(3 / 5000, rel=1e-12)
    exact = 1 - Fraction(comb(2500, 3), comb(5000, 3))
    assert values[2] == pytest.approx(float(exact), rel=1e-12)
    many = pass_at_k(np.array([7]), np.array([5000]), 2500)
    assert many[0] == pytest.approx(float(1 - Fraction(comb(4993, 2500), comb(5000, 2500))))


def test_pass_at_k_takes_each_problems_own_number_of_samples():
    values = pass_at_k(np.array([1, 1]), np.array([3, 5]), 2)
    np.testing.assert_allclose(values, [2 / 3, 2 / 5])


def by_enumeration(votes, verdicts, k):
    """The mean over all subsets of k of the winners' mean correctness."""
    total = Fraction(0)
    for subset in itertools.combinations(range(len(votes)), k):
        counts = Counter(votes[sample] for sample in subset if votes[sample] is not None)
        if not counts:
            continue
        winners = [group for group, count in counts.items() if count == max(counts.values())]
        for winner in winners:
            members = [sample for sample, vote in enumerate(votes) if vote == winner]
            share = Fraction(sum(verdicts[sample] for sample in members), len(members))
            total += share / len(winners)
    return total / comb(len(votes), k)


@pytest.mark.parametrize("case", range(12))
def test_majority_is_the_mean_over_all_subsets(case):
    generator = np.random.default_rng(case)
    num_samples = int(generator.integers(5, 11))
    drawn = generator.integers(-1, 4, num_samples).tolist()
    votes = [None if vote < 0 else vote for vote in drawn]
    verdicts = [vote == 0 for vote in votes]
    ks = list(range(1, num_samples + 1))
    values = majority_at_k([votes], [verdicts], ks)
    expected = [float(by_enumeration(votes, verdicts, k)) for k in ks]
    np.testing.assert_allclose(values[0], expected, rtol=1e-12, atol=1e-15)


def test_majority_of_one_is_the_share_of_correct_samples():
    votes, verdicts = [5, None, 5, 2, 8, None, 2], [True, False, True, False, False, False, False]
    assert majority_at_k([votes], [verdicts], [1])[0, 0] == pytest.approx(2 / 7)


def test_no_answer_never_outvotes_an_answer():
    """One answer among many samples without one wins wherever it is drawn: k / n of the subsets."""
    votes, verdicts = [None] * 12 + [3], [False] * 12 + [True]
    values = majority_at_k([votes, [None] * 13], [verdicts, [False] * 13], [1, 5, 13])
    np.testing.assert_allclose(values, [[1 / 13, 5 / 13, 1], [0, 0, 0]], rtol=1e-12)


def test_a_tie_is_split_evenly():
    assert majority_at_k([[0, 1, 2]], [[False, True, False]], [3])[0, 0] == pytest.approx(1 / 3)


def test_a_group_of_mixed_verdicts_counts_as_their_share():
    votes, verdicts = [0, 0, 0, 1], [True, False, True, False]
    expected = [float(by_enumeration(votes, verdicts, k)) for k in (1, 2, 4)]
    np.testing.assert_allclose(majority_at_k([votes], [verdicts], [1, 2, 4])[0], expected)
    assert expected[-1] == 2 / 3


def test_majority_of_a_thousand_samples_is_exact():
    """Two groups of 500 and all 1000 votes: an even tie; an odd k has no tie, and is even too."""
    votes, verdicts = [0] * 500 + [1] * 500, [True] * 500 + [False] * 500
    np.testing.assert_allclose(majority_at_k([votes], [verdicts], [3, 7]), [[0.5, 0.5]], rtol=1e-9)


def test_bootstrap_means_spread_as_the_normal_limit():
    """Their standard deviation is that of a value over sqrt P, so the ends are at 1.96 of it."""
    values = (np.arange(1009) % 3 == 0).astype(np.float64)
    spread = values.std() / sqrt(1009)
    for method in IntervalMethod:
        interval = bootstrap_interval(values, seed=3, num_samples=4001, method=method)
        assert interval.low == pytest.approx(values.mean() - 1.96 * spread, abs=0.15 * spread)
        assert interval.high == pytest.approx(values.mean() + 1.96 * spread, abs=0.15 * spread)
    narrow = bootstrap_interval(values, seed=3, num_samples=4001, confidence=erf(1 / sqrt(2)))
    assert (narrow.high - narrow.low) / 2 == pytest.approx(spread, rel=0.08)


def test_bca_follows_the_skewness_and_percentile_does_less():
    """Efron's second-order correction moves both ends by about (a z^2 + ...) towards the tail."""
    values = np.exp(np.random.default_rng(0).standard_normal(53))
    plain = bootstrap_interval(values, seed=1, num_samples=5000)
    corrected = bootstrap_interval(values, seed=1, num_samples=5000, method=IntervalMethod.BCA)
    assert corrected.low > plain.low and corrected.high > plain.high


def test_bca_equals_the_reference_implementation():
    """SciPy resamples with its own draws: the ends agree to the noise of 20,000 resamples."""
    stats = pytest.importorskip("scipy.stats")
    values = np.exp(np.random.default_rng(0).standard_normal(53))
    ours = bootstrap_interval(values, seed=1, num_samples=20000, method=IntervalMethod.BCA)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20000, method="BCa", rng=np.random.default_rng(1)
    ).confidence_interval
    noise = 0.05 * (theirs.high - theirs.low)
    assert ours.low == pytest.approx(theirs.low, abs=noise)
    assert ours.high == pytest.approx(theirs.high, abs=noise)


def test_resamples_depend_on_seed_and_size_alone():
    values = np.arange(13.0)
    first = resampled_means(values, seed=5, num_samples=101)
    np.testing.assert_array_equal(first, resampled_means(values, seed=5, num_samples=101))
    np.testing.assert_array_equal(first[:7], resampled_means(values, seed=5, num_samples=7))
    np.testing.assert_allclose(first + 1, resampled_means(values + 1, seed=5, num_samples=101))
    assert not np.array_equal(first, resampled_means(values, seed=6, num_samples=101))
    # The mean of all resampled means is the mean: 6, to the noise of 101 of them.
    assert first.mean() == pytest.approx(6, abs=4 * values.std() / sqrt(13 * 101))


@pytest.mark.parametrize("num_correct", [0, 3, 64])
def test_wilson_ends_solve_their_equation(num_correct):
    interval = wilson_interval(num_correct, 64, confidence=0.9)
    assert 0 <= interval.low <= interval.mean <= interval.high <= 1
    assert interval.high > interval.low
    for end in (interval.low, interval.high):
        if 0 < end < 1:
            distance = abs(interval.mean - end) / sqrt(end * (1 - end) / 64)
            assert distance == pytest.approx(1.6448536269514722)


def test_errors_name_the_problem_and_the_remedy():
    with pytest.raises(ConfigError, match=r"k is 4; problem 1 has 3 samples; .* sample more"):
        pass_at_k(np.array([1, 1]), np.array([5, 3]), 4)
    with pytest.raises(ConfigError, match=r"k is 0; k must be at least 1"):
        pass_at_k(np.array([1]), np.array([5]), 0)
    with pytest.raises(DataError, match="problem 1 has 4 correct of 3 samples"):
        pass_at_k(np.array([1, 4]), np.array([5, 3]), 1)
    with pytest.raises(ConfigError, match="k is 3; problem 0 has 2 samples"):
        majority_at_k([[1, 1]], [[True, True]], [1, 3])
    with pytest.raises(DataError, match="groups of 1 problems, verdicts of 2"):
        majority_at_k([[1]], [[True], [True]], [1])
    with pytest.raises(DataError, match="problem 0 has 2 answers but 1 verdicts"):
        majority_at_k([[1, 1]], [[True]], [1])
    with pytest.raises(DataError, match=r"sample 1 of problem 0 is correct but has no answer"):
        majority_at_k([[1, None]], [[True, True]], [1])
    with pytest.raises(DataError, match=r"problem 0 has 1001 samples; .* first 1000"):
        majority_at_k([[1] * 1001], [[True] * 1001], [1])


def test_errors_of_intervals():
    with pytest.raises(DataError, match="no value to take a mean of"):
        bootstrap_interval(np.zeros(0), seed=0)
    with pytest.raises(DataError, match="value of problem 1 is nan"):
        bootstrap_interval(np.array([1.0, np.nan]), seed=0)
    with pytest.raises(ConfigError, match="num_samples is 0"):
        bootstrap_interval(np.ones(3), seed=0, num_samples=0)
    with pytest.raises(ConfigError, match="confidence is 1"):
        bootstrap_interval(np.ones(3), seed=0, confidence=1.0)
    with pytest.raises(DataError, match="5 of 3 problems"):
        wilson_interval(5, 3)
    with pytest.raises(ConfigError, match="confidence is 0"):
        wilson_interval(1, 3, confidence=0.0)
