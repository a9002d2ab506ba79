"""Files and hub datasets -> rows -> examples, with every row accounted for.

`iter_rows` yields the rows of one source one by one, each with its place: the values, or a `BadRow` that says why there
are none. `read_examples` converts a split's rows: rows_read == len(examples) + len(bad_rows), always.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tunesmith.config import DataSection, HubDataset
from tunesmith.data.files import READERS, check_file, no_such_file
from tunesmith.data.records import Example, Place
from tunesmith.data.rows import BadRow, Row, one_line, raw_row
from tunesmith.data.shapes import RowError, convert_row
from tunesmith.errors import DataError, MissingPackageError
from tunesmith.progress import track

__all__ = ["BadRow", "ReadResult", "Row", "iter_rows", "read_examples"]

BAD_ROWS_LISTED = 10

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass
class ReadResult:
    """What a split holds.

    Args:
        examples: the rows that can be used, in order.
        bad_rows: those that cannot, in order.
        rows_read: how many rows there are; blank lines are none.
        shapes: rows of each shape, by its name in the recipe.
        unused_keys: keys that hold a value and were not read, and in how many rows.
    """

    examples: list[Example]
    bad_rows: list[BadRow]
    rows_read: int
    shapes: dict[str, int] = field(default_factory=dict)
    unused_keys: dict[str, int] = field(default_factory=dict)


def read_examples(sources: Sequence[str | HubDataset], data: DataSection, *, split: str) -> ReadResult:
    """Reads a split whole.

    Args:
        sources: files and hub datasets, read in order.
        data: how a row is read, and what a bad row does.
        split: train, validation or test; for messages, and for hub datasets given by name only.

    Raises:
        DataError: a source cannot be read or holds no rows; there are bad rows and `data.on_bad_row` is error; or no
            row can be used.
        MissingPackageError: a hub dataset, and no `datasets` package.
    """
    result = ReadResult([], [], 0)
    shapes: Counter[str] = Counter()
    unused_keys: Counter[str] = Counter()
    for place, row in track(_rows_of_all(sources, split), f"Reading {split} data", unit="rows"):
        result.rows_read += 1
        if isinstance(row, BadRow):
            result.bad_rows.append(row)
            continue
        try:
            converted = convert_row(row, place, data)
        except RowError as error:
            result.bad_rows.append(BadRow(place, error.reason, raw_row(row)))
            continue
        result.examples.append(converted.example)
        shapes[converted.shape] += 1
        unused_keys.update(converted.unused_keys)
    result.shapes, result.unused_keys = dict(shapes), dict(unused_keys)
    _refuse_bad_rows(result, data, split)
    return result


def _rows_of_all(sources: Sequence[str | HubDataset], split: str) -> Iterator[Row]:
    for source in sources:
        empty = True
        for row in iter_rows(source, split=split):
            empty = False
            yield row
        if empty:
            place = hub_name(source) if isinstance(source, HubDataset) else source
            raise DataError("holds no rows", place=place, remedy="fill it, or leave it out of the recipe")


def _refuse_bad_rows(result: ReadResult, data: DataSection, split: str) -> None:
    """Raises the one error about all bad rows, where they are not to be skipped or nothing is left without them."""
    if result.examples and (not result.bad_rows or data.on_bad_row == "skip"):
        return
    if not result.rows_read:
        raise DataError("the split holds no rows", place=f"data.{split}")
    count = f"{len(result.bad_rows)} of {result.rows_read} row{'' if result.rows_read == 1 else 's'} cannot be used"
    lines = [f"  - {bad}" for bad in result.bad_rows[:BAD_ROWS_LISTED]]
    if len(result.bad_rows) > BAD_ROWS_LISTED:
        lines.append(f"  and {len(result.bad_rows) - BAD_ROWS_LISTED} more")
    remedy = "correct them, or leave them out with data.on_bad_row: skip" if result.examples else "correct them"
    raise DataError("\n".join([count, *lines]), place=f"data.{split}", remedy=remedy)


def iter_rows(source: str | HubDataset, *, split: str = "train") -> Iterator[Row]:
    """Yields every row of a source, lazily.

    Args:
        source: a file (.json, .jsonl, .ndjson, .csv, .tsv, .parquet, .txt), a hub dataset, or its name: OWNER/NAME
            that is no file, has no data file's ending, and whose owner is no folder here.
        split: the split of a hub dataset given by name only.

    Raises:
        DataError: the source is missing, is no data file, or breaks off.
        MissingPackageError: a hub dataset, and no `datasets` package.
    """
    if isinstance(source, HubDataset):
        yield from _hub_rows(source if source.split else source.model_copy(update={"split": split}))
        return
    with _read_errors(source):
        path = _path_of(source)
        ending = path.suffix.lower()
        if path.exists():
            check_file(path, source)
            yield from READERS[ending](path, source)
        elif ending not in READERS and _HUB_NAME.fullmatch(source) and not path.parent.is_dir():
            yield from _hub_rows(HubDataset(path=source, split=split))
        else:
            raise no_such_file(path, source)


def _path_of(source: str) -> Path:
    if not source.strip() or "\0" in source:
        raise DataError("this is not the name of a file", place=repr(source))
    try:
        return Path(source).expanduser()
    except RuntimeError:  # ~NAME of a user who does not exist
        return Path(source)


@contextmanager
def _read_errors(name: str) -> Iterator[None]:
    """Turns the system's errors about reading a source into a `DataError`."""
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", place=name) from error


def hub_name(source: HubDataset) -> str:
    """How messages and places call a hub dataset."""
    return f"hub:{source.path}/{source.split}"


def _hub_rows(source: HubDataset) -> Iterator[Row]:
    """Rows of a hub dataset, streamed; a place is the number of the row."""
    name = hub_name(source)
    if Path(source.path).exists():
        # `datasets` would read it in place of the hub's, by rules of its own.
        remedy = "name the data files themselves, or rename it"
        raise DataError("a file or folder here has the name of this hub dataset", place=name, remedy=remedy)
    try:
        import datasets
    except ImportError:
        raise MissingPackageError("datasets", extra="hub", needed_for=f"the hub dataset {source.path}") from None
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    try:
        rows = datasets.load_dataset(
            source.path, source.name, split=source.split, revision=source.revision, streaming=True
        )
        for number, row in enumerate(rows, 1):
            yield Place(name, number, is_row_number=True), row
    except Exception as error:
        # The network's, the hub's and the file formats' errors come as classes of half a dozen packages.
        remedy = "check its id, name and split and the network, or download it and name the files"
        raise DataError(f"cannot be read: {one_line(error)}", place=name, remedy=remedy) from error
