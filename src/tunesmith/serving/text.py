"""The text of an answer as its tokens come, and where a stop text ends it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_UNFINISHED = "\ufffd"


class AnswerText:
    """Decodes one answer piece by piece.

    A token may be part of a character, and the spaces that some tokenizers put depend on the token before. So a new
    piece is the difference between the text of the last few tokens with and without the new ones.

    Args:
        decode: token ids to text.
        stop: texts that end the answer; it ends before the first of them.
    """

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._context = self._read = 0
        self._held = ""

    def push(self, token_id: int) -> tuple[str, bool]:
        """Adds a token; gives the text that is sure by now, and whether a stop text has ended the answer."""
        self._ids.append(token_id)
        before = self._decode(self._ids[self._context : self._read])
        after = self._decode(self._ids[self._context :])
        if len(after) <= len(before) or after.endswith(_UNFINISHED):
            return "", False
        self._context, self._read = self._read, len(self._ids)
        return self._release(after[len(before) :])

    def finish(self) -> str:
        """What is still held back, once the answer has ended otherwise."""
        before = self._decode(self._ids[self._context : self._read])
        after = self._decode(self._ids[self._context :])
        text, stopped = self._release(after[len(before) :])
        rest = "" if stopped else self._held
        self._held = ""
        return text + rest

    def _release(self, piece: str) -> tuple[str, bool]:
        text = self._held + piece
        found = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        held = max((_overlap(text, stop) for stop in self._stop), default=0)
        sure = len(text) - held
        self._held = text[sure:]
        return text[:sure], False


def _overlap(text: str, stop: str) -> int:
    """How many of the last characters of `text` may be the beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
