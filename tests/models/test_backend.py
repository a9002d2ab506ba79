import ctypes
import random
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from transformers import FalconForCausalLM, Gemma2ForCausalLM, Gemma4ForCausalLM, LlamaForCausalLM

from tunesmith.errors import ModelError
from tunesmith.models import backend

CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_the_cpu_is_taken_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert backend.select_device() == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert backend.select_device() == GPU


@pytest.mark.parametrize(
    ("features", "expected"),
    [({"avx2"}, "fp32"), ({"avx512f", "avx512_bf16"}, "bf16"), ({"amx_bf16"}, "bf16"), ({"asimd", "bf16"}, "bf16")],
)
def test_auto_on_a_cpu_follows_the_processor(
    monkeypatch: pytest.MonkeyPatch, features: set[str], expected: str
) -> None:
    monkeypatch.setattr(backend, "cpu_features", lambda: frozenset(features))
    assert backend.resolve_precision("auto", CPU) == expected


def test_what_is_asked_for_is_given() -> None:
    assert backend.resolve_precision("fp32", CPU) == "fp32"
    assert backend.resolve_precision("bf16", CPU) == "bf16"


def test_fp16_on_a_cpu_is_refused_with_a_remedy() -> None:
    with pytest.raises(ModelError, match="fp16 is for CUDA devices") as raised:
        backend.resolve_precision("fp16", CPU)
    assert raised.value.place == "model.precision"
    assert raised.value.remedy is not None
    assert "bf16" in raised.value.remedy


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, "bf16"), (False, "fp16")])
def test_auto_on_cuda_follows_the_device(monkeypatch: pytest.MonkeyPatch, has_bf16: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: has_bf16)
    assert backend.resolve_precision("auto", GPU) == expected
    assert backend.resolve_precision("fp16", GPU) == "fp16"


def test_bf16_on_a_gpu_without_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla V100")
    with pytest.raises(ModelError, match="Tesla V100 does not compute in bf16"):
        backend.resolve_precision("bf16", GPU)


def test_dtypes() -> None:
    assert [backend.torch_dtype(name) for name in ("fp32", "bf16", "fp16")] == [
        torch.float32,
        torch.bfloat16,
        torch.float16,
    ]


def test_flags_are_read_on_x86_and_arm() -> None:
    x86 = "processor\t: 0\nflags\t\t: fpu avx2 avx512_bf16\nvmx flags\t: vnmi\n\nprocessor\t: 1\nflags\t\t: other\n"
    arm = "processor\t: 0\nFeatures\t: fp asimd bf16\n"
    assert set(backend._flags_of(x86)) == {"fpu", "avx2", "avx512_bf16"}
    assert set(backend._flags_of(arm)) == {"fp", "asimd", "bf16"}


ALLOCATOR_PROBE = """
import torch
from tunesmith.models import backend
if {set_first}:
    assert backend.configure_allocator() and backend.configure_allocator()
def minor_faults():
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def faults_of_one():
    before = minor_faults()
    torch.ones(30_000_000)
    return minor_faults() - before
print(min(faults_of_one() for _ in range(40)))
"""


@pytest.mark.skipif(backend._glibc() is None, reason="needs glibc")
@pytest.mark.skipif(torch.cuda.is_available(), reason="for work on the CPU only")
def test_the_allocator_keeps_large_freed_blocks() -> None:
    """By glibc's defaults each 120 MB tensor faults in its 29,000 pages anew; a kept block faults in none."""
    faults = {}
    for set_first in (False, True):
        script = ALLOCATOR_PROBE.format(set_first=set_first)
        run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        faults[set_first] = int(run.stdout)
    assert 10 * faults[True] < faults[False]


def test_torch_has_no_more_threads_than_cores_and_none_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        monkeypatch.setattr(backend, "usable_cores", lambda: 8)
        backend.configure_cpu()
        assert torch.get_num_threads() == 2
        monkeypatch.setattr(backend, "usable_cores", lambda: 1)
        assert backend.configure_cpu() == backend.configure_allocator()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_the_allocator_is_left_alone_where_a_gpu_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert backend.configure_allocator() is False


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_glibc", lambda: None)
    backend._set_malloc_thresholds.cache_clear()
    assert backend.configure_allocator() is False
    backend._set_malloc_thresholds.cache_clear()
    backend.release_memory()


def test_memory_in_use_and_its_peak_follow_what_is_held() -> None:
    backend.release_memory()
    before = backend.memory_in_use_bytes()
    held = torch.ones(50_000_000)
    grown = backend.memory_in_use_bytes() - before
    assert grown == pytest.approx(held.nbytes, rel=0.2)
    assert backend.peak_memory_bytes() >= backend.memory_in_use_bytes()
    del held
    backend.release_memory()
    assert backend.memory_in_use_bytes() - before < 100_000_000
    assert backend.peak_memory_bytes() - before > 150_000_000


def test_total_memory_is_within_the_machine() -> None:
    assert backend.memory_in_use_bytes() < backend.total_memory_bytes() <= 1 << 50


def test_a_control_group_lowers_the_total(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "memory_limits", lambda: [5000])
    assert backend.total_memory_bytes() == 5000


def test_a_seed_fixes_every_generator() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(numpy.random.rand()), float(torch.rand(1))

    state = torch.get_rng_state()
    backend.seed_everything(2**40 + 3)
    first = draw()
    backend.seed_everything(2**40 + 3)
    assert draw() == first
    backend.seed_everything(4)
    assert draw() != first
    torch.set_rng_state(state)


def test_attention_is_ours_on_a_cpu_where_the_class_takes_it_by_name() -> None:
    assert backend.attention_implementation(LlamaForCausalLM, CPU) == backend.CPU_ATTENTION
    assert backend.attention_implementation(LlamaForCausalLM, torch.device("cuda")) == "sdpa"
    assert backend.attention_implementation(Gemma2ForCausalLM, CPU) == "eager"


@pytest.mark.parametrize("model_class", [FalconForCausalLM, Gemma4ForCausalLM, type("A", (), {"_supports_sdpa": True})])
def test_a_class_that_asks_for_sdpa_by_name_gets_it(model_class: type) -> None:
    assert backend.attention_implementation(model_class, CPU) == "sdpa"


def test_the_description_names_cores_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "cpu_features", lambda: frozenset({"avx2", "avx512_bf16"}))
    monkeypatch.setattr(backend, "usable_cores", lambda: 2)
    monkeypatch.setattr(backend, "total_memory_bytes", lambda _: 24 * 10**9)
    assert backend.describe_device(CPU) == "CPU, 2 cores, avx512_bf16, 24 GB"
    monkeypatch.setattr(backend, "usable_cores", lambda: 1)
    monkeypatch.setattr(backend, "cpu_features", frozenset)
    assert backend.describe_device(CPU) == "CPU, 1 core, 24 GB"


def test_only_the_backend_names_the_gpu_library() -> None:
    package = Path(backend.__file__).parents[1]
    named = [path.name for path in package.rglob("*.py") if "torch.cuda" in path.read_text(encoding="utf-8")]
    assert named == ["backend.py"]


@pytest.mark.gpu
@needs_gpu
def test_gpu_memory_and_description() -> None:
    held = torch.ones(1 << 20, device=GPU)
    backend.synchronize(GPU)
    assert backend.memory_in_use_bytes(GPU) >= held.nbytes
    assert backend.peak_memory_bytes(GPU) >= held.nbytes
    assert backend.total_memory_bytes(GPU) > held.nbytes
    assert "compute capability" in backend.describe_device(GPU)


def test_glibc_is_what_ctypes_says() -> None:
    libc = backend._glibc()
    assert libc is None or isinstance(libc, ctypes.CDLL)
