r"""Hostile answers, refused before anything is evaluated.

Dimension key: none.
"""

import re

MAX_LENGTH = 1000
_MAX_DEPTH = 20
_MAX_COMMAS = 60
_MAX_DIGITS = 300
_MACROS = re.compile(
    r"\\(?:def|edef|gdef|let|newcommand|renewcommand|input|include|write|read|openin|openout|loop"
    r"|catcode|csname|expandafter|immediate|special|usepackage|begin\{document\})(?![a-zA-Z])"
)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|[\ud800-\udfff]")
_LONG_DIGITS = re.compile(rf"[0-9]{{{_MAX_DIGITS + 1},}}")
_BIG_EXPONENT = re.compile(r"(?:\^|\*\*)\s*[{(]*\s*[-+]?\s*[0-9]{5,}")
_TOWER = re.compile(r"(?:\^|\*\*)\s*[{(]*\s*[-+]?\s*[0-9.]+[})\s]*(?:\^|\*\*)")
_FACTORIAL = re.compile(r"(?<!\\)!(?!=)")
_BIG_FACTORIAL = re.compile(r"(?:[0-9]{4,}|[^0-9a-z\s])\s*[})\]]*\s*!(?!=)|!\s*[})\]]*\s*!|!\s*\^")
_BIG_NUMBER_FUNCTION = re.compile(
    r"\\(?:binom|dbinom|tbinom|int|iint|oint|lim|prod|sum)(?![a-zA-Z])(?=.*[0-9]{5,})"
)


def refusal(answer: str) -> str | None:
    r"""Says why an answer is not evaluated; None for one that may be.

    >>> refusal("9^{9^9}")
    'a tower of powers'
    >>> refusal(r"\frac{1}{2}") is None
    True
    """
    if len(answer) > MAX_LENGTH:
        return f"longer than {MAX_LENGTH} characters"
    checks = (
        (_CONTROL, "control characters"),
        (_MACROS, "a LaTeX macro"),
        (_LONG_DIGITS, f"more than {_MAX_DIGITS} digits in a row"),
        (_BIG_EXPONENT, "an exponent of five or more digits"),
        (_TOWER, "a tower of powers"),
        (_BIG_FACTORIAL, "a factorial of a large number"),
        (_BIG_NUMBER_FUNCTION, "a sum, product or integral up to a large number"),
    )
    answer = answer.replace("\\!", " ")  # a thin negative space is no factorial
    for pattern, reason in checks:
        if pattern.search(answer):
            return reason
    if _depth(answer) > _MAX_DEPTH:
        return f"nested deeper than {_MAX_DEPTH}"
    if answer.count(",") > _MAX_COMMAS:
        return f"more than {_MAX_COMMAS} commas"
    if len(_FACTORIAL.findall(answer)) > 4 or _power_height(answer) > 2:
        return "towers of powers or factorials"
    return None


def _depth(text: str) -> int:
    """The deepest nesting of any brackets."""
    depth = deepest = 0
    for character in text:
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth = max(depth - 1, 0)
    return deepest


def _power_height(text: str) -> int:
    """How many exponents stand inside one another."""
    height = highest = 0
    opened: list[bool] = []
    for before, character in zip(" " + text, text, strict=False):
        if character in "{(":
            opened.append(before == "^")
            height += opened[-1]
            highest = max(highest, height)
        elif character in "})" and opened:
            height -= opened.pop()
    return highest
