"""What Linux's control groups say of this process's memory: the limits, and whether the system killed for them.

Both versions are read: memory.max and memory.events, or memory.limit_in_bytes and memory.oom_control.
"""

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")


def memory_limits() -> list[int]:
    """Limits in bytes of this process's control group and of those around it; empty where there are none."""
    texts = _read_all("memory.max", "memory.limit_in_bytes")
    return [int(text) for text in texts if text.isdigit()]  # "max" where there is none


def memory_kills() -> int:
    """How often the system has killed a process of this control group, or of those around it, for lack of memory."""
    lines = [line.split() for text in _read_all("memory.events", "memory.oom_control") for line in text.splitlines()]
    return sum(int(words[1]) for words in lines if len(words) == 2 and words[0] == "oom_kill" and words[1].isdigit())


def _read_all(name_in_v2: str, name_in_v1: str) -> list[str]:
    return [text for folder, name in _folders(name_in_v2, name_in_v1) if (text := _read(folder / name)) is not None]


def _folders(name_in_v2: str, name_in_v1: str) -> Iterator[tuple[Path, str]]:
    for line in (_read(OWN_GROUPS) or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, name = ROOT, name_in_v2
        elif "memory" in controllers.split(","):
            top, name = ROOT / "memory", name_in_v1
        else:
            continue
        inner = top / path.lstrip("/")
        for folder in (inner, *inner.parents):
            if folder.is_relative_to(top):
                yield folder, name


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
