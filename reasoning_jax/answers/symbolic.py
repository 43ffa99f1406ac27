r"""Symbolic equality of two expressions by `math-verify`, checked again where it is known to err.

`math-verify` rounds decimals to six places and compares small numbers absolutely, so that
1/2004! equals 1/2006!. Here its True stands only if the two values also agree to 30 digits,
relatively, with every decimal read as the exact fraction that it writes. Only worker processes
call this (`worker.py`): it can take any time.

Dimension key: none.
"""

import re
from typing import Any

import sympy
from math_verify import parse, verify
from math_verify.parser import LatexExtractionConfig

_DIGITS = 30
_POINTS = (sympy.Rational(7, 11), sympy.Rational(13, 5), sympy.Rational(-19, 17))


def parsed(text: str) -> Any | None:
    """Returns the first expression that `math-verify` reads in an answer; None where it reads none.

    Args:
      text: an answer in LaTeX, without dollar signs.
    """
    plain = re.sub(r"(?<![a-zA-Z\\])(sqrt|pi|sin|cos|tan|log|ln|infty)(?![a-z])", r"\\\1", text)
    plain = re.sub(r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", plain).replace("**", "^")
    found = parse(
        f"${plain}$",
        extraction_config=[LatexExtractionConfig()],
        fallback_mode="no_fallback",
        extraction_mode="any_match",
        parsing_timeout=None,  # pyright: ignore[reportArgumentType]
    )
    return found[0] if found and not isinstance(found[0], str) else None


def symbolic(gold: str, answer: str) -> tuple[bool, str]:
    """Compares two expressions.

    Args:
      gold: the known answer, first: `verify` is not symmetric.
      answer: the answer to judge.

    Returns:
      Whether they are equal, and `math_verify`, `numeric` (its True was not confirmed) or
      `unparsed` (one could not be read).
    """
    first, second = parsed(gold), parsed(answer)
    if first is None or second is None:
        return False, "unparsed"
    if not verify(first, second, timeout_seconds=None):
        return False, "math_verify"
    confirmed = is_confirmed(first, second)
    return confirmed, "math_verify" if confirmed else "numeric"


def is_confirmed(first: Any, second: Any) -> bool:
    """Whether two expressions that were found equal also agree to 30 digits, relatively.

    Relations, sets and matrices have no such value and are taken as they are.
    """
    if isinstance(first, sympy.MatrixBase) and isinstance(second, sympy.MatrixBase):
        pairs = zip(first.flat(), second.flat(), strict=True)
        return first.shape == second.shape and all(is_confirmed(*pair) for pair in pairs)
    if isinstance(first, sympy.Tuple) and isinstance(second, sympy.Tuple):
        return all(is_confirmed(*pair) for pair in zip(first, second, strict=True))
    if not (isinstance(first, sympy.Expr) and isinstance(second, sympy.Expr)):
        return True
    first, second = _exact(first), _exact(second)
    symbols = sorted(first.free_symbols | second.free_symbols, key=str)
    if not symbols:
        return _near(first, second)
    for shift in range(len(_POINTS)):
        values = {
            symbol: _POINTS[(index + shift) % len(_POINTS)] + index
            for index, symbol in enumerate(symbols)
        }
        if not _near(first.subs(values), second.subs(values)):
            return False
    return True


def _exact(expression: sympy.Expr) -> sympy.Expr:
    """Every decimal as the fraction that it writes."""
    decimals = {number: sympy.Rational(str(number)) for number in expression.atoms(sympy.Float)}
    return expression.xreplace(decimals).doit() if decimals else expression.doit()


def _near(first: sympy.Expr, second: sympy.Expr) -> bool:
    """Relative agreement to 30 digits; what has no value (a pole) has to be the same."""
    if first == second:
        return True
    values = sympy.N(first, _DIGITS + 10), sympy.N(second, _DIGITS + 10)
    if not all(value.is_number and value.is_finite for value in values):
        return bool(sympy.simplify(first - second) == 0)
    size = max(abs(values[0]), abs(values[1]))
    difference = abs(values[0] - values[1])
    return bool(difference <= size * sympy.Float(10) ** -_DIGITS)


def equal_sides(gold: str, answer: str) -> bool:
    """The official grader's symbolic step: the difference simplifies to zero or is below 1e-3.

    Args:
      gold: the known answer.
      answer: the answer to judge.

    Returns:
      Whether they are equal by the paper's rule.
    """
    first, second = parsed(gold), parsed(answer)
    if first is None or second is None:
        return False
    if not (isinstance(first, sympy.Expr) and isinstance(second, sympy.Expr)):
        return bool(isinstance(first, sympy.MatrixBase) and is_confirmed(first, second))
    if sympy.simplify(first - second) == 0:
        return True
    values = sympy.N(first), sympy.N(second)
    if not all(value.is_number and value.is_finite for value in values):
        return False
    return bool(abs(values[0] - values[1]) <= 1e-3 * max(abs(values[0]), abs(values[1])))
