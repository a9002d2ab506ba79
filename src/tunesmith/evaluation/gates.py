"""The recipe's targets as gates: each that is missed is an error finding, each that is met a note."""

from collections.abc import Mapping

from tunesmith.config import Targets
from tunesmith.evaluation.bootstrap import PairedEstimate
from tunesmith.evaluation.latency import Latency
from tunesmith.report import Report, Severity

AT_LEAST = ("bleu", "rouge_l", "exact_match")
AT_MOST = ("perplexity",)

_QUALITY_REMEDY = "train longer or on more examples, try another learning rate or rank, or lower the target"
_COST_REMEDY = "choose a smaller model or model.precision: bf16, merge the adapter, or raise the target"


def check_gates(
    report: Report,
    estimates: Mapping[str, PairedEstimate],
    latency: Latency | None,
    targets: Targets,
    labels: Mapping[str, str],
) -> None:
    """Adds a finding for each target of the recipe.

    Args:
        report: what the findings are added to.
        estimates: by metric; the tuned model's value is compared with the target.
        latency: the tuned model's, None where it was not measured.
        targets: the gates.
        labels: what a reader calls each metric.
    """
    for name in (*AT_LEAST, *AT_MOST):
        target = getattr(targets, name)
        if target is not None:
            _check(report, name, labels[name], estimates[name].tuned.value, target)
    for name, (label, value) in _costs(latency).items():
        target = getattr(targets, name)
        if target is not None:
            _check_cost(report, name, label, value, target)
    for name in targets.better_than_base:
        _check_better(report, labels[name], estimates[name])


def _check(report: Report, name: str, label: str, value: float, target: float) -> None:
    """Adds the finding of one target; `name` is its key in the recipe, `label` what a reader calls it."""
    # Written so that a figure that is not a number misses its target.
    met = value >= target if name in AT_LEAST else value <= target
    side = "at least" if name in AT_LEAST else "at most"
    if met:
        report.add_finding(Severity.NOTE, "target-met", f"{label} is {value:.4g}; the target is {side} {target:g}")
        return
    report.add_finding(
        Severity.ERROR,
        "target-missed",
        f"{label} is {value:.4g}; the target is {side} {target:g}",
        remedy=_QUALITY_REMEDY if name in (*AT_LEAST, *AT_MOST) else _COST_REMEDY,
    )


def _costs(latency: Latency | None) -> dict[str, tuple[str, float | None]]:
    return {
        "time_to_first_token_ms": ("time to first token in ms", latency.time_to_first_token_ms if latency else None),
        "ms_per_token": ("time per token in ms", latency.ms_per_token if latency else None),
        "peak_memory_gb": ("peak memory in GB", latency.peak_memory_bytes / 1e9 if latency else None),
    }


def _check_cost(report: Report, name: str, label: str, value: float | None, target: float) -> None:
    if value is not None:
        _check(report, name, label, value, target)
        return
    report.add_finding(
        Severity.ERROR,
        "target-not-measured",
        f"evaluate.targets.{name} is set, but the {label} was not measured",
        remedy="set evaluate.latency_requests to at least 1, or take the target out; a time per token needs "
        "answers of two tokens or more",
    )


def _check_better(report: Report, label: str, paired: PairedEstimate) -> None:
    gain = paired.gain
    interval = f"{100 * paired.confidence:g} % interval {gain.low:.4g} to {gain.high:.4g}"
    figures = f"{label}: {paired.base.value:.4g} to {paired.tuned.value:.4g}, gain {gain.value:.4g} ({interval})"
    if paired.is_better:
        report.add_finding(Severity.NOTE, "better-than-base", f"the tuned model is better than the base in {figures}")
        return
    report.add_finding(
        Severity.ERROR,
        "not-better-than-base",
        f"the tuned model is not surely better than the base in {figures}; the interval must lie above zero",
        remedy="train longer or on more examples; add test examples if the gain is real but the interval wide",
    )
