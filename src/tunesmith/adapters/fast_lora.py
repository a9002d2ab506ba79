"""A fast LoRA layer under PEFT's: the same numbers with less work.

PEFT computes `base(x) + B(A(x)) * scaling` as separate operations: under autocast x is cast up and down again, the
product of B is written out, scaled and added in passes of their own, and autograd keeps what each of them needs. Here
one autograd function does it in four products forward and five backward, the additions within the products.

A `FastLoraLinear` is PEFT's layer, of another class: the same parameters under the same names, so PEFT saves, loads
and merges it as its own. Whatever it does not compute exactly it leaves to PEFT's `forward`, call by call.

Shapes: N tokens (all leading dimensions), I inputs, O outputs, R rank.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tunesmith.models.modules import is_hooked
from tunesmith.models.rms_norm import NormSource, source_of, usable_source


@dataclass(frozen=True)
class FastLayers:
    """Which LoRA layers take the fast path.

    Args:
        fast: how many do.
        left: reasons why others are left to PEFT, each with how many.
    """

    fast: int
    left: tuple[tuple[str, int], ...]

    def describe(self) -> str:
        """One line for reports."""
        parts = [f"fast: {self.fast} layers"] if self.fast else []
        parts += [f"PEFT's own: {count} ({reason})" for reason, count in self.left]
        return "; ".join(parts) or "no LoRA layers"


def use_fast_layers(model: nn.Module) -> FastLayers:
    """Makes each LoRA layer of `model` that can be computed exactly a `FastLoraLinear`, in place."""
    left: Counter[str] = Counter()
    fast = 0
    for module in model.modules():
        if not isinstance(module, LoraLayer):
            continue
        reason = why_not(module)
        # Only `forward` differs: parameters, names and every other method stay PEFT's.
        if reason is None:
            module.__class__ = FastLoraLinear
            fast += 1
        else:
            if type(module) is FastLoraLinear:  # an adapter or a hook came since
                module.__class__ = LoraLinear
            left[reason] += 1
    return FastLayers(fast, tuple(left.most_common()))


def why_not(layer: LoraLayer) -> str | None:
    """Why `layer` cannot be a `FastLoraLinear`, or None where it can."""
    # Not `get_base_layer`, which goes down through layers of other tuners.
    base = layer.base_layer
    if type(layer) not in (LoraLinear, FastLoraLinear):
        return f"a layer of PEFT's class {type(layer).__name__}"
    if isinstance(base, BaseTunerLayer):
        return "around another adapter's layer"
    if type(base) is not nn.Linear or not base.weight.is_floating_point():
        return f"its base is a {type(base).__name__}"
    if layer.fan_in_fan_out:
        return "fan_in_fan_out"
    if base.weight.requires_grad:
        return "its base weight trains"
    if len(layer.lora_A) != 1:
        return "several adapters" if layer.lora_A else "no adapter"
    name = next(iter(layer.lora_A))
    if name in layer.lora_variant:
        return _variant_name(layer, name)
    if not isinstance(layer.lora_dropout[name], nn.Identity):
        return "dropout"
    if any(map(is_hooked, (base, layer.lora_A[name], layer.lora_B[name]))):
        return "hooks"
    return None


def _variant_name(layer: LoraLayer, adapter: str) -> str:
    return type(layer.lora_variant[adapter]).__name__.removesuffix("LinearVariant") or "a variant of LoRA"


@dataclass(frozen=True)
class Projection:
    """A frozen linear layer and the one adapter on it, as tensors: `x W^T + bias + scaling (x A^T) B^T`.

    Args:
        weight_OI: the frozen weight.
        bias_O: of the base and of B together.
        a_RI: None where there is no adapter, as `b_OR`.
        b_OR: the adapter's second factor.
        scaling: PEFT's factor on the adapter's product.
        dtype: what products are computed in: autocast's, or the tensors' own.
    """

    weight_OI: Tensor
    bias_O: Tensor | None
    a_RI: Tensor | None
    b_OR: Tensor | None
    scaling: float
    dtype: torch.dtype


def frozen_projection(layer: nn.Linear, x: Tensor) -> Projection | None:
    """A plain frozen `nn.Linear` as a `Projection`, or None where it is anything more."""
    dtype = product_dtype(x)
    if type(layer) is not nn.Linear or layer.weight.requires_grad or is_hooked(layer) or layer.weight.dtype != dtype:
        return None
    return Projection(layer.weight, layer.bias, None, None, 0.0, dtype)


def product_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which a product with `x` is computed."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class FastLoraLinear(LoraLinear):  # type: ignore[misc]  # PEFT has no types
    """PEFT's LoRA layer around a dense, frozen `nn.Linear`, with one adapter and no dropout, computed in one function.

    Made by `use_fast_layers` only.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`base(x) + B(A(x)) * scaling`, x [..., I] to [..., O]; by PEFT where anything unusual is asked for."""
        parts = None if args or kwargs else self.projection(x)
        if parts is None:
            return cast(Tensor, super().forward(x, *args, **kwargs))
        x_NI, source = x.reshape(-1, x.shape[-1]), source_of(x)
        apply: Callable[..., Tensor] = _LoraProduct.apply
        output_NO = apply(
            x_NI, parts.weight_OI, parts.bias_O, parts.a_RI, parts.b_OR, parts.scaling, parts.dtype, source
        )
        return output_NO.view(*x.shape[:-1], output_NO.shape[-1])

    def projection(self, x: Tensor) -> Projection | None:
        """The layer as tensors, or None where PEFT does something else with `x`."""
        name = self._only_adapter()
        if name is None or self.merged or self.disable_adapters or not x.is_floating_point():
            return None
        base, a_layer, b_layer = self.base_layer, self.lora_A[name], self.lora_B[name]
        a_RI, b_OR, bias_O = a_layer.weight, b_layer.weight, base.bias
        dtype = product_dtype(x)
        casts = torch.is_autocast_enabled(x.device.type)
        if base.weight.dtype != dtype or not (casts or a_RI.dtype == b_OR.dtype == dtype) or base.weight.requires_grad:
            return None
        if is_hooked(base) or is_hooked(a_layer) or is_hooked(b_layer):
            return None
        scaling = float(self.scaling[name])
        if b_layer.bias is not None:
            bias_O = b_layer.bias * scaling if bias_O is None else bias_O + b_layer.bias * scaling
        return Projection(base.weight, bias_O, a_RI, b_OR, scaling, dtype)

    def _only_adapter(self) -> str | None:
        """The one adapter that is active, if there is exactly one and it is the one that was looked at."""
        active = self.active_adapters
        if len(self.lora_A) != 1 or len(active) != 1 or active[0] not in self.lora_A:
            return None
        if active[0] in self.lora_variant or not isinstance(self.lora_dropout[active[0]], nn.Identity):
            return None
        return cast(str, active[0])


class _LoraProduct(torch.autograd.Function):
    """y = x W^T + bias + scaling (x A^T) B^T, and its gradients for x, bias, A and B.

    With g the gradient of y: v = scaling g B, dA = v^T x, dB = scaling g^T (x A^T), dx = g W + v A.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_NI: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        a_RI: Tensor,
        b_OR: Tensor,
        scaling: float,
        dtype: torch.dtype,
        source: NormSource | None,
    ) -> Tensor:
        source = usable_source(source, x_NI, dtype)
        x_NI, a_RI_cast, b_OR_cast = x_NI.to(dtype), a_RI.to(dtype), b_OR.to(dtype)
        u_NR = x_NI @ a_RI_cast.T
        y_NO = x_NI @ weight_OI.T if bias_O is None else torch.addmm(bias_O.to(dtype), x_NI, weight_OI.T)
        y_NO.addmm_(u_NR, b_OR_cast.T, alpha=scaling)
        kept = (x_NI,) if source is None else (source.x_NI, source.rstd_N1, source.weight_I)
        ctx.save_for_backward(weight_OI, a_RI_cast, b_OR_cast, u_NR, *kept)
        ctx.scaling = scaling
        return y_NO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g_NO,) = gradients
        weight_OI, a_RI, b_OR, u_NR, *kept = ctx.saved_tensors
        wants_x, _, wants_bias, wants_a, wants_b, _, _, _ = ctx.needs_input_grad
        dx_NI = dbias_O = da_RI = db_OR = None
        if wants_x or wants_a:
            v_NR = (g_NO @ b_OR).mul_(ctx.scaling)
        if wants_a:
            da_RI = gradient_of_a(v_NR, *kept)
        if wants_b:
            # R x O and turned: the product has R rows instead of R columns.
            db_OR = (u_NR.T @ g_NO).mul_(ctx.scaling).T
        if wants_x:
            dx_NI = (g_NO @ weight_OI).addmm_(v_NR, a_RI)
        if wants_bias:
            dbias_O = g_NO.sum(dim=0)
        return dx_NI, None, dbias_O, da_RI, db_OR, None, None, None


def gradient_of_a(v_NR: Tensor, x_NI: Tensor, rstd_N1: Tensor | None = None, weight_I: Tensor | None = None) -> Tensor:
    """`v^T x`, or `v^T n` where n is the norm of x: its factors go to the small sides of the product."""
    if rstd_N1 is None or weight_I is None:
        return v_NR.T @ x_NI
    return ((v_NR * rstd_N1).to(x_NI.dtype).T @ x_NI) * weight_I
