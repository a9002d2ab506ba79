"""Progress of long work: what, how far, how long still.

On a terminal a live line; elsewhere (a log, CI) one line every few seconds, so that a log shows life without being
flooded. All of it goes to standard error; standard output belongs to results.
"""

import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TaskID, TextColumn
from rich.progress import Task as RichTask
from rich.progress_bar import ProgressBar
from rich.text import Text

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
        self.ending = "done in"
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
            parts.append(f"{self.done}/{self.total} {self.unit}".rstrip() + f" ({100 * self.done // self.total}%)")
        elif self.done:
            parts.append(f"{self.done} {self.unit}")
        if self.note:
            parts.append(self.note)
        left = self.seconds_left
        parts.append(f"{format_seconds(self.seconds)} so far" if left is None else f"{format_seconds(left)} left")
        return " · ".join(part.strip() for part in parts)


class _LogPrinter:
    """Prints a task's line into a log: after `FIRST_LINE_SECONDS`, then every `LINE_EVERY_SECONDS`."""

    def __init__(self, watched: Task) -> None:
        self._watched = watched
        self._finished = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="progress")
        self._thread.start()

    def _run(self) -> None:
        wait = FIRST_LINE_SECONDS
        while not self._finished.wait(wait):
            self._print(self._watched.line())
            wait = LINE_EVERY_SECONDS

    def finish(self) -> None:
        """Says how long it took, if that was long enough to be worth a line."""
        self._finished.set()
        self._thread.join()
        if self._watched.seconds >= FIRST_LINE_SECONDS:
            self._print(f"{self._watched.ending} {format_seconds(self._watched.seconds)}")

    def _print(self, text: str) -> None:
        print(f"{self._watched.what}: {text}", file=sys.stderr, flush=True)


class _LineColumn(ProgressColumn):
    """The task's own line, made anew at each redraw."""

    def render(self, task: RichTask) -> Text:
        watched: Task = task.fields["watched"]
        return Text(watched.line())


class _LiveDisplay:
    """One live display on the terminal for all tasks that run, nested ones below the outer one."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._lock = threading.Lock()

    def show(self, watched: Task, console: Console) -> TaskID:
        """Adds a line; the display starts with the first."""
        with self._lock:
            if self._progress is None:
                name = TextColumn("[bold]{task.description}")
                columns = (SpinnerColumn(), name, _DoneColumn(bar_width=24), _LineColumn())
                self._progress = Progress(*columns, console=console, transient=True, refresh_per_second=4)
                self._progress.start()
            return self._progress.add_task(escape(watched.what), total=watched.total, watched=watched)

    def hide(self, watched: Task, line: TaskID) -> None:
        """Removes a line; the display ends with the last."""
        with self._lock:
            if self._progress is None:
                return
            if watched.seconds >= FIRST_LINE_SECONDS:
                took = f"{escape(watched.what)}: {watched.ending} {format_seconds(watched.seconds)}"
                self._progress.console.print(f"[dim]{took}[/dim]", highlight=False)
            self._progress.remove_task(line)
            if not self._progress.task_ids:
                self._progress.stop()
                self._progress = None


class _DoneColumn(BarColumn):
    """A bar of how much is done, read from the watched task."""

    def render(self, task: RichTask) -> ProgressBar:
        watched: Task = task.fields["watched"]
        task.completed = watched.done
        return super().render(task)


_LIVE = _LiveDisplay()


@contextmanager
def task(what: str, total: int | None = None, unit: str = "") -> Iterator[Task]:
    """Shows the progress of the block on standard error.

    Args:
        what: what is being done, as "Training".
        total: how many units there are; None shows the time so far.
        unit: the unit's name, as "steps".
    """
    watched = Task(what, total, unit)
    console = Console(stderr=True)
    if not console.is_terminal:
        printer = _LogPrinter(watched)
        try:
            yield watched
        except BaseException:
            watched.ending = "stopped after"
            raise
        finally:
            printer.finish()
        return
    line = _LIVE.show(watched, console)
    try:
        yield watched
    except BaseException:
        watched.ending = "stopped after"
        raise
    finally:
        _LIVE.hide(watched, line)


def track(items: Iterable[T], what: str, total: int | None = None, unit: str = "") -> Iterator[T]:
    """Yields `items` while showing how many have been handled."""
    with task(what, total, unit) as watched:
        for item in items:
            yield item
            watched.advance()
