"""What Linux's control groups allow this process: memory, whether the system killed for it, and processor cores.

Both versions are read: memory.max, memory.events and cpu.max, or memory.limit_in_bytes, memory.oom_control and
cpu.cfs_quota_us with cpu.cfs_period_us.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")


def memory_limits() -> list[int]:
    """Limits in bytes of this process's control group and of those around it; empty where there are none."""
    texts = _read_all("memory", "memory.max", "memory.limit_in_bytes")
    return [int(text) for text in texts if text.isdigit()]  # "max" where there is none


def memory_kills() -> int:
    """How often the system has killed a process of this control group, or of those around it, for lack of memory."""
    texts = _read_all("memory", "memory.events", "memory.oom_control")
    lines = [line.split() for text in texts for line in text.splitlines()]
    return sum(int(words[1]) for words in lines if len(words) == 2 and words[0] == "oom_kill" and words[1].isdigit())


def usable_cores() -> int:
    """Processor cores that this process may use: those it is bound to, within the quota of its control groups.

    A container on a large machine often has a quota of two cores and sees all of them.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    bound = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min([bound, *(math.ceil(cores) for cores in _cpu_quotas())]))


def _cpu_quotas() -> list[float]:
    """Cores' worth of time that each control group with a limit may take."""
    in_v2 = [text.split() for text in _read_all("cpu", "cpu.max", "")]
    periods = _read_all("cpu", "", "cpu.cfs_period_us")
    in_v1 = list(zip(_read_all("cpu", "", "cpu.cfs_quota_us"), periods, strict=False))
    pairs = [(words[0], words[1]) for words in in_v2 if len(words) == 2] + in_v1
    # "max" in the one version and -1 in the other where there is none
    return [int(quota) / int(period) for quota, period in pairs if quota.isdigit() and period.isdigit() and int(period)]


def _read_all(controller: str, name_in_v2: str, name_in_v1: str) -> list[str]:
    folders = _folders(controller, name_in_v2, name_in_v1)
    return [text for folder, name in folders if name and (text := _read(folder / name)) is not None]


def _folders(controller: str, name_in_v2: str, name_in_v1: str) -> Iterator[tuple[Path, str]]:
    for line in (_read(OWN_GROUPS) or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, name = ROOT, name_in_v2
        elif controller in controllers.split(","):
            top, name = ROOT / controller, name_in_v1
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
