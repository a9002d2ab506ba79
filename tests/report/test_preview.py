"""One example on the terminal."""

import io

from rich.console import Console

from tests.data.tokenizers import merging_tokenizer
from tests.tiny import CHATML
from tunesmith.data.records import IGNORED_LABEL, Example, Message, Place
from tunesmith.data.template import ChatTemplate
from tunesmith.report.preview import print_example


def printed(pieces: list[tuple[str, bool, int]]) -> str:
    console = Console(file=io.StringIO(), width=200, highlight=False, color_system=None)
    print_example("train.jsonl:7", pieces, console)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_tokens_are_counted_not_pieces() -> None:
    text = printed([("a", False, 1), ("😀", True, 4), ("", True, 1)])
    assert text.startswith("── train.jsonl:7 · 6 tokens, 5 of them trained on (⟦these⟧) ──")
    assert text.endswith("a⟦😀⟧\n")


def test_the_counts_are_those_of_the_encoder() -> None:
    template = ChatTemplate(merging_tokenizer(CHATML))
    example = Example((Message("user", "😀 你"), Message("assistant", "你好 😀")), Place("train.jsonl", 7))
    encoded = template.encode(example)
    trained = sum(label != IGNORED_LABEL for label in encoded.labels)
    assert f"· {len(encoded.input_ids)} tokens, {trained} of them" in printed(list(template.describe(example)))
