"""A report as one HTML page that needs nothing else: no script, no font, no request, in light and dark.

Every text comes from a user's data or a model and is escaped here, at the last moment; hidden characters are shown by
name, and each text is isolated from the direction of its neighbours. The page's policy (CSP) forbids scripts and
requests besides, so that a mistake here could not run anything.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from html import escape
from importlib.resources import files

from tunesmith.report.charts import chart_figure, group_charts
from tunesmith.report.report import Figure, Finding, Report, Sample, Severity, Table
from tunesmith.report.text import HIDDEN, format_cells, format_value, hidden_name, numeric_columns, visible

_LONG_VALUE = 16
"""A text longer than this gets a wider card."""

_SHORT_CELL = 24
"""A column whose texts are no longer than this is not wrapped."""

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_ICONS = {
    "error": '<circle cx="8" cy="8" r="6.5"/><path d="M5.7 5.7l4.6 4.6M10.3 5.7l-4.6 4.6"/>',
    "warning": '<path d="M8 1.8L15 14H1z"/><path d="M8 6.2v3.9M8 12v.1"/>',
    "note": '<circle cx="8" cy="8" r="6.5"/><path d="M8 7.4v3.8M8 4.8v.1"/>',
    "passed": '<circle cx="8" cy="8" r="6.5"/><path d="M5 8.3l2.1 2.1L11 6"/>',
}


def render_html(report: Report) -> str:
    """The whole page of `report`, ready to be written as UTF-8; the same report gives the same page."""
    sections = [
        ("findings", "Findings", "".join(_finding(f) for f in report.sorted_findings)),
        ("figures", "Figures", _figures(report.figures)),
        ("charts", "Charts", "".join(chart_figure(c, n) for n, c in enumerate(group_charts(report.series), 1))),
        ("tables", "Tables", "".join(_table(table) for table in report.tables)),
        ("samples", "Samples", "".join(_sample(sample) for sample in report.samples)),
    ]
    filled = [section for section in sections if section[2]]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{escape(visible(f"{report.title} – {report.stage}"))}</title>
<link rel="icon" href="data:,">
<style>
{_style()}</style>
</head>
<body>
<header>
<p class="stage">{_inline(report.stage)}</p>
<h1>{_inline(report.title)}</h1>
{_verdict(report)}
{_navigation([(name, title) for name, title, _ in filled])}</header>
<main>
{"".join(_section(*section) for section in filled)}</main>
</body>
</html>
"""


@cache
def _style() -> str:
    return files("tunesmith.report").joinpath("page.css").read_text(encoding="utf-8")


def _escaped(text: str) -> str:
    """`text` as HTML; each hidden character becomes a labelled mark."""
    parts, end = [], 0
    for match in HIDDEN.finditer(text):
        mark = f'<span class="hidden">{hidden_name(match[0])}</span>'
        parts += [escape(text[end : match.start()]), mark]
        end = match.end()
    return "".join([*parts, escape(text[end:])])


def _inline(text: str) -> str:
    """`text` within a line, unable to change the direction of what stands around it."""
    return f"<bdi>{_escaped(text)}</bdi>"


def _icon(name: str) -> str:
    return f'<svg class="icon" viewBox="0 0 16 16" aria-hidden="true">{_ICONS[name]}</svg>'


def _verdict(report: Report) -> str:
    name, icon = ("passed", "passed") if report.passed else ("failed", "error")
    badge = f'<span class="badge {name}">{_icon(icon)}{name.capitalize()}</span>'
    return f'<p class="verdict">{badge}<span>{report.summary}</span></p>'


def _navigation(sections: list[tuple[str, str]]) -> str:
    if len(sections) < 2:
        return ""
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title in sections)
    return f'<nav aria-label="Sections">{links}</nav>\n'


def _section(name: str, title: str, content: str) -> str:
    inner = f'<div class="charts">{content}</div>' if name == "charts" else content
    return f'<section id="{name}">\n<h2>{title}</h2>\n{inner}</section>\n'


def _finding(finding: Finding) -> str:
    kind = finding.severity.value
    parts = [
        f'<article class="finding {kind}">',
        f"<h3>{_icon(kind)}<span>{kind.capitalize()}</span><code>{_inline(finding.code)}</code></h3>",
        f'<p dir="auto">{_escaped(finding.message)}</p>',
    ]
    if finding.evidence:
        lines = "".join(f'<li dir="auto">{_escaped(line)}</li>' for line in finding.evidence)
        shown = f"{len(finding.evidence):,}"
        if finding.count is not None and finding.count > len(finding.evidence):
            shown += f" of {finding.count:,}"
        opened = " open" if finding.severity is Severity.ERROR else ""
        parts.append(f"<details{opened}><summary>Evidence ({shown})</summary>")
        parts.append(f'<ul class="evidence" lang="" tabindex="0">{lines}</ul></details>')
    if finding.remedy:
        parts.append(f'<p class="remedy" dir="auto"><b>Remedy:</b> {_inline(finding.remedy)}</p>')
    return "\n".join([*parts, "</article>\n"])


def _figures(figures: list[Figure]) -> str:
    return f'<dl class="figures">\n{"".join(map(_figure, figures))}</dl>\n' if figures else ""


def _figure(figure: Figure) -> str:
    value = format_value(figure.value)
    shown = _inline(figure.value) if isinstance(figure.value, str) else value
    unit = f'\u202f<span class="unit">{_inline(figure.unit)}</span>' if figure.unit else ""
    detail = f'<dd class="detail">{_inline(figure.detail)}</dd>' if figure.detail else ""
    kind = "figure long" if len(value) > _LONG_VALUE else "figure"
    return f'<div class="{kind}"><dt>{_inline(figure.label)}</dt><dd class="value">{shown}{unit}</dd>{detail}</div>\n'


def _table(table: Table) -> str:
    heads, *cells = format_cells([table.columns, *table.rows])
    numeric = numeric_columns(table.rows, len(heads))
    kinds = [_column_class(number, [row[i] for row in cells]) for i, number in enumerate(numeric)]
    head = "".join(f'<th scope="col"{kind}>{_inline(text)}</th>' for kind, text in zip(kinds, heads, strict=True))
    rows = "".join(f"<tr>{_row(row, kinds, named=not any(numeric[:1]))}</tr>\n" for row in cells)
    title = escape(visible(table.title))
    return (
        f'<div class="table"><h3>{_inline(table.title)}</h3>\n'
        f'<div class="scroll" role="region" aria-label="{title}" tabindex="0"><table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table></div></div>\n"
    )


def _column_class(number: bool, cells: list[str]) -> str:
    """The class attribute of a column: numbers to the right, short texts in one line."""
    if number:
        return ' class="number"'
    return ' class="short"' if max(map(len, cells), default=0) <= _SHORT_CELL else ""


def _row(cells: Iterable[str], kinds: list[str], *, named: bool) -> str:
    """One row; where it is `named`, the first cell is its heading."""
    parts = []
    for index, (cell, kind) in enumerate(zip(cells, kinds, strict=True)):
        opening, closing = ('th scope="row"', "th") if named and index == 0 else ("td", "td")
        parts.append(f"<{opening}{kind}>{_inline(cell)}</{closing}>")
    return "".join(parts)


def _sample(sample: Sample) -> str:
    texts = "".join(_sample_text(heading, text) for heading, text in sample.texts)
    return f'<article class="sample"><h3>{_inline(sample.title)}</h3>\n<div class="texts">{texts}</div></article>\n'


def _sample_text(heading: str, text: str) -> str:
    body = _escaped(text) if text else '<span class="nothing">empty</span>'
    # A newline right after <pre> is dropped by the parser; one of ours keeps the text's own.
    return f'<div class="text"><h4>{_inline(heading)}</h4><pre dir="auto" lang="" tabindex="0">\n{body}</pre></div>\n'
