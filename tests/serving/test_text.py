from __future__ import annotations

import pytest

from tests.tiny import byte_tokenizer
from tunesmith.serving.text import AnswerText

TOKENIZER = byte_tokenizer()


def decode(ids: list[int]) -> str:
    return str(TOKENIZER.decode(ids, skip_special_tokens=True))


def pushed(text: str, stop: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    answer = AnswerText(decode, stop)
    pieces = []
    for token in TOKENIZER(text).input_ids:
        piece, stopped = answer.push(token)
        pieces.append(piece)
        if stopped:
            return pieces, True
    return [*pieces, answer.finish()], False


@pytest.mark.parametrize("text", ["plain", "长江 №5", "mixed é\n\t 🦊 end", ""])
def test_pieces_join_to_the_text_and_hold_whole_characters(text: str) -> None:
    pieces, stopped = pushed(text)
    assert "".join(pieces) == text
    assert not stopped
    assert "\ufffd" not in "".join(pieces)


def test_a_text_cut_within_a_character_shows_it_at_the_end() -> None:
    answer = AnswerText(decode)
    answer.push(TOKENIZER("é").input_ids[0])
    assert answer.finish() == "\ufffd"


def test_what_may_become_a_stop_text_is_held_back() -> None:
    pieces, stopped = pushed("a\n\nb", ("\n\nQ",))
    assert not stopped
    assert pieces == ["a", "", "", "\n\nb", ""]


@pytest.mark.parametrize(("stop", "left"), [(("cd",), "ab"), (("x", "de", "d"), "abc"), (("a",), ""), (("abcde",), "")])
def test_the_answer_ends_before_the_first_stop_text(stop: tuple[str, ...], left: str) -> None:
    pieces, stopped = pushed("abcdef", stop)
    assert stopped
    assert "".join(pieces) == left
