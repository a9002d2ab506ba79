"""Words and runs of words as hashes: equal where the words are, whatever row or text they stand in."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.data.checks.overlap.text_sets import example
from tunesmith.data.checks.overlap.shingles import (
    MOST_CHARACTERS,
    Grams,
    Words,
    covered,
    grams_of_units,
    grams_of_words,
    text_of,
    words_of,
)
from tunesmith.data.records import Example, Place

ROWS = st.lists(st.lists(st.sampled_from(["a", "b", "7", "天", "气"]), max_size=12), min_size=1, max_size=5)


def hashes(text: str) -> list[int]:
    words: list[int] = words_of([text]).hashes_W.tolist()
    return words


def runs(rows: list[list[str]], words: Words, grams: Grams) -> list[tuple[tuple[str, ...], int]]:
    """The words of each whole run, and its hash."""
    flat = [word for row in rows for word in row]
    starts = np.flatnonzero(grams.whole_W).tolist()
    return [(tuple(flat[at : int(grams.ends_W[at])]), int(grams.hashes_W[at])) for at in starts]


def test_case_width_and_punctuation_do_not_count() -> None:
    assert hashes("Hello, WORLD-wide: 3.5") == hashes("ｈｅｌｌｏ　world wide！ 3 5")
    assert hashes("你好，世界。") == hashes("你好 世界")


def test_letters_that_differ_make_another_word() -> None:
    assert len(set(hashes("mug mugs Mugg mu_g 12 21 é e"))) == 8


@given(st.text(st.characters(max_codepoint=127)))
def test_ascii_takes_a_shortcut_to_the_same_words(text: str) -> None:
    assert hashes(text) == hashes(f"{text} ñ")[:-1]


@given(st.text())
def test_every_text_has_words_or_none(text: str) -> None:
    words = words_of([text, "", text])
    assert words.row_count == 3
    assert words.hashes_W[: words.offsets[1]].tolist() == words.hashes_W[words.offsets[2] :].tolist()


def test_half_of_a_surrogate_pair_is_no_error() -> None:
    assert words_of(["mug \ud800 天"]).hashes_W.tolist() == hashes("mug 天")


def test_a_character_without_spaces_is_half_a_word_long() -> None:
    words = words_of(["今天 GPU42 は ไท 4 한국어"])
    assert words.units.tolist() == [1, 1, 2, 1, 1, 1, 2, 2]
    assert words.is_number.tolist() == [False] * 6 + [True, False]


@given(ROWS)
def test_runs_have_one_hash_exactly_where_their_words_are_the_same(rows: list[list[str]]) -> None:
    words = words_of([" ".join(row) for row in rows])
    for count in (1, 2, 3):
        found = runs(rows, words, grams_of_words(words, count))
        expected = [tuple(row[at : at + count]) for row in rows for at in range(len(row) - count + 1)]
        assert [run for run, _ in found] == expected
        assert len({hashed for _, hashed in found}) == len(set(expected))


@given(ROWS)
def test_runs_by_units_are_the_shortest_that_are_long_enough(rows: list[list[str]]) -> None:
    words = words_of([" ".join(row) for row in rows])
    found = runs(rows, words, grams_of_units(words, 5))
    expected = []
    for row in rows:
        for start in range(len(row)):
            lengths = [sum(1 if word in "天气" else 2 for word in row[start:end]) for end in range(len(row) + 1)]
            end = next((end for end, length in enumerate(lengths) if end > start and length >= 5), None)
            if end is not None:
                expected.append(tuple(row[start:end]))
    assert [run for run, _ in found] == expected
    assert len({hashed for _, hashed in found}) == len(set(expected))


@given(ROWS)
def test_words_are_covered_by_the_runs_that_hold_them(rows: list[list[str]]) -> None:
    words = words_of([" ".join(row) for row in rows])
    grams = grams_of_words(words, 3)
    chosen = grams.whole_W & (grams.hashes_W % 2 == 0)
    expected = np.zeros(len(words), dtype=np.bool_)
    for start in np.flatnonzero(chosen).tolist():
        expected[start : start + 3] = True
    assert covered(grams, chosen).tolist() == expected.tolist()


def test_the_beginning_of_a_very_long_row_is_compared() -> None:
    long = "word " * MOST_CHARACTERS
    assert len(text_of(example("ask", long))) == MOST_CHARACTERS
    assert len(text_of(Example((), Place("rows.jsonl", 1), long))) == MOST_CHARACTERS
    assert text_of(example("ask", "answer")) == "ask\nanswer"
