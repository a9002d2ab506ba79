"""The lean norms and MLPs give what transformers' and PEFT's modules give, and keep less."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn

from tests.adapters.helpers import PEFT_WARNS
from tests.adapters.test_fast_lora import IDS_BT, assert_near, figures, with_lora
from tests.tiny import FAMILIES, tiny_model
from tunesmith.adapters import gated_mlp
from tunesmith.adapters.fast_lora import use_fast_layers
from tunesmith.adapters.gated_mlp import use_lean_mlps
from tunesmith.models import rms_norm
from tunesmith.models.rms_norm import use_lean_norms

pytestmark = [pytest.mark.filterwarnings(PEFT_WARNS), pytest.mark.usefixtures("one_thread")]

MLPS = {family: 0 if family == "phi3" else 2 for family in FAMILIES}
NORMS = {"gemma2": 9, "qwen3": 9}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks, the last one short, for the 22 tokens of a test."""
    monkeypatch.setattr(gated_mlp, "BLOCK_ROWS", 8)
    monkeypatch.setattr(rms_norm, "BLOCK_ROWS", 8)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each call of a function of ours: norm or mlp."""
    made: list[str] = []
    for name, function in (("norm", rms_norm._Norm), ("mlp", gated_mlp._GatedProduct)):
        apply: Callable[..., Any] = function.apply

        def counted(*args: Any, name: str = name, apply: Callable[..., Any] = apply) -> Any:
            made.append(name)
            return apply(*args)

        monkeypatch.setattr(function, "apply", counted)
    return made


def lean_copy(model: PeftModel) -> PeftModel:
    copy: PeftModel = deepcopy(model)
    use_fast_layers(copy)
    use_lean_norms(copy)
    use_lean_mlps(copy)
    return copy


@pytest.mark.parametrize("rank", [1, 8, 64])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_the_logits_loss_and_gradients_of_peft(family: str, rank: int, calls: list[str]) -> None:
    plain = with_lora(family, r=rank, lora_alpha=2 * rank)
    lean = lean_copy(plain)
    theirs = figures(plain)
    assert not calls
    assert_near(figures(lean), theirs, 1e-5)
    # The first norm has nothing to keep: what comes in there does not train.
    assert calls.count("norm") == NORMS.get(family, 5) - 1
    assert calls.count("mlp") == MLPS[family]


@pytest.mark.parametrize(
    "settings",
    [
        {"bias": "all"},
        {"lora_bias": True},
        {"use_rslora": True},
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": ["up_proj"]},
        {"target_modules": ["down_proj"], "layers_to_transform": [1]},
        {"rank_pattern": {"gate_proj": 2}, "alpha_pattern": {"up_proj": 32}},
    ],
    ids=lambda settings: " ".join(map(str, settings)),
)
def test_options_of_plain_lora(settings: dict[str, Any], calls: list[str]) -> None:
    """On a Llama whose linear layers have biases."""
    model: Any = tiny_model("llama", attention_bias=True, mlp_bias=True)
    plain = with_lora(model=model, **settings)
    theirs = figures(plain)
    assert_near(figures(lean_copy(plain)), theirs, 1e-5)
    assert "mlp" in calls


def test_a_block_of_all_rows_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    lean = lean_copy(with_lora())
    by_blocks = figures(lean)
    monkeypatch.setattr(gated_mlp, "BLOCK_ROWS", 10**6)
    monkeypatch.setattr(rms_norm, "BLOCK_ROWS", 10**6)
    assert_near(figures(lean), by_blocks, 1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_norm_rounds_as_the_module_does(family: str, dtype: torch.dtype, calls: list[str]) -> None:
    norm: Any = tiny_model(family).get_submodule("model.norm").to(dtype).requires_grad_(False)
    generator = torch.Generator().manual_seed(3)
    norm.weight.data += torch.randn(32, generator=generator).to(dtype)
    lean = deepcopy(norm)
    assert use_lean_norms(lean) == 1
    assert isinstance(lean, type(norm))
    assert list(lean.state_dict()) == list(norm.state_dict())
    x_BTI = (3 * torch.randn(2, 11, 32, generator=generator)).to(dtype)
    g_BTI = torch.randn(2, 11, 32, generator=generator).to(dtype)
    results = []
    for module in (norm, lean, deepcopy(norm).double()):
        x = x_BTI.to(module.weight.dtype, copy=True).requires_grad_()
        y = module(x)
        y.backward(g_BTI.to(y.dtype))
        assert x.grad is not None
        results.append((y.detach(), x.grad.double()))
    theirs, ours, exact = results
    assert calls == ["norm"]
    assert torch.equal(ours[0], theirs[0])
    errors = [float((gradient - exact[1]).norm() / exact[1].norm()) for _, gradient in (ours, theirs)]
    assert errors[0] <= 1.1 * errors[1] + 1e-6


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_model_in_bf16_under_autocast_is_as_near_to_float32_as_without(family: str, calls: list[str]) -> None:
    off = {"ours": 0.0, "theirs": 0.0}
    for seed in range(4):  # of one model alone, either may be nearer by chance
        base: Any = tiny_model(family, seed=seed).bfloat16()
        plain = with_lora(model=base)
        for parameter in plain.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        lean, exact = lean_copy(plain), figures(deepcopy(plain).float())
        use_fast_layers(plain)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            results = {"theirs": figures(plain), "ours": figures(lean)}
        for whose, result in results.items():
            errors = [(result[name].float() - one).norm() / one.norm() for name, one in exact.items()]
            off[whose] += float(torch.stack(errors).mean())
    assert {"norm", "mlp"} <= set(calls)
    assert off["ours"] <= 1.02 * off["theirs"]


def kept_bytes(model: nn.Module) -> int:
    """Bytes that autograd keeps for a backward pass, parameters aside."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.get_base_model().model(input_ids=IDS_BT, use_cache=False)  # type: ignore[operator]
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_less_is_kept() -> None:
    plain = with_lora()
    fast, lean = deepcopy(plain), lean_copy(plain)
    use_fast_layers(fast)
    # Of each layer: two norms' outputs [22, 32], and of act(gate), its input and the product [22, 64] two.
    width, layers = 22 * 4, 2
    assert kept_bytes(fast) - kept_bytes(lean) >= layers * width * (32 + 2 * 64)


@pytest.mark.parametrize("part", ["mlp.act_fn", "mlp.up_proj", "mlp.down_proj.lora_A.default"])
def test_hooks_within_are_heeded(part: str) -> None:
    plain = with_lora(target_modules=["down_proj"])
    lean = lean_copy(plain)
    for model in (plain, lean):
        layer = model.get_base_model().get_submodule("model.layers.1")
        layer.get_submodule(part).register_forward_hook(lambda _m, _i, output: output * 2)
    assert_near(figures(lean), figures(plain), 1e-5)


def test_what_is_not_known_is_left_alone(calls: list[str]) -> None:
    dropout = with_lora(lora_dropout=0.3, target_modules=["down_proj"])
    lean = lean_copy(dropout).train()
    torch.manual_seed(5)
    theirs = figures(dropout.train())
    torch.manual_seed(5)
    assert_near(figures(lean), theirs, 1e-5)
    assert "mlp" not in calls
    assert use_lean_mlps(tiny_model("llama", hidden_act="gelu")) == 0
    assert use_lean_mlps(tiny_model("gemma2", hidden_activation="gelu_python_tanh")) == 0
    assert use_lean_norms(nn.Sequential(nn.LayerNorm(4), nn.RMSNorm(4))) == 0


def test_a_norm_that_trains_and_one_of_another_dtype_are_computed_by_the_module(calls: list[str]) -> None:
    plain = with_lora(modules_to_save=["input_layernorm", "post_attention_layernorm", "norm"])
    theirs = figures(plain)
    assert_near(figures(lean_copy(plain)), theirs, 1e-5)
    assert "norm" not in calls
    norm = tiny_model().get_submodule("model.norm").requires_grad_(False)
    use_lean_norms(norm)
    assert norm(torch.ones(3, 32, dtype=torch.bfloat16, requires_grad=True)).dtype == torch.float32
    assert "norm" not in calls


def test_a_norms_output_that_was_changed_is_taken_as_it_is() -> None:
    """As a hook between norm and projection might."""

    def double(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return output.mul_(2)

    plain = with_lora()
    lean = lean_copy(plain)
    for model in (plain, lean):
        for name, module in model.named_modules():
            if name.endswith("layernorm"):
                module.register_forward_hook(double)
    ours, theirs = figures(lean), figures(plain)
    assert_near(ours, theirs, 1e-5)


def test_activation_checkpointing_and_evaluation(calls: list[str]) -> None:
    plain = with_lora().train()
    lean = lean_copy(plain)
    without = figures(lean)
    once = len(calls)
    lean.activation_checkpointing_enable({"use_reentrant": False})
    # Not to the bit: the first norm's input now asks for a gradient, so it is computed here too.
    assert_near(figures(lean), without, 1e-5)
    assert len(calls) > 2 * once, "computed again in the backward pass"
    calls.clear()
    with torch.no_grad():
        ours = lean(input_ids=IDS_BT, use_cache=False).logits
        fast = deepcopy(plain)
        use_fast_layers(fast)
        assert torch.equal(ours, fast(input_ids=IDS_BT, use_cache=False).logits)
    assert not calls


def test_a_second_call_changes_nothing() -> None:
    model = with_lora()
    use_fast_layers(model)
    assert (use_lean_norms(model), use_lean_mlps(model)) == (5, 2)
    classes = [type(module) for module in model.modules()]
    assert (use_lean_norms(model), use_lean_mlps(model)) == (5, 2)
    assert classes == [type(module) for module in model.modules()]
