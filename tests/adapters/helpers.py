"""What the tests of adapters and of the export share."""

from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from tests.tiny import tiny_model
from tunesmith.adapters.contract import Contract
from tunesmith.adapters.methods import attach_adapter
from tunesmith.config import AdapterSection

PEFT_WARNS = "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
"""Stock PEFT 0.21 asks transformers 5.23 by a deprecated name."""

IDS_1T = torch.arange(3, 15).unsqueeze(0)


def contract(**changes: Any) -> Contract:
    values: dict[str, Any] = {
        "base_model": "tiny",
        "weights_digest": "d" * 64,
        "template": {"digest": "t" * 64, "stop_token_ids": [260], "prompts_begin_with_bos": False},
        "precision": "fp32",
        "recipe_digest": "r" * 64,
    }
    return Contract(**{**values, **changes})


def calibration_batches() -> Iterator[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        ids_BT = torch.randint(0, 250, (3, 40), generator=generator)
        yield {"input_ids": ids_BT, "labels": ids_BT.clone()}


def section(**values: Any) -> AdapterSection:
    """An adapter section of these values and the defaults."""
    return AdapterSection.model_validate(values)


def in_dtype(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    changed: Any = model
    result: PreTrainedModel = changed.to(dtype)
    return result


def trained(model: PreTrainedModel | None = None, **values: Any) -> PeftModel:
    """A model with an adapter whose trainable weights have moved, as after training."""
    torch.manual_seed(0)
    adapted = attach_adapter(
        model if model is not None else tiny_model(),
        section(**{"r": 4, **values}),
        calibration_batches=calibration_batches,
    )
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return adapted.eval()


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    """Logits [1, T, V] of a fixed input."""
    result: torch.Tensor = model(input_ids=IDS_1T, use_cache=False).logits.float()
    return result
