"""The one encoder: a conversation or a text to token ids and labels, for training, evaluation, chat and serving.

What is trained on: of a conversation the assistant turns, each from the end of the generation prompt to its stop token
(`data.turns` locates them); of a plain text everything. All else carries `IGNORED_LABEL`.

What is trained is what is served. A prompt is tokenized alone when serving, while a tokenizer that sees prompt and
answer at once may join characters of both into one token. Where that happens the two are tokenized apart, so the ids
of an example begin with the ids of its prompt wherever its text begins with the prompt's text.

Special tokens come from the template: templated text is tokenized with `add_special_tokens=False`, as transformers and
vLLM do, so a BOS stands there only if the template puts it. BOS is never looked for inside a text: in SmolLM2's GGUF it
is `<|im_start|>`, which also opens every turn.
"""

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

from tunesmith.data.plain_template import is_plain_template, plain_template
from tunesmith.data.records import IGNORED_LABEL, Example, Message, Place, TokenizedExample
from tunesmith.data.tokens import TextTokenizer, Tokens
from tunesmith.data.turns import RenderedChat, Span, TemplateRenderer, TurnFinder, any_of
from tunesmith.errors import TemplateError

if TYPE_CHECKING:  # importing the class loads torch
    from transformers import PreTrainedTokenizerBase

_TOKENIZER_FILE = "the model's tokenizer_config.json"


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """One example: its rendered text, the tokens, and the half-open ranges of tokens that are trained on, rising."""

    text: str
    tokens: Tokens
    trained: tuple[Span, ...]


class Piece(NamedTuple):
    """A part of a rendered text, to be shown.

    Args:
        text: its characters; none where a token stands for no text.
        is_trained: whether its tokens are trained on.
        tokens: how many tokens it is; several where each is a part of one character.
    """

    text: str
    is_trained: bool
    tokens: int


class ChatTemplate:
    """Encodes with a tokenizer's own chat template; one that has none is given the plain one.

    The plain template is set as `tokenizer.chat_template`, so that it is saved with the tokenizer.

    Args:
        tokenizer: a fast tokenizer, one that has a `tokenizer.json`.
        date: the day that a template which names today's date is told, as "2025-01-31"; today by default. An adapter
            is served with the day it was trained with: `contract()["date"]`.

    Attributes:
        source: "model" for the tokenizer's own template, "plain" for ours.
        text: the template itself.
        digest: SHA-256 of the template's text, in hexadecimal.
        uses_date: whether the template names today's date, as those of Llama 3 do.
        date: the day it is told, as "2025-01-31".
        stop_token_ids: tokens that end an answer: those the template renders after the content of a last and of an
            earlier turn, then the tokenizer's end of sequence where that is another.
        pad_token_id: what to fill batches with. It may equal a stop token, as in SmolLM2: what is padding is told by
            position and labels, never by the id.
        prompts_match_training: whether an example's text begins with the text of its prompt. False for templates whose
            generation prompt holds more than they render before an answer, as an opened `<think>`.

    Raises:
        TemplateError: the tokenizer is slow, has no end-of-sequence token where one is needed, or the template does
            not render an answer that ends with a stop token; or `date` is none.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", *, date: str | None = None) -> None:
        if not tokenizer.is_fast:
            raise TemplateError(
                f"{type(tokenizer).__name__} cannot say which characters a token covers",
                place="tokenizer",
                remedy="use a model folder with a tokenizer.json; AutoTokenizer.from_pretrained(...).save_pretrained"
                "(FOLDER) of a fast tokenizer writes one",
            )
        self._inner = tokenizer
        self._tokenizer = TextTokenizer(tokenizer)
        self._bos_id: int | None = tokenizer.bos_token_id
        self._eos_id: int | None = tokenizer.eos_token_id
        template = self._template()
        self.text = template
        self.source = "plain" if is_plain_template(template) else "model"
        self.digest = sha256(template.encode()).hexdigest()

        day = _day(date)
        self.uses_date = "strftime_now" in template
        self.date = day.isoformat()
        added_tokens = {token.content: index for index, token in tokenizer.added_tokens_decoder.items()}
        self._renderer = TemplateRenderer(template, dict(tokenizer.special_tokens_map), day)
        self._turns = TurnFinder(self._renderer, added_tokens)
        self.prompts_match_training = self._turns.prompts_match_training
        stop_ids = [added_tokens[token] for token in self._turns.stop_tokens]
        if self._eos_id is not None:
            stop_ids.append(self._eos_id)
        self.stop_token_ids: tuple[int, ...] = tuple(dict.fromkeys(stop_ids))
        pad_id: int | None = tokenizer.pad_token_id
        self.pad_token_id: int = pad_id if pad_id is not None else self.stop_token_ids[-1]

    def _template(self) -> str:
        """The tokenizer's template, after giving it the plain one if it has none."""
        if not self._inner.chat_template:
            if self._eos_id is None:
                raise TemplateError(
                    "the tokenizer has neither a chat template nor an end-of-sequence token, so no answer could end",
                    place="tokenizer",
                    remedy=f"set eos_token in {_TOKENIZER_FILE}",
                )
            self._inner.chat_template = plain_template(with_bos=self._tokenizer.adds_bos)
        try:
            return str(self._inner.get_chat_template())
        except ValueError as error:
            raise TemplateError(
                "the tokenizer has several chat templates, and none is the default",
                place="tokenizer",
                remedy="name one of them 'default', or save it as the model's chat_template.jinja",
            ) from error

    # Encoding

    def encode(self, example: Example, max_length: int | None = None) -> TokenizedExample:
        """Token ids and labels of `example`, cut on the right to `max_length` tokens.

        Raises:
            TemplateError: there is no assistant turn, the template refuses the messages, or a turn cannot be located.
        """
        encoded = self.encode_spans([example])[0]
        if isinstance(encoded, TemplateError):
            raise encoded
        return _tokenized(encoded, example.place, max_length)

    def encode_prompt(self, messages: Sequence[Message], *, place: str = "prompt") -> list[int]:
        """Token ids of a conversation that awaits an answer: `messages`, then the generation prompt.

        Args:
            messages: the turns so far, in order; at least one.
            place: where they come from, for the error.

        Raises:
            TemplateError: the template refuses the messages.
        """
        try:
            chat = self._turns.find(messages, place=place, add_generation_prompt=True)
            text, starts = chat.text, [start for start, _ in chat.spans]
        except TemplateError:
            # Earlier answers need not be located to be answered; if it was the template that refused, it does so again.
            text, starts = self._renderer.render(messages, place=place, add_generation_prompt=True), []
        return self._tokenizer.tokenize_apart(text, self._tokenizer.tokenize([text])[0], starts).ids

    def encode_spans(self, examples: Sequence[Example]) -> list[EncodedExample | TemplateError]:
        """Each of `examples` encoded whole, or why it cannot be; the texts are tokenized together."""
        rendered = [self._try_to_render(example) for example in examples]
        chats = [chat for chat in rendered if isinstance(chat, RenderedChat)]
        texts = [text for text in rendered if isinstance(text, str)]
        chat_tokens = iter(self._tokenizer.tokenize([chat.text for chat in chats]))
        text_tokens = iter(self._tokenizer.tokenize(texts, add_special_tokens=True))
        results: list[EncodedExample | TemplateError] = []
        for one in rendered:
            if isinstance(one, TemplateError):
                results.append(one)
            elif isinstance(one, str):
                results.append(self._encode_text(one, next(text_tokens)))
            else:
                results.append(self._encode_chat(one, next(chat_tokens)))
        return results

    def _try_to_render(self, example: Example) -> RenderedChat | str | TemplateError:
        """A conversation rendered, a plain text as it is, or why neither can be."""
        place = str(example.place)
        if example.text is not None:
            if self._eos_id is None:
                remedy = f"set eos_token in {_TOKENIZER_FILE}"
                return TemplateError("the tokenizer has no token that could end a text", place=place, remedy=remedy)
            return example.text
        if not example.has_assistant_turn:
            return TemplateError(
                "no assistant turn, so there is nothing to learn",
                place=place,
                remedy="add the answer as a message with the role 'assistant', or leave the row out",
            )
        try:
            return self._turns.find(example.messages, place=place)
        except TemplateError as error:
            return error

    def _encode_text(self, text: str, tokens: Tokens) -> EncodedExample:
        if self._eos_id is not None and tokens.ids[-1:] != [self._eos_id]:
            tokens.append(self._eos_id)
        return EncodedExample(text, tokens, ((0, len(tokens.ids)),))

    def _encode_chat(self, chat: RenderedChat, tokens: Tokens) -> EncodedExample:
        tokens = self._tokenizer.tokenize_apart(chat.text, tokens, [start for start, _ in chat.spans])
        trained = []
        for start, end in chat.spans:
            first = tokens.first_from(start)
            if first is None:
                raise AssertionError("a token lies on both sides of a border")  # tokenize_apart saw to it
            trained.append((first, tokens.end_of(end)))
        return EncodedExample(chat.text, tokens, tuple(trained))

    # Reading back

    def decode_answer(self, token_ids: Sequence[int]) -> str:
        """The text of a generated answer: up to the first stop token, without special tokens.

        What the template itself puts before a content, such as a space or an empty `<think>` block, is taken off, so
        that the answer to a prompt compares with the content of a message.
        """
        ids = list(token_ids)
        stop = next((index for index, token in enumerate(ids) if token in self.stop_token_ids), len(ids))
        lead_ids, lead = self._lead
        ids = ids[:stop]
        if lead_ids and ids[: len(lead_ids)] == lead_ids:
            ids, lead = ids[len(lead_ids) :], ""
        return self._decode(ids).removeprefix(lead).removesuffix(self._turns.trail)

    def is_lead(self, token_ids: Sequence[int]) -> bool:
        """Whether these first tokens of an answer may be part of what `decode_answer` takes off its beginning.

        While they are, and the answer is not whole, nothing of it can be shown.
        """
        ids = list(token_ids)
        lead_ids, lead = self._lead
        if len(ids) < len(lead_ids) and ids == lead_ids[: len(ids)]:
            return True
        text = self._decode(ids)
        return len(text) < len(lead) and lead.startswith(text)

    def _decode(self, ids: list[int]) -> str:
        return str(self._inner.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    @cached_property
    def _lead(self) -> tuple[list[int], str]:
        """What the template puts before a content: as tokens, and as text unless special tokens are part of it."""
        lead = self._turns.lead
        ids = self._tokenizer.continuation(lead).ids if lead.strip() else []
        return ids, "" if self.special_token.search(lead) else lead

    def describe(self, example: Example, max_length: int | None = None) -> list[Piece]:
        """The text of each token and whether it is trained on, to be shown; the pieces join to the rendered text.

        Raises:
            TemplateError: as `encode`.
        """
        encoded = self.encode_spans([example])[0]
        if isinstance(encoded, TemplateError):
            raise encoded
        labels = _tokenized(encoded, example.place, max_length).labels
        pieces: list[Piece] = []
        shown = 0
        for token, end, label in zip(encoded.tokens.ids, encoded.tokens.ends, labels, strict=False):
            piece = encoded.text[shown:end]
            if not piece and token in (self._bos_id, self._eos_id):
                piece = str(self._inner.convert_ids_to_tokens(token))  # put there by the tokenizer or by us
            is_trained = label != IGNORED_LABEL
            if not piece and pieces and pieces[-1].is_trained == is_trained:
                pieces[-1] = pieces[-1]._replace(tokens=pieces[-1].tokens + 1)
            else:
                pieces.append(Piece(piece, is_trained, 1))
            shown = max(shown, end)
        return pieces

    @cached_property
    def special_token(self) -> re.Pattern[str]:
        """Matches the text of any special token.

        In a text it is tokenized as the special token, so a message that holds `<|im_end|>` ends its own turn.
        """
        added = self._inner.added_tokens_decoder.items()
        special = {token.content for index, token in added if token.special or index in self.stop_token_ids}
        return re.compile(any_of(token for token in special if token.strip()))

    def renders(self, role: str) -> bool:
        """Whether the content of a message of this role, "system" or "tool", stands in what the template renders.

        True where the template refuses the role: that is an error of its own, at the row.
        """
        content = "a content to look for"
        before = [] if role == "system" else [Message("user", "Hello"), Message("assistant", "Hi")]
        messages = [*before, Message(role, content), *([Message("user", "Hello")] if role == "system" else [])]
        try:
            return content in self._renderer.render(messages, place="chat template")
        except TemplateError:
            return True

    @property
    def tokenizer_adds_bos(self) -> bool:
        """Whether the tokenizer would put BOS before a text by itself; templated texts are tokenized without that."""
        return self._tokenizer.adds_bos

    def begins_with_two_bos(self, token_ids: Sequence[int]) -> bool:
        """Whether BOS is doubled."""
        return self._bos_id is not None and list(token_ids[:2]) == [self._bos_id, self._bos_id]

    def contract(self) -> dict[str, Any]:
        """What whoever uses an adapter must have alike; plain values, to be stored beside the adapter."""
        prompt = self._renderer.render([Message("user", "Hello")], place="chat template", add_generation_prompt=True)
        begins_with_bos = self._bos_id is not None and self._tokenizer.tokenize([prompt])[0].ids[:1] == [self._bos_id]
        return {
            "digest": self.digest,
            "source": self.source,
            "stop_tokens": [str(self._inner.convert_ids_to_tokens(token)) for token in self.stop_token_ids],
            "stop_token_ids": list(self.stop_token_ids),
            "bos_token": None if self._bos_id is None else str(self._inner.bos_token),
            "prompts_begin_with_bos": begins_with_bos,
            "bos_added_by": "template" if begins_with_bos else "none",
            "prompts_match_training": self.prompts_match_training,
            **({"date": self.date} if self.uses_date else {}),
        }


def _day(date: str | None) -> datetime.date:
    try:
        return datetime.date.today() if date is None else datetime.date.fromisoformat(date)
    except (ValueError, TypeError):
        raise TemplateError(f"{date!r} is no date", place="chat template", remedy="write it as 2025-01-31") from None


def _tokenized(encoded: EncodedExample, place: Place, max_length: int | None) -> TokenizedExample:
    ids = encoded.tokens.ids
    labels = [IGNORED_LABEL] * len(ids)
    for first, last in encoded.trained:
        labels[first:last] = ids[first:last]
    kept = len(ids) if max_length is None else min(max_length, len(ids))
    return TokenizedExample(tuple(ids[:kept]), tuple(labels[:kept]), place, tokens_cut=len(ids) - kept)
