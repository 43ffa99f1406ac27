"""Sums with written steps: they are right, disjoint, seeded; the first error is found."""

import re

import pytest

from core_jax.errors import ConfigError, DataError
from reasoning_jax.answers.grader import Grader
from reasoning_jax.data.arithmetic import (
    StepsTask,
    first_error,
    make_step_problems,
    steps_task,
)
from reasoning_jax.data.load import ProblemsConfig, load_problems
from reasoning_jax.data.problems import Problem
from reasoning_jax.data.procedural import is_procedural

LINE = re.compile(r"(\d+)([+-])(\d+)=(\d+)")
PROBLEM = Problem(
    problem_id="p",
    task="steps",
    question="7+5-3=?",
    answer="9",
    solution="7+5=12\n12-3=9\nThe answer is 9.",
)


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("steps", StepsTask()),
        ("steps-2-3", StepsTask(min_steps=2, max_steps=3)),
        ("steps-1-5-97", StepsTask(min_steps=1, max_steps=5, largest=97)),
        ("steps-1-5-97-89", StepsTask(min_steps=1, max_steps=5, largest=97, largest_term=89)),
        ("steps-2", None),
        ("stepsize", None),
        ("sums", None),
    ],
)
def test_a_name_carries_the_sizes(name, task):
    assert steps_task(name) == task


@pytest.mark.parametrize("name", ["steps", "steps-2-5-101-53", "steps-1-1-3-3"])
def test_every_step_follows_and_uses_the_next_term(name):
    """The lines recompute the question from left to right; all sizes stay within their bounds."""
    task = steps_task(name)
    assert task is not None
    for problem in make_step_problems(name, "train", num_problems=5 if "-1-1-" in name else 97):
        first, *terms = re.findall(r"[+-]?\d+", problem.question)
        *lines, last = (problem.solution or "").split("\n")
        assert task.min_steps <= len(lines) == len(terms) <= task.max_steps
        value = int(first)
        assert 1 <= value <= task.largest
        for line, term in zip(lines, terms, strict=True):
            match = LINE.fullmatch(line)
            assert match is not None
            before, sign, size, after = match.groups()
            assert int(before) == value and sign + size == term
            value += int(term)
            assert int(after) == value
            assert 0 <= value <= task.largest and 1 <= int(size) <= task.largest_term
        assert last == f"The answer is {problem.answer}." and int(problem.answer) == value


def test_the_draw_depends_on_the_seed_alone():
    """Fewer problems are the first of more; ids are the question's; splits share no question."""
    many = make_step_problems("steps", "train", num_problems=401, seed=3)
    assert make_step_problems("steps", "train", num_problems=17, seed=3) == many[:17]
    other = make_step_problems("steps", "train", num_problems=401, seed=4)
    assert other[:17] != many[:17]
    assert len({one.problem_id for one in many}) == len({one.question for one in many}) == 401
    ids = {one.question: one.problem_id for one in many}
    assert all(ids.get(one.question, one.problem_id) == one.problem_id for one in other)
    tests = make_step_problems("steps", "test", num_problems=401, seed=3)
    assert not {one.question for one in tests} & {one.question for one in many + other}


def test_every_number_of_steps_is_as_frequent():
    """Of 2,003 problems a share 1/4 has each number of steps: within 4 standard errors."""
    counts = [
        (one.solution or "").count("=")
        for one in make_step_problems("steps", "train", num_problems=2003)
    ]
    for number in (3, 4, 5, 6):
        assert abs(counts.count(number) / 2003 - 1 / 4) < 4 * (1 / 4 * 3 / 4 / 2003) ** 0.5


def test_the_one_entry_draws_and_the_strict_grader_suffices():
    problems = load_problems(ProblemsConfig(task="steps-2-3", split="test", limit=11, seed=5))
    assert problems == make_step_problems("steps-2-3", "test", num_problems=11, seed=5)
    assert not any(is_procedural(one) for one in problems)
    with Grader() as grader:
        right = grader.grade([(one.answer, f" {one.solution}") for one in problems])
        wrong = grader.grade([(f"{one.answer}1", f" {one.solution}") for one in problems])
    assert all(one.is_correct for one in right) and not any(one.is_correct for one in wrong)


@pytest.mark.parametrize(
    ("response", "index"),
    [
        ("7+5=12\n12-3=9\nThe answer is 9.", None),
        (" 7+5=12\n12-3=9\nThe answer is 9.\n", None),
        ("7+5=13\n13-3=10\nThe answer is 10.", len("7+5=1")),  # a digit, then right arithmetic
        (" 7+5=13\n13-3=10\nThe answer is 10.", len(" 7+5=1")),
        ("7+5=2\n2-3=1\nThe answer is 1.", len("7+5=")),
        ("7+5=122\n", len("7+5=12")),  # a digit too many
        ("7+5=1\n1-3=9", len("7+5=1")),  # one too few
        ("7+5=12\n12-4=8", len("7+5=12\n12-")),  # another term than the question's
        ("7+5=12\n12+3=15", len("7+5=12\n12")),  # another sign
        ("7+5=12\n13-3=10", len("7+5=12\n1")),  # not the value before
        ("7+5=12\nThe answer is 12.", len("7+5=12\n")),  # a step left out
        ("7+5=12\n12-3=9\nThe answer is 8.", len("7+5=12\n12-3=9\nThe answer is ")),
        ("7+5=12\n12-3=9", len("7+5=12\n12-3=9")),  # it ends too early
        ("7+5=12\n12-3=9\nThe answer is 9. No", len("7+5=12\n12-3=9\nThe answer is 9.")),
        ("", 0),
    ],
)
def test_the_first_error(response, index):
    assert first_error(PROBLEM, response) == index


def test_an_error_that_is_made_good_is_still_the_first():
    """The last answer is right, and yet the first step is not."""
    assert first_error(PROBLEM, "7+5=13\n13-4=9\nThe answer is 9.") == len("7+5=1")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("sums", {}, r"'sums' is no task of written steps; name it steps, or steps-2-4"),
        ("steps", {"split": "valid"}, r"'steps' has no split 'valid'; it has train and test"),
        ("steps", {"num_problems": 0}, r"num_problems is 0; it must be at least 1"),
        ("steps-0-2", {}, r"no task of 0 to 2 steps on values up to 29 .* 1 <= FEWEST <= MOST"),
        ("steps-3-2", {}, r"no task of 3 to 2 steps"),
        ("steps-1-2-5-7", {}, r"up to 5 with terms up to 7; .* 1 <= TERM <= LARGEST"),
    ],
)
def test_what_cannot_be_drawn_is_told(name, change, message):
    with pytest.raises(ConfigError, match=message):
        make_step_problems(name, **{"split": "test", "num_problems": 1, **change})


def test_more_questions_than_there_are():
    """One step on values up to 2 has the first values 1 and 2, with two terms each: 4 questions."""
    with pytest.raises(DataError, match=r"'steps-1-1-2-2' gave [0-4] different train questions"):
        make_step_problems("steps-1-1-2-2", "train", num_problems=5)


def test_a_problem_without_a_solution_has_no_first_error():
    bare = Problem(problem_id="p", task="own", question="?", answer="1")
    with pytest.raises(DataError, match=r"'p' has no written solution .* task steps"):
        first_error(bare, "1")


def test_a_wrong_name_gets_this_task_proposed():
    with pytest.raises(ConfigError, match=r"steps"):
        load_problems(ProblemsConfig(task="step", limit=1))
