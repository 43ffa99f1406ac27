"""Both graders on the hand-made cases; extraction, normalisation, exact numbers, guards."""

import os
from fractions import Fraction

import pytest

from core_jax.errors import AlignaxError, ConfigError
from reasoning_jax.answers.extraction import extract, last_boxed
from reasoning_jax.answers.grader import Grader, GraderConfig
from reasoning_jax.answers.groups import canonical_key, group_all, group_answers
from reasoning_jax.answers.guards import refusal
from reasoning_jax.answers.official import extract_official
from reasoning_jax.answers.rational import parse_rational
from reasoning_jax.answers.verdict import GraderKind, ListOrder, OfficialTask
from tests.reasoning.equivalence_cases import CASES

OFFICIAL = GraderConfig(kind=GraderKind.OFFICIAL)
# A shared machine may stall for seconds; only the hostile answers are about time.
PATIENT = {"num_workers": 2, "time_limit_s": 20.0}


@pytest.fixture(scope="module")
def strict():
    with Grader(GraderConfig(**PATIENT)) as grader:
        yield grader


@pytest.fixture(scope="module")
def official():
    with Grader(GraderConfig(kind=GraderKind.OFFICIAL, **PATIENT)) as grader:
        yield grader


def test_there_are_enough_cases():
    assert len(CASES) >= 200
    assert len({case[:2] for case in CASES}) == len(CASES)
    assert sum(not case[2] for case in CASES) >= 80


def test_strict_cases(strict):
    verdicts = strict.equivalents([case[:2] for case in CASES])
    wrong = [
        (case, verdict)
        for case, verdict in zip(CASES, verdicts, strict=True)
        if verdict.is_correct != case[2]
    ]
    assert wrong == []


def test_official_cases(official):
    verdicts = official.equivalents([case[:2] for case in CASES])
    wrong = [
        (case, verdict)
        for case, verdict in zip(CASES, verdicts, strict=True)
        if verdict.is_correct != (case[2] if case[3] is None else case[3])
    ]
    assert wrong == []


def test_every_answer_equals_itself(strict):
    answers = sorted({answer for case in CASES for answer in case[:2]})
    assert all(verdict.is_correct for verdict in strict.equivalents([(a, a) for a in answers]))


@pytest.mark.parametrize(
    ("response", "answer", "method"),
    [
        (r"so \boxed{\frac{1}{2}}.", r"\frac{1}{2}", "boxed"),
        (r"\boxed{1} then \boxed{2}", "2", "boxed"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}", "boxed"),
        (r"\fbox{7}", "7", "boxed"),
        (r"\boxed 7", "7", "boxed"),
        (r"\boxed{3} or \boxed{4", "3", "boxed"),
        ("Hence the final answer is $x=3$. I hope", "x=3", "final_answer"),
        ("Final Answer: The final answer is $12$.", "12", "final_answer"),
        ("2+2=<<2+2=4>>4\n#### 4", "4", "hashes"),
        ("#### 1\n#### -1,200", "-1,200", "hashes"),
        ("The answer is 42.", "42", "answer_is"),
        ("The answer is $3.50.", "$3.50", "answer_is"),
        ("The answer is: Dana. She won.", "Dana", "answer_is"),
        ("Answer: 7 apples", "7 apples", "answer_is"),
        ("He has 3 and then 1,234.5 left", "1,234.5", "last_number"),
    ],
)
def test_extraction(response, answer, method):
    found = extract(response)
    assert found is not None
    assert (found.answer, found.method) == (answer, method)


def test_nothing_to_extract(strict):
    assert extract("I do not know") is None
    (verdict,) = strict.grade([("3", "I do not know")])
    assert (verdict.answer, verdict.is_correct, verdict.method) == (None, False, "none")
    assert last_boxed(r"\boxed{}") is None


@pytest.mark.parametrize(
    ("task", "response", "answer"),
    [
        (OfficialTask.GSM8K, "The answer is 3. The answer is 4.", "3"),
        (OfficialTask.GSM8K, "it costs $1,250", "1250"),
        (OfficialTask.GSM8K, "The answer is none of 5", "5"),
        (OfficialTask.MATH, "Final Answer: it is $x$. I hope it is correct. $7$", "x"),
        (OfficialTask.MATH, r"\boxed{8}", "8"),
        (OfficialTask.MATH, "The answer is 3. The answer is $4$.", "4"),
        (OfficialTask.MATH, "first 5 then 6", "6"),
    ],
)
def test_official_extraction(task, response, answer):
    found = extract_official(response, task)
    assert found is not None and found.answer == answer


def test_rationals_are_exact():
    """0.1 + 0.2 = 0.3 holds for what is written, and fails for floats."""
    values = [parse_rational(text) for text in ("0.1", "0.2", "0.3")]
    assert values[0] + values[1] == values[2]
    assert parse_rational("1e300") == Fraction(10) ** 300
    for text in ("1e301", "1" * 301, "1/0", r"\frac{1}{0}", "", "-", "1 2", "--1", "()", "x", "1/"):
        assert parse_rational(text) is None, text


def test_list_order_is_a_choice():
    with Grader(GraderConfig(list_order=ListOrder.ANY)) as grader:
        assert grader.equivalent("2, 3", "3, 2").is_correct
        assert not grader.equivalent("2, 3", "3, 3").is_correct
        assert not grader.equivalent("(2, 3)", "(3, 2)").is_correct


def test_grade_keeps_order_and_grades_a_pair_once(strict):
    pairs = [("x^2-1", r"\boxed{(x-1)(x+1)}"), ("2", "#### 3"), ("2", "#### 2")] * 3
    found = strict.grade(pairs)
    assert [verdict.is_correct for verdict in found] == [True, False, True] * 3
    assert found[0] == found[3] and found[0].method == "math_verify"
    assert found == strict.grade(pairs)


def test_groups(strict):
    answers = ["0.5", "x+1", None, r"\frac12", "1+x", "7", "0.50", "7.0", "x"]
    assert group_answers(answers, strict) == [[0, 3, 6], [1, 4], [5, 7], [8]]
    assert canonical_key("1,000") == canonical_key("1000") != canonical_key("1000%")


def test_groups_of_many_problems_are_those_of_each(strict):
    """In as many batches as the problem with the most different answers has: four."""
    problems = [["x+1", "2", "1+x", "2.0"], [], [None], ["3", "x", "5", "7"], ["2", "x+1"]]
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        equivalents = strict.equivalents
        patch.setattr(
            strict, "equivalents", lambda pairs: asked.append(pairs) or equivalents(pairs)
        )
        found = group_all(problems, strict)
    assert found == [group_answers(answers, strict) for answers in problems]
    assert found[0] == [[0, 2], [1, 3]]
    assert [len(pairs) for pairs in asked] == [0, 3, 2 + 2, 3]
    assert group_all([], strict) == []


def test_refusals_say_why():
    assert refusal("9^{9^9}") == "a tower of powers"
    assert refusal("x" * 1001) == "longer than 1000 characters"
    for answer in ("e^{x^2}", "5!", "10^{100}", r"32,\!348", r"x \neq 3", r"\frac{1}{2}"):
        assert refusal(answer) is None, answer


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_workers": 0}, "num_workers is 0; at least 1"),
        ({"time_limit_s": 0.1}, "time_limit_s is 0.1; expected more than"),
        ({"memory_mb": 64}, "memory_mb is 64; a worker needs at least 512"),
    ],
)
def test_bad_settings(setting, message):
    with pytest.raises(ConfigError, match=message):
        Grader(GraderConfig(**setting))


def test_closed_grader():
    with pytest.raises(AlignaxError, match="use it in a with statement"):
        Grader().equivalent("x^2-1", "(x-1)(x+1)")


def test_a_dead_worker_is_replaced(strict):
    """Killed from outside between two answers: nothing is lost."""
    strict.equivalent("x+2", "2+x+0")
    strict.equivalents([(f"x+{n}", f"{n}+x+0") for n in range(20, 40)])
    for worker in strict._pool._workers:
        if worker.is_ready:
            os.kill(worker.process.pid, 9)
            worker.process.wait()
    found = strict.equivalents([("x+3", "3+x+0"), ("x+4", "4+x+0"), ("x+5", "5+x+0")])
    assert all(verdict.is_correct for verdict in found)
    assert strict.equivalent("x+6", "6+x+0").is_correct
