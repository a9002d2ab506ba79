"""Applies the rules that need the whole split: an answer is odd only beside the others."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tunesmith.config import DataSection
from tunesmith.data.checks.dataset_rules import broken_json, language_mix, one_word_answers
from tunesmith.data.checks.language_names import language_name
from tunesmith.data.checks.ledger import Ledger
from tunesmith.data.checks.rules import EXCERPT_CHARACTERS, answers_of, excerpt
from tunesmith.data.checks.training_signal import ENCODED_SPLITS

Find = Callable[[NDArray[np.void]], NDArray[np.bool_]]
"""From the columns of K rows to whether each is at fault."""

_RULES: tuple[tuple[str, Find], ...] = (
    ("one_word_answers", lambda columns_K: one_word_answers(columns_K["answer_words"])),
    ("broken_json", lambda columns_K: broken_json(columns_K["json"])),
    (
        "language_mix",
        lambda columns_K: language_mix(
            columns_K["prompt_language"], columns_K["answer_language"], columns_K["names_language"]
        ),
    ),
)


def apply_set_rules(ledger: Ledger, data: DataSection) -> None:
    """Each rule that is on, over the rows of each split that are kept so far."""
    for rule, find in _RULES:
        mode = getattr(data.rules, rule)
        if mode == "off":
            continue
        for name in (name for name in ENCODED_SPLITS if name in ledger.splits):
            rows_K = ledger.rows(name)
            found = rows_K[find(ledger.splits[name].columns_N[rows_K])]
            ledger.handle(name, found.tolist(), rule, _reason(ledger, name, rule), fix=mode == "fix")


def _reason(ledger: Ledger, name: str, rule: str) -> Callable[[int], str]:
    split = ledger.splits[name]

    def reason(row: int) -> str:
        answer = answers_of(split.examples[row])[-1]
        shown = excerpt(answer, 0, min(len(answer), EXCERPT_CHARACTERS))
        if rule != "language_mix":
            return shown
        asked, answered = (
            language_name(split.columns_N[f"{part}_language"][row].decode()) for part in ("prompt", "answer")
        )
        return f"asked in {asked}, answered in {answered}: {shown}"

    return reason
