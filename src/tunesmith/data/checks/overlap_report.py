"""Compares the rows, leaves out what the recipe's rules say, and reports what rows have in common."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tunesmith.config import DataSection
from tunesmith.data.checks.entries import Action
from tunesmith.data.checks.ledger import Ledger
from tunesmith.data.checks.overlap.leakage import EXACT, NEAR, NGRAM, NO_LEAK, Leaks
from tunesmith.data.checks.overlap.overlaps import find_overlaps
from tunesmith.data.checks.rules import EXCERPT_CHARACTERS, excerpt
from tunesmith.data.checks.scan import one_line
from tunesmith.report import Report, Severity, Table
from tunesmith.report.report import Scalar

TEMPLATE_SHARE = 0.5
"""From this share of the words on it is worth a word that the texts are made from templates."""

LISTED_CLUSTERS = 5
"""Clusters of near-duplicates that the report lists."""

_KINDS = {EXACT: "exact", NEAR: "near-duplicate", NGRAM: "shared passage"}


def handle_overlaps(report: Report, ledger: Ledger, data: DataSection, folder: Path) -> None:
    """Duplicates within train and leakage into the other splits, over the rows that are kept so far.

    Args:
        report: takes a table of leaks and a note about templates; the findings come with those of the other rules.
        ledger: rows are left out of train and flagged.
        data: the rules.
        folder: an existing folder for files that are of no use afterwards.
    """
    rules = data.rules
    others = [name for name in ledger.splits if name != "train"]
    if all(getattr(rules, rule) == "off" for rule in _RULES):
        return
    rows_N = ledger.rows("train")
    other_rows = {name: ledger.rows(name) for name in others}
    scratch = folder / "overlaps"
    scratch.mkdir()
    overlaps = find_overlaps(
        ledger.splits["train"].text_set(rows_N),
        [ledger.splits[name].text_set(rows) for name, rows in other_rows.items()],
        folder=scratch,
        num_proc=None if data.num_proc == "auto" else data.num_proc,
        near=rules.near_duplicates != "off",
        leakage=rules.leakage != "off",
    )
    shutil.rmtree(scratch, ignore_errors=True)
    if rules.leakage != "off":
        _handle_leaks(report, ledger, overlaps.leaks, rows_N, other_rows, fix=rules.leakage == "fix")
    found = overlaps.duplicates
    if rules.exact_duplicates == "fix":
        copies = np.flatnonzero(found.exact_of_N >= 0)
        reason = _reason(ledger, rows_N, found.exact_of_N, "the same as")
        ledger.leave_out("train", rows_N[copies].tolist(), "exact_duplicates", reason, action=Action.MERGED)
    if rules.exact_duplicates != "fix":  # copies are still there, and are as near to the original as theirs
        original_N = np.where(found.exact_of_N >= 0, found.exact_of_N, np.arange(len(rows_N)))
        found = replace(found, near_of_N=np.where(found.exact_of_N >= 0, found.near_of_N[original_N], found.near_of_N))
    near_of_N = _with_kept_originals(
        found.near_of_N, np.isin(rows_N, ledger.rows("train")), ledger.splits["train"].columns_N["order"][rows_N]
    )
    for rule, of_N, text in (
        ("exact_duplicates", found.exact_of_N, "the same as"),
        ("near_duplicates", near_of_N, "nearly the same as"),
        ("conflicting_answers", found.conflict_of_N, "another answer than"),
    ):
        mode = getattr(rules, rule)
        if mode == "off" or (rule == "exact_duplicates" and mode == "fix"):
            continue
        rows = rows_N[np.flatnonzero(of_N >= 0)]
        if rule == "conflicting_answers":
            rows = _still_conflicting(ledger, rows)
        if rule == "near_duplicates":
            _describe_clusters(report, ledger, rows_N, of_N)
        ledger.handle("train", rows.tolist(), rule, _reason(ledger, rows_N, of_N, text), fix=mode == "fix")
    if overlaps.template_share >= TEMPLATE_SHARE:
        report.add_finding(
            Severity.NOTE,
            "shared-template",
            f"{100 * overlaps.template_share:.0f} % of the words of train belong to templates that many rows share; "
            "what rows have in common by their template counts neither as a duplicate nor as leakage",
        )


_RULES = ("exact_duplicates", "near_duplicates", "conflicting_answers", "leakage")


def _still_conflicting(ledger: Ledger, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of `rows` whose prompt still has several answers among the rows that are kept."""
    kept = rows[np.isin(rows, ledger.rows("train"))]
    columns_K = ledger.splits["train"].columns_N[kept]
    pairs = np.unique(np.stack([columns_K["prompt"], columns_K["answer"]], axis=1), axis=0)
    prompts, answers = np.unique(pairs[:, 0], return_counts=True)
    return kept[np.isin(columns_K["prompt"], prompts[answers > 1])]


def _with_kept_originals(
    of_N: NDArray[np.int64], is_kept_N: NDArray[np.bool_], order_N: NDArray[np.uint64]
) -> NDArray[np.int64]:
    """`of_N` over the kept rows; where the original was left out, the row with the smallest hash takes its place."""
    of_N = np.where(is_kept_N, of_N, -1)
    members = np.flatnonzero(of_N >= 0)
    orphans = members[~is_kept_N[of_N[members]]]
    for original in np.unique(of_N[orphans]).tolist():
        left = orphans[of_N[orphans] == original]
        first = left[np.lexsort((left, order_N[left]))[0]]
        of_N[left] = first
        of_N[first] = -1
    return of_N


def _reason(ledger: Ledger, rows_N: NDArray[np.int64], of_N: NDArray[np.int64], text: str) -> Callable[[int], str]:
    """For a row of the split: which row it is like."""
    places = ledger.splits["train"].places

    def reason(row: int) -> str:
        other = int(of_N[np.searchsorted(rows_N, row)])
        return f"{text} {places[int(rows_N[other])]}: {_shown(ledger, row)}"

    return reason


def _shown(ledger: Ledger, row: int) -> str:
    """The beginning of a row of train."""
    text = one_line(ledger.splits["train"].examples[row])
    return excerpt(text, 0, min(len(text), EXCERPT_CHARACTERS))


def _describe_clusters(report: Report, ledger: Ledger, rows_N: NDArray[np.int64], of_N: NDArray[np.int64]) -> None:
    originals, copies = np.unique(of_N[of_N >= 0], return_counts=True)
    if not len(originals):
        return
    report.add_figure("near_duplicate_clusters", "Clusters of near-duplicates", len(originals))
    largest = np.lexsort((originals, -copies))[:LISTED_CLUSTERS]
    lines: list[tuple[Scalar, ...]] = []
    for original, count in zip(originals[largest].tolist(), copies[largest].tolist(), strict=True):
        row = int(rows_N[original])
        lines.append((count + 1, str(ledger.splits["train"].places[row]), _shown(ledger, row)))
    report.tables.append(Table("Clusters of near-duplicates", ("rows", "one of them", "it begins"), tuple(lines)))


def _handle_leaks(
    report: Report,
    ledger: Ledger,
    leaks: Leaks,
    rows_N: NDArray[np.int64],
    other_rows: dict[str, NDArray[np.int64]],
    *,
    fix: bool,
) -> None:
    names = list(other_rows)
    leaked = np.flatnonzero(leaks.kind_N != NO_LEAK)

    def reason(row: int) -> str:
        number = int(np.searchsorted(rows_N, row))
        name = names[int(leaks.set_N[number])]
        place = ledger.splits[name].places[int(other_rows[name][int(leaks.row_N[number])])]
        return f"{_KINDS[int(leaks.kind_N[number])]}: {place} of {name}: {_shown(ledger, row)}"

    ledger.handle("train", rows_N[leaked].tolist(), "leakage", reason, fix=fix)
    if len(leaked):
        pairs = zip(leaks.set_N[leaked].tolist(), leaks.kind_N[leaked].tolist(), strict=True)
        report.tables.append(_leak_table(names, Counter(pairs)))


def _leak_table(names: Sequence[str], counts: Counter[tuple[int, int]]) -> Table:
    rows: list[tuple[Scalar, ...]] = []
    for number, name in enumerate(names):
        rows.append((name, *(counts[number, kind] for kind in _KINDS)))
    return Table("Rows of train that stand elsewhere too", ("in", *_KINDS.values()), tuple(rows))
