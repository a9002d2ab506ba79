import dataclasses
import importlib.util
import re
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel

from tests.adapters.helpers import PEFT_WARNS, calibration_batches, in_dtype, logits, section, trained
from tests.tiny import FAMILIES, tiny_model
from tunesmith.adapters.methods import (
    NESTED_CONFIGS,
    OUR_FIELDS,
    SET_BY_PEFT,
    attach_adapter,
    describe_adapter,
    lora_config,
    merge_obstacle,
    regularization_loss,
    trainable_parameters,
)
from tunesmith.config import AdapterSection
from tunesmith.errors import AdapterError

pytestmark = pytest.mark.filterwarnings(PEFT_WARNS)

needs_attrs = pytest.mark.skipif(importlib.util.find_spec("attr") is None, reason="PEFT's corda needs attrs")


def test_the_section_has_every_field_of_pefts_config() -> None:
    of_peft = {field.name for field in dataclasses.fields(LoraConfig) if field.init} - set(SET_BY_PEFT)
    assert set(AdapterSection.model_fields) == of_peft | set(OUR_FIELDS)


def test_plain_fields_reach_peft_unchanged() -> None:
    values: dict[str, Any] = {
        "r": 3, "lora_alpha": 7, "lora_dropout": 0.25, "target_modules": ["q_proj"], "exclude_modules": ["v_proj"],
        "bias": "lora_only", "use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 5},
        "init_lora_weights": "gaussian", "modules_to_save": ["lm_head"], "trainable_token_indices": [4],
    }  # fmt: skip
    config = lora_config(section(**values))
    for name, value in values.items():
        expected = set(value) if name in ("target_modules", "exclude_modules") else value
        assert getattr(config, name) == expected
    assert config.task_type == "CAUSAL_LM"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_only_the_adapter_trains_and_it_is_float32(family: str, dtype: torch.dtype) -> None:
    model = in_dtype(tiny_model(family), dtype)
    adapted = attach_adapter(model, section(r=2, modules_to_save=["lm_head"]))
    trains = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert trains
    assert all("lora_" in name or "modules_to_save" in name for name in trains)
    for name, parameter in adapted.named_parameters():
        assert parameter.dtype == (torch.float32 if name in trains else dtype)


def test_nested_options_become_pefts_own_classes() -> None:
    config = lora_config(section(init_lora_weights="eva", eva_config={"rho": 1.5}))
    assert config.eva_config.rho == 1.5
    assert lora_config(section(runtime_config={"ephemeral_gpu_offload": True})).runtime_config.ephemeral_gpu_offload


@pytest.mark.parametrize("name", sorted(NESTED_CONFIGS))
def test_an_unknown_nested_key_is_named(name: str) -> None:
    with pytest.raises(AdapterError, match=rf"adapter\.{name}\.no_such_key: unknown key"):
        lora_config(section(**{name: {"no_such_key": 1}}))


def test_the_nearest_nested_key_is_offered() -> None:
    with pytest.raises(AdapterError, match="did you mean 'use_label_mask'"):
        lora_config(section(init_lora_weights="eva", eva_config={"use_label_maks": True}))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"init_lora_weights": "pisa"}, "did you mean 'pissa'"),
        ({"init_lora_weights": "pissa_niter_many"}, "no initialisation of PEFT"),
        ({"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}}, "not the original base"),
        ({"init_lora_weights": "pissa", "use_rslora": True, "rank_pattern": {"q_proj": 2}}, "use_rslora"),
        ({"init_lora_weights": "pissa", "r": 33}, "at most rank"),
        ({"init_lora_weights": "lora_ga", "r": 9}, "at most rank 8"),
        ({"init_lora_weights": "pissa", "target_modules": ["embed_tokens"]}, "linear layers only"),
        ({"init_lora_weights": "corda", "corda_config": {"cache_file": "x"}}, "pickle"),
        ({"eva_config": {"rho": 2.0}}, "ignored"),
        ({"rank_pattern": {"nothing": 2}}, "did not match"),
        ({"exclude_modules": ["nothing"]}, "no modules were excluded"),
        ({"modules_to_save": ["lm_haed"]}, "no module 'lm_haed'.*lm_head"),
        ({"trainable_token_indices": [264]}, "0 to 263"),
        ({"use_qalora": True}, "GPTQ"),
        ({"target_modules": ["mlp"]}, "PEFT refuses"),
    ],
)
def test_what_peft_would_let_pass_or_fail_on_obscurely_is_an_error(values: dict[str, Any], words: str) -> None:
    with pytest.raises(AdapterError) as caught:
        attach_adapter(tiny_model(), section(**values), calibration_batches=calibration_batches)
    assert re.search(words, str(caught.value), re.IGNORECASE | re.DOTALL), str(caught.value)


@pytest.mark.parametrize("name", ["eva", "corda", "lora_ga"])
def test_an_initialisation_by_data_needs_data(name: str) -> None:
    with pytest.raises(AdapterError, match="training examples"):
        attach_adapter(tiny_model(), section(r=4, init_lora_weights=name))


def test_eva_refuses_batches_on_which_it_would_never_end() -> None:
    def short() -> list[dict[str, torch.Tensor]]:
        return [{"input_ids": torch.ones(1, 4, dtype=torch.long)}]

    with pytest.raises(AdapterError, match=r"at least 32 tokens.*has 4"):
        attach_adapter(tiny_model(), section(init_lora_weights="eva"), calibration_batches=short)


def test_eva_puts_directions_of_the_data_into_a() -> None:
    torch.manual_seed(0)
    eva = attach_adapter(tiny_model(), section(r=4, init_lora_weights="eva"), calibration_batches=calibration_batches)
    a_RI = eva.get_submodule("base_model.model.model.layers.0.self_attn.q_proj.lora_A.default").weight
    torch.testing.assert_close(a_RI @ a_RI.T, torch.eye(len(a_RI)), atol=1e-4, rtol=0)
    assert torch.equal(logits(eva.eval()), logits(tiny_model()))


@pytest.mark.parametrize(
    "name",
    ["pissa", "pissa_niter_4", "olora", "lora_ga", "orthogonal", "mica", pytest.param("corda", marks=needs_attrs)],
)
def test_initialisations_start_as_the_base_model(name: str) -> None:
    torch.manual_seed(0)
    chosen = section(r=4, init_lora_weights=name)
    adapted = attach_adapter(tiny_model(), chosen, calibration_batches=calibration_batches).eval()
    torch.testing.assert_close(logits(adapted), logits(tiny_model()), atol=2e-5, rtol=0)


def test_base_and_factors_add_up_in_bf16_too() -> None:
    original = in_dtype(tiny_model(), torch.bfloat16)
    adapted = attach_adapter(in_dtype(tiny_model(), torch.bfloat16), section(r=4, init_lora_weights="pissa"))
    layer: Any = adapted.get_submodule("base_model.model.model.layers.0.mlp.up_proj")
    total_OI = (layer.base_layer.weight.float() + layer.get_delta_weight("default")).detach()
    error = (total_OI - original.get_parameter("model.layers.0.mlp.up_proj.weight").detach().float()).abs()
    # Half a unit in the last place of the residual, which is no larger than the largest weight.
    assert float(error.max()) <= float(layer.base_layer.weight.detach().abs().max()) * 2**-8


def test_counts_of_parameters() -> None:
    base = sum(parameter.numel() for parameter in tiny_model().parameters())
    adapted = attach_adapter(tiny_model(), section(r=2, target_modules=["q_proj"]))
    # q_proj maps 32 to 32 in each of 2 layers: A and B hold 2 x 32 each.
    assert trainable_parameters(adapted) == (2 * 128, base + 2 * 128)


def test_the_description_lists_each_kind_of_module() -> None:
    chosen = section(r=2, target_modules=["q_proj", "k_proj"], rank_pattern={"k_proj": 3}, modules_to_save=["lm_head"])
    adapted = attach_adapter(tiny_model(), chosen)
    rows = describe_adapter(adapted).rows
    assert rows == (("q_proj", 2, 2, 256), ("k_proj", 2, 3, 288), ("lm_head", 1, None, 264 * 32))
    assert sum(int(row[3] or 0) for row in rows) == trainable_parameters(adapted)[0]


def test_methods_with_a_loss_of_their_own_say_so() -> None:
    assert regularization_loss(trained()) is None
    kasa = trained(kasa_config={})
    loss = regularization_loss(kasa)
    assert loss is not None
    assert float(loss.detach()) > 0
    assert loss.requires_grad
    assert regularization_loss(trained(monteclora_config={}).train()) is not None


@pytest.mark.parametrize(
    ("values", "word"),
    [({}, None), ({"alora_invocation_tokens": [1]}, "activated"), ({"lora_bias": True}, "lora_bias")],
)
def test_what_cannot_be_merged_is_known_before_training(values: dict[str, Any], word: str | None) -> None:
    obstacle = merge_obstacle(attach_adapter(tiny_model(), section(**{"r": 2, **values})))
    assert obstacle is None if word is None else word in (obstacle or "")


def test_the_result_is_a_peft_model() -> None:
    assert isinstance(trained(), PeftModel)
