"""The train stage's report: what trained, how it went, and the curves."""

from collections.abc import Sequence
from typing import Any

from tunesmith.config import TrainSection
from tunesmith.report import Report, Series, Severity, Table
from tunesmith.training.trainer import TrainResult

SHOWN = 3
MOST_EVENTS = 10


def build_report(
    result: TrainResult,
    metrics: Sequence[dict[str, Any]],
    section: TrainSection,
    *,
    trainable: int,
    parameters: int,
    adapter_table: Table,
    device: str,
    precision: str,
    peak_memory_bytes: int,
) -> Report:
    """The report of a finished run.

    Args:
        result: from the trainer.
        metrics: the lines of metrics.jsonl.
        section: the recipe's train section.
        trainable: parameters that train.
        parameters: parameters of model and adapter.
        adapter_table: which modules the adapter sits on.
        device: the device in words.
        precision: fp32, bf16 or fp16.
        peak_memory_bytes: most memory this process has held.
    """
    report = Report("train", "Training")
    state = result.state
    share = 100 * trainable / parameters
    report.add_figure(
        "trainable_parameters", "Parameters that train", trainable, detail=f"{share:.3g} % of {parameters:,}"
    )
    report.add_figure("trainable_share", "Share of parameters that train", round(share, 4), "%")
    report.add_figure("steps", "Optimizer steps", state.step, detail=f"of {result.total_steps} planned")
    report.add_figure("tokens", "Tokens seen", state.tokens)
    report.add_figure("seconds", "Time in training steps", round(state.seconds, 1), "s")
    report.add_figure("tokens_per_second", "Speed", round(state.tokens / max(state.seconds, 1e-9), 1), "tokens/s")
    report.add_figure("peak_memory_gb", "Peak memory of the process", round(peak_memory_bytes / 1e9, 2), "GB")
    report.add_figure("device", "Device", device)
    report.add_figure("precision", "Computed in", precision)
    _add_losses(report, metrics, result)
    report.tables += [adapter_table, result.speedups.table()]
    _add_findings(report, result, section)
    _add_events(report, metrics)
    report.findings += result.health
    _add_curves(report, metrics)
    return report


def _add_losses(report: Report, metrics: Sequence[dict[str, Any]], result: TrainResult) -> None:
    losses = [line["loss"] for line in metrics if "loss" in line]
    validation = {line["step"]: line["eval_loss"] for line in metrics if "eval_loss" in line}
    if losses:
        report.add_figure("first_loss", "Training loss at the start", round(losses[0], 4))
        report.add_figure("last_loss", "Training loss at the end", round(losses[-1], 4))
    if 0 in validation:
        report.add_figure("base_eval_loss", "Validation loss before training", round(validation[0], 4))
    if result.adapter_step in validation:
        report.add_figure(
            "eval_loss",
            "Validation loss of the adapter",
            round(validation[result.adapter_step], 4),
            detail=f"step {result.adapter_step}",
        )


def _add_findings(report: Report, result: TrainResult, section: TrainSection) -> None:
    if result.set_aside:
        report.add_finding(
            Severity.WARNING,
            "checkpoint-set-aside",
            f"{len(result.set_aside)} damaged checkpoints were set aside and an older one used",
            evidence=result.set_aside[:SHOWN],
            remedy="check the disk; the folders can be removed",
        )
    if result.resumed_from:
        report.add_finding(
            Severity.NOTE, "resumed", f"this run went on from its checkpoint of step {result.resumed_from}"
        )
    state = result.state
    if state.stopped_early:
        report.add_finding(
            Severity.NOTE,
            "stopped-early",
            f"the validation loss did not fall in {section.early_stopping_patience} validations; "
            f"training ended at step {state.step} of {result.total_steps}",
        )
    if state.best_step is None:
        report.add_finding(
            Severity.WARNING,
            "no-validation",
            "there is no validation set: overfitting would go unseen, and the adapter is the last one",
            remedy="name one as data.validation",
        )
    elif result.adapter_step != state.step:
        report.add_finding(
            Severity.NOTE,
            "best-adapter",
            f"the adapter is that of step {result.adapter_step}, where the validation loss was lowest "
            f"({state.best_loss:.4f}), not the last of step {state.step}",
        )


def _add_events(report: Report, metrics: Sequence[dict[str, Any]]) -> None:
    """What the run met and mended: memory that ran out, steps left out, adjustments."""
    events = [f"after step {line['step']}: {line['event']}" for line in metrics if "event" in line]
    if events:
        shown = events[:MOST_EVENTS] + ([f"and {len(events) - MOST_EVENTS} more"] if len(events) > MOST_EVENTS else [])
        report.add_finding(
            Severity.WARNING,
            "events",
            f"{len(events)} things happened on the way that a run should not meet",
            evidence=tuple(shown),
            remedy="each names its own; metrics.jsonl holds them all",
        )


def _add_curves(report: Report, metrics: Sequence[dict[str, Any]]) -> None:
    for chart, name, key, label in (
        ("Loss", "train", "loss", "nats a token"),
        ("Loss", "validation", "eval_loss", "nats a token"),
        ("Learning rate", "learning rate", "learning_rate", ""),
        ("Gradient norm, before clipping", "norm", "grad_norm", ""),
        ("Speed", "tokens/s", "tokens_per_second", "tokens/s"),
    ):
        points = [(float(line["step"]), float(line[key])) for line in metrics if key in line]
        if len(points) > 1:
            x, y = zip(*points, strict=True)
            report.series.append(Series(chart, name, x, y, x_label="step", y_label=label))
