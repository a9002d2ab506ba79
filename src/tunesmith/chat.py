"""Chat with a trained run: the adapter on its base model, or the merged model."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from tunesmith.adapters.contract import check_contract, read_contract
from tunesmith.adapters.files import load_adapter
from tunesmith.data.records import Message
from tunesmith.data.template import ChatTemplate
from tunesmith.errors import ModelError, TemplateError
from tunesmith.models.backend import configure_allocator
from tunesmith.models.generation import stream
from tunesmith.models.loading import load_model
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

    def __init__(self, folder: Path, *, base: bool = False, system: str | None = None) -> None:
        run = Run.open(folder)
        adapter_folder = run.trained_adapter()
        prepared = Preparation(run.recipe, run)
        self._template: ChatTemplate = prepared.template
        self._stop_token_ids = prepared.stop_token_ids
        contract = read_contract(adapter_folder)
        if contract is not None:
            check_contract(
                contract,
                base_digest=prepared.base_digest,
                template_contract=self._template.contract(),
                place=str(adapter_folder),
            )
        configure_allocator()
        model = load_model(prepared.model_folder, precision=prepared.precision, device=prepared.device)
        self._model = model if base else load_adapter(model, adapter_folder, precision=prepared.precision)
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
        token_ids: list[int] = []
        shown = ""
        for token_id in stream(
            self._model,
            self._template.encode_prompt(asked),
            max_new_tokens=max_new_tokens,
            stop_token_ids=self._stop_token_ids,
            temperature=temperature,
            seed=seed,
        ):
            token_ids.append(token_id)
            whole = self._template.decode_answer(token_ids)
            # A character of several tokens decodes to U+FFFD until its last byte is there.
            if whole.startswith(shown) and not whole.endswith("\ufffd"):
                yield whole[len(shown) :]
                shown = whole
        answer = self._template.decode_answer(token_ids)
        if len(answer) > len(shown) and answer.startswith(shown):
            yield answer[len(shown) :]
        self.messages = [*asked, Message("assistant", answer)]


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
