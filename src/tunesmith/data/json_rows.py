"""Rows of JSON and JSONL files, by a decoder stricter than Python's.

A line of JSONL stands for itself, so a broken one is a `BadRow`. In an array, what follows a syntax error cannot be
trusted: that is a `DataError` with line and column.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tunesmith.data.records import Place
from tunesmith.data.rows import RAW_CHARACTERS, BadRow, Row, named_twice, quoted, raw_row, shortened
from tunesmith.data.shapes import looks_like_row
from tunesmith.errors import DataError

MAX_ROW_BYTES = 100_000_000
"""Longest line of JSONL, and longest field of CSV; more is taken for a file that is not what its name says."""

BOM = b"\xef\xbb\xbf"

_BLANKS = re.compile(r"[ \t\r\n]*")


class StrictDecoder:
    """JSON with what Python's decoder lets pass noted: a key given twice, NaN, Infinity, numbers of absurd length."""

    def __init__(self) -> None:
        self._problems: list[str] = []
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._object, parse_constant=self._constant, parse_int=self._integer
        )

    def decode_at(self, text: str, start: int) -> tuple[Any, int, str | None]:
        """Decodes the value that begins at `start`, which is not a blank.

        Returns:
            The value, the position after it, and what is wrong with it, if anything.

        Raises:
            json.JSONDecodeError: there is no JSON value.
            RecursionError: it is nested too deeply.
        """
        self._problems.clear()
        value, end = self._decoder.raw_decode(text, start)
        return value, end, self._problems[0] if self._problems else None

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            self._problems.append(f"the key {quoted(named_twice(key for key, _ in pairs))} is given twice")
        return values

    def _constant(self, name: str) -> None:
        self._problems.append(f"{name} is not JSON")

    def _integer(self, digits: str) -> int:
        try:
            return int(digits)
        except ValueError:  # Python's limit of 4,300 digits
            self._problems.append(f"a number of {len(digits)} digits")
            return 0


# --- JSONL --------------------------------------------------------------------------------------------------------


def jsonl_rows(path: Path, name: str) -> Iterator[Row]:
    """The rows of a JSONL file; the place's line is the line. Blank lines are no rows."""
    decoder = StrictDecoder()
    with path.open("rb") as file:
        for number, line in _lines(file):
            if not line.strip():
                continue
            place = Place(name, number)
            row = _row_of_line(line, decoder)
            yield place, BadRow(place, row, _raw_line(line)) if isinstance(row, str) else row


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The lines and their 1-based numbers, without the byte order mark; of a line too long only its first part."""
    number = 0
    while line := file.readline(MAX_ROW_BYTES + 1):
        number += 1
        part = line
        while len(part) > MAX_ROW_BYTES and not part.endswith(b"\n"):
            part = file.readline(MAX_ROW_BYTES + 1)
        yield number, line.removeprefix(BOM) if number == 1 else line


def _row_of_line(line: bytes, decoder: StrictDecoder) -> dict[str, Any] | str:
    """The object on a line of JSONL, or the reason why there is none."""
    if len(line) > MAX_ROW_BYTES:
        return f"the line is longer than {MAX_ROW_BYTES:,} bytes"
    try:
        text = line.decode("utf-8").rstrip(" \t\r\n")
        value, end, problem = decoder.decode_at(text, _skip_blanks(text, 0))
    except UnicodeDecodeError as error:
        return f"not UTF-8 text (byte {error.start + 1} of the line)"
    except json.JSONDecodeError as error:
        what = "the line breaks off" if error.pos >= len(text) else error.msg
        return f"broken JSON: {what} (column {error.pos + 1})"
    except RecursionError:
        return "nested too deeply"
    rest = _skip_blanks(text, end)
    if rest < len(text):
        return f"more than one value on the line (column {rest + 1})"
    if isinstance(value, list):
        return "an array, not an object; an array of rows belongs into a .json file"
    return problem or (value if isinstance(value, dict) else _not_an_object(value))


def _not_an_object(value: object) -> str:
    return f"not an object: {shortened(raw_row(value), 40)}"


def _raw_line(line: bytes) -> str:
    return shortened(line[: 4 * RAW_CHARACTERS + 4].decode("utf-8", errors="backslashreplace").strip())


def _skip_blanks(text: str, start: int) -> int:
    match = _BLANKS.match(text, start)
    return match.end() if match else start


# --- JSON ---------------------------------------------------------------------------------------------------------


def json_rows(path: Path, name: str) -> Iterator[Row]:
    """The rows of an array of objects, of one object around such an array, or of JSONL under the wrong name.

    The place is the line where the row starts; where that tells nothing, because an earlier row starts on the same
    line or the array is wrapped, the number of the row.

    Raises:
        DataError: the file is not JSON.
    """
    if _is_jsonl(path):
        yield from jsonl_rows(path, name)
        return
    text = _whole_text(path, name)
    start = _skip_blanks(text, 0)
    if start == len(text):
        return
    items = _array_items(text, start, name) if text.startswith("[", start) else _wrapped_items(text, start, name)
    counted, line, line_before = 0, 1, 0
    for number, (value, problem, at) in enumerate(items, 1):
        if at is not None:
            line += text.count("\n", counted, at)
            counted = at
        place = Place(name, line) if at is not None and line > line_before else Place(name, number, is_row_number=True)
        line_before = line
        if problem is None and not isinstance(value, dict):
            problem = _not_an_object(value)
        yield place, BadRow(place, problem, raw_row(value)) if problem is not None else value


def _is_jsonl(path: Path) -> bool:
    """Whether the first line is a whole object and more follows."""
    with path.open("rb") as file:
        filled = (line for _, line in _lines(file) if line.strip())
        first = next(filled, b"").strip()
        if not first.startswith(b"{"):
            return False
        try:
            text = first.decode("utf-8")
            _, end, _ = StrictDecoder().decode_at(text, 0)
        except (ValueError, RecursionError):
            return False
        return end == len(text) and any(filled)


def _whole_text(path: Path, name: str) -> str:
    content = path.read_bytes().removeprefix(BOM)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError("not UTF-8 text", place=f"{name}:{line}", remedy="save it as UTF-8") from None


_Item = tuple[Any, str | None, int | None]
"""A value, what is wrong with it, and the character it begins at, where that is known."""


def _array_items(text: str, start: int, name: str) -> Iterator[_Item]:
    """The items of the array that begins at `start`, one by one."""
    decoder = StrictDecoder()
    at = _skip_blanks(text, start + 1)
    closed = text.startswith("]", at)
    while not closed:
        value, end, problem = _decode(decoder, text, at, name)
        yield value, problem, at
        at = _skip_blanks(text, end)
        closed = text.startswith("]", at)
        if not closed and not text.startswith(",", at):
            raise _broken_json("expected ',' or ']' after a row", text, at, name)
        if not closed:
            at = _skip_blanks(text, at + 1)
    _expect_end(text, at + 1, name)


def _wrapped_items(text: str, start: int, name: str) -> Iterator[_Item]:
    """The items of the one list in the object that begins at `start`; the object itself where it is a row."""
    remedy = "write an array of objects, or JSONL, in a file for each split"
    value, end, problem = _decode(StrictDecoder(), text, start, name)
    _expect_end(text, end, name)
    if not isinstance(value, dict):
        raise DataError(_not_an_object(value), place=name, remedy=remedy)
    lists = [key for key, inner in value.items() if isinstance(inner, list)]
    if looks_like_row(value) or not lists:
        yield value, problem, start
        return
    if problem is not None:
        raise DataError(problem, place=name, remedy="correct the file")
    if len(lists) > 1:
        raise DataError(f"one object with several lists: {quoted(lists)}", place=name, remedy=remedy)
    yield from ((item, None, None) for item in value[lists[0]])


def _decode(decoder: StrictDecoder, text: str, at: int, name: str) -> tuple[Any, int, str | None]:
    try:
        return decoder.decode_at(text, at)
    except json.JSONDecodeError as error:
        raise _broken_json(error.msg, text, error.pos, name) from None
    except RecursionError:
        raise _broken_json("nested too deeply", text, at, name) from None


def _expect_end(text: str, at: int, name: str) -> None:
    rest = _skip_blanks(text, at)
    if rest < len(text):
        raise _broken_json("more text after the end of the data", text, rest, name)


def _broken_json(what: str, text: str, at: int, name: str) -> DataError:
    line = text.count("\n", 0, at) + 1
    column = at - text.rfind("\n", 0, at)
    what = "the file breaks off" if at >= len(text) else what
    return DataError(f"broken JSON: {what} (line {line}, column {column})", place=name, remedy="correct the file")
