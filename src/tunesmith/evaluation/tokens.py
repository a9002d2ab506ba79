"""Texts cut into the units that are compared: words where a language writes spaces, characters where it does not.

As in ROUGE (Lin, 2004), letter case and punctuation do not count. Unlike the usual package, which drops every character
outside a-z and 0-9 and so scores Chinese as zero, letters and digits of every script do.
"""

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

HAN = "\u2e80-\u2fdf\u3005\u3007\u3021-\u3029\u3038-\u303b\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
KANA = "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f"
THAI_LAO_MYANMAR_KHMER = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"

_HAN = re.compile(f"[{HAN}]")
_KANA = re.compile(f"[{KANA}]")
_UNSPACED = re.compile(f"[{HAN}{KANA}{THAI_LAO_MYANMAR_KHMER}]")


def comparison_tokens(text: str) -> list[str]:
    """The units of `text`, lower-cased.

    Runs of letters and digits are words; a letter of a script without spaces (Han, kana, Thai, Lao, Burmese, Khmer) is
    a unit by itself, together with the marks that follow it. All else only separates. Compatibility forms are the same
    as what they stand for (NFKC), so full-width digits equal plain ones.
    """
    tokens: list[str] = []
    before = "separator"
    for character in unicodedata.normalize("NFKC", text).lower():
        kind = _kind(character)
        if kind == "mark":
            if before != "separator":
                tokens[-1] += character
            continue
        if kind == "word" and before == "word":
            tokens[-1] += character
        elif kind != "separator":
            tokens.append(character)
        before = kind
    return tokens


def script_shares(texts: Iterable[str]) -> tuple[float, float]:
    """Shares of Han and of kana among all letters of `texts`; (0, 0) where there is no letter."""
    han = kana = letters = 0
    for text in texts:
        letters += sum(character.isalpha() for character in text)
        han += len(_HAN.findall(text))
        kana += len(_KANA.findall(text))
    return (han / letters, kana / letters) if letters else (0.0, 0.0)


@lru_cache(maxsize=65536)
def _kind(character: str) -> str:
    category = unicodedata.category(character)[0]
    if category == "M":
        return "mark"
    if category not in "LN":
        return "separator"
    return "unspaced" if _UNSPACED.match(character) else "word"
