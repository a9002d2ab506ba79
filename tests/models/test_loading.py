import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from tests.tiny import FAMILIES, byte_tokenizer, tiny_model, tiny_model_folder
from tunesmith.errors import ModelError, UnsafeWeightsError
from tunesmith.models.loading import (
    INDEX_FILE,
    check_weights_safe,
    context_length,
    load_config,
    load_model,
    load_tokenizer,
    parameter_count,
    quiet_transformers,
    read_generation_config,
    weights_digest,
)

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_model_folder(tmp_path / "model")


def _sharded(folder: Path) -> Path:
    tiny_model("llama").save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    return folder


def _edit_json(file: Path, **changes: Any) -> None:
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, **changes}))


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


def test_attention_is_the_fused_one_except_where_logits_are_capped(tmp_path: Path) -> None:
    llama = load_model(tiny_model_folder(tmp_path / "a", "llama"), precision="fp32", device=CPU)
    gemma2 = load_model(tiny_model_folder(tmp_path / "b", "gemma2"), precision="fp32", device=CPU)
    assert llama.config._attn_implementation == "sdpa"
    assert gemma2.config._attn_implementation == "eager"


def test_weights_take_the_precision_asked_for(folder: Path) -> None:
    model = load_model(folder, precision="bf16", device=CPU)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_a_sharded_model_loads(tmp_path: Path) -> None:
    folder = _sharded(tmp_path)
    assert len(list(folder.glob("*.safetensors"))) > 1
    model = load_model(folder, precision="fp32", device=CPU)
    for name, tensor in tiny_model("llama").state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_tokenizer_comes_back(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    assert tokenizer("hé<|im_end|>")["input_ids"] == byte_tokenizer()("hé<|im_end|>")["input_ids"]
    assert tokenizer.chat_template == byte_tokenizer().chat_template


def test_a_folder_without_tokenizer_names_what_was_looked_for(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"the model folder has no tokenizer .*tokenizer\.json") as raised:
        load_tokenizer(tmp_path)
    assert raised.value.place == str(tmp_path)


def test_a_broken_tokenizer_is_a_clear_error(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="the tokenizer cannot be read"):
        load_tokenizer(folder)


def test_a_pickle_is_refused_and_never_opened(folder: Path) -> None:
    trace = folder / "ran"
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Exploit(trace)))
    with pytest.raises(UnsafeWeightsError, match=r"'pytorch_model\.bin' is a Python pickle.*run any code") as raised:
        load_model(folder, precision="fp32", device=CPU)
    assert raised.value.remedy is not None
    assert "safetensors" in raised.value.remedy
    assert not trace.exists()


@pytest.mark.parametrize("suffix", ["bin", "pt", "pth", "ckpt", "pkl"])
def test_every_pickle_format_is_known(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"weights.{suffix}").write_bytes(b"")
    with pytest.raises(UnsafeWeightsError, match=f"weights.{suffix}"):
        check_weights_safe(tmp_path)


def test_a_pickle_beside_safetensors_is_left_alone(folder: Path) -> None:
    trace = folder / "ran"
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Exploit(trace)))
    load_model(folder, precision="fp32", device=CPU)
    assert not trace.exists()


def test_pickled_shards_of_a_safetensors_index_are_refused(tmp_path: Path) -> None:
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": {"a": "pytorch_model.bin"}}))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UnsafeWeightsError):
        check_weights_safe(tmp_path)


def test_no_weights_at_all(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="has no weights"):
        load_model(folder, precision="fp32", device=CPU)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = _sharded(tmp_path)
    lost = sorted(folder.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(ModelError, match=f"shard '{lost.name}' of the weights is missing"):
        check_weights_safe(folder)


@pytest.mark.parametrize(
    "name", ["../other.safetensors", "/etc/x.safetensors", "a/../../x.safetensors", "..\\x.safetensors"]
)
def test_an_index_cannot_lead_out_of_the_folder(tmp_path: Path, name: str) -> None:
    folder = _sharded(tmp_path / "model")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(ModelError, match="points outside the model folder"):
        check_weights_safe(folder)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 3}}'])
def test_a_broken_index_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / INDEX_FILE).write_text(text)
    with pytest.raises(ModelError, match="is no index of weights") as raised:
        check_weights_safe(tmp_path)
    assert raised.value.place == str(tmp_path / INDEX_FILE)


@pytest.mark.parametrize("damage", ["cut", "header", "empty"])
def test_a_damaged_weights_file_is_named(folder: Path, damage: str) -> None:
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes({"cut": whole[:-100], "header": b"\xff" * 200, "empty": b""}[damage])
    with pytest.raises(ModelError, match="is not a whole safetensors file") as raised:
        load_model(folder, precision="fp32", device=CPU)
    assert raised.value.place == str(file)


def test_a_missing_tensor_is_an_error_not_a_random_one(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 of the model's tensors .*layers\.1\.mlp\.up_proj"):
        load_model(folder, precision="fp32", device=CPU)


def test_weights_of_another_shape_are_a_clear_error(folder: Path) -> None:
    _edit_json(folder / "config.json", intermediate_size=48)
    with pytest.raises(ModelError, match="the model cannot be loaded"):
        load_model(folder, precision="fp32", device=CPU)


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"has no config\.json"):
        load_model(folder, precision="fp32", device=CPU)


def test_an_adapter_folder_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError) as raised:
        load_model(tmp_path, precision="fp32", device=CPU)
    assert raised.value.remedy == "this is an adapter; give the folder of its base model"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mystery"}, "not known to transformers"),
        ({"model_type": "mystery", "auto_map": {"AutoModelForCausalLM": "modeling.Mystery"}}, "never run"),
        ({"model_type": "vit"}, "not a causal language model"),
        ({"model_type": None}, "names no model_type"),
    ],
)
def test_a_config_that_cannot_be_used_says_why(folder: Path, changes: dict[str, Any], message: str) -> None:
    _edit_json(folder / "config.json", **changes)
    with pytest.raises(ModelError, match=message) as raised:
        load_model(folder, precision="fp32", device=CPU)
    assert raised.value.place == str(folder / "config.json")


def test_code_in_the_folder_never_runs(folder: Path) -> None:
    trace = folder / "ran"
    (folder / "evil.py").write_text(f"open({str(trace)!r}, 'w')\n")
    _edit_json(folder / "config.json", auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"})
    _edit_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", "evil.T"]})
    load_model(folder, precision="fp32", device=CPU)
    load_tokenizer(folder)
    assert not trace.exists()


@pytest.mark.parametrize("key", ["_attn_implementation", "_attn_implementation_internal", "attn_implementation"])
def test_attention_code_of_the_hub_is_refused(folder: Path, key: str) -> None:
    _edit_json(folder / "config.json", text_config=[{key: "someone/kernel"}])
    with pytest.raises(UnsafeWeightsError, match="someone/kernel"):
        load_model(folder, precision="fp32", device=CPU)


def test_the_digest_follows_names_and_bytes_and_nothing_else(tmp_path: Path) -> None:
    first = weights_digest(tiny_model_folder(tmp_path / "a"))
    again = tiny_model_folder(tmp_path / "b")
    (again / "notes.txt").write_text("beside")
    assert weights_digest(again) == first
    assert weights_digest(tiny_model_folder(tmp_path / "c", attention_bias=True)) != first
    assert weights_digest(_sharded(tmp_path / "d")) != first
    file = again / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    assert weights_digest(again) != first
    assert len(first) == 64


def test_context_length_and_parameter_count() -> None:
    model = tiny_model("llama", tie_word_embeddings=True)
    assert context_length(model.config) == 512
    untied = tiny_model("llama", tie_word_embeddings=False)
    assert parameter_count(untied) - parameter_count(model) == 264 * 32
    assert context_length(type("Config", (), {"get_text_config": lambda self, **_: self})()) is None


def test_transformers_speaks_again_after_the_quiet() -> None:
    before = (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled())
    with quiet_transformers():
        assert not transformers_logging.is_progress_bar_enabled()
    assert (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()) == before


@pytest.mark.parametrize("changes", [{"transformers_weights": "x.bin"}, {"text_config": {"transformers_weights": "x"}}])
def test_a_config_cannot_name_other_weights(folder: Path, changes: dict[str, Any]) -> None:
    _edit_json(folder / "config.json", **changes)
    with pytest.raises(UnsafeWeightsError, match="names a file of its own for the weights") as raised:
        load_model(folder, precision="fp32", device=CPU)
    assert "remove transformers_weights" in str(raised.value.remedy)


def test_a_distributed_checkpoint_beside_the_weights_is_refused(folder: Path) -> None:
    name = "shard-00001-model-00001-of-00001.safetensors"
    save_file({"x": torch.zeros(1)}, folder / name)
    with pytest.raises(ModelError, match=name) as raised:
        load_model(folder, precision="fp32", device=CPU)
    assert "save_pretrained" in str(raised.value.remedy)


def test_an_adapter_in_the_models_folder_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="also holds an adapter") as raised:
        load_model(folder, precision="fp32", device=CPU)
    assert "a folder of their own" in str(raised.value.remedy)


def test_a_config_value_of_the_wrong_kind_is_a_clear_error(folder: Path) -> None:
    assert load_config(folder).num_hidden_layers == 2
    _edit_json(folder / "config.json", hidden_size="abc")
    with pytest.raises(ModelError, match=r"hidden_size.*abc") as raised:
        load_config(folder)
    assert raised.value.place == str(folder / "config.json")
    with pytest.raises(ModelError, match="hidden_size"):
        load_model(folder, precision="fp32", device=CPU)


def test_generation_settings_come_back_or_are_none(folder: Path) -> None:
    settings = read_generation_config(folder)
    assert settings is not None
    assert settings.eos_token_id == 260
    (folder / "generation_config.json").unlink()
    assert read_generation_config(folder) is None
    load_model(folder, precision="fp32", device=CPU)


@pytest.mark.parametrize("text", ["{", "[]", "", '{"eos_token_id": "x"}', '{"eos_token_id": [1, null]}'])
def test_broken_generation_settings_are_a_clear_error(folder: Path, text: str) -> None:
    (folder / "generation_config.json").write_text(text)
    with pytest.raises(ModelError, match="cannot be read") as raised:
        read_generation_config(folder)
    assert raised.value.place == str(folder / "generation_config.json")
    with pytest.raises(ModelError, match="cannot be read"):
        load_model(folder, precision="fp32", device=CPU)


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
