"""The language of a text, and whether a text speaks of languages, found fast enough to ask for every row.

The script decides where one language all but owns it. English, the commonest, is known by its small words. py3langid
(naive Bayes over byte n-grams; Lui and Baldwin, 2012) decides the rest, among the languages written in that script.

Only the beginning of a text is looked at, without code, addresses, numbers and symbols. Limits: a text of Han alone is
taken for Chinese, so Japanese without kana is too; a Latin-script language that is not in `_LANGUAGES` is taken for its
nearest relative or for none; variants of one language, such as Brazilian Portuguese, are not told apart; code that is
not fenced may pass for English where it has few symbols.

Shapes: C characters, S scripts.
"""

from __future__ import annotations

import copy
import re
from functools import cache
from typing import Any

import numpy as np


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_READ = 4000
"""Code and addresses are looked for in so many characters of a text."""

_HEAD = 320
"""The language is judged by so many characters of what is left."""

_MODEL_HEAD = 160
"""py3langid takes time in proportion, and is as right by so many."""

_FEWEST_LETTERS = 16
"""A text with less than so many letters of an alphabet says too little."""

_LARGEST_SYMBOL_SHARE = 0.25
"""Among characters that are no white space; prose has about 0.05, code and JSON 0.3 to 0.5."""

_SMALLEST_SCRIPT_SHARE = 0.55
_SMALLEST_KANA_SHARE = 0.2
"""Of kana among Han and kana: Chinese quotes a kana now and then, Japanese prose is half kana and more."""

_SMALLEST_CONFIDENCE = 0.6
_SMALLEST_CONFIDENCE_IN_ENGLISH = 0.45
"""English is so much commoner that less is enough."""

_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)
_ADDRESS = re.compile(r"(?:https?://|www\.)[!-~]+")
_ARITHMETIC = re.compile(r"\d[-+*/=<>$%().,:\d×÷^ ]*")
_SYMBOLS = re.compile(r"[!-@\[-`{-~]+")
_WORD = re.compile(r"[^\W\d_]+")
_ENGLISH_WORD = re.compile(r"[a-z]+")

_SCRIPTS: tuple[tuple[str, int, tuple[tuple[int, int], ...]], ...] = (
    # Name, how many letters of an alphabet a character says as much as, ranges of code points, ends included.
    ("none", 0, ()),
    ("latin", 1, ((0x41, 0x5A), (0x61, 0x7A))),
    ("marked latin", 1, ((0xC0, 0xD6), (0xD8, 0xF6), (0xF8, 0x24F), (0x300, 0x36F), (0x1E00, 0x1EFF))),
    ("han", 4, ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))),
    ("kana", 4, ((0x3041, 0x3096), (0x30A1, 0x30FA), (0x30FC, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F))),
    ("hangul", 4, ((0x1100, 0x11FF), (0x3130, 0x318F), (0xAC00, 0xD7A3))),
    ("cyrillic", 1, ((0x400, 0x52F),)),
    ("arabic", 1, ((0x620, 0x65F), (0x66E, 0x6D3), (0x6D5, 0x6EF), (0x6FA, 0x6FF), (0x750, 0x77F), (0xFB50, 0xFEFC))),
    ("devanagari", 1, ((0x900, 0x963), (0x971, 0x97F))),
    ("bengali", 1, ((0x980, 0x9E3), (0x9F0, 0x9F1))),
    ("greek", 1, ((0x370, 0x3FF), (0x1F00, 0x1FFF))),
    ("hebrew", 1, ((0x591, 0x5F4),)),
    ("armenian", 1, ((0x531, 0x587),)),
    ("georgian", 1, ((0x10A0, 0x10FF), (0x1C90, 0x1CBF))),
    ("gurmukhi", 1, ((0xA01, 0xA65), (0xA70, 0xA75))),
    ("gujarati", 1, ((0xA81, 0xAE3),)),
    ("oriya", 1, ((0xB01, 0xB63),)),
    ("tamil", 1, ((0xB82, 0xBE5),)),
    ("telugu", 1, ((0xC00, 0xC63),)),
    ("kannada", 1, ((0xC80, 0xCE3),)),
    ("malayalam", 1, ((0xD00, 0xD63),)),
    ("sinhala", 1, ((0xD81, 0xDDF),)),
    ("thai", 1, ((0xE01, 0xE4E),)),
    ("lao", 1, ((0xE81, 0xECD), (0xEDC, 0xEDF))),
    ("tibetan", 1, ((0xF40, 0xFBC),)),
    ("burmese", 1, ((0x1000, 0x103F), (0x1050, 0x108F))),
    ("ethiopic", 1, ((0x1200, 0x135F),)),
    ("khmer", 1, ((0x1780, 0x17D3),)),
)

_ONE_LANGUAGE = {
    "han": "zh",
    "kana": "ja",
    "hangul": "ko",
    "greek": "el",
    "hebrew": "he",
    "armenian": "hy",
    "georgian": "ka",
    "gurmukhi": "pa",
    "gujarati": "gu",
    "oriya": "or",
    "tamil": "ta",
    "telugu": "te",
    "kannada": "kn",
    "malayalam": "ml",
    "sinhala": "si",
    "thai": "th",
    "lao": "lo",
    "tibetan": "bo",
    "burmese": "my",
    "ethiopic": "am",
    "khmer": "km",
}
"""Scripts that one language all but owns."""

# Of small languages and creoles there are none here: lists and names in English are taken for them.
_LANGUAGES = {
    "latin": _words(
        "af az ca cs cy da de en es et eu fi fr ga gl ha hr hu id is it lt lv mt nl no pl pt ro sk sl so sq sv sw tl "
        "tr uz vi yo zu zxx"
    ),
    "cyrillic": _words("ru uk be bg mk kk ky mn sr tg tt"),
    "arabic": _words("ar fa ur ps ug"),
    "devanagari": _words("hi mr ne"),
    "bengali": _words("bn as"),
}
"""The languages that py3langid is asked about; zxx is its code for what is no language."""

_ENGLISH = _words(
    "the of to and that this these there with without you your are were been from they their them it its be which she "
    "his has had we our each because would could should about into than then after when how what who every"
)
"""Small words that other languages of the same script do not have, or seldom use."""

_FEWEST_ENGLISH_WORDS = 2
_SMALLEST_ENGLISH_SHARE = 0.1

_TELLS = 1000
"""A prompt says what is wanted at its beginning or its end: so many characters of each are read."""

_LANGUAGE_NAMES = _words(
    "Afrikaans Albanian Amharic Arabic Armenian Azerbaijani Basque Belarusian Bengali Bosnian Bulgarian Burmese "
    "Cantonese Catalan Chinese Croatian Czech Danish Dutch English Esperanto Estonian Farsi Filipino Finnish French "
    "Galician Georgian German Greek Gujarati Hausa Hebrew Hindi Hungarian Icelandic Igbo Indonesian Irish Italian "
    "Japanese Kannada Kazakh Khmer Korean Kurdish Lao Latin Latvian Lithuanian Macedonian Malay Malayalam Maltese "
    "Mandarin Marathi Mongolian Nepali Norwegian Pashto Persian Polish Portuguese Punjabi Romanian Russian Sanskrit "
    "Serbian Sinhala Slovak Slovenian Somali Spanish Swahili Swedish Tagalog Tajik Tamil Telugu Thai Tibetan Turkish "
    "Ukrainian Urdu Uyghur Uzbek Vietnamese Welsh Xhosa Yiddish Yoruba Zulu "
    "Deutsch Englisch Französisch Spanisch Italienisch Chinesisch Japanisch Russisch "
    "anglais français espagnol allemand italien chinois japonais russe "
    "inglés español francés alemán italiano chino japonés ruso português inglês francês espanhol alemão"
)
_LANGUAGE_WORDS = (
    _LANGUAGE_NAMES
    | {name.upper() for name in _LANGUAGE_NAMES}
    | {name.lower() for name in _LANGUAGE_NAMES - {"Polish"}}
)

_STEMS = _words(
    "translat traduc traduz tradui tradur übersetz vertaal tercüme çevir перевед перевод перевес переклад русск "
    "английск китайск французск немецк испанск "
    "翻译 翻譯 翻訳 译成 譯成 译为 譯為 译文 譯文 訳し 普通话 國語 国语 日本語 中国語 韓国語 "
    "번역 통역 한국어 영어 중국어 일본어 프랑스어 독일어 스페인어 러시아어"
)
"""Beginnings of words for translating, and names of languages in languages that bend or join words."""
_ASCII_STEMS = frozenset(stem for stem in _STEMS if stem.isascii())

_EAST_ASIAN_NAME = re.compile(
    r"(?:[英法德俄日韩韓汉漢中粤粵泰]|西班牙|葡萄牙|阿拉伯|意大利|越南|印地|拉丁|希腊|希臘|荷兰|荷蘭)[语語文]|[ァ-ヺー]{2}語"
)

_NAMES = [name for name, _, _ in _SCRIPTS]
_WEIGHTS_S = np.array([weight for _, weight, _ in _SCRIPTS], dtype=np.int64)
_LATIN, _MARKED_LATIN, _HAN, _KANA = range(1, 5)

_SCRIPT_OF = np.zeros(0x110000, dtype=np.uint8)
for _script, (_, _weight, _ranges) in enumerate(_SCRIPTS):
    for _start, _end in _ranges:
        _SCRIPT_OF[_start : _end + 1] = _script


def language_of(text: str) -> str:
    """The ISO 639-1 code of the language of `text`, as "en"; "" where it is too short or too mixed to tell.

    The same text always gives the same code.
    """
    head = _prose(text)
    codes_C = np.frombuffer(head.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    characters_S = np.bincount(_SCRIPT_OF[codes_C], minlength=len(_SCRIPTS))
    letters_S = characters_S * _WEIGHTS_S
    letters_S[_LATIN] += letters_S[_MARKED_LATIN]
    letters_S[_MARKED_LATIN] = 0
    if letters_S[_KANA]:
        # Kana and Han together are Japanese, unless the kana are a quotation.
        kana, both = int(characters_S[_KANA]), int(characters_S[_KANA] + characters_S[_HAN])
        owner, other = (_KANA, _HAN) if kana >= _SMALLEST_KANA_SHARE * both else (_HAN, _KANA)
        letters_S[owner] += letters_S[other]
        letters_S[other] = 0
    script = int(letters_S.argmax())
    letters = int(letters_S[script])
    if letters < _FEWEST_LETTERS or letters < _SMALLEST_SCRIPT_SHARE * int(letters_S.sum()):
        return ""
    if _NAMES[script] in _ONE_LANGUAGE:
        return _ONE_LANGUAGE[_NAMES[script]]
    if script == _LATIN and _is_plain_english(head):
        return "en"
    return _by_model(_NAMES[script], head)


def mentions_language(text: str) -> bool:
    """Whether a prompt asks for a translation or names a language, so that an answer in another one may be meant.

    English, Chinese, Japanese and Korean names are known, and those of the great languages in some others.
    Nationalities have the same names, so an Italian dish counts; only the beginning and the end of a long prompt are
    read.
    """
    if len(text) > 2 * _TELLS:
        text = f"{text[:_TELLS]} {text[-_TELLS:]}"
    if not _LANGUAGE_WORDS.isdisjoint(_WORD.findall(text)):
        return True
    lower, is_ascii = text.lower(), text.isascii()
    if any(stem in lower for stem in (_ASCII_STEMS if is_ascii else _STEMS)):
        return True
    return not is_ascii and _EAST_ASIAN_NAME.search(text) is not None


def _prose(text: str) -> str:
    """The beginning of a text without code and addresses."""
    text = text[:_READ]
    if "`" in text:
        text = _CODE.sub(" ", text)
    if "://" in text or "www." in text:
        text = _ADDRESS.sub(" ", text)
    return text[:_HEAD]


def _is_plain_english(head: str) -> bool:
    words = _ENGLISH_WORD.findall(head.lower())
    found = [word for word in words if word in _ENGLISH]
    return len(set(found)) >= _FEWEST_ENGLISH_WORDS and len(found) >= _SMALLEST_ENGLISH_SHARE * len(words)


def _by_model(script: str, head: str) -> str:
    """The likeliest language of `head` among those of its script, "" where it is code or py3langid is not sure."""
    # Numbers, and the line breaks of lists and tables, say nothing of the language.
    pieces = _ARITHMETIC.sub(" ", head).split()
    plain = " ".join(pieces)
    symbols = sum(map(len, _SYMBOLS.findall(plain)))
    if symbols > _LARGEST_SYMBOL_SHARE * sum(map(len, pieces)):
        return ""
    code, confidence = _identifier(script).classify(plain[:_MODEL_HEAD])
    needed = _SMALLEST_CONFIDENCE_IN_ENGLISH if code == "en" else _SMALLEST_CONFIDENCE
    return "" if confidence < needed or code == "zxx" else str(code)


@cache
def _identifier(script: str) -> Any:
    """py3langid's model, restricted to the languages of a script."""
    identifier = copy.copy(_all_languages())
    identifier.set_languages(_LANGUAGES[script])
    return identifier


@cache
def _all_languages() -> Any:
    # It takes half a second to load: not before a text needs it.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
