r"""Strict equivalence of two answers: strings, exact numbers, structure, then symbols.

Everything that can be decided exactly is decided here; what is left, one expression against one,
is asked of `symbolic`, which runs `math-verify` in a worker process.

Dimension key: none.
"""

import dataclasses
import re
from collections.abc import Callable

from reasoning_jax.answers.normalise import compact, normalise, words
from reasoning_jax.answers.structure import Kind, Shape, shape_of, without_name
from reasoning_jax.answers.units import same_value, split_unit, units_agree
from reasoning_jax.answers.verdict import ListOrder

Symbolic = Callable[[str, str], tuple[bool, str]]
"""Compares two single expressions, gold first: the verdict and what decided."""

_BASE = re.compile(r"([0-9A-Fa-f.]+)_\{\(?([0-9]+)\)?\}")
_RATIO = re.compile(r"[0-9.]+(?::[0-9.]+)+(?:\s*(?:am|pm|a\.m\.|p\.m\.))?", re.IGNORECASE)
_MAX_SET = 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
    """What the strict comparison is told."""

    symbolic: Symbolic | None
    """None: only what needs no symbolic algebra is decided, the rest is left undecided."""
    order: ListOrder = ListOrder.ORDERED


Decision = tuple[bool, str] | None
"""Verdict and method; None where only symbolic algebra could tell."""


def compare(gold: str, answer: str, rules: Rules) -> Decision:
    r"""Compares two answers.

    Args:
      gold: the known answer.
      answer: the answer to judge; the order matters, as for `math-verify`.
      rules: with or without symbolic algebra.

    Returns:
      Whether they are equivalent and what decided; None where `rules` has no symbolic algebra
      and nothing else decides.

    >>> compare("0.5", r"\frac12", Rules(symbolic=None))
    (True, 'rational')
    """
    if gold.strip() == answer.strip() and gold.strip():
        return True, "string"
    return _compare_normal(normalise(gold), normalise(answer), rules)


def _compare_normal(gold: str, answer: str, rules: Rules) -> Decision:
    """Compares normalised answers: first whole, then by structure."""
    if not gold or not answer:
        return False, "none"
    if compact(gold) == compact(answer):
        return True, "string"
    of_gold, of_answer = words(gold), words(answer)
    if of_gold is not None and (of_answer is not None or gold.startswith(r"\text")):
        return of_gold == of_answer, "text"
    first, second = shape_of(gold), shape_of(answer)
    if first.kind is Kind.ONE and second.kind in (Kind.LIST, Kind.SET) and len(second.parts) > 1:
        first = shape_of(gold, split_thousands=True)
    if second.kind is Kind.ONE and first.kind in (Kind.LIST, Kind.SET) and len(first.parts) > 1:
        second = shape_of(answer, split_thousands=True)
    if first.kind is Kind.ONE and second.kind is Kind.ONE:
        return _compare_one("".join(first.parts), "".join(second.parts), rules)
    return _compare_parts(first, second, rules)


def _compare_parts(gold: Shape, answer: Shape, rules: Rules) -> Decision:
    """Compares sets, tuples, intervals and lists, part by part."""
    kinds = {gold.kind, answer.kind}
    if len(gold.parts) != len(answer.parts):
        symbols = [r"\cup", r"\cap", r"\mathbb", r"\leq", r"\geq", r"<", r">", r"\setminus", r"\in"]
        whole = " ".join((*gold.parts, *answer.parts))
        if Kind.ONE in kinds and any(symbol in whole for symbol in symbols):
            return _ask(_joined(gold), _joined(answer), rules)
        return False, "structure"
    if Kind.TUPLE in kinds and (len(kinds) > 1 or gold.brackets != answer.brackets):
        return False, "structure"
    in_any_order = Kind.SET in kinds or (kinds == {Kind.LIST} and rules.order is ListOrder.ANY)
    if in_any_order and len(gold.parts) > 1:
        return _compare_sets(gold.parts, answer.parts, rules)
    found = [
        _compare_normal(one, other, rules)
        for one, other in zip(gold.parts, answer.parts, strict=True)
    ]
    return _all(found)


def _joined(shape: Shape) -> str:
    r"""The answer that a shape was taken from."""
    inside = ", ".join(shape.parts)
    if shape.kind is Kind.SET:
        return r"\{" + inside + r"\}"
    return shape.brackets[:1] + inside + shape.brackets[1:]


def _all(found: list[Decision]) -> Decision:
    """Equal if every part is; one that differs decides, whatever the undecided would say."""
    for decision in found:
        if decision is not None and not decision[0]:
            return decision
    if None in found:
        return None
    methods = [decision[1] for decision in found if decision is not None]
    return True, "math_verify" if "math_verify" in methods else "structure"


def _compare_sets(gold: tuple[str, ...], answer: tuple[str, ...], rules: Rules) -> Decision:
    """Finds a partner for each element; equivalence is transitive, so the first that fits will do.

    Without symbolic algebra a set is decided only if the cheap comparisons alone pair it up.
    """
    if len(gold) > _MAX_SET:
        same = sorted(map(compact, gold)) == sorted(map(compact, answer))
        return same, "structure"
    left = list(answer)
    undecided = False
    for element in gold:
        decisions = [_compare_normal(element, other, rules) for other in left]
        equal = [index for index, found in enumerate(decisions) if found and found[0]]
        if equal:
            del left[equal[0]]
        elif None in decisions:
            undecided = True
        else:
            return False, "structure"
    return None if undecided else (True, "structure")


def _compare_one(gold: str, answer: str, rules: Rules) -> Decision:
    """Compares one expression with one."""
    named = "=" in gold, "=" in answer
    if named[0] != named[1]:
        stripped = without_name(gold), without_name(answer)
        if stripped != (gold, answer):
            return _compare_normal(*stripped, rules)
    elif all(named) and without_name(gold) != gold and without_name(answer) != answer:
        if gold.split("=")[0].strip() != answer.split("=")[0].strip():
            return _ask(gold, answer, rules) if _is_equation(gold, answer) else (False, "structure")
        return _compare_normal(without_name(gold), without_name(answer), rules)
    of_gold, of_answer = _BASE.fullmatch(gold), _BASE.fullmatch(answer)
    if of_gold is not None or of_answer is not None:
        return bool(of_gold and of_answer and _same_base(of_gold, of_answer)), "base"
    if _RATIO.fullmatch(gold) or _RATIO.fullmatch(answer):
        return False, "text"
    first, second = split_unit(gold), split_unit(answer)
    if not units_agree(first, second):
        return False, "unit"
    equal = same_value(first, second)
    if equal is not None:
        return equal, "rational"
    if "%" in (first.unit, second.unit):
        if first.unit != second.unit:
            return False, "unit"
    elif (first.number, second.number) != (gold, answer) and compact(first.number) == compact(
        second.number
    ):
        return True, "string"
    return _ask(first.number, second.number, rules)


def _is_equation(gold: str, answer: str) -> bool:
    """Whether both sides of both have a letter: "y = 2x" and "x = y/2", but not "x = 5"."""
    sides = gold.split("=") + answer.split("=")
    return all(re.search(r"(?<![\\a-zA-Z])[a-zA-Z](?![a-zA-Z])", side) for side in sides)


def _same_base(gold: re.Match[str], answer: re.Match[str]) -> bool:
    """Whether two numerals with a base are the same numeral."""
    digits = [match.group(1).upper().lstrip("0") for match in (gold, answer)]
    return digits[0] == digits[1] and gold.group(2) == answer.group(2)


def _ask(gold: str, answer: str, rules: Rules) -> Decision:
    """Asks for symbolic algebra, if there is any."""
    return None if rules.symbolic is None else rules.symbolic(gold, answer)
