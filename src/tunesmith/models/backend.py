"""What the hardware can do: device, precision, attention, allocator and memory. Nothing else names `torch.cuda`."""

from __future__ import annotations

import ctypes
import functools
import gc
import inspect
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy
import torch

from tunesmith.control_groups import memory_limits, usable_cores
from tunesmith.errors import ModelError

Precision = Literal["fp32", "bf16", "fp16"]
RequestedPrecision = Literal["auto", "fp32", "bf16", "fp16"]

_DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

BF16_CPU_FEATURES = ("amx_bf16", "avx512_bf16", "bf16")
"""Processor flags that mean matrix products in bfloat16: Intel AMX, AVX-512, and Arm's name for its own."""

SHOWN_CPU_FEATURES = (*BF16_CPU_FEATURES, "avx512f", "avx2", "asimd")
"""The flags worth telling, the fastest first."""

CPU_ATTENTION = "tunesmith_causal"
"""The name under which `models/attention.py` is registered with transformers."""

# glibc's malloc.h: parameter numbers and the values that keep large blocks within the process.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MMAP_THRESHOLD_BYTES = 1 << 30
_NEVER_TRIM = -1

_FRESH_BLOCK_BYTES = 1 << 26
_FRESH_BLOCKS = 7


def select_device() -> torch.device:
    """The device to work on: the first CUDA device where there is one, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def resolve_precision(requested: RequestedPrecision, device: torch.device) -> Precision:
    """The precision to hold the weights in and to compute in.

    Args:
        requested: as the recipe says; auto takes bf16 where the device computes in it, else fp16 on CUDA (a V100 has
            no bf16) and fp32 on a CPU.
        device: where the model will run.

    Raises:
        ModelError: fp16 on a CPU, where it is slow and overflows; bf16 on a CUDA device that does not have it.
    """
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        if requested == "bf16" and not has_bf16:
            raise ModelError(
                f"{torch.cuda.get_device_name(device)} does not compute in bf16",
                place="model.precision",
                remedy="use model.precision: fp16, or auto",
            )
        if requested == "auto":
            return "bf16" if has_bf16 else "fp16"
        return requested
    if requested == "fp16":
        raise ModelError(
            "fp16 is for CUDA devices; a processor computes in it slowly, and its small range overflows",
            place="model.precision",
            remedy="use model.precision: bf16 (as much memory), fp32, or auto",
        )
    if requested == "auto":
        return "bf16" if any(feature in cpu_features() for feature in BF16_CPU_FEATURES) else "fp32"
    return requested


def torch_dtype(precision: Precision) -> torch.dtype:
    """torch's name of `precision`."""
    return _DTYPES[precision]


def attention_implementation(model_class: type, device: torch.device) -> str:
    """The attention to ask transformers for.

    Args:
        model_class: transformers' class of the model.
        device: where the model will run.

    Returns:
        `CPU_ATTENTION` on a CPU, for classes that take attention functions by name; else "sdpa", PyTorch's fused one;
        "eager" where the model's mathematics rules both out: Gemma 2 caps the attention logits, and its class says so.
    """
    if not getattr(model_class, "_supports_sdpa", False):
        return "eager"
    return CPU_ATTENTION if device.type == "cpu" and _takes_attention_by_name(model_class) else "sdpa"


def _takes_attention_by_name(model_class: type) -> bool:
    """Whether the class looks attention up in transformers' registry and treats no implementation apart.

    Falcon has a table of its own, and Gemma 4 asks whether the name is "sdpa". No attribute tells; the source does, and
    transformers itself reads it for the first of the two.
    """
    try:
        source = inspect.getsource(sys.modules[model_class.__module__])
    except (KeyError, OSError, TypeError):
        return False
    return "ALL_ATTENTION_FUNCTIONS.get_interface(" in source and '"sdpa"' not in source


def micro_batch_tokens(device: torch.device) -> int:
    """Tokens of one forward pass of training where the recipe leaves them open.

    On a CPU large products need no more, and activations take a quarter of the memory that 8,192 would. For CUDA the
    figure is a guess that no measurement here stands behind.
    """
    return 8192 if device.type == "cuda" else 2048


def width_multiple(precision: Precision) -> int:
    """What the padded length of a training batch is rounded up to.

    Kernels of low precision are made, or chosen, for each shape, so shapes should be few. In fp32 it would be waste.
    """
    return 1 if precision == "fp32" else 8


@functools.cache
def cpu_features() -> frozenset[str]:
    """Flags of this processor that matter for matrix products, in Linux's names."""
    try:
        return frozenset(_flags_of(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")))
    except OSError:
        return _features_by_torch()


def _flags_of(cpuinfo: str) -> Iterator[str]:
    """The flags of the first processor: 'flags' on x86, 'Features' on Arm."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            yield from value.split()
            return


def _features_by_torch() -> frozenset[str]:
    """What torch itself found, for systems without /proc."""
    capability = torch.backends.cpu.get_cpu_capability().lower()
    found = {"avx512": {"avx512f", "avx2"}, "avx2": {"avx2"}}.get(capability, set())
    if getattr(torch.cpu, "_is_avx512_bf16_supported", bool)():
        found.add("avx512_bf16")
    return frozenset(found)


def configure_cpu() -> bool:
    """Sets torch's threads and the allocator for work on the CPU; returns whether large freed blocks are kept.

    torch starts a thread for each core it sees, also for those that a container's quota keeps from it, and then the
    threads wait for each other. A number set by the user (OMP_NUM_THREADS) or by a caller is never raised.
    """
    if select_device().type == "cpu" and torch.get_num_threads() > usable_cores():
        torch.set_num_threads(usable_cores())
    return configure_allocator()


def fresh_block_speed() -> float:
    """10^9 bytes a second that a large new tensor on the CPU is filled with: the allocator's share in every product."""
    seconds = []
    for _ in range(_FRESH_BLOCKS):
        begun = time.perf_counter()
        torch.empty(_FRESH_BLOCK_BYTES, dtype=torch.uint8).fill_(1)
        seconds.append(time.perf_counter() - begun)
    return _FRESH_BLOCK_BYTES / statistics.median(seconds) / 1e9


def configure_allocator() -> bool:
    """Tells glibc to keep large freed blocks instead of returning each to the system; returns whether it is so.

    With the defaults every large temporary is mapped and its pages faulted in anew, which halves the speed of large
    products on a CPU. Freed memory then stays with the process until `release_memory`. To be called before torch
    allocates; calling again changes nothing. Only for work on the CPU, on Linux with glibc.
    """
    if select_device().type != "cpu":
        return False
    return _set_malloc_thresholds()


@functools.cache
def _set_malloc_thresholds() -> bool:
    libc = _glibc()
    if libc is None:
        return False
    # mallopt returns 1 for success.
    settings = ((_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES), (_M_TRIM_THRESHOLD, _NEVER_TRIM))
    return all(libc.mallopt(parameter, value) == 1 for parameter, value in settings)


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None


def release_memory() -> None:
    """Collects garbage and returns freed memory to the system, on the CPU and on CUDA."""
    gc.collect()
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had: CUDA's, torch's CPU allocator's, or Python's own."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(sign in text for sign in _OUT_OF_MEMORY_SIGNS)


_OUT_OF_MEMORY_SIGNS = ("DefaultCPUAllocator", "can't allocate memory", "not enough memory", "CUDA out of memory")


def memory_in_use_bytes(device: torch.device | None = None) -> int:
    """Bytes that this process holds now: its resident memory, or what torch has allocated on a CUDA device."""
    if device is not None and device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _process_status_bytes("VmRSS") or _peak_resident_bytes()


def peak_memory_bytes(device: torch.device | None = None) -> int:
    """The most bytes this process has held since it began (on CUDA: since torch allocated there first)."""
    if device is not None and device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _process_status_bytes("VmHWM") or _peak_resident_bytes()


def _process_status_bytes(field: str) -> int | None:
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    for line in status.splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return None


def _peak_resident_bytes() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def total_memory_bytes(device: torch.device | None = None) -> int:
    """Bytes of memory that this process may use: the device's, or the machine's within its control group's limit."""
    if device is not None and device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return 0
    return min([machine, *memory_limits()])


def synchronize(device: torch.device) -> None:
    """Waits until the device has done all it was given, so that a clock read next is right."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seed_everything(seed: int) -> None:
    """Seeds the generators of Python, NumPy and torch (every device)."""
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def describe_device(device: torch.device) -> str:
    """One line for reports, as "CPU, 2 cores, avx512_bf16, 24 GB"."""
    memory = f"{total_memory_bytes(device) / 1e9:.0f} GB"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"{torch.cuda.get_device_name(device)}, compute capability {major}.{minor}, {memory}"
    cores = usable_cores()
    best = next((feature for feature in SHOWN_CPU_FEATURES if feature in cpu_features()), None)
    parts = ["CPU", f"{cores} core" + "s" * (cores != 1), *([best] if best else []), memory]
    return ", ".join(parts)
