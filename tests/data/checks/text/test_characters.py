import re

import pytest
from ftfy import fix_encoding
from ftfy.badness import MOJIBAKE_CATEGORIES, is_bad
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.checks.rules import TextRule
from tunesmith.data.checks.text.characters import INVISIBLE_CHARACTERS, MOJIBAKE
from tunesmith.data.records import Example, Message, Place

PLACE = Place("train.jsonl", 1)

SOUND = (
    "It’s “fine” – really… 25 €, 5 m² at 30 °C, ½ cup, © 2020, naïve café. ",
    "Le cœur a ses raisons : « Où êtes-vous ? », ÉTÉ À LA PLAGE. ",
    "„Größe“ heißt das Wort, ‚einfach‘ § 3. ",
    "¿Cómo estás? ¡Qué bien! A NAÇÃO está às 10h30, 1ª e 3.º. ",
    "Zażółć gęślą jaźń. „Cześć” – Příliš žluťoučký kůň. ",
    "Tiếng Việt rất đẹp – “Hà Nội”, ĐẠI HỌC. ",
    "«Война и мир» — роман, СССР», Ґудзь, Љубав. ",
    "Η Ελλάδα είναι όμορφη. «Ναι», 5 €. ",
    "你好，“世界”！——《书》……（一）１２３ ",
    "吾輩は猫である。ｶﾀｶﾅ〜 ",
    "안녕하세요, “세계”! ",
    "می‌خواهم کتاب‌ها را بخوانم. ",
    "שלום C++\u200e עולם. ",
    "क्‍या हाल है? श्‌ ",
    "สวัสดี\u200bชาวโลก ",
    "👩‍👩‍👧‍👦 ❤️ 1️⃣ 👍🏽 🏳️‍🌈 👁️‍🗨️ ☎︎ ",
    "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f ",
    "∀x∈ℝ: x² ≥ 0, √2 ≈ 1.414, 5 µm ± 3, (╯°□°)╯ ",
    "┌──┬──┐\n│ a│ b│\n└──┴──┘ ",
    "for i in range(3):\r\n\tprint(f'{i}', a<b, \"\\u200b\") ",
)

LETTERS = st.text(st.characters(categories=("Lu", "Ll", "Lo", "Nd", "Po", "Zs"), codec="utf-8"), max_size=30)


def answer(text: str) -> Example:
    return Example((Message("user", "Say something."), Message("assistant", text)), PLACE)


def mended(rule: TextRule, text: str) -> str:
    assert rule.mend is not None
    return rule.mend(answer(text)).messages[1].content


def sloppily_decoded(text: str) -> str:
    """UTF-8 read as Windows-1252 the way programs do it, which leave bytes without a meaning as they are."""
    return "".join(
        chr(byte) if byte in b"\x81\x8d\x8f\x90\x9d" else bytes([byte]).decode("cp1252") for byte in text.encode()
    )


@given(st.lists(st.sampled_from(SOUND), max_size=5).map("".join))
def test_sound_text_is_left_alone(text: str) -> None:
    for rule in (MOJIBAKE, INVISIBLE_CHARACTERS):
        assert rule.find(answer(text)) is None
        assert mended(rule, text) == text


@pytest.mark.parametrize(
    "text", ["café", "It’s", "“Yes” – no…", "今天天气很好。", "Größe: 25 €", "naïve à la carte", "Привет"]
)
@pytest.mark.parametrize("times", [1, 2])
def test_wrong_decoding_is_found_and_undone(text: str, times: int) -> None:
    for wrongly in (sloppily_decoded, lambda good: good.encode().decode("latin-1")):
        bad = text
        for _ in range(times):
            bad = wrongly(bad)
        assert MOJIBAKE.find(answer(f"Sound. {bad}")) is not None
        assert mended(MOJIBAKE, f"Sound. {bad}") == f"Sound. {text}"


def test_sound_lines_beside_a_wrong_one_are_left_alone() -> None:
    assert (
        mended(MOJIBAKE, "你好，“世界”。 &amp;\ncafÃ© isn’t far\nﬁn Ｗ")
        == "你好，“世界”。 &amp;\ncafé isn’t far\nﬁn Ｗ"
    )


def test_a_lost_no_break_space_is_restored_with_its_letter() -> None:
    assert mended(MOJIBAKE, "voilÃ le travail") == "voilà le travail"


def test_utf_8_read_as_gbk_is_undone_where_no_byte_is_lost() -> None:
    text = "你好，世界，再见，朋友，"
    assert mended(MOJIBAKE, text.encode().decode("gb18030")) == text
    lossy = "今天天气很好，我们去公园。".encode().decode("gbk", "replace")
    assert MOJIBAKE.find(answer(lossy)) is not None
    assert mended(MOJIBAKE, lossy) == lossy


@pytest.mark.parametrize("text", ["a caf\ufffd here", "锟斤拷锟斤拷"])
def test_a_lost_character_is_found_and_stays(text: str) -> None:
    assert MOJIBAKE.find(answer(text)) is not None
    assert mended(MOJIBAKE, text) == text


def test_the_evidence_shows_the_place() -> None:
    found = MOJIBAKE.find(answer("word " * 50 + "cafÃ© " + "word " * 50))
    assert found is not None
    assert "cafÃ©" in found
    assert len(found) <= 80


@given(LETTERS)
def test_mending_of_encodings_is_final(text: str) -> None:
    for bad in (text, sloppily_decoded(text), text.encode().decode("latin-1")):
        once = mended(MOJIBAKE, bad)
        assert mended(MOJIBAKE, once) == once
        assert "\ufffd" in once or "锟斤拷" in once or MOJIBAKE.find(answer(once)) is None


SUSPECTS = [
    chr(code) for code in range(0x80, 0x10000) if re.match(f"[{''.join(MOJIBAKE_CATEGORIES.values())}]", chr(code))
]


@given(st.text(st.one_of(st.sampled_from(SUSPECTS), st.sampled_from("aZ. ,1ÂÃœŒØÙВГСвβΞ‚€\xa0")), max_size=8))
def test_the_quick_look_misses_nothing_that_ftfy_would_mend(text: str) -> None:
    if is_bad(text) and fix_encoding(text) != text:
        assert MOJIBAKE.find(answer(text)) is not None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nul\x00l", "null"),
        ("h\x00e\x00l\x00l\x00o", "hello"),
        ("bell\x07 and \x7fdelete", "bell and delete"),
        ("zero\u200bwidth \u2060joi\ufeffner", "zerowidth joiner"),
        ("\ufeffstart", "start"),
        ("co\u00adoperate", "cooperate"),
        ("a\u202eb\u202c \u2066c\u2069", "ab c"),
        ("left\u200e mark", "left mark"),
        ("no\u200cjoin\u200d", "nojoin"),
        ("plain\ufe0f text", "plain text"),
        ("tag\U000e0041s", "tags"),
        ("one\u2028two\x0bthree\x85four", "one\ntwo\nthree\nfour"),
        ("one\n\x0ctwo \u2029three", "one\ntwo three"),
        ("unit\x1fseparator", "unit separator"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("שלום \u202dעולם\u202c", "שלום עולם\u202c"),
        ("👩\u200d and", "👩 and"),
    ],
)
def test_invisible_characters_are_removed(text: str, expected: str) -> None:
    assert INVISIBLE_CHARACTERS.find(answer(text)) is not None
    assert mended(INVISIBLE_CHARACTERS, text) == expected


def test_evidence_of_what_cannot_be_seen_can_be_seen() -> None:
    assert INVISIBLE_CHARACTERS.find(answer("zero\u200bwidth\nline")) == "zero\\u200bwidth line"


PIECES = st.sampled_from(
    (
        *SOUND,
        *"\x00\x08\x0b\x1b\x1f\x85\xad\u061c\u180e\u200b\u200c\u200d\u200e\u202a\u202e\u2028\u2060\u2066\ufe0f\ufeff",
    )
)


@given(st.lists(st.one_of(PIECES, st.sampled_from(("👩", "ک", "क", "ไ", "中", "a", "\U000e0067", "\U000e007f", "🏴")))))
def test_mended_text_holds_nothing_invisible(pieces: list[str]) -> None:
    once = mended(INVISIBLE_CHARACTERS, "".join(pieces))
    assert INVISIBLE_CHARACTERS.find(answer(once)) is None
    assert mended(INVISIBLE_CHARACTERS, once) == once


def test_an_example_without_a_fault_is_the_same_object() -> None:
    example = Example((), PLACE, text="Déjà vu 👍🏽")
    for rule in (MOJIBAKE, INVISIBLE_CHARACTERS):
        assert rule.mend is not None
        assert rule.mend(example) is example
