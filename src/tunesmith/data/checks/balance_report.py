"""Looks at the classes of train, reports what is out of balance, and acts on it where the recipe says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tunesmith.config import DataSection
from tunesmith.data.checks.balance import NO_CLASS, Classes, find_classes, imbalance, plan_balance
from tunesmith.data.checks.dataset_rules import DOMINANT_SHARE, LARGEST_FOREIGN_SHARE
from tunesmith.data.checks.ledger import Ledger
from tunesmith.data.checks.overlap.text_set import normalised
from tunesmith.data.checks.rules import answers_of, excerpt
from tunesmith.errors import DataError
from tunesmith.report import Report, Severity, Table
from tunesmith.report.text import percent, plural

LISTED_CLASSES = 20
"""Classes that a table lists; the smallest is always among them."""

SMALLEST_LANGUAGE_SHARE = 0.02
"""A language of a smaller share is an exception."""

SMALLEST_BESIDE_ONE = LARGEST_FOREIGN_SHARE
"""The same where nearly all is of one language: others are the business of the rule language_mix."""

MOST_LEFT_OUT = 0.5
"""Share of the rows of train; balance that leaves out more is worth a warning."""

_TITLES = {"field": "Classes by column", "answer": "Classes by answer", "source": "Sources", "language": "Languages"}
_CODES = {
    "field": "class-imbalance",
    "answer": "class-imbalance",
    "source": "source-imbalance",
    "language": "language-imbalance",
}


@dataclass(frozen=True)
class BalancedRows:
    """The rows of train to use.

    Args:
        rows_K: in order; one may come several times.
        weights_K: the weight of each in the loss; None for 1 each.
    """

    rows_K: NDArray[np.int64]
    weights_K: NDArray[np.float32] | None = None


def balance_train(report: Report, ledger: Ledger, data: DataSection) -> BalancedRows:
    """Reports the classes of the kept rows of train and balances them by the recipe's method.

    Raises:
        DataError: the recipe's column is in no row, or there are no classes to balance.
    """
    rows_K = ledger.rows("train")
    found = _classes_of(ledger, data, rows_K)
    main = found[0] if found and found[0].can_be_balanced else None
    if data.class_field is not None and (main is None or main.kind != "field"):
        raise DataError(
            f"no row of train holds a class in the column '{data.class_field}'",
            place="data.class_field",
            remedy="name a column of the data, or leave it out",
        )
    if main is None and data.balance != "none":
        raise DataError(
            "there are no classes to balance: the answers are not a few short repeated ones",
            place="data.balance",
            remedy="name the column that holds the class with data.class_field, or leave balance out",
        )
    for classes in found:
        _describe(report, classes, acts=classes is main and data.balance != "none", data=data)
    if main is None or data.balance == "none" or imbalance(main) <= data.max_class_ratio:
        return BalancedRows(rows_K)
    return _act(report, ledger, data, main, rows_K)


def _classes_of(ledger: Ledger, data: DataSection, rows_K: NDArray[np.int64]) -> list[Classes]:
    split = ledger.splits["train"]
    columns_K = split.columns_N[rows_K]

    def answer(row: int) -> str:
        text = normalised(answers_of(split.examples[int(rows_K[row])])[-1])
        return excerpt(text, 0, len(text))

    found = find_classes(
        answers_N=columns_K["answer"],
        answer_words_N=columns_K["answer_words"],
        name_of_answer=answer,
        sources_N=split.places.file_numbers()[rows_K].astype(np.int32),
        source_names=split.places.files,
        languages_N=columns_K["answer_language"],
        field_N=None if data.class_field is None else columns_K["class_"],
        field_names=split.classes,
    )
    kept = [_without_rare(classes) if classes.kind == "language" else classes for classes in found]
    return [classes for classes in kept if len(classes.names) > 1 or classes.can_be_balanced]


def _without_rare(classes: Classes) -> Classes:
    counts_C = classes.counts
    is_of_one_language = counts_C.max(initial=0) >= DOMINANT_SHARE * counts_C.sum()
    smallest = SMALLEST_BESIDE_ONE if is_of_one_language else SMALLEST_LANGUAGE_SHARE
    is_kept_C = counts_C >= smallest * counts_C.sum()
    names = tuple(name for name, is_kept in zip(classes.names, is_kept_C, strict=True) if is_kept)
    number_C = np.where(is_kept_C, np.cumsum(is_kept_C) - 1, NO_CLASS).astype(np.int32)
    of_row_N = np.where(classes.of_row_N == NO_CLASS, NO_CLASS, number_C[classes.of_row_N])
    return Classes(classes.kind, names, of_row_N.astype(np.int32))


def _describe(report: Report, classes: Classes, *, acts: bool, data: DataSection) -> None:
    counts_C = classes.counts.tolist()
    total = sum(counts_C)
    lines = [(name, count, round(100 * count / total, 1)) for name, count in zip(classes.names, counts_C, strict=True)]
    if len(lines) > LISTED_CLASSES:
        between = lines[LISTED_CLASSES - 1 : -1]
        rest = sum(count for _, count, _ in between)
        lines = [
            *lines[: LISTED_CLASSES - 1],
            (f"{len(between)} more", rest, round(100 * rest / total, 1)),
            lines[-1],
        ]
    report.tables.append(Table(_TITLES[classes.kind], ("name", "rows", "%"), tuple(lines)))
    ratio = imbalance(classes)
    if ratio > data.max_class_ratio and not acts:
        what = {"field": "class", "answer": "class", "source": "source", "language": "language"}[classes.kind]
        remedy = (
            "data.balance: downsample, upsample or weight acts on it"
            if classes.can_be_balanced
            else ("if this is not meant, give more of the others; a column named by data.class_field can be balanced")
        )
        report.add_finding(
            Severity.WARNING,
            _CODES[classes.kind],
            f"the {what} '{classes.names[0]}' has {plural(counts_C[0], 'row')} of train, {ratio:.1f} times as many as "
            f"'{classes.names[-1]}' with {counts_C[-1]:,}; more than {data.max_class_ratio:g}:1 leans to the large one",
            remedy=remedy,
        )


def _act(
    report: Report, ledger: Ledger, data: DataSection, classes: Classes, rows_K: NDArray[np.int64]
) -> BalancedRows:
    order_K = ledger.splits["train"].columns_N["order"][rows_K]
    plan = plan_balance(classes, data.balance, data.max_class_ratio, order_K)
    done: Mapping[str, str] = {
        "downsample": f"{plural(int((plan.repeats_N == 0).sum()), 'row')} of the large classes are left out",
        "upsample": f"rows of the small classes are repeated, {int((plan.repeats_N - 1).sum()):,} times in all",
        "weight": f"tokens of the large classes weigh less, down to {plan.weights_N.min() / plan.weights_N.max():.3f} "
        "of those of the smallest",
    }
    left_out, smallest = int((plan.repeats_N == 0).sum()), int(classes.counts[-1])
    most_are_out = left_out > MOST_LEFT_OUT * len(rows_K)
    share = f" ({percent(left_out, len(rows_K))} of {len(rows_K):,})" if left_out else ""
    report.add_finding(
        Severity.WARNING if most_are_out or smallest == 1 else Severity.NOTE,
        "balanced",
        f"the largest class, '{classes.names[0]}', had {plural(int(classes.counts[0]), 'row')}, "
        f"{imbalance(classes):.1f} times as many as the smallest, '{classes.names[-1]}', with {smallest:,}; "
        f"{done[data.balance]}{share}, so that it has {data.max_class_ratio:g} times as much",
        remedy="a class of one row cannot be learned: give it more rows, or join it to another"
        if smallest == 1
        else "data.balance: upsample or weight keeps all rows; so does a larger data.max_class_ratio"
        if most_are_out
        else "",
        count=left_out if data.balance == "downsample" else None,
    )
    if data.balance == "downsample":
        out = rows_K[plan.repeats_N == 0].tolist()
        reason = f"its class has more than {data.max_class_ratio:g} times the rows of the smallest"
        ledger.leave_out("train", out, "balanced", lambda _: reason)
    weights_K = np.repeat(plan.weights_N, plan.repeats_N) if data.balance == "weight" else None
    return BalancedRows(np.repeat(rows_K, plan.repeats_N), weights_K)
