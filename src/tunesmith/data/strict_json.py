"""JSON values by a decoder stricter than Python's, and what is wrong with text that is no JSON."""

from __future__ import annotations

import json
from typing import Any

from tunesmith.data.rows import named_twice, quoted

MAX_NESTING = 100
"""Deepest nesting of lists and objects in a row.

How deep Python itself goes differs between its versions, and what comes after the decoder (copies to other processes,
messages) gives up earlier than the decoder does.
"""

COMMA_AT_END = "a comma before the closing bracket"

_SLIPS = (
    (("'",), "single quotes where JSON has double ones"),
    (("\u201c", "\u201d"), "curly quotes where JSON has straight ones"),
    (("//", "/*", "#"), "a comment, which JSON does not have"),
    (("None", "True", "False"), "None, True or False of Python, where JSON writes null, true or false"),
    (("\ufeff",), "a byte order mark in the middle of the file"),
)
"""How the text begins where a value or a key should, and what that is."""

_ESCAPES = {"\n": ("line break", r"\n"), "\r": ("line break", r"\r"), "\t": ("tab", r"\t"), "\0": ("NUL", r"\u0000")}


class StrictDecoder:
    """JSON with what Python's decoder lets pass noted: a key given twice, NaN, Infinity, numbers of absurd length."""

    def __init__(self) -> None:
        self._problems: list[str] = []
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object, parse_constant=self._constant)
        # Apart, because a function for integers makes each of them slow.
        self._decoder_of_long_numbers = json.JSONDecoder(
            object_pairs_hook=self._object, parse_constant=self._constant, parse_int=self._integer
        )

    def decode_at(self, text: str, start: int) -> tuple[Any, int, str | None]:
        """Decodes the value that begins at `start`, which is not a blank.

        Returns:
            The value, the position after it, and what is wrong with it, if anything.

        Raises:
            json.JSONDecodeError: there is no JSON value.
            RecursionError: it is nested so deeply that its end is unknown.
        """
        self._problems.clear()
        try:
            value, end = self._decoder.raw_decode(text, start)
        except json.JSONDecodeError:
            raise
        except ValueError:  # Python's limit of 4,300 digits
            value, end = self._decoder_of_long_numbers.raw_decode(text, start)
        brackets = text.count("{", start, end) + text.count("[", start, end)
        if brackets > MAX_NESTING and _is_nested_too_deeply(value):
            return None, end, nested_too_deeply()
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
        except ValueError:
            self._problems.append(f"a number of {len(digits)} digits")
            return 0


def nested_too_deeply() -> str:
    """The reason against such a value."""
    return f"nested too deeply, more than {MAX_NESTING} levels"


def _is_nested_too_deeply(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_NESTING):
        inside = (item for outer in level for item in (outer.values() if isinstance(outer, dict) else outer))
        level = [item for item in inside if isinstance(item, (dict, list))]
        if not level:
            return False
    return True


def reason_broken(error: json.JSONDecodeError, text: str) -> str:
    """What is wrong at `error.pos`, in words that lead to the cause where it is a usual one."""
    at = error.pos
    if error.msg.startswith("Unterminated string"):
        return "a text that is never closed"
    if error.msg.startswith("Invalid control character"):
        what, escape = _ESCAPES.get(text[at], ("control character", f"\\u{ord(text[at]):04x}"))
        return f"a {what} inside a text, which JSON writes as {escape}"
    if error.msg.startswith("Invalid \\escape"):
        return "a single backslash inside a text, which JSON writes as two"
    if error.msg.startswith("Expecting ',' delimiter"):
        return 'expected a comma; a quote inside a text is written as \\"'
    if error.msg.startswith("Illegal trailing comma") or (
        text[at : at + 1] in ("]", "}") and text[:at].rstrip().endswith(",")
    ):
        return COMMA_AT_END
    for marks, what in _SLIPS:
        if text.startswith(marks, at):
            return what
    return error.msg
