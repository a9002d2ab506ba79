"""A small training set, a tiny model with LoRA, and a trainer around them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from tests.tiny import tiny_model
from tunesmith.config import Recipe, TrainSection
from tunesmith.data.records import IGNORED_LABEL, Place, TokenizedExample
from tunesmith.models.backend import Precision
from tunesmith.runs import Run
from tunesmith.training.trainer import Trainer


def make_examples(count: int, *, seed: int = 0, longest: int = 24) -> list[TokenizedExample]:
    """Random token ids whose second half is trained on, of lengths from 6 to `longest`."""
    generator = torch.Generator().manual_seed(seed)
    examples = []
    for line in range(1, count + 1):
        length = int(torch.randint(6, longest + 1, (1,), generator=generator))
        ids = tuple(torch.randint(0, 256, (length,), generator=generator).tolist())
        labels = (IGNORED_LABEL,) * (length // 2) + ids[length // 2 :]
        examples.append(TokenizedExample(ids, labels, Place("train.jsonl", line)))
    return examples


def lora_model(**changes: Any) -> PeftModel:
    """A tiny Llama with LoRA on every linear layer, the same at each call."""
    torch.manual_seed(0)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **changes}
    return get_peft_model(tiny_model(), LoraConfig(**settings))


TrainerMaker = Callable[..., Trainer]


@pytest.fixture
def make_trainer(tmp_path: Path) -> TrainerMaker:
    """Makes a trainer in the test's folder: make_trainer(examples, validation=[], folder="run", **train section)."""

    def make(
        examples: list[TokenizedExample],
        validation: list[TokenizedExample] | None = None,
        *,
        model: PeftModel | None = None,
        folder: str = "run",
        precision: Precision = "fp32",
        fingerprint: dict[str, str] | None = None,
        **section: Any,
    ) -> Trainer:
        data = {"train": "train.jsonl", "validation": "validation.jsonl"}
        recipe = Recipe.model_validate({"model": {"name": "tiny"}, "data": data, "train": section})
        return Trainer(
            model or lora_model(),
            examples,
            validation or [],
            TrainSection.model_validate(section),
            Run.create(tmp_path / folder, recipe),
            precision=precision,
            pad_token_id=0,
            fingerprint=fingerprint or {"data": "a"},
        )

    return make
