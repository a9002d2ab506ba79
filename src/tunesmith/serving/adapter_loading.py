"""From an adapter folder to a version that was tried on the model: read, contract, golden prompts, effect."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from tunesmith.adapters.contract import (
    Contract,
    check_contract,
    golden_differences,
    read_contract,
    refuse_other_answers,
)
from tunesmith.data.records import Message
from tunesmith.data.template import ChatTemplate
from tunesmith.errors import AdapterError
from tunesmith.serving.adapter_bank import AdapterVersion, check_name
from tunesmith.serving.lora_files import read_lora
from tunesmith.serving.runner import Runner

_PROBE_TOKENS = 8


def prepare_adapter(
    runner: Runner,
    name: str,
    folder: Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None,
    base_digest: Callable[[], str | None],
) -> AdapterVersion:
    """A version of the adapter in `folder` that is right on this model and changes its answers; not published yet.

    Args:
        runner: of the base model.
        name: the adapter's name.
        folder: by Tunesmith, or by stock PEFT; the latter has no contract to check.
        tokenizer: the one that prompts are encoded with, if any.
        base_digest: gives `weights_digest` of the base, or None where it has no folder.

    Raises:
        AdapterError: the name is none, the adapter cannot be read or served exactly, or changes nothing.
        ContractError: it was trained with other things, or does not answer as it did then.
    """
    check_name(name)
    contract = read_contract(folder)
    if contract is not None:
        _check_contract(contract, folder, tokenizer, base_digest())
    version = runner.bank.version(name, folder, read_lora(folder, runner.model))
    if contract is not None:
        _check_golden(runner, contract, version)
    _check_effect(runner, version)
    return version


def _check_contract(
    contract: Contract, folder: Path, tokenizer: PreTrainedTokenizerBase | None, base_digest: str | None
) -> None:
    if tokenizer is None:
        check_contract(contract, base_digest=base_digest, place=str(folder))
        return
    template = ChatTemplate(tokenizer, date=contract.template.get("date"))
    check_contract(
        contract,
        base_digest=base_digest,
        template_contract=template.contract(),
        prompt_encoder=lambda text: template.encode_prompt([Message("user", text)]),
        place=str(folder),
    )


def _check_golden(runner: Runner, contract: Contract, version: AdapterVersion) -> None:
    problems = golden_differences(
        contract,
        lambda ids: runner.next_logits(ids, ((version.weights, 1.0),)),
        dtype=runner.dtype,
        vocabulary_size=runner.vocabulary_size,
    )
    refuse_other_answers(problems, str(version.folder))


def _check_effect(runner: Runner, version: AdapterVersion) -> None:
    probe = [token % runner.vocabulary_size for token in range(1, _PROBE_TOKENS + 1)]
    adapted_V = runner.next_logits(probe, ((version.weights, 1.0),))
    if not torch.isfinite(adapted_V).all():
        raise AdapterError("its answers are no finite numbers", place=str(version.folder))
    if torch.equal(adapted_V, runner.next_logits(probe)):
        raise AdapterError(
            "it changes nothing: the model answers with it as without",
            place=str(version.folder),
            remedy="it was saved before it was trained, or its weights are zero; train it again",
        )
