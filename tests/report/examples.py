"""Reports for the tests: one that uses every part, and hypothesis strategies for any."""

import math

from hypothesis import strategies as st

from tunesmith.report import Figure, Finding, Report, Sample, Series, Severity, Table

HOSTILE = "<script>alert('x')</script>&amp;\"'[red]\x1b[31m\x07\x9b\u202egnp\u2028\u2066:smile:\ud800"
"""Markup of HTML and of rich, an escape sequence, a bell, controls of C1, direction overrides, a lone surrogate."""


def full_report() -> Report:
    """A report with something of everything, findings not in the order of their severity."""
    report = Report("evaluate", "Orders: base and tuned")
    report.add_finding(Severity.NOTE, "tokenisation", "BLEU compares words")
    report.add_finding(
        Severity.ERROR,
        "target-missed",
        "bleu is 0.27, below 0.30",
        evidence=tuple(f"test.jsonl:{line}" for line in range(1, 8)),
        remedy="train for more epochs",
    )
    report.add_finding(Severity.WARNING, "empty-answers", "3 of 120 answers are empty")
    report.add_figure("trainable", "Trainable parameters", 4884480, "", "3.50 % of 139,399,104")
    report.add_figure("memory", "Peak memory", 1.87342, "GB")
    steps = tuple(float(step) for step in range(1, 101))
    report.series.append(Series("Loss", "train", steps, tuple(3 / s for s in steps), "step", "loss"))
    report.series.append(Series("Loss", "validation", (50.0, 100.0), (0.5, math.nan), "step", "loss"))
    report.series.append(Series("Lengths", "train", (16.0, 32.0, 64.0), (3.0, 9.0, 4.0), "tokens", "examples", "bar"))
    report.tables.append(Table("Scores", ("metric", "base", "tuned"), (("BLEU", 0.0312, 0.2712), ("em", None, 0.78))))
    report.samples.append(Sample("test.jsonl:1", (("prompt", "你好，三箱茶"), ("base", ""), ("tuned", "a\n  b"))))
    return report


def hostile_report(text: str = HOSTILE) -> Report:
    """A report with `text` wherever a text can stand."""
    return Report(
        stage=text,
        title=text,
        findings=[Finding(text, severity, text, (text, text), text) for severity in Severity],
        figures=[Figure("name", text, text, text, text)],
        tables=[Table(text, (text, text), ((text, 1.5), (text, 2)))],
        series=[
            Series(text, text, (1.0, 2.0), (1.0, 2.0), text, text),
            Series(text + "bars", text, (1.0, 2.0), (1.0, 2.0), text, text, "bar"),
        ],
        samples=[Sample(text, ((text, text), (text, "")))],
    )


_texts = st.text(st.characters(), max_size=12)
_scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _texts
_values = st.lists(st.floats(), max_size=8).map(tuple)

reports = st.builds(
    Report,
    stage=_texts,
    title=_texts,
    findings=st.lists(
        st.builds(Finding, _texts, st.sampled_from(Severity), _texts, st.lists(_texts, max_size=4).map(tuple), _texts),
        max_size=3,
    ),
    figures=st.lists(st.builds(Figure, _texts, _texts, _scalars, _texts, _texts), max_size=3),
    tables=st.lists(
        st.builds(
            Table,
            _texts,
            st.lists(_texts, max_size=4).map(tuple),
            st.lists(st.lists(_scalars, max_size=5).map(tuple), max_size=4).map(tuple),
        ),
        max_size=2,
    ),
    series=st.lists(
        st.builds(Series, _texts, _texts, _values, _values, _texts, _texts, st.sampled_from(("line", "bar"))),
        max_size=4,
    ),
    samples=st.lists(st.builds(Sample, _texts, st.lists(st.tuples(_texts, _texts), max_size=4).map(tuple)), max_size=2),
)
"""Any report, with ragged tables and series, and values that are not finite."""
