"""Limits and kills of control groups, in files as Linux lays them out."""

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
