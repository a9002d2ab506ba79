"""Adapters by stock PEFT for the tests of serving, and what stock PEFT answers with them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from tests.tiny import tiny_model

KINDS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 16, "target_modules": "all-linear"},
    "narrow": {"r": 2, "lora_alpha": 16, "target_modules": ["o_proj", "down_proj"]},
    "rslora": {"r": 3, "lora_alpha": 8, "use_rslora": True, "target_modules": "all-linear"},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": "all-linear",
        "rank_pattern": {"o_proj": 6},
        "alpha_pattern": {"o_proj": 30},
    },
    "one_layer": {"r": 8, "lora_alpha": 32, "target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]},
    "head": {"r": 4, "lora_alpha": 8, "target_modules": ["lm_head", "o_proj"]},
    "lora_bias": {"r": 4, "lora_alpha": 8, "target_modules": ["o_proj", "down_proj"], "lora_bias": True},
    "twin": {"r": 4, "lora_alpha": 16, "target_modules": "all-linear"},
}
"""Eight adapters that differ in all that may differ; `twin` has the shape of `plain`."""


def write_adapter(folder: Path, seed: int, family: str = "llama", *, changes: Any = None, **config: Any) -> Path:
    """A random adapter that changes answers, saved by stock PEFT."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model = get_peft_model(tiny_model(family, **(changes or {})), LoraConfig(**config))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.2 * torch.randn_like(parameter))
        model.save_pretrained(folder)
    return folder


def adapted(folder: Path | None, family: str = "llama", **changes: Any) -> Any:
    """The tiny model with stock PEFT's adapter on it, or alone."""
    model: Any = tiny_model(family, **changes)
    if folder is None:
        return model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(model, str(folder)).eval()


@torch.inference_mode()
def greedy(model: Any, prompt: Sequence[int], tokens: int) -> tuple[int, ...]:
    """The greedy answer by whole forward passes, without any cache."""
    ids = list(prompt)
    for _ in range(tokens):
        ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return tuple(ids[len(prompt) :])
