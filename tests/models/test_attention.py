"""Shapes: B examples, T tokens, H query heads, G key heads, D width of a head, V vocabulary."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tests.tiny import FAMILIES, tiny_config, tiny_model, tiny_model_folder
from tunesmith.models import attention
from tunesmith.models.attention import attention_forward, causal_attention, register_attention
from tunesmith.models.backend import CPU_ATTENTION
from tunesmith.models.loading import load_model

BLOCK = attention.BLOCK_POSITIONS
Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@pytest.fixture(autouse=True)
def _every_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    """The formulas are the same for all, and float32 and float64 show more of them than bfloat16."""
    monkeypatch.setattr(attention, "TAKEN_DTYPES", (torch.float32, torch.float64, torch.bfloat16))


def _inputs(
    batch: int = 2,
    length: int = 5,
    heads: int = 4,
    key_heads: int = 2,
    width: int = 8,
    dtype: torch.dtype = torch.float32,
) -> Tensors:
    """Queries, keys and values as transformers passes them: transposed views."""
    generator = torch.Generator().manual_seed(batch * length + heads)

    def draw(count: int) -> torch.Tensor:
        drawn_BTHD = torch.randn(batch, length, count, width, generator=generator, dtype=torch.float64)
        return drawn_BTHD.to(dtype).transpose(1, 2).requires_grad_()

    return draw(heads), draw(key_heads), draw(key_heads)


def _naive(query_BHTD: torch.Tensor, key_BGTD: torch.Tensor, value_BGTD: torch.Tensor, scale: float) -> torch.Tensor:
    groups = query_BHTD.shape[1] // key_BGTD.shape[1]
    key_BHTD, value_BHTD = (tensor.repeat_interleave(groups, dim=1) for tensor in (key_BGTD, value_BGTD))
    scores_BHTT = scale * query_BHTD @ key_BHTD.mT
    future_TT = torch.ones(scores_BHTT.shape[-2:], dtype=torch.bool).triu(1)
    return scores_BHTT.masked_fill(future_TT, -torch.inf).softmax(-1) @ value_BHTD


def _gradients(output_BHTD: torch.Tensor, inputs: Tensors) -> Tensors:
    generator = torch.Generator().manual_seed(7)
    direction_BHTD = torch.randn(output_BHTD.shape, generator=generator, dtype=torch.float64).to(output_BHTD.dtype)
    query_grad, key_grad, value_grad = torch.autograd.grad(output_BHTD, inputs, direction_BHTD)
    return query_grad, key_grad, value_grad


def _error(measured: torch.Tensor, true: torch.Tensor) -> float:
    """Norm of the difference, relative to that of the truth; absolute where the truth is zero, as dQ of one token."""
    measured, true = measured.detach().double(), true.detach().double()
    difference, size = float((measured - true).norm()), float(true.norm())
    return difference / size if size > 1e-6 else difference


def _float64(inputs: Tensors) -> Tensors:
    query, key, value = (tensor.detach().double().requires_grad_() for tensor in inputs)
    return query, key, value


def _assert_right(inputs: Tensors, *, scale: float = 0.3, bound: float = 1e-5) -> None:
    """The output and the gradients are those of plain attention in float64."""
    output_BHTD, _ = causal_attention(*inputs, scale)
    exact = _float64(inputs)
    expected_BHTD = _naive(*exact, scale)
    assert _error(output_BHTD, expected_BHTD) < bound
    for measured, true in zip(_gradients(output_BHTD, inputs), _gradients(expected_BHTD, exact), strict=True):
        assert measured.shape == true.shape
        assert _error(measured, true) < bound


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (4, 2), (9, 3), (4, 1)])
@pytest.mark.parametrize("length", [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5])
def test_output_and_gradients_are_those_of_plain_attention(length: int, heads: int, key_heads: int) -> None:
    _assert_right(_inputs(3, length, heads, key_heads))


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 4),
    length=st.integers(1, 150),
    key_heads=st.integers(1, 4),
    group=st.integers(1, 5),
    width=st.integers(1, 20),
    scale=st.floats(0.01, 1.5),
)
def test_any_shape_is_right(batch: int, length: int, key_heads: int, group: int, width: int, scale: float) -> None:
    _assert_right(_inputs(batch, length, key_heads * group, key_heads, width), scale=scale)


@pytest.mark.parametrize("temporary_bytes", [1, 2000, 20_000])
def test_the_bound_on_memory_changes_the_blocks_and_not_the_result(
    monkeypatch: pytest.MonkeyPatch, temporary_bytes: int
) -> None:
    monkeypatch.setattr(attention, "TEMPORARY_BYTES", temporary_bytes)
    _assert_right(_inputs(3, 70, 4, 2))


@pytest.mark.parametrize(("pairs", "heads", "length"), [(12, 3, 256), (3, 3, 1024), (64, 4, 8192), (2, 71, 16384)])
def test_blocks_cover_all_work_once_and_keep_the_bound(pairs: int, heads: int, length: int) -> None:
    seen = torch.zeros(pairs, length, dtype=torch.int)
    for chosen, begin, end in attention._blocks(pairs, heads, length, 4):
        seen[chosen, begin:end] += 1
        together = len(range(pairs)[chosen])
        assert together * heads * (end - begin) * end * 4 <= attention.TEMPORARY_BYTES
    assert (seen == 1).all()


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_gradients_agree_with_finite_differences(key_heads: int) -> None:
    inputs = _inputs(2, 5, 4, key_heads, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *tensors: causal_attention(*tensors, 0.5)[0], inputs)


def test_strides_do_not_matter() -> None:
    query, key, value = _inputs(2, 9, 4, 2)
    packed: Any = [tensor.detach().mT.contiguous().mT.requires_grad_() for tensor in (query, key, value)]
    assert all(tensor.stride(-1) != 1 for tensor in packed)
    _assert_right((packed[0], packed[1], packed[2]))
    _assert_right((query.detach().contiguous().requires_grad_(), packed[1], value))


@pytest.mark.parametrize("features", [frozenset(), frozenset({"amx_bf16"})])
@pytest.mark.parametrize(("batch", "length", "size"), [(2, 150, 1.0), (1, 64, 4.0)])
def test_bf16_is_as_near_as_torch_comes(
    monkeypatch: pytest.MonkeyPatch, features: frozenset[str], batch: int, length: int, size: float
) -> None:
    monkeypatch.setattr(attention, "cpu_features", lambda: features)
    query, key, value = _inputs(batch, length, 6, 2, 32, dtype=torch.bfloat16)
    inputs = ((query.detach() * size).requires_grad_(), key, value)
    scale = 32**-0.5
    exact = _float64(inputs)
    true = _gradients(_naive(*exact, scale), exact)
    torchs = scaled_dot_product_attention(*inputs, is_causal=True, scale=scale, enable_gqa=True)
    output, _ = causal_attention(*inputs, scale)
    assert torch.equal(output, torchs)
    for ours, theirs, right in zip(_gradients(output, inputs), _gradients(torchs, inputs), true, strict=True):
        assert ours.dtype == torch.bfloat16
        assert _error(ours, right) < 1.1 * _error(theirs, right)


def test_large_scores_keep_their_precision_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    # As in Qwen2, whose key biases shift all scores of a row; rounded to bfloat16 these would be off by up to a half.
    monkeypatch.setattr(attention, "cpu_features", lambda: frozenset({"amx_bf16"}))
    query, key, value = _inputs(1, 40, 2, 2, 16, dtype=torch.bfloat16)
    inputs = ((query.detach() + 4).requires_grad_(), (key.detach() + 8).requires_grad_(), value)
    exact = _float64(inputs)
    true = _gradients(_naive(*exact, 0.25), exact)
    measured = _gradients(causal_attention(*inputs, 0.25)[0], inputs)
    assert _error(measured[2], true[2]) < 0.01


def test_later_tokens_change_nothing_before_them() -> None:
    length, kept = 2 * BLOCK + 9, BLOCK + 3
    first = _inputs(2, length, 4, 2)
    changed = [tensor.detach().clone() for tensor in first]
    for tensor in changed:
        tensor[:, :, kept:] = 1e4
    second = (changed[0].requires_grad_(), changed[1].requires_grad_(), changed[2].requires_grad_())
    results = []
    for inputs in (first, second):
        output = causal_attention(*inputs, 0.3)[0][:, :, :kept]
        results.append((output, *(gradient[:, :, :kept] for gradient in _gradients(output, inputs))))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_the_same_bytes_each_time() -> None:
    inputs = _inputs(3, 2 * BLOCK + 1, 9, 3)
    first, second = (_gradients(causal_attention(*inputs, 0.3)[0], inputs) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_the_operator_says_its_shapes_and_strides_rightly() -> None:
    checks = ("test_schema", "test_faketensor")
    passed = dict.fromkeys(checks, "SUCCESS")
    for inputs in (_inputs(2, 9, 4, 2), _inputs(2, 9, 4, 2, dtype=torch.bfloat16)):
        assert torch.library.opcheck(causal_attention, (*inputs, 0.3), test_utils=checks) == passed
    query, key, value = _inputs(2, 9, 4, 2)
    output, logsumexp = causal_attention(query, key, value, 0.3)
    arguments = [tensor.detach() for tensor in (torch.ones_like(output), query, key, value, output, logsumexp)]
    backward = attention.causal_attention_backward
    assert torch.library.opcheck(backward, (*arguments, 0.3), test_utils=checks) == passed


def test_compilers_trace_it_without_a_break() -> None:
    def forward(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return attention_forward(nn.Module(), query, key, value, None, scaling=0.3)[0]

    compiled = torch.compile(forward, backend="aot_eager", fullgraph=True)
    inputs = _inputs(2, 9, 4, 2)
    for measured, true in zip(_gradients(compiled(*inputs), inputs), _gradients(forward(*inputs), inputs), strict=True):
        assert torch.equal(measured, true)


@pytest.fixture
def sdpa_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts calls of transformers' own function."""
    calls: list[int] = []

    def counted(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        return sdpa_attention_forward(*arguments, **named)

    monkeypatch.setattr(attention, "sdpa_attention_forward", counted)
    return calls


def _layer(groups: int = 2, *, is_causal: bool = True) -> nn.Module:
    layer = nn.Module()
    layer.num_key_value_groups = groups  # type: ignore[assignment]
    layer.is_causal = is_causal  # type: ignore[assignment]
    return layer


def test_a_plain_causal_batch_is_taken(sdpa_calls: list[int]) -> None:
    inputs = _inputs()
    output, weights = attention_forward(_layer(), *inputs, None, sliding_window=3, position_ids=None)
    assert sdpa_calls == []
    assert weights is None
    assert output.is_contiguous()
    assert torch.equal(output, sdpa_attention_forward(_layer(), *inputs, None)[0])


MASK = torch.ones(2, 1, 5, 5, dtype=torch.bool).tril()


@pytest.mark.parametrize(
    "named",
    [
        {"attention_mask": MASK},
        {"dropout": 0.5},
        {"is_causal": False},
        {"position_bias": torch.ones(1, 1, 5, 5)},
    ],
)
def test_what_is_not_computed_here_reaches_sdpa_unchanged(sdpa_calls: list[int], named: dict[str, Any]) -> None:
    inputs, arguments = _inputs(), {"attention_mask": None, **named}
    results = []
    for function in (attention_forward, sdpa_attention_forward):
        torch.manual_seed(0)
        results.append(function(_layer(), *inputs, **arguments)[0])
    assert sdpa_calls == [1]
    assert torch.equal(*results)


def test_a_soft_cap_is_refused_as_sdpa_refuses_it(sdpa_calls: list[int]) -> None:
    with pytest.raises(ValueError, match="softcap"):
        attention_forward(_layer(), *_inputs(), None, softcap=50.0)
    assert sdpa_calls == [1]


def test_tensors_of_another_kind_reach_sdpa(sdpa_calls: list[int]) -> None:
    query, key, value = _inputs()
    with torch.no_grad():
        attention_forward(_layer(), query, key, value, None)
    attention_forward(_layer(), query.detach(), key.detach(), value.detach(), None)
    attention_forward(_layer(is_causal=False), query, key, value, None)
    attention_forward(_layer(), query[:, :, -1:], key, value, None)  # one query on a cache
    attention_forward(_layer(), query, key, value[..., :4], None)
    attention_forward(_layer(), query.half(), key.half(), value.half(), None)
    assert len(sdpa_calls) == 6


def test_autocast_gives_what_sdpa_gives_under_it(sdpa_calls: list[int]) -> None:
    query, key, value = _inputs(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = attention_forward(_layer(), query, key.bfloat16(), value, None)[0]
        assert sdpa_calls == []
        expected = sdpa_attention_forward(_layer(), query, key.bfloat16(), value, None)[0]
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, expected)
    gradients = _gradients(output, (query, key, value))
    assert all(gradient.dtype == torch.float32 for gradient in gradients)
    for measured, true in zip(gradients, _gradients(expected, (query, key, value)), strict=True):
        assert _error(measured, true) < 0.02


def _model_gradients(model: PreTrainedModel, implementation: str, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    model.set_attn_implementation(implementation)
    model.zero_grad()
    logits_BTV = model(use_cache=False, **inputs).logits
    nn.functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), inputs["input_ids"][:, 1:].flatten()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def _tokens(batch: int = 3, length: int = 80) -> torch.Tensor:
    return torch.randint(0, 256, (batch, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", [*(family for family in FAMILIES if family != "gemma2"), "gemma"])
def test_models_have_the_gradients_that_sdpa_gives(sdpa_calls: list[int], family: str) -> None:
    register_attention()
    model = tiny_model(family)
    ours = _model_gradients(model, CPU_ATTENTION, input_ids=_tokens())
    assert sdpa_calls == []
    theirs = _model_gradients(model, "sdpa", input_ids=_tokens())
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        assert _error(gradient, theirs[name]) < 1e-5, name


def test_windows_padding_and_packing_get_their_masks(sdpa_calls: list[int]) -> None:
    register_attention()
    padding_BT = torch.ones(3, 80, dtype=torch.long)
    padding_BT[0, 60:] = 0
    packed_BT = torch.cat([torch.arange(30), torch.arange(50)]).expand(3, -1)
    cases: list[tuple[PreTrainedModel, dict[str, torch.Tensor]]] = [
        (tiny_model("mistral", sliding_window=16), {}),
        (tiny_model("llama"), {"attention_mask": padding_BT}),
        (tiny_model("llama"), {"position_ids": packed_BT}),
    ]
    for model, named in cases:
        ours = _model_gradients(model, CPU_ATTENTION, input_ids=_tokens(), **named)
        assert len(sdpa_calls) == 2  # one for each layer
        theirs = _model_gradients(model, "sdpa", input_ids=_tokens(), **named)
        assert all(torch.equal(gradient, theirs[name]) for name, gradient in ours.items())
        sdpa_calls.clear()


def test_a_model_answers_as_with_sdpa_padding_and_static_cache_included() -> None:
    register_attention()
    model = tiny_model("llama")
    padding_BT = torch.ones(3, 20, dtype=torch.long)
    padding_BT[0, :7] = 0
    for cache in ("dynamic", "static"):
        answers = []
        for implementation in (CPU_ATTENTION, "sdpa"):
            model.set_attn_implementation(implementation)
            named: dict[str, Any] = {
                "attention_mask": padding_BT,
                "cache_implementation": cache,
                "disable_compile": True,
            }
            generate: Any = model.generate
            answers.append(generate(_tokens(3, 20), max_new_tokens=8, do_sample=False, **named))
        assert torch.equal(*answers)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "gemma", "phi3"])
def test_loaded_models_use_it_and_saved_ones_do_not_name_it(tmp_path: Path, family: str) -> None:
    model = load_model(tiny_model_folder(tmp_path / "in", family), precision="fp32", device=torch.device("cpu"))
    assert model.config._attn_implementation == CPU_ATTENTION
    model.save_pretrained(tmp_path / "out")
    for file in (tmp_path / "out").glob("*.json"):
        assert CPU_ATTENTION not in file.read_text()
    assert "_attn_implementation" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_a_saved_model_loads_where_transformers_is_alone(tmp_path: Path) -> None:
    model = load_model(tiny_model_folder(tmp_path / "in"), precision="fp32", device=torch.device("cpu"))
    model.save_pretrained(tmp_path / "out")
    code = (
        "import sys, transformers\n"
        "model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "print(model.config._attn_implementation, 'tunesmith' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "out"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["sdpa", "False"]


def test_registering_again_changes_nothing() -> None:
    register_attention()
    register_attention()
    assert AttentionInterface()[CPU_ATTENTION] is attention_forward
    assert tiny_config("llama")._attn_implementation is None  # models made elsewhere keep transformers' choice


def test_float32_is_left_to_torch_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    taken: list[torch.dtype] = []

    def note(query_BHTD: torch.Tensor, *_: Any) -> tuple[torch.Tensor, None]:
        taken.append(query_BHTD.dtype)
        return query_BHTD, None

    monkeypatch.setattr(attention, "causal_attention", note)
    module = nn.Module()
    for dtype in (torch.float32, torch.bfloat16):
        attention_forward(module, *_inputs(dtype=dtype, key_heads=4), None, is_causal=True)
    assert taken == [torch.bfloat16]
