import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open

from tests.adapters.helpers import PEFT_WARNS, contract, logits, trained
from tests.tiny import CHATML, FAMILIES, byte_tokenizer, tiny_model_folder
from tunesmith import progress
from tunesmith.adapters.contract import check_golden, make_golden, read_contract
from tunesmith.adapters.files import load_adapter, save_adapter
from tunesmith.errors import ContractError, DiskError, ExportError
from tunesmith.exporting import merge as merging
from tunesmith.exporting.merge import MergeResult, merge_adapter
from tunesmith.models.folder import load_tokenizer
from tunesmith.models.loading import load_model, weights_digest

pytestmark = pytest.mark.filterwarnings(PEFT_WARNS)

CPU = torch.device("cpu")


def prepare(
    tmp_path: Path, family: str = "llama", precision: Any = "fp32", base: Any = None, **values: Any
) -> PeftModel:
    """Writes base/ and adapter/, and returns the trained model."""
    tiny_model_folder(tmp_path / "base", family, **(base or {}))
    model = trained(load_model(tmp_path / "base", precision=precision, device=CPU), **values)
    agreed = contract(
        weights_digest=weights_digest(tmp_path / "base"),
        precision=precision,
        golden=make_golden(model, [[5, 6, 7]]),
    )
    save_adapter(model, tmp_path / "adapter", tokenizer=byte_tokenizer(), contract=agreed)
    return model


def merge(tmp_path: Path, precision: Any = "fp32", **arguments: Any) -> MergeResult:
    folders = (tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    return merge_adapter(*folders, precision=precision, device=CPU, **arguments)


def merged_model(tmp_path: Path, precision: Any = "fp32") -> Any:
    return load_model(tmp_path / "merged", precision=precision, device=CPU)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_merged_model_answers_as_the_trained_one(tmp_path: Path, family: str) -> None:
    model = prepare(tmp_path, family)
    merge(tmp_path)
    merged = merged_model(tmp_path)
    torch.testing.assert_close(logits(merged), logits(model), atol=1e-5, rtol=0)
    untrained = load_model(tmp_path / "base", precision="fp32", device=CPU)
    assert not torch.allclose(logits(merged), logits(untrained), atol=1e-2)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "values",
    [
        {"use_dora": True},
        {"use_rslora": True},
        {"init_lora_weights": "pissa"},
        {"bias": "all"},
        {"kasa_config": {}},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        {"trainable_token_indices": [3, 5]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens", "lm_head"], "ensure_weight_tying": True},
        {"target_parameters": ["q_proj.weight"]},
        {"layer_replication": [[0, 2], [1, 2]]},
    ],
)
def test_every_variant_merges_with_and_without_tied_embeddings(
    tmp_path: Path, values: dict[str, Any], tied: bool
) -> None:
    model = prepare(tmp_path, base={"tie_word_embeddings": tied}, **values)
    merge(tmp_path)
    torch.testing.assert_close(logits(merged_model(tmp_path)), logits(model), atol=5e-5, rtol=0)


def test_a_bias_of_the_adapter_goes_into_the_bases_bias(tmp_path: Path) -> None:
    model = prepare(tmp_path, "qwen2", lora_bias=True, target_modules=["q_proj"])
    merge(tmp_path)
    torch.testing.assert_close(logits(merged_model(tmp_path)), logits(model), atol=1e-5, rtol=0)


def test_tied_embeddings_stay_tied_unless_one_of_them_changed(tmp_path: Path) -> None:
    prepare(tmp_path, base={"tie_word_embeddings": True})
    merge(tmp_path)
    model = merged_model(tmp_path)
    assert model.config.tie_word_embeddings
    assert model.lm_head.weight is model.model.embed_tokens.weight
    shutil.rmtree(tmp_path / "base")
    prepare(tmp_path, base={"tie_word_embeddings": True}, target_modules=["lm_head"])
    merge(tmp_path)
    assert not merged_model(tmp_path).config.tie_word_embeddings


def test_bf16_is_rounded_once_from_float32(tmp_path: Path) -> None:
    prepare(tmp_path, precision="bf16")
    merge(tmp_path, "bf16")
    base = load_model(tmp_path / "base", precision="bf16", device=CPU)
    adapted: Any = load_adapter(base, tmp_path / "adapter", precision="fp32")
    layer = adapted.get_submodule("base_model.model.model.layers.1.mlp.down_proj")
    exact_OI = layer.base_layer.weight.float() + layer.get_delta_weight("default")
    merged = merged_model(tmp_path, "bf16")
    assert torch.equal(merged.model.layers[1].mlp.down_proj.weight, exact_OI.to(torch.bfloat16))
    with safe_open(tmp_path / "merged" / "model.safetensors", "pt") as weights:
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.bfloat16}  # noqa: SIM118
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"


def test_the_folder_is_complete(tmp_path: Path) -> None:
    prepare(tmp_path)
    result = merge(tmp_path, card="# Card\n")
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert "quantization_config" not in config
    assert load_tokenizer(tmp_path / "merged").chat_template == CHATML
    assert (tmp_path / "merged" / "README.md").read_text() == "# Card\n"
    found = read_contract(tmp_path / "merged")
    assert found is not None
    assert (found.kind, found.weights_digest) == ("merged", weights_digest(tmp_path / "merged"))
    assert check_golden(merged_model(tmp_path), found) == []
    assert result.weights_digest == found.weights_digest
    assert result.modules_merged == 14
    assert result.total_bytes == sum(path.stat().st_size for path in (tmp_path / "merged").iterdir())
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_answers_end_at_the_contracts_stop_tokens(tmp_path: Path) -> None:
    prepare(tmp_path)
    tiny_model_folder(tmp_path / "base", eos_token_id=258)
    agreed = contract(weights_digest=weights_digest(tmp_path / "base"), template={"stop_token_ids": [260]})
    (tmp_path / "adapter" / "tunesmith.json").write_text(agreed.to_json())
    merge(tmp_path)
    assert merged_model(tmp_path).generation_config.eos_token_id == [260, 258]


def test_weights_are_cut_into_files_of_the_given_size(tmp_path: Path) -> None:
    model = prepare(tmp_path)
    result = merge(tmp_path, max_shard_size="50KB")
    assert result.weight_files > 1
    torch.testing.assert_close(logits(merged_model(tmp_path)), logits(model), atol=1e-5, rtol=0)


def test_writing_shows_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path)
    shown = []
    real = progress.task

    def task(what: str, total: int | None = None, unit: str = "") -> Any:
        shown.append((what, total, unit))
        return real(what, total, unit)

    monkeypatch.setattr(merging, "task", task)
    monkeypatch.setattr(merging, "_MEGABYTE", 1000)
    merge(tmp_path)
    weights = (tmp_path / "merged" / "model.safetensors").stat().st_size
    ((what, total, unit),) = shown
    assert (what, unit) == ("Writing the merged model", "MB")
    assert total == pytest.approx(weights / 1000, rel=0.05)


def test_another_base_is_refused(tmp_path: Path) -> None:
    prepare(tmp_path)
    tiny_model_folder(tmp_path / "base", seed=1)
    with pytest.raises(ContractError, match="base model"):
        merge(tmp_path)
    assert not (tmp_path / "merged").exists()


def test_a_stock_adapter_without_contract_and_tokenizer_merges(tmp_path: Path) -> None:
    model = prepare(tmp_path)
    shutil.rmtree(tmp_path / "adapter")
    model.save_pretrained(tmp_path / "adapter")
    merge(tmp_path)
    torch.testing.assert_close(logits(merged_model(tmp_path)), logits(model), atol=1e-5, rtol=0)
    assert load_tokenizer(tmp_path / "merged").chat_template == CHATML
    assert read_contract(tmp_path / "merged") is None


@pytest.mark.parametrize("values", [{"alora_invocation_tokens": [1]}, {"lora_bias": True}])
def test_what_cannot_be_merged_is_refused(tmp_path: Path, values: dict[str, Any]) -> None:
    prepare(tmp_path, **values)
    with pytest.raises(ExportError, match="cannot be merged") as caught:
        merge(tmp_path)
    assert "export.merge" in str(caught.value)


def test_a_full_disk_is_noticed_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 10**7, 10**7))
    with pytest.raises(DiskError, match=r"needs 0\.06 GB and 0\.01 GB are free"):
        merge(tmp_path)
    assert not (tmp_path / "merged").exists()


def test_a_folder_of_other_files_is_not_replaced(tmp_path: Path) -> None:
    prepare(tmp_path)
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "thesis.txt").write_text("mine")
    with pytest.raises(ExportError, match="other files"):
        merge(tmp_path)
    assert (tmp_path / "merged" / "thesis.txt").read_text() == "mine"


def test_a_merge_that_overflows_is_an_error(tmp_path: Path) -> None:
    model = prepare(tmp_path, precision="bf16")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.fill_(3e20)
    agreed = contract(weights_digest=weights_digest(tmp_path / "base"))
    save_adapter(model, tmp_path / "adapter", tokenizer=byte_tokenizer(), contract=agreed)
    with pytest.raises(ExportError, match="cannot be merged"):
        merge(tmp_path, "bf16")
