"""Figures of the run: gathered between two log lines, written to metrics.jsonl and to the trackers asked for."""

from collections.abc import Mapping

from accelerate import Accelerator

from tunesmith.config import TrainSection
from tunesmith.errors import TrainError
from tunesmith.runs import Run
from tunesmith.training.health import StepFigures

GIGABYTE = 1e9


class Window:
    """Steps since the last log line.

    Args:
        sums: where the sums are kept, so that they are saved with the run's state and go on after a resume.
    """

    def __init__(self, sums: dict[str, float]) -> None:
        self._sums = sums
        if not sums:
            self._clear()

    @property
    def is_empty(self) -> bool:
        """Whether no step was added since the last log line."""
        return self._sums["targets"] == 0

    def add(self, figures: StepFigures, *, targets: float) -> None:
        """Counts one step of `targets` trained tokens, each counted with its example's weight."""
        self._sums["loss"] += figures.loss * targets
        self._sums["targets"] += targets
        self._sums["tokens"] += figures.tokens
        self._sums["seconds"] += figures.seconds
        self._sums["learning_rate"] = figures.learning_rate
        self._sums["grad_norm"] = figures.grad_norm
        self._sums["memory_gb"] = figures.memory_bytes / GIGABYTE

    def _figures(self) -> dict[str, float]:
        sums = self._sums
        return {
            "loss": sums["loss"] / (sums["targets"] or 1.0),
            **{key: sums[key] for key in ("learning_rate", "grad_norm", "memory_gb")},
            "tokens_per_second": sums["tokens"] / max(sums["seconds"], 1e-9),
        }

    def note(self) -> str:
        """The figures as the progress line shows them."""
        now = self._figures()
        return (
            f"loss {now['loss']:.3f} · lr {now['learning_rate']:.1e} · "
            f"{now['tokens_per_second']:.0f} tokens/s · {now['memory_gb']:.1f} GB"
        )

    def take(self) -> dict[str, float]:
        """The figures for the log; the window starts anew."""
        figures = self._figures()
        self._clear()
        return figures

    def _clear(self) -> None:
        keys = ("loss", "targets", "tokens", "seconds", "learning_rate", "grad_norm", "memory_gb")
        self._sums.update(dict.fromkeys(keys, 0.0))


class Trackers:
    """metrics.jsonl, and those of accelerate's trackers that the recipe names.

    Args:
        accelerator: made with the section's `report_to`.
        section: recorded with the trackers as the run's configuration.
        run: where metrics.jsonl is.

    Raises:
        TrainError: a tracker cannot start.
    """

    def __init__(self, accelerator: Accelerator, section: TrainSection, run: Run) -> None:
        self._accelerator = accelerator
        self._run = run
        if not section.report_to:
            return
        settings = {key: value for key, value in section if isinstance(value, (int, float, str))}
        try:
            accelerator.init_trackers("tunesmith", config=settings)
        except Exception as error:  # Each tracker has errors of its own kind.
            raise TrainError(
                f"a tracker cannot start: {error}",
                place="train.report_to",
                remedy="sign in to it or start its server, or leave it out of train.report_to",
            ) from error

    def log(self, figures: Mapping[str, float]) -> None:
        """Writes figures that belong to figures["step"]; nothing if there are no others."""
        if len(figures) <= 1:
            return
        if self._accelerator.is_main_process:
            self._run.append_metrics(figures)
        step = int(figures["step"])
        self._accelerator.log({key: value for key, value in figures.items() if key != "step"}, step=step)

    def close(self) -> None:
        """Lets the trackers write what they hold."""
        for tracker in self._accelerator.trackers:
            tracker.finish()
