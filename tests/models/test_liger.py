"""Liger's kernels are put in place on CUDA only, and only those that are meant."""

import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.tiny import tiny_model
from tunesmith.models.liger import use_liger


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What a stand-in for Liger, which knows llama alone, was asked for."""
    calls: list[dict[str, Any]] = []
    stand_in: Any = ModuleType("liger_kernel.transformers.monkey_patch")
    stand_in.MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": None}
    stand_in._apply_liger_kernel_to_instance = lambda **arguments: calls.append(arguments)
    package: Any = ModuleType("liger_kernel.transformers")
    package.monkey_patch = stand_in
    for module in (ModuleType("liger_kernel"), package, stand_in):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(name=name))
    return calls


def on_cuda(model: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The model, that says of its parameters that they are on CUDA."""
    parameter = SimpleNamespace(device=torch.device("cuda", 0))
    monkeypatch.setattr(model, "parameters", lambda: iter([parameter]))
    return model


def test_a_model_on_the_cpu_is_left_alone(asked: list[dict[str, Any]]) -> None:
    assert use_liger(tiny_model()) is None
    assert asked == []


def test_norms_and_mlp_are_asked_for_and_no_loss(asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    model = on_cuda(tiny_model(), monkeypatch)
    assert use_liger(model) == "by Liger's kernels"
    (arguments,) = asked
    assert arguments.pop("model") is model
    assert {name for name, wanted in arguments.items() if wanted} == {"rms_norm", "swiglu", "geglu"}
    assert {"rope", "cross_entropy", "fused_linear_cross_entropy"} <= set(arguments)


def test_the_model_within_peft_is_what_liger_gets(asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    inner = on_cuda(tiny_model(), monkeypatch)
    adapted = SimpleNamespace(get_base_model=lambda: inner)
    assert use_liger(adapted) is not None  # type: ignore[arg-type]
    assert asked[0]["model"] is inner


def test_a_family_that_liger_does_not_know_is_left_alone(
    asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert use_liger(on_cuda(tiny_model("gpt2"), monkeypatch)) is None
    assert asked == []


def test_without_the_package_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert use_liger(on_cuda(tiny_model(), monkeypatch)) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gradients_with_liger_are_those_without() -> None:
    pytest.importorskip("liger_kernel")
    ids_BT = torch.randint(0, 256, (2, 11), generator=torch.Generator().manual_seed(0)).cuda()

    def gradients(*, liger: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        model = get_peft_model(tiny_model(), config).to("cuda")
        if liger:
            assert use_liger(model) is not None
        model(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss.backward()
        return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}

    theirs, ours = gradients(liger=False), gradients(liger=True)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).norm() <= 1e-5 * gradient.norm(), name
