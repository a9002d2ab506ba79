import errno
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from tests.adapters.helpers import PEFT_WARNS, contract, in_dtype, logits, section, trained
from tests.adapters.test_methods import needs_attrs
from tests.tiny import CHATML, FAMILIES, byte_tokenizer, tiny_model
from tunesmith.adapters import files
from tunesmith.adapters.contract import read_contract
from tunesmith.adapters.files import adapter_has_effect, load_adapter, save_adapter
from tunesmith.adapters.methods import attach_adapter
from tunesmith.errors import AdapterError, DiskError, UnsafeWeightsError
from tunesmith.models.folder import load_tokenizer

pytestmark = pytest.mark.filterwarnings(PEFT_WARNS)


def saved(folder: Path, model: PeftModel | None = None, **changes: Any) -> Path:
    save_adapter(model or trained(), folder, tokenizer=byte_tokenizer(), contract=contract(**changes))
    return folder


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("family", FAMILIES)
def test_stock_peft_and_ours_load_what_we_write(tmp_path: Path, family: str) -> None:
    model = trained(tiny_model(family), layers="last:1", target_modules="attention")
    saved(tmp_path / "adapter", model)
    stock = PeftModel.from_pretrained(tiny_model(family), str(tmp_path / "adapter")).eval()
    ours = load_adapter(tiny_model(family), tmp_path / "adapter", precision="fp32")
    assert not torch.equal(logits(model), logits(tiny_model(family)))
    torch.testing.assert_close(logits(stock), logits(model), atol=1e-6, rtol=0)
    torch.testing.assert_close(logits(ours), logits(model), atol=1e-6, rtol=0)


def test_the_adapter_names_its_base_so_that_peft_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    for name, recorded, told in (
        ("smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-135m"),
        ("owner/model", "owner/model", "owner/model"),
        ("models/mine", "mine", "mine"),
        (str(tmp_path / "models" / "mine"), "mine", "mine"),
    ):
        folder = saved(tmp_path / "adapter", base_model=name)
        assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == recorded
        found = read_contract(folder)
        assert found is not None
        assert found.base_model == told


@pytest.mark.parametrize("family", FAMILIES)
def test_ours_loads_what_stock_peft_writes(tmp_path: Path, family: str) -> None:
    model = trained(tiny_model(family))
    model.save_pretrained(tmp_path)
    ours = load_adapter(tiny_model(family), tmp_path, precision="fp32")
    torch.testing.assert_close(logits(ours), logits(model), atol=1e-6, rtol=0)
    assert read_contract(tmp_path) is None


@pytest.mark.parametrize(
    "values",
    [
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "pissa_niter_4"},
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "lora_ga"},
        pytest.param({"init_lora_weights": "corda"}, marks=needs_attrs),
        {"init_lora_weights": "eva"},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": "mica"},
        {"init_lora_weights": "pissa", "use_rslora": True},
        {"init_lora_weights": "pissa", "use_dora": True},
        {"init_lora_weights": "pissa", "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"k_proj": 8}},
        {"init_lora_weights": "pissa", "modules_to_save": ["lm_head"], "bias": "all"},
        {"use_dora": True},
        {"kasa_config": {}},
        {"bias": "all"},
        {"lora_bias": True},
        {"modules_to_save": ["embed_tokens"]},
        {"trainable_token_indices": [3, 5]},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"target_parameters": ["q_proj.weight"]},
    ],
)
@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")
def test_the_saved_adapter_is_the_trained_one_on_the_original_base(tmp_path: Path, values: dict[str, Any]) -> None:
    model = trained(tiny_model("qwen2"), **values)
    saved(tmp_path / "adapter", model)
    stock = PeftModel.from_pretrained(tiny_model("qwen2"), str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(logits(stock), logits(model), atol=5e-5, rtol=0)
    ours = load_adapter(tiny_model("qwen2"), tmp_path / "adapter", precision="fp32")
    torch.testing.assert_close(logits(ours), logits(model), atol=5e-5, rtol=0)


def test_saving_leaves_the_model_in_training_as_it_was(tmp_path: Path) -> None:
    model = trained(init_lora_weights="pissa")
    before, config = logits(model), model.peft_config["default"].to_dict()
    saved(tmp_path / "adapter", model)
    assert torch.equal(logits(model), before)
    assert model.peft_config["default"].to_dict() == config


def test_the_same_adapter_gives_the_same_files(tmp_path: Path) -> None:
    assert snapshot(saved(tmp_path / "a")) == snapshot(saved(tmp_path / "b"))


def test_the_folder_carries_contract_and_template_and_no_path_of_this_machine(tmp_path: Path) -> None:
    model = tiny_model()
    model.name_or_path = model.config._name_or_path = str(tmp_path / "models" / "mine")
    folder = saved(tmp_path / "adapter", trained(model), base_model=str(tmp_path / "models" / "mine"))
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "mine"
    found = read_contract(folder)
    assert found is not None
    assert found.base_model == "mine"
    assert load_tokenizer(folder).chat_template == CHATML
    for name, content in snapshot(folder).items():
        assert str(tmp_path).encode() not in content, name


def test_nothing_half_written_when_the_disk_fills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path / "adapter")
    before = snapshot(folder)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(DiskError, match="disk is full"):
        saved(folder, trained(r=2))
    assert snapshot(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_new_adapter_replaces_the_old_one_whole(tmp_path: Path) -> None:
    folder = saved(tmp_path / "adapter")
    (folder / "left-over.txt").write_text("old")
    saved(folder, trained(r=2))
    assert not (folder / "left-over.txt").exists()
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_folder_of_other_files_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(AdapterError, match="other files"):
        saved(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    model = trained()
    next(p for p in model.parameters() if p.requires_grad).data.fill_(float("nan"))
    with pytest.raises(AdapterError, match="not finite"):
        saved(tmp_path / "adapter", model)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_loaded_adapter_needs_no_autocast(tmp_path: Path, precision: Any, dtype: torch.dtype) -> None:
    saved(tmp_path / "adapter", trained(modules_to_save=["lm_head"]))
    model = load_adapter(in_dtype(tiny_model(), dtype), tmp_path / "adapter", precision=precision)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert logits(model).isfinite().all()


def test_an_ignored_adapter_is_noticed(tmp_path: Path) -> None:
    assert adapter_has_effect(trained())
    fresh = attach_adapter(tiny_model(), section(r=2))
    assert not adapter_has_effect(fresh)
    assert fresh.training is False
    assert adapter_has_effect(load_adapter(tiny_model(), saved(tmp_path / "adapter"), precision="fp32"))


def rewrite_weights(folder: Path, change: Any) -> None:
    path = folder / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)


def without_first(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return dict(list(state.items())[1:])


def renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.replace("base_model.model.", ""): tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "adapter_config.json").unlink(), "no adapter_config.json"),
        (lambda f: (f / "adapter_config.json").write_text("{"), "cannot be read"),
        (lambda f: (f / "adapter_model.safetensors").unlink(), "no adapter_model.safetensors"),
        (lambda f: rewrite_weights(f, without_first), "1 weights are missing.*lora_"),
        (lambda f: rewrite_weights(f, renamed), "28 weights are missing.*28 weights have no place"),
    ],
)
def test_a_damaged_folder_says_what_is_wrong(tmp_path: Path, damage: Any, words: str) -> None:
    folder = saved(tmp_path / "adapter")
    damage(folder)
    with pytest.raises(AdapterError) as caught:
        load_adapter(tiny_model(), folder, precision="fp32")
    assert re.search(words, str(caught.value), re.DOTALL), str(caught.value)
    assert str(folder) in str(caught.value)


def test_a_cut_file_is_an_error(tmp_path: Path) -> None:
    weights = saved(tmp_path / "adapter") / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(Exception, match="not a whole safetensors file"):
        load_adapter(tiny_model(), tmp_path / "adapter", precision="fp32")


def test_another_base_is_an_error_and_leaves_it_plain(tmp_path: Path) -> None:
    folder = saved(tmp_path / "adapter", base_model="tiny-llama")
    wider = tiny_model(hidden_size=48)
    names = set(wider.state_dict())
    with pytest.raises(AdapterError, match=r"\[32, 4\] in the file and \[48, 4\] for this base") as caught:
        load_adapter(wider, folder, precision="fp32")
    assert "tiny-llama" in str(caught.value)
    assert set(wider.state_dict()) == names


def test_another_architecture_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="does not fit"):
        load_adapter(tiny_model("phi3"), saved(tmp_path / "adapter"), precision="fp32")


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    folder = saved(tmp_path / "adapter")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(UnsafeWeightsError, match="pickle"):
        load_adapter(tiny_model(), folder, precision="fp32")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"peft_type": "IA3"}, "type IA3"),
        ({"init_lora_weights": "lora_ga"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "corda"}, "path_initial_model_for_weight_conversion"),
        ({"megatron_config": {"a": 1}, "megatron_core": "antigravity"}, "Megatron"),
        ({"target_modules": ["nothing"]}, "does not fit"),
    ],
)
def test_adapters_that_cannot_be_right_are_refused(tmp_path: Path, values: dict[str, Any], words: str) -> None:
    path = saved(tmp_path / "adapter") / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    with pytest.raises(AdapterError, match=words):
        load_adapter(tiny_model(), tmp_path / "adapter", precision="fp32")


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="no such adapter folder"):
        load_adapter(tiny_model(), tmp_path / "nothing", precision="fp32")
