import json
import math

import numpy as np
import pytest
from hypothesis import given, settings

from tests.report.examples import HOSTILE, full_report, hostile_report, reports
from tunesmith.report import Report, Series, Severity


def test_a_report_passes_unless_a_finding_is_an_error() -> None:
    report = Report("check", "Data")
    assert report.passed
    report.add_finding(Severity.WARNING, "w", "a warning")
    report.add_finding(Severity.NOTE, "n", "a note")
    assert report.passed
    report.add_finding(Severity.ERROR, "e", "an error")
    assert not report.passed
    assert [finding.code for finding in report.errors] == ["e"]


def test_findings_are_sorted_by_severity_and_counted() -> None:
    report = full_report()
    report.add_finding(Severity.WARNING, "second", "another")
    assert [f.code for f in report.sorted_findings] == ["target-missed", "empty-answers", "second", "tokenisation"]
    assert report.summary == "1 error, 2 warnings, 1 note"
    assert Report("check", "Data").summary == "no findings"


def test_a_figure_is_found_by_its_name() -> None:
    assert full_report().figure("trainable") == 4884480
    with pytest.raises(KeyError):
        full_report().figure("no such figure")


@settings(deadline=None)
@given(report=reports)
def test_a_report_survives_the_way_through_plain_data(report: Report) -> None:
    assert repr(Report.from_dict(report.to_dict())) == repr(report)  # repr, as NaN is not equal to itself


@settings(deadline=None)
@given(report=reports)
def test_the_json_text_is_strict_and_reads_back(report: Report) -> None:
    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is no JSON")

    text = report.to_json()
    text.encode("utf-8")
    again = Report.from_dict(json.loads(text, parse_constant=refuse))
    assert again.findings == report.findings
    assert again.samples == report.samples
    assert again.passed == report.passed
    for before, after in zip(report.series, again.series, strict=True):
        expected = [y if math.isfinite(y) else math.nan for y in before.y]
        np.testing.assert_array_equal(np.array(after.y), np.array(expected))


def test_hostile_texts_come_back_from_json_unchanged() -> None:
    assert Report.from_dict(json.loads(hostile_report().to_json())) == hostile_report()
    assert HOSTILE in json.loads(hostile_report().to_json())["title"]


def test_numbers_of_numpy_stay_numbers_in_json() -> None:
    report = Report("train", "Run")
    report.add_figure("loss", "Loss", np.float32(0.5))  # type: ignore[arg-type]
    report.add_figure("steps", "Steps", np.int64(3))  # type: ignore[arg-type]
    report.add_figure("best", "Best", math.inf)
    report.series.append(Series("Loss", "train", (np.float64(1.0),), (np.float64(np.nan),)))
    data = json.loads(report.to_json())
    assert [figure["value"] for figure in data["figures"]] == [0.5, 3, None]
    assert data["series"][0]["x"] == [1.0]
    assert math.isnan(Report.from_dict(data).series[0].y[0])


def test_a_finding_says_how_many_rows_it_is_about_in_json() -> None:
    report = Report("check", "Title")
    report.add_finding(Severity.WARNING, "w", "3 rows of train", count=3)
    report.add_finding(Severity.NOTE, "n", "a note")
    written = json.loads(report.to_json())
    assert [one["count"] for one in written["findings"]] == [3, None]
    assert Report.from_dict(written) == report
    for one in written["findings"]:  # as an earlier version wrote it
        del one["count"]
    assert [one.count for one in Report.from_dict(written).findings] == [None, None]
