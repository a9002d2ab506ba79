"""What of train also stands in an evaluation set.

Three kinds are told apart. The same row, or the same prompt with whatever answer; a near-duplicate; a passage of at
least 12 words, or 24 characters of a script without spaces, that is also in a row of an evaluation set. A passage of
which more than half is common in train, as in rows made from a template, does not count, nor do mere numbers.

Shapes: N rows of train, E rows of evaluation; of a chunk W words, Q passages, F rows with a finding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.checks.overlap.boilerplate import common_prompts
from tunesmith.data.checks.overlap.distinct import DistinctRows
from tunesmith.data.checks.overlap.hash_index import OwnedHashes
from tunesmith.data.checks.overlap.shingles import WORD_UNITS, Words, grams_of_units, sums_before

Number = TypeVar("Number", np.int64, np.uint64)

NO_LEAK, EXACT, NEAR, NGRAM = range(4)
"""Kinds of leakage, the strongest first."""

PASSAGE_UNITS = 12 * WORD_UNITS

LEAST_OWN_UNITS = PASSAGE_UNITS // 2
"""Of a passage that counts, so much is not common to many rows of train."""

LEAST_WORD_UNITS = 2 * WORD_UNITS
"""Of a passage that counts, so much is no number: what counts from 1 to 12 is no leak."""


@dataclass(frozen=True)
class Leaks:
    """For each row of train whether it leaks, and where what it repeats stands.

    Args:
        kind_N: NO_LEAK, EXACT, NEAR or NGRAM; the strongest.
        set_N: the index of the evaluation set, -1 for none.
        row_N: the row there, -1 for none; of several the one with the smallest hash.
    """

    kind_N: NDArray[np.uint8]
    set_N: NDArray[np.int16]
    row_N: NDArray[np.int64]

    @classmethod
    def none(cls, count: int) -> Leaks:
        """No leaks among `count` rows."""
        return cls(np.zeros(count, np.uint8), np.full(count, -1, np.int16), np.full(count, -1, np.int64))

    def add(self, kind: int, rows: NDArray[np.int64], sets: NDArray[np.int64], there: NDArray[np.int64]) -> None:
        """Notes leaks of rows that have none so far."""
        new = self.kind_N[rows] == NO_LEAK
        self.kind_N[rows[new]] = kind
        self.set_N[rows[new]] = sets[new]
        self.row_N[rows[new]] = there[new]

    def copy_from(self, original_of: NDArray[np.int64]) -> None:
        """Notes for each row that is a copy what was found of its original."""
        for column_N in (self.set_N, self.row_N, self.kind_N):
            column_N[:] = np.where(self.kind_N == NO_LEAK, column_N[original_of], column_N)


@dataclass(frozen=True)
class EvaluationRows:
    """The distinct rows of all evaluation sets, in order of their hashes; E rows.

    Args:
        set_E: the set of each.
        row_E: its row there.
        number_E: its number where the distinct rows of all sets are counted through, set by set.
        order_E: its `order_N`.
    """

    set_E: NDArray[np.int64]
    row_E: NDArray[np.int64]
    number_E: NDArray[np.int64]
    order_E: NDArray[np.uint64]

    @classmethod
    def of(cls, others: Sequence[DistinctRows]) -> EvaluationRows:
        """Those of `others`."""
        set_E = _joined([np.full(len(other.kept), number) for number, other in enumerate(others)], np.int64)
        row_E = _joined([other.kept for other in others], np.int64)
        order_E = _joined([other.orders for other in others], np.uint64)
        number_E = np.lexsort((row_E, set_E, order_E))
        return cls(set_E[number_E], row_E[number_E], number_E, order_E[number_E])


def _joined(columns: Sequence[NDArray[Number]], kind: type[Number]) -> NDArray[Number]:
    return np.concatenate([np.zeros(0, kind), *columns])


def add_exact_leaks(
    leaks: Leaks, train: DistinctRows, others: Sequence[DistinctRows], evaluation: EvaluationRows
) -> None:
    """Rows of train whose prompt and answer, or prompt alone, stand in an evaluation set.

    A prompt that many rows of train have, and several of evaluation, is a template and no leak.
    """
    contents_E = _joined([other.rows.contents_N[other.kept] for other in others], np.uint64)[evaluation.number_E]
    prompts_E = _joined([other.rows.prompts_N[other.kept] for other in others], np.uint64)[evaluation.number_E]
    prompts, counts = np.unique(prompts_E, return_counts=True)
    templates = np.intersect1d(common_prompts(train), prompts[counts > 1])
    prompts_E = np.where(np.isin(prompts_E, templates), 0, prompts_E)
    for ours_N, theirs_E in ((train.rows.contents_N, contents_E), (train.rows.prompts_N, prompts_E)):
        values, first_of_each = np.unique(theirs_E, return_index=True)
        if not len(values):
            continue
        at_N = np.minimum(np.searchsorted(values, ours_N), len(values) - 1)
        rows = np.flatnonzero((values[at_N] == ours_N) & (ours_N != 0))
        there = first_of_each[at_N[rows]]
        leaks.add(EXACT, rows, evaluation.set_E[there], evaluation.row_E[there])


def passages_of(words: Words, common_W: NDArray[np.bool_]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """The hashes of all runs of words that are long enough to leak and not common, and the row of each.

    Args:
        words: the words of some rows.
        common_W: which of them are common; see `Boilerplate.words_of_common_passages`.
    """
    grams = grams_of_units(words, PASSAGE_UNITS)
    own_before = sums_before(np.where(common_W, 0, words.units))
    named_before = sums_before(np.where(words.is_number, 0, words.units))
    kept_W = grams.whole_W & (own_before[grams.ends_W] - own_before[:-1] >= LEAST_OWN_UNITS)
    kept_W &= named_before[grams.ends_W] - named_before[:-1] >= LEAST_WORD_UNITS
    return grams.hashes_W[kept_W], words.rows[kept_W]


def passages_found(
    hashes_Q: NDArray[np.uint64], rows_Q: NDArray[np.int64], evaluation: OwnedHashes
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Rows of a chunk that have passages of evaluation rows.

    Args:
        hashes_Q: what `passages_of` gives.
        rows_Q: the same.
        evaluation: the passages of the evaluation rows, their owners.

    Returns:
        The F rows, rising, and for each the owner of most of its passages, the smallest of several.
    """
    found, owners = evaluation.find(hashes_Q)
    pairs, counts = np.unique(rows_Q[found] << 32 | owners, return_counts=True)
    rows = pairs >> 32
    best_first = np.lexsort((pairs, -counts, rows))
    rows_F, first_F = np.unique(rows[best_first], return_index=True)
    return rows_F, (pairs[best_first][first_F] & 0xFFFFFFFF).astype(np.int32)
