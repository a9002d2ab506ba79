import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.report.text import HIDDEN, format_cells, format_value, is_numeric, numeric_columns, percent, visible


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (4884480, "4,884,480"),
        (-1234, "-1,234"),
        (0.78333, "0.7833"),
        (23.41234, "23.41"),
        (1234.56, "1,235"),
        (3e-4, "0.0003"),
        (2.345678e-6, "2.35e-6"),
        (3e-5, "3e-5"),
        (6.02e23, "6.02e23"),
        (2.0, "2"),
        (0.0, "0"),
        (math.nan, "NaN"),
        (-math.inf, "-∞"),
        (True, "yes"),
        (None, "–"),
        (np.float32(0.5), "0.5"),
        (np.int64(12345), "12,345"),
        ("0.10", "0.10"),
    ],
)
def test_a_value_is_written_with_the_digits_that_matter(value: object, text: str) -> None:
    assert format_value(value) == text


@settings(deadline=None)
@given(value=st.floats(min_value=1e-300, max_value=1e300))
def test_a_float_keeps_three_digits(value: float) -> None:
    assert float(format_value(value).replace(",", "")) == pytest.approx(value, rel=0.006)


def test_floats_of_a_column_share_their_decimals() -> None:
    assert format_cells([["name", "ms"], ["a", 98.12], ["b", 112.3], ["c", 7.0]]) == [
        ["name", "ms"], ["a", "98.1"], ["b", "112.3"], ["c", "7.0"]
    ]  # fmt: skip


def test_where_a_column_would_lose_digits_the_rows_share_their_decimals() -> None:
    cells = format_cells([["metric", "base", "tuned"], ["BLEU", 0.0312, 0.24], ["perplexity", 23.4123, 1.2345]])
    assert cells[1:] == [["BLEU", "0.0312", "0.2400"], ["perplexity", "23.41", "1.23"]]


def test_ragged_rows_are_filled_up() -> None:
    assert format_cells([["a", "b"], [1], [1, 2, 3]]) == [["a", "b", ""], ["1", "", ""], ["1", "2", "3"]]
    assert format_cells([[], []]) == [[], []]


def test_columns_of_numbers_are_known_by_all_their_cells() -> None:
    rows: list[list[object]] = [["a", 1, "0.78 [0.71, 0.84]", None, "12 %"], ["b", None, "0.5", None, "order 3"]]
    assert numeric_columns(rows, 5) == [False, True, True, False, False]


@pytest.mark.parametrize("text", ["", "yes", "12 rows were dropped", "1 to 2", "v1.2"])
def test_texts_are_not_numbers(text: str) -> None:
    assert not is_numeric(text)


def test_hidden_characters_are_named() -> None:
    assert visible("a\x1b[31m\u202eb\r") == "a[U+001B][31m[U+202E]b[U+000D]"
    assert visible("tab\tline\n中文 👩‍💻 é") == "tab\tline\n中文 👩‍💻 é"


@settings(deadline=None)
@given(text=st.text(st.characters()))
def test_nothing_hidden_is_left(text: str) -> None:
    shown = visible(text)
    assert not HIDDEN.search(shown)
    assert all(c.isprintable() or c in "\t\n" or ord(c) >= 0xA0 for c in shown)
    shown.encode("utf-8")


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [(0, 3, "0.0 %"), (1, 3, "33.3 %"), (1, 9999, "0.1 %"), (9998, 9999, "99.9 %"), (7, 7, "100.0 %")],
)
def test_a_percentage_is_0_or_100_for_none_or_all_only(part: int, whole: int, text: str) -> None:
    assert percent(part, whole) == text
