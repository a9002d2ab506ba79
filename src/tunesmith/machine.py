"""What this machine can do: versions, device, memory, speed, disk, cache, packages; and what to do about it."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import time
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path

import torch

from tunesmith._version import __version__
from tunesmith.control_groups import usable_cores
from tunesmith.models import backend
from tunesmith.models.cache import cache_folder, find_problem
from tunesmith.models.catalog import CATALOG
from tunesmith.progress import task
from tunesmith.report import Report, Severity, Table
from tunesmith.runs import RECORDED_PACKAGES

OPTIONAL_PACKAGES = (
    ("datasets", "hub", "datasets of the hub"),
    ("MeCab", "ja", "BLEU of Japanese"),
    ("tensorboard", "tensorboard", "train.report_to: tensorboard"),
    ("wandb", "wandb", "train.report_to: wandb"),
    ("trackio", "trackio", "train.report_to: trackio"),
)
"""Import name, the extra of tunesmith that installs it, and what it is for."""

SAFE_TORCH = (2, 6)
"""Below it even torch.load(weights_only=True) could be made to run code (CVE-2025-32434)."""

SMALL_MEMORY_GB = 4.0
"""The default model's weights take 0.3 to 0.5 GB; torch, activations and gradients come on top."""

SMALL_DISK_GB = 3.0
"""The default model takes 0.7 GB while it is converted, its merged copy 0.5 GB, checkpoints some more."""

_PRODUCT_WIDTH = 1024
_SECONDS_PER_PRODUCT = 0.4
_GIGABYTE = 1e9


def doctor() -> Report:
    """Looks at this machine; takes about two seconds and changes nothing.

    Returns:
        A report of the stage "doctor". A finding that keeps everything from working is an error, one that makes work
        slow or a part unavailable a warning or note; each names its remedy.
    """
    device = backend.select_device()
    by_default = backend.fresh_block_speed()
    # Before the products, so that their speed is the one that training has.
    allocator_set = backend.configure_cpu()
    report = Report(stage="doctor", title="What this machine can do")
    report.add_figure("device", "Device", backend.describe_device(device))
    report.add_figure("precision", "Precision of model.precision: auto", backend.resolve_precision("auto", device))
    _look_at_versions(report)
    _look_at_memory(report, device)
    _look_at_speed(report, device)
    _look_at_allocator(report, device, allocator_set, by_default)
    _look_at_disk(report)
    _look_at_cache(report)
    _look_at_optional_packages(report)
    return report


def _look_at_versions(report: Report) -> None:
    versions = {"tunesmith": __version__, "python": platform.python_version(), "platform": platform.platform()}
    versions |= {name: _version(name) for name in RECORDED_PACKAGES}
    report.tables.append(Table("Versions", ("what", "version"), tuple(versions.items())))
    if _numbers(torch.__version__) < SAFE_TORCH:
        report.add_finding(
            Severity.ERROR,
            "torch-unsafe",
            f"torch {torch.__version__} can be made to run code by a file it loads (CVE-2025-32434)",
            remedy="pip install --upgrade 'torch>=2.8'",
        )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _numbers(version: str) -> tuple[int, ...]:
    """(2, 13) of "2.13.0+cpu"."""
    return tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit())


def _look_at_memory(report: Report, device: torch.device) -> None:
    report.add_figure("cores", "Processor cores", usable_cores(), detail=f"{torch.get_num_threads()} threads of torch")
    memory = backend.total_memory_bytes(device) / _GIGABYTE
    report.add_figure("memory_gb", "Memory of the device", round(memory, 1), "GB")
    if 0 < memory < SMALL_MEMORY_GB:
        report.add_finding(
            Severity.WARNING,
            "memory-small",
            f"{memory:.1f} GB of memory is little for training",
            remedy="lower train.per_device_train_batch_size and data.max_length, set train.gradient_checkpointing",
        )


def _look_at_speed(report: Report, device: torch.device) -> None:
    with task("Measuring matrix products"):
        speeds = {name: _product_speed(device, backend.torch_dtype(name)) for name in ("fp32", "bf16")}
    for name, speed in speeds.items():
        report.add_figure(
            f"{name}_gflops",
            f"Matrix products in {name}",
            float(f"{speed:.3g}"),
            "GFLOP/s",
            f"{_PRODUCT_WIDTH} x {_PRODUCT_WIDTH}",
        )
    if device.type == "cpu" and backend.resolve_precision("auto", device) == "fp32":
        report.add_finding(
            Severity.NOTE,
            "no-bf16",
            "this processor does not compute in bf16, so models run in fp32: twice the memory, less speed",
            remedy="a processor with AVX-512 BF16 or AMX, or a GPU, trains faster",
        )


def _product_speed(device: torch.device, dtype: torch.dtype) -> float:
    """10^9 multiplications and additions a second in square products."""
    left, right = (torch.ones(_PRODUCT_WIDTH, _PRODUCT_WIDTH, device=device, dtype=dtype) for _ in range(2))
    left @ right  # the first one makes the kernel
    backend.synchronize(device)
    count = 0
    begun = time.perf_counter()
    while (seconds := time.perf_counter() - begun) < _SECONDS_PER_PRODUCT:
        left @ right
        backend.synchronize(device)
        count += 1
    return 2 * _PRODUCT_WIDTH**3 * count / seconds / 1e9


def _look_at_allocator(report: Report, device: torch.device, allocator_set: bool, by_default: float) -> None:
    report.add_figure("allocator", "Large freed blocks are kept (glibc)", "yes" if allocator_set else "no")
    if allocator_set:
        report.add_figure(
            "fresh_block_gbps",
            "Filling a large new block",
            round(backend.fresh_block_speed(), 1),
            "GB/s",
            f"{by_default:.1f} GB/s with the allocator's defaults",
        )
        backend.release_memory()
    if device.type == "cpu" and not allocator_set:
        report.add_finding(
            Severity.NOTE,
            "allocator-default",
            "the system's memory allocator cannot be tuned here, so large products map fresh memory each time",
            remedy="training on the CPU is faster on Linux with glibc (not musl)",
        )


def _look_at_disk(report: Report) -> None:
    for name, label, folder in (
        ("cache", "Free disk at the cache", cache_folder()),
        ("here", "Free disk in this folder", Path.cwd()),
    ):
        there = next(place for place in (folder, *folder.parents) if place.exists())
        free = shutil.disk_usage(there).free / _GIGABYTE
        report.add_figure(f"disk_{name}_gb", label, round(free, 1), "GB", str(folder))
        if free < SMALL_DISK_GB:
            report.add_finding(
                Severity.WARNING,
                f"disk-{name}-small",
                f"only {free:.1f} GB are free at {folder}",
                remedy="free some space, or set TUNESMITH_CACHE"
                if name == "cache"
                else "free some space, or use --run",
            )
        if not os.access(there, os.W_OK):
            report.add_finding(
                Severity.WARNING,
                f"disk-{name}-read-only",
                f"{there} cannot be written",
                remedy="set TUNESMITH_CACHE to a writable folder" if name == "cache" else "use --run FOLDER",
            )


def _look_at_cache(report: Report) -> None:
    models = cache_folder() / "models"
    folders = sorted(path for path in models.iterdir() if path.is_dir()) if models.is_dir() else []
    rows = tuple((folder.name, round(_size_gb(folder), 2), find_problem(folder) or "whole") for folder in folders)
    report.tables.append(Table(f"Cached models in {models}", ("model", "GB", "state"), rows))
    missing = [name for name in CATALOG if not (models / name).is_dir()]
    # Not `importlib.util.find_spec`: setuptools' finder would put its own distutils in place of an imported one.
    has_pip = PathFinder.find_spec("pip") is not None
    report.add_figure("pip", "pip is there to fetch the default model", "yes" if has_pip else "no")
    if missing and not has_pip:
        report.add_finding(
            Severity.WARNING,
            "pip-missing",
            f"{', '.join(missing)} is not in the cache, and pip, which fetches it, is not installed here",
            remedy="python -m ensurepip",
        )


def _size_gb(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) / _GIGABYTE


def _look_at_optional_packages(report: Report) -> None:
    rows = tuple(
        (package, purpose, "installed" if _is_installed(package) else f"pip install 'tunesmith[{extra}]'")
        for package, extra, purpose in OPTIONAL_PACKAGES
    )
    report.tables.append(Table("Optional packages", ("package", "for", "state"), rows))


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
