"""The user's cache of models: each is built once, checked at every use, and rebuilt when it is broken.

A model lies in `<cache>/models/NAME/` with a manifest of its files' sizes and digests, written last. It is built in
`NAME.building` beside and renamed into place, so that a folder is whole or absent. A file lock per name keeps a second
process waiting while the first builds; whatever an interrupted process left is cleared under that lock.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tunesmith.errors import disk_errors
from tunesmith.progress import Task, task

MANIFEST_FILE = "tunesmith-model.json"
MANIFEST_FORMAT = 1
"""Raised when a conversion changes, so that models converted before are built anew."""

DIGESTS_UP_TO_BYTES = 2 * 10**9
"""A model up to this size is hashed at its first use in a process (about 0.3 s per 500 MB); of a larger one only the
sizes are compared."""

_BLOCK_BYTES = 1 << 22
_MEGABYTE = 10**6
_checked: set[tuple[str, int]] = set()


def cache_folder() -> Path:
    """Where models are kept: the environment variable TUNESMITH_CACHE, or ~/.cache/tunesmith."""
    given = os.environ.get("TUNESMITH_CACHE")
    return Path(given).expanduser().resolve() if given else Path.home() / ".cache" / "tunesmith"


def cached_model(name: str, source: str, build: Callable[[Path], None]) -> Path:
    """The cached folder `name`, built if it is absent, broken or made from something else.

    Args:
        name: a name of our own or a digest, never one from outside.
        source: what it is made from, with its digest; another source makes the folder stale.
        build: writes the model's files into the empty folder it is given.

    Raises:
        DiskError: the cache cannot be written.
        TunesmithError: whatever `build` raises; nothing is left in place then.
    """
    folder = cache_folder() / "models" / name
    if find_problem(folder, source) is None:
        return folder
    with disk_errors(folder.parent), locked(name):
        # Another process may have built it while this one waited.
        problem = find_problem(folder, source)
        if problem is None:
            return folder
        if folder.exists():
            say(f"the cached model {folder} is removed and made again: {problem}")
            shutil.rmtree(folder)
        building = folder.with_name(f"{name}.building")
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        try:
            build(building)
            _write_manifest(building, source)
            building.rename(folder)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
        _sync(folder.parent)
    return folder


def find_problem(folder: Path, source: str | None = None) -> str | None:
    """What is wrong with a cached model, or None: it is whole.

    Args:
        folder: the cached folder.
        source: what it should be made from; None does not ask.
    """
    try:
        return _find_problem(folder, source)
    except OSError as error:  # another process takes it away or writes it, or the disk fails
        return f"a file of it could not be checked: {error.strerror or error}"


def _find_problem(folder: Path, source: str | None) -> str | None:
    manifest_file = folder / MANIFEST_FILE
    try:
        manifest: dict[str, Any] = json.loads(manifest_file.read_text(encoding="utf-8"))
        files = {str(name): (int(facts["size"]), str(facts["sha256"])) for name, facts in manifest["files"].items()}
        written = (manifest["format"], manifest["source"])
    except FileNotFoundError:
        return "it has no manifest" if folder.exists() else "it is not there"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "its manifest cannot be read"
    if written != (MANIFEST_FORMAT, source if source is not None else manifest["source"]):
        return "it was made from another source or by another version"
    for name, (size, _) in files.items():
        if Path(name).name != name or not (folder / name).is_file():
            return f"'{name}' is missing"
        if (folder / name).stat().st_size != size:
            return f"'{name}' has another size than was written"
    if sum(size for size, _ in files.values()) <= DIGESTS_UP_TO_BYTES:
        return _find_changed_file(folder, {name: digest for name, (_, digest) in files.items()})
    return None


def _find_changed_file(folder: Path, digests: dict[str, str]) -> str | None:
    for name, digest in digests.items():
        file = folder / name
        # A file checked once in this process is checked again only if it was written since.
        seen = (str(file), file.stat().st_mtime_ns)
        if seen in _checked:
            continue
        if sha256_of(file) != digest:
            return f"'{name}' has other bytes than were written"
        _checked.add(seen)
    return None


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Holds the lock `name` of the cache; says so while another process holds it."""
    folder = cache_folder() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        with task("Waiting for another process that prepares the model"):
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def sha256_of(file: Path) -> str:
    """SHA-256 of a file in hex, showing progress if it takes long."""
    digest = hashlib.sha256()
    done = 0
    with (
        task(f"Checking {file.name}", total=file.stat().st_size // _MEGABYTE, unit="MB") as watched,
        file.open("rb") as opened,
    ):
        while block := opened.read(_BLOCK_BYTES):
            digest.update(block)
            done += len(block)
            watched.advance(done // _MEGABYTE - watched.done)
    return digest.hexdigest()


@contextmanager
def growth_shown(watched: Task, folder: Path) -> Iterator[None]:
    """Counts the megabytes that come to lie below `folder` within the block, for work that does not tell."""
    finished = threading.Event()
    before = _bytes_below(folder)

    def look() -> None:
        while not finished.wait(0.5):
            grown = (_bytes_below(folder) - before) // _MEGABYTE
            # Files that are renamed or copied while they are counted may seem to shrink.
            watched.advance(max(0, min(grown, watched.total or grown) - watched.done))

    looker = threading.Thread(target=look, name="growth", daemon=True)
    looker.start()
    try:
        yield
    finally:
        finished.set()
        looker.join()


def _bytes_below(folder: Path) -> int:
    return sum(_bytes_of(f"{root}{os.sep}{name}") for root, _, names in os.walk(folder) for name in names)


def _bytes_of(path: str) -> int:
    try:
        return os.lstat(path).st_size
    except OSError:  # gone since it was listed
        return 0


def say(text: str) -> None:
    """A word for the user on standard error."""
    print(f"tunesmith: {text}", file=sys.stderr, flush=True)


def _write_manifest(folder: Path, source: str) -> None:
    files = {}
    for path in sorted(folder.iterdir()):
        _sync(path)
        files[path.name] = {"size": path.stat().st_size, "sha256": sha256_of(path)}
    manifest = {"format": MANIFEST_FORMAT, "source": source, "files": files}
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    _sync(folder / MANIFEST_FILE)
    _sync(folder)


def _sync(path: Path) -> None:
    """Makes sure that a file's bytes, or a folder's entries, are on the disk."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open a folder
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
