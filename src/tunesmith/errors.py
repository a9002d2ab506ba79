"""Every error a user can cause, in one tree.

TunesmithError
├── RecipeError            the recipe file or an option is wrong (all problems at once)
├── DataError              a data file, a row or a split cannot be used
├── TemplateError          the chat template or the tokenizer cannot encode the data
├── ModelError             the base model cannot be found, read or run here
│   └── UnsafeWeightsError weights that could run code when loaded
├── AdapterError           an adapter folder is unusable, or a target matches nothing
│   └── ContractError      an adapter is used with another template, tokenizer or base than it was trained with
├── TrainError             training cannot start or go on
│   └── StoppedError       stopped on request; the same command resumes
├── EvaluationError        an evaluation cannot be computed
├── ExportError            an export cannot be written
├── ServingError           a request, or a setting of the engine, cannot be served
│   └── QueueFullError     too many requests wait already
├── RunError               the run folder is missing, foreign or unreadable
├── DiskError              the disk is full or cannot be written
└── MissingPackageError    an optional package is not installed
"""

from collections.abc import Iterator
from contextlib import contextmanager
from errno import EDQUOT, EFBIG, EINVAL, EIO, ELOOP, ENAMETOOLONG, ENOENT, ENOSPC, ENOSYS, ENOTSUP, EROFS
from pathlib import Path

EXIT_DONE = 0
EXIT_GATE_FAILED = 1
EXIT_USAGE = 2
EXIT_RESUMABLE = 75


class TunesmithError(Exception):
    """An error with a place, a message and a remedy, shown without a traceback.

    Args:
        message: what is wrong, one sentence.
        place: where: a file and line, a recipe key, a folder.
        remedy: what to do about it.
    """

    exit_code = EXIT_USAGE

    def __init__(self, message: str, *, place: str | None = None, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.place = place
        self.remedy = remedy

    def __str__(self) -> str:
        where = f"{self.place}: " if self.place else ""
        what_to_do = f"\n  remedy: {self.remedy}" if self.remedy else ""
        return f"{where}{self.message}{what_to_do}"


class RecipeError(TunesmithError):
    """The recipe, or an option that edits it, is wrong; `problems` holds every one found.

    Args:
        problems: one line each, naming the key; at least one.
        place: the recipe file.
    """

    def __init__(self, problems: list[str], *, place: str | None = None, remedy: str | None = None) -> None:
        self.problems = problems
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(
            "\n".join([f"{count} in the recipe", *(f"  - {p}" for p in problems)]), place=place, remedy=remedy
        )


class DataError(TunesmithError):
    """A data file, a row or a split cannot be used."""


class TemplateError(TunesmithError):
    """The chat template or the tokenizer cannot encode the data."""


class ModelError(TunesmithError):
    """The base model cannot be found, read or run here."""


class UnsafeWeightsError(ModelError):
    """Weights in a format that can run code when loaded, such as a pickle."""


class AdapterError(TunesmithError):
    """An adapter folder is unusable, or a target matches nothing in the model."""


class ContractError(AdapterError):
    """An adapter is used with another template, tokenizer or base model than it was trained with."""


class TrainError(TunesmithError):
    """Training cannot start or go on."""


class StoppedError(TrainError):
    """Training was stopped on request; the same command resumes it."""

    exit_code = EXIT_RESUMABLE


class EvaluationError(TunesmithError):
    """An evaluation cannot be computed."""


class ExportError(TunesmithError):
    """An export cannot be written."""


class ServingError(TunesmithError):
    """A request, or a setting of the engine, cannot be served."""


class QueueFullError(ServingError):
    """Too many requests wait already; later there will be room."""


class RunError(TunesmithError):
    """The run folder is missing, foreign or unreadable."""


class DiskError(TunesmithError):
    """The disk is full or cannot be written."""


class MissingPackageError(TunesmithError):
    """An optional package is not installed.

    Args:
        package: the import name.
        extra: the extra of tunesmith that installs it.
        needed_for: what asked for it.
    """

    def __init__(self, package: str, *, extra: str, needed_for: str) -> None:
        super().__init__(f"{needed_for} needs the package '{package}'", remedy=f"pip install 'tunesmith[{extra}]'")


@contextmanager
def disk_errors(folder: Path, *, option: str = "--run") -> Iterator[None]:
    """Turns the system's errors about writing below `folder` into a `DiskError` that says what is missing.

    `option` is the option of the command that names another folder, for the remedy.

    Libraries that write from native code report a full disk as an exception of their own that ends in
    "(os error 28)" (safetensors does), so the text is looked at too.
    """
    try:
        yield
    except TunesmithError:
        raise
    except Exception as error:
        reason = _disk_reason(error)
        if reason is None:
            raise
        raise DiskError(f"cannot write: {reason}", place=str(folder), remedy=_disk_remedy(reason, option)) from error


def _disk_remedy(reason: str, option: str) -> str:
    elsewhere, cache = f"{option} FOLDER", ""
    if option == "--run":  # Where a run is written, the cache may be too.
        cache = ", for the cache with TUNESMITH_CACHE"
    return {
        "input/output error": "check the disk and its connection",
        "the disk is full": f"free some space, or choose another disk with {elsewhere}{cache}",
        "permission denied": f"make the folder writable, or choose another with {elsewhere}{cache}",
        "a file is where a folder is needed": f"remove the file, or choose another folder with {elsewhere}",
    }.get(reason, f"choose a writable place with {elsewhere}{cache}")


def _disk_reason(error: Exception) -> str | None:
    number = getattr(error, "errno", None)
    text = str(error)
    if number in (ENOSPC, EDQUOT, EFBIG) or any(f"(os error {n})" in text for n in (ENOSPC, EDQUOT, EFBIG)):
        return "the disk is full"
    if number == EIO or f"(os error {EIO})" in text:
        return "input/output error"
    if number == EROFS or f"(os error {EROFS})" in text:
        return "the file system is read-only"
    if isinstance(error, PermissionError) or "(os error 13)" in text:
        return "permission denied"
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        return "a file is where a folder is needed"
    # So answers a file system of the kernel's own, such as /proc. Libraries have errors of this kind for other things.
    if type(error) is FileNotFoundError and number == ENOENT:
        return "nothing can be made there"
    if number == ENAMETOOLONG:
        return "the name is too long"
    if number in (ENOSYS, ENOTSUP, ELOOP, EINVAL):
        return f"the system refuses it ({getattr(error, 'strerror', None) or text})"
    return None
