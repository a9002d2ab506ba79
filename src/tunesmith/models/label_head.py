"""The head of a causal language model where there is a label, and nowhere else.

The logits of all tokens, [tokens, vocabulary], are the largest tensor of a small model's training step, and most of
them are never looked at: prompts and padding carry no label. Here the decoder's hidden states are taken at the labelled
positions only, and the head is applied to a chunk of those rows at a time, so that no tensor of logits is larger
than `CHUNK_BYTES`. With a frozen head the gradient for the hidden states is computed while the chunk's logits are at
hand, so the logits are computed once and nothing of them is kept. A head that trains, or carries an adapter, is
computed by chunks under activation checkpointing.

What a family does to its logits (soft-capping, scaling) is read from its config and tried against the model's own
logits; a model that does anything else is left to its own `forward`.

Shapes: B examples, T tokens, N labelled positions, C rows of a chunk, H hidden size, V vocabulary.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from tunesmith.models.modules import evaluation_mode, is_hooked, unwrapped

CHUNK_BYTES = 1 << 27
"""Most bytes of a chunk's float32 logits; two or three tensors of that size exist at once. Every chunk reads the
head's weights anew: 32 MB take 1.25 times as long on SmolLM2's head, 256 MB no less."""

_HALF_SCALE = 1024.0
"""Probabilities are multiplied by this where they pass through float16, whose smallest step is 6e-8."""

_PROBED_TOKENS = 4
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}


@dataclass(frozen=True)
class LogitRule:
    """What a family does to the head's output.

    Args:
        factor: logits are multiplied by it (Cohere's `logit_scale`, the inverse of Granite's `logits_scaling`).
        softcap: logits become `softcap * tanh(logits / softcap)` (Gemma 2, 2408.00118, section 2).
    """

    factor: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, config: Any) -> LogitRule:
        """The rule that a model's (text) config states."""
        factor = float(getattr(config, "logit_scale", None) or 1.0)
        factor /= float(getattr(config, "logits_scaling", None) or 1.0)
        return cls(factor, getattr(config, "final_logit_softcapping", None))

    def apply(self, raw_CV: Tensor) -> Tensor:
        """Logits from what the head's product gives, out of place."""
        scaled_CV = raw_CV if self.factor == 1 else raw_CV * self.factor
        return scaled_CV if self.softcap is None else torch.tanh(scaled_CV / self.softcap) * self.softcap

    def chain_(self, gradient_CV: Tensor, logits_CV: Tensor) -> Tensor:
        """The gradient for the product from the gradient for the logits, in place."""
        if self.softcap is not None:
            gradient_CV.addcmul_(gradient_CV, (logits_CV / self.softcap).square_(), value=-1.0)
        return gradient_CV if self.factor == 1 else gradient_CV.mul_(self.factor)


class LabelHead:
    """Decoder and head of a causal language model, apart.

    Args:
        causal: the model of transformers that the head belongs to, adapters within.
        rule: what the family does to its logits.
    """

    def __init__(self, causal: nn.Module, rule: LogitRule) -> None:
        self._causal = cast(Any, causal)
        self._rule = rule

    @property
    def decoder(self) -> nn.Module:
        """The model without its head."""
        return cast(nn.Module, getattr(self._causal, self._causal.base_model_prefix))

    @property
    def module(self) -> nn.Module:
        """The head."""
        return cast(nn.Module, self._causal.get_output_embeddings())

    def hidden(self, input_ids_BT: Tensor) -> Tensor:
        """The hidden states that the head is applied to, hidden_BTH."""
        return cast(Tensor, self.decoder(input_ids=input_ids_BT, use_cache=False).last_hidden_state)

    def summed_loss(self, hidden_NH: Tensor, targets_N: Tensor, weights_N: Tensor | None = None) -> Tensor:
        """The sum of the cross-entropy of `targets_N`, each times its weight, in nats, as a float32 scalar."""
        head = self.module
        rows = chunk_rows(head)
        if _is_frozen_linear(head):
            apply: Callable[..., Tensor] = _SummedLoss.apply
            return apply(hidden_NH, head.weight, head.bias, targets_N, weights_N, self._rule, rows)
        total = hidden_NH.new_zeros((), dtype=torch.float32)
        # Without any row there is one empty chunk, for the graph of a backward pass.
        for start in range(0, max(1, len(targets_N)), rows):
            chunk = slice(start, start + rows)
            losses_C = checkpoint(self._losses, hidden_NH[chunk], targets_N[chunk], use_reentrant=False)
            total = total + (losses_C if weights_N is None else losses_C * weights_N[chunk]).sum()
        return total

    @torch.no_grad()
    def losses(self, hidden_NH: Tensor, targets_N: Tensor) -> Tensor:
        """The cross-entropy of each target in nats, float32, without gradients."""
        rows = chunk_rows(self.module)
        chunks = zip(hidden_NH.split(rows), targets_N.split(rows), strict=True)
        return torch.cat([self._losses(hidden_CH, targets_C) for hidden_CH, targets_C in chunks])

    def _losses(self, hidden_CH: Tensor, targets_C: Tensor) -> Tensor:
        # torch's float32 cross_entropy on a CPU is off by 1e-5 nats and more for a large vocabulary.
        logits_CV = self._rule.apply(self.module(hidden_CH).float())
        return logits_CV.logsumexp(dim=1) - logits_CV.gather(1, targets_C[:, None]).squeeze(1)


def chunk_rows(head: nn.Module) -> int:
    """Rows whose float32 logits take `CHUNK_BYTES`."""
    return max(16, CHUNK_BYTES // (4 * cast(int, cast(Any, head).weight.shape[0])))


def label_head(model: nn.Module) -> LabelHead | None:
    """The decoder and head of `model` apart, or None where only the model's own `forward` is known to be right.

    Tried once for each model on a few tokens: decoder, head and `LogitRule` must give the logits that the model gives.

    Args:
        model: a causal language model of transformers, or PEFT around one.
    """
    if model not in _RULES:
        _RULES[model] = _probe(model)
    rule = _RULES[model]
    return None if rule is None else LabelHead(unwrapped(model), rule)


# Rules only: a `LabelHead` here would keep its model, the key, alive for ever.
_RULES: weakref.WeakKeyDictionary[nn.Module, LogitRule | None] = weakref.WeakKeyDictionary()


def _probe(model: nn.Module) -> LogitRule | None:
    wrapped, causal = cast(Any, model), unwrapped(model)
    # Prompt learning and activated LoRA look at the token ids in PEFT's own forward.
    for config in getattr(wrapped, "peft_config", {}).values():
        if config.is_prompt_learning or getattr(config, "alora_invocation_tokens", None):
            return None
    prefix = getattr(causal, "base_model_prefix", "")
    if not prefix or not hasattr(causal, prefix) or causal.get_output_embeddings() is None:
        return None
    rule = LogitRule.of(causal.config.get_text_config(decoder=True))
    head = LabelHead(causal, rule)
    try:
        embeddings_VH = causal.get_input_embeddings().weight
        input_ids_1T = torch.arange(_PROBED_TOKENS, device=embeddings_VH.device)[None] % embeddings_VH.shape[0]
        with evaluation_mode(model), torch.no_grad():
            ours_1TV = rule.apply(head.module(head.hidden(input_ids_1T))).float()
            theirs_1TV = wrapped(input_ids=input_ids_1T, use_cache=False).logits.float()
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, TypeError, ValueError, RuntimeError):
        # A decoder that is called otherwise; what is truly wrong shows when the model runs its own `forward`.
        return None
    if ours_1TV.shape != theirs_1TV.shape:
        return None
    tolerance = _TOLERANCE.get(embeddings_VH.dtype, 1e-5) * max(float(theirs_1TV.abs().max()), 1e-6)
    return rule if float((ours_1TV - theirs_1TV).abs().max()) <= tolerance else None


def _is_frozen_linear(head: nn.Module) -> bool:
    trains = any(parameter.requires_grad for parameter in head.parameters())
    return type(head) is nn.Linear and head.weight.is_floating_point() and not trains and not is_hooked(head)


def _product_dtype(weight_VH: Tensor) -> torch.dtype:
    """The dtype that a product with the head's weight is computed in."""
    device = weight_VH.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VH.dtype


class _SummedLoss(torch.autograd.Function):
    """The summed loss of a frozen linear head; the gradient for the hidden states is computed going forward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        weights_N: Tensor | None,
        rule: LogitRule,
        rows: int,
    ) -> Tensor:
        wants_gradient = ctx.needs_input_grad[0]
        half = _product_dtype(weight_VH) == torch.float16
        gradient_NH = torch.empty_like(hidden_NH, dtype=torch.float32 if half else weight_VH.dtype)
        total = hidden_NH.new_zeros((), dtype=torch.float32)
        for start in range(0, len(targets_N), rows):
            chunk = slice(start, start + rows)
            targets_C1 = targets_N[chunk, None]
            hidden_CH = hidden_NH[chunk].to(weight_VH.dtype)
            logits_CV = rule.apply(nn.functional.linear(hidden_CH, weight_VH, bias_V).float())
            log_sums_C1 = logits_CV.logsumexp(dim=1, keepdim=True)
            losses_C1 = log_sums_C1 - logits_CV.gather(1, targets_C1)
            total += (losses_C1 if weights_N is None else losses_C1 * weights_N[chunk, None]).sum()
            if not wants_gradient:
                continue
            # The soft-cap's derivative needs the logits after the probabilities have taken their place.
            kept_CV = logits_CV.clone() if rule.softcap is not None else logits_CV
            gradient_CV = logits_CV.sub_(log_sums_C1).exp_()
            gradient_CV.scatter_add_(1, targets_C1, torch.full_like(losses_C1, -1.0))
            rule.chain_(gradient_CV, kept_CV)
            if half:
                gradient_CH = (gradient_CV.mul_(_HALF_SCALE).half() @ weight_VH).float() / _HALF_SCALE
            else:
                gradient_CH = gradient_CV.to(weight_VH.dtype) @ weight_VH
            # After the product: float16 has no room for a large weight before it.
            gradient_NH[chunk] = gradient_CH if weights_N is None else gradient_CH * weights_N[chunk, None]
        ctx.save_for_backward(gradient_NH)
        ctx.hidden_dtype = hidden_NH.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_NH,) = ctx.saved_tensors
        return (gradient_NH * gradients[0]).to(ctx.hidden_dtype), *[None] * 6
