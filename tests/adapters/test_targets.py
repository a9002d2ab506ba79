from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn

from tests.adapters.helpers import PEFT_WARNS, section
from tests.tiny import FAMILIES, tiny_model
from tunesmith.adapters.methods import attach_adapter
from tunesmith.adapters.targets import decoder_layers, resolve_targets
from tunesmith.errors import AdapterError

pytestmark = pytest.mark.filterwarnings(PEFT_WARNS)


def adapted_names(model: nn.Module) -> set[str]:
    return {name.removeprefix("base_model.model.") for name, m in model.named_modules() if isinstance(m, LoraLayer)}


def attached(family: str = "llama", **values: Any) -> set[str]:
    return adapted_names(attach_adapter(tiny_model(family), section(**{"r": 2, **values})))


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_is_what_pefts_keyword_means(family: str) -> None:
    stock = get_peft_model(tiny_model(family), LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    assert attached(family) == adapted_names(stock)


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_is_every_linear_layer_of_the_attention_modules(family: str) -> None:
    parts = {"qkv_proj", "o_proj"} if family == "phi3" else {"q_proj", "k_proj", "v_proj", "o_proj"}
    expected = {f"model.layers.{layer}.self_attn.{part}" for layer in (0, 1) for part in parts}
    assert attached(family, target_modules="attention") == expected


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("targets", ["all-linear", "attention", ["o_proj"], r".*\.o_proj"])
def test_layers_confine_every_kind_of_target(family: str, targets: object) -> None:
    everywhere = attached(family, target_modules=targets)
    last = attached(family, target_modules=targets, layers="last:1")
    assert last == {name for name in everywhere if name.startswith("model.layers.1.")}
    assert attached(family, target_modules=targets, layers=[0]) == everywhere - last
    assert attached(family, target_modules=targets, layers_to_transform=0) == everywhere - last
    assert attached(family, target_modules=targets, layers="last:2") == everywhere


def test_a_single_name_and_a_pattern() -> None:
    both = {"model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"}
    assert attached(target_modules="q_proj") == both
    assert attached(target_modules=r".*\.1\.self_attn\.[qk]_proj") == {
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.self_attn.k_proj",
    }


def test_a_name_that_is_used_outside_attention_too_gets_its_parent() -> None:
    model = tiny_model()
    layers: Any = decoder_layers(model)[1]
    for layer in layers:
        layer.mlp.o_proj = nn.Linear(4, 4)
    assert resolve_targets(model, section(target_modules="attention")).target_modules == [
        "q_proj", "k_proj", "v_proj", "self_attn.o_proj",
    ]  # fmt: skip


def test_other_lists_of_the_same_name_are_not_taken_for_decoder_layers() -> None:
    model = tiny_model()
    model.vision = nn.Module()
    model.vision.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
    targets = resolve_targets(model, section(target_modules=["q_proj"], layers=[1]))
    assert targets.layers_pattern == [r"model\.layers"]
    assert adapted_names(attach_adapter(model, section(r=2, layers=[1], target_modules=["q_proj"]))) == {
        "model.layers.1.self_attn.q_proj"
    }


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"layers": "last:3"}, ["last:3", "2", "adapter.layers", "last:2"]),
        ({"layers": [0, 2, 7]}, ["no layer 2, 7", "has 2 layers", "0 to 1"]),
        ({"layers_to_transform": [-1]}, ["no layer -1", "adapter.layers_to_transform"]),
        ({"layers": []}, ["no layer is chosen"]),
        (
            {"target_modules": ["q_proj", "key_proj"]},
            ["'key_proj' matches no module", "q_proj, k_proj, v_proj", "down_proj"],
        ),
        ({"target_modules": "q_prj"}, ["'q_prj'", "did you mean 'q_proj'?"]),
        ({"target_modules": "atention"}, ["did you mean 'attention'?"]),
        ({"target_modules": r".*\.query"}, ["matches no module", "q_proj"]),
        ({"target_modules": "(q_proj"}, ["neither a module's name nor a regular expression"]),
        ({"target_modules": ["lm_head"], "layers": [0]}, ["'lm_head' matches no module in layers 0"]),
    ],
)
def test_a_target_that_does_not_exist_is_an_error_that_lists_what_does(
    values: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(AdapterError) as caught:
        attached(**values)
    for word in words:
        assert word in str(caught.value)


def test_the_model_is_untouched_when_a_target_is_wrong() -> None:
    model = tiny_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(AdapterError):
        attach_adapter(model, section(target_modules=["nothing"]))
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
