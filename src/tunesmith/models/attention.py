"""Causal attention for training on a CPU: torch's fused forward, and a backward by batched products of its own.

torch's fused backward for the CPU works through small tiles, which costs much in bfloat16; in float32, on a processor
without matrix units, it is about as fast as this one. This one rebuilds the probabilities from the logsumexp that the
fused forward returns, as FlashAttention-2 does (Dao, arXiv 2307.08691, section 3.1), but in blocks wide enough for
`torch.bmm`:

    P = exp(s Q K^T - L) under the causal mask    delta = rowsum(dO * O)
    dV = P^T dO    dP = dO V^T    dS = P * (dP - delta)    dQ = s dS K    dK = s dS^T Q

A block of query positions sees keys up to its own end only. The query heads that share a key head become rows of one
product, so keys and values are never repeated, and their gradients sum over the group by themselves.

Scores, probabilities, dP and delta are float32 (float64 for float64), and so are the products that give scores and dP
from bfloat16 inputs: rounded to 8 bits, a score of 100 would put its probability off by up to a quarter, and
dP - delta would not cancel. The other three products are bfloat16 where the processor has instructions for it, else
float32, since torch's bfloat16 products are many times slower without.

`attention_forward` has the signature of transformers' attention functions. It takes over only what is computed here
exactly, and gives all else to transformers' own function for sdpa.

Shapes: B examples, T tokens, H query heads, G key and value heads, R = H / G heads that share a key head,
N = B * G pairs of them, M rows (R heads times the positions of a block), S keys that a block sees, D width of a head.
"""

from collections.abc import Iterator
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tunesmith.models.backend import BF16_CPU_FEATURES, CPU_ATTENTION, cpu_features

BLOCK_POSITIONS = 64
"""Query positions of a block. Fewer save more of the masked half, more make larger products."""

TEMPORARY_BYTES = 8 << 20
"""Bound on one [N, M, S] temporary; at most four exist at a time. A single pair at a single position is not split,
and takes R * T numbers."""

TAKEN_DTYPES = (torch.bfloat16,)
"""Where torch's own backward is slow. In float32 it took 0.8 to 1.05 times as long as this one on a processor without
matrix units, so it is left alone; the tests take float32 and float64 too."""


def register_attention() -> None:
    """Makes `CPU_ATTENTION` known to transformers; calling again changes nothing.

    The mask function is that of sdpa: no tensor for a plain causal batch, one for padding, packed sequences and
    windows shorter than the sequence.
    """
    AttentionInterface.register(CPU_ATTENTION, attention_forward)
    AttentionMaskInterface.register(CPU_ATTENTION, sdpa_mask)


def attention_forward(
    module: torch.nn.Module,
    query_BHTD: torch.Tensor,
    key_BGTD: torch.Tensor,
    value_BGTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers' models call it: the output [B, T, H, D], and no weights.

    Computed here if a gradient is needed, on CPU tensors, causally, without a mask, dropout, position bias, soft-cap
    or cache, for as many keys as queries; by `sdpa_attention_forward` otherwise.

    Args:
        module: the attention layer; its `is_causal` counts where the argument is None.
        query_BHTD: queries, of any strides.
        key_BGTD: keys; H is a multiple of G.
        value_BGTD: values.
        attention_mask: None where the causal mask is all there is.
        dropout: probability that a weight is dropped.
        scaling: factor on the scores; None is 1/sqrt(D).
        is_causal: whether a token sees earlier ones only.
        kwargs: what else transformers gives its attention functions.
    """
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    plain = causal and attention_mask is None and dropout == 0 and _is_plain(kwargs)
    if plain and _is_taken(query_BHTD, key_BGTD, value_BGTD):
        query_BHTD, key_BGTD, value_BGTD = (_autocast(tensor) for tensor in (query_BHTD, key_BGTD, value_BGTD))
        if query_BHTD.dtype == key_BGTD.dtype == value_BGTD.dtype and query_BHTD.dtype in TAKEN_DTYPES:
            scale = query_BHTD.shape[-1] ** -0.5 if scaling is None else float(scaling)
            output_BHTD, _ = causal_attention(query_BHTD, key_BGTD, value_BGTD, scale)
            return output_BHTD.transpose(1, 2).contiguous(), None
    result: tuple[torch.Tensor, None] = sdpa_attention_forward(
        module,
        query_BHTD,
        key_BGTD,
        value_BGTD,
        attention_mask,
        dropout=dropout,
        scaling=scaling,
        is_causal=is_causal,
        **kwargs,
    )
    return result


def _is_plain(kwargs: dict[str, Any]) -> bool:
    """Whether nothing is asked for that changes the scores or the keys."""
    return all(kwargs.get(name) is None for name in ("position_bias", "softcap", "cache"))


def _is_taken(query_BHTD: torch.Tensor, key_BGTD: torch.Tensor, value_BGTD: torch.Tensor) -> bool:
    """Whether these tensors are of the kind and shapes that `causal_attention` takes, and need a gradient."""
    tensors = (query_BHTD, key_BGTD, value_BGTD)
    if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in tensors):
        return False
    if any(tensor.device.type != "cpu" for tensor in tensors) or query_BHTD.numel() == 0:
        return False
    batch, heads, length, width = query_BHTD.shape
    key_heads = key_BGTD.shape[1]
    expected = (batch, key_heads, length, width)
    return key_BGTD.shape == value_BGTD.shape == expected and heads % key_heads == 0


def _autocast(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as autocast would give it to torch's own attention; float64 is left alone there too."""
    if not torch.is_autocast_enabled("cpu") or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype("cpu"))


@torch.library.custom_op("tunesmith::causal_attention", mutates_args=())
def causal_attention(
    query_BHTD: torch.Tensor, key_BGTD: torch.Tensor, value_BGTD: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(scale * Q K^T) V under the causal mask, and the logsumexp of the scores.

    Args:
        query_BHTD: queries in float32, float64 or bfloat16.
        key_BGTD: keys in the same type; H is a multiple of G.
        value_BGTD: values, as the keys.
        scale: factor on the scores.

    Returns:
        The output [B, H, T, D], and the logsumexp [B, H, T] in float32 (float64 for float64), without a gradient.
    """
    result: tuple[torch.Tensor, torch.Tensor] = _fused_forward(query_BHTD, key_BGTD, value_BGTD, scale)
    return result


@causal_attention.register_fake
def _fused_forward(
    query_BHTD: torch.Tensor, key_BGTD: torch.Tensor, value_BGTD: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    # The kernel reads rows of a head as they lie.
    tensors = (
        tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in (query_BHTD, key_BGTD, value_BGTD)
    )
    output_BHTD, logsumexp_BHT = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *tensors, 0.0, True, scale=scale
    )
    return output_BHTD, logsumexp_BHT


@torch.library.custom_op("tunesmith::causal_attention_backward", mutates_args=())
def causal_attention_backward(
    output_grad_BHTD: torch.Tensor,
    query_BHTD: torch.Tensor,
    key_BGTD: torch.Tensor,
    value_BGTD: torch.Tensor,
    output_BHTD: torch.Tensor,
    logsumexp_BHT: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of queries, keys and values, contiguous, in the type of the queries.

    Args:
        output_grad_BHTD: the gradient of the output.
        query_BHTD: as given to `causal_attention`, like keys, values and scale.
        key_BGTD: keys.
        value_BGTD: values.
        output_BHTD: what `causal_attention` returned, like the logsumexp.
        logsumexp_BHT: logsumexp of the scores.
        scale: factor on the scores.
    """
    batch, heads, length, width = query_BHTD.shape
    key_heads = key_BGTD.shape[1]
    grouped = (batch * key_heads, heads // key_heads, length, width)
    dtype, exact = query_BHTD.dtype, logsumexp_BHT.dtype
    fast = dtype if _multiplies_fast(dtype) else exact

    query_NRTD, output_grad_NRTD = query_BHTD.reshape(grouped), output_grad_BHTD.reshape(grouped)
    key_NTD, value_NTD = key_BGTD.reshape(-1, length, width), value_BGTD.reshape(-1, length, width).to(exact)
    # The scale goes into the small factors of S and dP: no pass over a large temporary, no second rounding at the end.
    scaled_query_NRTD, scaled_grad_NRTD = query_NRTD.to(exact) * scale, output_grad_NRTD.to(exact) * scale
    exact_key_NTD, logsumexp_NRT1 = key_NTD.to(exact), logsumexp_BHT.reshape(*grouped[:3], 1)
    scaled_delta_NRT1 = (scaled_grad_NRTD * output_BHTD.reshape(grouped)).sum(-1, keepdim=True)
    query_NRTD, key_NTD, output_grad_NRTD = (tensor.to(fast) for tensor in (query_NRTD, key_NTD, output_grad_NRTD))

    query_grad_NRTD = torch.empty(grouped, dtype=exact)
    key_grad_NTD, value_grad_NTD = (torch.zeros(key_NTD.shape, dtype=exact) for _ in range(2))
    for pairs, begin, end in _blocks(*grouped[:3], exact.itemsize):
        block, seen = (pairs, slice(None), slice(begin, end)), (pairs, slice(end))
        probabilities_NMS = torch.bmm(_rows(scaled_query_NRTD[block]), exact_key_NTD[seen].mT)
        probabilities_NMS.sub_(_rows(logsumexp_NRT1[block])).exp_()
        _clear_future(probabilities_NMS, begin, end)
        value_grad_NTD[seen] += torch.bmm(probabilities_NMS.to(fast).mT, _rows(output_grad_NRTD[block]))
        scores_grad_NMS = torch.bmm(_rows(scaled_grad_NRTD[block]), value_NTD[seen].mT)
        scores_grad_NMS.sub_(_rows(scaled_delta_NRT1[block])).mul_(probabilities_NMS)
        scores_grad_NMS = scores_grad_NMS.to(fast)  # s dS, for dQ and dK alike
        query_grad_NMD = torch.bmm(scores_grad_NMS, key_NTD[seen])
        query_grad_NRTD[block] = query_grad_NMD.view(-1, grouped[1], end - begin, width).to(exact)
        key_grad_NTD[seen] += torch.bmm(scores_grad_NMS.mT, _rows(query_NRTD[block]))
    return (
        query_grad_NRTD.view(query_BHTD.shape).to(dtype),
        key_grad_NTD.view(key_BGTD.shape).to(dtype),
        value_grad_NTD.view(value_BGTD.shape).to(dtype),
    )


def _multiplies_fast(dtype: torch.dtype) -> bool:
    return dtype != torch.bfloat16 or any(feature in cpu_features() for feature in BF16_CPU_FEATURES)


def _blocks(pairs: int, heads: int, length: int, itemsize: int) -> Iterator[tuple[slice, int, int]]:
    """The pairs of an example and a key head, and the first and last (exclusive) position, of each block of work.

    The number of positions, then that of pairs, is such that pairs * heads * positions * length numbers of `itemsize`
    bytes keep within `TEMPORARY_BYTES`.
    """
    positions = max(1, min(BLOCK_POSITIONS, length, TEMPORARY_BYTES // (heads * length * itemsize)))
    together = max(1, TEMPORARY_BYTES // (heads * positions * length * itemsize))
    for first in range(0, pairs, together):
        for begin in range(0, length, positions):
            yield slice(first, first + together), begin, min(begin + positions, length)


def _rows(tensor_NRTD: torch.Tensor) -> torch.Tensor:
    """Heads and positions as rows [N, M, D] of one matrix for each pair."""
    return tensor_NRTD.flatten(1, 2)


def _clear_future(probabilities_NMS: torch.Tensor, begin: int, end: int) -> None:
    """Sets to 0 what the positions `begin` to `end` must not see; only the last keys of a block can be such."""
    pairs, _, keys = probabilities_NMS.shape
    future = torch.ones(end - begin, end - begin, dtype=torch.bool).triu_(1)
    probabilities_NMS.view(pairs, -1, end - begin, keys)[..., begin:].masked_fill_(future, 0)


@causal_attention_backward.register_fake
def _gradient_shapes(_output_grad: torch.Tensor, *saved: Any) -> tuple[torch.Tensor, ...]:
    return tuple(tensor.new_empty(tensor.shape) for tensor in saved[:3])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    query_BHTD, key_BGTD, value_BGTD, ctx.scale = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(query_BHTD, key_BGTD, value_BGTD, *output)


def _backward(ctx: Any, output_grad_BHTD: torch.Tensor, _logsumexp_grad: Any) -> tuple[torch.Tensor | None, ...]:
    return (*causal_attention_backward(output_grad_BHTD, *ctx.saved_tensors, ctx.scale), None)


causal_attention.register_autograd(_backward, setup_context=_save)
