"""Limits and kills of control groups, in files as Linux lays them out."""

import os
from pathlib import Path

import pytest

from tunesmith import control_groups


@pytest.fixture
def lay_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for /sys/fs/cgroup with both versions, and for this process's groups."""
    root = tmp_path / "cgroup"
    (root / "box" / "job").mkdir(parents=True)
    (root / "box" / "memory.max").write_text("max\n")
    (root / "box" / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    (root / "box" / "job" / "memory.max").write_text("3000\n")
    (root / "memory" / "job").mkdir(parents=True)
    (root / "memory" / "memory.limit_in_bytes").write_text("2000\n")
    (root / "memory" / "job" / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 5\n")
    (root / "box" / "cpu.max").write_text("150000 100000\n")
    (root / "box" / "job" / "cpu.max").write_text("max 100000\n")
    (root / "cpu" / "job").mkdir(parents=True)
    (root / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    (root / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    (root / "cpu" / "job" / "cpu.cfs_quota_us").write_text("300000\n")
    (root / "cpu" / "job" / "cpu.cfs_period_us").write_text("100000\n")
    monkeypatch.setattr(control_groups, "ROOT", root)
    monkeypatch.setattr(control_groups, "OWN_GROUPS", tmp_path / "groups")
    return tmp_path / "groups"


@pytest.mark.parametrize(
    ("groups", "limits", "kills"),
    [
        ("0::/box/job\n", [3000], 2),
        ("4:cpu:/\n3:memory:/job\n", [2000], 5),
        ("3:memory:/elsewhere\n", [2000], 0),
        ("", [], 0),
    ],
)
def test_both_versions_are_read(lay_out: Path, groups: str, limits: list[int], kills: int) -> None:
    lay_out.write_text(groups)
    assert control_groups.memory_limits() == limits
    assert control_groups.memory_kills() == kills


def test_a_system_without_them_has_no_limit(lay_out: Path) -> None:
    assert control_groups.memory_limits() == []
    assert control_groups.memory_kills() == 0


@pytest.mark.parametrize(
    ("groups", "cores"),
    [("0::/box/job\n", 2), ("4:cpu,cpuacct:/job\n", 3), ("4:cpu:/job\n", 3), ("4:cpu:/\n", 64), ("", 64)],
)
def test_a_quota_of_processor_time_is_fewer_cores(
    lay_out: Path, groups: str, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One and a half cores are two. Version 1 lists controllers that are mounted together by a comma."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    lay_out.write_text(groups)
    assert control_groups.usable_cores() == cores


def test_there_is_always_one_core(lay_out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    (control_groups.ROOT / "box" / "cpu.max").write_text("0 0\n")
    lay_out.write_text("0::/box\n")
    assert control_groups.usable_cores() == 1
