"""RMSNorm while training, keeping its input and one number a token, in fewer passes over memory.

`n = x * rsqrt(mean(x^2) + eps)`, times a frozen weight (1910.07467, equation 4). The output is the module's own,
rounding for rounding; the backward pass works in float32 and rounds once. Tokens are worked through in blocks, so that
what lies between two passes stays small.

What comes after a norm need not keep the norm's output either: it is a product of what is kept anyhow. A tensor made
here says so (`source_of`), and a linear layer takes the gradient of its weights from there.

A norm becomes an instance of a subclass made for its class; parameters, names and all other methods stay. Whether a
class computes one of the two known formulas is told by its code, which families copy from each other.

Shapes: N tokens (all leading dimensions), M of them in a block, I the width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from tunesmith.models.modules import computes_as, subclass_of

BLOCK_ROWS = 512
"""Tokens in a block on a CPU: at a width of 576 a float32 block is 1.2 MB."""


@dataclass(frozen=True)
class NormSource:
    """What a norm's output is made of: `x_NI * rstd_N1 * weight_I`, up to rounding.

    Args:
        x_NI: the norm's input.
        rstd_N1: one over the root mean square of each row, float32.
        weight_I: the factor of each column.
    """

    x_NI: Tensor
    rstd_N1: Tensor
    weight_I: Tensor


def source_of(normed: Tensor) -> NormSource | None:
    """What `normed` is made of, where it came from a norm of this file and was not changed since."""
    source, version = getattr(normed, "_tunesmith_norm", (None, 0))
    return source if source is not None and normed._version == version else None


def usable_source(source: NormSource | None, normed: Tensor, dtype: torch.dtype) -> NormSource | None:
    """The source, if a product in `dtype` with the norm's output can be taken from it.

    Not in float16, which has no room for the factors apart from each other, and not where autocast casts.
    """
    fits = source is not None and source.x_NI.dtype == normed.dtype == dtype != torch.float16
    return source if fits else None


def row_blocks(rows: int, device: torch.device, size: int) -> Iterator[slice]:
    """The rows in blocks on a CPU, all at once elsewhere."""
    step = size if device.type == "cpu" else max(1, rows)
    return (slice(start, start + step) for start in range(0, rows, step))


def use_lean_norms(model: nn.Module) -> int:
    """Makes each RMSNorm of `model` whose class is known keep less while training, in place; how many there are."""
    count = 0
    for module in model.modules():
        kind: Any = type(module)
        if isinstance(module, _LeanNorm):
            count += 1
        elif computes_as(kind, LlamaRMSNorm, "forward"):
            module.__class__ = subclass_of(kind, _LeanLlamaNorm)
            count += 1
        elif computes_as(kind, GemmaRMSNorm, "forward", "_norm"):
            module.__class__ = subclass_of(kind, _LeanGemmaNorm)
            count += 1
    return count


class _LeanNorm(nn.Module):
    """Before a norm's class in the order of resolution."""

    weight: nn.Parameter

    def forward(self, x: Tensor) -> Tensor:
        """The norm of x [..., I]; by the module's own class where nothing is to be kept or the weight trains."""
        takes = torch.is_grad_enabled() and x.requires_grad and not torch.compiler.is_compiling()
        if not takes or self.weight.requires_grad or self.weight.dtype != x.dtype or not x.is_floating_point():
            return cast(Tensor, super().forward(x))
        x_NI = x.reshape(-1, x.shape[-1])
        apply: Callable[..., tuple[Tensor, Tensor]] = _Norm.apply
        factor_I = self._factor()
        y_NI, rstd_N1 = apply(x_NI, factor_I, self._eps(), self._rounds_before_weight)
        y = y_NI.view(x.shape)
        cast(Any, y)._tunesmith_norm = (NormSource(x_NI, rstd_N1, factor_I), y._version)
        return y

    _rounds_before_weight = True

    def _factor(self) -> Tensor:
        return self.weight

    def _eps(self) -> float:
        return cast(float, cast(Any, self).variance_epsilon)


class _LeanLlamaNorm(_LeanNorm):
    """Llama's: rounded to the input's dtype, then times the weight."""


class _LeanGemmaNorm(_LeanNorm):
    """Gemma's: times one plus the weight in float32, then rounded."""

    _rounds_before_weight = False

    def _factor(self) -> Tensor:
        return 1.0 + self.weight.detach().float()

    def _eps(self) -> float:
        return cast(float, cast(Any, self).eps)


class _Norm(torch.autograd.Function):
    """y = round(x rstd) w, or round(x rstd w).

    With g the gradient of y and d = g w: dx = rstd d - x rstd^3 mean(d x), the mean over a row.
    """

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_I: Tensor, eps: float, rounds_first: bool) -> tuple[Tensor, Tensor]:
        y_NI = torch.empty_like(x_NI)
        rstd_N1 = torch.empty(len(x_NI), 1, dtype=torch.float32, device=x_NI.device)
        for block in row_blocks(len(x_NI), x_NI.device, BLOCK_ROWS):
            x_MI = x_NI[block].float()
            rstd_M1 = torch.rsqrt(x_MI.pow(2).mean(-1, keepdim=True) + eps)
            rstd_N1[block] = rstd_M1
            n_MI = x_MI * rstd_M1
            y_NI[block] = weight_I * n_MI.to(x_NI.dtype) if rounds_first else n_MI.mul_(weight_I)
        ctx.mark_non_differentiable(rstd_N1)
        ctx.save_for_backward(x_NI, weight_I, rstd_N1)
        return y_NI, rstd_N1

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, weight_I, rstd_N1 = ctx.saved_tensors
        g_NI = gradients[0]
        dx_NI = torch.empty_like(x_NI)
        weight_I = weight_I.float()
        for block in row_blocks(len(x_NI), x_NI.device, BLOCK_ROWS):
            x_MI, rstd_M1 = x_NI[block].float(), rstd_N1[block]
            d_MI = g_NI[block].float() * weight_I
            mean_M1 = (d_MI * x_MI).mean(-1, keepdim=True).mul_(rstd_M1.pow(3))
            dx_NI[block] = d_MI.mul_(rstd_M1).addcmul_(x_MI, mean_M1, value=-1.0)
        return dx_NI, None, None, None
