"""The stand-in for torch gives way to torch, and models work as if it had never been."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.tiny import tiny_model, tiny_model_folder
from tunesmith.models import light_transformers

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
"""Positions that `transformers.modeling_rope_utils` computes with torch."""

LATER = """
import sys
from tunesmith.models.folder import load_tokenizer
assert "torch" not in sys.modules

from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
import torch, transformers
assert transformers.modeling_rope_utils.torch is torch
with torch.no_grad():
    print(model(torch.arange(100)[None]).logits.double().sum().item())
"""


def test_a_model_made_after_the_tokenizer_answers_alike(tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path, rope_parameters=LLAMA3)
    done = subprocess.run([sys.executable, "-c", LATER, str(folder)], capture_output=True, text=True, check=True)
    with torch.no_grad():
        expected = tiny_model(rope_parameters=LLAMA3)(torch.arange(100)[None]).logits.double().sum().item()
        plain = tiny_model()(torch.arange(100)[None]).logits.double().sum().item()
    assert float(done.stdout) == pytest.approx(expected, rel=1e-4)
    assert float(done.stdout) != pytest.approx(plain, rel=1e-4)


@pytest.fixture
def another_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of modules where `torch` is one that counts its imports, and is not imported yet."""
    (tmp_path / "torch.py").write_text("import builtins\nbuiltins.torch_imports += 1\nfloat32 = 'a dtype'\n")
    monkeypatch.setattr("builtins.torch_imports", 0, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(light_transformers, "ROPE_MODULE", "uses_torch")
    yield tmp_path
    sys.modules.pop("uses_torch", None)


def _put_off(folder: Path, code: str) -> None:
    (folder / "uses_torch.py").write_text(code)
    light_transformers._put_off_torch()


def _imports() -> int:
    return int(vars(sys.modules["builtins"])["torch_imports"])


def test_torch_is_imported_once_and_only_when_it_is_used(another_torch: Path) -> None:
    _put_off(another_torch, "import torch\ndef dtype():\n    return torch.float32\n")
    module = sys.modules["uses_torch"]
    assert (_imports(), "torch" in sys.modules) == (0, False)
    assert [module.dtype(), module.dtype()] == ["a dtype", "a dtype"]
    assert vars(module)["torch"] is sys.modules["torch"]
    assert _imports() == 1


def test_a_module_that_uses_torch_at_once_gets_it(another_torch: Path) -> None:
    _put_off(another_torch, "import torch\nDTYPE = torch.float32\n")
    assert vars(sys.modules["uses_torch"])["DTYPE"] == "a dtype"
    assert vars(sys.modules["uses_torch"])["torch"] is sys.modules["torch"]
    assert _imports() == 1


def test_a_module_that_needs_a_part_of_torch_is_left_to_be_imported_as_usual(another_torch: Path) -> None:
    _put_off(another_torch, "import torch.another_part\n")
    assert not {"torch", "uses_torch"} & sys.modules.keys()


def test_an_imported_torch_is_left_as_it_is(another_torch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", torch)
    _put_off(another_torch, "import torch\n")
    assert sys.modules["torch"] is torch
    assert "uses_torch" not in sys.modules
