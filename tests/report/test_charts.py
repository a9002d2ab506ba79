import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.report.examples import HOSTILE
from tunesmith.report import Series
from tunesmith.report.charts import (
    MAX_POINTS,
    chart_figure,
    downsample,
    finite_points,
    group_charts,
    nice_step,
    nice_ticks,
)


def _chart(*series: Series) -> ElementTree.Element:
    return ElementTree.fromstring(chart_figure(series, 1))


def _texts(figure: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in figure.iter("text")]


def _curve(figure: ElementTree.Element, index: int = 0) -> list[list[tuple[float, float]]]:
    """The stretches of a curve as (x, y) in percent of the drawing area, y downwards."""
    path = list(figure.iter("path"))[index].get("d") or ""
    pairs = [[tuple(map(float, pair.split())) for pair in part.split("L")] for part in path.split("M")[1:]]
    return [[(pair[0], pair[1]) for pair in stretch] for stretch in pairs]


def test_series_of_one_chart_are_drawn_together_in_their_order() -> None:
    series = [Series(chart, name, (), ()) for chart, name in (("b", "1"), ("a", "2"), ("b", "3"))]
    assert [[one.name for one in chart] for chart in group_charts(series)] == [["1", "3"], ["2"]]


def test_a_curve_goes_where_the_values_are() -> None:
    figure = _chart(Series("Loss", "train", (0, 5, 10), (4.0, 0.0, 2.0), "step", "loss"))
    assert _curve(figure) == [[(0, 0), (50, 100), (100, 50)]]
    assert {"0", "4", "10", "step", "loss"} <= set(_texts(figure))


def test_a_gap_is_left_where_a_value_is_not_finite() -> None:
    figure = _chart(Series("Loss", "train", (0, 1, 2, 3, 4), (1.0, 2.0, math.nan, math.inf, 0.0)))
    assert [len(stretch) for stretch in _curve(figure)] == [2, 1]
    assert "2 values not drawn" in "".join(figure.itertext())


@pytest.mark.parametrize("y", [(), (math.nan, math.nan), (math.inf,)])
def test_a_chart_without_values_says_so(y: tuple[float, ...]) -> None:
    assert "no values to draw" in _texts(_chart(Series("Loss", "train", y, y)))


def test_a_long_series_keeps_its_spikes() -> None:
    ys = [1.0] * 20_000
    ys[777], ys[15_000] = 9.0, -3.0
    figure = _chart(Series("Loss", "train", tuple(range(20_000)), tuple(ys)))
    (stretch,) = _curve(figure)
    heights = [y for _, y in stretch]
    assert len(stretch) <= MAX_POINTS
    assert min(heights) < 12
    assert heights.count(min(heights)) == 1
    assert max(heights) > 90
    assert (stretch[0][0], stretch[-1][0]) == (0, 100)


@settings(deadline=None)
@given(ys=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300), limit=st.integers(4, 50))
def test_down_sampling_keeps_the_extremes_the_ends_and_the_order(ys: list[float], limit: int) -> None:
    points = list(enumerate(ys))
    kept = downsample([(float(x), y) for x, y in points], limit)
    assert len(kept) <= max(limit, 4)
    assert kept == sorted(kept, key=lambda point: point[0])
    assert {kept[0], kept[-1]} == {(0.0, ys[0]), (float(len(ys) - 1), ys[-1])}
    assert min(y for _, y in kept) == min(ys)
    assert max(y for _, y in kept) == max(ys)


@settings(deadline=None)
@given(low=st.floats(-1e6, 1e6), span=st.floats(1e-3, 1e9), count=st.integers(3, 8))
def test_ticks_are_round_and_within(low: float, span: float, count: int) -> None:
    step = nice_step(low, low + span, count)
    ticks = nice_ticks(low, low + span, step)
    assert f"{step:e}"[0] in "125"
    assert 1 <= len(ticks) <= count + 1
    assert all(low - step * 1e-6 <= tick <= low + span + step * 1e-6 for tick in ticks)
    assert all(abs(tick / step - round(tick / step)) < 1e-4 for tick in ticks)


def test_whole_steps_get_whole_ticks() -> None:
    figure = _chart(Series("Loss", "train", (1, 2, 3), (10.0, 20.0, 30.0)))
    assert [text for text in _texts(figure) if text in ("1", "2", "3", "1.5")] == ["1", "2", "3"]


def test_bars_stand_on_zero_side_by_side() -> None:
    figure = _chart(
        Series("Lengths", "train", (16, 32), (10.0, 5.0), kind="bar"),
        Series("Lengths", "test", (16, 32), (4.0, -5.0), kind="bar"),
    )
    bars = [{key: float((bar.get(key) or "").rstrip("%")) for key in ("x", "y", "width", "height")}
            for bar in figure.iter("rect")]  # fmt: skip
    first, second, third, below = bars
    zero = pytest.approx(200 / 3, abs=0.03)
    for foot in (first["y"] + first["height"], second["y"] + second["height"], below["y"]):
        assert foot == zero
    assert first["x"] + first["width"] == pytest.approx(third["x"], abs=0.02)
    assert first["height"] == pytest.approx(2 * second["height"], abs=0.02)
    assert {"16", "32"} <= set(_texts(figure))


def test_missing_bins_leave_room_and_uneven_ones_do_not() -> None:
    def lefts(xs: tuple[float, ...]) -> list[float]:
        figure = _chart(Series("Lengths", "train", xs, (1.0,) * len(xs), kind="bar"))
        return [float((bar.get("x") or "").rstrip("%")) for bar in figure.iter("rect")]

    a, b, c = lefts((10, 20, 50))
    assert c - b == pytest.approx(3 * (b - a), abs=0.1)
    a, b, c = lefts((1, 10, 11.3))
    assert c - b == pytest.approx(b - a, abs=0.1)


def test_a_series_of_few_points_has_markers_with_their_values() -> None:
    figure = _chart(Series("Loss", "validation", (100, 200), (0.5, 0.25)))
    assert [title.text for circle in figure.iter("circle") for title in circle] == [
        "validation, 100: 0.5", "validation, 200: 0.25"
    ]  # fmt: skip


def test_the_chart_is_described_for_those_who_do_not_see_it() -> None:
    svg = next(_chart(Series("Loss", "train", (1, 2, 3), (3.0, 1.0, 2.0), "step", "loss")).iter("svg"))
    title, description = svg.find("title"), svg.find("desc")
    assert title is not None
    assert title.text == "Loss"
    assert description is not None
    assert description.text == (
        "Line chart of loss by step. train: 3 points, first 3, last 2, lowest 1 at 2, highest 3 at 1."
    )
    assert svg.get("role") == "img"
    assert svg.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"


def test_a_legend_is_left_out_where_it_would_repeat_the_title() -> None:
    assert not list(_chart(Series("Learning rate", "learning_rate", (1,), (1.0,))).iter("ul"))
    assert len(list(_chart(Series("Loss", "a", (1,), (1.0,)), Series("Loss", "b", (1,), (2.0,))).iter("li"))) == 2


@pytest.mark.parametrize("kind", ["line", "bar"])
def test_hostile_names_are_text(kind: str) -> None:
    series = Series(HOSTILE, HOSTILE, (1, 2), (1.0, 2.0), HOSTILE, HOSTILE, kind)
    assert {element.tag for element in _chart(series, series).iter()} <= {
        "figure", "figcaption", "bdi", "ul", "li", "span", "svg", "title", "desc", "line", "text", "path", "circle",
        "rect",
    }  # fmt: skip


any_values = st.lists(st.floats(), max_size=12).map(tuple)


@settings(deadline=None)
@given(data=st.lists(st.tuples(any_values, any_values), min_size=1, max_size=10), kind=st.sampled_from(("line", "bar")))
def test_any_values_give_coordinates_in_the_drawing_area(
    data: list[tuple[tuple[float, ...], tuple[float, ...]]], kind: str
) -> None:
    series = [Series("Chart", str(index), x, y, kind=kind) for index, (x, y) in enumerate(data)]
    markup = chart_figure(series, 1)
    figure = ElementTree.fromstring(markup)
    assert not re.search(r'="[^"]*(nan|inf)', markup)
    for index in range(len(list(figure.iter("path")))):
        assert all(
            -0.01 <= value <= 100.01 for stretch in _curve(figure, index) for point in stretch for value in point
        )
    for bar in figure.iter("rect"):
        assert all(-0.01 <= float((bar.get(key) or "").rstrip("%")) <= 100.01 for key in ("x", "y", "width", "height"))


def test_finite_points_pair_what_both_have() -> None:
    assert finite_points(Series("c", "n", (1, 2, 3), (5.0, math.nan))) == [(1, 5.0)]
