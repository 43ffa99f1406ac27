r"""The final answer in a solution: \boxed{}, "final answer is", "####", "answer is", last number.

Dimension key: none.
"""

import dataclasses
import re

_MAX_RESPONSE = 200_000
_FINAL = re.compile(r"final answer(?: is)?\s*:?\s*(?:is\s*)?\$([^$\n]{1,2000})\$", re.IGNORECASE)
_HASHES = re.compile(r"####[ \t]*([^\n]{1,2000})")
_ANSWER_IS = re.compile(r"\banswer(?: is|:)[ \t]*:?[ \t]*([^\n]{1,2000})", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![0-9.])-?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?%?|-?\.[0-9]+")
_BOX = re.compile(r"\\(?:boxed|fbox)\s*(\{|[^\s{}\\$])")
_MATH = re.compile(r"^(\$\$?|\\\(|\\\[)(.+?)(\$\$?|\\\)|\\\])")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extracted:
    """An answer and how it was found."""

    answer: str
    method: str


def closing_brace(text: str, start: int) -> int:
    r"""Returns the index of the brace that closes the one at `start`, -1 where none does.

    >>> closing_brace("{a{b}c}d", 0)
    6
    """
    depth = 0
    for index in range(start, len(text)):
        if text[index] == "{":
            depth += not _is_escaped(text, index)
        elif text[index] == "}" and not _is_escaped(text, index):
            depth -= 1
            if depth == 0:
                return index
    return -1


def _is_escaped(text: str, index: int) -> bool:
    r"""Whether an odd number of backslashes stands before it: `\\{` is a line break and a brace."""
    first = index
    while first and text[first - 1] == "\\":
        first -= 1
    return (index - first) % 2 == 1


def last_boxed(text: str) -> str | None:
    r"""Returns what the last \boxed{} or \fbox{} with matching braces holds.

    >>> last_boxed(r"\boxed{1} so \boxed{\frac{1}{2}}")
    '\\frac{1}{2}'
    """
    for match in list(_BOX.finditer(text))[:-6:-1]:
        if match.group(1) != "{":
            return match.group(1)
        end = closing_brace(text, match.start(1))
        if end >= 0 and text[match.end() : end].strip():
            return text[match.end() : end].strip()
    return None


def clean_phrase(text: str) -> str:
    """Returns the answer at the beginning of what follows "answer is".

    >>> clean_phrase("$3$ dollars. It was easy.")
    '3'
    >>> clean_phrase("Dana.")
    'Dana'
    """
    text = text.strip().strip("*").strip()
    math = _MATH.match(text)
    if math:
        return math.group(2).strip()
    text = re.split(r"(?<=[^\s.])\.(?:\s|$)|[;!?]\s|\s+because\b|\s+since\b", text, maxsplit=1)[0]
    return text.strip().strip("*").rstrip(".").strip()


def extract(response: str) -> Extracted | None:
    r"""Finds the final answer.

    Args:
      response: a solution. Only its last 200,000 characters are read.

    Returns:
      The answer and the rule that found it; None where there is neither a phrase nor a number.

    >>> extract("3 + 4 = 7\n#### 7").method
    'hashes'
    >>> extract("first 3, then 1,200 apples")
    Extracted(answer='1,200', method='last_number')
    """
    text = response[-_MAX_RESPONSE:]
    boxed = last_boxed(text)
    if boxed is not None:
        return Extracted(answer=boxed, method="boxed")
    for method, pattern in (("final_answer", _FINAL), ("hashes", _HASHES)):
        found = pattern.findall(text)
        if found and found[-1].strip():
            return Extracted(answer=found[-1].strip(), method=method)
    for phrase in reversed(_ANSWER_IS.findall(text)[-5:]):
        answer = clean_phrase(phrase)
        if answer:
            return Extracted(answer=answer, method="answer_is")
    numbers = _NUMBER.findall(text)
    return Extracted(answer=numbers[-1], method="last_number") if numbers else None
