"""Progress: what, how far, how long still; quiet for short work, a line in a log, a live line on a terminal."""

import os
import pty
import subprocess
import sys

import pytest

from tunesmith import progress
from tunesmith.progress import Task, format_seconds, task, track


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0s"), (59, "59s"), (65, "1:05"), (7384, "2:03:04")])
def test_seconds_are_readable(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_the_time_left_is_the_mean_speed_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("tunesmith.progress.time.monotonic", lambda: now[0])
    watched = Task("Training", 100, "steps")
    assert watched.seconds_left is None
    watched.start_at(50)  # resumed: those steps took no time here
    now[0] += 10
    watched.advance(5, "loss 1.0")
    assert watched.seconds_left == pytest.approx(90)
    assert watched.line() == "55/100 steps (55%) · loss 1.0 · 1:30 left"


def test_short_work_is_silent_and_long_work_tells_a_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(track([1, 2], "Counting", 2, "items")) == [1, 2]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "FIRST_LINE_SECONDS", 0.0)
    with task("Counting", 4, "items") as watched:
        watched.advance(3)
        while not (seen := capsys.readouterr().err):
            pass
    assert "Counting: " in seen
    assert "/4 items" in seen
    assert "Counting: done in" in capsys.readouterr().err


NESTED = """
from tunesmith import progress
progress.FIRST_LINE_SECONDS = 0.0
with progress.task("Outer [bold]", 2, "steps") as outer:
    for _ in progress.track([1, 2, 3], "Inner", 3, "parts"):
        pass
    outer.advance(2, "loss 0.5")
print("end")
"""


def test_a_task_within_a_task_shares_the_terminal() -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    command = [sys.executable, "-c", NESTED]
    done = subprocess.run(command, stderr=theirs, stdout=subprocess.PIPE, text=True, env=environment, check=False)
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert done.returncode == 0
    assert done.stdout == "end\n"
    assert "Inner: done in" in shown
    assert "Outer [bold]: done in" in shown
    assert "Traceback" not in shown
