"""Critical tokens: the rules against hand-made curves, direct readings and their distribution."""

import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest

from core_jax.errors import ConfigError, DataError
from reasoning_jax.align.critical import (
    CriticalConfig,
    CriticalRule,
    CriticalToken,
    critical_token,
    drop_p_values,
    drop_position,
    replacement_curves,
    zero_position,
)

CONFIG = CriticalConfig(temperature=0.5, max_new_tokens=7)


def counts(*numbers):
    return np.array(numbers)


def walk(curve, num_rollouts, share):
    """The rule as the paper's code walks: candidate, cancelled, next zero, last cancelled one."""
    candidate = cancelled = None
    for place, right in enumerate(curve):
        if candidate is None and right == 0:
            candidate = place
        if candidate is not None and right / num_rollouts >= share:
            candidate, cancelled = None, candidate
    if candidate is not None:
        return CriticalToken(index=candidate)
    return CriticalToken(index=cancelled, is_fallback=cancelled is not None)


def defined(curve, num_rollouts, share):
    """The first t with c_t = 0 and c_u / n < share for every later u; None without one."""
    for place, right in enumerate(curve):
        if right == 0 and all(later / num_rollouts < share for later in curve[place + 1 :]):
            return place
    return None


@pytest.mark.parametrize(
    ("curve", "index", "is_fallback"),
    [
        ((64, 31, 0, 0, 0), 2, False),  # the first zero
        ((64, 0, 3, 0, 0), 1, False),  # 3 of 64 are 4.7 %, under 5 %
        ((64, 0, 4, 0, 0), 3, False),  # 4 of 64 are 6.3 %: cancelled, the next zero
        ((0, 17, 0, 9, 2, 0), 5, False),  # cancelled twice
        ((64, 0, 2, 5, 1, 3), 1, True),  # cancelled, and no zero follows
        ((0, 64, 0, 0, 8, 1), 2, True),  # of two cancelled ones the last, at its first zero
        ((0,), 0, False),
        ((64, 64, 0), 2, False),
        ((5, 3, 1), None, False),  # never without success
    ],
)
def test_the_papers_rule_on_curves_by_hand(curve, index, is_fallback):
    found = zero_position(counts(*curve), 64)
    assert found == CriticalToken(index=index, is_fallback=is_fallback)


def test_the_limit_itself_cancels():
    """Success must stay under the share: 1 of 20 is 5 %, 7 of 100 are 7 % (0.07 * 100 > 7)."""
    assert zero_position(counts(0, 1), 20, later_share=0.05).is_fallback
    assert zero_position(counts(0, 7), 100, later_share=0.07).is_fallback
    assert not zero_position(counts(0, 6), 100, later_share=0.07).is_fallback


def test_the_papers_rule_equals_its_definition_and_the_walk_on_all_small_curves():
    """Every curve of 7 prefixes over counts 0 (zero), 1 (low), 2 (at the limit of 2 of 7)."""
    outcomes = set()
    for curve in itertools.product((0, 1, 2), repeat=7):
        found = zero_position(counts(*curve), 7, later_share=2 / 7)
        assert found == walk(curve, 7, 2 / 7)
        direct = defined(curve, 7, 2 / 7)
        assert (None if found.is_fallback else found.index) == direct
        outcomes.add((found.index is None, found.is_fallback))
    assert outcomes == {(True, False), (False, True), (False, False)}


def test_the_papers_rule_equals_the_walk_on_long_random_curves():
    generator = np.random.default_rng(0)
    for _ in range(300):
        curve = generator.binomial(64, generator.choice([0, 0.02, 0.04, 0.07], size=41))
        assert zero_position(curve, 64) == walk(curve.tolist(), 64, 0.05)


def test_the_test_of_two_proportions_by_hand():
    """c = 12 and 4 of 16: pooled 1/2, variance 1/4 * 2/16 = 1/32, z = 1/2 * sqrt(32)."""
    expected = 1 - NormalDist().cdf(0.5 * math.sqrt(32))
    found = drop_p_values(counts(12, 4, 0, 16), counts(4, 12, 0, 16), 16)
    np.testing.assert_allclose(found, [expected, 1 - expected, 0.5, 0.5], rtol=1e-12)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("alpha", [0.01, 0.05])
def test_equal_proportions_are_rejected_about_as_often_as_alpha(share, alpha):
    """The exact distribution: all pairs of counts of 64, weighed by their binomials."""
    n = 64
    pmf = np.array([math.comb(n, c) * share**c * (1 - share) ** (n - c) for c in range(n + 1)])
    before, after = (grid.ravel() for grid in np.mgrid[: n + 1, : n + 1])
    is_drop = drop_p_values(before, after, n) <= alpha
    rate = (np.outer(pmf, pmf).ravel() * is_drop).sum()
    assert 0.6 * alpha < rate < 1.35 * alpha


def test_first_and_largest_drop_on_curves_by_hand():
    """z = 1.96 at 1 %: of 64, 40 to 20 (z = 3.5) and 40 to 8 are significant, 40 to 33 is not."""
    curve = counts(40, 33, 40, 20, 40, 8, 40, 8)
    assert drop_position(curve, 64, alpha=0.01, first=True) == 2
    assert drop_position(curve, 64, alpha=0.01, first=False) == 4  # the first of two equal ones
    assert drop_position(counts(40, 33, 40), 64, alpha=0.01, first=True) is None
    assert drop_position(counts(8, 40, 64), 64, alpha=0.01, first=False) is None
    # 38 to 26 (z = 2.1) is the larger drop, but only 10 to 0 (z = 3.3) is significant.
    assert drop_position(counts(38, 26, 18, 10, 0), 64, alpha=0.01, first=False) == 3


def test_the_drops_equal_a_direct_search_on_random_curves():
    generator = np.random.default_rng(1)
    for _ in range(300):
        curve = generator.binomial(17, generator.choice([0.0, 0.2, 0.5, 0.9], size=23))
        drops = {}
        for token, (before, after) in enumerate(itertools.pairwise(curve.tolist())):
            pooled = (before + after) / 34
            spread = math.sqrt(pooled * (1 - pooled) * 2 / 17) or 1.0
            if NormalDist().cdf(-(before - after) / 17 / spread) <= 0.03:
                drops[token] = before - after
        first = min(drops, default=None)
        largest = max(drops, key=lambda token: (drops[token], -token), default=None)
        assert drop_position(curve, 17, alpha=0.03, first=True) == first
        assert drop_position(curve, 17, alpha=0.03, first=False) == largest


@pytest.mark.parametrize(
    ("rule", "index"),
    [(CriticalRule.ZERO, 3), (CriticalRule.FIRST_DROP, 0), (CriticalRule.LARGEST_DROP, 2)],
)
def test_a_config_chooses_the_rule(rule, index):
    """From the prompt alone 60 of 64 are right: the first token already costs something."""
    config = CriticalConfig(temperature=0.5, max_new_tokens=7, rule=rule)
    assert critical_token(counts(40, 44, 2, 0), 60, 64, config).index == index


def test_a_config_sets_the_limits():
    low = CriticalConfig(temperature=0.5, max_new_tokens=7, later_share=0.01)
    assert critical_token(counts(0, 1, 0), 60, 64, low).index == 2
    assert critical_token(counts(0, 1, 0), 60, 64, CONFIG).index == 0
    strict = CriticalConfig(
        temperature=0.5, max_new_tokens=7, rule=CriticalRule.FIRST_DROP, alpha=1e-7
    )
    assert critical_token(counts(40, 44, 2, 0), 60, 64, strict).index == 2


def test_pass_at_k_with_and_without_the_token():
    """1 - C(n - c, k) / C(n, k) for every k from 1 to n."""
    n, right = 11, (0, 3, 11)
    kept, replaced = replacement_curves(counts(0, 0, 1), counts(*right), n)
    expected = [[1 - math.comb(n - c, k) / math.comb(n, k) for k in range(1, n + 1)] for c in right]
    np.testing.assert_allclose(replaced, expected, atol=1e-12)
    np.testing.assert_allclose(kept[2], np.arange(1, n + 1) / n, atol=1e-12)
    assert not kept[:2].any()


def test_errors_name_what_is_wrong():
    with pytest.raises(DataError, match=r"prefix 1 has 9 right completions of 7; expected 0 to"):
        zero_position(counts(3, 9), 7)
    with pytest.raises(DataError, match=r"prefix 0 has -1 right completions of 7"):
        drop_position(counts(-1, 3), 7, alpha=0.01, first=True)
    with pytest.raises(DataError, match="a solution without tokens has no critical token"):
        zero_position(np.zeros(0, int), 7)
    with pytest.raises(DataError, match="a solution without tokens has no critical token"):
        drop_position(counts(3), 7, alpha=0.01, first=True)
    with pytest.raises(ConfigError, match=r"later_share is 1\.0; it must lie between 0 and 1"):
        zero_position(counts(3), 7, later_share=1.0)
    with pytest.raises(ConfigError, match=r"alpha is 0\.5; it must lie between 0 and 0\.5"):
        drop_position(counts(3, 2), 7, alpha=0.5, first=True)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("temperature", 0.0, r"critical\.temperature is 0\.0; it must be above 0"),
        ("top_p", 0.0, r"critical\.top_p is 0\.0; it must be in \(0, 1\]"),
        ("max_new_tokens", 0, r"critical\.max_new_tokens is 0; it must be at least 1"),
        ("num_solutions", 0, r"critical\.num_solutions is 0"),
        ("num_rollouts", 0, r"critical\.num_rollouts is 0"),
        ("later_share", 0.0, r"critical\.later_share is 0\.0; it must lie between 0 and 1"),
        ("alpha", 0.6, r"critical\.alpha is 0\.6; it must lie between 0 and 0\.5"),
    ],
)
def test_a_config_checks_its_fields(field, value, message):
    with pytest.raises(ConfigError, match=message):
        CriticalConfig(**{"temperature": 0.5, "max_new_tokens": 7, field: value})
