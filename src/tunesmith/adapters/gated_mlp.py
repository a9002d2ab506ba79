"""The gated MLP of a decoder layer while training: it keeps the output of gate and up, and nothing else as wide.

`down(act(gate(x)) * up(x))` by its parts keeps gate, act(gate), up and their product, each [tokens, intermediate size]:
more than half of a Llama's activations. Here one autograd function does all of it, with the adapters on its three
linear layers, and computes the activation and the product again in the backward pass: elementwise work beside six large
products. Tokens are worked through in blocks, so that the wide intermediate tensors stay small.

Shapes: N tokens (all leading dimensions), M of them in a block, H hidden size, F intermediate size, R rank; a layer's
own inputs I and outputs O.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.activations import GELUTanh, SiLUActivation
from transformers.models.llama.modeling_llama import LlamaMLP

from tunesmith.adapters.fast_lora import FastLoraLinear, Projection, frozen_projection
from tunesmith.models.modules import computes_as, is_hooked, subclass_of
from tunesmith.models.rms_norm import NormSource, row_blocks, source_of, usable_source

BLOCK_ROWS = 512
"""Tokens in a block on a CPU; weights are read anew for each, which costs too much below."""


@dataclass(frozen=True)
class _Activation:
    """An elementwise function, and its gradient from the output's gradient and the input."""

    apply: Callable[[Tensor], Tensor]
    gradient: Callable[[Tensor, Tensor], Tensor]


_SILU = _Activation(nn.functional.silu, torch.ops.aten.silu_backward)
_GELU_TANH = _Activation(
    functools.partial(nn.functional.gelu, approximate="tanh"),
    functools.partial(torch.ops.aten.gelu_backward, approximate="tanh"),
)


def use_lean_mlps(model: nn.Module) -> int:
    """Makes each gated MLP of `model` whose class is known keep less while training, in place; how many there are.

    To be called after `use_fast_layers`.
    """
    count = 0
    for module in model.modules():
        kind: Any = type(module)
        if isinstance(module, _LeanMLP):
            count += 1
        elif computes_as(kind, LlamaMLP, "forward") and _activation(cast(Any, module).act_fn) is not None:
            module.__class__ = subclass_of(kind, _LeanMLP)
            count += 1
    return count


def _activation(module: nn.Module) -> _Activation | None:
    if is_hooked(module):
        return None
    if type(module) in (nn.SiLU, SiLUActivation):
        return _SILU
    function: Any = getattr(module, "act", None)
    is_tanh = type(module) is GELUTanh and getattr(function, "keywords", None) == {"approximate": "tanh"}
    return _GELU_TANH if is_tanh and function.func is nn.functional.gelu else None  # not the variant in Python


class _LeanMLP(nn.Module):
    """Before an MLP's class in the order of resolution."""

    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module
    act_fn: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """x [..., H] to [..., H]; by the module's own class where nothing is to be kept or a part is not known."""
        activation = _activation(self.act_fn)
        takes = torch.is_grad_enabled() and not torch.compiler.is_compiling() and x.is_floating_point()
        parts = self._projections(x) if takes and activation is not None else None
        if parts is None or not (x.requires_grad or any(_trains(part) for part in parts)):
            return cast(Tensor, super().forward(x))
        tensors = [value for part in parts for value in (part.weight_OI, part.bias_O, part.a_RI, part.b_OR)]
        scalings = [part.scaling for part in parts]
        apply: Callable[..., Tensor] = _GatedProduct.apply
        x_NH = x.reshape(-1, x.shape[-1])
        return apply(x_NH, source_of(x), activation, scalings, parts[0].dtype, *tensors).view(x.shape)

    def _projections(self, x: Tensor) -> list[Projection] | None:
        """Gate, up and down, or None where one of them is neither a fast LoRA layer nor a plain frozen one."""
        parts = []
        for layer in (self.gate_proj, self.up_proj, self.down_proj):
            if is_hooked(layer):
                return None
            if type(layer) is FastLoraLinear:
                parts.append(layer.projection(x))
            else:
                parts.append(frozen_projection(layer, x) if type(layer) is nn.Linear else None)
        return None if any(part is None for part in parts) else cast(list[Projection], parts)


def _trains(part: Projection) -> bool:
    return any(value is not None and value.requires_grad for value in (part.bias_O, part.a_RI, part.b_OR))


class _Layer:
    """One of the three linear layers within the function: its cast tensors, and the sums of its gradients."""

    def __init__(self, tensors: Sequence[Tensor | None], scaling: float, wants: Sequence[bool]) -> None:
        self._weight_OI, self._bias_O, self._a_RI, self._b_OR = tensors
        self._scaling = scaling
        self._wants_bias, self._wants_a, self._wants_b = wants
        self.da_RI: Tensor | None = None
        self.db_RO: Tensor | None = None
        self.dbias_O: Tensor | None = None

    def rank(self) -> int:
        return 0 if self._a_RI is None else len(self._a_RI)

    def forward(self, x_MI: Tensor, out_MO: Tensor, u_MR: Tensor) -> None:
        """Writes the layer's output, and `x A^T` for the gradient of B."""
        weight_OI = cast(Tensor, self._weight_OI)
        if self._bias_O is None:
            torch.mm(x_MI, weight_OI.T, out=out_MO)
        else:
            torch.addmm(self._bias_O, x_MI, weight_OI.T, out=out_MO)
        if self._a_RI is not None and self._b_OR is not None:
            torch.mm(x_MI, self._a_RI.T, out=u_MR)
            out_MO.addmm_(u_MR, self._b_OR.T, alpha=self._scaling)

    def backward(self, g_MO: Tensor, kept: Sequence[Tensor], u_MR: Tensor, out_MI: Tensor, *, adds: bool) -> None:
        """Sums up the gradients of bias, A and B, and writes that of the input, or adds it to what is there.

        `kept` is the input, or what a norm made it of, as in `gradient_of_a`.
        """
        weight_OI = cast(Tensor, self._weight_OI)
        if adds:
            out_MI.addmm_(g_MO, weight_OI)
        else:
            torch.mm(g_MO, weight_OI, out=out_MI)
        if self._wants_bias:
            self.dbias_O = _sum(self.dbias_O, g_MO.sum(dim=0, dtype=_sum_dtype(g_MO)))
        if self._a_RI is None or self._b_OR is None:
            return
        v_MR = (g_MO @ self._b_OR).mul_(self._scaling)
        out_MI.addmm_(v_MR, self._a_RI)
        if self._wants_a:
            if len(kept) == 2:  # the norm's factor of each row goes to the small side of the product
                v_MR = (v_MR * kept[1]).to(v_MR.dtype)
            self.da_RI = _sum(self.da_RI, v_MR.T @ kept[0])
        if self._wants_b:
            self.db_RO = _sum(self.db_RO, u_MR.T @ g_MO)

    def gradients(self, column_weight_I: Tensor | None = None) -> tuple[Tensor | None, ...]:
        """For weight, bias, A and B; the norm's factor of each column times that of A."""
        da_RI = self.da_RI
        if da_RI is not None and column_weight_I is not None:
            da_RI = da_RI * column_weight_I
        db_OR = None if self.db_RO is None else self.db_RO.mul_(self._scaling).T
        return None, self.dbias_O, da_RI, db_OR


def _sum_dtype(tensor: Tensor) -> torch.dtype:
    """Sums over blocks are in float32 at least."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _sum(total: Tensor | None, more: Tensor) -> Tensor:
    return more.to(_sum_dtype(more)) if total is None else total.add_(more)


class _GatedProduct(torch.autograd.Function):
    """y = down(h) with h = act(gate(x)) up(x).

    With e the gradient of h, which down gives: that of up is e act(gate), that of gate e up act'(gate), and x gets what
    these two layers give.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_NH: Tensor,
        source: NormSource | None,
        activation: _Activation,
        scalings: Sequence[float],
        dtype: torch.dtype,
        *tensors: Tensor | None,
    ) -> Tensor:
        source = usable_source(source, x_NH, dtype)
        x_NH, rows = x_NH.to(dtype), len(x_NH)
        casts = [None if value is None else value.to(dtype) for value in tensors]
        gate, up, down = (_Layer(casts[4 * n : 4 * n + 4], scaling, (False,) * 3) for n, scaling in enumerate(scalings))
        gate_NF, up_NF = (x_NH.new_empty(rows, cast(Tensor, casts[4 * n]).shape[0]) for n in (0, 1))
        y_NH = x_NH.new_empty(rows, cast(Tensor, casts[8]).shape[0])
        inner = [x_NH.new_empty(rows, layer.rank()) for layer in (gate, up, down)]
        for block in row_blocks(rows, x_NH.device, BLOCK_ROWS):
            gate.forward(x_NH[block], gate_NF[block], inner[0][block])
            up.forward(x_NH[block], up_NF[block], inner[1][block])
            h_MF = activation.apply(gate_NF[block]).mul_(up_NF[block])
            down.forward(h_MF, y_NH[block], inner[2][block])
        kept = (x_NH,) if source is None else (source.x_NI, source.rstd_N1, source.weight_I)
        ctx.save_for_backward(gate_NF, up_NF, *inner, *casts, *kept)
        ctx.activation, ctx.scalings = activation, scalings
        return y_NH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gate_NF, up_NF, gate_u, up_u, down_u, *rest = ctx.saved_tensors
        casts, kept = rest[:12], rest[12:]
        wants = ctx.needs_input_grad[5:]
        gate, up, down = (
            _Layer(casts[4 * n : 4 * n + 4], scaling, wants[4 * n + 1 : 4 * n + 4])
            for n, scaling in enumerate(ctx.scalings)
        )
        g_NH, activation = gradients[0], ctx.activation
        dx_NH = torch.empty_like(g_NH, memory_format=torch.contiguous_format)
        for block in row_blocks(len(g_NH), g_NH.device, BLOCK_ROWS):
            gate_MF, up_MF = gate_NF[block], up_NF[block]
            act_MF = activation.apply(gate_MF)
            dh_MF = torch.empty_like(act_MF)
            down.backward(g_NH[block], [act_MF * up_MF], down_u[block], dh_MF, adds=False)
            dup_MF = act_MF.mul_(dh_MF)
            dgate_MF = activation.gradient(dh_MF.mul_(up_MF), gate_MF)
            rows = [tensor[block] for tensor in kept[:2]]
            gate.backward(dgate_MF, rows, gate_u[block], dx_NH[block], adds=False)
            up.backward(dup_MF, rows, up_u[block], dx_NH[block], adds=True)
        column_weight = kept[2] if len(kept) == 3 else None
        first = gate.gradients(column_weight), up.gradients(column_weight), down.gradients()
        return dx_NH, None, None, None, None, *(value for layer in first for value in layer)
