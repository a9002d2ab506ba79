"""The head where there is a label: the loss and gradients of all logits, without ever holding them."""

import gc
import weakref
from collections.abc import Iterator
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM

from tests.tiny import FAMILIES, VOCABULARY_SIZE, tiny_model
from tunesmith.models import label_head as module
from tunesmith.models.label_head import LabelHead, LogitRule, chunk_rows, label_head

ROWS = 16
"""Rows of a chunk wherever `CHUNK_BYTES` is set small; it is never fewer."""

H, V = 12, 40


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """The tensors here are so small that a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", autouse=True)
def _small_chunks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_BYTES", 1)
        yield


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def targets(count: int, vocabulary: int = V) -> Tensor:
    return torch.randint(0, vocabulary, (count,), generator=torch.Generator().manual_seed(1))


def head_alone(linear: nn.Module, rule: LogitRule = LogitRule()) -> LabelHead:  # noqa: B008  # frozen
    """A `LabelHead` of `linear` without a model around it."""
    causal: Any = nn.Module()
    causal.lm_head = linear
    causal.get_output_embeddings = lambda: causal.lm_head
    return LabelHead(causal, rule)


def linear_head(*, bias: bool = False, trains: bool = False, vocabulary: int = V, width: int = H) -> nn.Linear:
    linear = nn.Linear(width, vocabulary, bias=bias).requires_grad_(trains)
    with torch.no_grad():
        for number, parameter in enumerate(linear.parameters()):
            parameter.copy_(random(*parameter.shape, seed=10 + number, scale=0.7))
    return linear


def naive_loss(
    linear: nn.Module, rule: LogitRule, hidden_NH: Tensor, targets_N: Tensor, weights_N: Tensor | None
) -> Tensor:
    """All logits at once in float64."""
    logits_NV = deepcopy(linear).double()(hidden_NH) * rule.factor
    if rule.softcap is not None:
        logits_NV = rule.softcap * torch.tanh(logits_NV / rule.softcap)
    losses_N = cross_entropy(logits_NV, targets_N, reduction="none")
    return (losses_N if weights_N is None else losses_N * weights_N.double()).sum()


def relative_error(ours: Tensor, exact: Tensor) -> float:
    return float((ours.double() - exact).norm() / exact.norm().clamp_min(1e-30))


@settings(max_examples=60)
@given(
    count=st.sampled_from([0, 1, 5, ROWS - 1, ROWS, ROWS + 1, 3 * ROWS, 3 * ROWS + 7]),
    weights=st.none() | st.sampled_from(["some zero", "all zero", "large and small"]),
    bias=st.booleans(),
    factor=st.sampled_from([1.0, 0.0625, 3.0]),
    softcap=st.none() | st.sampled_from([2.0, 30.0]),
    trains=st.booleans(),
)
def test_loss_and_gradients_are_those_of_all_logits_in_float64(
    count: int, weights: str | None, bias: bool, factor: float, softcap: float | None, trains: bool
) -> None:
    """A frozen head by the function of its own, one that trains by checkpointed chunks."""
    rule, linear = LogitRule(factor, softcap), linear_head(bias=bias, trains=trains)
    hidden_NH = random(count, H).requires_grad_()
    targets_N = targets(count)
    weights_N = None
    if weights is not None:
        weights_N = random(count, seed=3).relu() * (weights != "all zero")
        if weights == "large and small":
            weights_N = torch.exp(3 * random(count, seed=3))
    loss = head_alone(linear, rule).summed_loss(hidden_NH, targets_N, weights_N)
    (loss * 0.25).backward()
    exact_NH = hidden_NH.detach().double().requires_grad_()
    exact_linear = deepcopy(linear).double()
    exact = naive_loss(exact_linear, rule, exact_NH, targets_N, weights_N)
    assert (loss.dtype, loss.shape) == (torch.float32, ())
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6, abs=1e-6)
    (expected_NH,) = torch.autograd.grad(0.25 * exact, exact_NH)
    assert hidden_NH.grad is not None
    # Where a probability is nearly 1, p - 1 keeps float32's absolute error, which weight and factor multiply.
    scale = max(1.0, factor) * (1.0 if weights_N is None else max([1.0, *weights_N.tolist()]))
    torch.testing.assert_close(hidden_NH.grad.double(), expected_NH, atol=2e-6 * scale, rtol=2e-5)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rule", [LogitRule(), LogitRule(0.5, 3.0)], ids=["plain", "capped"])
@pytest.mark.parametrize("hidden_trains", [True, False])
def test_a_head_that_trains_gets_its_own_gradients(bias: bool, rule: LogitRule, hidden_trains: bool) -> None:
    linear, targets_N, weights_N = linear_head(bias=bias, trains=True), targets(3 * ROWS + 7), random(55).abs()
    exact_linear = deepcopy(linear).double()
    hidden_NH = random(55, H).requires_grad_(hidden_trains)
    head_alone(linear, rule).summed_loss(hidden_NH, targets_N, weights_N).backward()
    logits_NV = rule.apply(exact_linear(hidden_NH.detach().double()))
    (cross_entropy(logits_NV, targets_N, reduction="none") * weights_N.double()).sum().backward()
    for (name, ours), theirs in zip(linear.named_parameters(), exact_linear.parameters(), strict=True):
        assert ours.grad is not None, name
        assert theirs.grad is not None, name
        assert relative_error(ours.grad, theirs.grad) < 1e-6, name


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("hidden_trains", [True, False])
def test_without_a_label_the_loss_is_zero_and_can_be_gone_back_from(trains: bool, hidden_trains: bool) -> None:
    linear, hidden_NH = linear_head(trains=trains), torch.zeros(0, H, requires_grad=hidden_trains)
    loss = head_alone(linear).summed_loss(hidden_NH, targets(0))
    assert loss.item() == 0
    assert loss.requires_grad == (trains or hidden_trains)
    if loss.requires_grad:
        loss.backward()
    for parameter in linear.parameters():
        assert parameter.grad is None or not parameter.grad.any()


def test_losses_of_each_token_are_without_a_graph() -> None:
    linear, rule, hidden_NH = linear_head(trains=True), LogitRule(2.0, 5.0), random(3 * ROWS + 7, H).requires_grad_()
    ours_N = head_alone(linear, rule).losses(hidden_NH, targets(55))
    exact_N = cross_entropy(rule.apply(deepcopy(linear).double()(hidden_NH.double())), targets(55), reduction="none")
    torch.testing.assert_close(ours_N.double(), exact_N, atol=1e-5, rtol=1e-6)
    assert (ours_N.dtype, ours_N.requires_grad) == (torch.float32, False)
    assert head_alone(linear, rule).losses(hidden_NH[:0], targets(0)).shape == (0,)


def test_no_gradient_is_computed_where_none_is_wanted() -> None:
    linear, products = linear_head(), LargestOutput()
    with torch.no_grad(), products:
        head_alone(linear).summed_loss(random(55, H), targets(55))
    assert "aten.mm" in products.names
    assert products.names.count("aten.mm") == 4, "one product for each chunk"


class LargestOutput(TorchDispatchMode):
    """The most elements that any operation gave out, and the names of all operations."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numel = 0
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.numel = max([self.numel, *sizes])
        self.names.append(str(func).rpartition(".")[0])
        return result


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("rule", [LogitRule(), LogitRule(0.5, 3.0)], ids=["plain", "capped"])
def test_no_operation_gives_more_than_a_chunk_of_logits(trains: bool, rule: LogitRule) -> None:
    vocabulary, count = 1000, 10 * ROWS
    linear = linear_head(vocabulary=vocabulary, trains=trains)
    hidden_NH = random(count, H).requires_grad_()
    with LargestOutput() as largest:
        head_alone(linear, rule).summed_loss(hidden_NH, targets(count, vocabulary), random(count).abs()).backward()
    assert hidden_NH.grad is not None
    assert largest.numel == ROWS * vocabulary


def test_a_chunk_has_the_rows_whose_logits_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 4 * V * 100 + 3)
    assert chunk_rows(linear_head()) == 100
    monkeypatch.setattr(module, "CHUNK_BYTES", 1)
    assert chunk_rows(linear_head()) == ROWS


def test_small_probabilities_survive_float16_and_large_weights_do_not_overflow() -> None:
    """The probabilities of nearly all of 4000 tokens are below float16's smallest step of 6e-8, or near it."""
    vocabulary, count, width = 4000, 24, 16
    linear = linear_head(vocabulary=vocabulary, width=width)
    # A bias lifts a few tokens so far that the others are left with 1e-8 to 1e-6 each.
    linear.bias = nn.Parameter(torch.zeros(vocabulary), requires_grad=False)
    linear.bias[:4] = 16.0
    half: nn.Linear = deepcopy(linear).half()
    hidden_NH = random(count, width, scale=0.3).half()
    targets_N = torch.arange(count) % 4
    for weights_N in (None, torch.full((count,), 300.0), torch.full((count,), 1e-3)):
        ours_NH = hidden_NH.clone().requires_grad_()
        loss = head_alone(half).summed_loss(ours_NH, targets_N, weights_N)
        # As a gradient scaler does, so that what comes out is no smaller than float16 can hold.
        (loss * (1.0 if weights_N is None else 1 / float(weights_N[0]))).backward()
        exact_NH = hidden_NH.double().requires_grad_()
        exact = naive_loss(half, LogitRule(), exact_NH, targets_N, weights_N)
        (exact * (1.0 if weights_N is None else 1 / float(weights_N[0]))).backward()
        assert loss.item() == pytest.approx(exact.item(), rel=5e-3)
        assert exact_NH.grad is not None
        assert ours_NH.grad is not None
        assert ours_NH.grad.dtype == torch.float16
        assert relative_error(ours_NH.grad, exact_NH.grad) < 5e-3


@pytest.mark.parametrize("base", [torch.float16, torch.float32])
def test_the_many_small_probabilities_together_are_not_lost_in_float16(base: torch.dtype) -> None:
    """A gradient made by them alone: all of the tail points one way, and each probability is below 6e-8.

    Float16 is what the products are computed in, by the weights' dtype or by autocast.
    """
    vocabulary, width = 20_000, 4
    linear = nn.Linear(width, vocabulary, bias=True).requires_grad_(False)
    linear.weight.zero_()
    linear.weight[1:, 0] = 1.0
    linear.bias.zero_()
    linear.bias[0] = 17.5
    linear = linear.to(base)
    hidden_NH = torch.zeros(3, width, dtype=base, requires_grad=True)
    targets_N = torch.zeros(3, dtype=torch.long)
    with torch.autocast("cpu", dtype=torch.float16, enabled=base == torch.float32):
        loss = head_alone(linear).summed_loss(hidden_NH, targets_N)
    loss.backward()
    exact_NH = torch.zeros(3, width, dtype=torch.float64, requires_grad=True)
    naive_loss(linear, LogitRule(), exact_NH, targets_N, None).backward()
    assert hidden_NH.grad is not None
    assert exact_NH.grad is not None
    assert 1e-4 < float(exact_NH.grad[0, 0]) < 1e-3
    torch.testing.assert_close(hidden_NH.grad.double(), exact_NH.grad, rtol=2e-2, atol=0)


@pytest.mark.parametrize("trains", [False, True])
def test_the_sum_over_a_large_vocabulary_is_nearer_to_float64_than_torchs_own(trains: bool) -> None:
    """torch 2.13's float32 `cross_entropy` on a CPU is off by 1e-5 here: its running sum loses many small terms."""
    vocabulary, count = 49_152, 32
    linear = linear_head(vocabulary=vocabulary, trains=trains)
    hidden_NH, targets_N = random(count, H, scale=2.0).requires_grad_(), targets(count, vocabulary)
    exact_NH = hidden_NH.detach().double().requires_grad_()
    exact = naive_loss(linear, LogitRule(), exact_NH, targets_N, None)
    exact.backward()
    loss = head_alone(linear).summed_loss(hidden_NH, targets_N)
    loss.backward()
    assert hidden_NH.grad is not None
    assert exact_NH.grad is not None
    assert abs(loss.item() - exact.item()) / count < 2e-6
    assert relative_error(hidden_NH.grad, exact_NH.grad) < 2e-6


def test_two_calls_give_the_same_bytes() -> None:
    head, results = head_alone(linear_head()), []
    for _ in range(2):
        hidden_NH = random(55, H).requires_grad_()
        loss = head.summed_loss(hidden_NH, targets(55), random(55).abs())
        loss.backward()
        results.append((loss.detach(), hidden_NH.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1] is not None
    assert results[1][1] is not None
    assert torch.equal(results[0][1], results[1][1])


def test_a_gradient_of_a_gradient_is_refused_instead_of_wrong() -> None:
    hidden_NH = random(5, H).requires_grad_()
    loss = head_alone(linear_head()).summed_loss(hidden_NH, targets(5))
    (gradient_NH,) = torch.autograd.grad(loss.square(), hidden_NH, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient_NH.sum().backward()


@pytest.mark.parametrize("base", [torch.bfloat16, torch.float32])
def test_under_autocast_it_is_as_near_to_float64_as_all_logits_at_once(base: torch.dtype) -> None:
    linear = linear_head(vocabulary=500).to(base)
    hidden_NH, targets_N = random(55, H).bfloat16().float(), targets(55, 500)
    gradients: list[Tensor] = []
    for way in ("ours", "stock"):
        leaf_NH = hidden_NH.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            if way == "ours":
                loss = head_alone(linear).summed_loss(leaf_NH, targets_N)
            else:
                loss = cross_entropy(linear(leaf_NH).float(), targets_N, reduction="sum")
        loss.backward()
        assert leaf_NH.grad is not None
        gradients.append(leaf_NH.grad)
    exact_NH = hidden_NH.double().requires_grad_()
    naive_loss(linear.bfloat16(), LogitRule(), exact_NH, targets_N, None).backward()
    assert exact_NH.grad is not None
    ours, stock = (relative_error(gradient, exact_NH.grad) for gradient in gradients)
    assert ours <= 1.2 * stock


# Whole models

LOGIT_CHANGERS: dict[str, dict[str, Any]] = {
    "gemma2": {"final_logit_softcapping": 3.0},
    "gemma3_text": {"final_logit_softcapping": 2.0},
    "granite": {"logits_scaling": 4.0},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"logit_scale": 3.0},
    "gpt2": {},
}

IDS_BT = torch.randint(0, 256, (2, 21), generator=torch.Generator().manual_seed(0))


def any_model(family: str, **changes: Any) -> Any:
    if family != "gpt2":
        return tiny_model(family, **changes)
    torch.manual_seed(0)
    config = AutoConfig.for_model("gpt2", n_embd=32, n_layer=2, n_head=4, vocab_size=VOCABULARY_SIZE, n_positions=64)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def with_lora(model: Any, **values: Any) -> PeftModel:
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(**{"target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **values}))
    with torch.no_grad():
        for number, parameter in enumerate(adapted.parameters()):
            if parameter.requires_grad:
                parameter.add_(random(*parameter.shape, seed=number, scale=0.1))
    return adapted


def loss_and_gradients(model: Any, *, by_head: bool) -> dict[str, Tensor]:
    """The summed loss of `IDS_BT` by `label_head` or by all of the model's logits, and the gradients by their names."""
    model.zero_grad()
    targets_N = IDS_BT[:, 1:].flatten()
    if by_head:
        head = label_head(model)
        assert head is not None
        loss = head.summed_loss(head.hidden(IDS_BT)[:, :-1].flatten(0, 1), targets_N)
    else:
        logits_BTV = model(input_ids=IDS_BT, use_cache=False).logits
        loss = cross_entropy(logits_BTV[:, :-1].flatten(0, 1).double(), targets_N, reduction="sum")
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **gradients}


def assert_agrees(model: Any) -> dict[str, Tensor]:
    ours, theirs = (loss_and_gradients(model, by_head=by_head) for by_head in (True, False))
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert relative_error(ours[name], theirs[name].double()) < 1e-4, name
    assert relative_error(ours["loss"], theirs["loss"]) < 1e-6
    return ours


@pytest.mark.parametrize("family", sorted({*FAMILIES, *LOGIT_CHANGERS}))
def test_every_family_has_the_loss_of_its_own_logits(family: str) -> None:
    model = any_model(family, **LOGIT_CHANGERS.get(family, {}))
    if family not in FAMILIES and family != "gpt2":
        assert LogitRule.of(model.config) != LogitRule()
    model.get_output_embeddings().weight.requires_grad_(False)
    assert len(assert_agrees(model)) > 10


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("settings", "trained", "frozen_linear"),
    [
        ({}, "q_proj", True),
        ({"modules_to_save": ["lm_head"]}, "lm_head.modules_to_save", False),
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head.lora_B", False),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "lora_embedding_A", True),
        ({"trainable_token_indices": [5, 7]}, "token_adapter.trainable_tokens_delta", True),
        ({"target_modules": ["q_proj"], "use_dora": True}, "lora_magnitude_vector", True),
    ],
    ids=["frozen", "modules_to_save", "LoRA on the head", "LoRA on the embeddings", "tokens", "DoRA"],
)
def test_adapters_and_heads_that_train(
    settings: dict[str, Any], trained: str, frozen_linear: bool, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if tied and "modules_to_save" in settings:
        pytest.skip("PEFT asks for the embeddings to be saved too")
    model = with_lora(tiny_model(tie_word_embeddings=tied), **settings)
    chunks: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        chunks.append(len(args[1]))
        return checkpoint(*args, **kwargs)

    monkeypatch.setattr(module, "checkpoint", counted)
    gradients = assert_agrees(model)
    assert any(trained in name for name in gradients)
    by_chunks = not frozen_linear or (tied and "trainable_token_indices" in settings)
    assert chunks == ([16, 16, 8] if by_chunks else [])


def test_a_full_head_that_trains() -> None:
    model = tiny_model().requires_grad_(False)
    model.get_output_embeddings().weight.requires_grad_(True)
    assert set(assert_agrees(model)) == {"loss", "lm_head.weight"}


def doubled(_module: nn.Module, _inputs: Any, output: Any) -> Any:
    output.logits = output.logits * 2
    return output


def test_a_model_that_does_something_else_to_its_logits_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    hooked = tiny_model()
    hooked.register_forward_hook(doubled)
    assert label_head(hooked) is None
    around = with_lora(tiny_model())
    around.register_forward_hook(doubled)
    assert label_head(around) is None, "a hook on PEFT's model"
    patched: Any = tiny_model()
    forward = patched.forward
    monkeypatch.setattr(patched, "forward", lambda *args, **kwargs: doubled(patched, (), forward(*args, **kwargs)))
    assert label_head(patched) is None
    capped: Any = tiny_model("gemma2", final_logit_softcapping=3.0)
    monkeypatch.setattr(LogitRule, "of", lambda _config: LogitRule())
    assert label_head(capped) is None


@pytest.mark.parametrize("way", ["hook", "pre-hook", "forward"])
def test_what_is_hooked_to_the_head_itself_is_heeded(way: str) -> None:
    """The model and the probe both call the head; the function for frozen heads must not pass the hook over."""
    model: Any = tiny_model()
    head = model.get_output_embeddings().requires_grad_(False)
    if way == "hook":
        head.register_forward_hook(lambda _module, _inputs, output: output * 2)
    elif way == "pre-hook":
        head.register_forward_pre_hook(lambda _module, inputs: (inputs[0] * 2,))
    else:
        head.forward = lambda x, inner=head.forward: inner(x) * 2
    assert label_head(model) is not None
    assert_agrees(model)


def test_models_without_a_decoder_and_a_head_apart_are_left_alone() -> None:
    headless: Any = tiny_model()
    headless.get_output_embeddings = lambda: None
    assert label_head(nn.Linear(2, 2)) is None
    assert label_head(headless) is None
    prompted = get_peft_model(tiny_model(), PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    assert label_head(prompted) is None
    assert label_head(with_lora(tiny_model(), alora_invocation_tokens=[5])) is None
    for error in (TypeError, AttributeError, ValueError, RuntimeError):
        other: Any = tiny_model()

        def refuse(error: type[Exception] = error, **_inputs: Any) -> None:
            raise error("called otherwise")

        other.model.forward = refuse
        assert label_head(other) is None
    scarce: Any = tiny_model()

    def no_memory(**_inputs: Any) -> None:
        raise torch.OutOfMemoryError("none left")

    scarce.model.forward = no_memory
    with pytest.raises(torch.OutOfMemoryError):
        label_head(scarce)


def test_a_decoder_that_gives_no_last_hidden_state_is_left_alone() -> None:
    model: Any = tiny_model()
    model.model.forward = lambda **_inputs: SimpleNamespace()
    assert label_head(model) is None


def test_a_model_is_tried_once_and_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = tiny_model()
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    assert label_head(model) is not None
    assert label_head(model) is not None
    assert len(calls) == 1
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_trying_a_model_leaves_it_and_the_random_numbers_as_they_were() -> None:
    model = with_lora(tiny_model(), lora_dropout=0.5).train()
    model.get_base_model().lm_head.eval()
    modes = [part.training for part in model.modules()]
    state = torch.get_rng_state()
    assert label_head(model) is not None
    assert [part.training for part in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
