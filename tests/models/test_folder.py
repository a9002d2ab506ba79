"""A model folder is checked and its tokenizer loaded without torch; what is wrong with it is named."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from tests.models.folders import edit_json, sharded
from tests.tiny import FAMILIES, byte_tokenizer, tiny_config, tiny_model, tiny_model_folder
from tunesmith.errors import ModelError, UnsafeWeightsError
from tunesmith.models.folder import (
    INDEX_FILE,
    check_weights_safe,
    context_length,
    folder_context_length,
    load_config,
    load_tokenizer,
    quiet_transformers,
    read_config,
    read_generation_config,
)

WITHOUT_TORCH = """
import sys
from pathlib import Path
from tunesmith.config import ModelSection
from tunesmith.models.catalog import resolve_model
from tunesmith.models.folder import folder_context_length, load_tokenizer, read_generation_config

folder = resolve_model(ModelSection(name=sys.argv[1]), weights=False)
tokenizer = load_tokenizer(folder)
print(tokenizer.decode(tokenizer("hello")["input_ids"]), folder_context_length(folder))
print(read_generation_config(folder).eos_token_id)
print(sorted({"torch", "peft", "accelerate"} & sys.modules.keys()))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_model_folder(tmp_path / "model")


def test_a_folder_is_read_without_torch(folder: Path) -> None:
    """torch takes seconds to import, and a check of the data needs none of it."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(folder)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["hello 512", "260", "[]"]


def test_tokenizer_comes_back(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    assert tokenizer("hé<|im_end|>")["input_ids"] == byte_tokenizer()("hé<|im_end|>")["input_ids"]
    assert tokenizer.chat_template == byte_tokenizer().chat_template


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("named", ["TokenizersBackend", "PreTrainedTokenizerFast", "LlamaTokenizerFast", "", "Unheard"])
def test_the_tokenizer_is_the_one_transformers_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, named: str
) -> None:
    """Which class it takes follows from many exceptions by kind of model; the tokens follow from the class."""
    byte_tokenizer().save_pretrained(tmp_path)
    tiny_config(family).save_pretrained(tmp_path)
    edit_json(tmp_path / "tokenizer_config.json", tokenizer_class=named or None)
    taken: list[str] = []

    def take(kind: type, *_: Any, **__: Any) -> None:
        taken.append(kind.__name__)

    monkeypatch.setattr(PreTrainedTokenizerBase, "from_pretrained", classmethod(take))
    load_tokenizer(tmp_path)
    AutoTokenizer.from_pretrained(tmp_path)
    assert len(taken) == 2
    assert taken[0] == taken[1]


def test_a_folder_without_tokenizer_names_what_was_looked_for(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"the model folder has no tokenizer .*tokenizer\.json") as raised:
        load_tokenizer(tmp_path)
    assert raised.value.place == str(tmp_path)


def test_a_broken_tokenizer_is_a_clear_error(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="the tokenizer cannot be read"):
        load_tokenizer(folder)


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"has no config\.json"):
        read_config(folder)


def test_an_adapter_folder_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError) as raised:
        read_config(tmp_path)
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
    edit_json(folder / "config.json", **changes)
    with pytest.raises(ModelError, match=message) as raised:
        read_config(folder)
    assert raised.value.place == str(folder / "config.json")


@pytest.mark.parametrize("key", ["_attn_implementation", "_attn_implementation_internal", "attn_implementation"])
def test_attention_code_of_the_hub_is_refused(folder: Path, key: str) -> None:
    edit_json(folder / "config.json", text_config=[{key: "someone/kernel"}])
    with pytest.raises(UnsafeWeightsError, match="someone/kernel"):
        read_config(folder)


@pytest.mark.parametrize("changes", [{"transformers_weights": "x.bin"}, {"text_config": {"transformers_weights": "x"}}])
def test_a_config_cannot_name_other_weights(folder: Path, changes: dict[str, Any]) -> None:
    edit_json(folder / "config.json", **changes)
    with pytest.raises(UnsafeWeightsError, match="names a file of its own for the weights") as raised:
        read_config(folder)
    assert "remove transformers_weights" in str(raised.value.remedy)


def test_a_config_cannot_lead_to_another_config(folder: Path) -> None:
    edit_json(folder / "config.json", configuration_files=["config.4.0.0.json"])
    with pytest.raises(UnsafeWeightsError, match="another config file, which is not checked") as raised:
        read_config(folder)
    assert "remove configuration_files" in str(raised.value.remedy)


def test_an_adapter_in_the_models_folder_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="also holds an adapter") as raised:
        read_config(folder)
    assert "a folder of their own" in str(raised.value.remedy)


@pytest.mark.parametrize("suffix", ["bin", "pt", "pth", "ckpt", "pkl"])
def test_every_pickle_format_is_known(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"weights.{suffix}").write_bytes(b"")
    with pytest.raises(UnsafeWeightsError, match=f"weights.{suffix}"):
        check_weights_safe(tmp_path)


def test_pickled_shards_of_a_safetensors_index_are_refused(tmp_path: Path) -> None:
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": {"a": "pytorch_model.bin"}}))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UnsafeWeightsError):
        check_weights_safe(tmp_path)


def test_no_weights_at_all(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="has no weights"):
        check_weights_safe(folder)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    lost = sorted(folder.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(ModelError, match=f"shard '{lost.name}' of the weights is missing"):
        check_weights_safe(folder)


@pytest.mark.parametrize(
    "name", ["../other.safetensors", "/etc/x.safetensors", "a/../../x.safetensors", "..\\x.safetensors"]
)
def test_an_index_cannot_lead_out_of_the_folder(tmp_path: Path, name: str) -> None:
    folder = sharded(tmp_path / "model")
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
        check_weights_safe(folder)
    assert raised.value.place == str(file)


def test_a_distributed_checkpoint_beside_the_weights_is_refused(folder: Path) -> None:
    name = "shard-00001-model-00001-of-00001.safetensors"
    save_file({"x": torch.zeros(1)}, folder / name)
    with pytest.raises(ModelError, match=name) as raised:
        check_weights_safe(folder)
    assert "save_pretrained" in str(raised.value.remedy)


def test_a_config_value_of_the_wrong_kind_is_a_clear_error(folder: Path) -> None:
    assert load_config(folder).num_hidden_layers == 2
    edit_json(folder / "config.json", hidden_size="abc")
    with pytest.raises(ModelError, match=r"hidden_size.*abc") as raised:
        load_config(folder)
    assert raised.value.place == str(folder / "config.json")


def test_the_context_length_is_the_configs() -> None:
    assert context_length(tiny_config("llama")) == 512
    assert context_length(type("Config", (), {"get_text_config": lambda self, **_: self})()) is None


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"model_type": "llama", "max_position_embeddings": 640}, 640),
        ({"model_type": "llama"}, 2048),  # the default of its class
        ({"model_type": "gpt2", "n_positions": 640}, 640),
        ({"model_type": "gemma3", "text_config": {"max_position_embeddings": 640}}, 640),
        ({"model_type": "gemma3", "max_position_embeddings": 9, "text_config": {"max_position_embeddings": 640}}, 640),
        ({"model_type": "bloom"}, None),
    ],
)
def test_the_context_length_of_a_folder_is_that_of_its_config(
    tmp_path: Path, config: dict[str, Any], length: int | None
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert folder_context_length(tmp_path) == length
    assert context_length(load_config(tmp_path)) == length


@pytest.mark.parametrize("length", ["512", 512.0, True, 0, -1])
def test_a_context_length_of_another_kind_is_no_plain_answer(folder: Path, length: Any) -> None:
    edit_json(folder / "config.json", max_position_embeddings=length)
    try:
        expected = context_length(load_config(folder))
    except ModelError as error:
        with pytest.raises(ModelError, match=re.escape(error.message)):
            folder_context_length(folder)
    else:
        assert folder_context_length(folder) == expected


def test_generation_settings_come_back_or_are_none(folder: Path) -> None:
    settings = read_generation_config(folder)
    assert settings is not None
    assert settings.eos_token_id == 260
    (folder / "generation_config.json").unlink()
    assert read_generation_config(folder) is None


@pytest.mark.parametrize("text", ["{", "[]", "", '{"eos_token_id": "x"}', '{"eos_token_id": [1, null]}'])
def test_broken_generation_settings_are_a_clear_error(folder: Path, text: str) -> None:
    (folder / "generation_config.json").write_text(text)
    with pytest.raises(ModelError, match="cannot be read") as raised:
        read_generation_config(folder)
    assert raised.value.place == str(folder / "generation_config.json")


def test_transformers_speaks_again_after_the_quiet() -> None:
    before = (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled())
    with quiet_transformers():
        assert not transformers_logging.is_progress_bar_enabled()
    assert (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()) == before
