"""Sets and pairs of graded trajectories: the paper's example, every count, every reason."""

import collections
import dataclasses

import pytest

from core_jax.errors import ConfigError, DataError
from reasoning_jax.align.answer_sets import COUNTS, SetsConfig, counts_table, make_sets
from reasoning_jax.answers.grader import Grader
from tests.reasoning.alignment_cases import solution, solutions

PAPER = ["a", "c", "b", "a", "d", "b", "e", "a", "f", "g"]
"""The paper's example: a three times, b twice, c to g once; ten wrong answers."""


@pytest.fixture(scope="module")
def grader():
    """One for all tests: its processes start once."""
    with Grader() as grader:
        yield grader


def sets(rows, grader, **config):
    return make_sets(rows, grader, SetsConfig(**config))


def answers(rows):
    return [one.answer for one in rows]


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.25, ["a"]),  # ceil(2.5) = 3 = the three of a
        (0.30, ["a"]),  # 3 in decimals; 0.3 * 10 is a little more in binary
        (0.50, ["a", "b"]),  # 5 = 3 + 2
        (0.75, ["a", "b", "c", "d", "e"]),  # ceil(7.5) = 8 = 3 + 2 + 1 + 1 + 1
        (1.00, ["a", "b", "c", "d", "e", "f", "g"]),
    ],
)
def test_negatives_are_one_solution_of_each_frequent_wrong_answer(grader, share, expected):
    """Groups of one size come in the order of their first solutions."""
    made = sets(solutions(PAPER), grader, negative_share=share)
    assert answers(made.negative) == expected
    assert made.counts["negative"] == len(expected)
    assert made.counts["negative_short"] == 0


def test_wrong_answers_that_came_once_can_be_left_out_but_for_the_first(grader):
    made = sets(solutions(PAPER), grader, negative_share=0.75, repeated_only=True)
    assert answers(made.negative) == ["a", "b"]
    assert made.counts["negative_short"] == 1  # 5 of 8
    once = sets(solutions(["5", "3"]), grader, negative_share=1.0, repeated_only=True)
    assert answers(once.negative) == ["5"]


def test_the_pair_is_the_most_frequent_right_against_the_most_frequent_wrong_answer(grader):
    """One of 7's solutions is a right one of a rarer form that no rule makes equal to it."""
    rows = solutions(["3", "7", "x7", "5", "7", "5", None], right=("7", "x7"))
    made = sets(rows, grader)
    assert answers(made.positive) == ["7"]
    (pair,) = made.pairs
    assert (pair.problem_id, pair.index) == ("p1", 0)
    assert (pair.chosen.answer, pair.rejected.answer) == ("7", "5")
    assert made.counts["correct_groups"] == made.counts["wrong_groups"] == 2
    assert made.counts["no_answer"] == 1


def test_answers_are_grouped_by_equivalence_and_not_by_string(grader):
    """As strings "3" is the most frequent wrong answer, twice; as numbers one half is, thrice."""
    rows = solutions(["3", "0.5", "3", "1/2", r"\frac{1}{2}", "7"])
    made = sets(rows, grader, negative_share=0.6)
    assert made.counts["wrong_groups"] == 2
    assert len(made.negative) == 1  # 3 of 5 = 0.6
    assert made.negative[0].answer in ("0.5", "1/2", r"\frac{1}{2}")
    assert made.pairs[0].rejected.answer != "3"


def many(num_problems=23, num_samples=13):
    wrong = ["3", "5", "3", "2", "11"]
    return [
        solution(f"p{p}", s, "7", True) if s % 2 else solution(f"p{p}", s, wrong[s % 5], False)
        for p in range(num_problems)
        for s in range(num_samples)
    ]


def test_draws_depend_on_seed_problem_and_sample_alone(grader):
    """Neither the order of the file nor the other problems matter; another seed draws others."""
    made = sets(many(), grader, pairs_per_problem=2)
    assert sets(many()[::-1], grader, pairs_per_problem=2) == made
    some = sets([one for one in many() if one.problem_id > "p3"], grader, pairs_per_problem=2)
    for name in ("positive", "negative", "pairs"):
        expected = [one for one in getattr(made, name) if one.problem_id > "p3"]
        assert list(getattr(some, name)) == expected
    other = sets(many(), grader, pairs_per_problem=2, seed=1)
    assert other.counts.keys() == made.counts.keys()
    assert set(other.pairs) != set(made.pairs)
    assert [one.problem_id for one in other.positive] != [one.problem_id for one in made.positive]


def test_every_solution_of_an_answer_can_be_drawn(grader):
    """Of 199 seeds, each of three solutions is drawn about 66 times: 5 sigma are 33."""
    rows = solutions(["7", "5", "7", "7"])
    drawn = collections.Counter(
        sets(rows, grader, seed=seed).positive[0].sample for seed in range(199)
    )
    assert drawn.keys() == {0, 2, 3}
    assert all(33 <= number <= 100 for number in drawn.values())


def test_sets_and_pairs_draw_independently(grader):
    """What the negative model has learnt is the rejected solution of one problem in three."""
    rows = [
        solution(f"p{p}", s, "5" if s < 3 else "7", s >= 3) for p in range(101) for s in range(5)
    ]
    made = sets(rows, grader, negative_share=1.0)
    both = {one.key for one in made.negative} & {pair.rejected.key for pair in made.pairs}
    assert made.counts["rejected_in_negative"] == len(both)
    assert 10 <= len(both) <= 57  # 101/3 +- 5 sigma


@pytest.mark.parametrize(("wanted", "expected"), [(1, 1), (2, 2), (5, 5), (6, 6), (7, 6)])
def test_no_two_pairs_of_a_problem_are_equal(grader, wanted, expected):
    """Two right and three wrong texts, coprime: 2 * 3 pairs; the first two share no solution."""
    rows = solutions(["7", "5", "7", "5", "5"])
    made = sets(rows, grader, pairs_per_problem=wanted)
    keys = [(pair.chosen.key, pair.rejected.key) for pair in made.pairs]
    assert len(keys) == len(set(keys)) == expected
    assert [pair.index for pair in made.pairs] == list(range(expected))
    assert made.counts["pairs_short"] == (wanted > expected)
    for side in zip(*keys[:2], strict=True):
        assert len(set(side)) == min(2, expected)


def test_pairs_are_all_different_where_the_sides_have_a_common_divisor(grader):
    """Four and six texts repeat after 12 pairs; there are 24."""
    made = sets(solutions(["7"] * 4 + ["5"] * 6), grader, pairs_per_problem=97)
    assert len({(pair.chosen.key, pair.rejected.key) for pair in made.pairs}) == 24


def test_a_text_that_came_twice_is_one_solution(grader):
    """Twice the same right text: one positive of the two wanted, one pair of two, both counted."""
    rows = [dataclasses.replace(one, response=f"so {one.answer}") for one in solutions("7757")]
    made = sets(rows, grader, positives_per_problem=2, pairs_per_problem=2)
    assert (len(made.positive), len(made.pairs)) == (1, 1)
    assert made.counts["duplicates"] == 2
    assert made.counts["positive_short"] == made.counts["pairs_short"] == 1


def test_solutions_that_were_cut_off_count_only_if_they_are_to(grader):
    rows = [
        dataclasses.replace(one, finish="length" if one.sample < 3 else "stop")
        for one in solutions(["7", "5", None, "7", "3"])
    ]
    without, kept = sets(rows, grader), sets(rows, grader, keep_cut_off=True)
    assert answers(without.negative) == ["3"]
    assert without.counts["cut_off"] == 3
    assert without.counts["no_answer"] == 0
    assert answers(kept.negative) == ["5"]
    assert kept.counts["cut_off"] == 0
    assert kept.counts["no_answer"] == 1


def test_an_answer_whose_solutions_are_graded_differently_is_left_out_and_counted(grader):
    rows = [*solutions(["7", "5"]), solution("p1", 2, "7.0", False)]
    rows += [solution("p2", 0, "3", True), solution("p2", 1, "3", False)]
    made = sets(rows, grader)
    assert set(made.mixed) == {"p1", "p2"}
    assert made.counts["mixed_groups"] == 2
    assert made.counts["in_mixed_groups"] == 4
    assert made.positive == ()
    assert answers(made.negative) == ["5"]
    assert made.counts["none_clear"] == made.counts["none_correct"] == 1


def test_every_solution_and_every_problem_is_counted_once(grader):
    rows = [
        *solutions(["7", "5", " ", ""], problem="both"),
        *solutions([None, None], problem="silent"),
        *solutions(["5", "3", "5"], problem="wrong"),
        *solutions(["7"], problem="right"),
        solution("cut", 0, finish="length"),
    ]
    made = sets(rows, grader)
    counts = made.counts
    assert list(counts) == list(COUNTS)
    assert counts["samples"] == len(rows) == 11
    parts = ("cut_off", "no_answer", "correct", "wrong")
    assert [counts[name] for name in parts] == [1, 4, 2, 4]
    reasons = ("contrasted", "none_answered", "none_correct", "none_wrong", "none_clear")
    assert [counts[name] for name in reasons] == [1, 2, 1, 1, 0]
    assert sum(counts[name] for name in reasons) == counts["problems"] == 5
    assert {one.problem_id for one in made.positive} == {"both", "right"}
    assert {one.problem_id for one in made.negative} == {"both", "wrong"}
    table = counts_table(counts).splitlines()
    assert table[:2] == ["| | number | per problem |", "|---|---:|---:|"]
    assert "| solutions | 11 | 2.20 |" in table
    assert len(table) == 2 + len(COUNTS)


def test_what_is_not_graded_is_an_error(grader):
    rows = [*many(2, 3), solution("p9", 1, is_correct=None), solution("p9", 2, is_correct=None)]
    with pytest.raises(DataError, match=r"2 trajectories are not graded, .* \('p9', 1\)"):
        sets(rows, grader)


def test_nothing_makes_nothing(grader):
    made = sets([], grader)
    assert (made.positive, made.negative, made.pairs) == ((), (), ())
    assert set(made.counts.values()) == {0}
    assert "| problems | 0 | 0.00 |" in counts_table(made.counts)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"negative_share": 0.0}, r"negative_share is 0.0; give a share in \(0, 1\]"),
        ({"negative_share": 1.5}, "negative_share is 1.5"),
        ({"positives_per_problem": 0}, "positives_per_problem is 0; it must be at least 1"),
        ({"pairs_per_problem": 0}, "pairs_per_problem is 0"),
    ],
)
def test_configs_are_checked(fields, message):
    with pytest.raises(ConfigError, match=message):
        SetsConfig(**fields)
