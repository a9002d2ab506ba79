"""A JSON file as text, of which no more than a value and a chunk are held at a time."""

from __future__ import annotations

import codecs
import json
import re
from typing import Any, BinaryIO

from tunesmith.data.rows import MAX_ROW_BYTES
from tunesmith.data.strict_json import StrictDecoder, nested_too_deeply, reason_broken
from tunesmith.errors import DataError

CHUNK_BYTES = 2**20
"""How much of a file is read at a time."""

BOM = b"\xef\xbb\xbf"

_BLANKS = re.compile(r"[ \t\r\n]*")
_CUT_TOKEN = 16
"""So close to the end of the text at hand an error may be due to that end; only texts and numbers are longer tokens."""
_BEGINNING_BYTES = 2**16


def beginning(file: BinaryIO) -> bytes:
    """The first 64 KiB of a file, which stands at its start afterwards."""
    file.seek(0)
    content = file.read(_BEGINNING_BYTES)
    file.seek(0)
    return content


def skip_blanks(text: str, start: int) -> int:
    """The position of the first character from `start` on that JSON does not take for a blank."""
    match = _BLANKS.match(text, start)
    return match.end() if match else start


class JsonWindow:
    """The part of a JSON file that is at hand as text; what lies before the place reached is dropped with time.

    Args:
        file: read from its start.
        name: how messages call it.

    Attributes:
        line: 1-based line of the place reached.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.line = 1
        self._file = file
        self._name = name
        self._text = ""
        self._at = 0
        self._column_before = 0
        """Characters of the line that `_text` begins in the midst of, before `_text`."""
        self._is_ended = False
        self._is_undecodable = False
        self._characters = codecs.getincrementaldecoder("utf-8")()
        self._values = StrictDecoder()
        file.seek(len(BOM) if beginning(file).startswith(BOM) else 0)

    def peek(self) -> str:
        """Goes to the next character that is no blank, and returns it; "" where the file ends."""
        while True:
            self._go(skip_blanks(self._text, self._at))
            if self._at < len(self._text):
                return self._text[self._at]
            if self._is_ended:
                return ""
            self._read_on()

    def skip(self) -> None:
        """Goes past the character that `peek` returned."""
        self._go(self._at + 1)

    def value(self) -> tuple[Any, str | None]:
        """Decodes the value that begins here, and goes past it.

        Returns:
            The value, and what is wrong with it, if anything.
        """
        while True:
            try:
                value, end, problem = self._values.decode_at(self._text, self._at)
                failure = None
                # More digits of a number may follow; the other values close themselves.
                is_sure = self._text[end - 1] in '}]"' or end + _CUT_TOKEN <= len(self._text)
            except json.JSONDecodeError as error:
                failure = error
                is_sure = not error.msg.startswith("Unterminated string") and error.pos + _CUT_TOKEN <= len(self._text)
            except RecursionError:
                raise self.broken(nested_too_deeply()) from None
            if is_sure or self._is_ended:
                break
            if len(self._text) - self._at > MAX_ROW_BYTES + _CUT_TOKEN:
                raise self._too_long()
            self._read_on()
        if failure is not None:
            raise self._broken_at(failure.pos, reason_broken(failure, self._text)) from None
        if end - self._at > MAX_ROW_BYTES:
            raise self._too_long()
        self._go(end)
        return value, problem

    def broken(self, what: str, remedy: str = "correct the file") -> DataError:
        """The error about a fault of the syntax here."""
        return self._broken_at(self._at, what, remedy)

    def _broken_at(self, at: int, what: str, remedy: str = "correct the file") -> DataError:
        what = "the file breaks off" if at >= len(self._text) else what
        line, column = self._position(at)
        return DataError(f"broken JSON: {what} (line {line}, column {column})", place=self._name, remedy=remedy)

    def _too_long(self) -> DataError:
        message = f"the row that begins here is longer than {MAX_ROW_BYTES:,} characters"
        return DataError(message, place=f"{self._name}:{self.line}", remedy="divide it, or correct the file")

    def _position(self, at: int) -> tuple[int, int]:
        """Line and column of a character of the text at hand, both 1-based."""
        line_feed = self._text.rfind("\n", 0, at)
        column = at - line_feed if line_feed >= 0 else self._column_before + at + 1
        return self.line + self._text.count("\n", self._at, at), column

    def _go(self, to: int) -> None:
        self.line += self._text.count("\n", self._at, to)
        self._at = to

    def _read_on(self) -> None:
        """Reads a chunk; more where a long row has begun, so that it is decoded anew only a few times.

        Raises:
            DataError: what comes is not UTF-8.
        """
        if self._is_undecodable:
            line, column = self._position(len(self._text))
            remedy = "save it as UTF-8 (iconv -f OLD_ENCODING -t UTF-8 FILE > NEW_FILE)"
            raise DataError(f"not UTF-8 text (column {column})", place=f"{self._name}:{line}", remedy=remedy)
        content = self._file.read(max(CHUNK_BYTES, len(self._text) - self._at))
        self._is_ended = not content
        try:
            more = self._characters.decode(content, final=self._is_ended)
        except UnicodeDecodeError as error:
            # What is before the fault comes first, so that the rows do not depend on where chunks end.
            more = error.object[: error.start].decode("utf-8")
            self._is_undecodable, self._is_ended = True, False
        self._column_before = self._position(self._at)[1] - 1
        self._text = self._text[self._at :] + more
        self._at = 0
