"""The head where there is a label: the loss and gradients of all logits, without ever holding them."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tunesmith.models import label_head as module
from tunesmith.models.label_head import LabelHead, LogitRule, chunk_rows

ROWS = 16
"""Rows of a chunk wherever `CHUNK_BYTES` is set small; it is never fewer."""

H, V = 12, 40


pytestmark = pytest.mark.usefixtures("one_thread")


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
