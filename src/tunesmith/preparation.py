"""What several stages need of a recipe, each made once: model folder, tokenizer, template, examples, audit."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import AutoConfig, GenerationConfig

from tunesmith.config import Recipe
from tunesmith.data.checks.audit import Audit, Split, audit
from tunesmith.data.records import Example
from tunesmith.data.sources import ReadResult, read_examples
from tunesmith.data.template import ChatTemplate
from tunesmith.models.backend import Precision, resolve_precision, select_device
from tunesmith.models.catalog import resolve_model
from tunesmith.models.loading import context_length, load_tokenizer, read_config, weights_digest
from tunesmith.runs import Run, write_text

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

SPLITS = ("train", "validation", "test")


class Preparation:
    """The inputs of a run. Everything is made when first asked for, and kept.

    Args:
        recipe: the recipe.
        run: where the accounts of the data are written.
    """

    def __init__(self, recipe: Recipe, run: Run) -> None:
        self.recipe = recipe
        self.run = run

    @cached_property
    def device(self) -> torch.device:
        """Where the model runs."""
        return select_device()

    @cached_property
    def precision(self) -> Precision:
        """fp32, bf16 or fp16."""
        return resolve_precision(self.recipe.model.precision, self.device)

    @cached_property
    def model_folder(self) -> Path:
        """The base model's folder; fetched or converted if need be."""
        return resolve_model(self.recipe.model)

    @cached_property
    def base_digest(self) -> str:
        """SHA-256 of the base model's weights."""
        return weights_digest(self.model_folder)

    @cached_property
    def context_length(self) -> int | None:
        """The most tokens the base model takes; None where it states no limit."""
        read_config(self.model_folder)
        return context_length(AutoConfig.from_pretrained(self.model_folder, local_files_only=True))

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base model's tokenizer, with the template that is used."""
        return load_tokenizer(self.model_folder)

    @cached_property
    def template(self) -> ChatTemplate:
        """Encodes examples and prompts."""
        return ChatTemplate(self.tokenizer)

    @cached_property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer: the template's, and those that the model's own generation config names."""
        ids = list(self.template.stop_token_ids)
        if (self.model_folder / "generation_config.json").is_file():
            config = GenerationConfig.from_pretrained(self.model_folder, local_files_only=True)
            eos = config.eos_token_id
            ids += eos if isinstance(eos, list) else [] if eos is None else [eos]
        return tuple(dict.fromkeys(ids))

    @cached_property
    def reads(self) -> dict[str, ReadResult]:
        """Rows of each split that the recipe names, as read."""
        section = self.recipe.data
        return {
            split: read_examples(sources, section, split=split)
            for split in SPLITS
            if (sources := getattr(section, split)) is not None
        }

    @cached_property
    def audit(self) -> Audit:
        """The audited splits; dropped rows and fingerprints are written to the run's data folder."""
        asked = self.recipe.data.max_length
        result = audit(
            self.reads,
            self.template,
            max_length=None if asked == "auto" else asked,
            context_length=self.context_length,
        )
        lines = [json.dumps({**asdict(row), "place": str(row.place)}, ensure_ascii=False) for row in result.dropped]
        write_text(self.run.data_folder / "dropped.jsonl", "".join(line + "\n" for line in lines))
        digests = {name: split_digest(split) for name, split in result.splits.items()}
        write_text(self.run.data_folder / "fingerprints.json", json.dumps(digests, indent=2) + "\n")
        return result

    def split(self, name: str) -> Split:
        """The split called `name`; empty if the recipe names none."""
        return self.audit.splits.get(name, Split((), ()))

    def answerable(self, name: str) -> list[Example]:
        """Examples of `name` that can be asked and compared: conversations, cut off after their last answer."""
        found = []
        for example in self.split(name).examples:
            if example.text is None:
                last = max(i for i, message in enumerate(example.messages) if message.role == "assistant")
                found.append(replace(example, messages=example.messages[: last + 1]))
        return found


def split_digest(split: Split) -> str:
    """SHA-256 over token ids and labels of a split, in order: what the model sees of it."""
    digest = hashlib.sha256()
    for example in split.tokenized:
        digest.update(json.dumps([example.input_ids, example.labels]).encode())
    return digest.hexdigest()
