"""What several stages need of a recipe, each made once: data, tokenizer, template, and the models."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from tunesmith.adapters.contract import check_contract, check_golden, read_contract, refuse_other_answers
from tunesmith.adapters.files import load_adapter
from tunesmith.config import Recipe
from tunesmith.data_preparation import DataPreparation
from tunesmith.models.backend import Precision, resolve_precision, select_device
from tunesmith.models.catalog import resolve_model
from tunesmith.models.loading import load_model, weights_digest
from tunesmith.runs import Run


class Preparation(DataPreparation):
    """The inputs of a run. Everything is made when first asked for, and kept.

    Args:
        recipe: the recipe.
        run: where the adapter is, and where the accounts of the data are written.
    """

    def __init__(self, recipe: Recipe, run: Run) -> None:
        super().__init__(recipe, run)
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
    def tokenizer_digest(self) -> str:
        """SHA-256 of the tokenizer's vocabulary and rules."""
        rules = getattr(self.tokenizer, "backend_tokenizer", None)
        text = rules.to_str() if rules is not None else json.dumps(self.tokenizer.get_vocab(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

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
        if contract is not None:
            refuse_other_answers(check_golden(tuned, contract), str(folder))
        return tuned
