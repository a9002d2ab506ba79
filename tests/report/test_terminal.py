import io
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from tests.report.examples import full_report, hostile_report, reports
from tunesmith.report import Report, Sample, Series, Severity, Table
from tunesmith.report.terminal import SAMPLES, print_report, sparkline
from tunesmith.report.text import HIDDEN


def _printed(report: Report, *, width: int = 80, verbose: bool = False, colour: bool = False) -> str:
    stream = io.StringIO()
    system = "truecolor" if colour else None
    console = Console(file=stream, width=width, force_terminal=colour, color_system=system, legacy_windows=False)  # type: ignore[arg-type]
    print_report(report, console, verbose=verbose)
    return stream.getvalue()


def test_the_report_is_printed_in_aligned_lines() -> None:
    lines = [line.rstrip() for line in _printed(full_report()).splitlines()]
    assert lines[:2] == ["Orders: base and tuned", "evaluate ✗ failed (1 error, 1 warning, 1 note)"]
    assert "  ✗ error    bleu is 0.27, below 0.30 (target-missed)" in lines
    assert "  ! warning  3 of 120 answers are empty (empty-answers)" in lines
    assert "             Remedy: train for more epochs" in lines
    assert "  Trainable parameters  4,884,480  3.50 % of 139,399,104" in lines
    assert "  Peak memory           1.873 GB" in lines
    assert "  metric    base   tuned" in lines
    assert "  BLEU    0.0312  0.2712" in lines
    assert "    prompt  你好，三箱茶" in lines
    assert "    base    (empty)" in lines


def test_findings_come_errors_first() -> None:
    text = _printed(full_report())
    assert text.index("target-missed") < text.index("empty-answers") < text.index("tokenisation")


def test_a_series_is_one_line_with_its_first_least_greatest_and_last_value() -> None:
    report = Report("train", "Run")
    report.series.append(Series("Loss", "train", (1, 2, 3, 4), (4.0, 1.0, math.nan, 2.5), "step", "loss"))
    report.series.append(Series("Loss", "nothing", (1,), (math.nan,)))
    text = _printed(report)
    assert "Loss  loss by step" in text
    assert re.search(r"train +█▁▅ +4 +1 +4 +2\.5", text)
    assert re.search(r"nothing +no values", text)


def test_bars_stand_over_their_axis() -> None:
    report = Report("check", "Data")
    xs = tuple(float(20 * n) for n in range(1, 11))
    ys = (0.0, 1.0, 80.0, 40.0, 0.0, 0.0, 10.0, 0.0, 0.0, 2.0)
    report.series.append(Series("Lengths", "examples", xs, ys, "tokens, up to", "examples", "bar"))
    lines = [line.rstrip() for line in _printed(report).splitlines()]
    at = lines.index("Lengths  examples by tokens, up to")
    assert lines[at + 1 : at + 4] == ["    ▁▁██▄▄    ▁▁    ▁▁", "  20               200", "  highest: 80 at 60"]


def test_without_verbose_long_parts_are_shortened_and_it_says_so() -> None:
    report = full_report()
    report.tables.append(Table("Long", ("row",), tuple((f"row-{i}",) for i in range(30))))
    report.samples += [Sample(f"sample-{i}", (("tuned", "word " * 400 + "the end"),)) for i in range(9)]
    short, whole = _printed(report), _printed(report, verbose=True)
    assert "and 4 more" in short
    assert "and 10 more rows" in short
    assert f"Samples ({SAMPLES} of 10)" in short
    assert "…" in short
    for text in ("test.jsonl:7", "row-29", "sample-8", "the end"):
        assert text not in short
        assert text in whole


@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.parametrize("colour", [False, True])
def test_nothing_of_a_users_text_reaches_the_terminal_as_a_command(verbose: bool, colour: bool) -> None:
    text = _printed(hostile_report(), verbose=verbose, colour=colour)
    without_own_styles = re.sub(r"\x1b\[[0-9;]*m", "", text) if colour else text
    assert not HIDDEN.search(without_own_styles)
    assert "\x1b[31m\x07" not in text
    flat = re.sub(r"\s", "", without_own_styles)
    assert "[red][U+001B][31m" in flat  # neither rich nor the terminal took it for a colour
    assert ":smile:" in flat


def test_a_table_that_is_too_wide_is_printed_row_by_row() -> None:
    heads = ("model", *(f"measurement-{i}" for i in range(9)))
    report = Report(
        "evaluate", "t", tables=[Table("Wide", heads, (("base", *range(1000, 1009)), ("tuned", *range(9))))]
    )
    lines = [line.rstrip() for line in _printed(report, width=60).splitlines()]
    assert "  base" in lines
    assert "    measurement-8  1,008" in lines


def test_a_column_of_numbers_is_never_broken() -> None:
    table = Table("Speed", ("model", *["peak memory in megabytes"] * 5), (("base", *[134_515_008] * 5),))
    assert _printed(Report("evaluate", "t", tables=[table])).count("134,515,008") == 5


def test_a_stream_without_unicode_gets_ascii() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", errors="strict")
    report = full_report()
    report.samples.append(Sample("long", (("tuned", "x\n" * 500),)))
    print_report(report, Console(file=stream, width=80))
    stream.flush()
    text = raw.getvalue().decode("ascii")
    assert "evaluate failed" in text
    assert "\\u4f60" in text


def test_the_default_is_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(full_report())
    assert "Orders: base and tuned" in capsys.readouterr().out


@settings(deadline=None)
@given(values=st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=60), width=st.integers(1, 30))
def test_a_sparkline_fits_its_width(values: list[float], width: int) -> None:
    assert len(sparkline(values, width)) == min(len(values), width)


def test_a_sparkline_rises_with_its_values() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([5.0, 5.0]) == "▁▁"


@settings(deadline=None)
@given(report=reports, width=st.sampled_from((30, 80)), verbose=st.booleans())
def test_any_report_is_printed_within_the_width(report: Report, width: int, verbose: bool) -> None:
    text = _printed(report, width=width, verbose=verbose)
    assert not HIDDEN.search(text)
    assert all(cell_len(line) <= width for line in text.split("\n"))
    assert report.summary.split(",")[0].split()[0] in text


def test_severities_differ_without_colour() -> None:
    report = Report("check", "t")
    for severity in Severity:
        report.add_finding(severity, "code", "message")
    for word in ("✗ error ", "! warning ", "· note "):
        assert word in _printed(report)
