"""What can be asked of a data set: each conversation up to its last answer, and that answer as the reference."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from tunesmith.data.records import Example, TokenizedExample
from tunesmith.data.template import ChatTemplate


@dataclass(frozen=True)
class Question:
    """One conversation to be answered.

    Args:
        prompt_ids: the conversation up to its last answer, with the generation prompt.
        prompt_text: the user's last message, for a reader.
        reference: the last answer as the data have it.
        tokenized: the conversation with that answer, whole, labels on all its answers.
    """

    prompt_ids: tuple[int, ...]
    prompt_text: str
    reference: str
    tokenized: TokenizedExample


def is_answerable(example: Example) -> bool:
    """Whether there is an answer to ask for: plain text has none."""
    return example.text is None and example.has_assistant_turn


def until_last_answer(example: Example) -> Example:
    """The conversation without what follows its last answer."""
    last = max(index for index, message in enumerate(example.messages) if message.role == "assistant")
    return replace(example, messages=example.messages[: last + 1])


def questions(
    examples: Iterable[Example], template: ChatTemplate, *, context_length: int | None, limit: int | None = None
) -> list[Question]:
    """The questions of `examples`, in order; plain text, and what the context cannot hold, is left out.

    Args:
        examples: a split's examples.
        template: of the model that is asked.
        context_length: most tokens of the model, None if it states none.
        limit: stop after so many.
    """
    found: list[Question] = []
    for example in filter(is_answerable, examples):
        if limit is not None and len(found) == limit:
            break
        asked = until_last_answer(example)
        tokenized = template.encode(asked)
        if context_length is not None and len(tokenized.input_ids) > context_length:
            continue
        found.append(
            Question(
                prompt_ids=tuple(template.encode_prompt(asked.messages[:-1], place=str(example.place))),
                prompt_text=asked.messages[-2].content if len(asked.messages) > 1 else "",
                reference=asked.messages[-1].content,
                tokenized=tokenized,
            )
        )
    return found
