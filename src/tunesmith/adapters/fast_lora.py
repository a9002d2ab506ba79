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


class FastLoraLinear(LoraLinear):  # type: ignore[misc]  # PEFT has no types
    """PEFT's LoRA layer around a dense, frozen `nn.Linear`, with one adapter and no dropout, computed in one function.

    Made by `use_fast_layers` only.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`base(x) + B(A(x)) * scaling`, x [..., I] to [..., O]; by PEFT where anything unusual is asked for."""
        name = self._only_adapter()
        if args or kwargs or name is None or self.merged or self.disable_adapters:
            return cast(Tensor, super().forward(x, *args, **kwargs))
        weight_OI, base_bias_O = self.base_layer.weight, self.base_layer.bias
        a_layer, b_layer = self.lora_A[name], self.lora_B[name]
        a_RI = a_layer.weight
        casts = torch.is_autocast_enabled(x.device.type)
        dtype = torch.get_autocast_dtype(x.device.type) if casts else x.dtype
        mixes_dtypes = weight_OI.dtype != dtype or not (casts or a_RI.dtype == b_layer.weight.dtype == dtype)
        hooked = is_hooked(self.base_layer) or is_hooked(a_layer) or is_hooked(b_layer)
        if mixes_dtypes or hooked or weight_OI.requires_grad or not x.is_floating_point():
            return cast(Tensor, super().forward(x))
        scaling = float(self.scaling[name])
        bias_O = base_bias_O
        if b_layer.bias is not None:
            bias_O = b_layer.bias * scaling if bias_O is None else bias_O + b_layer.bias * scaling
        x_NI = x.reshape(-1, x.shape[-1])
        apply: Callable[..., Tensor] = _LoraProduct.apply
        output_NO = apply(x_NI, weight_OI, bias_O, a_RI, b_layer.weight, scaling, dtype)
        return output_NO.view(*x.shape[:-1], output_NO.shape[-1])

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
    ) -> Tensor:
        x_NI, a_RI_cast, b_OR_cast = x_NI.to(dtype), a_RI.to(dtype), b_OR.to(dtype)
        u_NR = x_NI @ a_RI_cast.T
        y_NO = x_NI @ weight_OI.T if bias_O is None else torch.addmm(bias_O.to(dtype), x_NI, weight_OI.T)
        y_NO.addmm_(u_NR, b_OR_cast.T, alpha=scaling)
        ctx.save_for_backward(x_NI, weight_OI, a_RI_cast, b_OR_cast, u_NR)
        ctx.scaling = scaling
        return y_NO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g_NO,) = gradients
        x_NI, weight_OI, a_RI, b_OR, u_NR = ctx.saved_tensors
        wants_x, _, wants_bias, wants_a, wants_b, _, _ = ctx.needs_input_grad
        dx_NI = dbias_O = da_RI = db_OR = None
        if wants_x or wants_a:
            v_NR = (g_NO @ b_OR).mul_(ctx.scaling)
        if wants_a:
            da_RI = v_NR.T @ x_NI
        if wants_b:
            # R x O and turned: the product has R rows instead of R columns.
            db_OR = (u_NR.T @ g_NO).mul_(ctx.scaling).T
        if wants_x:
            dx_NI = (g_NO @ weight_OI).addmm_(v_NR, a_RI)
        if wants_bias:
            dbias_O = g_NO.sum(dim=0)
        return dx_NI, None, dbias_O, da_RI, db_OR, None, None
