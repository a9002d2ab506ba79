"""Rules that judge a row by what is usual in its set: one-word answers, broken JSON, a mix of languages.

What is needed of a row is a number or a code, found in the pass over the texts; the decisions are made on whole
columns, so they do not depend on the order of the rows.

Shapes: N rows.
"""

from __future__ import annotations

import json
import re
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

NOT_JSON = 0
IS_JSON = 1
BROKEN_JSON = 2
"""States of an answer; see `json_state`."""

MOST_WORDS = 65535

COUNTED_CHARACTERS = 400
"""The words of so many characters are counted, those of the rest estimated: rules ask only whether there are few."""

LONG_MEDIAN_WORDS = 8
"""Answers are long where half of them have more words than this."""

LARGEST_SHORT_SHARE = 0.05
"""Above this share of answers of at most `SHORT_WORDS`, short answers are one of the things that the set teaches."""

SHORT_WORDS = 3

SMALLEST_JSON_SHARE = 0.9
FEWEST_JSON_ROWS = 20

LARGEST_MIXED_SHARE = 0.1
"""Above this share of answers in another language than their prompts, that is what the set teaches."""

DOMINANT_SHARE = 0.9
LARGEST_FOREIGN_SHARE = 0.05

_UNSPACED = re.compile(
    "[\u3005\u3007\u3041-\u3096\u30a1-\u30fa\u30fc-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f"
    "\u0e01-\u0e4e\u0e81-\u0ecd\u1000-\u103f\u1780-\u17d3\U00020000-\U0003ffff]+"
)
"""Runs of scripts that write no spaces: Han, kana, Thai, Lao, Burmese, Khmer."""

# An apostrophe or a hyphen joins a word; a point, a comma, a colon or a slash joins the digits of one number or date.
_WORD = re.compile(r"\w+(?:(?:['\u2019-]|(?<=\d)[.:/](?=\d)|,(?=\d{3}(?!\d)))\w+)*")

_FENCE = "```"


def answer_words(text: str) -> int:
    """Words of an answer, at most `MOST_WORDS`.

    Letters and digits make words, punctuation does not; "don't", "3.5" and "1,000" are one each. Scripts without spaces
    count a word for every two characters, the mean of Chinese, rounded up for each run between punctuation: so at most
    two Han characters are one word. Of a text longer than `COUNTED_CHARACTERS` the count is an estimate.
    """
    head = text[:COUNTED_CHARACTERS]
    if head.isascii():
        words = len(_WORD.findall(head))
    else:
        runs = _UNSPACED.findall(head)
        spaced = _UNSPACED.sub(" ", head) if runs else head
        words = len(_WORD.findall(spaced)) + sum((len(run) + 1) // 2 for run in runs)
    if len(text) > len(head):
        words = words * len(text) // len(head)
    return min(words, MOST_WORDS)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


# Numbers are left as text: a number of a million digits is JSON, and takes long to convert.
_DECODER = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=_refuse)


def json_state(text: str) -> int:
    """Whether an answer is JSON: `IS_JSON` for an object or an array, alone or alone in a fence of Markdown.

    `BROKEN_JSON` begins like one and does not parse by RFC 8259 (NaN and Infinity do not), goes on after its end, or is
    nested deeper than Python's parser can go. All else is `NOT_JSON`, numbers, strings and true among it.
    """
    text = text.strip()
    is_cut = False
    if text.startswith(_FENCE):
        kind, _, text = text.removeprefix(_FENCE).partition("\n")
        if kind.strip().lower() not in ("", "json"):
            return NOT_JSON
        is_cut = not text.endswith(_FENCE)
        text = text.removesuffix(_FENCE).strip()
    closing = {"{": "}", "[": "]"}.get(text[:1])
    if closing is None:
        return NOT_JSON
    if is_cut or not text.endswith(closing):
        return BROKEN_JSON
    try:
        _DECODER.decode(text)
    except (ValueError, RecursionError):
        return BROKEN_JSON
    return IS_JSON


def one_word_answers(answer_words_N: NDArray[np.uint16]) -> NDArray[np.bool_]:
    """Rows whose answer is one word, or none, where most answers are long.

    No row is where the median is `LONG_MEDIAN_WORDS` or less, nor where more than `LARGEST_SHORT_SHARE` of the answers
    have at most `SHORT_WORDS`: there they are meant, as in a set that holds a classification task.

    Args:
        answer_words_N: what `answer_words` gives.
    """
    if not len(answer_words_N) or np.median(answer_words_N) <= LONG_MEDIAN_WORDS:
        return np.zeros(len(answer_words_N), dtype=np.bool_)
    if np.mean(answer_words_N <= SHORT_WORDS) > LARGEST_SHORT_SHARE:
        return np.zeros(len(answer_words_N), dtype=np.bool_)
    return answer_words_N <= 1


def broken_json(json_state_N: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Rows whose answer is no JSON where at least `SMALLEST_JSON_SHARE` are, and at least `FEWEST_JSON_ROWS`.

    Args:
        json_state_N: what `json_state` gives.
    """
    broken_N: NDArray[np.bool_] = json_state_N != IS_JSON
    count = len(broken_N) - int(np.count_nonzero(broken_N))
    if count < FEWEST_JSON_ROWS or count < SMALLEST_JSON_SHARE * len(json_state_N):
        return np.zeros(len(json_state_N), dtype=np.bool_)
    return broken_N


def language_mix(
    prompt_language_N: NDArray[np.bytes_],
    answer_language_N: NDArray[np.bytes_],
    names_language_N: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """Rows in a language where it is not expected.

    Two things are an exception. The answer is in another language than its prompt, where at most `LARGEST_MIXED_SHARE`
    of the rows are so: in a set of translations most are. And the row, by its answer or else by its prompt, is in a
    language that less than `LARGEST_FOREIGN_SHARE` have, where one language has at least `DOMINANT_SHARE`.
    A row whose prompt names a language is never one of them and does not count for the first share. Only codes are
    seen: a translation asked for in other words than `mentions_language` knows is flagged, and so is each of a handful
    of rows in a second language that were meant.

    Args:
        prompt_language_N: codes, dtype "S3", b"" where unknown, as in plain text without a prompt.
        answer_language_N: the same of the answers.
        names_language_N: whether the prompt asks for a translation or names a language.
    """
    both_known_N = (prompt_language_N != b"") & (answer_language_N != b"") & ~names_language_N
    differs_N = both_known_N & (prompt_language_N != answer_language_N)
    if np.count_nonzero(differs_N) > LARGEST_MIXED_SHARE * np.count_nonzero(both_known_N):
        differs_N = np.zeros(len(differs_N), dtype=np.bool_)
    language_N = np.where(answer_language_N != b"", answer_language_N, prompt_language_N)
    found_N: NDArray[np.bool_] = (differs_N | _foreign(language_N)) & ~names_language_N
    return found_N


def _foreign(language_N: NDArray[np.bytes_]) -> NDArray[np.bool_]:
    """Rows in a rare language of a set in one language."""
    languages, counts = np.unique(language_N[language_N != b""], return_counts=True)
    known = int(counts.sum())
    if not known or counts.max() < DOMINANT_SHARE * known:
        return np.zeros(len(language_N), dtype=np.bool_)
    return np.isin(language_N, languages[counts < LARGEST_FOREIGN_SHARE * known])
