"""Rows of train that repeat others: exactly, nearly, or in the prompt only.

Near-duplicates are found by MinHash and verified: a pair is one where `SMALLEST_SIMILARITY` of the shingles that either
has are in both. Clusters hold whatever such pairs join.

Shapes: N rows of train, K of them distinct, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.checks.overlap.boilerplate import Boilerplate, common_prompts
from tunesmith.data.checks.overlap.distinct import DistinctRows
from tunesmith.data.checks.overlap.shingles import words_of
from tunesmith.data.checks.overlap.signatures import FEWEST_SHINGLES, shingles_of
from tunesmith.data.workers import map_chunks

SMALLEST_SIMILARITY = 0.55
"""Texts in which exactly every tenth word differs are above in 99 of 100 cases. In GSM8K and Alpaca every pair above is
one text with other numbers or names, or the question asked the other way round."""

PAIRS_AT_ONCE = 64

ReadText = Callable[[int], str]


@dataclass(frozen=True)
class Duplicates:
    """For each row of train which other it repeats, or -1.

    Args:
        exact_of_N: the row that stays in place of this one, which is equal to it after normalisation: the one with the
            smallest hash, which has -1 itself.
        near_of_N: the row with the smallest hash of the cluster of near-duplicates; -1 for itself, for rows in none and
            for exact copies.
        conflict_of_N: the row with the smallest hash that has the same prompt and another answer.
    """

    exact_of_N: NDArray[np.int64]
    near_of_N: NDArray[np.int64]
    conflict_of_N: NDArray[np.int64]


def exact_copies(train: DistinctRows) -> NDArray[np.int64]:
    """`Duplicates.exact_of_N`."""
    original_of = train.original_of
    return np.where(original_of == np.arange(len(original_of)), -1, original_of)


def conflicting_answers(train: DistinctRows) -> NDArray[np.int64]:
    """`Duplicates.conflict_of_N`.

    Many answers to a prompt that a large share of all rows has are not meant to be the same; they are no conflict.
    """
    rows = train.rows
    conflict_of_N = np.full(len(rows.prompts_N), -1, dtype=np.int64)
    asked = np.flatnonzero((rows.prompts_N != 0) & ~np.isin(rows.prompts_N, common_prompts(train)))
    by_prompt = asked[np.lexsort((asked, rows.order_N[asked], rows.prompts_N[asked]))]
    prompts, answers = rows.prompts_N[by_prompt], rows.answers_N[by_prompt]
    _, first, group = np.unique(prompts, return_index=True, return_inverse=True)
    differs = answers != answers[first[group]]
    # The first row with another answer than the first row of all; where there is none, no row of the group conflicts.
    second = np.full(len(first), len(by_prompt))
    np.minimum.at(second, group[differs], np.flatnonzero(differs))
    has_conflict = second[group] < len(by_prompt)
    other = np.where(differs, first[group], second[group])
    conflict_of_N[by_prompt[has_conflict]] = by_prompt[other[has_conflict]]
    return conflict_of_N


def alike(
    first_P: NDArray[np.int64],
    second_P: NDArray[np.int64],
    read: ReadText,
    boilerplate: Boilerplate,
    *,
    num_proc: int | None,
) -> Iterator[tuple[int, int]]:
    """The pairs that are near-duplicates, by their shingles.

    Args:
        first_P: a row of each pair.
        second_P: the other.
        read: gives the text of a row.
        boilerplate: what does not count.
        num_proc: processes to use; None takes one for each core.
    """
    parts = [slice(start, start + PAIRS_AT_ONCE) for start in range(0, len(first_P), PAIRS_AT_ONCE)]
    texts = (_interleaved(first_P[part], second_P[part], read) for part in parts)
    for part, similarities in zip(parts, map_chunks(_similarities, boilerplate, texts, num_proc=num_proc), strict=True):
        near = np.array(similarities) >= SMALLEST_SIMILARITY
        yield from zip(first_P[part][near].tolist(), second_P[part][near].tolist(), strict=True)


def _interleaved(first_P: NDArray[np.int64], second_P: NDArray[np.int64], read: ReadText) -> list[str]:
    return [read(row) for pair in zip(first_P.tolist(), second_P.tolist(), strict=True) for row in pair]


def _similarities(boilerplate: Boilerplate, texts: list[str]) -> list[float]:
    """For each two texts that follow each other the share of shingles in both, of those in any; 0 where one has few."""
    shingles = shingles_of(words_of(texts), boilerplate)
    rows = [np.unique(shingles.hashes_H[start:end]) for start, end in _ranges(shingles.offsets)]
    return [_jaccard(one, other) for one, other in zip(rows[::2], rows[1::2], strict=True)]


def _ranges(offsets: NDArray[np.int64]) -> list[tuple[int, int]]:
    return list(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True))


def _jaccard(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> float:
    if min(len(one), len(other)) < FEWEST_SHINGLES:
        return 0.0
    both = len(np.intersect1d(one, other, assume_unique=True))
    return both / (len(one) + len(other) - both)
