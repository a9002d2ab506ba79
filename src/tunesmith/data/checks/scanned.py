"""The splits of a recipe, read and encoded once: what the worker processes found, put together in order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.config import DataSection, HubDataset
from tunesmith.data.checks.entries import FlagStore, Journal
from tunesmith.data.checks.overlap.text_set import TextSet
from tunesmith.data.checks.scan import COLUMNS, Chunk, ScannedChunk, ScanSettings, scan_chunk
from tunesmith.data.rows import BadRow, Row
from tunesmith.data.sources import check_source, rows_of
from tunesmith.data.store import Blobs, ExampleRows, ExampleStore, Places, Scratch
from tunesmith.data.template import ChatTemplate
from tunesmith.data.workers import map_chunks
from tunesmith.errors import DataError, TemplateError
from tunesmith.progress import task

CHUNK_ROWS = 256
CHUNK_CHARACTERS = 1_000_000
"""A chunk has at most so many rows, and ends with the row that brings it to so many characters."""

MOST_KEYS = 1000
"""Columns that are counted by name, and classes that there may be."""

MOST_NAMED = 10
"""Rows named in an error."""


@dataclass
class ScannedSplit:
    """One split after the first pass; N usable rows.

    Args:
        name: train, validation, test or benchmarks.
        places: where each usable row stands.
        examples: the usable rows, mended, on disk.
        tokens: their tokens and trained ranges, on disk.
        columns_N: what is known of each; see `scan.COLUMNS`.
        rows_read: rows of the split; blank lines are none.
        shapes: rows of each shape, by its name in the recipe.
        unused_keys: keys that hold a value and were not read, and in how many rows.
        classes: names of the classes, by hash.
    """

    name: str
    places: Places
    examples: ExampleStore
    tokens: Blobs
    columns_N: NDArray[np.void] = field(default_factory=lambda: np.zeros(0, COLUMNS))
    rows_read: int = 0
    shapes: Counter[str] = field(default_factory=Counter)
    unused_keys: Counter[str] = field(default_factory=Counter)
    classes: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.columns_N)

    def text_set(self, rows_K: NDArray[np.int64]) -> TextSet:
        """The rows `rows_K` as the checks that compare rows see them."""
        columns_K = self.columns_N[rows_K]
        return TextSet(
            self.name,
            ExampleRows(self.examples, rows_K),
            prompts_N=columns_K["prompt"],
            answers_N=columns_K["answer"],
            contents_N=columns_K["content"],
            order_N=columns_K["order"],
        )


class _Scan:
    """Puts the chunks' results together."""

    def __init__(self, data: DataSection, scratch: Scratch, journal: Journal, flags: FlagStore) -> None:
        self.splits: dict[str, ScannedSplit] = {}
        self._data = data
        self._scratch = scratch
        self._journal = journal
        self._flags = flags
        self._columns: dict[str, list[NDArray[np.void]]] = {}
        self._bad_rows: list[BadRow] = []
        self._refusals: list[TemplateError] = []
        self._bad_count = 0
        self._refused_count = 0

    @property
    def only_read(self) -> bool:
        """Whether the split ends with an error anyhow, so that encoding it is no use."""
        return bool(self._bad_rows) and self._data.on_bad_row == "error"

    def begin(self, name: str) -> None:
        """Makes an empty split."""
        places, blobs = Places(), Blobs(self._scratch, f"{name}.examples")
        tokens = Blobs(self._scratch, f"{name}.tokens")
        self.splits[name] = ScannedSplit(name, places, ExampleStore(blobs, places), tokens)
        self._blobs = blobs
        self._columns[name] = []
        self._bad_rows, self._refusals, self._bad_count, self._refused_count = [], [], 0, 0

    def add(self, chunk: ScannedChunk) -> None:
        """Appends a chunk's rows to the split that was begun last."""
        split = self.splits[chunk.split]
        first = len(split.places)
        split.rows_read += chunk.rows_read
        for place in chunk.places:
            split.places.append(place)
        self._blobs.extend(b"".join(chunk.examples), map(len, chunk.examples))
        split.tokens.extend(b"".join(chunk.tokens), map(len, chunk.tokens))
        self._columns[chunk.split].append(chunk.columns)
        for entry in chunk.entries:
            self._journal.add(entry)
        for number, entry in chunk.flags:
            self._flags.add(chunk.split, first + number, entry.rule, entry.reason)
        self._bad_count += len(chunk.bad_rows)
        self._refused_count += len(chunk.refusals)
        self._bad_rows += chunk.bad_rows[: MOST_NAMED - len(self._bad_rows)]
        self._refusals += chunk.refusals[: MOST_NAMED - len(self._refusals)]
        split.shapes += chunk.shapes
        for key, count in chunk.unused_keys.items():
            is_known = key in split.unused_keys or len(split.unused_keys) < MOST_KEYS
            split.unused_keys[key if is_known else "other columns"] += count
        split.classes.update(chunk.classes)
        if len(split.classes) > MOST_KEYS:
            raise DataError(
                f"the column '{self._data.class_field}' holds more than {MOST_KEYS:,} different values",
                place="data.class_field",
                remedy="name a column that holds a class",
            )

    def end(self, name: str) -> None:
        """Ends a split.

        Raises:
            DataError: rows are bad and `data.on_bad_row` is error, or none can be used.
            TemplateError: the same for rows that the template refuses.
        """
        split = self.splits[name]
        split.columns_N = np.concatenate(self._columns.pop(name) or [np.zeros(0, COLUMNS)])
        self._blobs.finish()
        split.tokens.finish()
        is_strict = self._data.on_bad_row == "error"
        if self._bad_count and (is_strict or self._bad_count == split.rows_read):
            raise _bad_rows_error(split, self._bad_rows, self._bad_count)
        if self._refused_count and (is_strict or not len(split)):
            raise _refused_error(split, self._refusals, self._refused_count)


def _bad_rows_error(split: ScannedSplit, named: Sequence[BadRow], count: int) -> DataError:
    rows = f"{count} of {split.rows_read} row{'' if split.rows_read == 1 else 's'} cannot be used"
    lines = [f"  - {bad}" for bad in named]
    more = [f"  and {count - len(named)} more"] if count > len(named) else []
    usable = split.rows_read - count
    remedy = "correct them, or leave them out with data.on_bad_row: skip" if usable else "correct them"
    return DataError("\n".join([rows, *lines, *more]), place=f"data.{split.name}", remedy=remedy)


def _refused_error(split: ScannedSplit, named: Sequence[TemplateError], count: int) -> TemplateError:
    lines = [f"  {error.place}: {error.message}" for error in named]
    more = [f"  and {count - len(named)} more"] if count > len(named) else []
    rows = f"{count} row{'' if count == 1 else 's'}"
    return TemplateError(
        "\n".join([f"the chat template refuses {rows}", *lines, *more]),
        place=f"data.{split.name}",
        remedy=named[0].remedy or "change these rows, or leave them out with data.on_bad_row: skip",
    )


def scan_splits(
    sources: Mapping[str, Sequence[str | HubDataset]],
    data: DataSection,
    template: ChatTemplate,
    *,
    scratch: Scratch,
    journal: Journal,
    flags: FlagStore,
) -> dict[str, ScannedSplit]:
    """Reads, mends, judges and encodes every row of every split, by as many processes as `data.num_proc` says.

    Args:
        sources: the files and hub datasets of each split.
        data: how a row is read, and the rules.
        template: encodes the examples.
        scratch: where examples and tokens are kept.
        journal: takes what was left out and changed.
        flags: takes what was only reported.

    Raises:
        DataError: a source cannot be read or holds no rows; rows are bad and `data.on_bad_row` is error; or a split has
            no row that can be used.
        TemplateError: the template refuses rows, and `data.on_bad_row` is error.
        MissingPackageError: a hub dataset, and no `datasets` package.
        DiskError: the disk is full or fails.
    """
    scan = _Scan(data, scratch, journal, flags)
    names = list(sources)
    for source in (one for name in names for one in sources[name]):
        check_source(source)  # a wrong name is told now, not after the splits before it
    current = -1

    def chunks() -> Iterator[Chunk]:
        for name in names:
            for rows in _in_chunks(rows_of(sources[name], name, data)):
                yield Chunk(name, rows, only_read=scan.only_read and names[current] == name)

    num_proc = None if data.num_proc == "auto" else data.num_proc
    with task("Reading and encoding", unit="rows") as progress:
        for result in map_chunks(scan_chunk, ScanSettings(data, template), chunks(), num_proc=num_proc):
            while current < 0 or names[current] != result.split:
                if current >= 0:
                    scan.end(names[current])
                current += 1
                scan.begin(names[current])
            scan.add(result)
            progress.advance(result.rows_read)
        scan.end(names[current])
    return scan.splits


def _in_chunks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    chunk: list[Row] = []
    characters = 0
    for place, row in rows:
        chunk.append((place, row))
        characters += len(row.raw) if isinstance(row, BadRow) else _characters(row)
        if len(chunk) == CHUNK_ROWS or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _characters(value: Any, depth: int = 5) -> int:
    """About how many characters there are in a row's values; what is nested deeper than rows are is not looked at."""
    if isinstance(value, str):
        return len(value)
    if not depth or not isinstance(value, (dict, list, tuple)):
        return 1
    return sum(_characters(inner, depth - 1) for inner in (value.values() if isinstance(value, dict) else value))
