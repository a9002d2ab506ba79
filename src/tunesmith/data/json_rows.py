"""Rows of JSON and JSONL files, of which no more than a row and a chunk are held at a time.

A line of JSONL stands for itself, so a broken one is a `BadRow`. In an array, what follows a syntax error cannot be
trusted: that is a `DataError` with line and column.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from tunesmith.data.json_window import BOM, CHUNK_BYTES, JsonWindow, beginning, skip_blanks
from tunesmith.data.records import Place
from tunesmith.data.rows import MAX_ROW_BYTES, RAW_CHARACTERS, BadRow, Row, named_twice, quoted, raw_row, shortened
from tunesmith.data.shapes import looks_like_row
from tunesmith.data.strict_json import COMMA_AT_END, StrictDecoder, nested_too_deeply, reason_broken
from tunesmith.errors import DataError

_FIRST_LINE_BYTES = 2**20
"""Longest first line by which JSONL under the name of JSON is known: an array in one line is as long as its file."""
_MAX_KEYS = 1000
"""Most keys of an object that is a file of its own."""


# --- JSONL --------------------------------------------------------------------------------------------------------


def jsonl_rows(path: Path, name: str) -> Iterator[Row]:
    """The rows of a JSONL file, or of an array of objects under its name. Blank lines are no rows.

    Raises:
        DataError: the first object goes over several lines.
    """
    if _is_array_of_objects(path):
        yield from _array_rows(path, name)
        return
    decoder = StrictDecoder()
    is_first = True
    for number, line, is_whole in _lines(path, MAX_ROW_BYTES):
        if not line.strip():
            continue
        row = _row_of_line(line, decoder) if is_whole else f"the line is longer than {MAX_ROW_BYTES:,} bytes"
        if is_first and isinstance(row, str):
            _refuse_objects_over_lines(path, name)
        is_first = False
        place = Place(name, number)
        yield place, BadRow(place, row, _raw_line(line)) if isinstance(row, str) else row


def _lines(path: Path, longest: int) -> Iterator[tuple[int, bytes, bool]]:
    """The 1-based numbers of the lines, the lines without the byte order mark, and whether they are whole.

    Of a line of more than `longest` bytes only the beginning is there.
    """
    with path.open("rb") as file:
        read, end = _line_reader(file)
        number = 0
        while line := read(longest + 1):
            number += 1
            is_whole = len(line) <= longest or line.endswith(end)
            if not is_whole:
                line = line[: 4 * RAW_CHARACTERS]
            yield number, line.removeprefix(BOM) if number == 1 else line, is_whole
            while not is_whole:
                part = read(CHUNK_BYTES)
                is_whole = not part or part.endswith(end)


def _line_reader(file: BinaryIO) -> tuple[Callable[[int], bytes], bytes]:
    """What reads a line of at most so many bytes, and what ends a line: CR where there is no LF, as old Macs wrote."""
    head = beginning(file).rstrip(b"\r")
    if b"\n" in head or b"\r" not in head:
        return file.readline, b"\n"
    text = TextIOWrapper(file, encoding="latin-1", newline="\r")
    return lambda limit: text.readline(limit).encode("latin-1"), b"\r"


def _row_of_line(line: bytes, decoder: StrictDecoder) -> dict[str, Any] | str:
    """The object on a line of JSONL, or the reason why there is none."""
    try:
        text = line.decode("utf-8").rstrip(" \t\r\n")
        value, end, problem = decoder.decode_at(text, skip_blanks(text, 0))
    except UnicodeDecodeError as error:
        return f"not UTF-8 text (byte {error.start + 1} of the line)"
    except json.JSONDecodeError as error:
        what = "the line breaks off" if error.pos >= len(text) else reason_broken(error, text)
        return f"broken JSON: {what} (column {error.pos + 1})"
    except RecursionError:
        return nested_too_deeply()
    rest = skip_blanks(text, end)
    if text[rest:] == ",":
        return f"a comma after the object, which JSONL does not have (column {rest + 1})"
    if rest < len(text):
        return f"more than one value on the line (column {rest + 1})"
    if problem is not None:
        return problem
    if isinstance(value, list):
        return "an array, not an object; an array of rows belongs into a .json file"
    return value if isinstance(value, dict) else _not_an_object(value)


def _refuse_objects_over_lines(path: Path, name: str) -> None:
    """Raises where the first object begins on one line and ends on another: then no line is a row."""
    with path.open("rb") as file:
        window = JsonWindow(file, name)
        first = window.peek()
        line = window.line
        try:
            window.value()
        except DataError:
            return
        if first == "{" and window.line > line:
            remedy = "write each object on a line of its own (jq -c . FILE), or all as one array into a .json file"
            raise DataError(
                f"one object goes over lines {line} to {window.line}", place=f"{name}:{line}", remedy=remedy
            )


def _not_an_object(value: object) -> str:
    return f"not an object: {shortened(raw_row(value), 40)}"


def _raw_line(line: bytes) -> str:
    return shortened(line[: 4 * RAW_CHARACTERS + 4].decode("utf-8", errors="backslashreplace").strip())


# --- JSON ---------------------------------------------------------------------------------------------------------


def json_rows(path: Path, name: str) -> Iterator[Row]:
    """The rows of an array of objects, of one object around such an array, or of JSONL under the wrong name.

    The place is the line where the row starts; where that tells nothing, because an earlier row starts on the same
    line, the number of the row.

    Raises:
        DataError: the file is not JSON, or a row is longer than `MAX_ROW_BYTES`.
    """
    yield from jsonl_rows(path, name) if _is_jsonl(path) else _array_rows(path, name)


def _array_rows(path: Path, name: str) -> Iterator[Row]:
    line_before = 0
    for number, (value, problem, line) in enumerate(_items(path, name), 1):
        place = Place(name, line) if line > line_before else Place(name, number, is_row_number=True)
        line_before = line
        if problem is None and not isinstance(value, dict):
            problem = _not_an_object(value)
        yield place, BadRow(place, problem, raw_row(value)) if problem is not None else value


def _is_jsonl(path: Path) -> bool:
    """Whether the first line is a whole object and more follows."""
    if not _first_bytes(path).startswith(b"{"):
        return False
    filled = ((line.strip(), is_whole) for _, line, is_whole in _lines(path, _FIRST_LINE_BYTES) if line.strip())
    first, is_whole = next(filled)
    if not is_whole or not first.endswith(b"}") or next(filled, None) is None:
        return False
    try:
        text = first.decode("utf-8")
        _, end, _ = StrictDecoder().decode_at(text, 0)
    except (ValueError, RecursionError):
        return False
    return end == len(text)


def _is_array_of_objects(path: Path) -> bool:
    """Whether the file begins as an array of objects does, which no line of JSONL may."""
    start = _first_bytes(path)
    return start.startswith(b"[") and start[1:].lstrip().startswith(b"{")


def _first_bytes(path: Path) -> bytes:
    """The beginning of the file without the byte order mark and blanks."""
    with path.open("rb") as file:
        return beginning(file).removeprefix(BOM).lstrip()


_Item = tuple[Any, str | None, int]
"""A value, what is wrong with it, and the line it begins on."""


def _items(path: Path, name: str) -> Iterator[_Item]:
    """The items of the file's array, one by one; none where there are but blanks."""
    with path.open("rb") as file:
        window = JsonWindow(file, name)
        start = window.peek()
        if start == "[":
            yield from _array_items(window)
            _expect_end(window)
        elif start == "{":
            yield from _items_of_object(file, name)
        elif start:
            value, _ = window.value()
            _expect_end(window)
            raise DataError(_not_an_object(value), place=name, remedy=_WRAPPER_REMEDY)


_WRAPPER_REMEDY = "write an array of objects, or JSONL, in a file for each split"


def _array_items(window: JsonWindow) -> Iterator[_Item]:
    """The items of the array that begins here; goes past it."""
    window.skip()
    mark = window.peek()
    while mark != "]":
        line = window.line
        value, problem = window.value()
        yield value, problem, line
        mark = window.peek()
        if mark not in (",", "]"):
            raise window.broken("expected ',' or ']' after a row")
        if mark == ",":
            window.skip()
            if window.peek() == "]":
                raise window.broken(COMMA_AT_END)
    window.skip()


def _items_of_object(file: BinaryIO, name: str) -> Iterator[_Item]:
    """The items of the one list in the file's object; the object itself where it is a row.

    The file is read twice, as only its end tells which of the two it is.
    """
    window = JsonWindow(file, name)
    window.peek()
    key = _key_of_rows(window, name)
    window = JsonWindow(file, name)
    window.peek()
    line = window.line
    if key is None:
        value, problem = window.value()
        yield value, problem, line
        return
    for there in _members(window):
        if there == key:
            yield from _array_items(window)
            return
        window.value()


def _key_of_rows(window: JsonWindow, name: str) -> str | None:
    """The key of the one list in the object that begins here; None where the object is a row."""
    keys: list[str] = []
    outline: dict[str, Any] = {}
    problems: list[str] = []
    for key in _members(window):
        keys.append(key)
        if len(keys) > _MAX_KEYS:
            raise DataError(f"one object with more than {_MAX_KEYS:,} keys", place=name, remedy=_WRAPPER_REMEDY)
        if window.peek() == "[":
            items = _array_items(window)
            outline[key] = [value for value, _, _ in islice(items, 1)]
            deque(items, maxlen=0)
        else:
            value, problem = window.value()
            problems += [problem] if problem else []
            outline[key] = None if value is None else True
    _expect_end(window)
    lists = [key for key, inner in outline.items() if isinstance(inner, list)]
    if looks_like_row(outline) or not lists:
        return None
    if twice := named_twice(keys):
        problems.append(f"the key {quoted(twice)} is given twice")
    if problems:
        raise DataError(problems[0], place=name, remedy="correct the file")
    if len(lists) > 1:
        raise DataError(f"one object with several lists: {quoted(lists)}", place=name, remedy=_WRAPPER_REMEDY)
    return lists[0]


def _members(window: JsonWindow) -> Iterator[str]:
    """The keys of the object that begins here; goes past it.

    Each is yielded where its value begins, and the next is found only after the caller went past that value.
    """
    window.skip()
    mark = window.peek()
    while mark != "}":
        if window.peek() == "}":
            raise window.broken(COMMA_AT_END)
        if window.peek() != '"':
            raise window.broken("expected a key in double quotes")
        key, _ = window.value()
        if window.peek() != ":":
            raise window.broken("expected ':' after a key")
        window.skip()
        window.peek()
        yield key
        mark = window.peek()
        if mark not in (",", "}"):
            raise window.broken("expected ',' or '}' after a value")
        if mark == ",":
            window.skip()
    window.skip()


def _expect_end(window: JsonWindow) -> None:
    rest = window.peek()
    if rest == "{":
        remedy = "write all objects as one array, or each on a line of its own (jq -c . FILE) into a .jsonl file"
        raise window.broken("another object after the end of the first", remedy)
    if rest:
        raise window.broken("more text after the end of the data")
