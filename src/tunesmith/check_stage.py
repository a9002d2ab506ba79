"""The check stage: audits the data of a recipe. It needs a tokenizer and no torch, so it starts at once."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from tunesmith.config import Recipe
from tunesmith.data.checks.write import check_target, write_cleaned
from tunesmith.data.records import Example
from tunesmith.data.template import Piece
from tunesmith.data_preparation import DataPreparation
from tunesmith.errors import DataError, TemplateError, disk_errors
from tunesmith.evaluation.metrics import check_bleu
from tunesmith.report import Report, Severity
from tunesmith.runs import Run

REFERENCES_LOOKED_AT = 1000
"""Test answers by whose script the tokeniser of BLEU is foreseen."""


def check(recipe: Recipe, folder: str | Path, *, write_to: str | Path | None = None) -> Report:
    """Audits the data; only the base model's tokenizer is loaded.

    Args:
        recipe: what would be trained.
        folder: the run folder; the report and the accounts of the rows are written there, unless it holds a run that
            was trained with another recipe.
        write_to: a folder for the cleaned splits and their manifest; None writes none.

    Raises:
        TunesmithError: an error that the user can cause.
    """
    if write_to is not None:
        check_target(Path(write_to), recipe)
    run = Run(Path(folder))
    with run.one_writer():
        if run.belongs_to_another(recipe):
            # The folder stays that of its trained run: nothing is written there, the report is all.
            prepared = DataPreparation(recipe, None)
            report = prepared.audit.report
            report.add_finding(
                Severity.NOTE,
                "not-written",
                f"{folder} is the run of another recipe: neither this report nor the accounts of the rows were written",
                remedy="name another folder with --run",
            )
        else:
            run = Run.create(run.folder, recipe)
            prepared = DataPreparation(recipe, run)
            report = run_check(prepared, run)
        if write_to is not None:
            write_cleaned(prepared.audit, Path(write_to), recipe)
    return report


def preview(recipe: Recipe, count: int) -> Iterator[tuple[Example, list[Piece]]]:
    """The first `count` training examples as the model sees them: pieces of text, each with whether it is trained on.

    Raises:
        TunesmithError: an error that the user can cause.
    """
    prepared = DataPreparation(recipe, None)
    for example in prepared.split("train").examples[:count]:
        yield example, prepared.template.describe(example, prepared.audit.max_length)


def forget_check(run: Run) -> None:
    """Removes the report of an earlier check, which says nothing of the data as they are now.

    `dropped.jsonl` is written by a check that fails too, and stays.
    """
    run.forget_report("check")
    with disk_errors(run.data_folder):
        (run.data_folder / "flagged.jsonl").unlink(missing_ok=True)


def run_check(prepared: DataPreparation, run: Run) -> Report:
    """The audit of a run's data; writes its report and accounts to the run folder, in place of earlier ones.

    Where the data cannot be audited, an earlier outcome goes, unless it is that of a trained run.
    """
    try:
        report = prepared.audit.report
    except (DataError, TemplateError):
        if not run.has_trained:
            forget_check(run)
        raise
    prepared.write_accounts()
    run.save_report(report)
    if prepared.recipe.data.test is not None and report.passed:
        # A tokeniser that is not installed is told now, not after hours of training.
        references = list(islice(prepared.references("test"), REFERENCES_LOOKED_AT))
        check_bleu(references, tokenize=prepared.recipe.evaluate.tokenize)
    return report
