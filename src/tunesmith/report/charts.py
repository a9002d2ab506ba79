"""Charts as inline SVG, without a script and at any width.

The drawing area is an SVG without a view box: positions are percentages of it and letters keep their size, so the same
chart is readable on a wide screen and on a phone. Only the lines lie in an inner SVG that is stretched, with strokes
that are not.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from tunesmith.report.report import Series
from tunesmith.report.text import format_value, plural, visible

MAX_POINTS = 1000
COLOURS = 8
"""Colours in the style sheet; the ninth line has the first colour again, dashed."""

_MAX_MARKERS = 40
_MAX_BARS = 400
_LARGEST = 1e300
"""Values beyond would overflow when ranges are computed; they are treated as not finite."""

Point = tuple[float, float]


@dataclass(frozen=True)
class _Axis:
    """Maps values to percentages of the drawing area."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]

    def percent(self, value: float) -> float:
        return 100 * (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class _Line:
    """One series, ready to draw: its finite stretches, down-sampled."""

    name: str
    style: str
    points: list[Point]
    stretches: list[list[Point]]


def group_charts(series: Sequence[Series]) -> list[list[Series]]:
    """The series of each chart, in the order in which the charts first appear."""
    charts: dict[str, list[Series]] = {}
    for one in series:
        charts.setdefault(one.chart, []).append(one)
    return list(charts.values())


def finite_points(series: Series) -> list[Point]:
    """The (x, y) pairs that can be drawn, in their order."""
    return [p for p in zip(series.x, series.y, strict=False) if _drawable(p)]


def downsample(points: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """At most `limit` of `points`: the lowest and the highest of each of `limit / 2` stretches, so that spikes stay.

    The first and the last point stay too.
    """
    if len(points) <= limit:
        return list(points)
    buckets = max(limit // 2 - 1, 1)
    kept = {0, len(points) - 1}
    for bucket in range(buckets):
        indices = range(bucket * len(points) // buckets, (bucket + 1) * len(points) // buckets)
        kept.add(min(indices, key=lambda i: points[i][1]))
        kept.add(max(indices, key=lambda i: points[i][1]))
    return [points[i] for i in sorted(kept)]


def nice_step(low: float, high: float, count: int) -> float:
    """The step, 1, 2 or 5 times a power of ten, that leads from `low` to a greater `high` in at most `count` steps.

    It takes at least two fifths of `count`.
    """
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)


def nice_ticks(low: float, high: float, step: float) -> list[float]:
    """The multiples of `step` from `low` to `high`."""
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def chart_figure(chart: Sequence[Series], number: int) -> str:
    """One chart as an HTML figure: title, legend and SVG with `<title>` and `<desc>`.

    Args:
        chart: the series drawn together, at least one; a chart whose series are all of kind "bar" is a bar chart.
        number: counts the charts of the page, for ids.
    """
    title, lines = chart[0].chart, [_line(series, index) for index, series in enumerate(chart)]
    positions = sorted({x for line in lines for x, _ in line.points})
    bars = all(series.kind == "bar" for series in chart) and len(positions) <= _MAX_BARS
    if not positions:
        body, margin = '<text class="empty" x="50%" y="50%" text-anchor="middle">no values to draw</text>', 16
    else:
        y_axis = _y_axis([y for line in lines for _, y in line.points], from_zero=bars)
        slots = _slots(positions) if bars else {}
        x_axis = _slot_axis(slots) if bars else _x_axis(positions)
        marks = _bars(lines, slots, x_axis, y_axis) if bars else _lines(lines, x_axis, y_axis)
        body = _grid(x_axis, y_axis, ticks=not bars) + marks
        margin = 20 + round(6.6 * max((len(label) for _, label in y_axis.ticks), default=0))
    ids = f"chart-{number}"
    return (
        f'<figure class="chart"><figcaption><bdi>{_text(title)}</bdi></figcaption>{_legend(chart, lines, bars=bars)}'
        f'<svg class="plot" role="img" aria-labelledby="{ids}-title {ids}-desc" style="--left:{margin}px">'
        f'<title id="{ids}-title">{_text(title)}</title>'
        f'<desc id="{ids}-desc">{_text(_description(chart, lines, bars=bars))}</desc>'
        f"{body}{_axis_titles(chart[0], margin)}</svg></figure>\n"
    )


def _line(series: Series, index: int) -> _Line:
    """Splits the series where a value is not finite, so that the gap is seen."""
    stretches: list[list[Point]] = [[]]
    for point in zip(series.x, series.y, strict=False):
        if _drawable(point):
            stretches[-1].append(point)
        elif stretches[-1]:
            stretches.append([])
    points = [point for stretch in stretches for point in stretch]
    if len(stretches) > MAX_POINTS // 4:  # more gaps than a chart can show
        stretches = [points]
    share = MAX_POINTS / max(len(points), 1)
    drawn = [downsample(stretch, max(int(share * len(stretch)), 4)) for stretch in stretches if stretch]
    return _Line(series.name, f"s{index % COLOURS}{' dashed' if index >= COLOURS else ''}", points, drawn)


def _drawable(point: Point) -> bool:
    return all(math.isfinite(value) and abs(value) < _LARGEST for value in point)


def _span(values: Sequence[float]) -> tuple[float, float]:
    """Least and greatest value, widened where they are the same to the eye of a float."""
    low, high = min(values), max(values)
    size = max(abs(low), abs(high))
    if high - low > max(size * 1e-9, 1e-290):
        return low, high
    padding = size / 10 if size > 1e-280 else 1.0
    return low - padding, high + padding


def _y_axis(values: Sequence[float], *, from_zero: bool) -> _Axis:
    """From zero for bars and where zero is near; else around the values, with round ends."""
    low, high = _span([*values, 0.0] if from_zero or 0 <= min(values) <= max(values) / 2 else values)
    step = nice_step(low, high, 6)
    low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    return _Axis(low, high, tuple((tick, _tick_label(tick, step)) for tick in nice_ticks(low, high, step)))


def _x_axis(values: Sequence[float]) -> _Axis:
    low, high = _span(values)
    step = nice_step(low, high, 5)  # with more, long labels would touch on a phone
    if all(value == round(value) for value in values):  # there is no half a step
        step = max(step, 1.0)
    return _Axis(low, high, tuple((tick, _tick_label(tick, step)) for tick in nice_ticks(low, high, step)))


def _slots(positions: Sequence[float]) -> dict[float, int]:
    """The place of each bar: by value where the values are evenly spaced (a gap is an empty bin), else by rank."""
    gap = min((b - a for a, b in pairwise(positions)), default=1.0)
    steps = [(x - positions[0]) / gap for x in positions]
    if steps[-1] <= _MAX_BARS and all(abs(step - round(step)) < 1e-6 for step in steps):
        return {x: round(step) for x, step in zip(positions, steps, strict=True)}
    return {x: rank for rank, x in enumerate(positions)}


def _slot_axis(slots: dict[float, int]) -> _Axis:
    every = math.ceil(len(slots) / 8)
    labels = tuple((float(slot), format_value(x)) for x, slot in list(slots.items())[::every])
    return _Axis(-0.5, max(slots.values()) + 0.5, labels)


def _tick_label(value: float, step: float) -> str:
    if abs(value) < step / 1000:
        return "0"
    if step < 1e-6 or abs(value) >= 1e7:
        return format_value(float(f"{value:.12g}"))
    decimals = max(-math.floor(math.log10(step) + 1e-9), 0)
    return f"{value:,.{decimals}f}"


def _grid(x_axis: _Axis, y_axis: _Axis, *, ticks: bool) -> str:
    parts = []
    for value, label in y_axis.ticks:
        at, kind = _percent(100 - y_axis.percent(value)), "zero" if label == "0" else "grid"
        parts.append(f'<line class="{kind}" x1="0" x2="100%" y1="{at}" y2="{at}"/>')
        parts.append(f'<text x="-10" y="{at}" dy=".33em" text-anchor="end">{_text(label)}</text>')
    for value, label in x_axis.ticks:
        at = _percent(x_axis.percent(value))
        if ticks:
            parts.append(f'<line class="grid" x1="{at}" x2="{at}" y1="0" y2="100%"/>')
        parts.append(f'<text x="{at}" y="100%" dy="20" text-anchor="middle">{_text(label)}</text>')
    return "".join(parts)


def _lines(lines: Sequence[_Line], x_axis: _Axis, y_axis: _Axis) -> str:
    """The curves, and a marker with a tooltip at each point of a series that has few."""
    curves, markers = [], []
    for line in lines:
        path = "".join(_path(stretch, x_axis, y_axis) for stretch in line.stretches)
        curves.append(f'<path class="curve {line.style}" vector-effect="non-scaling-stroke" d="{path}"/>')
        alone = [stretch[0] for stretch in line.stretches if len(stretch) == 1]
        for x, y in line.points if len(line.points) <= _MAX_MARKERS else alone[:MAX_POINTS]:
            at = f'cx="{_percent(x_axis.percent(x))}" cy="{_percent(100 - y_axis.percent(y))}"'
            markers.append(
                f'<circle class="{line.style}" {at} r="3"><title>{_tooltip(line.name, x, y)}</title></circle>'
            )
    box = '<svg class="curves" width="100%" height="100%" viewBox="0 0 100 100" preserveAspectRatio="none">'
    return f"{box}{''.join(curves)}</svg>{''.join(markers)}"


def _path(stretch: Sequence[Point], x_axis: _Axis, y_axis: _Axis) -> str:
    places = (f"{_number(x_axis.percent(x))} {_number(100 - y_axis.percent(y))}" for x, y in stretch)
    return "M" + "L".join(places)


def _bars(lines: Sequence[_Line], slots: dict[float, int], x_axis: _Axis, y_axis: _Axis) -> str:
    """Bars of the same x stand side by side in their slot."""
    parts, width = [], 0.8 / len(lines)
    zero = 100 - y_axis.percent(0.0)
    for index, line in enumerate(lines):
        for x, y in line.points:
            left = x_axis.percent(slots[x] - 0.4 + index * width)
            right, top = x_axis.percent(slots[x] - 0.4 + (index + 1) * width), 100 - y_axis.percent(y)
            parts.append(
                f'<rect class="{line.style}" x="{_percent(left)}" width="{_percent(right - left)}"'
                f' y="{_percent(min(top, zero))}" height="{_percent(abs(zero - top))}">'
                f"<title>{_tooltip(line.name, x, y)}</title></rect>"
            )
    return "".join(parts)


def _legend(chart: Sequence[Series], lines: Sequence[_Line], *, bars: bool) -> str:
    """The names of the series, unless the only one says what the title says, and how many values are missing."""
    kind, items = "bar" if bars else "line", []
    said = {_plain(chart[0].chart), _plain(chart[0].y_label), ""}
    if len(lines) > 1 or _plain(lines[0].name) not in said:
        keys = (f'<span class="key {kind} {line.style}"></span><bdi>{_text(line.name)}</bdi>' for line in lines)
        items = [f"<li>{key}</li>" for key in keys]
    skipped = sum(min(len(s.x), len(s.y)) - len(line.points) for s, line in zip(chart, lines, strict=True))
    if skipped:
        items.append(f'<li class="skipped">{plural(skipped, "value")} not drawn: not a finite number</li>')
    return f'<ul class="legend">{"".join(items)}</ul>' if items else ""


def _plain(name: str) -> str:
    return name.casefold().replace("_", " ").strip()


def _axis_titles(series: Series, margin: int) -> str:
    above = f'<text class="axis" x="{-margin}" y="-14">{_text(series.y_label)}</text>' if series.y_label else ""
    below = f'<text class="axis" x="50%" y="100%" dy="42" text-anchor="middle">{_text(series.x_label)}</text>'
    return above + (below if series.x_label else "")


def _description(chart: Sequence[Series], lines: Sequence[_Line], *, bars: bool) -> str:
    """What the chart shows, for those who do not see it."""
    sentences = [f"{'Bar' if bars else 'Line'} chart of {chart[0].y_label or 'values'} by {chart[0].x_label or 'x'}."]
    for line in lines:
        if not line.points:
            sentences.append(f"{line.name}: no values.")
            continue
        (low_x, low), (high_x, high) = (pick(line.points, key=lambda p: p[1]) for pick in (min, max))
        ends = f"first {_shown(line.points[0][1])}, last {_shown(line.points[-1][1])}"
        extremes = f"lowest {_shown(low)} at {_shown(low_x)}, highest {_shown(high)} at {_shown(high_x)}"
        sentences.append(f"{line.name}: {plural(len(line.points), 'point')}, {ends}, {extremes}.")
    return " ".join(sentences)


def _tooltip(name: str, x: float, y: float) -> str:
    return _text(f"{name}, {_shown(x)}: {_shown(y)}" if name else f"{_shown(x)}: {_shown(y)}")


def _shown(value: float) -> str:
    return format_value(value)


def _text(text: str) -> str:
    return escape(visible(text))


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _percent(value: float) -> str:
    return f"{_number(value)}%"
