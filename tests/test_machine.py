import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from tunesmith import machine as module
from tunesmith.control_groups import usable_cores
from tunesmith.machine import doctor
from tunesmith.models import backend
from tunesmith.report import Report, Severity


@pytest.fixture(autouse=True)
def quick_and_in_own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SECONDS_PER_PRODUCT", 0.01)
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))


def _finding(report: Report, code: str) -> Any:
    return next((finding for finding in report.findings if finding.code == code), None)


def _table(report: Report, title: str) -> dict[str, tuple[Any, ...]]:
    table = next(table for table in report.tables if table.title.startswith(title))
    return {str(row[0]): row[1:] for row in table.rows}


def test_the_machine_is_described_and_nothing_is_written(tmp_path: Path) -> None:
    report = doctor()
    assert report.stage == "doctor"
    assert report.passed
    assert report.figure("device") == backend.describe_device(backend.select_device())
    assert report.figure("cores") == usable_cores()
    for name in ("fp32_gflops", "bf16_gflops", "fresh_block_gbps", "memory_gb", "disk_cache_gb", "disk_here_gb"):
        value = report.figure(name)
        assert isinstance(value, (int, float))
        assert value > 0
    assert _table(report, "Versions")["torch"][0] == torch.__version__
    assert not (tmp_path / "cache").exists()
    assert Report.from_dict(report.to_dict()) == report


def test_slow_products_are_told_with_their_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_product_speed", lambda _, dtype: 0.3456 if dtype == torch.bfloat16 else 456.7)
    report = doctor()
    assert (report.figure("bf16_gflops"), report.figure("fp32_gflops")) == (0.346, 457)


def test_looking_for_pip_leaves_an_imported_distutils_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distutils", ModuleType("distutils"))
    before = sys.modules["distutils"]
    doctor()
    assert sys.modules["distutils"] is before


def test_an_unsafe_torch_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.5.1+cu121")
    report = doctor()
    assert not report.passed
    assert _finding(report, "torch-unsafe").remedy.startswith("pip install")


@pytest.mark.parametrize(
    ("version", "safe"), [("2.6.0", True), ("2.13.0+cpu", True), ("3.0.0a0", True), ("1.13.1", False)]
)
def test_versions_are_compared_by_number(version: str, safe: bool) -> None:
    assert (module._numbers(version) >= module.SAFE_TORCH) is safe


def test_a_small_old_machine_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "total_memory_bytes", lambda _: 2 * 10**9)
    monkeypatch.setattr(backend, "select_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(backend, "cpu_features", lambda: frozenset({"avx2"}))
    monkeypatch.setattr(backend, "configure_cpu", lambda: False)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**9))
    report = doctor()
    assert report.figure("precision") == "fp32"
    for code in ("memory-small", "no-bf16", "allocator-default", "disk-cache-small", "disk-here-small"):
        assert _finding(report, code).remedy, code
    assert report.passed


def test_the_cache_is_listed_with_its_state(tmp_path: Path) -> None:
    (tmp_path / "cache" / "models" / "smollm2-135m").mkdir(parents=True)
    assert _table(doctor(), "Cached models")["smollm2-135m"] == (0.0, "it has no manifest")


def test_without_pip_the_default_model_cannot_be_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PathFinder", SimpleNamespace(find_spec=lambda _: None))
    finding = _finding(doctor(), "pip-missing")
    assert finding.severity is Severity.WARNING
    assert finding.remedy == "python -m ensurepip"
    (tmp_path / "cache" / "models" / "smollm2-135m").mkdir(parents=True)
    assert _finding(doctor(), "pip-missing") is None


def test_optional_packages_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_is_installed", lambda package: package == "datasets")
    packages = _table(doctor(), "Optional packages")
    assert packages["datasets"][-1] == "installed"
    assert packages["wandb"][-1] == "pip install 'tunesmith[wandb]'"
