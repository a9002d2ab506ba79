"""Figures of the run: gathered between two log lines, written to metrics.jsonl and to the trackers asked for."""

from collections.abc import Mapping

from accelerate import Accelerator

from tunesmith.config import TrainSection
from tunesmith.errors import TrainError
from tunesmith.runs import Run

GIGABYTE = 1e9


class Window:
    """Steps since the last log line."""

    def __init__(self) -> None:
        self._loss_sum = 0.0
        self._targets = 0.0
        self._tokens = 0
        self._seconds = 0.0
        self._last: dict[str, float] = {}

    def add(
        self,
        mean_loss: float,
        targets: float,
        tokens: int,
        seconds: float,
        learning_rate: float,
        grad_norm: float,
        memory_bytes: int,
    ) -> None:
        """Counts one step: its loss in nats a target token, its tokens and its seconds."""
        self._loss_sum += mean_loss * targets
        self._targets += targets
        self._tokens += tokens
        self._seconds += seconds
        self._last = {"learning_rate": learning_rate, "grad_norm": grad_norm, "memory_gb": memory_bytes / GIGABYTE}

    def _figures(self) -> dict[str, float]:
        return {
            "loss": self._loss_sum / self._targets,
            **self._last,
            "tokens_per_second": self._tokens / max(self._seconds, 1e-9),
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
        self._loss_sum = self._targets = self._seconds = 0.0
        self._tokens = 0
        return figures


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
