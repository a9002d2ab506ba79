import errno
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from tunesmith import progress
from tunesmith.errors import DiskError, ModelError
from tunesmith.models import cache
from tunesmith.models.cache import MANIFEST_FILE, cache_folder, cached_model, find_problem


@pytest.fixture(autouse=True)
def in_own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_checked", set())


class Builder:
    """Writes one file and counts how often it was asked to."""

    def __init__(self, text: str = "weights") -> None:
        self.calls = 0
        self.text = text

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        (folder / "model.safetensors").write_text(self.text)


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("TUNESMITH_CACHE")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    assert cache_folder() == tmp_path / "home" / ".cache" / "tunesmith"


def test_a_model_is_built_once() -> None:
    build = Builder()
    first = cached_model("tiny", "source", build)
    assert cached_model("tiny", "source", build) == first
    assert build.calls == 1
    assert (first / "model.safetensors").read_text() == "weights"
    assert find_problem(first, "source") is None


@pytest.mark.parametrize(
    "damage", ["shorter", "same size", "missing", "no manifest", "broken manifest", "foreign name"]
)
def test_a_damaged_model_is_noticed_and_built_again(damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = cached_model("tiny", "source", Builder())
    file, manifest = folder / "model.safetensors", folder / MANIFEST_FILE
    if damage == "shorter":
        file.write_text("weig")
    elif damage == "same size":
        file.write_text("weightz")
    elif damage == "missing":
        file.unlink()
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "broken manifest":
        manifest.write_text('{"format": 1, "source": "source", "files": [')
    else:
        manifest.write_text(manifest.read_text().replace("model.safetensors", "../tiny/model.safetensors"))
    cache._checked.clear()  # as in the next process
    assert find_problem(folder, "source") is not None

    build = Builder()
    assert cached_model("tiny", "source", build) == folder
    assert build.calls == 1
    assert find_problem(folder, "source") is None
    assert "is removed and made again" in capsys.readouterr().err


def test_a_file_written_since_its_check_is_checked_again() -> None:
    folder = cached_model("tiny", "source", Builder())
    assert find_problem(folder) is None
    (folder / "model.safetensors").write_text("weightz")
    assert find_problem(folder) == "'model.safetensors' has other bytes than were written"


def test_another_source_makes_the_folder_stale() -> None:
    folder = cached_model("tiny", "source", Builder("old"))
    cached_model("tiny", "another source", Builder("new"))
    assert (folder / "model.safetensors").read_text() == "new"


def test_a_newer_conversion_makes_the_folder_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = cached_model("tiny", "source", Builder("old"))
    monkeypatch.setattr(cache, "MANIFEST_FORMAT", 2)
    cached_model("tiny", "source", Builder("new"))
    assert (folder / "model.safetensors").read_text() == "new"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ModelError("no")])
def test_an_interrupted_build_leaves_nothing_in_place(error: BaseException) -> None:
    def build(folder: Path) -> None:
        (folder / "model.safetensors").write_text("part")
        raise error

    with pytest.raises(type(error)):
        cached_model("tiny", "source", build)
    assert list((cache_folder() / "models").iterdir()) == []
    cached_model("tiny", "source", Builder())


def test_what_a_killed_process_left_is_cleared() -> None:
    left = cache_folder() / "models" / "tiny.building"
    left.mkdir(parents=True)
    (left / "model-00002.safetensors").write_text("part")
    folder = cached_model("tiny", "source", Builder())
    assert sorted(path.name for path in folder.iterdir()) == ["model.safetensors", MANIFEST_FILE]
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]


def test_a_full_disk_is_named() -> None:
    def build(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    with pytest.raises(DiskError, match="the disk is full"):
        cached_model("tiny", "source", build)


def test_a_whole_model_is_used_from_a_cache_that_cannot_be_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = cached_model("tiny", "source", Builder())

    def refuse(name: str) -> None:
        raise AssertionError(f"locked {name}")

    monkeypatch.setattr(cache, "locked", refuse)
    assert cached_model("tiny", "source", Builder()) == folder


CHILD = """
import sys
from pathlib import Path
from tunesmith.models.cache import cached_model

def build(folder):
    print("building", flush=True)
    sys.stdin.readline()
    (folder / "model.safetensors").write_text(sys.argv[1])

print("ready", flush=True)
print(cached_model("tiny", "source", build), flush=True)
"""


def _child(text: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, text],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_second_process_waits_and_uses_what_the_first_built() -> None:
    first, second = _child("first"), _child("second")
    with first, second:
        assert first.stdout is not None
        assert second.stdout is not None
        # Whichever gets the lock builds, and goes on only when it is told; the other must not build at all.
        assert first.stdout.readline() == second.stdout.readline() == "ready\n"
        for child in (first, second):
            assert child.stdin is not None
            child.stdin.write("\n")
            child.stdin.flush()
        # Not `communicate`, which would miss what `readline` has read ahead.
        said = [first.stdout.read().splitlines(), second.stdout.read().splitlines()]
    assert first.returncode == second.returncode == 0
    assert sorted(len(lines) for lines in said) == [1, 2]
    assert said[0][-1] == said[1][-1] == str(cache_folder() / "models" / "tiny")
    assert find_problem(cache_folder() / "models" / "tiny", "source") is None


def test_a_process_that_waits_says_so(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "FIRST_LINE_SECONDS", 0.0)
    holder = _child("other")
    with holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert [holder.stdout.readline(), holder.stdout.readline()] == ["ready\n", "building\n"]
        real_acquire = FileLock.acquire

        def acquire(lock: FileLock, timeout: float | None = None) -> object:
            if timeout is None:  # the waiting call: only now may the other process go on
                assert holder.stdin is not None
                holder.stdin.write("\n")
                holder.stdin.flush()
            return real_acquire(lock, timeout=timeout)

        monkeypatch.setattr(FileLock, "acquire", acquire)
        build = Builder()
        folder = cached_model("tiny", "source", build)
    assert build.calls == 0
    assert (folder / "model.safetensors").read_text() == "other"
    assert "Waiting for another process" in capfd.readouterr().err


def test_a_folder_that_goes_away_while_it_is_checked_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    cached_model("tiny", "source", Builder())
    cache._checked.clear()
    gone = [FileNotFoundError(errno.ENOENT, "No such file or directory")]
    digest = cache.sha256_of

    def read(file: Path) -> str:
        if gone:
            raise gone.pop()
        return digest(file)

    monkeypatch.setattr(cache, "sha256_of", read)
    folder = cache_folder() / "models" / "tiny"
    assert find_problem(folder, "source") == "a file of it could not be checked: No such file or directory"
    gone.append(FileNotFoundError(errno.ENOENT, "No such file or directory"))
    build = Builder()
    assert cached_model("tiny", "source", build) == folder
    assert find_problem(folder, "source") is None
