"""All that compares rows with each other: duplicates within train, leakage from train into evaluation sets.

The texts are read once for their signatures and passages, in worker processes; what is kept of them lies on disk. Only
the texts of pairs that may be near-duplicates are read again. The result does not depend on the order of rows, nor on
how many processes there are.

Shapes: N rows of train, M rows with a signature, R rows of a chunk, E distinct rows of the evaluation sets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.checks.overlap.boilerplate import Boilerplate, find_boilerplate
from tunesmith.data.checks.overlap.candidates import Candidates, find_candidates
from tunesmith.data.checks.overlap.clusters import Clusters
from tunesmith.data.checks.overlap.distinct import DistinctRows
from tunesmith.data.checks.overlap.duplicates import (
    SMALLEST_SIMILARITY,
    Duplicates,
    alike,
    conflicting_answers,
    exact_copies,
)
from tunesmith.data.checks.overlap.hash_index import OwnedHashes, OwnedHashesWriter
from tunesmith.data.checks.overlap.leakage import (
    NEAR,
    NGRAM,
    NO_LEAK,
    EvaluationRows,
    Leaks,
    add_exact_leaks,
    passages_found,
    passages_of,
)
from tunesmith.data.checks.overlap.shingles import text_of, words_of
from tunesmith.data.checks.overlap.signatures import FEWEST_SHINGLES, Shingles, SignatureStore, bands_of
from tunesmith.data.checks.overlap.text_set import TextSet
from tunesmith.data.workers import map_chunks
from tunesmith.progress import Task, task


@dataclass(frozen=True)
class Overlaps:
    """What rows have in common.

    Args:
        duplicates: within train.
        leaks: of train into the evaluation sets.
        template_share: the share of train's words that belong to a template; 0 where it was not looked for.
    """

    duplicates: Duplicates
    leaks: Leaks
    template_share: float


@dataclass(frozen=True)
class _Comparison:
    """What all chunks of a set share.

    Args:
        boilerplate: what does not count.
        collect: give the passages, which are those of evaluation rows.
        evaluation: look passages up here; None looks none up.
    """

    boilerplate: Boilerplate
    collect: bool
    evaluation: OwnedHashes | None


@dataclass(frozen=True)
class _Compared:
    """What a chunk gives.

    Args:
        row_count: R.
        signed: the rows with a signature.
        bands: their bands.
        low: the low bytes of their signatures.
        passages: hashes and rows of passages, or none.
        found: rows with passages of evaluation rows, and these.
        words: how many words there are.
        template_words: how many of them belong to a template.
    """

    row_count: int
    signed: NDArray[np.int64]
    bands: NDArray[np.uint64]
    low: NDArray[np.uint8]
    passages: tuple[NDArray[np.uint64], NDArray[np.int64]] | None
    found: tuple[NDArray[np.int64], NDArray[np.int32]] | None
    words: int
    template_words: int


def _compare(shared: _Comparison, texts: list[str]) -> _Compared:
    words = words_of(texts)
    runs = shared.boilerplate.runs_in(words)
    is_template_W = shared.boilerplate.words_of_template(runs)
    shingles = Shingles(words, is_template_W)
    signed = np.flatnonzero(shingles.counts >= FEWEST_SHINGLES)
    bands, low = bands_of(shingles)
    passages = found = None
    if shared.collect or shared.evaluation is not None:
        passages = passages_of(words, shared.boilerplate.words_of_common_passages(runs))
    if shared.evaluation is not None and passages is not None:
        found = passages_found(*passages, shared.evaluation)
    return _Compared(
        row_count=len(texts),
        signed=signed,
        bands=bands[signed],
        low=low[signed],
        passages=passages if shared.collect else None,
        found=found,
        words=len(words),
        template_words=int(np.count_nonzero(is_template_W)),
    )


class _Search:
    """The search for near-duplicates and shared passages.

    Args:
        train: the rows that are audited.
        others: the evaluation sets.
        evaluation: their rows.
        folder: a scratch folder.
        num_proc: processes to use; None takes one for each core.
    """

    def __init__(
        self,
        train: DistinctRows,
        others: Sequence[DistinctRows],
        evaluation: EvaluationRows,
        folder: Path,
        num_proc: int | None,
    ) -> None:
        self._train = train
        self._others = others
        self._evaluation = evaluation
        self._folder = folder
        self._num_proc = num_proc
        self._boilerplate = find_boilerplate(train, others, num_proc=num_proc)
        self._store = SignatureStore(folder / "signatures")
        self._signed_evaluation: list[NDArray[np.int64]] = []
        self._signed_train: list[NDArray[np.int64]] = []
        self._found: list[tuple[NDArray[np.int64], NDArray[np.int32]]] = []
        self._words = self._template_words = 0

    @property
    def template_share(self) -> float:
        """The share of train's words that belong to a template."""
        return self._template_words / max(self._words, 1)

    def read(self) -> None:
        """Reads every text once."""
        total = len(self._train.kept) + len(self._evaluation.row_E)
        with task("Comparing rows", total, "rows") as shown:
            passages = self._read_evaluation(shown) if self._others else None
            self._read_train(passages, shown)
        self._store.finish()

    def _read_evaluation(self, shown: Task) -> OwnedHashes:
        """Signatures and passages of the evaluation rows."""
        writer = OwnedHashesWriter(self._folder / "passages")
        place_of_number = np.argsort(self._evaluation.number_E)
        shared = _Comparison(self._boilerplate, collect=True, evaluation=None)
        chunks = (texts for other in self._others for texts in other.chunks())
        first = 0
        for compared in map_chunks(_compare, shared, chunks, num_proc=self._num_proc):
            places_R = place_of_number[first : first + compared.row_count]
            self._store.add(compared.bands, compared.low)
            self._signed_evaluation.append(places_R[compared.signed])
            if compared.passages is not None:
                hashes, rows = compared.passages
                writer.add(hashes, places_R[rows].astype(np.int32))
            first += compared.row_count
            shown.advance(compared.row_count)
        return writer.finish()

    def _read_train(self, passages: OwnedHashes | None, shown: Task) -> None:
        """Signatures of train, and which of its rows have passages of evaluation rows."""
        shared = _Comparison(self._boilerplate, collect=False, evaluation=passages)
        first = 0
        for compared in map_chunks(_compare, shared, self._train.chunks(), num_proc=self._num_proc):
            rows_R = self._train.kept[first : first + compared.row_count]
            self._store.add(compared.bands, compared.low)
            self._signed_train.append(rows_R[compared.signed])
            if compared.found is not None:
                self._found.append((rows_R[compared.found[0]], compared.found[1]))
            self._words += compared.words
            self._template_words += compared.template_words
            first += compared.row_count
            shown.advance(compared.row_count)

    def compare(self, leaks: Leaks, *, near: bool) -> NDArray[np.int64]:
        """Verifies what the signatures say; adds the leaks, exact copies left out.

        Args:
            leaks: the exact ones so far.
            near: whether to look for near-duplicates within train.

        Returns:
            `Duplicates.near_of_N`.
        """
        signed = _SignedRows(self._train, self._others, self._evaluation, self._signed_train, self._signed_evaluation)
        within, across = find_candidates(
            self._store,
            signed.at_hash_order_M,
            signed.in_train_M,
            smallest_similarity=SMALLEST_SIMILARITY,
            within_train=near,
        )
        near_of_N = self._near_duplicates(signed, within)
        self._near_leaks(signed, across, leaks)
        for rows, places in self._found:
            leaks.add(NGRAM, rows, self._evaluation.set_E[places], self._evaluation.row_E[places])
        return near_of_N

    def _near_duplicates(self, signed: _SignedRows, within: Candidates) -> NDArray[np.int64]:
        clusters = Clusters(len(signed.in_train_M))
        for first, second in within.by_place():
            smallest_M = clusters.smallest()
            apart = smallest_M[first] != smallest_M[second]
            for one, other in self._alike(signed, first[apart], second[apart]):
                clusters.join(one, other)
        near_of_N = np.full(len(self._train.original_of), -1, dtype=np.int64)
        smallest_M = clusters.smallest()
        joined = np.flatnonzero(smallest_M != np.arange(len(smallest_M)))
        near_of_N[signed.row_M[joined]] = signed.row_M[smallest_M[joined]]
        return near_of_N

    def _near_leaks(self, signed: _SignedRows, across: Candidates, leaks: Leaks) -> None:
        for first, second in across.by_place():
            undecided = leaks.kind_N[signed.row_M[first]] == NO_LEAK
            pairs = np.array(list(self._alike(signed, first[undecided], second[undecided])), dtype=np.int64)
            rows, places = signed.row_M[pairs.reshape(-1, 2)].T
            leaks.add(NEAR, rows, self._evaluation.set_E[places], self._evaluation.row_E[places])

    def _alike(
        self, signed: _SignedRows, first_P: NDArray[np.int64], second_P: NDArray[np.int64]
    ) -> Iterator[tuple[int, int]]:
        return alike(first_P, second_P, signed.text, self._boilerplate, num_proc=self._num_proc)


class _SignedRows:
    """The rows with a signature, in order of their hashes: where each stands.

    Args:
        train: the rows that are audited.
        others: the evaluation sets.
        evaluation: their rows.
        signed_train: the rows of train that have a signature, in order of reading.
        signed_evaluation: the places in `evaluation` of those that have one; they were read before.

    Attributes:
        at_hash_order_M: for each row its number in the order of reading.
        in_train_M: whether it is of train.
        row_M: its row in train, or its place in `evaluation`.
    """

    def __init__(
        self,
        train: DistinctRows,
        others: Sequence[DistinctRows],
        evaluation: EvaluationRows,
        signed_train: Sequence[NDArray[np.int64]],
        signed_evaluation: Sequence[NDArray[np.int64]],
    ) -> None:
        self._train = train
        self._others = others
        self._evaluation = evaluation
        places = np.concatenate([np.zeros(0, np.int64), *signed_evaluation])
        rows = np.concatenate([np.zeros(0, np.int64), *signed_train])
        in_train = np.repeat((False, True), (len(places), len(rows)))
        orders = np.concatenate((evaluation.order_E[places], train.rows.order_N[rows]))
        row = np.concatenate((places, rows))
        # A row of train and one of evaluation may have the same hash, and so may two of evaluation, which are in order.
        self.at_hash_order_M = np.lexsort((row, in_train, orders))
        self.in_train_M = in_train[self.at_hash_order_M]
        self.row_M = row[self.at_hash_order_M]

    def text(self, number: int) -> str:
        """The text of a row."""
        row = int(self.row_M[number])
        if self.in_train_M[number]:
            return text_of(self._train.rows.examples[row])
        other = self._others[int(self._evaluation.set_E[row])]
        return text_of(other.rows.examples[int(self._evaluation.row_E[row])])


def find_overlaps(
    train: TextSet, others: Sequence[TextSet], *, folder: Path, num_proc: int | None, near: bool, leakage: bool
) -> Overlaps:
    """Compares the rows of train with each other and with those of the evaluation sets.

    Args:
        train: the rows that are audited.
        others: validation, test and benchmarks.
        folder: an empty folder for files that are of no use afterwards.
        num_proc: processes to use; None takes one for each core.
        near: whether to look for near-duplicates within train. Exact ones and conflicts need no texts and are always
            looked for.
        leakage: whether to compare train with the others.

    Raises:
        DataError: a process was killed.
        DiskError: the disk is full or fails.
    """
    distinct = DistinctRows(train)
    evaluation_sets = [DistinctRows(other) for other in others] if leakage else []
    evaluation = EvaluationRows.of(evaluation_sets)
    leaks = Leaks.none(len(train.order_N))
    add_exact_leaks(leaks, distinct, evaluation_sets, evaluation)
    near_of_N = np.full(len(train.order_N), -1, dtype=np.int64)
    template_share = 0.0
    if near or evaluation_sets:
        search = _Search(distinct, evaluation_sets, evaluation, folder, num_proc)
        search.read()
        template_share = search.template_share
        near_of_N = search.compare(leaks, near=near)
    leaks.copy_from(distinct.original_of)
    duplicates = Duplicates(exact_copies(distinct), near_of_N, conflicting_answers(distinct))
    return Overlaps(duplicates, leaks, template_share)
