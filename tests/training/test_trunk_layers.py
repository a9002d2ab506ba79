"""Which layers are the trunk, what speaks against keeping what they give, and leaving them out."""

import contextlib
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from tests.tiny import tiny_model
from tunesmith.models.modules import evaluation_mode
from tunesmith.training.trunk_layers import (
    find_stack,
    probe,
    standing_in,
    trunk_depth,
    trunk_obstacle,
    trunk_output,
)

UPPER = {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [2, 3], "layers_pattern": "layers"}
IDS_BT = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 0]])


def adapted(family: str = "llama", changes: dict[str, Any] | None = None, **lora: Any) -> PeftModel:
    """A tiny model of four layers, of which the upper two carry an adapter unless `lora` says otherwise."""
    model = tiny_model(family, num_hidden_layers=4, **(changes or {}))
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(r=4, task_type="CAUSAL_LM", **{**UPPER, **lora}))


def test_the_layers_below_the_adapter_are_the_trunk() -> None:
    assert trunk_depth(adapted()) == 2
    assert trunk_depth(adapted(layers_to_transform=[1, 3])) == 1
    assert trunk_depth(adapted(layers_to_transform=[3])) == 3
    assert trunk_depth(adapted(layers_to_transform=[0])) == 0


def test_what_trains_above_the_layers_does_not_matter() -> None:
    assert trunk_depth(adapted(modules_to_save=["model.norm"])) == 2
    assert trunk_depth(adapted(modules_to_save=["lm_head"])) == 2
    head_only = LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=["lm_head"])
    assert trunk_depth(get_peft_model(tiny_model(num_hidden_layers=4), head_only)) == 4


def test_what_trains_below_the_layers_leaves_no_trunk() -> None:
    assert trunk_depth(adapted(modules_to_save=["embed_tokens"])) == 0
    assert trunk_depth(adapted(trainable_token_indices=[3])) == 0


def test_a_head_that_is_the_embedding_too_leaves_no_trunk() -> None:
    model = adapted(changes={"tie_word_embeddings": True})
    assert trunk_depth(model) == 2
    model.get_base_model().lm_head.weight.requires_grad_(True)
    assert trunk_depth(model) == 0


def test_where_nothing_trains_or_no_layers_are_found_there_is_no_trunk() -> None:
    frozen = tiny_model(num_hidden_layers=4).requires_grad_(False)
    assert trunk_depth(frozen) == 0
    assert trunk_depth(nn.Linear(2, 2)) == 0
    assert trunk_obstacle(nn.Linear(2, 2)) == "no list of decoder layers was found in the model"


def test_nothing_speaks_against_a_plain_model() -> None:
    assert trunk_obstacle(adapted(lora_dropout=0.5), longest=10_000) is None


def test_an_adapter_on_the_lowest_layer_leaves_nothing_to_keep() -> None:
    obstacle = trunk_obstacle(adapted(layers_to_transform=[0]))
    assert obstacle == "no frozen layer lies below the lowest part that trains"


def test_dropout_below_the_adapter_is_an_obstacle() -> None:
    assert "attention_dropout = 0.1" in str(trunk_obstacle(adapted(changes={"attention_dropout": 0.1})))
    model = adapted()
    model.get_base_model().model.layers[1].mlp.act_fn = nn.Sequential(nn.SiLU(), nn.Dropout(0.2))
    assert "p = 0.2" in str(trunk_obstacle(model))
    above = adapted()
    above.get_base_model().model.layers[2].mlp.act_fn = nn.Sequential(nn.SiLU(), nn.Dropout(0.2))
    assert trunk_obstacle(above) is None


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("router_jitter_noise", 0.1, "draw noise"),
        ("output_router_logits", True, "output_router_logits"),
        ("num_kv_shared_layers", 2, "share keys and values"),
    ],
)
def test_settings_that_reach_around_the_trunk_are_obstacles(setting: str, value: object, words: str) -> None:
    model = adapted()
    setattr(model.get_base_model().config, setting, value)
    assert words in str(trunk_obstacle(model))


def test_positions_that_depend_on_the_batch_are_an_obstacle_for_long_examples() -> None:
    model = adapted(changes={"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}})
    assert trunk_obstacle(model, longest=512) is None
    assert "rope_type dynamic" in str(trunk_obstacle(model, longest=513))


def counted(model: PeftModel) -> list[int]:
    """How often each layer's own attention is run from now on."""
    stack = find_stack(model)
    assert stack is not None
    counts = [0] * len(stack.layers)
    for number, layer in enumerate(stack.layers):

        def count(_module: nn.Module, _inputs: object, number: int = number) -> None:
            counts[number] += 1

        layer.self_attn.register_forward_pre_hook(count)  # type: ignore[union-attr]
    return counts


def test_the_trunk_alone_is_run_for_its_output_and_not_at_all_while_it_is_left_out() -> None:
    model = adapted()
    stack, counts = find_stack(model), counted(model)
    assert stack is not None
    with evaluation_mode(model), torch.no_grad():
        hidden_BTH = trunk_output(stack, 2, IDS_BT, contextlib.nullcontext)
    assert counts == [1, 1, 0, 0]
    with standing_in(stack.layers[:2], hidden_BTH):
        left_out = model(input_ids=IDS_BT, use_cache=False).logits
    assert counts == [1, 1, 1, 1]
    assert torch.equal(left_out, model(input_ids=IDS_BT, use_cache=False).logits)
    assert counts == [2, 2, 2, 2]


def test_each_layer_does_its_own_work_again_after_an_exception() -> None:
    model = adapted()
    stack = find_stack(model)
    assert stack is not None
    before = model(input_ids=IDS_BT).logits
    stack.layers[1].__dict__["forward"] = own = stack.layers[1].forward
    with pytest.raises(KeyError), standing_in(stack.layers[:2], torch.zeros(2, 4, 32)):
        raise KeyError
    assert "forward" not in stack.layers[0].__dict__
    assert stack.layers[1].__dict__["forward"] is own  # another wrapper's stays
    assert torch.equal(model(input_ids=IDS_BT).logits, before)


def test_a_batch_of_another_shape_is_refused() -> None:
    model = adapted()
    stack = find_stack(model)
    assert stack is not None
    with standing_in(stack.layers[:2], torch.zeros(2, 5, 32)), pytest.raises(ValueError, match="stored are"):
        model(input_ids=IDS_BT)


def test_evaluating_puts_each_module_back_into_its_own_mode() -> None:
    model = adapted()
    model.train()
    part = model.get_base_model().model.layers[0].eval()
    with evaluation_mode(model), torch.no_grad():
        assert not model.training
        assert not torch.is_grad_enabled()
    assert model.training
    assert not part.training
    assert torch.is_grad_enabled()


def tried(model: PeftModel) -> object:
    stack = find_stack(model)
    assert stack is not None
    return probe(model, stack, 2, [range(40), range(50)], 0, contextlib.nullcontext)


def test_the_probe_finds_what_has_to_be_kept() -> None:
    found = tried(adapted())
    assert (found.size, found.dtype) == (32, torch.float32)  # type: ignore[attr-defined]


def test_the_probe_finds_layers_that_give_more_than_a_tensor() -> None:
    model = adapted()
    layer = model.get_base_model().model.layers[1]
    layer.register_forward_hook(lambda _module, _inputs, output: (output, None))
    assert "more than the hidden states" in str(tried(model))


def test_the_probe_finds_what_is_handed_around_the_trunk() -> None:
    model = adapted()
    layers = model.get_base_model().model.layers
    handed: list[torch.Tensor] = []
    layers[0].mlp.register_forward_hook(lambda _module, _inputs, output: handed.append(output))
    layers[3].register_forward_hook(lambda _module, _inputs, output: output + handed.pop() if handed else output)
    assert "see more of the frozen layers" in str(tried(model))


def test_the_probe_finds_a_model_that_fails_without_its_trunk() -> None:
    model = adapted()
    layers = model.get_base_model().model.layers
    handed: list[torch.Tensor] = []
    layers[0].mlp.register_forward_hook(lambda _module, _inputs, output: handed.append(output))

    def need(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        assert handed, "nothing was handed on"
        handed.clear()
        return output

    layers[3].mlp.register_forward_hook(need)
    assert "does not run without its frozen layers: nothing was handed on" in str(tried(model))
