"""The data of a report: findings, figures, tables, series and samples; to JSON and back."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from tunesmith.report.text import plural

Scalar = str | int | float | bool | None

_SURROGATE = re.compile("[\ud800-\udfff]")


class Severity(str, Enum):
    """How much a finding matters: an error stops the pipeline, a warning and a note do not."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True)
class Finding:
    """One thing found, with what shows it and what to do.

    Args:
        code: a stable kebab-case name, as "answers-cut".
        severity: error, warning or note.
        message: one sentence with the figures.
        evidence: examples or places, one line each.
        remedy: what to do; empty for a note that asks for nothing.
        count: how many rows, examples or texts it is about; None where it is not about a number of them.
    """

    code: str
    severity: Severity
    message: str
    evidence: tuple[str, ...] = ()
    remedy: str = ""
    count: int | None = None


@dataclass(frozen=True)
class Figure:
    """One named number, as ("Trainable parameters", 4884480, "").

    Args:
        name: a stable snake_case key.
        label: what a person reads.
        value: the number or a short text.
        unit: "GB", "ms", "%" or empty.
        detail: an interval or a condition, as "95 % interval 0.61 to 0.78".
    """

    name: str
    label: str
    value: Scalar
    unit: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Table:
    """A small table: `rows` hold as many cells as there are `columns`."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Scalar, ...], ...]


@dataclass(frozen=True)
class Series:
    """One line (or bar group) of a chart; series of the same `chart` are drawn together.

    Args:
        chart: title of the chart.
        name: name of this line.
        x: the x values.
        y: as many y values.
        x_label: what x counts, as "step".
        y_label: what y measures, as "loss".
        kind: "line" or "bar".
    """

    chart: str
    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    x_label: str = ""
    y_label: str = ""
    kind: str = "line"


@dataclass(frozen=True)
class Sample:
    """Texts side by side: `texts` holds (heading, text) pairs, as ("prompt", ...), ("base", ...), ("tuned", ...)."""

    title: str
    texts: tuple[tuple[str, str], ...]


@dataclass
class Report:
    """What a stage found and measured.

    Args:
        stage: "check", "train", "evaluate", "export" or "doctor".
        title: one line for the head of the page.
    """

    stage: str
    title: str
    findings: list[Finding] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    series: list[Series] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    @property
    def errors(self) -> list[Finding]:
        """Findings that stop the pipeline."""
        return [finding for finding in self.findings if finding.severity is Severity.ERROR]

    @property
    def passed(self) -> bool:
        """Whether no finding is an error."""
        return not self.errors

    @property
    def sorted_findings(self) -> list[Finding]:
        """Errors first, then warnings, then notes; within each, in the order found."""
        order = list(Severity)
        return sorted(self.findings, key=lambda finding: order.index(finding.severity))

    @property
    def summary(self) -> str:
        """How many findings of each severity, as "1 error, 2 warnings", or "no findings"."""
        severities = [finding.severity for finding in self.findings]
        counts = [plural(severities.count(one), one.value) for one in Severity if one in severities]
        return ", ".join(counts) or "no findings"

    def add_finding(
        self,
        severity: Severity,
        code: str,
        message: str,
        *,
        evidence: tuple[str, ...] = (),
        remedy: str = "",
        count: int | None = None,
    ) -> None:
        """Adds a finding."""
        self.findings.append(Finding(code, severity, message, evidence, remedy, count))

    def add_figure(self, name: str, label: str, value: Scalar, unit: str = "", detail: str = "") -> None:
        """Adds a figure."""
        self.figures.append(Figure(name, label, value, unit, detail))

    def figure(self, name: str) -> Scalar:
        """The value of the figure called `name`.

        Raises:
            KeyError: there is none.
        """
        for one in self.figures:
            if one.name == name:
                return one.value
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; `from_dict` reads it back."""
        return {"format": 1, "passed": self.passed, **dataclasses.asdict(self)}

    def to_json(self) -> str:
        """The report as JSON text that every reader takes, ending in a newline.

        JSON has no NaN and no infinity: they become null, which `from_dict` reads as NaN in a series. Surrogates that
        UTF-8 cannot hold are written as escapes.
        """
        text = json.dumps(_plain(self.to_dict()), ensure_ascii=False, indent=2, allow_nan=False)
        return _SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text) + "\n"

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Report:
        """The report that `to_dict` wrote."""
        return cls(
            stage=data["stage"],
            title=data["title"],
            findings=[
                Finding(**{**f, "severity": Severity(f["severity"]), "evidence": tuple(f["evidence"])})
                for f in data["findings"]
            ],
            figures=[Figure(**f) for f in data["figures"]],
            tables=[
                Table(t["title"], tuple(t["columns"]), tuple(tuple(row) for row in t["rows"])) for t in data["tables"]
            ],
            series=[Series(**{**s, "x": _numbers(s["x"]), "y": _numbers(s["y"])}) for s in data["series"]],
            samples=[Sample(s["title"], tuple((head, text) for head, text in s["texts"])) for s in data["samples"]],
        )


def _numbers(values: Iterable[float | None]) -> tuple[float, ...]:
    return tuple(math.nan if value is None else value for value in values)


def _plain(value: Any) -> Any:
    """`value` in JSON's own types: numbers of numpy and torch as Python's, what is not finite as None."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, (str, int)):
        return value
    return _plain(value.item()) if hasattr(value, "item") else str(value)
