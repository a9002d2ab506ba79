"""What several stages need of a recipe's data, each made once: tokenizer, template, audited splits; no torch.

`check` needs nothing else, so it starts without waiting for torch; `preparation.Preparation` adds the models.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.config import Recipe
from tunesmith.data.checks.audit import Audit, audit, read_split
from tunesmith.data.checks.splits import Split
from tunesmith.data.questions import Question, is_answerable, questions, until_last_answer
from tunesmith.data.records import Message
from tunesmith.data.store import SCRATCH_PREFIX
from tunesmith.data.template import ChatTemplate
from tunesmith.durable import write_text
from tunesmith.errors import disk_errors
from tunesmith.models.catalog import resolve_model
from tunesmith.models.folder import folder_context_length, load_tokenizer, read_generation_config
from tunesmith.runs import Run

if TYPE_CHECKING:  # importing the class loads torch
    from transformers import PreTrainedTokenizerBase


class DataPreparation:
    """The data of a run, ready for use. Everything is made when first asked for, and kept.

    Args:
        recipe: the recipe.
        run: whose data folder takes the accounts, and the data while they are needed; None writes nothing there.
    """

    def __init__(self, recipe: Recipe, run: Run | None) -> None:
        self.recipe = recipe
        self._account_run = run
        self._splits: dict[str, Split] = {}

    @cached_property
    def tokenizer_folder(self) -> Path:
        """A folder with config and tokenizer of the base model; of a hub model, its weights may be missing."""
        return resolve_model(self.recipe.model, weights=False)

    @cached_property
    def context_length(self) -> int | None:
        """The most tokens the base model takes; None where it states no limit."""
        return folder_context_length(self.tokenizer_folder)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base model's tokenizer, with the template that is used."""
        return load_tokenizer(self.tokenizer_folder)

    @cached_property
    def template(self) -> ChatTemplate:
        """Encodes examples and prompts."""
        # A template that writes the date goes on writing the day on which the run was begun.
        return ChatTemplate(self.tokenizer, date=None if self._account_run is None else self._account_run.begun_on)

    @cached_property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer: the template's, and those that the model's own generation config names."""
        ids = list(self.template.stop_token_ids)
        config = read_generation_config(self.tokenizer_folder)
        eos = None if config is None else config.eos_token_id
        ids += eos if isinstance(eos, list) else [] if eos is None else [eos]
        return tuple(dict.fromkeys(ids))

    @cached_property
    def audit(self) -> Audit:
        """The audited splits."""
        folder = self._scratch_parent()
        return audit(
            self.recipe.data,
            self.template,
            context_length=self.context_length,
            scratch_parent=folder,
            accounts=folder,
        )

    def split(self, name: str) -> Split:
        """The audited split called `name`; empty if the recipe names none."""
        return self.audit.splits.get(name, Split())

    def examples(self, name: str) -> Split:
        """A split that is asked, not trained on: the audited one if there is an audit, else it alone is read."""
        if "audit" in self.__dict__:
            return self.split(name)
        if name not in self._splits:
            self._splits[name] = read_split(
                name,
                self.recipe.data,
                self.template,
                context_length=self.context_length,
                scratch_parent=self._scratch_parent(),
            )
        return self._splits[name]

    def questions(self, split: str, limit: int | None = None) -> list[Question]:
        """The first `limit` conversations of a split whose last answer can be asked for; empty without such a split."""
        examples = self.examples(split).examples
        return questions(examples, self.template, context_length=self.context_length, limit=limit)

    def references(self, split: str) -> Iterator[str]:
        """The last answers of a split's conversations."""
        for example in filter(is_answerable, self.examples(split).examples):
            yield until_last_answer(example).messages[-1].content

    def encode_user(self, text: str) -> list[int]:
        """Token ids of a prompt that consists of one user message."""
        return self.template.encode_prompt([Message("user", text)])

    def write_accounts(self) -> None:
        """Writes to the run's data folder what became of the rows, and the splits' fingerprints."""
        assert self._account_run is not None
        folder = self._account_run.data_folder
        for journal in (self.audit.journal, self.audit.flagged):
            journal.move_to(folder / journal.path.name)
        digests = {name: split.digest for name, split in self.audit.splits.items()}
        write_text(folder / "fingerprints.json", json.dumps(digests, indent=2) + "\n")

    def _scratch_parent(self) -> Path | None:
        """The run's data folder, cleared of what a process that was killed left there."""
        if self._account_run is None:
            return None
        folder = self._account_run.data_folder
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob(f"{SCRATCH_PREFIX}*"):
                if "audit" not in self.__dict__ and not self._splits:
                    shutil.rmtree(left, ignore_errors=True)
        return folder
