"""Sets of 64-bit hashes that are asked for millions of others, most of which are not in them."""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.errors import disk_errors

LEAST_BITS = 12
MOST_BITS = 27
CELLS_PER_HASH = 8
"""A table says of most hashes at once that they are not in the set: it has so many cells a hash, of a byte each, at
most 2^MOST_BITS of them (128 MiB)."""

MERGED_AT_ONCE = 8_000_000
"""Hashes that are sorted in memory together, about 400 MB with what sorting takes."""

_ENTRY = np.dtype([("hash", "<u8"), ("owner", "<i4")])


class HashSet:
    """A set of hashes.

    Args:
        sorted_S: the S hashes, rising.
        table: from the highest bits of a hash to whether one in the set has them; a power of two long.
    """

    def __init__(self, sorted_S: NDArray[np.uint64], table: NDArray[np.bool_] | None = None) -> None:
        self.sorted_S = sorted_S
        self._table = _table_of(sorted_S) if table is None else table
        self._shift = np.uint64(64 - (len(self._table).bit_length() - 1))

    def find(self, hashes_Q: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which of the hashes are in the set.

        Returns:
            The indices in `hashes_Q` of those that are, rising, and for each its index in `sorted_S`.
        """
        maybe = np.flatnonzero(self._table[hashes_Q >> self._shift])
        at = np.searchsorted(self.sorted_S, hashes_Q[maybe])
        at[at == len(self.sorted_S)] = 0
        found = self.sorted_S[at] == hashes_Q[maybe] if len(self.sorted_S) else np.zeros(0, dtype=np.bool_)
        return maybe[found], at[found]

    def contains(self, hashes_Q: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Whether each of the hashes is in the set."""
        contained_Q = np.zeros(len(hashes_Q), dtype=np.bool_)
        contained_Q[self.find(hashes_Q)[0]] = True
        return contained_Q


def _table_bits(count: int) -> int:
    return min(max((count * CELLS_PER_HASH).bit_length(), LEAST_BITS), MOST_BITS)


def _table_of(hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    bits = _table_bits(len(hashes))
    table = np.zeros(1 << bits, dtype=np.bool_)
    table[hashes >> np.uint64(64 - bits)] = True
    return table


class OwnedHashes:
    """Hashes on disk, each with its owner, a number; of several owners of one hash the smallest. N of them.

    Processes read the same files, so a set that is larger than what each may take serves all.

    Args:
        folder: where the files are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return OwnedHashes, (self._folder,)  # an opened file would travel with all it holds

    @cached_property
    def _hashes(self) -> HashSet:
        return HashSet(_opened(self._folder, "hashes.bin", "<u8"), _opened(self._folder, "table.bin", np.bool_))

    @cached_property
    def _owners(self) -> NDArray[np.int32]:
        return _opened(self._folder, "owners.bin", "<i4")

    def find(self, hashes_Q: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Indices of the hashes that are among these, rising, and the owner of each."""
        found, at = self._hashes.find(hashes_Q)
        return found, np.asarray(self._owners[at])


def _opened(folder: Path, name: str, kind: Any) -> NDArray[Any]:
    path = folder / name
    if not path.stat().st_size:  # which cannot be mapped
        return np.zeros(0, kind)
    return np.asarray(np.memmap(path, kind, "r"))


class OwnedHashesWriter:
    """Takes hashes and their owners in any order, and makes `OwnedHashes`.

    Args:
        folder: where to write; it is made.
        at_once: hashes sorted together in memory.
    """

    def __init__(self, folder: Path, at_once: int = MERGED_AT_ONCE) -> None:
        folder.mkdir()
        self._folder = folder
        self._at_once = at_once
        self._count = 0
        self._spool = (folder / "spool.bin").open("w+b")

    def add(self, hashes: NDArray[np.uint64], owners: NDArray[np.int32]) -> None:
        """Adds hashes, each with its owner.

        Raises:
            DiskError: the disk is full or fails.
        """
        entries = np.empty(len(hashes), _ENTRY)
        entries["hash"], entries["owner"] = hashes, owners
        self._count += len(entries)
        with disk_errors(self._folder):
            self._spool.write(entries.tobytes())

    def finish(self) -> OwnedHashes:
        """Sorts what was added, in parts that fit in memory.

        Raises:
            DiskError: the disk is full or fails.
        """
        parts = -(-self._count // self._at_once) or 1
        edges = [part * 2**64 // parts for part in range(parts + 1)]
        bits = _table_bits(self._count)
        table = np.zeros(1 << bits, dtype=np.bool_)
        with disk_errors(self._folder):
            with (self._folder / "hashes.bin").open("xb") as hashes, (self._folder / "owners.bin").open("xb") as owners:
                for first, end in pairwise(edges):
                    entries = self._between(first, end - 1)
                    hashes.write(entries["hash"].tobytes())
                    owners.write(entries["owner"].tobytes())
                    table[entries["hash"] >> np.uint64(64 - bits)] = True
            table.tofile(self._folder / "table.bin")
        self._spool.close()
        (self._folder / "spool.bin").unlink()
        return OwnedHashes(self._folder)

    def _between(self, first: int, last: int) -> NDArray[np.void]:
        """The entries with hashes from `first` to `last`, rising, each hash once."""
        self._spool.seek(0)
        kept = [np.zeros(0, _ENTRY)]
        while content := self._spool.read(_ENTRY.itemsize * (1 << 20)):
            entries = np.frombuffer(content, _ENTRY)
            hashes = entries["hash"]
            kept.append(entries[(hashes >= np.uint64(first)) & (hashes <= np.uint64(last))])
        entries = np.concatenate(kept)
        entries = entries[np.lexsort((entries["owner"], entries["hash"]))]
        is_first = np.ones(len(entries), dtype=np.bool_)
        is_first[1:] = entries["hash"][1:] != entries["hash"][:-1]
        return entries[is_first]
