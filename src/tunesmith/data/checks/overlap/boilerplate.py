"""What many rows of a set share: the words of a template, of a system prompt, set phrases.

Such words say nothing about whether two rows are alike. They are found by counting runs of five words (ten characters
of a script without spaces) in a sample of rows: the runs that many rows have belong to a template, and so do the words
within them. The sample is the rows with the smallest hashes, so it does not depend on the order of rows.

Rows that are alike share runs too, and in a small set a handful of them are as many as a template's. So two measures
are used. For near-duplicates a run counts as common where more rows have it than a cluster is likely to have. For
passages of a test set it does so earlier, because rows made from a template with slots share whole passages by chance.
What this costs: clusters of near-duplicates that hold 2 % of a set, and 20 rows, are taken for rows of a template; and
a passage that train has in 1 % of its rows, and in five, is no leak, unless the whole row or its prompt is.

Shapes: S rows of the sample, G runs of words, W words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.checks.overlap.distinct import DistinctRows
from tunesmith.data.checks.overlap.hash_index import HashSet
from tunesmith.data.checks.overlap.shingles import WORD_UNITS, Grams, Words, covered, grams_of_units, text_of, words_of
from tunesmith.data.checks.overlap.text_set import TextSet
from tunesmith.data.workers import map_chunks

SAMPLE_ROWS = 20_000
SAMPLE_CHUNK_ROWS = 128

RUN_UNITS = 5 * WORD_UNITS
"""Shorter runs are common in any prose: with three words, one in 30 passages of 12 words did not count in GSM8K. With
six, slots break up what a template repeats."""

SMALLEST_SHARE = 0.02
FEWEST_ROWS = 20
"""What so many rows share, and such a share of them, is a template; in sets of less than 40 rows, what most share."""

SMALLEST_PASSAGE_SHARE = 0.01
FEWEST_PASSAGE_ROWS = 5
"""The same for passages that are looked for in the evaluation sets."""


@dataclass(frozen=True)
class Boilerplate:
    """The runs of words that belong to templates.

    Args:
        runs: their hashes.
        passage_runs: of those as well that count as common only in passages.
    """

    runs: HashSet
    passage_runs: HashSet

    @staticmethod
    def runs_in(words: Words) -> Grams:
        """The runs that are looked up in `runs` and `passage_runs`."""
        return grams_of_units(words, RUN_UNITS)

    def words_of_template(self, runs: Grams) -> NDArray[np.bool_]:
        """Whether each word belongs to a template."""
        return covered(runs, runs.whole_W & self.runs.contains(runs.hashes_W))

    def words_of_common_passages(self, runs: Grams) -> NDArray[np.bool_]:
        """Whether each word belongs to what passages may share by chance."""
        return covered(runs, runs.whole_W & self.passage_runs.contains(runs.hashes_W))


def shared_by_many(count: int) -> int:
    """How many of `count` rows share what belongs to a template."""
    return max(ceil(SMALLEST_SHARE * count), min(FEWEST_ROWS, count // 2 + 1), FEWEST_PASSAGE_ROWS)


def _shared_by_some(count: int) -> int:
    return max(ceil(SMALLEST_PASSAGE_SHARE * count), FEWEST_PASSAGE_ROWS)


def common_prompts(distinct: DistinctRows) -> NDArray[np.uint64]:
    """Hashes of prompts that so many distinct rows have that they are instructions for all of them, rising."""
    prompts, counts = np.unique(distinct.rows.prompts_N[distinct.kept], return_counts=True)
    return prompts[counts >= max(FEWEST_ROWS, ceil(SMALLEST_SHARE * len(distinct.kept)))]


def find_boilerplate(train: DistinctRows, others: Sequence[DistinctRows], *, num_proc: int | None) -> Boilerplate:
    """Counts runs of words in samples of each set.

    The others add what a benchmark asks with, where it is common by the stricter measure: several questions about one
    text in a test set are no template.

    Args:
        train: the rows that are audited.
        others: the evaluation sets.
        num_proc: processes to use; None takes one for each core.
    """
    runs, counts, rows = _counted(train, num_proc)
    in_train = runs[counts >= shared_by_many(rows)]
    in_passages = runs[counts >= _shared_by_some(rows)]
    in_others = [np.zeros(0, dtype=np.uint64)]
    for other in others:
        runs, counts, rows = _counted(other, num_proc)
        in_others.append(runs[counts >= shared_by_many(rows)])
    return Boilerplate(
        HashSet(np.unique(np.concatenate([in_train, *in_others]))),
        HashSet(np.unique(np.concatenate([in_train, in_passages, *in_others]))),
    )


def _counted(distinct: DistinctRows, num_proc: int | None) -> tuple[NDArray[np.uint64], NDArray[np.int64], int]:
    """The runs in a sample, in how many rows each is, and how many rows are in the sample."""
    by_hash = np.argsort(distinct.orders, kind="stable")
    sample_S = np.sort(distinct.kept[by_hash[:SAMPLE_ROWS]])
    results = map_chunks(_runs, None, _texts(distinct.rows, sample_S), num_proc=num_proc)
    runs, counts = np.unique(np.concatenate([np.zeros(0, dtype=np.uint64), *results]), return_counts=True)
    return runs, counts, len(sample_S)


def _texts(rows: TextSet, sample_S: NDArray[np.int64]) -> Iterator[list[str]]:
    for start in range(0, len(sample_S), SAMPLE_CHUNK_ROWS):
        yield [text_of(rows.examples[row]) for row in sample_S[start : start + SAMPLE_CHUNK_ROWS].tolist()]


def _runs(_: None, texts: list[str]) -> NDArray[np.uint64]:
    """The runs of each text, each once a text."""
    words = words_of(texts)
    runs = Boilerplate.runs_in(words)
    hashes_G, rows_G = runs.hashes_W[runs.whole_W], words.rows[runs.whole_W]
    order = np.lexsort((hashes_G, rows_G))
    hashes_G, rows_G = hashes_G[order], rows_G[order]
    is_first_G = np.ones(len(order), dtype=np.bool_)
    is_first_G[1:] = (hashes_G[1:] != hashes_G[:-1]) | (rows_G[1:] != rows_G[:-1])
    return hashes_G[is_first_G]
