import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.models.folders import edit_json, sharded
from tests.tiny import FAMILIES, tiny_model, tiny_model_folder
from tunesmith.errors import ModelError, UnsafeWeightsError
from tunesmith.models.backend import CPU_ATTENTION
from tunesmith.models.folder import load_tokenizer
from tunesmith.models.loading import load_model, parameter_count, weights_digest

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_model_folder(tmp_path / "model")


class _Exploit:
    """Creates a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.trace,))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_comes_back_as_it_was_saved(tmp_path: Path, family: str) -> None:
    model = load_model(tiny_model_folder(tmp_path, family), precision="fp32", device=CPU)
    original = tiny_model(family)
    input_ids_BT = torch.tensor([[72, 101, 108, 108, 111]])
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids_BT).logits, original(input_ids_BT).logits)
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.config.use_cache


def test_attention_is_ours_except_where_logits_are_capped(tmp_path: Path) -> None:
    llama = load_model(tiny_model_folder(tmp_path / "a", "llama"), precision="fp32", device=CPU)
    gemma2 = load_model(tiny_model_folder(tmp_path / "b", "gemma2"), precision="fp32", device=CPU)
    assert llama.config._attn_implementation == CPU_ATTENTION
    assert gemma2.config._attn_implementation == "eager"


def test_weights_take_the_precision_asked_for(folder: Path) -> None:
    model = load_model(folder, precision="bf16", device=CPU)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_a_sharded_model_loads(tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    assert len(list(folder.glob("*.safetensors"))) > 1
    model = load_model(folder, precision="fp32", device=CPU)
    for name, tensor in tiny_model("llama").state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_a_pickle_is_refused_and_never_opened(folder: Path) -> None:
    trace = folder / "ran"
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Exploit(trace)))
    with pytest.raises(UnsafeWeightsError, match=r"'pytorch_model\.bin' is a Python pickle.*run any code") as raised:
        load_model(folder, precision="fp32", device=CPU)
    assert raised.value.remedy is not None
    assert "safetensors" in raised.value.remedy
    assert not trace.exists()


def test_a_pickle_beside_safetensors_is_left_alone(folder: Path) -> None:
    trace = folder / "ran"
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Exploit(trace)))
    load_model(folder, precision="fp32", device=CPU)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config.json", {"_attn_implementation": "someone/kernel"}, "attention code from elsewhere"),
        ("config.json", {"hidden_size": "abc"}, "hidden_size"),
        ("generation_config.json", {"eos_token_id": "x"}, "cannot be read"),
    ],
)
def test_a_folder_that_fails_its_checks_is_not_loaded(
    folder: Path, file: str, changes: dict[str, Any], message: str
) -> None:
    edit_json(folder / file, **changes)
    with pytest.raises(ModelError, match=message):
        load_model(folder, precision="fp32", device=CPU)


def test_a_damaged_weights_file_is_not_loaded(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match="is not a whole safetensors file"):
        load_model(folder, precision="fp32", device=CPU)


def test_a_model_without_generation_settings_loads(folder: Path) -> None:
    expected = load_model(folder, precision="fp32", device=CPU).state_dict()
    (folder / "generation_config.json").unlink()
    found = load_model(folder, precision="fp32", device=CPU).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_missing_tensor_is_an_error_not_a_random_one(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 of the model's tensors .*layers\.1\.mlp\.up_proj"):
        load_model(folder, precision="fp32", device=CPU)


def test_weights_of_another_shape_are_a_clear_error(folder: Path) -> None:
    edit_json(folder / "config.json", intermediate_size=48)
    with pytest.raises(ModelError, match="the model cannot be loaded"):
        load_model(folder, precision="fp32", device=CPU)


def test_code_in_the_folder_never_runs(folder: Path) -> None:
    trace = folder / "ran"
    (folder / "evil.py").write_text(f"open({str(trace)!r}, 'w')\n")
    edit_json(folder / "config.json", auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"})
    edit_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", "evil.T"]})
    load_model(folder, precision="fp32", device=CPU)
    load_tokenizer(folder)
    assert not trace.exists()


def test_the_digest_follows_names_and_bytes_and_nothing_else(tmp_path: Path) -> None:
    first = weights_digest(tiny_model_folder(tmp_path / "a"))
    again = tiny_model_folder(tmp_path / "b")
    (again / "notes.txt").write_text("beside")
    assert weights_digest(again) == first
    assert weights_digest(tiny_model_folder(tmp_path / "c", attention_bias=True)) != first
    assert weights_digest(sharded(tmp_path / "d")) != first
    file = again / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    assert weights_digest(again) != first
    assert len(first) == 64


def test_tied_parameters_count_once() -> None:
    tied, untied = (tiny_model("llama", tie_word_embeddings=tied) for tied in (True, False))
    assert parameter_count(untied) - parameter_count(tied) == 264 * 32


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
@pytest.mark.parametrize("where", ["reading", "placing"])
def test_a_lack_of_memory_is_a_clear_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, where: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    if where == "reading":
        monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    else:
        monkeypatch.setattr(PreTrainedModel, "to", fail)
    with pytest.raises(ModelError, match="there is not enough memory to load the model") as raised:
        load_model(folder, precision="fp32", device=CPU)
    assert "bf16" in str(raised.value.remedy)
