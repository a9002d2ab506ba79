"""Rules about characters: text decoded with the wrong encoding, and characters that nobody sees."""

from __future__ import annotations

import re

from ftfy import fix_encoding_and_explain
from ftfy.badness import MOJIBAKE_CATEGORIES, is_bad

from tunesmith.data.checks.rules import TextRule, excerpt, texts_of, with_texts
from tunesmith.data.records import Example

# ------------------------------------------------------------------------------------------------ wrong encodings


def _suspicious_sequences() -> re.Pattern[str]:
    """Finds something in every text that `ftfy.badness` calls bad, and in few others, ten times as fast.

    It is fast because each match begins with one of a set of characters that sound text seldom holds; only there is
    more looked at: the neighbours.
    """
    groups = MOJIBAKE_CATEGORIES
    any_of_them = "".join(groups.values())
    strange = "".join(groups[name] for name in ("bad", "upper_accented", "box", "currency", "numeric", "law")) + "Ù"
    signs = "".join(groups[name] for name in ("c1", "bad", "start_punctuation", "end_punctuation", "currency"))
    small = groups["lower_accented"]
    beside_small = strange + signs
    # The last three are in UTF-8 read as GBK: two come from Chinese commas and stops, one from U+FFFD.
    alone = groups["c1"] + "\ufffd‚锛銆锟"
    lead_letters = "ВГРСвΒΓΞΟβ"
    return re.compile(
        rf"[{strange}{small}{lead_letters}{alone}]"
        rf"(?:(?<=[{alone}])"
        rf"|(?<=[{strange}])(?:[{any_of_them}]|(?<=[{any_of_them}].))"
        rf"|(?<=[{small}])(?:[{beside_small}]|(?<=[{beside_small}].))"
        rf"|(?<=[{lead_letters}])[{signs}Ђ°µ]"
        r"|(?<=[ÂÃ])\s"
        r"|(?<=[Œœ])[^A-Za-z])"
    )


_SUSPICIOUS = _suspicious_sequences()

_LOST = re.compile("\ufffd|锟斤拷")
"""A character that could not be decoded, and two of them written as UTF-8 and read as GBK."""

_CONTEXT = 6
"""Characters on both sides of a suspicious sequence that hold all that ftfy looks at."""

_HAN_SHARE = 0.6
"""Least share of the bytes that are Chinese when text that was read as GBK is read as UTF-8; nearly 0 in sound text."""

_HAN = re.compile("[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]")


def _find_mojibake(example: Example) -> str | None:
    for text in texts_of(example):
        if not _may_be_mojibake(text):
            continue
        decoded = _decoded(text)
        if decoded != text:
            start = next((i for i, (a, b) in enumerate(zip(text, decoded, strict=False)) if a != b), len(decoded))
            return excerpt(text, start, start + 1)
        lost = _LOST.search(text)
        if lost:
            return excerpt(text, *lost.span())
        if _was_read_as_gbk(text):
            return excerpt(text, 0, 0)
    return None


def _mend_mojibake(example: Example) -> Example:
    return with_texts(example, _decoded)


def _may_be_mojibake(text: str) -> bool:
    """False for nearly all sound text; ftfy alone would take thirty times as long to say so."""
    if text.isascii():
        return False
    for match in _SUSPICIOUS.finditer(text):
        around = text[max(match.start() - _CONTEXT, 0) : match.end() + _CONTEXT]
        if is_bad(around) or _LOST.search(around) or match[0] in "锛銆":
            return True
    return False


def _decoded(text: str) -> str:
    """The text as it was before it was decoded wrongly, as far as that is certain."""
    while _may_be_mojibake(text):
        decoded = _decoded_once(text)
        if decoded == text:
            break
        text = decoded
    return text


def _decoded_once(text: str) -> str:
    if _was_read_as_gbk(text):
        try:
            return text.encode("gb18030").decode()
        except UnicodeDecodeError:
            return text
    whole = fix_encoding_and_explain(text)
    decoded: str = whole.text
    if decoded != text and any(action == "encode" for action, _ in whole.explanation or ()):
        return decoded
    # Only part of it is wrong: a line that can be decoded as a whole is more certain than its pieces are.
    return "\n".join(fix_encoding_and_explain(line).text for line in text.split("\n"))


def _was_read_as_gbk(text: str) -> bool:
    if not re.search("[锛銆]", text):
        return False
    data = text.encode("gb18030", "ignore")
    beyond_ascii = sum(byte > 0x7F for byte in data)
    return 3 * len(_HAN.findall(data.decode(errors="ignore"))) >= _HAN_SHARE * beyond_ascii


MOJIBAKE = TextRule(
    name="mojibake",
    what="hold text decoded with the wrong encoding",
    remedy="read the source with the encoding it was written in, UTF-8 as a rule",
    find=_find_mojibake,
    mend=_mend_mojibake,
)
"""Text decoded with the wrong encoding, as "cafÃ©" for "café"; what is sound is never rewritten, quotes included.

A character that is lost, as U+FFFD stands for, is found but cannot be restored: such a row stays as it is, and `find`
finds it still after `mend`.
"""

# --------------------------------------------------------------------------------------------- invisible characters

_RIGHT_TO_LEFT = "\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U00010fff\U0001e800-\U0001eeff"

_JOINING = (  # scripts that are written with ZWJ and ZWNJ: Arabic and its kin, Indic, South-East Asian, Mongolian
    "\u0600-\u08ff\u0900-\u109f\u1780-\u18af\u1900-\u1cff\ua800-\uaaff\uabc0-\uabff\ufb50-\ufdff\ufe70-\ufefc"
    "\U00010a00-\U00010bff\U00011000-\U00011fff\U0001e900-\U0001e95f"
)

_WITHOUT_SPACES = (  # scripts that mark where a line may break with a zero-width space
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\u1b00-\u1b7f\ua980-\ua9df\uaa60-\uaadf"
)

_HAN_IDEOGRAPHS = "\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"

_EMOJI = "\u00a9\u00ae\u203c\u2049\u2122\u2139\u2190-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001faff"

_INVISIBLE = re.compile(  # and the flag that tag characters may follow
    "[\U0001f3f4\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\U0001d173-\U0001d17a\U000e0000-\U000e01ef]"
)

_FLAG = r"(?P<flag>\U0001f3f4[\U000e0020-\U000e007e]+\U000e007f)"
"""The flag of a region, as of Scotland: a black flag with the region's name in tag characters."""

_OFFENDING = re.compile(
    "|".join(
        (
            _FLAG,
            r"\x1b\[[0-9;?]*[A-Za-z]",  # an order to a terminal, as for a colour, the visible part with it
            r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u2028\u2029\u202d\u202e]",
            r"[\u2060-\u2065\u206a-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb\U0001d173-\U0001d17a\U000e0000-\U000e00ff]",
            rf"(?<![{_JOINING}])\u200c(?![{_JOINING}])",
            rf"(?<![{_JOINING}{_EMOJI}\ufe0f])\u200d(?![{_JOINING}])",
            rf"(?<=[{_EMOJI}\ufe0f])\u200d(?![{_EMOJI}])",
            rf"(?<![{_WITHOUT_SPACES}])\u200b(?![{_WITHOUT_SPACES}])",
            r"(?<![\u1800-\u18af])\u180e",
            rf"(?<![0-9#*{_EMOJI}{_HAN_IDEOGRAPHS}\u3000-\u303f\u1000-\u109f\ua840-\ua87f])[\ufe00-\ufe0f]",
            rf"(?<![{_HAN_IDEOGRAPHS}])[\U000e0100-\U000e01ef]",
        )
    )
)

_DIRECTION = re.compile(r"[\u061c\u200e\u200f\u202a-\u202c\u2066-\u2069]")
"""Marks, embeddings and isolates, which text in Arabic or Hebrew needs; overrides are always out of place."""

_HAS_RIGHT_TO_LEFT = re.compile(rf"[{_RIGHT_TO_LEFT}]")

_LINE_ENDS = frozenset("\x0b\x0c\x85\u2028\u2029")


def _holds_invisible(text: str) -> bool:
    """Whether there is anything to look at; most rows are ASCII, for which the first question is the faster one."""
    if text.isascii() and text.replace("\n", "").isprintable():
        return False
    return _INVISIBLE.search(text) is not None


def _find_invisible(example: Example) -> str | None:
    for text in texts_of(example):
        if _holds_invisible(text):
            found = _offending(text) or _stray_direction(text)
            if found:
                return excerpt(text, *found.span())
    return None


def _offending(text: str) -> re.Match[str] | None:
    # To look at each place that `_INVISIBLE` finds is many times as fast as to search for `_OFFENDING`.
    position = 0
    while candidate := _INVISIBLE.search(text, position):
        found = _OFFENDING.match(text, candidate.start())
        if found and not found["flag"]:
            return found
        position = (found or candidate).end()
    return None


def _mend_invisible(example: Example) -> Example:
    return with_texts(example, _without_invisible)


def _without_invisible(text: str) -> str:
    # Again until nothing changes: what stood between two characters may have been all that kept them apart.
    while _holds_invisible(text):
        if _offending(text):
            text = _OFFENDING.sub(_in_its_place, text)
        elif _stray_direction(text):
            text = _DIRECTION.sub("", text)
        else:
            break
    return text


def _in_its_place(match: re.Match[str]) -> str:
    """What a character leaves behind: nothing, but for those that separate words or lines."""
    character, text = match[0], match.string
    if match["flag"]:
        return character
    if not character.isspace():
        return ""
    before, after = text[: match.start()][-1:], text[match.end() : match.end() + 1]
    if not before or not after or before.isspace() or after.isspace():
        return ""
    return "\n" if character in _LINE_ENDS else " "


def _stray_direction(text: str) -> re.Match[str] | None:
    stray = _DIRECTION.search(text)
    return stray if stray and not _HAS_RIGHT_TO_LEFT.search(text) else None


INVISIBLE_CHARACTERS = TextRule(
    name="invisible_characters",
    what="hold characters that nobody sees: control, zero-width or direction characters",
    remedy="remove them from the texts",
    find=_find_invisible,
    mend=_mend_invisible,
)
"""Characters that are not seen and that no script there needs.

Kept are tab and line ends; joiners within emoji and next to letters of scripts that use them; variation selectors after
emoji and Chinese characters; zero-width spaces next to Thai, Khmer and the like; marks of direction, embeddings and
isolates in a text that holds Arabic or Hebrew. A line or page separator becomes a line end, another separator a space,
and the rest is removed.
"""
