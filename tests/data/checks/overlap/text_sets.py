"""Sets of rows for tests of what compares rows: made-up prose in which no two rows share more than a word or two."""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tunesmith.data.checks.overlap.overlaps import Overlaps, find_overlaps
from tunesmith.data.checks.overlap.text_set import TextSet, normalised, text_hash
from tunesmith.data.records import Example, Message, Place
from tunesmith.data.store import pack_example

Pair = tuple[str, str]
"""A prompt and its answer."""


def prose(draw: random.Random, words: int = 60) -> str:
    """Words out of 200,000."""
    return " ".join(f"w{draw.randrange(200_000)}" for _ in range(words))


def han(draw: random.Random, characters: int = 60) -> str:
    """Chinese characters out of 20,000."""
    return "".join(chr(draw.randrange(0x4E00, 0x9C40)) for _ in range(characters))


def pair(text: str) -> Pair:
    """The text as a prompt and an answer."""
    words = text.split()
    return " ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])


def reworded(text: str, draw: random.Random, every: int = 10) -> str:
    """The text with one word in `every` replaced; of Chinese one character."""
    units = text.split() or []
    separator = " "
    if len(units) == 1:
        units, separator = list(text), ""
    for at in draw.sample(range(len(units)), len(units) // every):
        units[at] = chr(draw.randrange(0x9C40, 0x9FA0)) if separator == "" else f"new{draw.randrange(10**6)}"
    return separator.join(units)


def example(prompt: str, answer: str) -> Example:
    """A conversation of one turn each."""
    return Example((Message("user", prompt), Message("assistant", answer)), Place("rows.jsonl", 1))


def text_set(pairs: Sequence[Pair], name: str = "train") -> TextSet:
    """The rows as a set; a prompt of "" makes plain text."""
    examples = [example(p, a) if p else Example((), Place("rows.jsonl", 1), a) for p, a in pairs]
    prompts = [normalised(f"user: {prompt}") if prompt else "" for prompt, _ in pairs]
    answers = [normalised(answer) for _, answer in pairs]
    columns = (
        map(text_hash, prompts),
        map(text_hash, answers),
        (text_hash(f"{prompt}\n{answer}") for prompt, answer in zip(prompts, answers, strict=True)),
        (text_hash(pack_example(e).decode()) for e in examples),
    )
    return TextSet(name, examples, *(np.array(list(column), dtype=np.uint64) for column in columns))


def overlaps(
    folder: Path,
    train: Sequence[Pair],
    *others: Sequence[Pair],
    num_proc: int = 1,
    near: bool = True,
    leakage: bool = True,
) -> Overlaps:
    """What `find_overlaps` finds; `folder` is made."""
    folder.mkdir()
    sets = [text_set(other, f"other-{number}") for number, other in enumerate(others)]
    return find_overlaps(text_set(train), sets, folder=folder, num_proc=num_proc, near=near, leakage=leakage)
