r"""The viewer's page: one HTML file that needs nothing but itself.

The run's data stand in a script tag as JSON, in which "<" is written as \u003c, so that no text can
end the tag; the page's own script, beside this file, turns texts into text nodes alone. A content
security policy lets that one script run, and no other.

Dimension key: none.
"""

import base64
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Sequence
from html import escape
from typing import Any

from reasoning_jax.view.view_data import ViewData, ViewProblem, ViewSolution

_FOLDER = pathlib.Path(__file__).parent
_LOWEST_LOG = -99.0
"""Lower log-probabilities are written as this one: JSON has no infinity, and s_t is 0 far above."""
_IN_JSON = str.maketrans(
    {"<": r"\u003c", ">": r"\u003e", "&": r"\u0026", "\u2028": r"\u2028", "\u2029": r"\u2029"}
)
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_PROBLEMS = {
    "all": "all",
    "critical": "with a critical token",
    "agrees": "contrast agrees",
    "differs": "contrast differs",
    "error": "with a first error",
}
_SOLUTIONS = {"both": "right and wrong", "wrong": "wrong", "right": "right"}
_ORDERS = {"problem": "problem", "lowest": "lowest s"}


def write_view(path: str | os.PathLike[str], data: ViewData) -> pathlib.Path:
    """Writes the page.

    Args:
      path: the HTML file; its folder is made if it does not exist.
      data: what to show.

    Returns:
      Path of the page.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page_html(data), encoding="utf-8")
    return path


def page_html(data: ViewData) -> str:
    """The page as text.

    Args:
      data: what to show.

    Returns:
      A whole HTML document.
    """
    style = (_FOLDER / "page.css").read_text(encoding="utf-8")
    script = (_FOLDER / "page.js").read_text(encoding="utf-8")
    policy = f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}"
    title = escape(_written(data.title))
    facts = {"Problems": f"{len(data.problems):,}"} | dict(data.facts)
    listed = "".join(
        f"<div><dt>{escape(_written(name))}</dt><dd>{escape(_written(value))}</dd></div>"
        for name, value in facts.items()
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
<div class="top"><h1>{title}</h1><button type="button" id="theme">Light / dark</button></div>
<dl class="facts" id="facts">{listed}</dl>
</header>
{_controls()}
<main class="layout">
<ol class="list" id="list" aria-label="Problems"></ol>
<div>
<p id="empty" hidden>No problem fits. Choose another filter or other words.</p>
<noscript><p>This page draws itself by a script, which the browser does not run.</p></noscript>
<div id="problem">
<h2 id="name"></h2>
<p class="question" id="question"></p>
<p class="gold">Gold answer <b id="gold"></b></p>
{_legend(data)}
<div class="solutions" id="solutions"></div>
</div>
</div>
</main>
<div id="tip" role="tooltip" hidden></div>
<script type="application/json" id="data">{json_text(data)}</script>
<script>{script}</script>
</body>
</html>
"""


def json_text(data: ViewData) -> str:
    """The page's data as JSON that is safe inside a script tag.

    log s_t is written in thousandths of a nat, log-probabilities in hundredths, success in
    hundredths of a percent; a piece's length is counted in UTF-16 units, as scripts count.

    Args:
      data: what to show.
    """
    problems = [_problem(problem) for problem in data.problems]
    fields = {"top_share": data.top_share, "problems": problems}
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return _LONE_SURROGATE.sub(
        lambda match: f"\\u{ord(match.group()):04x}", text.translate(_IN_JSON)
    )


def _problem(problem: ViewProblem) -> dict[str, Any]:
    """A problem as JSON values."""
    return {
        "id": problem.problem_id,
        "question": problem.question,
        "gold": problem.gold,
        "solutions": [_solution(solution) for solution in problem.solutions],
    }


def _solution(solution: ViewSolution) -> dict[str, Any]:
    """A solution as JSON values."""
    success = solution.success
    return {
        "sample": solution.sample,
        "is_correct": solution.is_correct,
        "answer": solution.answer,
        "is_cut_off": solution.is_cut_off,
        "text": "".join(solution.pieces),
        "lengths": [sum(1 + (char > "\uffff") for char in piece) for piece in solution.pieces],
        "log_scores": _rounded(solution.log_scores, 1000),
        "positive": _rounded(solution.positive, 100),
        "negative": _rounded(solution.negative, 100),
        "success": success and [None if value is None else round(value, 4) for value in success],
        "critical": solution.critical,
        "first_error": solution.first_error,
    }


def _rounded(values: Sequence[float] | None, parts: int) -> list[int] | None:
    """Logarithms in parts of a nat."""
    if values is None:
        return None
    return [round(parts * min(max(value, _LOWEST_LOG), 0.0)) for value in values]


def _controls() -> str:
    """Search, filters, order, and the way to the neighbours."""
    return f"""<div class="controls" id="controls"><div class="bar" role="search">
<input type="search" id="search" placeholder="Search text" aria-label="Search text">
{_select("outcome", "Problems", _PROBLEMS)}
{_select("which", "Solutions", _SOLUTIONS)}
{_select("sort", "Sort by", _ORDERS)}
<div class="steps"><button type="button" id="previous">Previous</button>
<output id="place" aria-live="polite"></output>
<button type="button" id="next">Next</button></div>
</div></div>"""


def _select(name: str, label: str, choices: dict[str, str]) -> str:
    """A choice with its label."""
    options = "".join(f'<option value="{value}">{text}</option>' for value, text in choices.items())
    return f'<label><span>{label}</span><select id="{name}">{options}</select></label>'


def _legend(data: ViewData) -> str:
    """What shade, underline, outline and curve mean; only what the data have."""
    solutions = [one for problem in data.problems for one in problem.solutions]
    parts = []
    if any(one.log_scores for one in solutions):
        parts.append(
            '<span>contrastive score s<span class="scale" role="img" aria-label="Shade from 0, '
            'strong, to 1, none"><i></i><b><span>0 critical</span><span>0.5</span>'
            "<span>1</span></b></span></span>"
        )
        parts.append(
            '<span><span class="token sample low">token</span> '
            f"lowest {100 * data.top_share:g}% of s</span>"
        )
    if any(one.critical is not None for one in solutions):
        parts.append(
            '<span><span class="token sample critical">token</span> '
            "critical token by rollouts</span>"
        )
    if any(one.success for one in solutions):
        parts.append(
            '<span><svg width="46" height="17" aria-hidden="true">'
            '<polygon class="area" points="0,17 0,3 18,3 18,8 30,8 30,16 46,16 46,17"/>'
            '<polyline class="stroke" points="0,3 18,3 18,8 30,8 30,16 46,16"/></svg>'
            "rollouts from here that are right</span>"
        )
    if any(one.first_error is not None for one in solutions):
        parts.append(
            '<span><span class="token sample error">token</span> first arithmetic error</span>'
        )
    keys = (
        '<span class="keys"><span><kbd>n</kbd> <kbd>p</kbd> next, previous</span>'
        "<span><kbd>c</kbd> critical token</span><span><kbd>/</kbd> search</span></span>"
    )
    return f'<div class="legend">{"".join(parts)}{keys}</div>'


def _hash(text: str) -> str:
    """How a content security policy names a text that may be used."""
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
    return f"'sha256-{digest}'"


def _written(text: str) -> str:
    """A text that UTF-8 can hold: lone halves of UTF-16 pairs become replacement characters."""
    return _LONE_SURROGATE.sub("\ufffd", text)
