"""Points where a test makes this process fail by real means; without the environment variables they do nothing.

TUNESMITH_FAILPOINT="rename:step-00000004@2=kill" lets the second passing of that point end in SIGKILL; a point that
ends in "*" stands for all that begin so; several are separated by ";". Actions: kill (SIGKILL), term (SIGTERM),
enospc, eio, erofs (the system's errors), short (half of the bytes are written, then EIO), oom (a failed allocation),
nan (the caller puts a NaN where it stands). TUNESMITH_FAILPOINT_LOG=FILE writes down every point that is passed, so
that a test can find them all.
"""

import errno
import os
import signal
from dataclasses import dataclass

VARIABLE = "TUNESMITH_FAILPOINT"
LOG_VARIABLE = "TUNESMITH_FAILPOINT_LOG"

SYSTEM_ERRORS = {"enospc": errno.ENOSPC, "eio": errno.EIO, "erofs": errno.EROFS}


@dataclass
class _Armed:
    point: str
    passing: int
    action: str
    passed: int = 0

    def is_hit(self, point: str) -> bool:
        matches = point.startswith(self.point[:-1]) if self.point.endswith("*") else point == self.point
        self.passed += matches
        return matches and (self.passing == 0 or self.passed == self.passing)


def _read_environment() -> list[_Armed]:
    armed = []
    for entry in filter(None, os.environ.get(VARIABLE, "").split(";")):
        where, _, action = entry.rpartition("=")
        point, _, passing = where.partition("@")
        armed.append(_Armed(point, int(passing or 1), action))
    return armed


_ARMED = _read_environment()
_LOG = os.environ.get(LOG_VARIABLE)


def reload() -> None:
    """Reads the environment again, for a test that forks."""
    global _ARMED, _LOG
    _ARMED = _read_environment()
    _LOG = os.environ.get(LOG_VARIABLE)


def passing(point: str) -> str | None:
    """Passes `point`; returns an action that the caller has to carry out ("short", "nan"), else None.

    Raises:
        OSError: if one is armed here.
        MemoryError: if a failed allocation is armed here.
    """
    if not _ARMED and _LOG is None:
        return None
    if _LOG is not None:
        with open(_LOG, "a", encoding="utf-8") as file:  # noqa: PTH123 (no Path is needed for one line)
            file.write(point + "\n")
    for armed in _ARMED:
        if armed.is_hit(point):
            return _act(armed.action, point)
    return None


def _act(action: str, point: str) -> str | None:
    if action in ("kill", "term"):
        os.kill(os.getpid(), signal.SIGKILL if action == "kill" else signal.SIGTERM)
        return None
    if action in SYSTEM_ERRORS:
        number = SYSTEM_ERRORS[action]
        raise OSError(number, os.strerror(number), point)
    if action == "oom":
        raise MemoryError(f"armed at {point}")
    return action
