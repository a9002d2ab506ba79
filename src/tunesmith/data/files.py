"""Files of rows: CSV, plain text and Parquet readers, and which reader an ending names.

What makes the rows after it doubtful (a CSV quote that is never closed, a truncated Parquet file) is a `DataError`;
what spoils one row only is a `BadRow`.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from tunesmith.data.json_rows import json_rows, jsonl_rows
from tunesmith.data.records import Place
from tunesmith.data.rows import MAX_ROW_BYTES, BadRow, Row, named_twice, one_line, quoted, shortened
from tunesmith.errors import DataError

_PARQUET_BATCH = 256
"""Rows decoded at a time."""
_PARQUET_BUFFER = 2**20
"""Bytes of a column read at a time; without it a whole row group is held, and often that is the whole file."""

_PART = 2**20
"""Characters read at a time of a line that is too long to be kept."""

_NUL = "\udc00"
"""Stands for a NUL byte; no byte that is not UTF-8 is escaped as this one."""


# --- CSV and plain text -------------------------------------------------------------------------------------------


def _text_lines(path: Path) -> Iterator[str]:
    """Lines with their ends. NUL and bytes that are not UTF-8 become lone surrogates, which `_undecodable` finds.

    Of a line that `_is_too_long` only the beginning is there.
    """
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        while line := file.readline(MAX_ROW_BYTES + 1):
            yield line.replace("\0", _NUL)
            if _is_too_long(line):
                while (part := file.readline(_PART)) and not part.endswith(("\n", "\r")):
                    pass


def _is_too_long(line: str) -> bool:
    return len(line) > MAX_ROW_BYTES and not line.endswith(("\n", "\r"))


def _undecodable(texts: Sequence[str]) -> str | None:
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        return "holds a NUL byte" if error.object[error.start] == _NUL else "not UTF-8 text"
    return None


def _csv_rows(path: Path, name: str) -> Iterator[Row]:
    """Rows of CSV with a header (RFC 4180); the place is the line where the row starts.

    Where the header has no comma but semicolons or tabs, those divide: spreadsheets write so in many countries.
    """
    # The limit is the process's, not the reader's; its default of 128 KiB is less than a long document.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_BYTES))
    lines = _csv_lines(path, name)
    first = next(lines, "")
    delimiter = "\t" if path.suffix.lower() == ".tsv" else _delimiter(first)
    # strict: without it an unclosed quote swallows the rest of the file in silence.
    reader = csv.reader(chain([first], lines), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        place = Place(name, reader.line_num + 1)
        try:
            cells = next(reader, None)
        except csv.Error as error:
            remedy = 'double each quote inside a quoted value (""), and close every quote'
            raise DataError(f"broken CSV: {error}", place=str(place), remedy=remedy) from None
        if cells is None:
            return
        if not cells:
            continue
        if header is None:
            header = _checked_header(cells, place)
            continue
        yield place, _csv_row(header, cells, place)


def _csv_lines(path: Path, name: str) -> Iterator[str]:
    for number, line in enumerate(_text_lines(path), 1):
        if _is_too_long(line):
            what = f"the line is longer than {MAX_ROW_BYTES:,} characters"
            raise DataError(
                what, place=f"{name}:{number}", remedy="look at it: line ends may be lost, or it is not CSV"
            )
        yield line


def _csv_row(header: list[str], cells: list[str], place: Place) -> dict[str, Any] | BadRow:
    reason = _undecodable(cells)
    if reason is None and len(cells) != len(header):
        reason = f"{len(cells)} values, but the header names {len(header)} columns"
    if reason is not None:
        return BadRow(place, reason, shortened(",".join(cells)))
    return dict(zip(header, cells, strict=True))


def _checked_header(cells: list[str], place: Place) -> list[str]:
    header = [cell.strip() for cell in cells]
    twice = named_twice(header)
    remedy = "the first row must name the columns"
    if (reason := _undecodable(header)) is not None:
        raise DataError(f"the header: {reason}", place=str(place), remedy="save the file as UTF-8")
    if twice:
        raise DataError(f"the header names {quoted(twice)} twice", place=str(place), remedy=remedy)
    if not any(header):
        raise DataError("the header names no column", place=str(place), remedy=remedy)
    return header


def _delimiter(header: str) -> str:
    return next((mark for mark in (",", ";", "\t") if mark in header), ",")


def _text_rows(path: Path, name: str) -> Iterator[Row]:
    """One row of text for each paragraph; blank lines divide them. The place is the paragraph's first line."""
    paragraph: list[str] = []
    first = length = 0
    for number, line in enumerate(_text_lines(path), 1):
        if line.strip():
            first = first if paragraph else number
            length += len(line)
            if length <= MAX_ROW_BYTES or not paragraph:  # what is too long is counted, but not kept
                paragraph.append(line.rstrip("\r\n"))
        elif paragraph:
            yield _paragraph_row(paragraph, length, Place(name, first))
            paragraph, length = [], 0
    if paragraph:
        yield _paragraph_row(paragraph, length, Place(name, first))


def _paragraph_row(paragraph: list[str], length: int, place: Place) -> Row:
    if length > MAX_ROW_BYTES:
        reason = f"the paragraph is longer than {MAX_ROW_BYTES:,} characters; a blank line ends one"
        return place, BadRow(place, reason, shortened(paragraph[0]))
    text = "\n".join(paragraph)
    reason_or_none = _undecodable([text])
    return place, {"text": text} if reason_or_none is None else BadRow(place, reason_or_none, shortened(text))


# --- Parquet ------------------------------------------------------------------------------------------------------


def _parquet_rows(path: Path, name: str) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path, buffer_size=_PARQUET_BUFFER, pre_buffer=False) as file:
            if twice := named_twice(file.schema_arrow.names):
                raise DataError(f"has the column {quoted(twice)} twice", place=name, remedy="rename one of them")
            for batch in file.iter_batches(batch_size=_PARQUET_BATCH, use_threads=False):
                for row in _batch_rows(batch):
                    number += 1
                    place = Place(name, number, is_row_number=True)
                    yield place, BadRow(place, row, "") if isinstance(row, str) else row
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # ValueError: a column's name is not UTF-8
        remedy = "the file is damaged or was not copied whole; write it again"
        raise DataError(f"not readable as Parquet: {one_line(error)}", place=name, remedy=remedy) from error


def _batch_rows(batch: Any) -> Iterator[dict[str, Any] | str]:
    """The rows of a record batch, or the reason why one has none."""
    try:
        yield from batch.to_pylist()
    except (ValueError, OverflowError):
        yield from (_row_of_slice(batch.slice(index, 1)) for index in range(batch.num_rows))


def _row_of_slice(batch: Any) -> dict[str, Any] | str:
    try:
        row: dict[str, Any] = batch.to_pylist()[0]
    except UnicodeDecodeError:
        return "not UTF-8 text"
    except (ValueError, OverflowError) as error:  # a time stamp that Python cannot hold
        return one_line(error)
    return row


# --- Which reader -------------------------------------------------------------------------------------------------

CSV_ENDINGS = (".csv", ".tsv")

READERS: Mapping[str, Callable[[Path, str], Iterator[Row]]] = {
    ".json": json_rows,
    ".jsonl": jsonl_rows,
    ".ndjson": jsonl_rows,
    ".csv": _csv_rows,
    ".tsv": _csv_rows,
    ".parquet": _parquet_rows,
    ".txt": _text_rows,
}
"""What reads a file, by its ending in lower case."""
