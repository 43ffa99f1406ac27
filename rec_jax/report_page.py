"""The page of a run: report/index.html, one file that needs nothing but itself.

Pictures are inlined, there is no script and no outside address, and every text is escaped, since
titles come from logs. Marks never rest on colour alone.

Dimension key: none.
"""

import base64
import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from html import escape
from typing import Any

from core_jax.errors import DataError
from rec_jax.evaluate import EvaluationReport
from rec_jax.evaluation_tables import Table, report_tables
from rec_jax.page_style import CSS
from rec_jax.recommend import ItemWords, Sample, SessionWords

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
"""First bytes of every PNG file."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plot:
    """A picture of the run."""

    path: str
    """The PNG file."""
    caption: str
    """What to see in it, for everybody."""
    description: str
    """What it shows, for those who do not see it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportInputs:
    """All that the page tells, computed before. Empty parts are left out of the page."""

    title: str
    summary: Mapping[str, str]
    """The run in a few facts: data, model, time, hardware."""
    evaluation: EvaluationReport | None = None
    tables: tuple[Table, ...] = ()
    """Further results, below those of the evaluation."""
    plots: tuple[Plot, ...] = ()
    semantic_ids: tuple[Table, ...] = ()
    """Quality of the semantic IDs."""
    samples: tuple[Sample, ...] = ()
    choices: Mapping[str, Table] = dataclasses.field(default_factory=dict)
    """What was tried on validation for every tuned method, by a line that says what was chosen."""
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """How much every session rule and filter let through, in order."""
    drops: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Rows of the log that were dropped, by reason."""
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The whole configuration."""


def write_page(inputs: ReportInputs, folder: str | os.PathLike[str]) -> pathlib.Path:
    """Writes index.html into a folder.

    Args:
      inputs: all that the page tells.
      folder: made if it does not exist.

    Returns:
      Path of the page.

    Raises:
      DataError: a picture is missing or is no PNG.
    """
    page = page_html(inputs)
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "index.html"
    path.write_text(page, encoding="utf-8")
    return path


def page_html(inputs: ReportInputs) -> str:
    """The page as text.

    Args:
      inputs: all that the page tells.

    Returns:
      A whole HTML document.

    Raises:
      DataError: a picture is missing or is no PNG.
    """
    results = report_tables(inputs.evaluation) if inputs.evaluation else ()
    results = (*results, *inputs.tables)
    log_tables = (
        _counts_table(inputs.counts, "What every rule and filter let through", "step"),
        _counts_table(inputs.drops, "Rows dropped from the log", "reason"),
    )
    sections = {
        "Results": "".join(_table(table) for table in results),
        "Pictures": "".join(_figure(plot) for plot in inputs.plots),
        "Sample sessions": "".join(_sample(sample) for sample in inputs.samples),
        "Semantic IDs": "".join(_table(table) for table in inputs.semantic_ids),
        "Chosen on validation": "".join(
            _folded(line, _table(table)) for line, table in inputs.choices.items()
        ),
        "From log to sessions": "".join(_table(table) for table in log_tables if table.rows),
        "Configuration": _configuration(inputs.config),
    }
    sections = {heading: body for heading, body in sections.items() if body}
    links = "".join(
        f'<li><a href="#{_anchor(heading)}">{escape(heading)}</a></li>' for heading in sections
    )
    body = "".join(
        f'<section id="{_anchor(heading)}"><h2>{escape(heading)}</h2>{content}</section>\n'
        for heading, content in sections.items()
    )
    facts = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in inputs.summary.items()
    )
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{escape(inputs.title)}</title>
<style>{CSS}</style>
</head>
<body>
<header><h1>{escape(inputs.title)}</h1>
<dl class="facts">{facts}</dl>
<nav aria-label="Sections"><ul>{links}</ul></nav>
</header>
<main>
{body}</main>
</body>
</html>
"""


def _table(table: Table) -> str:
    """A table with its caption above, its note below, and sideways scrolling where narrow."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.header)
    rows = "".join(
        ('<tr class="marked">' if place in table.marked else "<tr>")
        + f'<th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(_typeset(cell))}</td>" for cell in row[1:])
        + "</tr>"
        for place, row in enumerate(table.rows)
    )
    title = escape(table.title)
    note = f'<p class="note">{escape(_typeset(table.note))}</p>' if table.note else ""
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{title}">'
        f"<table><caption><span>{title}</span></caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>{note}"
    )


def _figure(plot: Plot) -> str:
    """A picture, inlined, with its size so that the page does not jump."""
    path = pathlib.Path(plot.path)
    if not path.is_file():
        raise DataError(f"picture '{path}' does not exist; draw it before the page is written")
    content = path.read_bytes()
    if not content.startswith(PNG_SIGNATURE):
        raise DataError(f"picture '{path}' is no PNG file; the page inlines PNG alone")
    width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
    data = base64.b64encode(content).decode("ascii")
    return (
        f'<figure><img width="{width}" height="{height}" alt="{escape(plot.description)}" '
        f'src="data:image/png;base64,{data}"><figcaption>{escape(plot.caption)}</figcaption>'
        "</figure>"
    )


def _sample(sample: Sample) -> str:
    """History, generated sessions and the held-out session of one request, side by side."""
    shown = len(sample.history)
    columns = [
        _items(
            "History",
            f"last {shown} of {sample.num_history}, newest last",
            sample.history,
            start=sample.num_history - shown + 1,
        ),
        *(_session(number, session) for number, session in enumerate(sample.sessions, start=1)),
    ]
    if sample.targets:
        columns.append(_items("What came next", "held out, in the log's order", sample.targets))
    return (
        f'<article class="sample"><h3>Recommendations for {escape(sample.heading)}</h3>'
        f'<div class="columns">{"".join(columns)}</div></article>'
    )


def _session(number: int, session: SessionWords) -> str:
    """One generated session."""
    return _items(
        f"Generated session {number}", f"{session.score_name} {session.score:.2f}", session.items
    )


def _items(heading: str, note: str, items: tuple[ItemWords, ...], *, start: int = 1) -> str:
    """A titled list of items; a hit is marked in colour, bold and word."""
    entries = []
    for words in items:
        title = escape(words.title)
        if words.is_hit:
            title = f'<mark>{title}</mark> <span class="hit">hit</span>'
        categories = escape(", ".join(words.categories))
        detail = f"<small>{categories}</small>" if categories else ""
        entries.append(f"<li>{title}{detail}</li>")
    return (
        f"<div><h4>{escape(heading)}</h4><p>{escape(note)}</p>"
        f'<ol start="{start}">{"".join(entries)}</ol></div>'
    )


def _counts_table(counts: Mapping[str, int], title: str, what: str) -> Table:
    """Counts by name."""
    return Table(
        title=title,
        note="",
        header=(what, "count"),
        rows=tuple((name.replace("_", " "), f"{count:,}") for name, count in counts.items()),
    )


def _configuration(config: Mapping[str, Any]) -> str:
    """The configuration, folded away."""
    if not config:
        return ""
    text = escape(json.dumps(config, indent=2))
    return _folded("All settings of this run", f"<pre>{text}</pre>")


def _folded(summary: str, body: str) -> str:
    """A body that shows when its summary is clicked."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def _anchor(heading: str) -> str:
    """Fragment name of a section."""
    return heading.lower().replace(" ", "-")


def _typeset(text: str) -> str:
    """Plus-minus as one sign, where the terminal has two."""
    return text.replace("+-", "\N{PLUS-MINUS SIGN}")
