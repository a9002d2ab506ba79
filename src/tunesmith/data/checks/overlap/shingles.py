"""Texts as numbers that can be compared: words to 64-bit hashes, neighbouring words to hashes of n-grams.

A word is a run of letters and digits. Scripts without spaces (Han, kana, Thai, ...) have no such runs: there each
character counts as a word, and as half of one where a length in words is meant, the mean of Chinese. Case, width and
punctuation do not count. The hashes are the same in every process, so they can be written to disk and compared there.

Shapes: R rows, W words of all rows together.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.checks.overlap.text_set import normalised
from tunesmith.data.records import Example

WORD_UNITS = 2
"""Lengths are counted in units: a word has two, a character of a script without spaces one."""

_UNSPACED = (
    "\u3005\u3007\u3041-\u3096\u30a1-\u30fa\u30fc-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\u0e01-\u0e4e\u0e81-\u0ecd\u1000-\u103f\u1780-\u17d3\U00020000-\U0003ffff"
)

_ANY_WORD = re.compile(f"[{_UNSPACED}]|[^\\W{_UNSPACED}]+")
_IS_UNSPACED = re.compile(f"[{_UNSPACED}]")

MOST_CHARACTERS = 200_000
"""Of a longer row only so many characters are compared."""

MOST_REMEMBERED = 200_000
"""Words whose hash a process remembers, about 25 MB."""

_BASE = 0x9E3779B97F4A7C15
_INVERSE_BASE = pow(_BASE, -1, 2**64)


_LOWER_WORDS = bytes(byte if chr(byte).isalnum() or byte == ord("_") else ord(" ") for byte in range(128)).lower()
_LOWER_WORDS += b" " * 128
"""From the bytes of an ASCII text to those of its words in lower case, with spaces between; splitting these takes a
third of the time of the regular expression."""

_WIDE_MARKS = "，：；！？（）～…"
"""Marks that are common in Chinese and that the normal form would replace by others, which takes long."""


class _WordHashes(dict[str | bytes, int]):
    """Hash of each word; the lowest two bits say that it is a character of a script without spaces, and a number."""

    def __missing__(self, word: str | bytes) -> int:
        content = word if isinstance(word, bytes) else word.encode("utf-8", "surrogatepass")
        text = content.decode("utf-8", "surrogatepass")
        hashed = int.from_bytes(blake2b(content, digest_size=8).digest(), "little")
        kind = (_IS_UNSPACED.match(text) is not None) | text.isdecimal() << 1
        value = self[word] = hashed & ~3 | kind
        return value


_word_hashes = _WordHashes()


@dataclass(frozen=True)
class Words:
    """The words of some rows, end to end.

    Args:
        hashes_W: the hash of each word.
        offsets: R + 1 numbers; row r has the words [offsets[r], offsets[r + 1]).
    """

    hashes_W: NDArray[np.uint64]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.hashes_W)

    @property
    def row_count(self) -> int:
        """R."""
        return len(self.offsets) - 1

    @cached_property
    def row_ends(self) -> NDArray[np.int64]:
        """For each word the end of its row."""
        return np.repeat(self.offsets[1:], np.diff(self.offsets))

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """For each word its row."""
        return np.repeat(np.arange(self.row_count), np.diff(self.offsets))

    @cached_property
    def is_unspaced(self) -> NDArray[np.bool_]:
        """Whether each is a character of a script without spaces."""
        return (self.hashes_W & np.uint64(1)).astype(np.bool_)

    @cached_property
    def is_number(self) -> NDArray[np.bool_]:
        """Whether each is a number."""
        return (self.hashes_W & np.uint64(2)).astype(np.bool_)

    @cached_property
    def has_unspaced(self) -> bool:
        """Whether any is."""
        return bool(self.is_unspaced.any())

    @cached_property
    def units(self) -> NDArray[np.int64]:
        """The length of each in units."""
        return WORD_UNITS - self.is_unspaced.astype(np.int64)

    @cached_property
    def units_before(self) -> NDArray[np.int64]:
        """W + 1 numbers: the units of all words before each, and of all."""
        return sums_before(self.units)

    @cached_property
    def running_sums(self) -> NDArray[np.uint64]:
        """W + 1 sums of hash times power of a base, modulo 2^64; a run's hash is a difference of two, shifted back."""
        sums = np.zeros(len(self) + 1, dtype=np.uint64)
        np.cumsum(self.hashes_W * _powers(_BASE, len(self)), out=sums[1:])
        return sums

    @cached_property
    def inverse_powers(self) -> NDArray[np.uint64]:
        """What shifts back the run that begins with each word."""
        return _powers(_INVERSE_BASE, len(self))


@dataclass(frozen=True)
class Grams:
    """One run of neighbouring words for each word that is the first of one.

    Args:
        hashes_W: the hash of the run that begins with each word.
        ends_W: the number of the word after it.
        whole_W: whether the run ends within its row; where it does not, it is none.
    """

    hashes_W: NDArray[np.uint64]
    ends_W: NDArray[np.int64]
    whole_W: NDArray[np.bool_]


def text_of(example: Example) -> str:
    """What of an example is compared: all its texts, at most `MOST_CHARACTERS` of them."""
    if example.text is not None:
        return example.text[:MOST_CHARACTERS]
    return "\n".join(message.content for message in example.messages)[:MOST_CHARACTERS]


def words_of(texts: Sequence[str]) -> Words:
    """The words of each text, one text a row."""
    if len(_word_hashes) > MOST_REMEMBERED:
        _word_hashes.clear()
    words = [_words(text) for text in texts]
    counts = np.fromiter(map(len, words), dtype=np.int64, count=len(words))
    flat = (word for row in words for word in row)
    hashes_W = np.fromiter(map(_word_hashes.__getitem__, flat), dtype=np.uint64, count=int(counts.sum()))
    return Words(hashes_W, sums_before(counts))


def _words(text: str) -> Sequence[str | bytes]:
    if text.isascii():
        return text.encode().translate(_LOWER_WORDS).split()
    for mark in _WIDE_MARKS:
        text = text.replace(mark, " ")
    words: list[str] = _ANY_WORD.findall(normalised(text))
    return words


def sums_before(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """One number more than `values`: the sum of all before each, and of all."""
    sums = np.zeros(len(values) + 1, dtype=np.int64)
    np.cumsum(values, out=sums[1:])
    return sums


def grams_of_words(words: Words, count: int) -> Grams:
    """Runs of `count` words, or characters of scripts without spaces."""
    return _grams(words, np.arange(count, count + len(words)))


def grams_of_units(words: Words, units: int) -> Grams:
    """The shortest runs of at least `units` units."""
    if words.has_unspaced:
        ends_W = np.searchsorted(words.units_before, words.units_before[:-1] + units)
    else:
        ends_W = np.arange(len(words)) + -(-units // WORD_UNITS)
    return _grams(words, ends_W)


def covered(grams: Grams, chosen_W: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether each word lies in one of the chosen runs.

    Args:
        grams: one run for each word.
        chosen_W: which of them; they are whole.
    """
    count = len(chosen_W)
    begun_W = np.cumsum(chosen_W)
    ended_W = np.cumsum(np.bincount(grams.ends_W[chosen_W], minlength=count)[:count])
    return begun_W > ended_W


def _grams(words: Words, ends_W: NDArray[np.int64]) -> Grams:
    """The runs that begin with each word and end before `ends_W`."""
    whole_W = ends_W <= words.row_ends
    ends_W = np.minimum(ends_W, len(words))
    hashes_W = words.running_sums[ends_W]
    hashes_W -= words.running_sums[:-1]
    hashes_W *= words.inverse_powers
    return Grams(mixed(hashes_W), ends_W, whole_W)


def _powers(base: int, count: int) -> NDArray[np.uint64]:
    """base^0 ... base^(count - 1) modulo 2^64."""
    powers = np.full(count, base, dtype=np.uint64)
    powers[:1] = 1
    return np.cumprod(powers)


def mixed(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The same numbers with every bit depending on every other, in place; the finaliser of MurmurHash3."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        hashes ^= hashes >> np.uint64(33)
        hashes *= np.uint64(factor)
    hashes ^= hashes >> np.uint64(33)
    return hashes
