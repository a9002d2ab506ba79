"""A report in the terminal: compact, aligned, readable without colour and at 80 columns.

Texts of users and models are put into `Text` objects, so that rich takes no markup from them, and their control
characters are shown by name, so that the terminal takes none either.
"""

import math
from collections.abc import Iterable, Sequence

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from tunesmith.report.charts import finite_points, group_charts
from tunesmith.report.console import OutputConsole
from tunesmith.report.report import Figure, Finding, Report, Sample, Series, Severity, Table
from tunesmith.report.text import format_cells, format_value, numeric_columns, plural, visible

EVIDENCE_LINES = 3
TABLE_ROWS = 20
SAMPLES = 3
SHORT_LINES = 3
NAME_CELLS = 28

_STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}
_ICONS = {Severity.ERROR: "✗", Severity.WARNING: "!", Severity.NOTE: "·"}
_ASCII = str.maketrans({"–": "-", "∞": "inf", "·": "-"})
_SPARK = "▁▂▃▄▅▆▇█"
_SPARK_WIDTH = 24
_MOST_BARS = 36
"""Bars that fit into 40 columns; of more, only the course is shown."""
_NARROW_TEXT = 14
"""The least width of a text column; a table that cannot have it is printed row by row."""


def print_report(report: Report, console: Console | None = None, *, verbose: bool = False) -> None:
    """Prints `report`.

    Args:
        console: where to; standard output by default.
        verbose: print all evidence, rows and samples, at full length.
    """
    _Printer(console or OutputConsole(), verbose).print(report)


def sparkline(values: Sequence[float], width: int = _SPARK_WIDTH) -> str:
    """`values`, all finite, as one line of at most `width` blocks, each the mean of its share."""
    count = min(len(values), width)
    shares = [values[i * len(values) // count : (i + 1) * len(values) // count] for i in range(count)]
    means = [sum(value / len(share) for value in share) for share in shares]
    low, high = min(means, default=0.0), max(means, default=0.0)
    # Halved, as the difference of two large floats can be infinite.
    heights = [(mean / 2 - low / 2) / (high / 2 - low / 2) if high / 2 > low / 2 else 0.0 for mean in means]
    return "".join(_SPARK[round(height * (len(_SPARK) - 1))] for height in heights)


class _Printer:
    """Prints the parts of a report to one console."""

    def __init__(self, console: Console, verbose: bool) -> None:
        self._console = console
        self._verbose = verbose
        self._ascii = console.options.ascii_only

    def print(self, report: Report) -> None:
        self._head(report)
        if report.findings:
            self._heading("Findings")
            for finding in report.sorted_findings:
                self._finding(finding)
        if report.figures:
            self._heading("Figures")
            self._figures(report.figures)
        for chart in group_charts(report.series):
            self._chart(chart)
        for table in report.tables:
            self._heading(table.title)
            self._table(table)
        if report.samples:
            self._samples(report.samples)

    def _text(self, text: str, style: str = "") -> Text:
        """`text` as it can be shown here: nothing hidden, nothing that the stream cannot encode."""
        encoding = self._console.encoding
        if self._ascii:
            text = text.translate(_ASCII)
        shown = visible(text).expandtabs(4).encode(encoding, "backslashreplace").decode(encoding)
        return Text(shown, style, overflow="fold")

    def _out(self, renderable: Text | Grid, indent: int = 0) -> None:
        self._console.print(
            Padding(renderable, (0, 0, 0, indent), expand=False), highlight=False, emoji=False, markup=False
        )

    def _head(self, report: Report) -> None:
        icon, word, style = ("✓", "passed", "bold green") if report.passed else ("✗", "failed", "bold red")
        mark = "" if self._ascii else f"{icon} "
        self._out(self._text(report.title, "bold"))
        self._out(Text.assemble(self._text(report.stage), " ", (f"{mark}{word}", style), f" ({report.summary})"))

    def _heading(self, title: str, detail: str = "") -> None:
        self._console.print()
        self._out(
            Text.assemble(self._text(title, "bold underline"), self._text(f"  {detail}" if detail else "", "dim"))
        )

    def _finding(self, finding: Finding) -> None:
        word = finding.severity.value
        lines = _grid(2)
        lines.columns[0].min_width = len("! warning")
        lines.columns[0].no_wrap = True
        mark = "" if self._ascii else f"{_ICONS[finding.severity]} "
        code = Text.assemble(" (", self._text(finding.code), ")", style="dim")
        lines.add_row(Text(f"{mark}{word}", _STYLES[finding.severity]), self._text(finding.message) + code)
        shown = finding.evidence if self._verbose else finding.evidence[:EVIDENCE_LINES]
        for line in shown:
            lines.add_row("", self._bullet("-", line if self._verbose else self._short(line, 15), "dim"))
        if len(shown) < len(finding.evidence):
            lines.add_row("", Text(f"  and {len(finding.evidence) - len(shown):,} more", "dim"))
        if finding.remedy:
            lines.add_row("", self._bullet("Remedy:", finding.remedy))
        self._out(lines, 2)

    def _bullet(self, bullet: str, text: str, style: str = "") -> Grid:
        """A text that hangs to the right of its bullet."""
        line = Grid.grid(padding=(0, 1, 0, 0))
        line.add_column(no_wrap=True, style=style or "bold")
        line.add_column(overflow="fold")
        line.add_row(bullet, self._text(text, style))
        return line

    def _figures(self, figures: Sequence[Figure]) -> None:
        lines = _grid(2)
        for figure in figures:
            value = self._text(format_value(figure.value), "bold")
            if figure.unit:
                value += self._text(f" {figure.unit}")
            if figure.detail:
                value += self._text(f"  {figure.detail}", "dim")
            lines.add_row(self._text(figure.label), value)
        self._out(lines, 2)

    def _chart(self, chart: Sequence[Series]) -> None:
        """One line a series: its course, and its first, lowest, highest and last value; bars with their axis."""
        self._heading(chart[0].chart, " by ".join(filter(None, (chart[0].y_label, chart[0].x_label))))
        if all(series.kind == "bar" and _can_be_bars(series) for series in chart):
            for series in chart:
                self._bars(series, named=len(chart) > 1)
            return
        values = [[y for _, y in finite_points(series)] for series in chart]
        rows = [["", "first", "min", "max", "last"]]
        for series, ys in zip(chart, values, strict=True):
            figures = [format_value(y) for y in (ys[0], min(ys), max(ys), ys[-1])] if ys else ["", "", "", "no values"]
            rows.append([self._short(series.name, 0, NAME_CELLS), *figures])
        widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
        room = self._console.width - sum(widths) - 2 - 2 * len(widths)
        courses = ["", *(sparkline(ys, min(room, _SPARK_WIDTH)) if ys and room > 3 else "" for ys in values)]
        lines = _grid(6, right=range(2, 6))
        for row, course in zip(rows, courses, strict=True):
            blocks = Text("" if self._ascii else course, "cyan", no_wrap=True)
            style = "dim" if row is rows[0] else ""
            lines.add_row(self._text(row[0]), blocks, *(self._text(figure, style) for figure in row[1:]))
        self._out(lines, 2)

    def _bars(self, series: Series, *, named: bool) -> None:
        """One block or two a bar, the ends of the axis below, and what the highest bar stands for."""
        points = finite_points(series)
        top_x, top = max(points, key=lambda point: point[1])
        cells = 2 if 2 * len(points) + 2 <= self._console.width else 1
        blocks = "".join(_bar(y, top) * cells for _, y in points)
        first, last = format_value(points[0][0]), format_value(points[-1][0])
        axis = first + last.rjust(len(blocks) - len(first)) if len(first) + len(last) < len(blocks) else last
        highest = f"highest: {format_value(top)} at {format_value(top_x)}"
        if named:
            self._out(self._text(self._short(series.name, 0, NAME_CELLS)), 2)
        if self._ascii:
            self._out(self._text(f"{highest}, from {first} to {last}"), 2)
            return
        self._out(Text(blocks, "cyan", no_wrap=True), 2)
        self._out(self._text(axis, "dim"), 2)
        self._out(self._text(highest, "dim"), 2)

    def _table(self, table: Table) -> None:
        rows = table.rows if self._verbose else table.rows[:TABLE_ROWS]
        heads, *cells = format_cells([table.columns, *rows])
        numeric = numeric_columns(rows, len(heads))
        columns = list(zip(heads, *cells, strict=True))
        widths = [max(cell_len(visible(cell)) for cell in column) for column in columns]
        least = [
            max(map(cell_len, [*head.split(), *column])) if number else min(width, _NARROW_TEXT)
            for (head, *column), width, number in zip(columns, widths, numeric, strict=True)
        ]
        room = self._console.width - 2 * len(least)
        if sum(least) <= room:
            self._out(self._grid_of(heads, cells, numeric, _fitted(widths, least, room)), 2)
        else:
            for row in cells:
                self._record(heads, row)
        if len(rows) < len(table.rows):
            self._out(Text(f"and {plural(len(table.rows) - len(rows), 'more row')}", "dim"), 2)

    def _grid_of(
        self, heads: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool], widths: Sequence[int]
    ) -> Grid:
        grid = Grid.grid(padding=(0, 2, 0, 0))
        for number, width in zip(numeric, widths, strict=True):
            grid.add_column(justify="right" if number else "left", width=width, overflow="fold")
        grid.add_row(*(self._text(head, "dim") for head in heads))
        for row in rows:
            grid.add_row(*map(self._text, row))
        return grid

    def _record(self, heads: Sequence[str], row: Sequence[str]) -> None:
        """One row of a table that is too wide: its first cell, and below it one line a column."""
        self._out(self._text(row[0]), 2)
        lines = _grid(2)
        for head, cell in zip(heads[1:], row[1:], strict=True):
            lines.add_row(self._text(head, "dim"), self._text(cell))
        self._out(lines, 4)

    def _samples(self, samples: Sequence[Sample]) -> None:
        shown = samples if self._verbose else samples[:SAMPLES]
        self._heading("Samples" if len(shown) == len(samples) else f"Samples ({len(shown)} of {len(samples):,})")
        for sample in shown:
            self._out(self._text(sample.title), 2)
            lines = _grid(2)
            beside = 6 + max((cell_len(visible(heading)) for heading, _ in sample.texts), default=0)
            for heading, text in sample.texts:
                lines.add_row(self._text(heading, "dim"), self._sample_text(text, beside))
            self._out(lines, 4)

    def _sample_text(self, text: str, beside: int) -> Text:
        if not text:
            return Text("(empty)", "dim italic")
        return self._text(text if self._verbose else self._short(text, beside))

    def _short(self, text: str, beside: int, room: int | None = None) -> str:
        """As much of `text` as fits into `room` cells, by default into `SHORT_LINES` lines next to `beside` cells."""
        if room is None:  # lines that break at a word hold less than they could
            room = max(self._console.width - beside, 10) * SHORT_LINES - 10
        # Cut first, as a text can be a megabyte; combining marks take no cell.
        one_line = visible(text[: 4 * room]).replace("\n", " / " if self._ascii else " ↵ ")
        if cell_len(one_line) <= room and len(text) <= 4 * room:
            return one_line
        return set_cell_size(one_line, min(room - 3, cell_len(one_line))).rstrip() + ("..." if self._ascii else "…")


def _can_be_bars(series: Series) -> bool:
    points = finite_points(series)
    return 0 < len(points) <= _MOST_BARS and min(y for _, y in points) >= 0 < max(y for _, y in points)


def _bar(value: float, top: float) -> str:
    """A block whose height says how near `value` is to `top`; a space for nothing, the lowest block for next to it."""
    return " " if value == 0 else _SPARK[max(math.ceil(value / top * len(_SPARK)) - 1, 0)]


def _fitted(widths: Sequence[int], least: Sequence[int], room: int) -> list[int]:
    """`widths`, the widest made narrower until all fit into `room`, but none below its `least`."""
    fitted = [max(min(width, room), low) for width, low in zip(widths, least, strict=True)]
    while sum(fitted) > room:
        fitted[max((i for i in range(len(fitted)) if fitted[i] > least[i]), key=lambda i: fitted[i])] -= 1
    return fitted


def _grid(columns: int, right: Iterable[int] = ()) -> Grid:
    """A table without lines, two spaces between columns."""
    grid = Grid.grid(padding=(0, 2, 0, 0))
    for index in range(columns):
        grid.add_column(justify="right" if index in right else "left", overflow="fold")
    return grid
