"""Texts and numbers as a reader sees them: hidden characters made visible, digits that mean something.

What a model answers and what a data file holds is hostile until shown otherwise: an escape sequence could repaint the
terminal, a right-to-left override could turn a sentence around. Both are shown by name instead of obeyed.
"""

import math
import re
from collections.abc import Sequence
from numbers import Integral, Real

SIGNIFICANT_DIGITS = 4

# C0 controls but tab and newline, DEL and C1, zero-width space, direction marks, line and paragraph separators,
# embeddings and overrides, word joiner and invisible operators, isolates, byte order mark, annotations, tags, and
# surrogates that no encoding can write. The joiners U+200C and U+200D stay: emoji and Persian need them.
HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f\ud800-\udfff]"
)
_NUMERIC_TEXT = re.compile(r"[+\-−±<>≥≤~]?\s?\d[\d,.]*(e[+-]?\d+)?\s?(%|[a-zA-Zµ/]{1,8})?(\s?[\[(±][^A-Za-z]*)?")


def hidden_name(character: str) -> str:
    """What stands for a hidden character: U+001B for an escape, U+202E for a right-to-left override."""
    return f"U+{ord(character):04X}"


def visible(text: str) -> str:
    """`text` with the name of each hidden character in its place, as [U+001B]; tabs and newlines stay."""
    return HIDDEN.sub(lambda match: f"[{hidden_name(match[0])}]", text)


def plural(count: int, noun: str) -> str:
    """`count` and `noun`, as "1 error" or "2 errors"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def percent(part: int, whole: int) -> str:
    """`part` of `whole` with one decimal, as "97.4 %"; 0.0 and 100.0 stand for none and all only."""
    tenths = round(1000 * part / whole)
    if part < whole:
        tenths = min(tenths, 999)
    if part > 0:
        tenths = max(tenths, 1)
    return f"{tenths / 10:.1f} %"


def is_numeric(value: object) -> bool:
    """Whether `value` belongs in a right-aligned column: a number, or a text that is one, as "0.78 [0.71, 0.84]"."""
    if isinstance(value, str):
        return _NUMERIC_TEXT.fullmatch(value.strip()) is not None
    return isinstance(value, Real) and not isinstance(value, bool)


def numeric_columns(rows: Sequence[Sequence[object]], width: int) -> list[bool]:
    """Whether each of `width` columns holds numbers only (and at least one), and is to be aligned to the right."""
    columns = ([row[i] for row in rows if i < len(row) and row[i] not in (None, "")] for i in range(width))
    return [bool(column) and all(map(is_numeric, column)) for column in columns]


def format_value(value: object) -> str:
    """A cell or figure as text: 4,884,480; 0.7812; 3e-5; yes; – for None; texts with hidden characters visible."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Integral):
        return f"{int(value):,}"
    if isinstance(value, Real):
        return _format_float(float(value))
    return visible(str(value))


def format_cells(rows: Sequence[Sequence[object]]) -> list[list[str]]:
    """The cells of a table as texts.

    Floats that are compared share their decimals: those of a column where each column can be written so without loss,
    else those of a row (one metric a row, as 0.27 above 23.4).
    """
    width = max(map(len, rows), default=0)
    if width == 0:
        return [[] for _ in rows]
    columns = [[row[i] if i < len(row) else "" for row in rows] for i in range(width)]
    by_column = [_format_together(column) for column in columns]
    if all(column is not None for column in by_column):
        return [list(row) for row in zip(*(column or [] for column in by_column), strict=True)]
    padded = [[*row, *[""] * (width - len(row))] for row in rows]
    return [_format_together(row) or [format_value(v) for v in row] for row in padded]


def _format_together(values: Sequence[object]) -> list[str] | None:
    """`values` with the same number of decimals for all floats; None where one of them would lose by it."""
    floats = [float(v) for v in values if isinstance(v, Real) and not isinstance(v, Integral)]
    decimals = _shared_decimals(floats) if any(floats) else 0
    if decimals is None:
        return None
    return [
        f"{_unsigned_zero(float(v), decimals):,.{decimals}f}"
        if isinstance(v, Real) and not isinstance(v, Integral)
        else format_value(v)
        for v in values
    ]


def _format_float(value: float) -> str:
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "-∞"
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e12:
        mantissa, exponent = f"{value:.{SIGNIFICANT_DIGITS - 2}e}".split("e")
        return f"{_without_zeros(mantissa)}e{int(exponent)}"
    return _without_zeros(f"{value:,.{_decimals_for(value)}f}")


def _decimals_for(value: float, digits: int = SIGNIFICANT_DIGITS) -> int:
    return max(digits - 1 - math.floor(math.log10(abs(value))), 0)


def _without_zeros(number: str) -> str:
    return number.rstrip("0").rstrip(".") if "." in number else number


def _unsigned_zero(value: float, decimals: int) -> float:
    """Keeps -0.0001 from being written as -0.00."""
    return value if round(value, decimals) else 0.0


def _shared_decimals(values: list[float]) -> int | None:
    """Decimals that give the largest of `values`, which are not all 0, four digits and the smallest two; else None."""
    sizes = [abs(v) for v in values if v]
    if not all(map(math.isfinite, values)) or not 1e-4 <= min(sizes) <= max(sizes) < 1e12:
        return None
    decimals = _decimals_for(max(sizes))
    if decimals < _decimals_for(min(sizes), 2):
        return None
    while decimals and all(f"{v:.{decimals}f}".endswith("0") for v in values):
        decimals -= 1
    return decimals
