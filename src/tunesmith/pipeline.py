"""The stages in order, and the gates between them: check -> train -> evaluate -> export.

Each stage is one function that reads top to bottom. It takes what earlier stages made from the run folder, so every
stage can also be run alone, and saves its report there. A stage whose report holds an error stops the pipeline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from tunesmith.adapters.contract import GOLDEN_TEXTS, Contract, make_golden, read_contract
from tunesmith.adapters.files import adapter_has_effect, save_adapter
from tunesmith.adapters.methods import attach_adapter, describe_adapter, merge_obstacle, trainable_parameters
from tunesmith.check_stage import run_check
from tunesmith.config import Recipe
from tunesmith.data.batching import collate
from tunesmith.data.questions import Question
from tunesmith.durable import replace_folder, write_text
from tunesmith.errors import AdapterError, DataError, TrainError
from tunesmith.evaluation.evaluator import TestItem, answer_test_set, build_report
from tunesmith.evaluation.latency import Latency, measure_latency
from tunesmith.evaluation.metrics import check_bleu
from tunesmith.exporting.card import model_card
from tunesmith.exporting.merge import merge_adapter
from tunesmith.exporting.report import ParityCheck
from tunesmith.exporting.report import build_report as build_export_report
from tunesmith.models.backend import (
    configure_cpu,
    describe_device,
    peak_memory_bytes,
    release_memory,
    seed_everything,
)
from tunesmith.models.loading import load_model
from tunesmith.models.parity import compare, mean_divergence, record
from tunesmith.preparation import Preparation
from tunesmith.report import Report
from tunesmith.runs import Run
from tunesmith.training.report import build_report as build_train_report
from tunesmith.training.trainer import Trainer

CALIBRATION_BATCHES = 16
"""Batches that data-driven initialisations of the adapter look at."""

ANSWER_ROOM = 1.5
"""`max_new_tokens: auto` is the longest reference times this, and a few tokens."""

ANSWER_SPARE = 8

PARITY_TOKENS = 32
"""Longest answer that is compared where there is no reference to take a length from."""

OnReport = Callable[[Report], None]
"""Called with each stage's report as soon as it is there."""


def run(recipe: Recipe, folder: str | Path, *, fresh: bool = False, on_report: OnReport | None = None) -> list[Report]:
    """Runs every stage; the first report that holds an error is the last.

    Args:
        recipe: what to do; without a test set nothing is evaluated.
        folder: the run folder; training that was interrupted goes on.
        fresh: keep a run that is there aside and start anew.
        on_report: called with each stage's report.

    Raises:
        StoppedError: stopped by a signal; the same call goes on.
        TunesmithError: an error that the user can cause; see `tunesmith.errors`.
    """
    stages = [_check, _train, *([_evaluate] if recipe.data.test is not None else []), _export]
    with _begun(recipe, folder, fresh=fresh) as prepared:
        return _in_order(stages, prepared, on_report)


def train(recipe: Recipe, folder: str | Path, *, fresh: bool = False, on_report: OnReport | None = None) -> Report:
    """Checks the data and trains the adapter; goes on where an interrupted run stopped.

    Args:
        recipe: what to train.
        folder: the run folder.
        fresh: keep a run that is there aside and start anew.
        on_report: called with the check's report and with the training's.

    Returns:
        The report of the training; the check's, if that found an error.

    Raises:
        StoppedError: stopped by a signal; the same call goes on.
        TunesmithError: an error that the user can cause.
    """
    with _begun(recipe, folder, fresh=fresh) as prepared:
        return _in_order([_check, _train], prepared, on_report)[-1]


def evaluate(folder: str | Path) -> Report:
    """Scores the base model and the tuned one on the test set, side by side.

    Args:
        folder: the run folder of a trained run.

    Raises:
        TunesmithError: an error that the user can cause.
    """
    opened = Run.open(Path(folder))
    with opened.one_writer():
        return _evaluate(Preparation(opened.recipe, opened))


def export(folder: str | Path) -> Report:
    """Merges the adapter into the base model, proves that both answer alike, and writes model cards.

    Args:
        folder: the run folder of a trained run.

    Raises:
        TunesmithError: an error that the user can cause.
    """
    opened = Run.open(Path(folder))
    with opened.one_writer():
        return _export(Preparation(opened.recipe, opened))


@contextmanager
def _begun(recipe: Recipe, folder: str | Path, *, fresh: bool = False) -> Iterator[Preparation]:
    """The run in `folder`, made or taken up, and held against other processes within the block."""
    lock = Run(Path(folder))
    with lock.one_writer():
        begun = Run.create(lock.folder, recipe, fresh=fresh)
        begun.killed_for_memory = lock.killed_for_memory and not fresh
        yield Preparation(recipe, begun)


def _in_order(
    stages: Iterable[Callable[[Preparation], Report]], prepared: Preparation, on_report: OnReport | None
) -> list[Report]:
    reports = []
    for stage in stages:
        report = stage(prepared)
        reports.append(report)
        if on_report is not None:
            on_report(report)
        if not report.passed:
            break
    return reports


def _check(prepared: Preparation) -> Report:
    return run_check(prepared, prepared.run)


def _train(prepared: Preparation) -> Report:
    recipe, section, run_ = prepared.recipe, prepared.recipe.train, prepared.run
    configure_cpu()
    seed_everything(section.seed)
    train_split, validation = prepared.split("train"), prepared.split("validation")
    model = attach_adapter(
        prepared.load_base(), recipe.adapter, calibration_batches=lambda: _calibration_batches(prepared)
    )
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
        run_,
        precision=prepared.precision,
        pad_token_id=prepared.template.pad_token_id,
        fingerprint={
            "training data": train_split.digest,
            "validation data": validation.digest,
            "base model": prepared.base_digest,
            "chat template": prepared.template.digest,
            "tokenizer": prepared.tokenizer_digest,
            "precision": prepared.precision,
        },
    )
    result = trainer.train()
    if result.resumed_from < result.state.step:
        run_.forget_results()
    if not adapter_has_effect(model):
        raise TrainError(
            "the trained adapter changes nothing in the model's answers",
            place=str(run_.folder),
            remedy="raise train.learning_rate, or train longer",
        )
    contract = Contract(
        base_model=recipe.model.name,
        weights_digest=prepared.base_digest,
        template=prepared.template.contract(),
        precision=prepared.precision,
        recipe_digest=recipe.digest(),
        golden=make_golden(model, [prepared.encode_user(text) for text in GOLDEN_TEXTS], GOLDEN_TEXTS),
    )
    save_adapter(model, run_.adapter_folder, tokenizer=prepared.tokenizer, contract=contract)
    report = build_train_report(
        result,
        list(run_.read_metrics()),
        section,
        trainable=trainable,
        parameters=parameters,
        adapter_table=describe_adapter(model),
        device=describe_device(prepared.device),
        precision=prepared.precision,
        peak_memory_bytes=peak_memory_bytes(prepared.device),
    )
    run_.save_report(report)
    _write_adapter_card(prepared)
    del trainer, model
    release_memory()
    return report


def _evaluate(prepared: Preparation) -> Report:
    recipe, section = prepared.recipe, prepared.recipe.evaluate
    adapter_folder = prepared.check_adapter()
    asked = _test_questions(prepared)
    items = [_test_item(question) for question in asked]
    check_bleu([question.reference for question in asked], tokenize=section.tokenize)
    configure_cpu()
    max_new_tokens = _max_new_tokens(prepared, asked)
    base = prepared.load_base()
    sides = []
    for name in ("base", "tuned"):
        model = base if name == "base" else prepared.load_tuned(base)
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
    del base, model
    release_memory()
    latencies = _measure_latencies(prepared, adapter_folder, asked, max_new_tokens)
    report = build_report(items, sides[0], sides[1], latencies, section, seed=recipe.train.seed)
    prepared.run.save_report(report)
    _write_adapter_card(prepared)
    return report


def _export(prepared: Preparation) -> Report:
    recipe, run_ = prepared.recipe, prepared.run
    adapter_folder = prepared.check_adapter()
    if not recipe.export.merge:
        report = build_export_report(adapter_folder, None, None, precision=prepared.precision)
        run_.save_report(report)
        _write_adapter_card(prepared)
        return report
    configure_cpu()
    merged = merge_adapter(
        prepared.model_folder,
        adapter_folder,
        run_.unverified_folder,
        precision=prepared.precision,
        device=prepared.device,
        max_shard_size=recipe.export.max_shard_size,
    )
    release_memory()
    report = build_export_report(
        adapter_folder,
        merged,
        _measure_parity(prepared),
        precision=prepared.precision,
        passed_folder=run_.merged_folder,
    )
    run_.save_report(report)
    _write_adapter_card(prepared)
    if report.passed:
        card = model_card(recipe, _reports(run_), kind="merged", contract=read_contract(run_.unverified_folder))
        write_text(run_.unverified_folder / "README.md", card)
        replace_folder(run_.unverified_folder, run_.merged_folder)
    return report


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


def _test_questions(prepared: Preparation) -> list[Question]:
    if prepared.recipe.data.test is None:
        raise DataError("the recipe names no test set", place="data.test", remedy="add one to the recipe of the run")
    asked = prepared.questions("test", prepared.recipe.evaluate.limit)
    if not asked:
        raise DataError("the test set holds no conversation to answer", place="data.test")
    return asked


def _test_item(question: Question) -> TestItem:
    return TestItem(question.prompt_ids, question.reference, question.prompt_text, question.tokenized)


def _max_new_tokens(prepared: Preparation, asked: list[Question]) -> int:
    wanted = prepared.recipe.evaluate.max_new_tokens
    if wanted != "auto":
        return wanted
    if not any(question.reference for question in asked):
        return PARITY_TOKENS
    longest = max(len(question.tokenized.input_ids) - len(question.prompt_ids) for question in asked)
    return int(longest * ANSWER_ROOM) + ANSWER_SPARE


def _measure_latencies(
    prepared: Preparation, adapter_folder: Path, asked: list[Question], max_new_tokens: int
) -> dict[str, Latency]:
    count = prepared.recipe.evaluate.latency_requests
    if count == 0:
        return {}
    return {
        name: measure_latency(
            prepared.model_folder,
            adapter,
            [question.prompt_ids for question in asked[:count]],
            max_new_tokens=max_new_tokens,
            stop_token_ids=prepared.stop_token_ids,
            precision=prepared.precision,
            what=f"Timing the {name} model",
        )
        for name, adapter in (("base", None), ("tuned", adapter_folder))
    }


def _measure_parity(prepared: Preparation) -> ParityCheck:
    """Adapter against merged model on prompts that were not trained on, where there are any."""
    split, asked = _parity_questions(prepared)
    fixed = [] if asked else [tuple(prepared.encode_user(text)) for text in GOLDEN_TEXTS]
    prompts = [question.prompt_ids for question in asked] or fixed
    tuned = prepared.load_tuned(prepared.load_base())
    recording = record(
        tuned,
        prompts,
        max_new_tokens=_max_new_tokens(prepared, asked),
        stop_token_ids=prepared.stop_token_ids,
        pad_token_id=prepared.template.pad_token_id,
        batch_size=prepared.recipe.evaluate.batch_size,
    )
    with tuned.disable_adapter():
        effect_kl = mean_divergence(recording, tuned)
    del tuned
    release_memory()
    merged = load_model(prepared.run.unverified_folder, precision=prepared.precision, device=prepared.device)
    return ParityCheck(compare(recording, merged), effect_kl, split)


def _parity_questions(prepared: Preparation) -> tuple[str, list[Question]]:
    """The prompts to compare on, and what they are; none for plain text, where fixed prompts serve."""
    count = prepared.recipe.export.parity_prompts
    for split, name in (("test", "test prompts"), ("validation", "validation prompts"), ("train", "training prompts")):
        asked = prepared.questions(split, count)
        if asked:
            return name, asked
    return "fixed prompts", []


def _reports(run_: Run) -> dict[str, Report]:
    stages = ("check", "train", "evaluate", "export")
    return {stage: report for stage in stages if (report := run_.load_report(stage)) is not None}


def _write_adapter_card(prepared: Preparation) -> None:
    folder = prepared.run.adapter_folder
    card = model_card(prepared.recipe, _reports(prepared.run), kind="adapter", contract=read_contract(folder))
    write_text(folder / "README.md", card)
