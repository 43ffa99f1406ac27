r"""Units at the edge of an answer: "18 hours", "\$6", "440\text{ cm}^2", "10\%", "9^{\circ}".

A unit may be missing, since a problem often names it; two different known units are different
answers. Percent is a value: 50% is 1/2 (`as_values`).

Dimension key: none.
"""

import dataclasses
import re
from fractions import Fraction

from reasoning_jax.answers.rational import parse_rational

_NAMES = {
    "mm": "mm millimeter millimetre millimeters millimetres",
    "cm": "cm centimeter centimetre centimeters centimetres",
    "m": "m meter metre meters metres",
    "km": "km kilometer kilometre kilometers kilometres",
    "inch": "in inch inches",
    "foot": "ft foot feet",
    "yard": "yd yard yards",
    "mile": "mi mile miles",
    "second": "s sec second seconds secs",
    "minute": "min minute minutes mins",
    "hour": "h hr hour hours hrs",
    "day": "day days",
    "week": "week weeks",
    "month": "month months",
    "year": "year years",
    "g": "g gm gram grams",
    "kg": "kg kilogram kilograms",
    "pound": "lb lbs pound pounds",
    "ounce": "oz ounce ounces",
    "liter": "l L liter litre liters litres",
    "ml": "ml mL milliliter milliliters",
    "dollar": "dollar dollars usd USD",
    "cent": "cent cents",
    "euro": "euro euros",
    "degree": "degree degrees",
    "radian": "radian radians",
    "mph": "mph",
}
_KNOWN = {name: unit for unit, names in _NAMES.items() for name in names.split()}
_CURRENCY = {"\\$": "dollar", "$": "dollar", "\u20ac": "euro", "\u00a3": "sterling"}
_FACTORS = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_NO_UNITS = frozenset(
    {"pi", "sin", "cos", "tan", "log", "ln", "sqrt", "and", "or", "mod", "infinity"}
)
_TEXT_UNIT = re.compile(r"(.*[0-9a-zA-Z})])\s*\\text\{([^{}]*)\}\s*(?:\^\{([0-9])\})?$", re.DOTALL)
_WORD_UNIT = re.compile(
    r"(.*[0-9})]|.*\\pi)\s+([A-Za-z]{2,}(?: [A-Za-z]+){0,3}|[mgslhL])(?:\^\{([0-9])\})?"
)
_GLUED = re.compile(r"([-+0-9.,]*[0-9])(mm|cm|km|kg|mph|ft|ml|mL|lbs?|hrs?)(?:\^\{([0-9])\})?")
_DEGREE = re.compile(r"([^a-zA-Z]*)\^\{\\circ\}$")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantity:
    """An answer without its unit."""

    number: str
    unit: str = ""
    """Known unit with its power ("cm2"), "%" or empty; a word that counts something is dropped."""


def split_unit(text: str) -> Quantity:
    r"""Takes the unit off a normalised answer.

    >>> split_unit(r"440\text{ cm}^{2}")
    Quantity(number='440', unit='cm2')
    >>> split_unit("1920 ways").unit
    ''
    """
    unit = ""
    text = text.strip()
    sign = ""
    if text[:1] == "-" and text[1:].lstrip().startswith(tuple(_CURRENCY)):
        sign, text = "-", text[1:].lstrip()
    for symbol, name in _CURRENCY.items():
        if text.startswith(symbol) and "$" not in text[len(symbol) :]:
            text, unit = text[len(symbol) :].lstrip(), name
            break
    text = sign + text
    if text.endswith("%"):
        return Quantity(number=text[:-1].strip().rstrip("\\"), unit="%")
    if re.fullmatch(r".*[0-9})]\s*(?:percent|\\text\{\s*percent\s*\})", text):
        return Quantity(number=re.sub(r"\s*(?:percent|\\text\{.*)$", "", text), unit="%")
    if found := _DEGREE.fullmatch(text):
        return Quantity(number=found.group(1).strip(), unit="degree")
    found = _TEXT_UNIT.fullmatch(text) or _WORD_UNIT.fullmatch(text) or _GLUED.fullmatch(text)
    if found:
        number, name, power = found.groups()
        names = re.findall(r"[A-Za-z]+", name)
        if names and names[0].lower() in _FACTORS and parse_rational(number) is not None:
            value = parse_rational(number) or Fraction(0)
            scaled = str(value * _FACTORS[names[0].lower()])
            rest = names[1] if len(names) > 1 else ""
            return Quantity(number=scaled, unit=unit or _KNOWN.get(rest, ""))
        if not names or names[0] not in _NO_UNITS:
            return Quantity(number=number.strip(), unit=unit or _unit_of(names, name, power))
    return Quantity(number=text, unit=unit)


def _unit_of(names: list[str], text: str, power: str | None) -> str:
    """The known unit among a few words, with "square" and "cubic" as powers."""
    powers = {"square": "2", "sq": "2", "squared": "2", "cubic": "3", "cubed": "3"}
    found = [powers[name.lower()] for name in names if name.lower() in powers]
    rest = [name for name in names if name.lower() not in powers]
    inside = re.search(r"\^\{?([0-9])", text)
    power = power or (found[0] if found else str(inside.group(1)) if inside else "")
    if len(rest) == 1 and rest[0] in _KNOWN:
        return _KNOWN[rest[0]] + power
    return ""


def units_agree(first: Quantity, second: Quantity) -> bool:
    """Whether two units can be the same: equal, or at most one is known. Percent is a value."""
    known = {first.unit, second.unit} - {"", "%"}
    return len(known) <= 1 and not (known and "%" in (first.unit, second.unit))


def as_values(quantity: Quantity) -> frozenset[Fraction] | None:
    """The values that a number can stand for; None where it is no rational number.

    Percent is a hundredth. The sign may also be the name of the unit, as in a problem that asks
    for a percentage, but only for a number above 1: 50% is 1/2 or 50, 0.5% is never 0.5.
    """
    value = parse_rational(quantity.number)
    if value is None:
        return None
    if quantity.unit != "%":
        return frozenset([value])
    return frozenset([value / 100] if abs(value) <= 1 else [value / 100, value])


def same_value(gold: Quantity, answer: Quantity) -> bool | None:
    """Whether two numbers are equal, exactly; None where one is no rational number."""
    if gold.unit == answer.unit:
        first, second = parse_rational(gold.number), parse_rational(answer.number)
        return None if first is None or second is None else first == second
    of_gold, of_answer = as_values(gold), as_values(answer)
    return None if of_gold is None or of_answer is None else bool(of_gold & of_answer)
