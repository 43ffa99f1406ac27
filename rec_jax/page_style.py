"""The style sheet of a run's page: light and dark, readable without colour."""

CSS = """
:root { --ink: #1b1f23; --soft: #57606a; --paper: #ffffff; --band: #f4f6f8; --line: #d0d7de;
  --link: #0b5cad; --mark: #fff1b8; --hit: #8a4b00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ec; --soft: #a3acb5; --paper: #15181c; --band: #1e2329; --line: #3a424b;
    --link: #7ab8f5; --mark: #4d3f00; --hit: #ffcf6b; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 68rem; color: var(--ink);
  background: var(--paper); font: 16px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; }
h1 { margin: 0 0 1rem; font-size: 1.75rem; line-height: 1.2; }
h2 { margin: 2.5rem 0 0.75rem; padding-top: 0.75rem; border-top: 1px solid var(--line);
  font-size: 1.35rem; }
h3 { margin: 1.5rem 0 0.5rem; font-size: 1.1rem; }
h4 { margin: 0; font-size: 1rem; }
a { color: var(--link); }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); margin: 0;
  gap: 0.25rem 1.5rem; }
.facts dt { color: var(--soft); font-size: 0.85rem; }
.facts dd { margin: 0 0 0.35rem; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
nav ul { display: flex; flex-wrap: wrap; gap: 0.25rem 1.25rem; margin: 1rem 0 0; padding: 0;
  list-style: none; }
.scroll { overflow-x: auto; margin-top: 1.25rem; }
.scroll:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
table { border-collapse: collapse; font-size: 0.92rem; font-variant-numeric: tabular-nums; }
caption { padding-bottom: 0.4rem; font-weight: 600; text-align: left; }
caption span { display: inline-block; position: sticky; left: 0; width: max-content;
  max-width: calc(min(100vw, 68rem) - 3rem); }
th, td { padding: 0.35rem 0.65rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
th:first-child { padding-left: 0.4rem; text-align: left; }
thead th { color: var(--soft); font-size: 0.85rem; vertical-align: bottom; }
tbody th { font-weight: 500; }
tbody tr:nth-child(odd) { background: var(--band); }
tbody tr.marked, tbody tr.marked th { background: var(--mark); font-weight: 700; }
.note { margin: 0.4rem 0 0; max-width: 46rem; color: var(--soft); font-size: 0.9rem; }
figure { margin: 1.25rem 0; }
img { display: block; max-width: 100%; height: auto; border-radius: 6px; background: #ffffff; }
figcaption { margin-top: 0.4rem; max-width: 46rem; color: var(--soft); font-size: 0.9rem; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(12rem, 1fr));
  gap: 0.75rem; }
.columns > div { padding: 0.75rem 0.8rem; border: 1px solid var(--line); border-radius: 6px; }
.columns h4 { font-size: 0.92rem; }
.columns p { margin: 0 0 0.4rem; color: var(--soft); font-size: 0.85rem; }
.columns ol { margin: 0; padding-left: 2.2rem; }
.columns li { margin-bottom: 0.35rem; line-height: 1.35; overflow-wrap: anywhere; }
.columns small { display: block; color: var(--soft); }
mark { padding: 0 0.2em; border-radius: 3px; background: var(--mark); color: inherit;
  font-weight: 700; }
.hit { color: var(--hit); font-size: 0.75rem; font-weight: 700; text-transform: uppercase; }
details { margin-top: 0.9rem; }
summary { cursor: pointer; }
pre { overflow-x: auto; padding: 0.9rem; border: 1px solid var(--line); border-radius: 6px;
  background: var(--band); font-size: 0.85rem; line-height: 1.4; }
@media print { details::details-content { content-visibility: visible; } nav { display: none; } }
"""
"""Inlined into the page."""
