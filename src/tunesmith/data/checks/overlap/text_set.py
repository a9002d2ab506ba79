"""A split as the checks that compare rows see it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.records import Example

_OTHER_WIDTH = re.compile("[\u3000\uff01-\uffee]+")
"""Full-width and half-width forms."""


@dataclass(frozen=True)
class TextSet:
    """The rows of one split that are in use; N rows, columns in their order.

    Args:
        name: train, validation, test or benchmarks.
        examples: the rows, read from disk when asked for; a slice gives a list and is faster than one by one.
        prompts_N: for each row the hash of its normalised prompt (all before the last answer), 0 for plain text.
        answers_N: of its normalised last answer, or of the plain text.
        contents_N: of both.
        order_N: of the row as it stands, unnormalised: who of several alike stays does not depend on the order of rows.
    """

    name: str
    examples: Sequence[Example]
    prompts_N: NDArray[np.uint64]
    answers_N: NDArray[np.uint64]
    contents_N: NDArray[np.uint64]
    order_N: NDArray[np.uint64]


def normalised(text: str) -> str:
    """The text without differences of case, of width and of white space."""
    if text.isascii():
        return " ".join(text.lower().split())
    # Not NFKC for all: it makes 32 of 3² and 1 of a circled one, which are other texts.
    text = _OTHER_WIDTH.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text)
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def text_hash(text: str) -> int:
    """64 bits of BLAKE2; 0 for no text."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") if text else 0
