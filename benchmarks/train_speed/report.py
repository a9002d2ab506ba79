"""The page and the printed tables of a benchmark of training speed."""

from collections.abc import Sequence
from typing import Any

from benchmarks.train_speed.configurations import PARTS
from benchmarks.train_speed.figures import Result, Verdict
from tunesmith.report import Report, Series, Severity, Table

TOOLS = {
    "article": "Trainer + PEFT (the article)",
    "trl": "TRL SFTTrainer",
    "peft": "plain PEFT loop",
    "tunesmith": "Tunesmith",
}
TITLES = {
    "speed": "All linear layers, r = 16",
    "last2": "last:2 from the second epoch on, SmolLM2-135M",
    "last2-1b": "last:2 from the second epoch on, a Llama of 1B shape with random weights",
    "examples": "By the number of examples",
    "budgets": "By the tokens of a micro-batch",
}
COLUMNS = (
    "tool",
    "setting",
    "precision",
    "tokens/s",
    "quartiles",
    "steps",
    "tokens/s, all steps",
    "peak GB",
    "GB after imports",
    "loss, first to last",
)


def cells(one: Result) -> tuple[Any, ...]:
    """A result as a row of `COLUMNS`."""
    if "failed" in one:
        return (TOOLS[one["tool"]], one["name"], one["precision"], "failed", *[None] * 5, one["failed"])
    low, high = one["quartiles"]
    return (
        TOOLS[one["tool"]],
        one["name"],
        one["precision"],
        round(one["median_tokens_per_second"]),
        f"{low:.0f} to {high:.0f}",
        one["steady_steps"],
        round(one["all_tokens_per_second"]),
        round(one["peak_bytes"] / 1e9, 2),
        round(one["baseline_bytes"] / 1e9, 2),
        f"{one['first_loss']:.3f} to {one['last_loss']:.3f}",
    )


def verdict_cells(verdict: Verdict) -> tuple[str, str, str, str]:
    """A verdict in words."""
    if verdict.figure is None:
        return verdict.bar, "none", "not measured", verdict.detail
    is_share = "within" in verdict.bar or "third" in verdict.bar
    figure = f"{100 * verdict.figure:.1f} %" if is_share else f"{verdict.figure:.2f} times"
    return verdict.bar, figure, "met" if verdict.is_met else "not met", verdict.detail


def build_report(outcome: dict[str, Any], judged: Sequence[Verdict]) -> Report:
    """The page: bars as findings and a table, speeds as charts, every configuration as a row."""
    results: list[Result] = outcome["results"]
    report = Report("benchmark", "Training speed of Tunesmith and its peers" + " (smoke run)" * outcome["quick"])
    report.add_figure("device", "Device", outcome["machine"]["device"])
    report.add_figure("precision", "Precision", outcome["precision"])
    for package in ("torch", "transformers", "peft", "trl"):
        report.add_figure(package, package, outcome["machine"][package])
    report.add_figure("data", "Examples", outcome["data"])
    for verdict in judged:
        _add_verdict(report, verdict)
    for one in results:
        if "failed" in one:
            report.add_finding(Severity.ERROR, "failed", f"{TOOLS[one['tool']]}, {one['name']}: {one['failed']}")
    report.series.extend(_series(results))
    report.tables.append(
        Table("Bars", ("bar", "figure", "verdict", "between"), tuple(verdict_cells(verdict) for verdict in judged))
    )
    for part in PARTS:
        rows = tuple(cells(one) for one in results if one["part"] == part)
        if rows:
            report.tables.append(Table(TITLES[part], COLUMNS, rows))
    return report


def _add_verdict(report: Report, verdict: Verdict) -> None:
    bar, figure, said, detail = verdict_cells(verdict)
    severity = Severity.NOTE if verdict.is_met else Severity.ERROR
    report.add_finding(severity, f"bar-{said.replace(' ', '-')}", f"{bar}: {figure}, {said} ({detail})")


def _series(results: Sequence[Result]) -> list[Series]:
    """Speed and memory by batch, speed by size and budget, and the speed of each step of `last:2`."""
    drawn: list[Series] = []
    good = [one for one in results if "failed" not in one]
    for chart, key, factor, unit in (
        ("Speed by batch", "median_tokens_per_second", 1.0, "tokens/s"),
        ("Peak memory by batch", "peak_bytes", 1e-9, "GB"),
    ):
        for tool in TOOLS:
            # Packed runs have no batch in examples, and of several variants at a batch the fastest is drawn.
            rows = sorted(
                (one for one in good if one["part"] == "speed" and one["tool"] == tool and one["x"]),
                key=lambda one: one["median_tokens_per_second"],
            )
            points = sorted({one["x"]: factor * one[key] for one in rows}.items())
            drawn += _bars(chart, TOOLS[tool], points, "examples a step", unit)
    for part, label in (("examples", "examples"), ("budgets", "tokens of a micro-batch")):
        points = [(one["x"], one["median_tokens_per_second"]) for one in good if one["part"] == part]
        drawn += _bars(TITLES[part], "Tunesmith", points, label, "tokens/s")
    for one in good:
        if one["part"].startswith("last2"):
            speeds = tuple(one["tokens_per_second"])
            steps = tuple(float(step) for step in range(1, len(speeds) + 1))
            chart = f"Each step: {TITLES[one['part']]}"
            drawn.append(Series(chart, TOOLS[one["tool"]], steps, speeds, "step", "tokens/s"))
    return drawn


def _bars(chart: str, name: str, points: Sequence[tuple[int, float]], x_label: str, y_label: str) -> list[Series]:
    if not points:
        return []
    x, y = zip(*((float(at), value) for at, value in points), strict=True)
    return [Series(chart, name, x, y, x_label, y_label, "bar")]


def print_tables(outcome: dict[str, Any], judged: Sequence[Verdict]) -> None:
    """Prints every row and every bar."""
    print(f"{outcome['machine']['device']}; {outcome['precision']}; {outcome['data']}")
    print(_aligned([COLUMNS, *(cells(one) for one in outcome["results"])]))
    print()
    print(_aligned([("bar", "figure", "verdict", "between"), *(verdict_cells(verdict) for verdict in judged)]))


def _aligned(rows: Sequence[Sequence[Any]]) -> str:
    texts = [["" if cell is None else str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in texts) for column in range(len(texts[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in texts)
    return "\n".join(lines)
