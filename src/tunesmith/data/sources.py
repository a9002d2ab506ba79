"""Files and hub datasets to rows, one by one, each with its place: the values, or a `BadRow` that says why not."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tunesmith.config import DataSection, HubDataset
from tunesmith.data.file_kinds import check_file, no_such_file
from tunesmith.data.files import CSV_ENDINGS, READERS
from tunesmith.data.records import Place
from tunesmith.data.rows import Row, one_line, quoted
from tunesmith.data.shapes import RowError, convert_row, mapping_example
from tunesmith.errors import DataError, MissingPackageError

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


_COLUMN_NAME = re.compile(r"[^\W\d][\w.-]*( [\w.-]+){0,2}")
"""What reads like the name of a column, not like a value."""


def rows_of(sources: Sequence[str | HubDataset], split: str, data: DataSection) -> Iterator[Row]:
    """Yields every row of a split, lazily.

    Args:
        sources: files and hub datasets, read in order.
        split: train, validation, test or benchmarks; for hub datasets given by name only, and for messages.
        data: how a row is read.

    Raises:
        DataError: a source cannot be read or holds no rows.
        MissingPackageError: a hub dataset, and no `datasets` package.
    """
    for source in sources:
        empty = True
        for row in iter_rows(source, split=split, data=data):
            empty = False
            yield row
        if empty:
            place = hub_name(source) if isinstance(source, HubDataset) else source
            raise DataError("holds no rows", place=place, remedy="fill it, or leave it out of the recipe")


def iter_rows(source: str | HubDataset, *, split: str = "train", data: DataSection | None = None) -> Iterator[Row]:
    """Yields every row of a source, lazily.

    Args:
        source: a file (.json, .jsonl, .ndjson, .csv, .tsv, .parquet, .txt), a hub dataset, or its name: OWNER/NAME
            that is no file, has no data file's ending, and whose owner is no folder here.
        split: the split of a hub dataset given by name only.
        data: how a row is read; with it a CSV file of which no row can be read, because of its header, is refused.

    Raises:
        DataError: the source is missing, is no data file, or breaks off.
        MissingPackageError: a hub dataset, and no `datasets` package.
    """
    if isinstance(source, HubDataset):
        yield from _hub_rows(source if source.split else source.model_copy(update={"split": split}))
        return
    with _read_errors(source):
        path = check_source(source)
        if path is None:
            yield from _hub_rows(HubDataset(path=source, split=split))
            return
        ending = path.suffix.lower()
        rows = READERS[ending](path, source)
        yield from rows if data is None or ending not in CSV_ENDINGS else _with_known_columns(rows, data)


def check_source(source: str | HubDataset) -> Path | None:
    """The file of a source, which is there and holds data by its first bytes; None for a hub dataset.

    Raises:
        DataError: the file is missing or is no data file.
    """
    if isinstance(source, HubDataset):
        return None
    with _read_errors(source):
        path = _path_of(source)
        ending = path.suffix.lower()
        if path.exists():
            check_file(path, source, READERS)
            return path
        if ending not in READERS and _HUB_NAME.fullmatch(source) and not path.parent.is_dir():
            return None
        raise no_such_file(path, source)


def _with_known_columns(rows: Iterator[Row], data: DataSection) -> Iterator[Row]:
    """The rows of a CSV file, unless its header is such that none can be read: most often there is no header at all."""
    is_known = False
    for place, row in rows:
        if not is_known and isinstance(row, dict):
            try:
                convert_row(dict.fromkeys(row, "text"), place, data)  # every cell is text, so this stands for all rows
            except RowError as error:
                example = mapping_example(dict.fromkeys(row, "text"))
                remedy = f"the first line must name the columns; it is {quoted(list(row))}"
                if all(_COLUMN_NAME.fullmatch(name) for name in row) and example:
                    remedy = f"say which columns to read with data.mapping, as --set 'data.mapping={example}'; "
                    remedy += "if the first line is no header, put the names of the columns there"
                raise DataError(f"no row can be read: {error.reason}", place=place.file, remedy=remedy) from None
            is_known = True
        yield place, row


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
        remedy = "make it readable for you (chmod u+r FILE)" if isinstance(error, PermissionError) else None
        raise DataError(f"cannot be read: {error.strerror or error}", place=name, remedy=remedy) from error


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
