"""A raw row with its place, or a `BadRow` that says why there is none; and how data is quoted in messages."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tunesmith.data.records import Place

RAW_CHARACTERS = 200

MAX_ROW_BYTES = 32_000_000
"""Longest row, in bytes of a line of JSONL, else in characters; a longer one is taken for a fault of the file.

It is a hundred times what a model can learn from at once, and bounds the memory that a broken file takes.
"""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used.

    Args:
        place: where it stands.
        reason: why, without the place.
        raw: its beginning, on one line without control characters.
    """

    place: Place
    reason: str
    raw: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


Row = tuple[Place, dict[str, Any] | BadRow]
"""Where a row stands, and its values or why it has none."""


def named_twice(names: Iterable[str]) -> list[str]:
    """The names that come more than once."""
    return [name for name, count in Counter(names).items() if count > 1]


def shortened(text: str, width: int = RAW_CHARACTERS) -> str:
    """The beginning of a text on one line, control characters and half characters as escapes."""
    cut = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:width])
    return cut if len(text) <= width else f"{cut}…"


def shown(value: object, width: int = 40) -> str:
    """A value for a message: a text in quotes, at most `width` characters of it, without control characters."""
    if isinstance(value, str):
        return f"'{shortened(value, width)}'"
    return shortened(repr(value), width)


def quoted(keys: list[str], at_most: int = 12) -> str:
    """Keys for a message, in quotes; "no keys" where there are none."""
    if not keys:
        return "no keys"
    more = f" and {len(keys) - at_most} more" if len(keys) > at_most else ""
    return ", ".join(shown(key) for key in keys[:at_most]) + more


def raw_row(values: object) -> str:
    """The beginning of a row's values as JSON, for `BadRow.raw`."""
    try:
        return shortened(json.dumps(values, ensure_ascii=False, default=str))
    except (TypeError, ValueError, RecursionError):
        return f"({type(values).__name__})"


def one_line(error: Exception) -> str:
    """An exception's text on one line."""
    return shortened(" ".join(str(error).split()) or type(error).__name__, 300)
