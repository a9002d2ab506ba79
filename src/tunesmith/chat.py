"""Chat with a trained run: the adapter on its base model, or the base model alone."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from tunesmith.data.records import Message
from tunesmith.data.template import ChatTemplate
from tunesmith.errors import ModelError, TemplateError
from tunesmith.models.backend import configure_cpu
from tunesmith.models.generation import stream
from tunesmith.preparation import Preparation
from tunesmith.runs import Run


class Chat:
    """A conversation with a run's model.

    Args:
        folder: the run folder of a trained run.
        base: talk to the base model instead, to compare.
        system: a system message; by default the recipe's.

    Raises:
        RunError: there is no trained run.
        ContractError: base model, template or tokenizer are not those of training.
    """

    def __init__(self, folder: str | Path, *, base: bool = False, system: str | None = None) -> None:
        run = Run.open(Path(folder))
        prepared = Preparation(run.recipe, run)
        prepared.check_adapter()
        self._template: ChatTemplate = prepared.template
        self._stop_token_ids = prepared.stop_token_ids
        configure_cpu()
        model = prepared.load_base()
        self._model = model if base else prepared.load_tuned(model)
        self._system = prepared.recipe.data.system if system is None else system
        self.messages: list[Message] = []
        self.clear()

    def clear(self) -> None:
        """Starts a new conversation."""
        self.messages = [Message("system", self._system)] if self._system else []

    def ask(
        self, text: str, *, max_new_tokens: int = 512, temperature: float = 0.0, seed: int | None = None
    ) -> Iterator[str]:
        """Yields the answer piece by piece, and adds it to the conversation when it is whole.

        Args:
            text: the user's message.
            max_new_tokens: longest answer.
            temperature: 0 takes the likeliest token.
            seed: makes sampling repeatable.

        Raises:
            ModelError: the conversation no longer fits the model's context.
            TemplateError: the template refuses the conversation.
        """
        asked = [*self.messages, Message("user", text)]
        pieces = []
        tokens = stream(
            self._model,
            self._template.encode_prompt(asked),
            max_new_tokens=max_new_tokens,
            stop_token_ids=self._stop_token_ids,
            temperature=temperature,
            seed=seed,
        )
        for piece in answer_pieces(tokens, self._template):
            pieces.append(piece)
            yield piece
        self.messages = [*asked, Message("assistant", "".join(pieces))]


def answer_pieces(token_ids: Iterable[int], template: ChatTemplate) -> Iterator[str]:
    """The text of an answer piece by piece, as its tokens come; joined it is `template.decode_answer` of them all."""
    ids: list[int] = []
    shown = ""
    for token_id in token_ids:
        ids.append(token_id)
        if not shown and template.is_lead(ids):
            continue
        whole = template.decode_answer(ids)
        # A character of several tokens decodes to U+FFFD until its last byte is there.
        if len(whole) > len(shown) and whole.startswith(shown) and not whole.endswith("\ufffd"):
            yield whole[len(shown) :]
            shown = whole
    answer = template.decode_answer(ids)
    if len(answer) > len(shown) and answer.startswith(shown):
        yield answer[len(shown) :]


HELP = "Type a message. /clear starts anew, /exit or Ctrl-D ends."


def talk(chat: Chat, lines: Iterable[str], *, max_new_tokens: int, temperature: float, interactive: bool) -> None:
    """Reads messages from `lines` and writes answers to standard output until there are no more.

    Without a person at the terminal each line is a conversation of its own: a file of questions can be piped in.
    """
    if interactive:
        print(HELP, file=sys.stderr)
    for line in lines:
        text = line.strip()
        if text == "/exit":
            return
        if text == "/clear":
            chat.clear()
            continue
        if not text:
            continue
        try:
            for piece in chat.ask(text, max_new_tokens=max_new_tokens, temperature=temperature):
                print(piece, end="", flush=True)
            print(flush=True)
        except KeyboardInterrupt:
            print("  (stopped)", flush=True)
        except (ModelError, TemplateError) as error:
            if not interactive:
                raise
            print(f"{error}\n/clear starts a new conversation.", file=sys.stderr)
        if not interactive:
            chat.clear()


def prompted_lines() -> Iterator[str]:
    """Lines that a person types, until Ctrl-D."""
    while True:
        try:
            yield input("> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return
