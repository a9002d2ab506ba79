"""What a rule about the text of one row is, and the tools that rules share.

A rule looks at one example and knows nothing of the others. Rules that compare rows are in the package `overlap`, in
`balance` and in `dataset_rules`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tunesmith.data.records import Example

EXCERPT_CHARACTERS = 80


@dataclass(frozen=True, slots=True)
class TextRule:
    """A rule about one row.

    Args:
        name: its key in the recipe's `data.rules`; its finding's code is the same with hyphens.
        what: completes "3 rows of train ...", as "hold text decoded with the wrong encoding".
        remedy: what to do, beside `fix`.
        find: what shows the fault, at most `EXCERPT_CHARACTERS` of it and on one line, or None where the row is sound.
        mend: the example without the fault: `find(mend(example))` is None, and what has no fault is left as it is.
            None where `fix` leaves the row out of train instead.
    """

    name: str
    what: str
    remedy: str
    find: Callable[[Example], str | None]
    mend: Callable[[Example], Example] | None = None

    @property
    def code(self) -> str:
        """The code of its finding."""
        return self.name.replace("_", "-")


def texts_of(example: Example) -> list[str]:
    """Every text of an example, in order: the contents of its messages, or its plain text."""
    return [message.content for message in example.messages] if example.text is None else [example.text]


def answers_of(example: Example) -> list[str]:
    """The texts that are trained on: the contents of the assistant's messages, or the plain text."""
    if example.text is not None:
        return [example.text]
    return [message.content for message in example.messages if message.role == "assistant"]


def with_texts(example: Example, change: Callable[[str], str]) -> Example:
    """The example with `change` applied to each text; the same object where nothing changes."""
    if example.text is not None:
        text = change(example.text)
        return example if text == example.text else replace(example, text=text)
    messages = tuple(
        message if (content := change(message.content)) == message.content else replace(message, content=content)
        for message in example.messages
    )
    return example if messages == example.messages else replace(example, messages=messages)


def excerpt(text: str, start: int, end: int) -> str:
    """What stands at [start, end) of `text` with some of what is around it, on one line, `EXCERPT_CHARACTERS` at most.

    Characters that do not print are written as escapes.
    """
    around = max(EXCERPT_CHARACTERS - (end - start), 0) // 2
    first, last = max(start - around, 0), min(end + around, len(text))
    shown = "".join(c if c.isprintable() else " " if c in "\n\r\t" else repr(c)[1:-1] for c in text[first:last])
    return " ".join(shown.split())[:EXCERPT_CHARACTERS]
