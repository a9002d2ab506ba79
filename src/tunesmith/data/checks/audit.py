"""The check stage: what will be trained on, found out before a model is loaded.

`audit` reads as the list of what is done: every row is read, mended, judged and encoded alone (`scan`); then come the
checks that need all rows. Whatever is left out or changed goes through the ledger, so that every row is accounted for:
read = kept + dropped + merged, in each split.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tunesmith.config import DataRules, DataSection, HubDataset
from tunesmith.data.checks.balance_report import balance_train
from tunesmith.data.checks.codes import check_accepted
from tunesmith.data.checks.entries import Action, FlagStore, Journal
from tunesmith.data.checks.findings import add_rule_findings, rule_texts
from tunesmith.data.checks.ledger import Ledger
from tunesmith.data.checks.length_report import describe_lengths
from tunesmith.data.checks.overlap_report import handle_overlaps
from tunesmith.data.checks.scan import text_rules
from tunesmith.data.checks.scanned import ScannedSplit, scan_splits
from tunesmith.data.checks.set_rules import apply_set_rules
from tunesmith.data.checks.splits import Split, make_split
from tunesmith.data.checks.training_signal import (
    ENCODED_SPLITS,
    check_training_signal,
    leave_out_what_cannot_be_used,
)
from tunesmith.data.lengths import choose_max_length
from tunesmith.data.questions import is_answerable
from tunesmith.data.store import Scratch
from tunesmith.data.template import ChatTemplate
from tunesmith.errors import DataError, TunesmithError
from tunesmith.report import Report, Severity, Table
from tunesmith.report.report import Scalar
from tunesmith.report.text import plural

MOST_COLUMNS = 12
"""Columns that are not read, named in a note."""


@dataclass
class Audit:
    """What `audit` gives.

    Args:
        report: the check stage's report.
        splits: train, validation and test, those that there are.
        max_length: the length that training and validation examples are cut to, in tokens.
        journal: every row that was left out or merged, every text that was changed.
        flagged: what was only reported, row by row.
        accounts: for each split its rows read, kept, dropped and merged.
        scratch: holds the splits' texts and tokens; closing it ends them.
    """

    report: Report
    splits: dict[str, Split]
    max_length: int
    journal: Journal
    flagged: Journal
    accounts: dict[str, dict[str, int]]
    scratch: Scratch


def audit(
    data: DataSection,
    template: ChatTemplate,
    *,
    context_length: int | None,
    scratch_parent: Path | None = None,
    accounts: Path | None = None,
) -> Audit:
    """Reads and encodes every split and checks what training would see.

    Args:
        data: the sources, how rows are read, the rules.
        template: of the base model.
        context_length: most tokens the base model can take, None if it does not say.
        scratch_parent: where texts and tokens are kept while they are needed; None takes the system's folder for
            temporary files.
        accounts: the folder in which the lists of rows will lie, which the report names; where an error ends the
            audit, the list of rows that were left out is put there at once. None keeps no lists.

    Raises:
        DataError: a source cannot be read, rows are bad and not to be skipped, nothing is left to train on, or
            `max_length` exceeds the model's context.
        TemplateError: the template cannot render some examples, and they are not to be skipped.
    """
    check_accepted(data.accept)
    scratch = Scratch(scratch_parent)
    journal, flagged = Journal(scratch.folder / "dropped.jsonl"), Journal(scratch.folder / "flagged.jsonl")
    try:
        return _audit(data, template, context_length, scratch, journal, flagged, accounts)
    except TunesmithError:
        if accounts is not None:
            journal.finish()
            journal.move_to(accounts / journal.path.name)
        raise


def _audit(
    data: DataSection,
    template: ChatTemplate,
    context_length: int | None,
    scratch: Scratch,
    journal: Journal,
    flagged: Journal,
    accounts_folder: Path | None,
) -> Audit:
    flags = FlagStore(scratch)
    scanned = scan_splits(sources_of(data), data, template, scratch=scratch, journal=journal, flags=flags)
    ledger = Ledger(scanned, journal, flags)
    report = Report("check", "What the model will be trained on")

    max_length = _max_length(data, scanned, context_length)
    leave_out_what_cannot_be_used(ledger, max_length, context_length)
    apply_set_rules(ledger, data)
    _require_train(ledger, max_length)
    handle_overlaps(report, ledger, data, scratch.folder)
    _require_train(ledger, max_length)
    balance = balance_train(report, ledger, data)

    check_training_signal(report, ledger, template, max_length=max_length, context_length=context_length)
    describe_lengths(report, ledger, max_length)
    _note_unused_keys(report, scanned)
    splits = {}
    for name in (name for name in ENCODED_SPLITS if name in scanned):
        is_train = name == "train"
        splits[name] = make_split(
            scanned[name],
            balance.rows_K if is_train else ledger.rows(name),
            max_length=context_length if name == "test" else max_length,
            weights_K=balance.weights_K if is_train else None,
        )
    _check_answerable(report, splits)
    if data.test is None:
        report.add_finding(
            Severity.NOTE,
            "no-test-set",
            "there is no test set: nothing will be evaluated, and no target can be set",
            remedy="name one as data.test",
        )
    ledger.report_flags(flagged)
    journal.finish()
    flagged.finish()
    rows_read = {name: split.rows_read for name, split in scanned.items()}
    listed_in = None if accounts_folder is None else accounts_folder / journal.path.name
    add_rule_findings(report, journal, flagged, rule_texts(text_rules(template)), rows_read, data.rules, listed_in)
    accounts = ledger.accounts()
    _account(report, accounts, splits)
    _accept(report, data.accept)
    return Audit(report, splits, max_length, journal, flagged, accounts, scratch)


def read_split(
    name: str,
    data: DataSection,
    template: ChatTemplate,
    *,
    context_length: int | None,
    scratch_parent: Path | None = None,
) -> Split:
    """One split alone, as `audit` would give it but for what depends on other splits: to be asked, not trained on.

    Raises:
        DataError: its source cannot be read, or its rows are bad and not to be skipped.
        TemplateError: the template cannot render some examples, and they are not to be skipped.
    """
    sources = sources_of(data)
    if name not in sources:
        return Split()
    scratch = Scratch(scratch_parent)
    journal, flags = Journal(scratch.folder / "dropped.jsonl"), FlagStore(scratch)
    scanned = scan_splits({name: sources[name]}, data, template, scratch=scratch, journal=journal, flags=flags)
    ledger = Ledger(scanned, journal, flags)
    if context_length is not None:
        leave_out_what_cannot_be_used(ledger, context_length, context_length)
    return make_split(scanned[name], ledger.rows(name), max_length=context_length)


def sources_of(data: DataSection) -> dict[str, Sequence[str | HubDataset]]:
    """The sources of each split that the recipe names, train first."""
    named = {name: getattr(data, name) for name in (*ENCODED_SPLITS, "benchmarks")}
    return {name: sources for name, sources in named.items() if sources is not None}


def _max_length(data: DataSection, scanned: Mapping[str, ScannedSplit], context_length: int | None) -> int:
    if data.max_length == "auto":
        lengths = np.concatenate(
            [split.columns_N["tokens"] for name, split in scanned.items() if name in ("train", "validation")]
        )
        if not len(lengths):
            raise DataError("no row of train is left", place="data.train", remedy="see data.rules: a rule left all out")
        return choose_max_length(lengths.tolist(), context_length)
    if context_length and data.max_length > context_length:
        raise DataError(
            f"{data.max_length} tokens are more than the model's context of {context_length}",
            place="data.max_length",
            remedy=f"set it to {context_length} or less, or to auto",
        )
    return data.max_length


def _require_train(ledger: Ledger, max_length: int) -> None:
    if len(ledger.rows("train")):
        return
    counts: Counter[str] = Counter()
    for rule, action in ledger.journal.rules():
        if action in (Action.DROPPED, Action.MERGED):
            counts[rule] += ledger.journal.count(split="train", rule=rule, action=action)
    most = max(counts, key=lambda rule: counts[rule])
    if most == "no-targets":
        raise DataError(
            f"no training example has a trained token left within {max_length} tokens",
            place="data.train",
            remedy="raise data.max_length, or shorten the prompts",
        )
    remedy = "correct the rows"
    if most == "leakage":
        remedy = "give other rows as data.validation and data.test than those of data.train"
    if most in DataRules.model_fields:
        remedy += f", or set data.rules.{most}: on"
    raise DataError(
        f"no training example is left; {plural(counts[most], 'row')} left out by the rule '{most}'",
        place="data.train",
        remedy=remedy,
    )


def _account(report: Report, accounts: Mapping[str, Mapping[str, int]], splits: Mapping[str, Split]) -> None:
    rows: list[tuple[Scalar, ...]] = []
    for name, counts in accounts.items():
        used = len(splits[name].tokenized) if name in splits else 0
        rows.append((name, *counts.values(), used))
        if name in splits:
            report.add_figure(f"{name}_examples", f"Examples in {name}", used)
    report.tables.insert(0, Table("Rows", ("split", "read", "kept", "dropped", "merged", "in use"), tuple(rows)))


def _note_unused_keys(report: Report, scanned: Mapping[str, ScannedSplit]) -> None:
    """One note for all splits that hold the same columns."""
    by_keys: dict[str, list[str]] = {}
    for name, split in scanned.items():
        if split.unused_keys:
            keys = _named(split.unused_keys)
            by_keys.setdefault(keys, []).append(name)
    for keys, names in by_keys.items():
        report.add_finding(
            Severity.NOTE,
            "unused-columns",
            f"{' and '.join(names)} {'holds' if len(names) == 1 else 'hold'} columns that are not read, with the "
            f"number of rows: {keys}",
            remedy="if one of them belongs into the prompt, say so with data.mapping",
        )


def _named(keys: Mapping[str, int]) -> str:
    names = [f"{key} ({count:,})" for key, count in sorted(keys.items(), key=lambda item: (-item[1], item[0]))]
    more = f" and {len(names) - MOST_COLUMNS:,} more" if len(names) > MOST_COLUMNS else ""
    return ", ".join(names[:MOST_COLUMNS]) + more


def _check_answerable(report: Report, splits: Mapping[str, Split]) -> None:
    if "test" in splits and not any(map(is_answerable, splits["test"].examples)):
        report.add_finding(
            Severity.ERROR,
            "test-not-answerable",
            "the test set holds no conversation to answer, so nothing could be evaluated",
            remedy="give conversations as data.test, or leave it out",
        )


def _accept(report: Report, codes: Sequence[str]) -> None:
    """Findings that the recipe accepts become notes that say so."""
    report.findings = [
        replace(f, severity=Severity.NOTE, message=f"{f.message}; accepted by data.accept") if f.code in codes else f
        for f in report.findings
    ]
