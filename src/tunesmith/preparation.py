"""What several stages need of a recipe, each made once: model folder, tokenizer, template, examples, audit."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunesmith.adapters.contract import check_contract, check_golden, read_contract
from tunesmith.adapters.files import load_adapter
from tunesmith.config import Recipe
from tunesmith.data.checks.audit import Audit, Split, audit
from tunesmith.data.questions import Question, questions
from tunesmith.data.records import Message
from tunesmith.data.sources import ReadResult, read_examples
from tunesmith.data.template import ChatTemplate
from tunesmith.durable import write_text
from tunesmith.errors import ContractError
from tunesmith.models.backend import Precision, resolve_precision, select_device
from tunesmith.models.catalog import resolve_model
from tunesmith.models.loading import (
    context_length,
    load_config,
    load_model,
    load_tokenizer,
    read_generation_config,
    weights_digest,
)
from tunesmith.runs import Run

SPLITS = ("train", "validation", "test")


class Preparation:
    """The inputs of a run. Everything is made when first asked for, and kept.

    Args:
        recipe: the recipe.
        run: where the adapter is, and where the accounts of the data are written.
    """

    def __init__(self, recipe: Recipe, run: Run) -> None:
        self.recipe = recipe
        self.run = run
        self._reads: dict[str, ReadResult] = {}

    @cached_property
    def device(self) -> torch.device:
        """Where the model runs."""
        return select_device()

    @cached_property
    def precision(self) -> Precision:
        """fp32, bf16 or fp16."""
        return resolve_precision(self.recipe.model.precision, self.device)

    @cached_property
    def tokenizer_folder(self) -> Path:
        """A folder with config and tokenizer of the base model; of a hub model, its weights may be missing."""
        return resolve_model(self.recipe.model, weights=False)

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
        return context_length(load_config(self.tokenizer_folder))

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base model's tokenizer, with the template that is used."""
        return load_tokenizer(self.tokenizer_folder)

    @cached_property
    def tokenizer_digest(self) -> str:
        """SHA-256 of the tokenizer's vocabulary and rules."""
        rules = getattr(self.tokenizer, "backend_tokenizer", None)
        text = rules.to_str() if rules is not None else json.dumps(self.tokenizer.get_vocab(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def template(self) -> ChatTemplate:
        """Encodes examples and prompts."""
        # A template that writes the date goes on writing the day on which the run was begun.
        return ChatTemplate(self.tokenizer, date=self.run.begun_on)

    @cached_property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer: the template's, and those that the model's own generation config names."""
        ids = list(self.template.stop_token_ids)
        config = read_generation_config(self.tokenizer_folder)
        eos = None if config is None else config.eos_token_id
        ids += eos if isinstance(eos, list) else [] if eos is None else [eos]
        return tuple(dict.fromkeys(ids))

    def read(self, split: str) -> ReadResult | None:
        """The rows of a split as read, or None if the recipe names none."""
        sources = getattr(self.recipe.data, split)
        if sources is None:
            return None
        if split not in self._reads:
            self._reads[split] = read_examples(sources, self.recipe.data, split=split)
        return self._reads[split]

    @cached_property
    def audit(self) -> Audit:
        """The audited splits."""
        asked = self.recipe.data.max_length
        reads = {split: read for split in SPLITS if (read := self.read(split)) is not None}
        return audit(
            reads,
            self.template,
            max_length=None if asked == "auto" else asked,
            context_length=self.context_length,
            skip_bad_rows=self.recipe.data.on_bad_row == "skip",
        )

    def write_accounts(self) -> None:
        """Writes dropped rows and the splits' fingerprints to the run's data folder."""
        lines = [json.dumps({**asdict(row), "place": str(row.place)}, ensure_ascii=False) for row in self.audit.dropped]
        write_text(self.run.data_folder / "dropped.jsonl", "".join(line + "\n" for line in lines))
        digests = {name: split_digest(split) for name, split in self.audit.splits.items()}
        write_text(self.run.data_folder / "fingerprints.json", json.dumps(digests, indent=2) + "\n")

    def split(self, name: str) -> Split:
        """The audited split called `name`; empty if the recipe names none."""
        return self.audit.splits.get(name, Split((), ()))

    def questions(self, split: str, limit: int | None = None) -> list[Question]:
        """The first `limit` conversations of a split whose last answer can be asked for; empty without such a split."""
        read = self.read(split)
        if read is None:
            return []
        return questions(read.examples, self.template, context_length=self.context_length, limit=limit)

    def encode_user(self, text: str) -> list[int]:
        """Token ids of a prompt that consists of one user message."""
        return self.template.encode_prompt([Message("user", text)])

    def load_base(self) -> PreTrainedModel:
        """The base model in the run's precision, on the device."""
        return load_model(self.model_folder, precision=self.precision, device=self.device)

    def check_adapter(self) -> Path:
        """The run's adapter folder, once its contract holds for the base model, template and tokenizer at hand.

        Raises:
            RunError: the run has no adapter.
            ContractError: something differs; the message says what.
        """
        folder = self.run.trained_adapter()
        contract = read_contract(folder)
        if contract is not None:
            check_contract(
                contract,
                base_digest=self.base_digest,
                template_contract=self.template.contract(),
                prompt_encoder=self.encode_user,
                place=str(folder),
            )
        return folder

    def load_tuned(self, base: PreTrainedModel) -> PeftModel:
        """Puts the run's adapter on `base`, and checks that it answers the golden prompts as it did when trained.

        Raises:
            ContractError: it does not: the adapter's weights are not those that the contract is about.
        """
        folder = self.check_adapter()
        tuned = load_adapter(base, folder, precision=self.precision)
        contract = read_contract(folder)
        problems = [] if contract is None else check_golden(tuned, contract)
        if problems:
            lines = "\n".join(f"  - {problem}" for problem in problems)
            raise ContractError(
                f"the adapter does not answer as the trained one did\n{lines}",
                place=str(folder),
                remedy="its files were changed or mixed with others; train or copy it again",
            )
        return tuned


def split_digest(split: Split) -> str:
    """SHA-256 over token ids and labels of a split, in order: what the model sees of it."""
    digest = hashlib.sha256()
    for example in split.tokenized:
        digest.update(json.dumps([example.input_ids, example.labels]).encode())
    return digest.hexdigest()
