"""Rows that are equal after normalisation, and the one of them that stays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.checks.overlap.shingles import text_of
from tunesmith.data.checks.overlap.text_set import TextSet

READ_AT_ONCE = 64
CHUNK_ROWS = 256
CHUNK_CHARACTERS = 250_000
"""A chunk has at most so many rows, and ends with the row that brings it to so many characters."""


@dataclass(frozen=True)
class DistinctRows:
    """A set with one row of each that are equal after normalisation: the one with the smallest `order_N`. K of N rows.

    Args:
        rows: the whole set.
    """

    rows: TextSet

    @cached_property
    def original_of(self) -> NDArray[np.int64]:
        """For each row the one that stays of those that are equal to it, which may be itself."""
        contents_N = self.rows.contents_N
        by_content = np.lexsort((self.rows.order_N, contents_N))
        is_first = np.ones(len(by_content), dtype=np.bool_)
        is_first[1:] = contents_N[by_content[1:]] != contents_N[by_content[:-1]]
        original_of = np.empty(len(by_content), dtype=np.int64)
        original_of[by_content] = by_content[is_first][np.cumsum(is_first) - 1]
        return original_of

    @cached_property
    def kept(self) -> NDArray[np.int64]:
        """The rows that stay, rising."""
        return np.flatnonzero(self.original_of == np.arange(len(self.original_of)))

    @property
    def orders(self) -> NDArray[np.uint64]:
        """`order_N` of the rows that stay."""
        return self.rows.order_N[self.kept]

    def chunks(self) -> Iterator[list[str]]:
        """The texts of the rows that stay, in chunks."""
        texts: list[str] = []
        characters = 0
        for start in range(0, len(self.rows.order_N), READ_AT_ONCE):
            stop = min(start + READ_AT_ONCE, len(self.rows.order_N))
            kept = self.kept[slice(*np.searchsorted(self.kept, (start, stop)).tolist())]
            examples = self.rows.examples[start:stop] if len(kept) else []
            for row in kept.tolist():
                texts.append(text_of(examples[row - start]))
                characters += len(texts[-1])
                if len(texts) == CHUNK_ROWS or characters >= CHUNK_CHARACTERS:
                    yield texts
                    texts, characters = [], 0
        if texts:
            yield texts
