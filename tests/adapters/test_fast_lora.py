"""The fast LoRA layers give what PEFT's give: on the fast path to rounding, everywhere else to the bit."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import BdLoraConfig, KasaConfig, VeloraConfig
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import nn
from torch.nn.functional import cross_entropy

from tests.adapters.helpers import PEFT_WARNS, contract, trained
from tests.tiny import FAMILIES, byte_tokenizer, tiny_model
from tunesmith.adapters import fast_lora
from tunesmith.adapters.fast_lora import FastLoraLinear, use_fast_layers
from tunesmith.adapters.files import save_adapter

pytestmark = pytest.mark.filterwarnings(PEFT_WARNS)

IDS_BT = torch.randint(0, 256, (2, 11), generator=torch.Generator().manual_seed(0))

Figures = dict[str, torch.Tensor]
"""Logits, loss and the gradient of each trainable parameter by its name."""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each call that took the fast path: its rank."""
    calls: list[int] = []
    apply: Callable[..., Any] = fast_lora._LoraProduct.apply

    def counted(*args: Any) -> Any:
        calls.append(args[3].shape[0])
        return apply(*args)

    monkeypatch.setattr(fast_lora._LoraProduct, "apply", counted)
    return calls


def randomize(model: nn.Module) -> None:
    """Moves what trains: B starts at zero, and with it half of the gradients."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator).to(parameter))


def with_lora(family: str = "llama", model: Any = None, **settings: Any) -> PeftModel:
    """A tiny model with LoRA, the same at each call."""
    torch.manual_seed(0)
    values = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings}
    adapted = get_peft_model(tiny_model(family) if model is None else model, LoraConfig(**values))
    randomize(adapted)
    return adapted


def fast_copy(model: PeftModel) -> PeftModel:
    copy: PeftModel = deepcopy(model)
    use_fast_layers(copy)
    return copy


def figures(model: nn.Module, **inputs: Any) -> Figures:
    model.zero_grad()
    logits_BTV = model(input_ids=IDS_BT, use_cache=False, **inputs).logits
    loss = cross_entropy(logits_BTV[:, :-1].flatten(0, 1), IDS_BT[:, 1:].flatten(), reduction="sum")
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"logits": logits_BTV.detach(), "loss": loss.detach(), **gradients}


def assert_near(ours: Figures, theirs: Figures, tolerance: float) -> None:
    """Norm of the difference over norm, for each tensor."""
    assert ours.keys() == theirs.keys()
    for name, their in theirs.items():
        assert ours[name].dtype == their.dtype, name
        assert their.norm() > 0, f"{name} would show nothing"
        error = (ours[name] - their).double().norm() / their.double().norm()
        assert error <= tolerance, f"{name}: {error:.2e}"


def assert_same(ours: Figures, theirs: Figures) -> None:
    assert ours.keys() == theirs.keys()
    for name, their in theirs.items():
        assert torch.equal(ours[name], their), name


@pytest.mark.parametrize("rank", [1, 8, 64])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_the_logits_loss_and_gradients_of_peft(family: str, rank: int, products: list[int]) -> None:
    plain = with_lora(family, r=rank, lora_alpha=2 * rank)
    fast = fast_copy(plain)
    layers = sum(isinstance(module, FastLoraLinear) for module in fast.modules())
    assert layers == sum(isinstance(module, LoraLinear) for module in plain.modules()) > 0
    theirs = figures(plain)
    assert not products
    assert_near(figures(fast), theirs, 1e-5)
    assert products == [rank] * layers
    # In float64 only the formulas are left to differ.
    assert_near(figures(fast.double()), figures(plain.double()), 1e-12)


@pytest.mark.parametrize(
    "settings",
    [
        {"bias": "all"},
        {"bias": "lora_only"},
        {"lora_bias": True, "target_modules": ["q_proj", "v_proj"]},
        {"lora_bias": True, "target_modules": ["q_proj", "v_proj"], "bias": "all"},
        {"use_rslora": True},
        {"lora_dropout": 0.0},
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 32}},
        {"modules_to_save": ["lm_head"]},
        {"init_lora_weights": "pissa"},
    ],
    ids=lambda settings: " ".join(map(str, settings)),
)
def test_options_of_plain_lora_are_on_the_fast_path(settings: dict[str, Any], products: list[int]) -> None:
    """On Qwen2, whose q, k and v have biases."""
    plain = with_lora("qwen2", **settings)
    fast = deepcopy(plain)
    report = use_fast_layers(fast)
    assert not report.left
    assert report.describe() == f"fast: {report.fast} layers"
    theirs = figures(plain)
    assert (settings.get("bias") is not None) == any(name.endswith("base_layer.bias") for name in theirs)
    assert_near(figures(fast), theirs, 1e-5)
    assert len(products) == report.fast > 0
    assert_near(figures(fast.double()), figures(plain.double()), 1e-12)


@pytest.mark.filterwarnings("ignore:.lora_bias=True. was passed")
def test_lora_bias_on_a_layer_without_a_bias() -> None:
    plain = lora_layer(bias=False, lora_bias=True)
    fast = fast_layer(plain)
    x_NI = torch.randn(7, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert_near(layer_figures(fast.double(), x_NI), layer_figures(plain.double(), x_NI), 1e-12)


def lora_layer(*, bias: bool = True, inputs: int = 24, outputs: int = 40, rank: int = 4, **settings: Any) -> LoraLinear:
    """One layer of PEFT's around a random frozen `nn.Linear`."""
    torch.manual_seed(0)
    base = nn.Linear(inputs, outputs, bias=bias).requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, **settings)
    layer = LoraLinear(base, "default", config, r=rank, lora_alpha=2 * rank)
    randomize(layer)
    return layer


def fast_layer(layer: LoraLinear) -> FastLoraLinear:
    copy = deepcopy(layer)
    assert use_fast_layers(copy).fast == 1
    assert isinstance(copy, FastLoraLinear)
    return copy


def layer_figures(layer: nn.Module, x: torch.Tensor, *, autocast: bool = False) -> Figures:
    """Output and gradients under a fixed random direction; of x too, where it is a leaf that asks for one."""
    layer.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        y = layer(x)
    y.backward(torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).to(y))
    result = {name: p.grad.clone() for name, p in layer.named_parameters() if p.grad is not None}
    if x.is_leaf and x.grad is not None:
        result["x"], x.grad = x.grad, None
    return {"y": y.detach(), **result}


@pytest.mark.parametrize("rank", [1, 8, 64])
@pytest.mark.parametrize("x_dtype", [torch.bfloat16, torch.float32])
def test_under_autocast_it_is_as_near_to_float32_as_peft_is(
    rank: int, x_dtype: torch.dtype, products: list[int]
) -> None:
    plain = lora_layer(inputs=96, outputs=160, rank=rank, lora_bias=True)
    plain.base_layer.bfloat16()
    fast, exact = fast_layer(plain), deepcopy(plain).double()
    x_NI = torch.randn(200, 96, generator=torch.Generator().manual_seed(0)).bfloat16().to(x_dtype).requires_grad_()
    theirs = layer_figures(plain, x_NI, autocast=True)
    ours = layer_figures(fast, x_NI, autocast=True)
    reference = layer_figures(exact, x_NI.detach().double().requires_grad_())
    assert products == [rank]
    assert ours.keys() == theirs.keys() == reference.keys()
    for name in reference:
        assert ours[name].dtype == theirs[name].dtype, name
        our_error, their_error = ((it[name] - reference[name]).norm() for it in (ours, theirs))
        assert our_error <= 1.2 * their_error + 1e-12, f"{name}: {our_error:.3e} against {their_error:.3e}"


def test_a_model_in_bf16_under_autocast_is_as_near_to_float32_as_peft_is(products: list[int]) -> None:
    base: Any = tiny_model("qwen2").bfloat16()
    plain = with_lora(model=base)
    for parameter in plain.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    fast, exact = fast_copy(plain), deepcopy(plain).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        theirs, ours = figures(plain), figures(fast)
    reference = figures(exact)
    assert products
    ours_off, theirs_off = (
        sum(
            float((it[name].float() - exact).square().sum() / exact.square().sum()) for name, exact in reference.items()
        )
        for it in (ours, theirs)
    )
    assert ours_off**0.5 <= 1.2 * theirs_off**0.5


def test_without_autocast_mixed_dtypes_are_left_to_peft(products: list[int]) -> None:
    plain = lora_layer()
    plain.base_layer.bfloat16()
    x_NI = torch.randn(5, 24, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert_same(layer_figures(fast_layer(plain), x_NI), layer_figures(plain, x_NI))
    assert not products


VARIANTS: dict[str, dict[str, Any]] = {
    "Dora": {"use_dora": True},
    "ALora": {"alora_invocation_tokens": [5]},
    "Velora": {"velora_config": VeloraConfig()},
    "BdLora": {"use_bdlora": BdLoraConfig(target_modules_bd_a=["o_proj"], target_modules_bd_b=["q_proj"], nblocks=2)},
    "Kasa": {"kasa_config": KasaConfig()},
    "MiCA": {"init_lora_weights": "mica"},
    "dropout": {"lora_dropout": 0.3},
}


@pytest.mark.parametrize("reason", VARIANTS)
def test_variants_of_lora_are_left_to_peft(reason: str, products: list[int]) -> None:
    plain = with_lora(**{"target_modules": ["q_proj", "o_proj"], **VARIANTS[reason]})
    fast = deepcopy(plain)
    assert use_fast_layers(fast).describe() == f"PEFT's own: 4 ({reason})"
    torch.manual_seed(5)
    theirs = figures(plain.train())
    torch.manual_seed(5)
    assert_same(figures(fast.train()), theirs)
    assert not products


def test_each_layer_is_looked_at_by_itself(products: list[int]) -> None:
    plain = with_lora(target_modules=["q_proj", "embed_tokens"], modules_to_save=["lm_head"])
    fast = deepcopy(plain)
    assert use_fast_layers(fast).describe() == "fast: 2 layers; PEFT's own: 1 (a layer of PEFT's class Embedding)"
    theirs = figures(plain)
    assert any("lm_head" in name for name in theirs)
    assert any("lora_embedding_A" in name for name in theirs)
    assert_near(figures(fast), theirs, 1e-5)
    assert products == [4, 4]


def test_gpt2_with_its_turned_weights_is_left_to_peft() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model("gpt2", n_embd=32, n_layer=1, n_head=4, vocab_size=264, n_positions=64)
    model = AutoModelForCausalLM.from_config(config).eval()
    plain = with_lora(model=model, target_modules=["c_attn"], fan_in_fan_out=True)
    fast = deepcopy(plain)
    assert use_fast_layers(fast).describe() == "PEFT's own: 1 (its base is a Conv1D)"
    assert_same(figures(fast), figures(plain))


def test_no_lora_at_all() -> None:
    assert use_fast_layers(tiny_model()).describe() == "no LoRA layers"


def test_a_base_weight_that_trains_is_left_to_peft_also_if_it_does_so_later(products: list[int]) -> None:
    plain = lora_layer()
    fast, x_NI = fast_layer(plain), torch.randn(5, 24)
    plain.base_layer.weight.requires_grad_(True)
    fast.base_layer.weight.requires_grad_(True)
    assert use_fast_layers(deepcopy(plain)).describe() == "PEFT's own: 1 (its base weight trains)"
    theirs = layer_figures(plain, x_NI)
    assert "base_layer.weight" in theirs
    assert_same(layer_figures(fast, x_NI), theirs)
    assert not products


@pytest.mark.parametrize("part", ["base_layer", "lora_A.default", "lora_B.default"])
def test_hooks_within_a_layer_are_heeded(part: str, products: list[int]) -> None:
    """As those of accelerate are, which bring weights to the device when a module is called."""

    def doubled(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output * 2

    plain = lora_layer()
    before, x_NI = fast_layer(plain), torch.randn(5, 24)
    plain.get_submodule(part).register_forward_hook(doubled)
    before.get_submodule(part).register_forward_hook(doubled)
    theirs = layer_figures(plain, x_NI)
    assert_same(layer_figures(before, x_NI), theirs)
    assert not products
    for late in (plain, before):
        assert use_fast_layers(late).describe() == "PEFT's own: 1 (hooks)"
        assert type(late) is LoraLinear


def test_a_forward_put_on_the_base_layer_is_called(products: list[int]) -> None:
    plain = lora_layer()
    fast, x_NI = fast_layer(plain), torch.randn(5, 24)
    for layer in (plain, fast):
        layer.base_layer.forward = lambda x, inner=layer.base_layer.forward: inner(x) * 3
    assert_same(layer_figures(fast, x_NI), layer_figures(plain, x_NI))
    assert not products


def test_a_tuner_around_another_keeps_the_inner_one() -> None:
    inner = lora_layer()
    config = LoraConfig(r=2)
    outer = LoraLinear(inner, "default", config, r=2, lora_alpha=2)
    randomize(outer)
    copy, x_NI = deepcopy(outer), torch.randn(5, 24)
    assert use_fast_layers(copy).describe() == "fast: 1 layers; PEFT's own: 1 (around another adapter's layer)"
    assert_near(layer_figures(copy, x_NI), layer_figures(outer, x_NI), 1e-5)


def test_several_adapters_are_left_to_peft(products: list[int]) -> None:
    models = [with_lora(), with_lora()]
    use_fast_layers(models[1])
    for model in models:
        torch.manual_seed(3)
        model.add_adapter("second", LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
        model.base_model.set_adapter(["default", "second"])
        randomize(model)
    plain, fast = models
    assert_same(figures(fast), figures(plain))
    for model in models:
        model.set_adapter("second")
    assert_same(figures(fast), figures(plain))
    assert not products
    assert use_fast_layers(fast).describe() == "PEFT's own: 14 (several adapters)"
    fast.delete_adapter("default")
    assert use_fast_layers(fast).describe() == "fast: 14 layers"
    assert_near(figures(fast), figures(plain), 1e-5)
    assert products == [2] * 14


def test_an_adapter_that_comes_later_and_is_not_active_does_no_harm() -> None:
    models = [with_lora(), with_lora()]
    use_fast_layers(models[1])
    for model in models:
        model.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    assert_near(figures(models[1]), figures(models[0]), 1e-5)


@torch.no_grad()
def logits(model: nn.Module, **inputs: Any) -> torch.Tensor:
    result: torch.Tensor = model(input_ids=IDS_BT, use_cache=False, **inputs).logits
    return result


def test_switched_off_merged_and_mixed_batches_are_left_to_peft(products: list[int]) -> None:
    plain = with_lora().eval()
    fast = fast_copy(plain)
    with plain.disable_adapter(), fast.disable_adapter():
        assert torch.equal(logits(fast), logits(plain))
        assert torch.equal(logits(fast), logits(tiny_model()))
    mixed = {"adapter_names": ["default", "__base__"]}
    assert torch.equal(logits(fast, **mixed), logits(plain, **mixed))
    for model in (plain, fast):
        model.merge_adapter()
    assert torch.equal(logits(fast), logits(plain))
    assert not products
    for model in (plain, fast):
        model.unmerge_adapter()
    torch.testing.assert_close(logits(fast), logits(plain), atol=1e-5, rtol=1e-5)
    assert len(products) == 14


def test_a_changed_scale_is_heeded() -> None:
    plain = lora_layer()
    fast, x_NI = fast_layer(plain), torch.randn(5, 24)
    before = layer_figures(fast, x_NI)
    for layer in (plain, fast):
        layer.set_scale("default", 0.5)
    theirs = layer_figures(plain, x_NI)
    assert not torch.allclose(before["y"], theirs["y"])
    assert_near(layer_figures(fast, x_NI), theirs, 1e-5)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_saved_has_the_bytes_of_peft_and_merging_agrees(tmp_path: Path) -> None:
    # Both made alike: PEFT writes its set of module names in the set's order, which a copy need not keep.
    plain, fast = trained(), trained()
    use_fast_layers(fast)
    assert list(fast.state_dict()) == list(plain.state_dict())
    for name, model in (("plain", plain), ("fast", fast)):
        save_adapter(model, tmp_path / "ours" / name, tokenizer=byte_tokenizer(), contract=contract())
        model.save_pretrained(tmp_path / "stock" / name)
    for kind in ("ours", "stock"):
        assert contents(tmp_path / kind / "fast") == contents(tmp_path / kind / "plain")
    stock = PeftModel.from_pretrained(tiny_model(), str(tmp_path / "ours" / "fast")).eval()
    torch.testing.assert_close(logits(fast), logits(stock), atol=1e-5, rtol=1e-5)
    before = logits(fast)
    merged, merged_by_peft = fast.merge_and_unload(), plain.merge_and_unload()
    torch.testing.assert_close(logits(merged), before, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(merged.parameters(), merged_by_peft.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert not any("Lora" in type(module).__name__ for module in merged.modules())


def test_activation_checkpointing_changes_nothing(products: list[int]) -> None:
    plain = with_lora().train()
    fast = fast_copy(plain)
    without = figures(fast)
    once = len(products)
    fast.activation_checkpointing_enable({"use_reentrant": False})
    assert_same(figures(fast), without)
    assert len(products) == 3 * once, "computed again in the backward pass"
    plain.activation_checkpointing_enable({"use_reentrant": False})
    assert_near(without, figures(plain), 1e-5)


def test_gradients_add_up_over_two_passes_and_the_same_step_gives_the_same_bytes() -> None:
    fast = fast_copy(with_lora())
    first = figures(fast)
    assert_same(figures(fast), first)
    loss = fast(input_ids=IDS_BT, labels=IDS_BT, use_cache=False, num_items_in_batch=1).loss
    loss.backward()
    for name, parameter in fast.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, 2 * first[name], atol=1e-5, rtol=1e-4)


def turned(x_NI: torch.Tensor) -> torch.Tensor:
    return x_NI.T.contiguous().T


def strided(x_NI: torch.Tensor) -> torch.Tensor:
    return torch.stack([x_NI, -x_NI], dim=-1)[..., 0]


@pytest.mark.parametrize(
    "arrange",
    [turned, strided, lambda x: x[0], lambda x: x.view(2, 2, 3, 24).transpose(0, 2), lambda x: x[:1].expand(9, 24)],
    ids=["turned", "strided", "one token", "four dimensions", "expanded"],
)
@pytest.mark.parametrize("wants_gradient", [True, False])
def test_any_layout_of_x_with_and_without_a_gradient(
    arrange: Callable[[torch.Tensor], torch.Tensor], wants_gradient: bool, products: list[int]
) -> None:
    plain = lora_layer()
    results = []
    for layer in (fast_layer(plain), plain):
        x_NI = torch.randn(12, 24, generator=torch.Generator().manual_seed(0)).requires_grad_(wants_gradient)
        result = layer_figures(layer, arrange(x_NI))
        assert (x_NI.grad is not None) == wants_gradient
        results.append(result if x_NI.grad is None else {**result, "x": x_NI.grad})
    assert_near(results[0], results[1], 1e-5)
    assert results[0]["y"].shape == results[1]["y"].shape
    assert len(products) == 1


def test_no_token_at_all() -> None:
    x_BNI = torch.zeros(2, 0, 24, requires_grad=True)
    y_BNO = fast_layer(lora_layer())(x_BNI)
    assert y_BNO.shape == (2, 0, 40)
    y_BNO.sum().backward()


@pytest.mark.parametrize("frozen", ["lora_A", "lora_B"])
def test_one_frozen_factor(frozen: str) -> None:
    plain = lora_layer()
    plain.get_submodule(frozen).requires_grad_(False)
    x_NI = torch.randn(5, 24, requires_grad=True)
    assert_near(layer_figures(fast_layer(plain), x_NI), layer_figures(plain, x_NI), 1e-5)


def test_a_gradient_of_a_gradient_is_refused_instead_of_wrong() -> None:
    x_NI = torch.randn(5, 24, requires_grad=True)
    y_NO = fast_layer(lora_layer())(x_NI)
    (gradient_NI,) = torch.autograd.grad(y_NO.square().sum(), x_NI, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient_NI.sum().backward()
