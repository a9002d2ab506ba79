"""Clean rows without end: sound, varied and all different, in English and Chinese, as fast as they can be written.

A sentence is made of pieces of three to eight words that are drawn from large pools; the pools are made once from a
small grammar. Twelve words in a row cover at least two whole pieces and parts of two others, so that hardly two rows
share as much: of 100,000 rows four share it with one of 1,000 others.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice

from tests.planted import words as w

POOL = 50_000
"""Pieces of each kind."""

INSTRUCTION = (
    "Read the report below and write what it says as one object of JSON with the keys who, deed, when, count and "
    "urgent, without any other text before or after it."
)
"""Stands before every prompt of the JSON task: a template that all rows share, and that is no leak."""

LABELS = ("complaint", "praise", "question", "order")
"""The classes of the classification set."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A row: the prompt, its answer, and what stands before the prompt of every row of the set."""

    prompt: str
    answer: str
    instruction: str = ""


Pieces = Sequence[str]


@dataclass(frozen=True)
class Grammar:
    """How a language's texts are put together.

    Args:
        between: what stands between pieces and between sentences.
        statements: each a row of pools; a sentence takes one piece of each.
        requests: the same, for the sentence that asks.
        prompt_sentences: least and most sentences of a prompt before the one that asks.
        answer_sentences: least and most sentences of an answer.
    """

    between: str
    statements: tuple[tuple[Pieces, ...], ...]
    requests: tuple[tuple[Pieces, ...], ...]
    prompt_sentences: tuple[int, int]
    answer_sentences: tuple[int, int]

    def text(self, draw: random.Random, sentences: int) -> str:
        """So many statements."""
        chance = draw.random
        size = len(self.statements)
        chosen = [self.statements[int(chance() * size)] for _ in range(sentences)]
        return self.between.join([pool[int(chance() * POOL)] for pattern in chosen for pool in pattern])

    def request(self, draw: random.Random) -> str:
        """One sentence that asks."""
        pattern = self.requests[int(draw.random() * len(self.requests))]
        return self.between.join([pool[int(draw.random() * POOL)] for pool in pattern])

    def prompt(self, draw: random.Random) -> str:
        """Some statements and the sentence that asks."""
        least, most = self.prompt_sentences
        return self.text(draw, draw.randrange(least, most + 1)) + self.between + self.request(draw)

    def answer(self, draw: random.Random) -> str:
        """Some statements."""
        least, most = self.answer_sentences
        return self.text(draw, draw.randrange(least, most + 1))

    def pairs(self, seed: int) -> Iterator[Pair]:
        """Rows without end."""
        draw = random.Random(seed)
        while True:
            yield Pair(self.prompt(draw), self.answer(draw))


Pick = Callable[[Sequence[str]], str]
Form = Callable[[Pick], str]


def _pool(seed: str, forms: Sequence[Form]) -> list[str]:
    """`POOL` different pieces, in random order."""
    chance = random.Random(seed).random

    def pick(words: Sequence[str]) -> str:
        return words[int(chance() * len(words))]

    pieces: dict[str, None] = {}
    while len(pieces) < POOL:
        pieces[_BEFORE_VOWEL.sub("an ", forms[int(chance() * len(forms))](pick))] = None
    return list(pieces)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


# --- English ------------------------------------------------------------------------------------------------------

_BEFORE_VOWEL = re.compile(r"\ba (?=[aeio]|u[mpr])")
_YEARS = [str(year) for year in range(1850, 2024)]
_DAYS = [str(day) for day in range(1, 29)]
_HOURS = [f"{hour}:{minute:02}" for hour in range(6, 23) for minute in range(0, 60, 5)]
_PRICES = [f"{number / 20:,.2f}" for number in range(30, 90_000, 37)]


def _many(word: str) -> str:
    return f"{word}es" if word.endswith(("s", "x", "ch", "sh")) else f"{word}s"


_SUBJECTS: tuple[Form, ...] = (
    lambda p: f"the {p(w.ADJECTIVES)} {p(w.PEOPLE)} from {p(w.TOWNS)}",
    lambda p: f"{p(w.NAMES)} and the {p(w.ADJECTIVES)} {p(w.PEOPLE)}",
    lambda p: f"{p(w.NUMBERS)} {p(w.ADJECTIVES)} {_many(p(w.PEOPLE))} of {p(w.TOWNS)}",
    lambda p: f"the {p(w.PEOPLE)} who knew {p(w.NAMES)}",
    lambda p: f"{p(w.NAMES)}, a {p(w.ADJECTIVES)} {p(w.PEOPLE)},",
    lambda p: f"nobody at the {p(w.SITES)} but {p(w.NAMES)}",
    lambda p: f"the {p(w.PEOPLE)} of the {p(w.SITES)} in {p(w.TOWNS)}",
    lambda p: f"a {p(w.PEOPLE)} with one {p(w.ADJECTIVES)} {p(w.NOUNS)}",
    lambda p: f"both {p(w.NAMES)} and {p(w.NAMES)} of {p(w.TOWNS)}",
    lambda p: f"{p(w.NAMES)} from the {p(w.ADJECTIVES)} {p(w.SITES)}",
    lambda p: f"some {_many(p(w.PEOPLE))} and their {p(w.ADJECTIVES)} {p(w.PEOPLE)}",
)
_PREDICATES: tuple[Form, ...] = (
    lambda p: f"{p(w.DEEDS)} the {p(w.ADJECTIVES)} {p(w.NOUNS)} {p(w.LINKS)} the {p(w.SITES)}",
    lambda p: f"{p(w.DEEDS)} {p(w.NUMBERS)} {p(w.ADJECTIVES)} {_many(p(w.NOUNS))}",
    lambda p: f"kept {p(w.DOINGS)} the {p(w.NOUNS)} of {p(w.NAMES)}",
    lambda p: f"had {p(w.DEEDS)} neither {p(w.NOUNS)} nor {p(w.NOUNS)}",
    lambda p: f"{p(w.DEEDS)} every {p(w.NOUNS)} and {p(w.ADJECTIVES)} {p(w.NOUNS)}",
    lambda p: f"stopped {p(w.DOINGS)} and {p(w.DEEDS)} a {p(w.NOUNS)}",
    lambda p: f"{p(w.DEEDS)} {p(w.NAMES)}'s {p(w.ADJECTIVES)} {p(w.NOUNS)}",
    lambda p: f"{p(w.DEEDS)} first a {p(w.NOUNS)}, then one {p(w.NOUNS)}",
    lambda p: f"{p(w.DEEDS)} all but {p(w.NUMBERS)} {_many(p(w.NOUNS))}",
    lambda p: f"went on {p(w.DOINGS)} {p(w.ADJECTIVES)} {_many(p(w.NOUNS))}",
    lambda p: f"{p(w.DEEDS)} a {p(w.NOUNS)} for {p(_PRICES)} crowns",
)
_ADVERBIALS: tuple[Form, ...] = (
    lambda p: f"before the {p(w.ADJECTIVES)} {p(w.TIMES)} in {p(w.MONTHS)}",
    lambda p: f"{p(w.LINKS)} the {p(w.SITES)} of {p(w.TOWNS)}",
    lambda p: f"while the {p(w.ADJECTIVES)} {p(w.NOUNS)} {p(w.HAPPENINGS)}",
    lambda p: f"after {p(w.NUMBERS)} {p(w.ADJECTIVES)} {p(w.UNITS)}",
    lambda p: f"because a {p(w.NOUNS)} {p(w.HAPPENINGS)} during the {p(w.TIMES)}",
    lambda p: f"until the {p(w.PEOPLE)} and {p(w.NAMES)} came home",
    lambda p: f"with the help of {p(w.NUMBERS)} {_many(p(w.PEOPLE))}",
    lambda p: f"on {p(_DAYS)} {p(w.MONTHS)} {p(_YEARS)}",
    lambda p: f"at {p(_HOURS)} beside {p(w.NAMES)}'s {p(w.NOUNS)}",
    lambda p: f"despite all those {p(w.ADJECTIVES)} {_many(p(w.NOUNS))}",
    lambda p: f"somewhere between {p(w.TOWNS)} and {p(w.TOWNS)}",
    lambda p: f"so that no {p(w.NOUNS)} {p(w.HAPPENINGS)} again",
)

_ASKING: tuple[Form, ...] = (
    lambda p: f"Could {p(w.NAMES)} explain to a {p(w.ADJECTIVES)} {p(w.PEOPLE)} why",
    lambda p: f"Do the {p(w.ADJECTIVES)} {_many(p(w.PEOPLE))} of {p(w.TOWNS)} know how",
    lambda p: f"Is there a {p(w.ADJECTIVES)} record at the {p(w.SITES)} of when",
    lambda p: f"What made {p(w.NAMES)} tell the {p(w.ADJECTIVES)} {p(w.PEOPLE)} that",
    lambda p: f"Would it matter to the {p(w.PEOPLE)} from {p(w.TOWNS)} if",
    lambda p: f"Who told {p(w.NAMES)} about the {p(w.ADJECTIVES)} {p(w.TIMES)} when",
    lambda p: f"How likely does {p(w.NAMES)} from {p(w.TOWNS)} find it that",
)
_TELLING: tuple[Form, ...] = (
    lambda p: f"Explain to a {p(w.ADJECTIVES)} {p(w.PEOPLE)} in {p(w.TOWNS)} why",
    lambda p: f"Write {p(w.NAMES)} a {p(w.ADJECTIVES)} note on how",
    lambda p: f"List {p(w.NUMBERS)} {p(w.ADJECTIVES)} reasons why",
    lambda p: f"Summarise for the {p(w.SITES)} of {p(w.TOWNS)} how",
    lambda p: f"Retell the {p(w.ADJECTIVES)} evening in {p(w.MONTHS)} when",
    lambda p: f"Find a {p(w.ADJECTIVES)} title for the {p(w.TIMES)} when",
    lambda p: f"Draft a {p(w.ADJECTIVES)} letter to {p(w.NAMES)} about how",
)


@cache
def english_pieces() -> tuple[Pieces, Pieces, Pieces]:
    """Subjects, predicates and adverbials."""
    return _pool("subjects", _SUBJECTS), _pool("predicates", _PREDICATES), _pool("adverbials", _ADVERBIALS)


@cache
def english_grammar() -> Grammar:
    """English: prompts of 20 to 60 words, answers of 20 to 120, on average 200 tokens a row."""
    subjects, predicates, adverbials = english_pieces()
    chance = random.Random("openings")
    openings = [_capital(piece) for piece in subjects]
    ends = [f"{piece}." for piece in adverbials]
    predicate_ends = [f"{piece}." for piece in predicates]
    return Grammar(
        between=" ",
        statements=(
            (openings, predicates, ends),
            ([f"{_capital(piece)}," for piece in adverbials], subjects, predicate_ends),
            (
                [f"{chance.choice(w.REMARKS)} {s}" for s in subjects],
                [f"{p}," for p in predicates],
                subjects,
                predicate_ends,
            ),
            (openings, [f"{piece}, and" for piece in predicates], subjects, predicate_ends),
        ),
        requests=(
            (_pool("asking", _ASKING), subjects, predicates, [f"{piece}?" for piece in adverbials]),
            (_pool("telling", _TELLING), subjects, predicates, ends),
        ),
        prompt_sentences=(1, 1),
        answer_sentences=(2, 6),
    )


def english(seed: int) -> Iterator[Pair]:
    """Rows of English prose without end."""
    return english_grammar().pairs(seed)


def json_task(seed: int) -> Iterator[Pair]:
    """Reports in English and what they say as JSON, below one instruction that all rows share."""
    grammar, (subjects, predicates, adverbials) = english_grammar(), english_pieces()
    draw = random.Random(seed)
    while True:
        who, deed, when = (draw.choice(pool) for pool in (subjects, predicates, adverbials))
        count = draw.randrange(1, 1000)
        report = f"{grammar.text(draw, 1)} {_capital(who)} {deed} {when}. It came to {count} in all. "
        values = {"who": who, "deed": deed, "when": when, "count": count, "urgent": draw.random() < 0.3}
        yield Pair(report + grammar.text(draw, draw.randrange(1, 3)), json.dumps(values), INSTRUCTION)


def classification(seed: int) -> Iterator[Pair]:
    """Messages in English, each with one of four words as its answer."""
    draw = random.Random(seed)
    grammar = english_grammar()
    while True:
        yield Pair(grammar.prompt(draw), draw.choice(LABELS))


# --- Chinese ------------------------------------------------------------------------------------------------------

_SUBJECTS_ZH: tuple[Form, ...] = (
    lambda p: f"{p(w.PLACES_ZH)}那位{p(w.ADJECTIVES_ZH)}的{p(w.PEOPLE_ZH)}",
    lambda p: f"{p(w.PEOPLE_ZH)}{p(w.NAMES_ZH)}和{p(w.PEOPLE_ZH)}",
    lambda p: f"{p(w.NAMES_ZH)}认识的{p(w.ADJECTIVES_ZH)}{p(w.PEOPLE_ZH)}",
    lambda p: f"住在{p(w.PLACES_ZH)}{p(w.SIDES_ZH)}的{p(w.PEOPLE_ZH)}",
    lambda p: f"{p(w.NAMES_ZH)}在{p(w.PLACES_ZH)}请来的{p(w.PEOPLE_ZH)}",
)
_PREDICATES_ZH: tuple[Form, ...] = (
    lambda p: f"把{p(w.ADJECTIVES_ZH)}的{p(w.NOUNS_ZH)}{p(w.DEEDS_ZH)}了",
    lambda p: f"一直在{p(w.DOINGS_ZH)}{p(w.MEASURES_ZH)}{p(w.NOUNS_ZH)}",
    lambda p: f"没有{p(w.DOINGS_ZH)}{p(w.NOUNS_ZH)}却把{p(w.NOUNS_ZH)}{p(w.DEEDS_ZH)}",
    lambda p: f"帮{p(w.NAMES_ZH)}{p(w.DOINGS_ZH)}了{p(w.MEASURES_ZH)}{p(w.NOUNS_ZH)}",
    lambda p: f"从{p(w.PLACES_ZH)}带回{p(w.MEASURES_ZH)}{p(w.ADJECTIVES_ZH)}的{p(w.NOUNS_ZH)}",
)
_ADVERBIALS_ZH: tuple[Form, ...] = (
    lambda p: f"{p(w.TIMES_ZH)}以前，在{p(w.PLACES_ZH)}{p(w.SIDES_ZH)}",
    lambda p: f"因为{p(w.PLACES_ZH)}的{p(w.NOUNS_ZH)}{p(w.HAPPENINGS_ZH)}",
    lambda p: f"趁着{p(w.TIMES_ZH)}，{p(w.NOUNS_ZH)}{p(w.HAPPENINGS_ZH)}",
    lambda p: f"等{p(w.PEOPLE_ZH)}{p(w.NAMES_ZH)}回来之后",
    lambda p: f"{p(w.PLACES_ZH)}{p(w.SIDES_ZH)}的{p(w.NOUNS_ZH)}{p(w.HAPPENINGS_ZH)}时",
)

_ASKING_ZH: tuple[Form, ...] = (
    lambda p: f"{p(w.NAMES_ZH)}能不能告诉{p(w.ADJECTIVES_ZH)}的{p(w.PEOPLE_ZH)}，为什么",
    lambda p: f"{p(w.PLACES_ZH)}的{p(w.PEOPLE_ZH)}真的相信{p(w.NAMES_ZH)}的话，以为",
    lambda p: f"除了{p(w.NAMES_ZH)}和{p(w.NAMES_ZH)}，{p(w.PLACES_ZH)}里谁还记得",
    lambda p: f"{p(w.TIMES_ZH)}那天，是谁对{p(w.PEOPLE_ZH)}{p(w.NAMES_ZH)}说过",
)
_TELLING_ZH: tuple[Form, ...] = (
    lambda p: f"请替{p(w.NAMES_ZH)}给{p(w.PLACES_ZH)}的{p(w.PEOPLE_ZH)}写封信，说明",
    lambda p: f"列出{p(w.MEASURES_ZH)}{p(w.ADJECTIVES_ZH)}的证据，证明{p(w.TIMES_ZH)}时",
    lambda p: f"用{p(w.PEOPLE_ZH)}{p(w.NAMES_ZH)}的口气讲讲{p(w.TIMES_ZH)}，那时",
    lambda p: f"给{p(w.ADJECTIVES_ZH)}的{p(w.PEOPLE_ZH)}概括{p(w.PLACES_ZH)}这件事：",
)


@cache
def chinese_grammar() -> Grammar:
    """Chinese: prompts of 40 to 100 characters, answers of 40 to 220."""
    subjects = _pool("subjects-zh", _SUBJECTS_ZH)
    predicates = _pool("predicates-zh", _PREDICATES_ZH)
    adverbials = _pool("adverbials-zh", _ADVERBIALS_ZH)
    chance = random.Random("openings")
    ends = [f"{piece}。" for piece in predicates]
    return Grammar(
        between="",
        statements=(
            ([f"{piece}，" for piece in adverbials], subjects, ends),
            (subjects, [f"{piece}，" for piece in predicates], ends),
            ([f"{chance.choice(w.REMARKS_ZH)}{s}" for s in subjects], [f"{p}，" for p in predicates], subjects, ends),
            (subjects, [f"{piece}，" for piece in adverbials], ends),
        ),
        requests=(
            (_pool("asking-zh", _ASKING_ZH), subjects, [f"{piece}？" for piece in predicates]),
            (_pool("telling-zh", _TELLING_ZH), subjects, ends),
        ),
        prompt_sentences=(1, 2),
        answer_sentences=(2, 6),
    )


def chinese(seed: int) -> Iterator[Pair]:
    """Rows of Chinese prose without end."""
    return chinese_grammar().pairs(seed)


def take(pairs: Iterator[Pair], count: int) -> list[Pair]:
    """The next `count` rows."""
    return list(islice(pairs, count))
