"""The text of an answer while it comes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data import templates
from tests.tiny import CHATML, byte_tokenizer
from tunesmith.chat import answer_pieces
from tunesmith.data.template import ChatTemplate

TOKENIZER = byte_tokenizer()


def ids_of(text: str) -> list[int]:
    ids: list[int] = TOKENIZER(text, add_special_tokens=False).input_ids
    return ids


def test_nothing_of_an_empty_thought_is_shown_and_all_of_the_rest_as_it_comes() -> None:
    template = ChatTemplate(byte_tokenizer(templates.QWEN3))
    assert list(answer_pieces(ids_of("<think>\n\n</think>\n\nté 4"), template)) == ["t", "é", " ", "4"]
    assert "".join(answer_pieces(ids_of("<think>\nhm\n</think>\n\n4"), template)) == "<think>\nhm\n</think>\n\n4"
    assert "".join(answer_pieces(ids_of("<think>\n"), template)) == "<think>\n"
    assert list(answer_pieces([], template)) == []


@pytest.mark.parametrize("jinja", [CHATML, templates.QWEN3, templates.LLAMA2, templates.TWO_STOPS, None])
@given(text=st.text(st.sampled_from(list(" \n<think>/aé你😀"))) | st.just("<think>\n\n</think>\n\nb"))
def test_the_pieces_join_to_the_answer(jinja: str | None, text: str) -> None:
    template = ChatTemplate(byte_tokenizer(jinja, bos_token="<s>"))
    assert "".join(answer_pieces(ids_of(text), template)) == template.decode_answer(ids_of(text))
