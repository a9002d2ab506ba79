"""What is compared: words, or characters where a language writes no spaces."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.evaluation.tokens import comparison_tokens, script_shares


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("The cat, the HAT.", ["the", "cat", "the", "hat"]),
        ("it's $5.30 (a_b)", ["it", "s", "5", "30", "a", "b"]),
        ("今天天气很好。", ["今", "天", "天", "气", "很", "好"]),
        ("用GPT4翻译", ["用", "gpt4", "翻", "译"]),
        ("東京タワーへ", ["東", "京", "タ", "ワ", "ー", "へ"]),
        ("서울은 크다", ["서울은", "크다"]),
        ("น้ำดี", ["น้\u0e4d", "า", "ด\u0e35"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("Übergröße", ["übergröße"]),
        ("１２３ ＡＢ", ["123", "ab"]),
        (" \n?!", []),
        ("", []),
    ],
)
def test_units_of_a_text(text: str, tokens: list[str]) -> None:
    assert comparison_tokens(text) == tokens


@given(st.text())
def test_units_hold_all_letters_and_digits_once(text: str) -> None:
    plain = unicodedata.normalize("NFKC", text).lower()
    letters = [c for c in plain if unicodedata.category(c)[0] in "LN"]
    kept = [c for c in "".join(comparison_tokens(text)) if unicodedata.category(c)[0] in "LN"]
    assert kept == letters


@given(st.text(), st.text())
def test_a_space_always_separates(left: str, right: str) -> None:
    assert comparison_tokens(f"{left} {right}") == comparison_tokens(left) + comparison_tokens(right)


def test_shares_of_scripts() -> None:
    assert script_shares(["中文 ab"]) == (0.5, 0.0)
    assert script_shares(["漢字かな"]) == (0.5, 0.5)
    assert script_shares(["123", ""]) == (0.0, 0.0)
