"""Rules that judge a row by what is usual in its set."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tunesmith.data.checks.dataset_rules import (
    BROKEN_JSON,
    COUNTED_CHARACTERS,
    IS_JSON,
    MOST_WORDS,
    NOT_JSON,
    answer_words,
    broken_json,
    json_state,
    language_mix,
    one_word_answers,
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 0),
        (" -- !\n", 0),
        ("Positive.", 1),
        ("don't", 1),
        ("3.5", 1),
        ("1,000", 1),
        ("2024-05-01", 1),
        ("well-known thing", 2),
        ("a,b", 2),
        ('{"a":1,"b":2}', 4),
        ("正面", 1),
        ("正面。", 1),
        ("我们明天去北京", 4),
        ("是的，可以", 2),
        ("使用 Python 读取", 3),
        ("こんにちは", 3),
        ("안녕하세요 여러분", 2),
        ("naïve café", 2),
    ],
)
def test_words_of_an_answer(text: str, words: int) -> None:
    assert answer_words(text) == words


def test_words_of_a_long_answer_are_estimated() -> None:
    assert answer_words("word " * COUNTED_CHARACTERS) == COUNTED_CHARACTERS
    assert answer_words("a " * 200_000) == MOST_WORDS


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("", NOT_JSON),
        ("The answer is {}", NOT_JSON),
        ("42", NOT_JSON),
        ('"text"', NOT_JSON),
        ("true", NOT_JSON),
        ("{}", IS_JSON),
        (' [1, {"a": null}]\n', IS_JSON),
        ('```json\n{"a": [1]}\n```', IS_JSON),
        ("```\n[1]\n```", IS_JSON),
        ("[" + "9" * 10_000 + "]", IS_JSON),
        ('{"a": 1', BROKEN_JSON),
        ("{'a': 1}", BROKEN_JSON),
        ('{"a": 1,}', BROKEN_JSON),
        ('{"a": 1} {"b": 2}', BROKEN_JSON),
        ('{"a": 1} as asked', BROKEN_JSON),
        ("[NaN]", BROKEN_JSON),
        ("[a name]", BROKEN_JSON),
        ('```json\n{"a": 1}', BROKEN_JSON),
        ("```json\n{a: 1}\n```", BROKEN_JSON),
        ("```python\n[1]\n```", NOT_JSON),
    ],
)
def test_whether_an_answer_is_json(text: str, state: int) -> None:
    assert json_state(text) == state


@pytest.mark.parametrize(
    "text", ["[" * 200_000, "[" * 200_000 + "]" * 200_000, '{"a":' * 100_000 + "1" + "}" * 100_000]
)
def test_deep_nesting_does_not_raise(text: str) -> None:
    assert json_state(text) == BROKEN_JSON


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=5,
)


@settings(max_examples=40)
@given(value=st.lists(json_values) | st.dictionaries(st.text(), json_values), ascii_only=st.booleans())
def test_what_json_writes_is_json(value: object, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert json_state(text) == IS_JSON
    assert json_state(text[:-1]) == BROKEN_JSON


@given(st.text())
def test_any_text_has_a_state(text: str) -> None:
    assert json_state(text) in (NOT_JSON, IS_JSON, BROKEN_JSON)


def words(*counts: tuple[int, int]) -> NDArray[np.uint16]:
    return np.array([words for words, rows in counts for _ in range(rows)], dtype=np.uint16)


def test_one_word_among_long_answers() -> None:
    assert one_word_answers(words((40, 98), (1, 1), (0, 1))).tolist() == [False] * 98 + [True] * 2


@pytest.mark.parametrize(
    "counts",
    [
        [],
        [(1, 100)],
        [(1, 60), (2, 40)],
        [(40, 80), (1, 20)],
        [(40, 90), (3, 9), (1, 1)],
        [(6, 99), (1, 1)],
    ],
    ids=["empty", "classes", "short", "a fifth is short", "short ones beside", "all rather short"],
)
def test_short_answers_that_are_meant(counts: list[tuple[int, int]]) -> None:
    assert not one_word_answers(words(*counts)).any()


def states(*counts: tuple[int, int]) -> NDArray[np.uint8]:
    return np.array([state for state, rows in counts for _ in range(rows)], dtype=np.uint8)


def test_what_is_no_json_among_json() -> None:
    found = broken_json(states((IS_JSON, 45), (BROKEN_JSON, 3), (NOT_JSON, 2)))
    assert found.tolist() == [False] * 45 + [True] * 5


@pytest.mark.parametrize(
    "counts",
    [[], [(IS_JSON, 19), (BROKEN_JSON, 1)], [(IS_JSON, 89), (NOT_JSON, 11)], [(NOT_JSON, 50), (BROKEN_JSON, 1)]],
    ids=["empty", "few rows", "mixed", "no JSON"],
)
def test_sets_that_are_not_json(counts: list[tuple[int, int]]) -> None:
    assert not broken_json(states(*counts)).any()


def mix(*pairs: tuple[str, str, int], names: bool = False) -> list[bool]:
    """Of each group of rows of equal prompt and answer languages, whether they are found."""
    prompts = np.array([prompt for prompt, _, rows in pairs for _ in range(rows)], dtype="S3")
    answers = np.array([answer for _, answer, rows in pairs for _ in range(rows)], dtype="S3")
    found = language_mix(prompts, answers, np.full(len(prompts), names))
    groups = np.split(found, np.cumsum([rows for _, _, rows in pairs])[:-1])
    assert all(group.all() or not group.any() for group in groups)
    return [bool(group.any()) for group in groups]


def test_an_answer_in_another_language() -> None:
    assert mix(("en", "en", 95), ("en", "zh", 5)) == [False, True]


def test_it_may_be_asked_for() -> None:
    assert mix(("en", "en", 95), ("en", "zh", 2), ("", "fr", 3), names=True) == [False, False, False]


def test_a_set_of_translations() -> None:
    assert mix(("en", "fr", 60), ("fr", "en", 39), ("en", "en", 1)) == [False, False, False]


def test_translations_beside_other_tasks() -> None:
    assert mix(("en", "en", 80), ("en", "de", 20)) == [False, False]


def test_a_few_rows_in_a_second_language() -> None:
    assert mix(("zh", "zh", 97), ("en", "en", 2), ("", "fr", 1)) == [False, True, True]


def test_sets_in_several_languages() -> None:
    assert mix(("en", "en", 50), ("zh", "zh", 47), ("fr", "fr", 3)) == [False, False, False]
    assert mix(("en", "en", 94), ("zh", "zh", 6)) == [False, False]


def test_unknown_is_no_language() -> None:
    assert mix(("en", "en", 50), ("en", "", 30), ("", "en", 10), ("", "", 10)) == [False, False, False, False]
    assert mix(("", "", 3)) == [False]


@given(st.lists(st.tuples(st.sampled_from(["en", "zh", "fr", ""]), st.sampled_from(["en", "zh", ""]), st.booleans())))
def test_languages_do_not_depend_on_the_order_of_rows(rows: list[tuple[str, str, bool]]) -> None:
    def found(of: list[tuple[str, str, bool]]) -> list[bool]:
        prompts, answers = np.array([p for p, _, _ in of], dtype="S3"), np.array([a for _, a, _ in of], dtype="S3")
        return list(language_mix(prompts, answers, np.array([n for _, _, n in of], dtype=np.bool_)))

    assert found(rows)[::-1] == found(rows[::-1])
