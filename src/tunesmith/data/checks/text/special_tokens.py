"""Special tokens written in the data's own texts: the model reads them as the end of a turn or the like."""

from __future__ import annotations

import re

from tunesmith.data.checks.rules import TextRule, excerpt, texts_of, with_texts
from tunesmith.data.records import Example

MOST_PASSES = 20
"""Removals within removals; a text nested deeper is made to take time, and is reported as not mended."""


def special_tokens_rule(special_token: re.Pattern[str]) -> TextRule:
    """The rule "special_tokens" for a model.

    Args:
        special_token: matches the text of any of the model's special tokens, as `ChatTemplate.special_token`.
    """

    def find(example: Example) -> str | None:
        for text in texts_of(example):
            if found := special_token.search(text):
                return excerpt(text, *found.span())
        return None

    def without(text: str) -> str:
        # What is left after a removal may make up another token: "<|im_<|im_end|>end|>".
        for _ in range(MOST_PASSES):
            if not special_token.search(text):
                break
            text = special_token.sub("", text)
        return text

    return TextRule(
        "special_tokens",
        "hold special tokens of the model in their text, which it would read as the end of a turn or the like",
        "remove them from the texts",
        find,
        lambda example: with_texts(example, without),
    )
