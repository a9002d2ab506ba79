"""Short conversations for tests of the encoder, and what is trained of them."""

from tunesmith.data.records import Example, Message, Place
from tunesmith.data.template import ChatTemplate

PLACE = Place("train.jsonl", 7)


def conversation(*turns: str) -> tuple[Message, ...]:
    """Messages from "role: content" strings."""
    return tuple(Message(role, content) for role, _, content in (turn.partition(": ") for turn in turns))


def chat(*turns: str) -> Example:
    return Example(conversation(*turns), PLACE)


def plain_text(text: str) -> Example:
    return Example((), PLACE, text)


def trained_texts(template: ChatTemplate, example: Example) -> list[str]:
    """The runs of trained text, one string each."""
    runs: list[str] = []
    before = False
    for piece, trained, _ in template.describe(example):
        if trained and before:
            runs[-1] += piece
        elif trained:
            runs.append(piece)
        before = trained
    return runs
