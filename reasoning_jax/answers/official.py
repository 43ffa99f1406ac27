r"""The cDPO paper's own leniency: its extraction and its equality, to reproduce its numbers.

Section 1.6 of our notes on the paper tells the rules; the code here is ours. Two numbers are equal
within 1e-4, relatively, and so are a number and its hundredth or hundredfold: 50 equals 0.5.
Use the strict grader for anything but a comparison with the paper.

Dimension key: none.
"""

import re
from collections.abc import Callable
from fractions import Fraction

from reasoning_jax.answers.extraction import Extracted, last_boxed
from reasoning_jax.answers.normalise import compact, normalise
from reasoning_jax.answers.rational import parse_rational
from reasoning_jax.answers.structure import Kind, shape_of, split_top
from reasoning_jax.answers.units import split_unit
from reasoning_jax.answers.verdict import OfficialTask

_TOLERANCE = Fraction(1, 10_000)
_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?|-?\.[0-9]+")
_PHRASE = "he answer is"
_MAX_RESPONSE = 200_000

EqualSides = Callable[[str, str], bool]
"""Symbolic equality, gold first."""


def extract_official(response: str, task: OfficialTask) -> Extracted | None:
    """Finds the final answer by the paper's rules.

    Args:
      response: a solution.
      task: whose rules; GSM8K reads the first number after "he answer is", MATH a boxed answer.

    Returns:
      The answer; None where there is none.

    >>> extract_official("The answer is $1,200 a year.", OfficialTask.GSM8K).answer
    '1200'
    """
    text = response[-_MAX_RESPONSE:]
    if task is OfficialTask.MATH:
        found = _extract_math(text)
        if found is not None:
            return found
    phrase, method = text, "last_number"
    if task is OfficialTask.GSM8K and _PHRASE in text:
        phrase, method = text.split(_PHRASE, maxsplit=1)[1], "answer_is"
    numbers = _NUMBER.findall(re.sub("[,$\u20ac\u00a3]", "", phrase))
    if method == "answer_is" and numbers:
        return Extracted(answer=numbers[0], method=method)
    numbers = numbers or _NUMBER.findall(re.sub("[,$\u20ac\u00a3]", "", text))
    return Extracted(answer=numbers[-1], method="last_number") if numbers else None


def _extract_math(text: str) -> Extracted | None:
    """The paper's rules for MATH, without the last resort."""
    if "Final Answer:" in text:
        final = text.split("Final Answer:")[-1].split("I hope it is correct")[0]
        found = re.search(r"\$(.+?)\$", final, re.DOTALL)
        if found and found.group(1).strip():
            return Extracted(answer=found.group(1).strip(), method="final_answer")
    boxed = last_boxed(text)
    if boxed is not None:
        return Extracted(answer=boxed, method="boxed")
    if _PHRASE in text:
        phrase = text.split(_PHRASE)[-1].split("\n")[0].strip().strip("$").rstrip(".").strip("$ ")
        if phrase:
            return Extracted(answer=phrase, method="answer_is")
    return None


def strip_official(answer: str) -> str:
    r"""An answer without spaces, unit, percent and degree sign, and name: "x = 5\%" is "5".

    >>> strip_official(r"x = 50\%")
    '50'
    """
    text = normalise(answer).replace("^{\\circ}", "")
    quantity = split_unit(text)
    text = quantity.number
    sides = text.split("=")
    if len(sides) == 2 and len(sides[0].strip()) <= 2:
        text = sides[1]
    return compact(text).replace("`", "").replace("%", "")


def near(gold: Fraction, answer: Fraction) -> bool:
    """Equal within 1e-4 to the number, its hundredth or its hundredfold.

    >>> near(Fraction(50), Fraction(1, 2)), near(Fraction(5), Fraction(51, 10))
    (True, False)
    """
    return any(
        abs(answer - target) <= _TOLERANCE * max(abs(answer), abs(target))
        for target in (gold, gold / 100, gold * 100)
    )


def math_equal(gold: str, answer: str, equal_sides: EqualSides | None) -> tuple[bool, str] | None:
    """Compares two answers by the paper's rules.

    Args:
      gold: the known answer.
      answer: the answer to judge.
      equal_sides: symbolic equality; None leaves undecided what needs it.

    Returns:
      Whether they are equal and what decided; None for undecided.

    >>> math_equal("50", "0.5", None)
    (True, 'rational')
    """
    first, second = strip_official(gold), strip_official(answer)
    if first.lower() == second.lower() and first:
        return True, "string"
    if not first or not second:
        return False, "none"
    numbers = parse_rational(first), parse_rational(second)
    if numbers[0] is not None and numbers[1] is not None:
        return near(numbers[0], numbers[1]), "rational"
    shapes = shape_of(first), shape_of(second)
    if Kind.TUPLE in (shapes[0].kind, shapes[1].kind) and r"\cup" not in first + second:
        parts = [split_top(text.strip("()[]")) for text in (first, second)]
        if len(parts[0]) != len(parts[1]):
            return False, "structure"
        return _all_equal(parts[0], parts[1], equal_sides)
    if re.search(r"[0-9]_", first + second):
        return False, "string"
    if equal_sides is None:
        return None
    if first.count("=") == 1 and second.count("=") == 1:
        first, second = (
            f"{left}-({right})" for left, right in (first.split("="), second.split("="))
        )
        negated = f"-({first})"
        return equal_sides(first, second) or equal_sides(negated, second), "math_verify"
    return equal_sides(first, second), "math_verify"


def _all_equal(
    gold: list[str], answer: list[str], equal_sides: EqualSides | None
) -> tuple[bool, str] | None:
    """Compares tuples part by part; brackets do not count."""
    found = [math_equal(one, other, equal_sides) for one, other in zip(gold, answer, strict=True)]
    if any(decision is not None and not decision[0] for decision in found):
        return False, "structure"
    return None if None in found else (True, "structure")
