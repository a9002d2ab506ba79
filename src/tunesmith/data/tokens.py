"""Text to token ids that know which characters they cover.

A byte-pair or sentencepiece vocabulary may join characters of both sides of a border into one token, or split the left
side according to the right. `tokenize_apart` notices this and tokenizes the sides apart there, so that the ids left of
a border are those of the left text alone.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # importing the class loads torch
    from transformers import PreTrainedTokenizerBase


@dataclass(slots=True)
class Tokens:
    """The T tokens of one text.

    Args:
        ids: their ids.
        starts: where each begins, in characters of the text; never after the end of the one before.
        ends: where each ends, exclusive, never falling. The bytes of one character share a range; a token that stands
            for no text has an empty one.
        borders: for each character where sides were tokenized apart, the first token after it.
    """

    ids: list[int]
    starts: list[int]
    ends: list[int]
    borders: dict[int, int] = field(default_factory=dict)

    def first_from(self, character: int) -> int | None:
        """Index of the first token of what begins at `character`; None where a token lies on both sides of it."""
        if character in self.borders:
            return self.borders[character]
        index = bisect_right(self.ends, character)
        if (self.ends[index - 1] if index else 0) != character:
            return None
        if index < len(self.ids) and self.starts[index] < character:
            return None
        # The mark that sentencepiece puts before a word may be a token of its own, of no text; it goes with the word.
        while index and self.starts[index - 1] == self.ends[index - 1]:
            index -= 1
        return index

    def end_of(self, character: int) -> int:
        """Index after the token that reaches `character`, where a text ends that closes with a whole token."""
        return bisect_left(self.ends, character) + 1

    def append(self, token_id: int) -> None:
        """Adds a token of no text."""
        end = self.ends[-1] if self.ends else 0
        self.ids.append(token_id)
        self.starts.append(end)
        self.ends.append(end)


class TextTokenizer:
    """A fast tokenizer as functions from texts to `Tokens`."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        self._bos_id: int | None = tokenizer.bos_token_id
        self._bos_token = str(tokenizer.bos_token)
        self._known_white_space: dict[str, list[int]] = {}

    def tokenize(self, texts: Sequence[str], *, add_special_tokens: bool = False) -> list[Tokens]:
        """The tokens of each text; by default no special token is added, and BOS is never doubled."""
        if not texts:
            return []
        batch = self._tokenizer(
            list(texts),
            add_special_tokens=add_special_tokens,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # no warning about the model's length: the check reports it
        )
        return [
            self._single_bos(text, Tokens(list(ids), *_ranges(offsets)))
            for text, ids, offsets in zip(texts, batch["input_ids"], batch["offset_mapping"], strict=True)
        ]

    def tokenize_apart(self, text: str, tokens: Tokens, borders: Sequence[int]) -> Tokens:
        """`tokens`, those of `text`, or new ones where those left of a border depend on what stands right of it.

        Args:
            borders: characters of `text`, rising.
        """
        joined = [border for border in borders if self._depend(text, tokens, border)]
        if joined:
            tokens = self._in_pieces(text, joined)
        if any(tokens.first_from(border) is None for border in borders):
            tokens = self._in_pieces(text, borders)  # a border that was clean before, in a tokenizer that looks far
        return tokens

    def _depend(self, text: str, tokens: Tokens, border: int) -> bool:
        """Whether the tokens left of `border` may depend on what stands right of it.

        One token may lie on both sides. And the usual patterns that split a text into words (`\\s+(?!\\S)`) leave the
        last of several white spaces to the word that follows: "\\n\\n" is one token at the end of a text, and two
        before a word.
        """
        first = tokens.first_from(border)
        if first is None:
            return True
        blank = border
        while blank and text[blank - 1].isspace():
            blank -= 1
        if border - blank < 2:
            return False
        begin = tokens.first_from(blank)
        return begin is None or tokens.ids[begin:first] != self._white_space(text[blank:border])

    def _white_space(self, text: str) -> list[int]:
        """The tokens of white space at the end of a text; remembered, as a template ends its prompts alike."""
        if text not in self._known_white_space:
            self._known_white_space[text] = self.continuation(text).ids
        return self._known_white_space[text]

    def _in_pieces(self, text: str, borders: Sequence[int]) -> Tokens:
        whole = self.tokenize([text[: borders[0]]])[0]
        for start, end in zip(borders, [*borders[1:], len(text)], strict=True):
            piece = self.continuation(text[start:end])
            whole.borders[start] = len(whole.ids)
            whole.ids += piece.ids
            whole.starts += [start + character for character in piece.starts]
            whole.ends += [start + character for character in piece.ends]
        return whole

    def continuation(self, text: str) -> Tokens:
        """The tokens of `text` after another text: without the space that a tokenizer may put before a text."""
        if self._puts_a_space_first:
            newline = self.tokenize(["\n"])[0].ids
            tokens = self.tokenize(["\n" + text])[0]
            count = len(newline)
            if tokens.ids[:count] == newline:
                starts, ends = ([max(at - 1, 0) for at in side[count:]] for side in (tokens.starts, tokens.ends))
                return Tokens(tokens.ids[count:], starts, ends)
        return self.tokenize([text])[0]

    @cached_property
    def _puts_a_space_first(self) -> bool:
        """Whether a text is tokenized as if a space stood before it, as sentencepiece does."""
        newline, alone, after = (tokens.ids for tokens in self.tokenize(["\n", "a", "\na"]))
        return after != newline + alone

    @cached_property
    def adds_bos(self) -> bool:
        """Whether the tokenizer puts BOS before a text by itself."""
        return self._bos_id is not None and self.tokenize(["a"], add_special_tokens=True)[0].ids[0] == self._bos_id

    def _single_bos(self, text: str, tokens: Tokens) -> Tokens:
        """Takes off a BOS that the tokenizer put before the text's own."""
        bos = self._bos_id
        if bos is not None and tokens.ids[:2] == [bos, bos] and not text.startswith(2 * self._bos_token):
            return Tokens(tokens.ids[1:], tokens.starts[1:], tokens.ends[1:])
        return tokens


def _ranges(offsets: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Starts and ends of tokens such that each begins no later than the one before ends.

    Byte-level tokenizers leave the space of " word" out of its range; here it belongs to the token, as it truly does.
    """
    if not offsets:
        return [], []
    flat = np.fromiter(chain.from_iterable(offsets), dtype=np.int64, count=2 * len(offsets))
    starts, ends = flat[::2].copy(), np.maximum.accumulate(flat[1::2])
    starts[0] = 0
    np.minimum(starts[1:], ends[:-1], out=starts[1:])
    return starts.tolist(), ends.tolist()
