"""The sets of the ground truth: what each holds, how it is written, and what is planted in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.planted.clean import Pair, chinese, classification, english, json_task, take
from tests.planted.faults import (
    ANY_ROW,
    JSON,
    LINES,
    PAIRS,
    PROSE,
    Kind,
    Planted,
    Shape,
    as_alpaca,
    as_messages,
    as_question_answer,
    plant,
)
from tests.planted.texts import Setting

MAX_LENGTH = 3072
"""Longest example: clean rows fit, also by the byte; `faults.LONG` does not."""

ENGLISH = Setting()


@dataclass(frozen=True)
class Corpus:
    """A set of the ground truth.

    Args:
        name: what it is called in tables.
        rows: its clean rows, without end, from a seed.
        shape: how a row is written.
        kinds: what can be planted.
        setting: its language, and whether answers are for machines.
    """

    name: str
    rows: Callable[[int], Iterator[Pair]]
    shape: Shape
    kinds: Sequence[Kind]
    setting: Setting = ENGLISH

    def plant(self, each: int, *, train: int | None = None, seed: int = 0) -> Planted:
        """Clean rows with `each` faults of every kind.

        Args:
            each: faults of a kind.
            train: clean rows of train; by default three times what the faults take.
            seed: the same gives the same bytes.
        """
        spent = each * (len(self.kinds) + len(PAIRS))
        sizes = {
            "train": train if train is not None else 3 * spent,
            "validation": 2 * each + 20,
            "test": each * len(self.kinds) // 3 + 20,
        }
        if sizes["train"] < spent:
            raise ValueError(f"train needs {spent} rows for so many faults")
        source = self.rows(seed)
        clean = {split: take(source, count) for split, count in sizes.items()}
        return plant(clean, self.kinds, each, seed=seed, shape=self.shape, setting=self.setting)


CORPORA = {
    corpus.name: corpus
    for corpus in (
        Corpus("english", english, as_messages, (*PAIRS, *ANY_ROW, *PROSE, *LINES)),
        Corpus("chinese", chinese, as_alpaca, (*PAIRS, *ANY_ROW, *PROSE, *LINES), Setting(chinese=True)),
        Corpus("json", json_task, as_alpaca, (*PAIRS, *ANY_ROW, *JSON, *LINES), Setting(prompt_only=True)),
        Corpus(
            "classification", classification, as_question_answer, (*PAIRS, *ANY_ROW, *LINES), Setting(prompt_only=True)
        ),
    )
}
"""The sets by name."""


def recipe_for(paths: dict[str, Path], model: Path) -> dict[str, Any]:
    """A recipe that checks planted files: bad rows are skipped, every rule is as it is by default.

    Args:
        paths: the file of each split.
        model: a folder with config.json and a tokenizer, whose context holds `MAX_LENGTH` tokens.
    """
    data: dict[str, Any] = {split: str(path) for split, path in paths.items()}
    return {
        "model": {"name": str(model)},
        "data": {**data, "on_bad_row": "skip", "max_length": MAX_LENGTH},
        "evaluate": {"latency_requests": 0},
    }
