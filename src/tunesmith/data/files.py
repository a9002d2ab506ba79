"""Files of rows: CSV, plain text and Parquet readers, and which reader an ending names.

What makes the rows after it doubtful (a CSV quote that is never closed, a truncated Parquet file) is a `DataError`;
what spoils one row only is a `BadRow`.
"""

from __future__ import annotations

import csv
import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from tunesmith.data.json_rows import BOM, MAX_ROW_BYTES, json_rows, jsonl_rows
from tunesmith.data.records import Place
from tunesmith.data.rows import BadRow, Row, named_twice, one_line, quoted, shortened
from tunesmith.errors import DataError

_PARQUET_BATCH = 1024
"""Rows decoded at a time."""

_NUL = "\udc00"
"""Stands for a NUL byte; no byte that is not UTF-8 is escaped as this one."""


# --- CSV and plain text -------------------------------------------------------------------------------------------


def _text_lines(path: Path) -> Iterator[str]:
    """Lines with their ends. NUL and bytes that are not UTF-8 become lone surrogates, which `_undecodable` finds."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        for line in file:
            yield line.replace("\0", _NUL)


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
    lines = _text_lines(path)
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
    number = 0
    for number, line in enumerate(_text_lines(path), 1):
        if line.strip():
            paragraph.append(line.rstrip("\r\n"))
        elif paragraph:
            yield _paragraph_row(paragraph, Place(name, number - len(paragraph)))
            paragraph = []
    if paragraph:
        yield _paragraph_row(paragraph, Place(name, number - len(paragraph) + 1))


def _paragraph_row(paragraph: list[str], place: Place) -> Row:
    text = "\n".join(paragraph)
    reason = _undecodable([text])
    return place, {"text": text} if reason is None else BadRow(place, reason, shortened(text))


# --- Parquet ------------------------------------------------------------------------------------------------------


def _parquet_rows(path: Path, name: str) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            if twice := named_twice(file.schema_arrow.names):
                raise DataError(f"has the column {quoted(twice)} twice", place=name, remedy="rename one of them")
            for batch in file.iter_batches(batch_size=_PARQUET_BATCH):
                for row in _batch_rows(batch):
                    number += 1
                    place = Place(name, number, is_row_number=True)
                    yield place, BadRow(place, row, "") if isinstance(row, str) else row
    except (pyarrow.ArrowException, OSError) as error:
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

_FOREIGN = (
    (b"\x1f\x8b", "gzip", "decompress it first (gunzip)"),
    (b"PK\x03\x04", "zip", "unpack it first; of an Excel workbook, save the sheet as CSV"),
    (b"BZh91AY&SY", "bzip2", "decompress it first (bunzip2)"),
    (b"\xfd7zXZ\x00", "xz", "decompress it first (unxz)"),
    (b"\x28\xb5\x2f\xfd", "zstandard", "decompress it first (zstd -d)"),
    (b"PAR1\x15", "Parquet", "give it the ending .parquet"),
    (b"ARROW1\x00", "Arrow", "write it as Parquet"),
    (b"%PDF-", "PDF", "copy the text into a .txt file"),
    (b"\xd0\xcf\x11\xe0", "Office", "save the sheet as CSV"),
    (b"\xff\xfe", "UTF-16", "save it as UTF-8"),
    (b"\xfe\xff", "UTF-16", "save it as UTF-8"),
    (b"version https://git-lfs", "Git LFS pointer", "fetch the data itself with git lfs pull"),
)


def check_file(path: Path, name: str) -> None:
    """Refuses what no reader can read, or not the one that the ending names.

    Raises:
        DataError: a folder, an unknown ending, an empty file, or a binary format where text belongs.
    """
    ending = path.suffix.lower()
    if path.is_dir():
        inside = sorted(str(file) for file in path.iterdir() if file.suffix.lower() in READERS)
        remedy = f"name the files in it: {', '.join(inside[:5])}" if inside else "name a data file"
        raise DataError("this is a folder, not a file", place=name, remedy=remedy)
    if not path.is_file():
        raise DataError("this is not a regular file", place=name)
    with path.open("rb") as file:
        start = file.read(32)
    if not start.removeprefix(BOM):
        raise DataError("the file is empty", place=name, remedy="fill it, or leave it out of the recipe")
    for magic, kind, remedy in _FOREIGN:
        if start.startswith(magic) and not (kind == "Parquet" and ending == ".parquet"):
            raise DataError(f"holds {kind} data", place=name, remedy=remedy)
    if ending not in READERS:
        what = f"the ending '{ending}' is no data file's" if ending else "a data file needs an ending"
        raise DataError(what, place=name, remedy=f"write the data as one of {', '.join(READERS)}")


def no_such_file(path: Path, name: str) -> DataError:
    """The error about a file that is not there, with the names like it that are."""
    folder = path.absolute().parent
    if folder.is_dir():
        there = [file.name for file in folder.iterdir()]
        near = difflib.get_close_matches(path.name, there, n=3, cutoff=0.6)
        remedy = f"did you mean {quoted(near)}?" if near else "check the path; it is relative to the current folder"
    else:
        remedy = f"there is no folder {folder} either; paths are relative to the current folder"
    return DataError(f"no such file: {path.absolute()}", place=name, remedy=remedy)
