"""Writing so that a reader finds the old content or the new, never a part, whatever ends the process in between.

Content is written beside, synced, and renamed into place; the folder is synced too, since a rename is only lasting
when its folder is. Every write, sync and rename passes a fail-point, so that tests can end the process at each.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tunesmith.errors import disk_errors
from tunesmith.failpoints import passing

CHUNK_BYTES = 1 << 20


def write_bytes(path: Path, content: bytes) -> None:
    """Writes `content` to `path` and syncs it; not atomic by itself.

    Raises:
        OSError: it cannot be written whole.
    """
    is_short = passing(f"write:{path.name}") == "short"
    with path.open("wb") as file:
        view = memoryview(content)[: len(content) // 2 if is_short else None]
        for at in range(0, len(view), CHUNK_BYTES):
            file.write(view[at : at + CHUNK_BYTES])
        if is_short:
            raise OSError(errno.EIO, "only a part could be written", str(path))
        file.flush()
        passing(f"sync:{path.name}")
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Makes what was written to a file, or the names in a folder, lasting."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open a folder.
        return
    passing(f"sync:{path.name}")
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def rename(source: Path, target: Path) -> None:
    """Renames within one file system and makes it lasting; a file at `target` is replaced."""
    passing(f"rename:{target.name}")
    source.replace(target)
    sync(target.parent)


def write_text(path: Path, text: str) -> None:
    """Replaces the text of `path` in one step.

    Raises:
        DiskError: it cannot be written; the old text stays.
    """
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.new")
        try:
            write_bytes(beside, text.encode("utf-8"))
            rename(beside, path)
        finally:
            beside.unlink(missing_ok=True)


def move(source: Path, target: Path) -> None:
    """Puts a finished file in place of `target`; both are on one file system.

    Raises:
        DiskError: it cannot be renamed; `target` stays as it was.
    """
    with disk_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        sync(source)
        rename(source, target)


def replace_folder(source: Path, target: Path, *, option: str = "--run") -> None:
    """Puts the folder `source`, whole and beside, in place of `target`; an error leaves `target` as it was.

    If an earlier process ended between taking the old folder away and putting the new one in its place, `target` is
    missing and the old one lies beside as .NAME.old: it is put back by the next `replaced_folder`. `option` is the
    option of the command that names `target`, for the remedy of an error.

    Raises:
        DiskError: it cannot be renamed.
    """
    old = target.with_name(f".{target.name}.old")
    with disk_errors(target, option=option):
        for path in sorted(source.rglob("*")):
            sync(path)
        sync(source)
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            rename(target, old)
        try:
            rename(source, target)
        except OSError:
            if old.exists() and not target.exists():
                old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def replaced_folder(folder: Path, *, option: str = "--run") -> Iterator[Path]:
    """Gives a folder beside to write into, and puts it in place of `folder` when the block ends without an error.

    An error leaves `folder` as it was; its remedy names `option`, the option of the command that names `folder`. One
    writer at a time: `Run.one_writer` sees to that.

    Raises:
        DiskError: it cannot be written.
    """
    folder = Path(os.path.abspath(folder))  # noqa: PTH100 - links stay, "." and ".." get a name
    beside = folder.with_name(f".{folder.name}.new")
    old = folder.with_name(f".{folder.name}.old")
    with disk_errors(folder, option=option):
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        try:
            yield beside
            replace_folder(beside, folder, option=option)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
