"""How long prompts, answers and whole examples are: a table, charts, and advice."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.checks.ledger import Ledger
from tunesmith.data.checks.training_signal import ENCODED_SPLITS
from tunesmith.data.lengths import quantile
from tunesmith.report import Report, Series, Severity, Table
from tunesmith.report.charts import nice_step
from tunesmith.report.text import percent

HISTOGRAM_BARS = 20
"""At most; it depends on what width is a round number."""

ADVISED_TOKENS = (256, 1024)
"""Lengths that suit a fine-tune: shorter examples teach little each, longer ones cost memory and dilute the target."""

OUTSIDE_SHARE = 0.9
"""Share of the examples outside `ADVISED_TOKENS` above which it is worth a word."""


def describe_lengths(report: Report, ledger: Ledger, max_length: int) -> None:
    """Adds figures, a table over the kept rows before any cut, charts of train, and advice."""
    rows = []
    for name in (name for name in ledger.splits if name in ENCODED_SPLITS):
        for what, tokens_K in _measures(ledger, name).items():
            if len(tokens_K):
                values = tokens_K.tolist()
                rows.append(
                    (
                        name,
                        what,
                        round(sum(values) / len(values), 1),
                        quantile(values, 0.5),
                        quantile(values, 0.9),
                        quantile(values, 0.99),
                        max(values),
                        sum(values),
                    )
                )
    columns = ("split", "part", "mean", "median", "90 %", "99 %", "longest", "in all")
    report.tables.append(Table("Tokens of an example", columns, tuple(rows)))
    measures = _measures(ledger, "train")
    report.add_figure("max_length", "Longest example allowed", max_length, "tokens")
    report.add_figure("train_tokens", "Tokens in train", int(measures["whole"].sum(dtype=np.int64)))
    for what, tokens_K in measures.items():
        report.series.append(_histogram(what, tokens_K))
    _advise(report, measures["whole"])


def _measures(ledger: Ledger, name: str) -> dict[str, NDArray[np.int64]]:
    columns_K = ledger.splits[name].columns_N[ledger.rows(name)]
    tokens_K, targets_K = columns_K["tokens"].astype(np.int64), columns_K["targets"].astype(np.int64)
    return {"prompt": tokens_K - targets_K, "answer": targets_K, "whole": tokens_K}


_CHARTS = {
    "whole": "Length of the training examples",
    "prompt": "Length of their prompts",
    "answer": "Length of their answers",
}


def _histogram(what: str, tokens_K: NDArray[np.int64]) -> Series:
    width = max(1, round(nice_step(0, max(int(tokens_K.max()), 1), HISTOGRAM_BARS)))  # round marks on the axis
    counts = np.bincount(np.maximum(tokens_K - 1, 0) // width)
    return Series(
        _CHARTS[what],
        "examples",
        x=tuple(float((bar + 1) * width) for bar in range(len(counts))),
        y=tuple(map(float, counts)),
        x_label="tokens, up to",
        y_label="examples",
        kind="bar",
    )


def _advise(report: Report, tokens_K: NDArray[np.int64]) -> None:
    low, high = ADVISED_TOKENS
    shorter, longer, total = int((tokens_K < low).sum()), int((tokens_K > high).sum()), len(tokens_K)
    outside = shorter + longer
    if outside <= OUTSIDE_SHARE * total:
        return
    who = f"all {total:,}" if outside == total else f"{outside:,} of {total:,} ({percent(outside, total)})"
    if shorter and longer:
        how = f"outside {low} to {high:,} tokens, {shorter:,} shorter and {longer:,} longer"
    else:
        how = f"shorter than {low} tokens" if shorter else f"longer than {high:,} tokens"
    median = quantile(tokens_K.tolist(), 0.5)
    report.add_finding(
        Severity.NOTE,
        "length-outside-advice",
        f"{who} training examples are {how}; half have at most {median:,}",
        remedy="richer answers teach more each; for short tasks this is as it is"
        if shorter >= longer
        else "split long documents, or cut what the answer does not need",
        count=outside,
    )
