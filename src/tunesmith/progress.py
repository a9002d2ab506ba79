"""Progress of long work: what, how far, how long still.

On a terminal a live line; elsewhere (a log, CI) one line every few seconds, so that a log shows life without being
flooded. All of it goes to standard error; standard output belongs to results.
"""

import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TextIO, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

T = TypeVar("T")

FIRST_LINE_SECONDS = 2.0
LINE_EVERY_SECONDS = 10.0


def format_seconds(seconds: float) -> str:
    """`seconds` as 8s, 1:05 or 2:03:04."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


class Task:
    """One piece of long work; made by `task`.

    Args:
        what: what is being done, as "Training".
        total: how many units there are, or None where that is not known.
        unit: the unit's name, as "steps".
    """

    def __init__(self, what: str, total: int | None, unit: str) -> None:
        self.what = what
        self.total = total
        self.unit = unit
        self.done = 0
        self.note = ""
        self._started = time.monotonic()
        self._first_done = 0

    def start_at(self, done: int) -> None:
        """Says that `done` units were already done before this process; they do not count for the speed."""
        self.done = self._first_done = done
        self._started = time.monotonic()

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Counts `count` more units done; `note` replaces the figures shown beside."""
        self.done += count
        if note is not None:
            self.note = note

    @property
    def seconds(self) -> float:
        """Seconds since the work began."""
        return time.monotonic() - self._started

    @property
    def seconds_left(self) -> float | None:
        """Forecast from the mean speed so far; None where nothing is known."""
        done_here = self.done - self._first_done
        if self.total is None or done_here <= 0:
            return None
        return self.seconds / done_here * max(self.total - self.done, 0)

    def line(self) -> str:
        """The figures in one line."""
        parts = []
        if self.total:
            parts.append(f"{self.done}/{self.total} {self.unit} ({100 * self.done // self.total}%)".replace(" (", " ("))
        elif self.done:
            parts.append(f"{self.done} {self.unit}")
        if self.note:
            parts.append(self.note)
        left = self.seconds_left
        parts.append(f"{format_seconds(self.seconds)} so far" if left is None else f"{format_seconds(left)} left")
        return " · ".join(part.strip() for part in parts)


class _LogPrinter(threading.Thread):
    """Prints a task's line into a log: after `FIRST_LINE_SECONDS`, then every `LINE_EVERY_SECONDS`."""

    def __init__(self, watched: Task, stream: TextIO) -> None:
        super().__init__(daemon=True, name="progress")
        self._watched = watched
        self._stream = stream
        self._finished = threading.Event()

    def run(self) -> None:
        wait = FIRST_LINE_SECONDS
        while not self._finished.wait(wait):
            self._print(self._watched.line())
            wait = LINE_EVERY_SECONDS

    def finish(self) -> None:
        self._finished.set()
        self.join()
        if self._watched.seconds >= FIRST_LINE_SECONDS:
            self._print(f"done in {format_seconds(self._watched.seconds)}")

    def _print(self, text: str) -> None:
        print(f"{self._watched.what}: {text}", file=self._stream, flush=True)


class _LivePrinter(threading.Thread):
    """Redraws a task's line on a terminal four times a second."""

    def __init__(self, watched: Task, console: Console) -> None:
        super().__init__(daemon=True, name="progress")
        self._watched = watched
        self._finished = threading.Event()
        columns = (SpinnerColumn(), TextColumn("[bold]{task.description}"))
        bar = (BarColumn(bar_width=24),) if watched.total else ()
        self._progress = Progress(*columns, *bar, TextColumn("{task.fields[line]}"), console=console, transient=True)
        self._id: TaskID = self._progress.add_task(watched.what, total=watched.total, line="")
        self._progress.start()

    def run(self) -> None:
        while not self._finished.wait(0.25):
            self._progress.update(self._id, completed=self._watched.done, line=self._watched.line())

    def finish(self) -> None:
        self._finished.set()
        self.join()
        self._progress.stop()
        if self._watched.seconds >= FIRST_LINE_SECONDS:
            self._progress.console.print(
                f"[dim]{self._watched.what}: done in {format_seconds(self._watched.seconds)}[/dim]", highlight=False
            )


class _Shown:
    """Shows one task while the block runs."""

    def __init__(self, watched: Task) -> None:
        console = Console(stderr=True)
        self._printer: _LivePrinter | _LogPrinter = (
            _LivePrinter(watched, console) if console.is_terminal else _LogPrinter(watched, sys.stderr)
        )

    def __enter__(self) -> None:
        self._printer.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._printer.finish()


@contextmanager
def task(what: str, total: int | None = None, unit: str = "") -> Iterator[Task]:
    """Shows the progress of the block on standard error.

    Args:
        what: what is being done, as "Training".
        total: how many units there are; None shows the time so far.
        unit: the unit's name, as "steps".
    """
    watched = Task(what, total, unit)
    with _Shown(watched):
        yield watched


def track(items: Iterable[T], what: str, total: int | None = None, unit: str = "") -> Iterator[T]:
    """Yields `items` while showing how many have been handled."""
    with task(what, total, unit) as watched:
        for item in items:
            yield item
            watched.advance()
