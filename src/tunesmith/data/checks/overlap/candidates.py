"""Pairs of rows whose signatures say that they may be alike.

Rows that agree in a band lie in one bucket. Comparing all with all there would be quadratic where many rows are alike,
so each row is compared with its neighbours in the bucket only, in order of another band and then of the rows' hashes:
those that are alike come to lie together. Of what remains a row keeps its best few partners, so memory is bounded.

Shapes: M rows with a signature, in order of their hashes: row m comes before row m + 1. P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.checks.overlap.signatures import BANDS, VALUES, SignatureStore

NEIGHBOURS = 2
"""Rows of train before a row in its bucket that it is compared with."""

PARTNERS = 4
"""Pairs kept of each row, those with the most equal values."""

ESTIMATE_MARGIN = 0.12
"""An estimate from 128 values is off by 0.04 (standard deviation); what it rejects is below by three of them."""

COMPARED_AT_ONCE = 100_000
PENDING_PAIRS = 4_000_000

_ROW_BITS = 28
_COUNT_BITS = 8
_ROW_MASK = np.uint64(2**_ROW_BITS - 1)
_FOLLOWING_BITS = np.uint64(24)


class Candidates:
    """Pairs of rows, each of a first row, its partner and the number of values in which they agree.

    A pair is packed into 64 bits, so that sorting puts together the pairs of a first row, the best of them in front.

    Args:
        low_MV: the lowest byte of each value of the signatures.
        at_hash_order_M: the row of `low_MV` for each row in order of hashes.
        least_equal: values that must agree.
    """

    def __init__(self, low_MV: NDArray[np.uint8], at_hash_order_M: NDArray[np.int64], least_equal: int) -> None:
        if len(low_MV) > 2**_ROW_BITS:
            raise ValueError(f"more than {2**_ROW_BITS} rows")
        self._low_MV = low_MV
        self._at_M = at_hash_order_M
        self._least_equal = least_equal
        self._kept = np.zeros(0, dtype=np.uint64)
        self._pending: list[NDArray[np.uint64]] = []
        self._pending_count = 0

    def add(self, first_P: NDArray[np.int64], partner_P: NDArray[np.int64]) -> None:
        """Adds the pairs that agree in enough values."""
        for start in range(0, len(first_P), COMPARED_AT_ONCE):
            first, partner = first_P[start : start + COMPARED_AT_ONCE], partner_P[start : start + COMPARED_AT_ONCE]
            equal = np.count_nonzero(self._low_MV[self._at_M[first]] == self._low_MV[self._at_M[partner]], axis=1)
            kept = equal >= self._least_equal
            packed = first[kept].astype(np.uint64) << np.uint64(_ROW_BITS + _COUNT_BITS)
            packed |= (VALUES - equal[kept]).astype(np.uint64) << np.uint64(_ROW_BITS)
            packed |= partner[kept].astype(np.uint64)
            self._pending.append(packed)
            self._pending_count += len(packed)
            if self._pending_count > PENDING_PAIRS:
                self._keep_best()

    def _keep_best(self) -> None:
        packed = np.unique(np.concatenate([self._kept, *self._pending]))
        self._kept = packed[_places(packed) < PARTNERS]
        self._pending, self._pending_count = [], 0

    def by_place(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """First rows and partners: of each row the best pair, then of each the second, ..."""
        self._keep_best()
        places = _places(self._kept)
        for place in range(PARTNERS):
            packed = self._kept[places == place]
            yield (
                (packed >> np.uint64(_ROW_BITS + _COUNT_BITS)).astype(np.int64),
                (packed & _ROW_MASK).astype(np.int64),
            )


def _places(packed: NDArray[np.uint64]) -> NDArray[np.int64]:
    """For each pair how many of the same first row come before it."""
    first = packed >> np.uint64(_ROW_BITS + _COUNT_BITS)
    return np.arange(len(packed)) - np.searchsorted(first, first)


def find_candidates(
    store: SignatureStore,
    at_hash_order_M: NDArray[np.int64],
    in_train_M: NDArray[np.bool_],
    *,
    smallest_similarity: float,
    within_train: bool,
) -> tuple[Candidates, Candidates]:
    """Pairs within train, and pairs of train and evaluation, that may share `smallest_similarity` of their shingles.

    Args:
        store: the signatures.
        at_hash_order_M: the number in the store of each row, in order of the rows' hashes.
        in_train_M: whether each row, in order of hashes, is of train; the others are of evaluation sets.
        smallest_similarity: pairs whose signatures estimate it to be lower by far are left out.
        within_train: whether pairs within train are wanted.

    Returns:
        Pairs within train, the row with the larger hash first, none where they are not wanted; and pairs of a row of
        train and one of evaluation.
    """
    least_equal = int((smallest_similarity - ESTIMATE_MARGIN) * VALUES)
    low_MV = store.low_bytes()
    within = Candidates(low_MV, at_hash_order_M, least_equal)
    across = Candidates(low_MV, at_hash_order_M, least_equal)
    for number in range(BANDS):
        band_M, following_M = store.band(number)[at_hash_order_M], store.band((number + 1) % BANDS)[at_hash_order_M]
        rows, buckets = _buckets(band_M, following_M)
        in_train = in_train_M[rows]
        if within_train:
            _pair_within(within, rows[in_train], buckets[in_train])
        _pair_across(across, rows, buckets, in_train)
        _pair_across(across, rows[::-1], buckets[::-1], in_train[::-1])
    return within, across


def _buckets(
    band_M: NDArray[np.uint64], following_M: NDArray[np.uint64]
) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """The rows that are not alone in their bucket, bucket by bucket, and the bucket of each.

    Within a bucket the rows lie in order of the following band, then of their hashes. A bucket is told by 40 bits of
    the band's hash; should two fall together, their rows have other signatures and are no candidates.
    """
    keys_M = band_M >> _FOLLOWING_BITS << _FOLLOWING_BITS | following_M >> (np.uint64(64) - _FOLLOWING_BITS)
    rows = np.argsort(keys_M, kind="stable")
    buckets = keys_M[rows] >> _FOLLOWING_BITS
    with_previous = np.zeros(len(rows) + 1, dtype=np.bool_)
    with_previous[1:-1] = buckets[1:] == buckets[:-1]
    shared = with_previous[:-1] | with_previous[1:]
    return rows[shared], buckets[shared]


def _pair_within(candidates: Candidates, rows: NDArray[np.int64], buckets: NDArray[np.uint64]) -> None:
    for distance in range(1, NEIGHBOURS + 1):
        same = buckets[distance:] == buckets[:-distance]
        one, other = rows[distance:][same], rows[:-distance][same]
        candidates.add(np.maximum(one, other), np.minimum(one, other))


def _pair_across(
    candidates: Candidates, rows: NDArray[np.int64], buckets: NDArray[np.uint64], in_train: NDArray[np.bool_]
) -> None:
    """Pairs each row of train with the last row of evaluation before it in its bucket."""
    before = np.maximum.accumulate(np.where(in_train, -1, np.arange(len(rows))))
    paired = in_train & (before >= 0)
    paired &= buckets[before] == buckets
    candidates.add(rows[paired], rows[before[paired]])
