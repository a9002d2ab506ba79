"""The rule about an answer that says the same over and over, as a model writes that cannot stop.

The measures are two of those of Gopher (Rae et al., 2021, arXiv 2112.11446, table A1): the share of a text that is in
repeated lines and sentences, and the share that is in repeated n-grams. Theirs are for pages of the web; answers are
short and often follow a pattern, so here only what is said for the third time counts in an n-gram, n-grams are long,
and tables, code and JSON are left out. Chinese and Japanese are measured by characters.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict

from tunesmith.data.checks.rules import EXCERPT_CHARACTERS, TextRule, answers_of, excerpt
from tunesmith.data.records import Example

_SHORTEST = 60
"""Characters of the shortest answer that is looked at, 24 where it is not ASCII."""

_SHORTEST_ELSEWHERE = 24

_PROBES = tuple(number * 0.618034 % 1 for number in range(1, 17))
"""Where in an answer pieces are taken to be looked for in the rest of it.

They are not evenly spaced: in as many copies as there are pieces, all would fall on the same words.
"""

_LAST_WITHOUT = _PROBES[7]
"""After this one the search ends if nothing was found: a third of an answer holds at least two of so many places."""

_PROBE_CHARACTERS = 14
_PROBE_CHARACTERS_ELSEWHERE = 7
"""Length of a piece in ASCII and elsewhere."""

_FOUND_PROBES = 4
"""Pieces that must stand in the answer `_COPIES` times before anything is measured."""

_COPIES = 3

_SAID_AGAIN = 0.5
"""Share of an answer in the second and later copies of sentences that stand in it three times or more."""

_GRAM = 20
_GRAM_BY_CHARACTER = 40
_IN_GRAMS = 0.3
"""Share of an answer in the third and later copies of n-grams, and their n in words or in characters."""

_WORDS_OF_A_SENTENCE = 4
_CHARACTERS_OF_A_SENTENCE = 8
"""Length of the shortest sentence that counts, in words or in characters; labels and scores are shorter."""

_LETTERS_OF_A_GRAM = 0.4
"""Share of the characters of an n-gram that are letters; numbers are repeated in sums and sequences."""

_CODE_BLOCK = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)

_LINE_OF_CODE = re.compile(r"(?:#|//|def |import |return ).{,120}|[\"'\[{(].*[,:\[({]|.{,80}[;{}>\\]")

_SENTENCE_END = re.compile(r"[.!?;…。！？；\n]+\s*")

_NUMBERING = re.compile(r"^\W*(?:\w{1,8} )?\d+\s*[.):：、]\s*|^[\s*•\-–]+")

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")

_BY_CHARACTER = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")

_ASKED_FOR = re.compile(
    r"\brepeat|\b(?:say|write|print|type|copy|output)\b.{0,80}\b(?:\d+|two|three|five|ten|many) times\b"
    r"|重复|(?:写|说|抄|输出|打印).{0,40}[\d两三五十百] ?[遍次]|繰り返",
    re.IGNORECASE,
)


def _find(example: Example) -> str | None:
    for answer in answers_of(example):
        if not _may_repeat(answer):
            continue
        repeated = _repeated(answer)
        if repeated and not any(_ASKED_FOR.search(m.content) for m in example.messages if m.role == "user"):
            start = max(answer.lower().find(repeated), 0)
            return excerpt(answer, start, start + EXCERPT_CHARACTERS)
    return None


def _may_repeat(answer: str) -> bool:
    """False for nearly all sound answers: whether several pieces of it stand in it again and again."""
    if answer.isascii():
        return len(answer) >= _SHORTEST and _pieces_repeat(answer, _PROBE_CHARACTERS, _FOUND_PROBES)
    return len(answer) >= _SHORTEST_ELSEWHERE and _pieces_repeat(answer, _PROBE_CHARACTERS_ELSEWHERE, _FOUND_PROBES)


def _pieces_repeat(text: str, length: int, enough: int) -> bool:
    """Whether `enough` of the pieces of `length` characters stand in the text `_COPIES` times."""
    count = text.count
    last = len(text) - length
    found = 0
    for share in _PROBES:
        start = int(last * share)
        if count(text[start : start + length]) >= _COPIES:
            found += 1
            if found == enough:
                return True
        elif not found and share == _LAST_WITHOUT:
            return False
    return False


def _repeated(answer: str) -> str | None:
    """What an answer repeats, lower case, or None where that is too little of it."""
    if answer.lstrip()[:1] in ("{", "[") and answer.rstrip()[-1:] in ("}", "]"):
        return None
    text = _prose(answer).lower()
    return _repeated_sentence(text, len(answer)) or _repeated_gram(text, len(answer))


def _prose(answer: str) -> str:
    """An answer without code blocks, rows of tables and lines of code."""
    if "```" in answer:
        answer = _CODE_BLOCK.sub("\n", answer)
    lines = answer.split("\n")
    return "\n".join(line for line in lines if not _is_structure(line.strip())) if len(lines) > 1 else answer


def _is_structure(line: str) -> bool:
    return line.count("|") > 1 or "\t" in line or _LINE_OF_CODE.fullmatch(line) is not None


def _repeated_sentence(text: str, length: int) -> str | None:
    sentences = Counter(
        sentence for part in _SENTENCE_END.split(text) if _is_sentence(sentence := _NUMBERING.sub("", part))
    )
    again = sum(len(sentence) * (copies - 1) for sentence, copies in sentences.items() if copies >= _COPIES)
    return sentences.most_common(1)[0][0] if again >= _SAID_AGAIN * length else None


def _is_sentence(text: str) -> bool:
    return text.count(" ") >= _WORDS_OF_A_SENTENCE - 1 or len(_BY_CHARACTER.findall(text)) >= _CHARACTERS_OF_A_SENTENCE


def _repeated_gram(text: str, length: int) -> str | None:
    # An n-gram is far longer than a piece, so most texts in which short pieces are repeated end here.
    if not _pieces_repeat(text, 2 * (_PROBE_CHARACTERS if text.isascii() else _PROBE_CHARACTERS_ELSEWHERE), 1):
        return None
    spans = [word.span() for word in _WORD.finditer(text)]
    size = _GRAM_BY_CHARACTER if 2 * len(_BY_CHARACTER.findall(text)) > len(spans) else _GRAM
    copies: defaultdict[str, int] = defaultdict(int)
    covered_to, covered, first = 0, 0, ""
    for (start, _), (_, end) in zip(spans, spans[size - 1 :], strict=False):
        gram = text[start:end]
        copies[gram] += 1
        if copies[gram] >= _COPIES:
            covered += end - max(start, covered_to)
            covered_to = end
            first = first or gram
    letters = sum(map(str.isalpha, first))
    return first if covered >= _IN_GRAMS * length and letters >= _LETTERS_OF_A_GRAM * len(first) else None


REPEATED_TEXT = TextRule(
    name="repeated_text",
    what="hold an answer that says the same over and over",
    remedy="leave them out: a model learns from them never to stop",
    find=_find,
)
"""An answer of which half is in sentences said before, or near a third in phrases said for the third time or more.

Lists, poems with a refrain, tables, code, JSON and sums do not count, nor do answers to a prompt that asks to repeat.
"""
