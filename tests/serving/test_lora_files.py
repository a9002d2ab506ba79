"""What is refused at load, with its reason: an adapter that would be served as something else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.serving.adapters import KINDS, write_adapter
from tests.tiny import tiny_model, tiny_model_folder
from tunesmith.adapters.contract import Contract
from tunesmith.data.records import Message
from tunesmith.errors import AdapterError, ContractError
from tunesmith.serving.adapter_bank import check_name
from tunesmith.serving.engine import Engine
from tunesmith.serving.lora_files import read_lora

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(tiny_model()) as one:
        yield one


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"use_dora": True}, "use_dora cannot be served exactly"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"alora_invocation_tokens": [1, 2], "task_type": "CAUSAL_LM"}, "invocation tokens"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"target_modules": ["embed_tokens", "o_proj"]}, "embed_tokens"),
    ],
)
def test_kinds_that_are_not_exact_are_refused(
    engine: Engine, tmp_path: Path, config: dict[str, Any], reason: str
) -> None:
    folder = write_adapter(tmp_path / "a", 0, **{"r": 2, "target_modules": ["o_proj"], **config})
    with pytest.raises(AdapterError, match=reason):
        engine.load_adapter("a", folder)
    assert "a" not in engine.adapters


def edited(folder: Path, **changes: Any) -> Path:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return folder


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"peft_type": "IA3"}, "type IA3"),
        ({"init_lora_weights": "pissa"}, "initialised by pissa"),
        ({"target_modules": ["nowhere"]}, "does not fit"),
        ({"r": 3}, "does not fit"),
        ({"target_modules": ["o_proj", "q_proj"]}, "weights are missing"),
    ],
)
def test_configs_that_do_not_fit_are_refused(
    engine: Engine, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    folder = edited(write_adapter(tmp_path / "a", 0, r=2, target_modules=["o_proj"]), **changes)
    with pytest.raises(AdapterError, match=reason):
        engine.load_adapter("a", folder)


def test_an_adapter_without_effect_is_refused(engine: Engine, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", 0, r=2, target_modules=["o_proj"])
    file = folder / "adapter_model.safetensors"
    save_file({k: v * (0 if "lora_B" in k else 1) for k, v in load_file(file).items()}, file)
    with pytest.raises(AdapterError, match="changes nothing"):
        engine.load_adapter("a", folder)
    save_file({k: v + (float("nan") if "lora_B" in k else 0) for k, v in load_file(file).items()}, file)
    with pytest.raises(AdapterError, match="not finite"):
        engine.load_adapter("a", folder)


def test_ranks_and_scales_are_pefts(tmp_path: Path) -> None:
    weights = read_lora(write_adapter(tmp_path / "a", 0, **KINDS["patterns"]), tiny_model())
    inner = weights.factors["model.layers.0.self_attn.o_proj"]
    assert (len(inner.a_RI), inner.scaling) == (6, 5.0)
    assert weights.ranks == (4, 6)
    rs = read_lora(write_adapter(tmp_path / "b", 0, **KINDS["rslora"]), tiny_model())
    assert rs.factors["model.layers.1.mlp.up_proj"].scaling == pytest.approx(8 / 3**0.5)


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    model = tiny_model()
    one = read_lora(write_adapter(tmp_path / "a", 0, **KINDS["plain"]), model)
    same = read_lora(write_adapter(tmp_path / "b", 0, **KINDS["plain"]), model)
    other = read_lora(write_adapter(tmp_path / "c", 1, **KINDS["plain"]), model)
    scaled = read_lora(edited(write_adapter(tmp_path / "d", 0, **KINDS["plain"]), lora_alpha=17), model)
    assert one.digest == same.digest
    assert len({one.digest, other.digest, scaled.digest}) == 3


def test_a_resized_embedding_in_the_file_must_be_the_bases(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", 0, r=2, target_modules=["o_proj"])
    file, model = folder / "adapter_model.safetensors", tiny_model()
    key, untyped = "base_model.model.model.embed_tokens.weight", cast(Any, model)
    weight = untyped.get_input_embeddings().weight.detach()
    save_file({**load_file(file), key: weight.clone()}, file)
    assert len(read_lora(folder, model).factors) == 2
    save_file({**load_file(file), key: weight + 1}, file)
    with pytest.raises(AdapterError, match=r"changes model\.embed_tokens\.weight, which all requests share"):
        read_lora(folder, model)


@pytest.mark.parametrize("name", ["a", "A.b_c-9", "x" * 128])
def test_names(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize(
    "name", ["", "..", ".", "a..b", "../a", "a/b", "a\0", "%2e%2e/a", "x" * 129, "ä", "a b", "a\n"]
)
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(AdapterError, match="no name for an adapter"):
        check_name(name)


def test_the_contract_is_checked(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", 0, r=2, target_modules=["o_proj"])
    with Engine(tiny_model_folder(tmp_path / "model"), precision="fp32") as engine:
        assert engine.template is not None
        weights = read_lora(adapter, engine._runner.model)
        ids = engine.template.encode_prompt([Message("user", "Hi")])
        parts = ((engine._bank.version("a", adapter, weights).weights, 1.0),)
        values_K, ids_K = engine._runner.next_logits(ids, parts).topk(3)
        top = [[i, v] for i, v in zip(ids_K.tolist(), values_K.tolist(), strict=True)]
        golden = {"token_ids": ids, "text": "Hi", "top": top}
        right = Contract("tiny", str(engine._digest_of_base()), engine.template.contract(), "fp32", "r" * 64)
        written = {**json.loads(right.to_json()), "golden": [golden]}

        def load(**changes: Any) -> None:
            (adapter / "tunesmith.json").write_text(json.dumps({**written, **changes}))
            engine.load_adapter("a", adapter)

        load()
        with pytest.raises(ContractError, match="base model: trained on tiny"):
            load(weights_digest="0" * 64)
        with pytest.raises(ContractError, match="chat template"):
            load(template={**written["template"], "digest": "0" * 64})
        with pytest.raises(ContractError, match="does not answer as the trained one did"):
            load(golden=[{**golden, "top": [[i, v + 1] for i, v in top]}])
        assert torch.equal(engine._runner.next_logits(ids, parts).topk(3).indices, ids_K)
