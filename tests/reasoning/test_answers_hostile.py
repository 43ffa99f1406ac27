"""Hostile answers: a verdict within the limit, always, and a grader that goes on working."""

import time

import pytest

from reasoning_jax.answers.grader import Grader, GraderConfig
from reasoning_jax.answers.verdict import GraderKind
from tests.reasoning.hostile_answers import FIFTY, generated

LIMIT_S = 2.0
GOLD = r"\frac{\sqrt{3}}{7} + x"


def grade_one_by_one(grader, answers):
    """Grades each by itself; the time of a replacement's start is not the answer's.

    Before each answer a warm worker is made sure of, by a pair that only algebra decides.
    """
    slow = []
    for index, answer in enumerate(answers):
        replaced = grader.num_replaced
        start = time.monotonic()
        verdict = grader.equivalent(GOLD, answer)
        seconds = time.monotonic() - start
        assert not verdict.is_correct, answer[:100]
        if seconds > LIMIT_S:
            slow.append((answer[:100], seconds))
        if grader.num_replaced > replaced:
            assert grader.equivalent(f"x+{index + 2}", f"{index + 2}+x+0").is_correct
    return slow


@pytest.mark.parametrize("kind", list(GraderKind))
def test_fifty(kind):
    assert len(FIFTY) >= 50
    with Grader(GraderConfig(kind=kind, num_workers=1, time_limit_s=LIMIT_S)) as grader:
        assert grader.equivalent("x^2-1", "(x-1)(x+1)").is_correct
        answers = FIFTY if kind is GraderKind.STRICT else FIFTY[::4]
        assert grade_one_by_one(grader, answers) == []


def test_as_gold_and_in_a_response():
    """A hostile gold answer or response is no danger either."""
    with Grader(GraderConfig(num_workers=1)) as grader:
        start = time.monotonic()
        grader.grade([("3", rf"\boxed{{{answer}}}") for answer in FIFTY if len(answer) > 1_000])
        grader.grade([("3", answer) for answer in FIFTY if len(answer) > 1_000])
        assert not any(grader.equivalent(answer, "3").is_correct for answer in FIFTY[:10])
        assert time.monotonic() - start < 15


@pytest.mark.long
def test_a_thousand():
    with Grader(GraderConfig(num_workers=1, time_limit_s=LIMIT_S)) as grader:
        assert grader.equivalent("x^2-1", "(x-1)(x+1)").is_correct
        assert grade_one_by_one(grader, generated(7, 1_000)) == []
