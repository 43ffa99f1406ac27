r"""How an answer is put together: a set, a tuple or interval, a bare list, or one expression.

Dimension key: none.
"""

import dataclasses
import enum
import re

_OPEN, _CLOSE = "([{", ")]}"
_THOUSANDS = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?")
_NAME = re.compile(r"(?:[A-Za-z](?:_\{?\w+\}?)?|[a-z]\([a-z]\))\s*=(?!=)\s*([^=]+)")
_MEMBER = re.compile(r"[a-zA-Z]\s*\\in(?![a-zA-Z])\s*(.+)")


class Kind(enum.Enum):
    """The outermost shape."""

    ONE = "one"
    LIST = "list"
    SET = "set"
    TUPLE = "tuple"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """An answer taken apart once."""

    kind: Kind
    parts: tuple[str, ...]
    brackets: str = ""
    """The brackets of a tuple or interval, as in '[)'."""


def split_top(text: str, separators: str = ",;") -> list[str]:
    r"""Splits where no bracket is open; a thousands separator stays.

    >>> split_top(r"1,234, (2,3), \frac{1}{2}")
    ['1,234', '(2,3)', '\\frac{1}{2}']
    """
    kept = {
        match.start() + offset
        for match in re.finditer(r"(?<![0-9,.])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])", text)
        for offset, character in enumerate(match.group())
        if character == ","
    }
    parts, depth, first = [], 0, 0
    for index, character in enumerate(text):
        depth += (character in _OPEN) - (character in _CLOSE)
        if depth == 0 and character in separators and index not in kept:
            parts.append(text[first:index].strip())
            first = index + 1
    parts.append(text[first:].strip())
    return [part for part in parts if part]


def shape_of(text: str, *, split_thousands: bool = False) -> Shape:
    r"""Takes a normalised answer apart.

    Args:
      text: the answer.
      split_thousands: reads "100,200" as a list, which is asked for where the other one is a list.

    >>> shape_of(r"[2, 5)").brackets, shape_of("3,4").kind
    ('[)', <Kind.LIST: 'list'>)
    """
    text = text.strip()
    member = _MEMBER.fullmatch(text)
    text = member.group(1).strip() if member else text
    if text.startswith(r"\{") and text.endswith(r"\}"):
        return Shape(kind=Kind.SET, parts=tuple(_plus_minus(split_top(text[2:-2]))))
    if text[:1] in "([" and text[-1:] in ")]" and _closes_last(text):
        parts = split_top(text[1:-1])
        if len(parts) > 1:
            return Shape(kind=Kind.TUPLE, parts=tuple(parts), brackets=text[0] + text[-1])
        if text[0] + text[-1] == "()" and len(parts) == 1:
            return shape_of(parts[0])
    if split_thousands and _THOUSANDS.fullmatch(text):
        return Shape(kind=Kind.LIST, parts=tuple(text.split(",")))
    listed = re.sub(r"(?<=[^a-zA-Z\\])\s(?:and|or)\s(?=[^a-zA-Z]|[a-z]\s*=)", ",", text)
    parts = split_top(listed) if r"\begin" not in text else [text]
    spread = _plus_minus(parts)
    if len(spread) != len(parts):
        return Shape(kind=Kind.SET, parts=tuple(spread))
    if len(parts) > 1:
        return Shape(kind=Kind.LIST, parts=tuple(parts))
    return Shape(kind=Kind.ONE, parts=(text,))


def _closes_last(text: str) -> bool:
    """Whether the first bracket is closed by the last character; '[' may close with ')'."""
    depth = 0
    for index, character in enumerate(text):
        depth += (character in _OPEN) - (character in _CLOSE)
        if depth == 0:
            return index == len(text) - 1
    return False


def _plus_minus(parts: list[str]) -> list[str]:
    r"""An element with one \pm is two."""
    spread = []
    for part in parts:
        if part.count(r"\pm") == 1:
            first = part.replace(r"\pm", "+").strip()
            name = _NAME.fullmatch(first)
            value = name.group(1) if name else first
            prefix = first[: len(first) - len(value)] if name else ""
            spread.append(prefix + value.lstrip().removeprefix("+").strip())
            spread.append(part.replace(r"\pm", "-").strip())
        else:
            spread.append(part)
    return spread


def without_name(text: str) -> str:
    r"""The right side of "x = 5" or "f(x) = 5"; anything else as it is.

    >>> without_name("x = 5"), without_name("x + y = 5")
    ('5', 'x + y = 5')
    """
    found = _NAME.fullmatch(text.strip())
    return found.group(1).strip() if found else text
