"""The stages in order, and the gates between them: check -> train -> evaluate -> export.

Each stage is one function that reads top to bottom. It takes what earlier stages made from the run folder, so every
stage can also be run alone, and saves its report there. A stage whose report holds an error stops the pipeline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch

from tunesmith.adapters.contract import GOLDEN_TEXTS, Contract, check_contract, make_golden, read_contract
from tunesmith.adapters.files import adapter_has_effect, load_adapter, save_adapter
from tunesmith.adapters.methods import attach_adapter, describe_adapter, merge_obstacle, trainable_parameters
from tunesmith.config import Recipe
from tunesmith.data.batching import collate
from tunesmith.data.records import Example, Message
from tunesmith.errors import AdapterError, DataError, TrainError
from tunesmith.evaluation.evaluator import TestItem, answer_test_set, build_report, check_metrics
from tunesmith.evaluation.latency import Latency, measure_latency
from tunesmith.exporting.card import model_card
from tunesmith.exporting.merge import merge_adapter
from tunesmith.exporting.report import ParityCheck
from tunesmith.exporting.report import build_report as build_export_report
from tunesmith.models.backend import (
    configure_allocator,
    describe_device,
    peak_memory_bytes,
    release_memory,
    seed_everything,
)
from tunesmith.models.loading import load_model
from tunesmith.models.parity import compare, mean_divergence, record
from tunesmith.preparation import Preparation, split_digest
from tunesmith.report import Report
from tunesmith.runs import Run, write_text
from tunesmith.training.report import build_report as build_train_report
from tunesmith.training.trainer import Trainer

CALIBRATION_BATCHES = 16
"""Batches that data-driven initialisations of the adapter look at."""

ANSWER_ROOM = 1.5
"""`max_new_tokens: auto` is the longest reference times this."""


def run(
    recipe: Recipe, folder: Path, *, fresh: bool = False, on_report: Callable[[Report], None] | None = None
) -> list[Report]:
    """Runs every stage; the first report that holds an error is the last.

    Args:
        recipe: what to do.
        folder: the run folder; training that was interrupted goes on.
        fresh: keep a run that is there aside and start anew.
        on_report: called with each stage's report as soon as it is there.

    Raises:
        TunesmithError: an error that the user can cause; see `tunesmith.errors`.
    """
    prepared = Preparation(recipe, Run.create(folder, recipe, fresh=fresh))
    stages = [_check, _train]
    if recipe.data.test is not None:
        stages.append(_evaluate)
    stages.append(_export)
    reports = []
    for stage in stages:
        report = stage(prepared)
        reports.append(report)
        if on_report is not None:
            on_report(report)
        if not report.passed:
            break
    return reports


def check(recipe: Recipe, folder: Path) -> Report:
    """Audits the data; only the base model's tokenizer is loaded.

    Args:
        recipe: what would be trained.
        folder: the run folder; report and dropped rows are written there.

    Raises:
        TunesmithError: an error that the user can cause.
    """
    return _check(Preparation(recipe, Run.create(folder, recipe)))


def preview(recipe: Recipe, count: int) -> Iterator[tuple[Example, list[tuple[str, bool]]]]:
    """The first `count` training examples as the model sees them: pieces of text, each with whether it is trained on.

    Raises:
        TunesmithError: an error that the user can cause.
    """
    prepared = Preparation(recipe, Run(Path()))
    for example in prepared.reads["train"].examples[:count]:
        yield example, prepared.template.describe(example)


def train(recipe: Recipe, folder: Path, *, fresh: bool = False) -> Report:
    """Trains the adapter; goes on where an interrupted run stopped.

    Args:
        recipe: what to train.
        folder: the run folder.
        fresh: keep a run that is there aside and start anew.

    Raises:
        StoppedError: stopped by a signal; the same call goes on.
        TunesmithError: an error that the user can cause.
    """
    return _train(Preparation(recipe, Run.create(folder, recipe, fresh=fresh)))


def evaluate(folder: Path) -> Report:
    """Scores the base model and the tuned one on the test set, side by side.

    Args:
        folder: the run folder of a trained run.

    Raises:
        TunesmithError: an error that the user can cause.
    """
    opened = Run.open(folder)
    return _evaluate(Preparation(opened.recipe, opened))


def export(folder: Path) -> Report:
    """Merges the adapter into the base model, proves that both answer alike, and writes model cards.

    Args:
        folder: the run folder of a trained run.

    Raises:
        TunesmithError: an error that the user can cause.
    """
    opened = Run.open(folder)
    return _export(Preparation(opened.recipe, opened))


def _check(prepared: Preparation) -> Report:
    report = prepared.audit.report
    prepared.run.save_report(report)
    return report


def _train(prepared: Preparation) -> Report:
    recipe, section = prepared.recipe, prepared.recipe.train
    _require_passed(prepared)
    configure_allocator()
    seed_everything(section.seed)
    train_split, validation = prepared.split("train"), prepared.split("validation")
    base = load_model(prepared.model_folder, precision=prepared.precision, device=prepared.device)
    model = attach_adapter(base, recipe.adapter, calibration_batches=lambda: _calibration_batches(prepared))
    obstacle = merge_obstacle(model) if recipe.export.merge else None
    if obstacle is not None:
        raise AdapterError(
            f"this adapter could not be merged: {obstacle}", place="adapter", remedy="set export.merge to false"
        )
    trainable, parameters = trainable_parameters(model)
    trainer = Trainer(
        model,
        train_split.tokenized,
        validation.tokenized,
        section,
        prepared.run,
        precision=prepared.precision,
        pad_token_id=prepared.template.pad_token_id,
        fingerprint={
            "training data": split_digest(train_split),
            "validation data": split_digest(validation),
            "base model": prepared.base_digest,
            "chat template": prepared.template.digest,
            "precision": prepared.precision,
        },
    )
    result = trainer.train()
    if not adapter_has_effect(model):
        raise TrainError(
            "the trained adapter changes nothing in the model's answers",
            place=str(prepared.run.folder),
            remedy="raise train.learning_rate, or train longer",
        )
    contract = Contract(
        base_model=recipe.model.name,
        weights_digest=prepared.base_digest,
        template=prepared.template.contract(),
        precision=prepared.precision,
        recipe_digest=recipe.digest(),
        golden=make_golden(model, [_encode_user(prepared, text) for text in GOLDEN_TEXTS], GOLDEN_TEXTS),
    )
    save_adapter(model, prepared.run.adapter_folder, tokenizer=prepared.tokenizer, contract=contract)
    report = build_train_report(
        result,
        list(prepared.run.read_metrics()),
        section,
        trainable=trainable,
        parameters=parameters,
        adapter_table=describe_adapter(model),
        device=describe_device(prepared.device),
        precision=prepared.precision,
        peak_memory_bytes=peak_memory_bytes(prepared.device),
    )
    prepared.run.save_report(report)
    _write_adapter_card(prepared)
    del trainer, model, base
    release_memory()
    return report


def _evaluate(prepared: Preparation) -> Report:
    recipe, section = prepared.recipe, prepared.recipe.evaluate
    adapter_folder = _checked_adapter(prepared)
    items = _test_items(prepared)
    check_metrics(section, items)
    configure_allocator()
    max_new_tokens = _max_new_tokens(prepared, items)
    model = load_model(prepared.model_folder, precision=prepared.precision, device=prepared.device)
    sides = []
    for name in ("base", "tuned"):
        if name == "tuned":
            model = load_adapter(model, adapter_folder, precision=prepared.precision)
        sides.append(
            answer_test_set(
                model,
                items,
                decode=prepared.template.decode_answer,
                max_new_tokens=max_new_tokens,
                stop_token_ids=prepared.stop_token_ids,
                pad_token_id=prepared.template.pad_token_id,
                batch_size=section.batch_size,
                name=name,
            )
        )
    del model
    release_memory()
    latencies = _measure_latencies(prepared, adapter_folder, items, max_new_tokens)
    report = build_report(items, sides[0], sides[1], latencies, section, seed=recipe.train.seed)
    prepared.run.save_report(report)
    _write_adapter_card(prepared)
    return report


def _export(prepared: Preparation) -> Report:
    recipe, run_ = prepared.recipe, prepared.run
    adapter_folder = _checked_adapter(prepared)
    _write_adapter_card(prepared)
    merged, parity_check = None, None
    if recipe.export.merge:
        configure_allocator()
        merged = merge_adapter(
            prepared.model_folder,
            adapter_folder,
            run_.merged_folder,
            precision=prepared.precision,
            device=prepared.device,
            max_shard_size=recipe.export.max_shard_size,
        )
        release_memory()
        parity_check = _measure_parity(prepared, adapter_folder)
    report = build_export_report(adapter_folder, merged, parity_check, precision=prepared.precision)
    run_.save_report(report)
    if merged is not None and report.passed:
        card = model_card(recipe, _reports(run_), kind="merged", contract=read_contract(run_.merged_folder))
        write_text(run_.merged_folder / "README.md", card)
    return report


def _require_passed(prepared: Preparation) -> None:
    """Training on data that the check refuses would be hours for nothing."""
    errors = prepared.audit.report.errors
    if errors:
        raise DataError(
            f"the data check found: {'; '.join(finding.message for finding in errors)}",
            remedy=errors[0].remedy or "tunesmith check shows the details",
        )


def _calibration_batches(prepared: Preparation) -> Iterable[dict[str, torch.Tensor]]:
    size = prepared.recipe.train.per_device_train_batch_size
    examples = prepared.split("train").tokenized[: size * CALIBRATION_BATCHES]
    for at in range(0, len(examples), size):
        batch = collate(examples[at : at + size], prepared.template.pad_token_id).to(prepared.device)
        lengths_B1 = torch.tensor([[len(e.input_ids)] for e in examples[at : at + size]], device=prepared.device)
        positions_T = torch.arange(batch.input_ids_BT.shape[1], device=prepared.device)
        yield {
            "input_ids": batch.input_ids_BT,
            "labels": batch.labels_BT,
            "attention_mask": (positions_T < lengths_B1).long(),
        }


def _encode_user(prepared: Preparation, text: str) -> list[int]:
    return prepared.template.encode_prompt([Message("user", text)])


def _checked_adapter(prepared: Preparation) -> Path:
    """The run's adapter folder, checked against the base model, template and tokenizer at hand."""
    folder = prepared.run.trained_adapter()
    contract = read_contract(folder)
    if contract is not None:
        check_contract(
            contract,
            base_digest=prepared.base_digest,
            template_contract=prepared.template.contract(),
            prompt_encoder=lambda text: _encode_user(prepared, text),
            place=str(folder),
        )
    return folder


def _test_items(prepared: Preparation) -> list[TestItem]:
    if prepared.recipe.data.test is None:
        raise DataError("the recipe names no test set", place="data.test", remedy="add one to the recipe of the run")
    items = _items(prepared, "test")
    if not items:
        raise DataError("the test set holds no conversation to answer", place="data.test")
    return items[: prepared.recipe.evaluate.limit]


def _items(prepared: Preparation, split: str) -> list[TestItem]:
    """What can be asked of a split: the last answer of each conversation is the reference."""
    template = prepared.template
    return [
        TestItem(
            prompt_ids=tuple(template.encode_prompt(example.messages[:-1])),
            prompt_text=example.messages[-2].content if len(example.messages) > 1 else "",
            reference=example.messages[-1].content,
            example=template.encode(example, prepared.audit.max_length),
        )
        for example in prepared.answerable(split)
    ]


def _max_new_tokens(prepared: Preparation, items: list[TestItem]) -> int:
    asked = prepared.recipe.evaluate.max_new_tokens
    if asked != "auto":
        return asked
    longest = max(len(prepared.tokenizer(item.reference, add_special_tokens=False)["input_ids"]) for item in items)
    return int(longest * ANSWER_ROOM) + 8


def _measure_latencies(
    prepared: Preparation, adapter_folder: Path, items: list[TestItem], max_new_tokens: int
) -> dict[str, Latency]:
    count = prepared.recipe.evaluate.latency_requests
    if count == 0:
        return {}
    return {
        name: measure_latency(
            prepared.model_folder,
            adapter,
            [item.prompt_ids for item in items[:count]],
            max_new_tokens=max_new_tokens,
            stop_token_ids=prepared.stop_token_ids,
            precision=prepared.precision,
            what=f"Timing the {name} model",
        )
        for name, adapter in (("base", None), ("tuned", adapter_folder))
    }


def _measure_parity(prepared: Preparation, adapter_folder: Path) -> ParityCheck:
    """Adapter against merged model on prompts that were not trained on, where there are any."""
    held_out = [split for split in ("test", "validation", "train") if prepared.answerable(split)]
    if not held_out:
        raise DataError("there is no conversation to compare answers on", place="data")
    items = _items(prepared, held_out[0])[: prepared.recipe.export.parity_prompts]
    template = prepared.template
    base = load_model(prepared.model_folder, precision=prepared.precision, device=prepared.device)
    tuned = load_adapter(base, adapter_folder, precision=prepared.precision)
    recording = record(
        tuned,
        [item.prompt_ids for item in items],
        max_new_tokens=_max_new_tokens(prepared, items),
        stop_token_ids=prepared.stop_token_ids,
        pad_token_id=template.pad_token_id,
        batch_size=prepared.recipe.evaluate.batch_size,
    )
    with tuned.disable_adapter():
        effect_kl = mean_divergence(recording, tuned)
    del base, tuned
    release_memory()
    merged = load_model(prepared.run.merged_folder, precision=prepared.precision, device=prepared.device)
    return ParityCheck(compare(recording, merged), effect_kl)


def _reports(run_: Run) -> dict[str, Report]:
    stages = ("check", "train", "evaluate", "export")
    return {stage: report for stage in stages if (report := run_.load_report(stage)) is not None}


def _write_adapter_card(prepared: Preparation) -> None:
    folder = prepared.run.adapter_folder
    card = model_card(prepared.recipe, _reports(prepared.run), kind="adapter", contract=read_contract(folder))
    write_text(folder / "README.md", card)
