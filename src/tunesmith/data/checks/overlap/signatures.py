"""MinHash signatures of rows, and the pairs of rows that they say may be alike.

A row's shingles are its runs of two words (two characters of a script without spaces), without those that lie wholly in
a template. Its signature estimates the share of shingles that two rows have in common (Broder, 1997); rows whose
signatures agree in all values of a band come to be compared. With 32 bands of 4 values a pair that shares 0.68 of its
shingles, as texts do in which every tenth word differs, meets with a probability of 0.999, one that shares 0.2 with
0.05.

Shapes: R rows of a chunk, V = 128 values of a signature, B = 32 bands, H shingles, M rows with a signature.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash

from tunesmith.data.checks.overlap.boilerplate import Boilerplate
from tunesmith.data.checks.overlap.shingles import Words, grams_of_words, mixed, sums_before
from tunesmith.errors import disk_errors

SHINGLE_WORDS = 2
"""With three, texts in which every tenth word differs share 0.57 instead of 0.68 of their shingles, and one in 30 is
missed; pairs of prose that share more than `duplicates.SMALLEST_SIMILARITY` are variants of one text with either."""

FEWEST_SHINGLES = 10
"""Rows with fewer are compared exactly only: a short question and its answer differ from others in a word or two."""

VALUES = 128
BANDS = 32
SEED = 0


class Shingles:
    """The shingles of some rows, end to end.

    Args:
        words: the words of the rows.
        is_template_W: the words that belong to a template.

    Attributes:
        hashes_H: the hash of each shingle; a row may have one several times.
        offsets: R + 1 numbers; row r has the shingles [offsets[r], offsets[r + 1]).
    """

    def __init__(self, words: Words, is_template_W: NDArray[np.bool_]) -> None:
        grams = grams_of_words(words, SHINGLE_WORDS)
        template_before = sums_before(is_template_W.astype(np.int64))
        in_template_W = template_before[grams.ends_W] - template_before[:-1]
        kept_W = grams.whole_W & (in_template_W < SHINGLE_WORDS)
        self.hashes_H = grams.hashes_W[kept_W]
        self.offsets = sums_before(kept_W.astype(np.int64))[words.offsets]

    @property
    def counts(self) -> NDArray[np.int64]:
        """Shingles of each row."""
        return np.diff(self.offsets)


def shingles_of(words: Words, boilerplate: Boilerplate) -> Shingles:
    """The shingles of the rows."""
    return Shingles(words, boilerplate.words_of_template(boilerplate.runs_in(words)))


def bands_of(shingles: Shingles) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
    """Signatures of rows.

    Returns:
        The hash of each band, (R, B), and the lowest byte of each value, (R, V).
    """
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(shingles.hashes_H, shingles.offsets, VALUES, SEED)
    values_RV = np.array(matrix.to_rows(), dtype=np.uint32).reshape(-1, VALUES)
    bands_RB = np.zeros((len(values_RV), BANDS), dtype=np.uint64)
    for place in range(VALUES // BANDS):
        bands_RB ^= values_RV[:, place :: VALUES // BANDS]
        bands_RB = mixed(bands_RB)
    return bands_RB, values_RV.astype(np.uint8)


class SignatureStore:
    """Signatures on disk: the hashes of each band in a file of its own, because one band at a time is looked at.

    Args:
        folder: where to write; it is made.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._count = 0
        self._bands = [(folder / f"band-{band}.bin").open("xb") for band in range(BANDS)]
        self._low = (folder / "low.bin").open("xb")

    def __len__(self) -> int:
        return self._count

    def add(self, bands_RB: NDArray[np.uint64], low_RV: NDArray[np.uint8]) -> None:
        """Appends what `bands_of` gives.

        Raises:
            DiskError: the disk is full or fails.
        """
        with disk_errors(self._folder):
            for file, band_R in zip(self._bands, bands_RB.T, strict=True):
                file.write(band_R.tobytes())
            self._low.write(low_RV.tobytes())
        self._count += len(low_RV)

    def finish(self) -> None:
        """Ends the writing.

        Raises:
            DiskError: the disk is full or fails.
        """
        with disk_errors(self._folder):
            for file in (*self._bands, self._low):
                file.close()

    def band(self, number: int) -> NDArray[np.uint64]:
        """The M hashes of a band."""
        return np.fromfile(self._folder / f"band-{number}.bin", dtype=np.uint64)

    def low_bytes(self) -> NDArray[np.uint8]:
        """The lowest byte of each value."""
        return np.fromfile(self._folder / "low.bin", dtype=np.uint8).reshape(-1, VALUES)
