r"""Exact rational numbers as people write them; never a float, and no evaluation of unknown size.

Dimension key: none.
"""

import re
from fractions import Fraction

_MAX_DIGITS = 300
_MAX_EXPONENT = 300
_PLAIN = r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]*)?|\.[0-9]+"
_NUMBER = re.compile(rf"({_PLAIN})(?:[eE]([-+]?[0-9]{{1,4}}))?")
_SCIENTIFIC = re.compile(
    rf"(?:({_PLAIN})(?:\\times|\*|x))?10(?:\^|\*\*)[{{(]?([-+]?[0-9]{{1,4}})[}})]?"
)
_FRACTION = re.compile(rf"\\frac\{{([-+]?(?:{_PLAIN}))\}}\{{([-+]?(?:{_PLAIN}))\}}")
_SLASH = re.compile(rf"({_PLAIN})/({_PLAIN})")
_MIXED = re.compile(r"([0-9]+)\\frac\{([0-9]+)\}\{([0-9]+)\}")
_MIXED_SLASH = re.compile(r"([0-9]+)[ ]+([0-9]+)/([0-9]+)")
_REPEATING = re.compile(r"([0-9]*)\.([0-9]*)\\overline\{([0-9]+)\}")


def parse_rational(text: str) -> Fraction | None:
    r"""Reads an integer, decimal, fraction, mixed number or number in scientific notation.

    Args:
      text: a normalised answer without unit.

    Returns:
      The exact value; None where it is anything else, or has more than 300 digits.

    >>> parse_rational(r"6\frac{1}{5}"), parse_rational("-1,234.50"), parse_rational("x")
    (Fraction(31, 5), Fraction(-2469, 2), None)
    """
    if len(text) > _MAX_DIGITS:
        return None
    spaced = text.strip()
    sign = 1
    while True:
        if spaced[:1] in ("-", "+"):
            sign = -sign if spaced[0] == "-" else sign
            spaced = spaced[1:].strip()
            if spaced[:1] in ("-", "+"):
                return None
        elif spaced[:1] in "({" and spaced[-1:] in ")}" and _is_enclosed(spaced):
            spaced = spaced[1:-1].strip()
        else:
            break
    value = _unsigned(spaced)
    return None if value is None else sign * value


def _is_enclosed(text: str) -> bool:
    """Whether the first bracket closes at the end."""
    depth = 0
    for index, character in enumerate(text):
        depth += (character in "({") - (character in ")}")
        if depth == 0:
            return index == len(text) - 1 and index > 1
    return False


def _unsigned(spaced: str) -> Fraction | None:
    """A number without sign."""
    mixed = _MIXED_SLASH.fullmatch(spaced)
    text = re.sub(r"\s+", "", spaced)
    mixed = mixed or _MIXED.fullmatch(text)
    if mixed:
        whole, top, bottom = (int(group) for group in mixed.groups())
        return whole + Fraction(top, bottom) if 0 < top < bottom else None
    if re.search(r"[0-9]\s+[0-9]", spaced):
        return None
    if found := _NUMBER.fullmatch(text):
        return _scaled(_plain(found.group(1)), found.group(2))
    if found := _SCIENTIFIC.fullmatch(text):
        return _scaled(_plain(found.group(1) or "1"), found.group(2))
    if found := _FRACTION.fullmatch(text) or _SLASH.fullmatch(text):
        top, bottom = (_plain(group) for group in found.groups())
        return top / bottom if bottom else None
    if found := _REPEATING.fullmatch(text):
        whole, fixed, cycle = found.groups()
        nines = Fraction(int(cycle), 10 ** len(fixed) * (10 ** len(cycle) - 1))
        return _plain(f"{whole or 0}.{fixed or 0}") + nines
    return None


def _plain(text: str) -> Fraction:
    """A decimal with or without thousands separators and sign."""
    return Fraction(text.replace(",", "").rstrip(".") or "0")


def _scaled(value: Fraction, exponent: str | None) -> Fraction | None:
    """Times a power of ten of reasonable size."""
    power = int(exponent or 0)
    return value * Fraction(10) ** power if abs(power) <= _MAX_EXPONENT else None
