r"""One spelling for what LaTeX can write in several ways; nothing here changes a value.

The list of rewritings is the one that ToRA and Minerva describe (spaces, \left and \right,
fraction and root shorthands, \text, degrees, thousands separators), without their leniencies:
units are told apart (`units.py`), percent stays, and no decimal is rounded.

Dimension key: none.
"""

import re
import unicodedata

_UNICODE = {
    "\u2212": "-",
    "\u2013": "-",
    "\u00d7": r"\times ",
    "\u00b7": r"\cdot ",
    "\u22c5": r"\cdot ",
    "\u00f7": "/",
    "\u03c0": r"\pi ",
    "\u221e": r"\infty ",
    "\u00b0": r"^{\circ}",
    "\u2264": r"\leq ",
    "\u2265": r"\geq ",
    "\u2260": r"\neq ",
    "\u222a": r"\cup ",
    "\u2229": r"\cap ",
    "\u00b1": r"\pm ",
    "\u00b2": "^{2}",
    "\u00b3": "^{3}",
    "\u00bd": r"\frac{1}{2}",
    "\u00bc": r"\frac{1}{4}",
    "\u00be": r"\frac{3}{4}",
    "\u2153": r"\frac{1}{3}",
    "\u2154": r"\frac{2}{3}",
    "\u00a0": " ",
    "\u2009": " ",
    "\u202f": " ",
}
_REWRITES: tuple[tuple[str, str], ...] = (
    (r"\\left(?![a-zA-Z])\s*\.?|\\right(?![a-zA-Z])\s*\.?", ""),
    (r"\\(?:big|Big|bigg|Bigg)[lr]?(?![a-zA-Z])", ""),
    (r"(?<!\\)\\[,!;:> ]|~|\\q?quad(?![a-zA-Z])", " "),
    (r"\\(?:displaystyle|textstyle|limits)(?![a-zA-Z])", " "),
    (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
    (r"\\(?:mbox|mathrm|textrm|textbf|mathbf|textit|textsf|texttt|operatorname)\s*\{", r"\\text{"),
    (r"\\degrees?(?![a-zA-Z])|\^\s*\\circ(?![a-zA-Z])|\^\s*\{\s*\\circ\s*\}", r"^{\\circ}"),
    (r"\\le(?![a-zA-Z])|\\leqslant(?![a-zA-Z])|<=", r"\\leq "),
    (r"\\ge(?![a-zA-Z])|\\geqslant(?![a-zA-Z])|>=", r"\\geq "),
    (r"\\ne(?![a-zA-Z])|!=", r"\\neq "),
    (r"\\infin(?![a-zA-Z])", r"\\infty "),
    (r"\\lbrace(?![a-zA-Z])", r"\\{"),
    (r"\\rbrace(?![a-zA-Z])", r"\\}"),
    (r"\\lbrack(?![a-zA-Z])", "["),
    (r"\\rbrack(?![a-zA-Z])", "]"),
    (r"\\(?:cdot|ast)(?![a-zA-Z])", r"\\times "),
    (r"\\text\{\s*(?:and|or)\s*\}", ","),
    (r"\\%", "%"),
    (r"\{,\}", ","),
    (r"(?<!\w)\+\s*\\infty", r"\\infty"),
    (r"\\frac\s*([0-9a-zA-Z])\s*([0-9a-zA-Z])", r"\\frac{\1}{\2}"),
    (r"\\frac\s*([0-9a-zA-Z])\s*\{", r"\\frac{\1}{"),
    (r"\\frac\s*([0-9a-zA-Z])\s*(\\pi)", r"\\frac{\1}{\2}"),
    (r"\\frac\s*(\\pi)\s*([0-9])", r"\\frac{\1}{\2}"),
    (r"(\\frac\s*\{[^{}]*\})\s*([0-9a-zA-Z])", r"\1{\2}"),
    (r"\\sqrt\s*([0-9a-zA-Z])", r"\\sqrt{\1}"),
    (r"\^\s*([0-9]+|[a-zA-Z])", r"^{\1}"),
    (r"_\s*([0-9]+|[a-zA-Z])", r"_{\1}"),
)
_COMPILED = tuple((re.compile(pattern), new) for pattern, new in _REWRITES)
_THIN = re.compile(r"(?<=[0-9]),\s*\\!\s*(?=[0-9]{3})|(?<=[0-9])\\[,!]\s*(?=[0-9]{3}(?![0-9]))")
_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_WRAPPED = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))


def normalise(answer: str) -> str:
    r"""Rewrites an answer to one spelling.

    >>> normalise(r" $\dfrac12$. ")
    '\\frac{1}{2}'
    >>> normalise(r"32,\!348")
    '32,348'
    """
    text = "".join(_ascii_digit(character) for character in answer)
    for old, new in _UNICODE.items():
        text = text.replace(old, new)
    text = text.strip().rstrip(".").strip()
    for first, last in _WRAPPED:
        inside = text[len(first) : len(text) - len(last)]
        is_wrapped = text.startswith(first) and text.endswith(last)
        if is_wrapped and len(text) > len(first + last) and first not in inside:
            text = inside.strip().rstrip(".").strip()
    text = _THIN.sub(",", text)
    for pattern, new in _COMPILED:
        text = pattern.sub(new, text)
    return " ".join(text.split())


def _ascii_digit(character: str) -> str:
    """A decimal digit of any script as the ASCII digit; anything else as it is."""
    if character.isascii() or unicodedata.category(character) != "Nd":
        return character
    return str(unicodedata.decimal(character))


def compact(text: str) -> str:
    r"""A normalised answer without spaces, \text kept as words: what strings are compared by.

    >>> compact(r"( 3, \frac{\pi}{2} )") == compact(r"(3,\frac{\pi}{2})")
    True
    """
    text = _TEXT.sub(lambda match: "`" + match.group(1).strip() + "`", text)
    return re.sub(r"\s+(?![^`]*`[^`]*(?:`[^`]*`[^`]*)*$)", "", text)


def words(text: str) -> str | None:
    r"""The words of an answer that is text only, lower case; None where there is mathematics.

    >>> words(r"\text{(B)}"), words("Dana"), words("x + 2")
    ('b', 'dana', None)
    """
    bare = _TEXT.sub(lambda match: f" {match.group(1)} ", text)
    is_text = bool(_TEXT.fullmatch(text.strip())) or re.fullmatch(r"\(?[A-Z]\)?", text.strip())
    bare = bare.replace("$", " ").strip().strip(".").strip()
    if bare.startswith("(") and bare.endswith(")"):
        bare = bare[1:-1]
    if is_text or re.fullmatch(r"[A-Za-z]{2,}(?:[ '-][A-Za-z]+)*", bare):
        found = " ".join(re.findall(r"[a-z0-9]+", bare.lower()))
        return found or None
    return None
