"""A reader finds the old content or the new, whatever ends the process in between."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith import failpoints
from tunesmith.durable import replaced_folder, write_text
from tunesmith.errors import DiskError

WRITE = """
from pathlib import Path
from tunesmith.durable import replaced_folder, write_bytes, write_text
folder = Path({folder!r})
with replaced_folder(folder / "model") as beside:
    write_bytes(beside / "a.bin", b"new" * 1000)
    write_bytes(beside / "b.bin", b"new")
write_text(folder / "note.txt", "new")
"""


def run_write(folder: Path, **environment: str) -> int:
    command = [sys.executable, "-c", WRITE.format(folder=str(folder))]
    return subprocess.run(command, env={**os.environ, **environment}, check=False).returncode


def test_killed_at_any_point_old_or_new_is_there_whole(tmp_path: Path) -> None:
    log = tmp_path / "points"
    first = tmp_path / "first"
    first.mkdir()
    for _ in range(2):  # the second time there is something to replace
        log.unlink(missing_ok=True)
        assert run_write(first, TUNESMITH_FAILPOINT_LOG=str(log)) == 0
    points = log.read_text().split()
    assert len(points) >= 12
    for number, point in enumerate(points):
        folder = tmp_path / str(number) / first.name
        folder.mkdir(parents=True)
        with replaced_folder(folder / "model") as beside:
            (beside / "a.bin").write_bytes(b"old")
        write_text(folder / "note.txt", "old")
        passing = points[: number + 1].count(point)
        assert run_write(folder, TUNESMITH_FAILPOINT=f"{point}@{passing}=kill") == -signal.SIGKILL
        names = {path.name for path in folder.iterdir()} & {"model", ".model.old"}
        assert names, f"killed at {point}: nothing is left"
        there = folder / ("model" if "model" in names else ".model.old")
        assert (there / "a.bin").read_bytes() in (b"old", b"new" * 1000)
        assert (folder / "note.txt").read_text() in ("old", "new")
        assert run_write(folder) == 0, "the same again goes through"
        assert (folder / "model" / "a.bin").read_bytes() == b"new" * 1000
        assert sorted(path.name for path in folder.iterdir()) == ["model", "note.txt"]


@pytest.mark.parametrize("action", ["enospc", "eio", "erofs", "short"])
def test_an_error_of_the_disk_keeps_the_old_text(tmp_path: Path, action: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "note.txt", "old")
    monkeypatch.setenv(failpoints.VARIABLE, f"write:.note.txt.new={action}")
    failpoints.reload()
    try:
        with pytest.raises(DiskError, match="remedy"):
            write_text(tmp_path / "note.txt", "new")
    finally:
        monkeypatch.undo()
        failpoints.reload()
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]
    assert (tmp_path / "note.txt").read_text() == "old"
