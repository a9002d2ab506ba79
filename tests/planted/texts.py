"""Faults in the text of one row: each function takes a clean row and gives it with the fault, and the variant."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from tests.planted import private
from tests.planted import words as w
from tests.planted.clean import Grammar, Pair, chinese_grammar, english_grammar

SPECIAL_TOKENS = ("<|im_end|>", "<|im_start|>")
"""Special tokens that the models of our tests and SmolLM2 have in common."""


@dataclass(frozen=True)
class Setting:
    """What a fault has to know of the set it is planted in.

    Args:
        chinese: whether the set is Chinese; else English.
        prompt_only: whether answers are for machines, so that the text is the prompt.
    """

    chinese: bool = False
    prompt_only: bool = False

    @property
    def grammar(self) -> Grammar:
        """The language's grammar."""
        return chinese_grammar() if self.chinese else english_grammar()


Change = Callable[[Pair, random.Random, Setting], tuple[Pair, str]]
"""A clean row -> the row with a fault, and the fault's variant."""


def in_one_text(pair: Pair, draw: random.Random, setting: Setting, change: Callable[[str], str]) -> Pair:
    """The row with its prompt or its answer changed, as chance has it."""
    if setting.prompt_only or draw.random() < 0.5:
        return replace(pair, prompt=change(pair.prompt))
    return replace(pair, answer=change(pair.answer))


def insert_sentence(text: str, sentence: str, draw: random.Random, setting: Setting) -> str:
    """The text with one more sentence: first, last or in between."""
    ends = [match.end() for match in re.finditer("[。？]" if setting.chinese else r"[.?] ", text)]
    at = draw.choice([0, *ends, len(text)])
    space = "" if setting.chinese else " "
    return f"{text[:at].strip()}{space}{sentence}{space}{text[at:].strip()}".strip()


def _pick(draw: random.Random, choices: Mapping[str, private.Maker]) -> tuple[str, str]:
    variant = draw.choice(list(choices))
    return variant, choices[variant](draw)


# --- Private data -------------------------------------------------------------------------------------------------

_AROUND = (
    "Use {} from now on.", "On the back somebody had written {} in pencil.", "The note said {}.",
    "{} is what it says.", "Ask for {}, then wait.", 'It reads "{}" in small letters.',
    "Nobody had noticed ({}) until then.",
)  # fmt: skip
_AROUND_ZH = (
    "从现在起请用{}。", "背面用铅笔写着{}。", "纸条上是“{}”。", "{}就是上面的内容。", "先问{}，再等一等。",
    "谁也没注意（{}）这一行。",
)  # fmt: skip


def private_data(choices: Mapping[str, private.Maker], chinese: Mapping[str, private.Maker] | None = None) -> Change:
    """Puts a made-up value into a sentence of its own; `chinese` are the choices for Chinese sets."""

    def change(pair: Pair, draw: random.Random, setting: Setting) -> tuple[Pair, str]:
        variant, value = _pick(draw, chinese if chinese is not None and setting.chinese else choices)
        sentence = draw.choice(_AROUND_ZH if setting.chinese else _AROUND).format(value)
        return in_one_text(pair, draw, setting, lambda text: insert_sentence(text, sentence, draw, setting)), variant

    return change


# --- Characters and marks -----------------------------------------------------------------------------------------

_ACCENTED = (
    "The café beside the crêperie was naïve about prices — so they said.",
    "“We can’t leave,” said Müller’s sister.", "Señor Ibáñez paid 40 € for the façade…",
    "It’s Zoë’s résumé, not Chloë’s.", "Ångström’s élève drew “the œuvre”.",
)  # fmt: skip
_INVISIBLE = "\u200b\ufeff\u202e\u2066\u2060\u200e\x07\x1b\x08\u202c"


def mojibake(pair: Pair, draw: random.Random, setting: Setting) -> tuple[Pair, str]:
    """UTF-8 read as the code page of western Windows, or as Latin-1."""
    encoding = draw.choice(("cp1252", "latin-1"))

    def garble(text: str) -> str:
        if not setting.chinese:
            text = insert_sentence(text, draw.choice(_ACCENTED), draw, setting)
        content = text.encode("utf-8")
        if encoding == "latin-1":
            return content.decode("latin-1")
        # Five bytes have no letter in the code page; browsers and Windows pass them through.
        return "".join(bytes([byte]).decode("cp1252", "replace").replace("\ufffd", chr(byte)) for byte in content)

    return in_one_text(pair, draw, setting, garble), encoding


def invisible(pair: Pair, draw: random.Random, setting: Setting) -> tuple[Pair, str]:
    """One to four characters that nobody sees, within the text."""
    character = draw.choice(_INVISIBLE)

    def hide(text: str) -> str:
        for _ in range(draw.randrange(1, 5)):
            at = draw.randrange(1, len(text))
            text = text[:at] + character + text[at:]
        return text

    return in_one_text(pair, draw, setting, hide), f"U+{ord(character):04X}"


def markup(pair: Pair, draw: random.Random, setting: Setting) -> tuple[Pair, str]:
    """What is left of a web page."""
    variant = draw.choice(("tags", "line-breaks", "entities", "attributes"))

    def mark(text: str) -> str:
        if setting.chinese:
            # After a mark, as a web page has it: a tag within a word is rare.
            words, space = re.findall("[^，。？：]+[，。？：]?", text), ""
        else:
            words, space = text.split(" "), " "
        middle = len(words) // 2
        first, last = space.join(words[:middle]), space.join(words[middle:])
        return {
            "tags": f"<p>{first}</p>\n<p><b>{last}</b></p>",
            "line-breaks": f"{first}<br/>{last}<br/>",
            "entities": f"{first}&nbsp;&nbsp;{last}&nbsp;&quot;&hellip;&quot;",
            "attributes": f'<div class="{draw.choice(w.NOUNS)}">{first} <a href="/notes">{last}</a></div>',
        }[variant]

    return in_one_text(pair, draw, setting, mark), variant


def special_tokens(pair: Pair, draw: random.Random, setting: Setting) -> tuple[Pair, str]:
    """A special token of the model, written in the text."""
    token = draw.choice(SPECIAL_TOKENS)
    return in_one_text(pair, draw, setting, lambda text: insert_sentence(text, token, draw, setting)), token


# --- Answers ------------------------------------------------------------------------------------------------------

_REFUSALS = (
    "I'm sorry, but I can't help with that.", "I cannot assist with this request.",
    "I'm unable to answer that question.", "Sorry, I am not able to provide that information.",
    "I apologize, but I cannot fulfill this request.", "I can't comply with that request.",
    "I'm afraid I can't do that.", "Unfortunately, I cannot provide this content.",
    "I won't be able to help you with that.", "I must decline to answer this.",
)  # fmt: skip
_REFUSALS_ZH = (
    "抱歉，我无法回答这个问题。", "对不起，我不能提供这方面的帮助。", "很抱歉，我无法满足您的要求。",
    "我无法协助完成这个请求。", "不好意思，我不能回答这个问题。", "非常抱歉，我无法提供相关信息。",
    "对不起，这个问题我无法回答。", "抱歉，我不能这样做。",
)  # fmt: skip
_BOILERPLATE = (
    "As an AI language model, I do not have personal opinions.",
    "As an AI assistant, I don't have access to real-time data.", "I'm just an AI and have no feelings.",
    "As a large language model, I can only describe it.", "I am an AI developed to help people.",
    "My knowledge cutoff is September 2021.",
)  # fmt: skip
_BOILERPLATE_ZH = (
    "作为一个人工智能语言模型，我没有个人观点。", "作为一名AI助手，我无法访问实时数据。",
    "作为AI语言模型，我只能描述这件事。", "我是一个人工智能助手，没有感情。", "作为人工智能，我没有亲身经历。",
    "我的知识截止到2021年9月。",
)  # fmt: skip
_ONE_WORD = ("Yes", "No", "Maybe", "Blue", "Seven", "harbour", "Done.")
_ONE_WORD_ZH = ("是", "好", "对", "可以", "没有", "木匠", "不行")
_FOREIGN = {
    "german": (
        "Der alte Müller reparierte am Morgen die Leiter hinter der Scheune.",
        "Niemand wusste, warum das Boot im Hafen geblieben war.",
        "Seit dem Markttag hat die Bäckerin ihre Fenster nicht mehr geöffnet.",
        "Wir fanden den Brief erst, als der Schnee geschmolzen war.",
    ),
    "french": (
        "Le vieux meunier a réparé l'échelle derrière la grange ce matin.",
        "Personne ne savait pourquoi le bateau était resté au port.",
        "Depuis le jour du marché, la boulangère n'a plus ouvert ses fenêtres.",
        "Nous avons trouvé la lettre seulement après la fonte des neiges.",
    ),
    "russian": (
        "Старый мельник утром починил лестницу за амбаром.",
        "Никто не знал, почему лодка осталась в гавани.",
        "С самого базарного дня булочница не открывала окон.",
        "Мы нашли письмо только тогда, когда растаял снег.",
    ),
}


def refusal(pair: Pair, draw: random.Random, setting: Setting) -> tuple[Pair, str]:
    """An answer that refuses, and sometimes goes on a little."""
    text = draw.choice(_REFUSALS_ZH if setting.chinese else _REFUSALS)
    if draw.random() < 0.5:
        return replace(pair, answer=text), "bare"
    more = setting.grammar.request(draw)
    return replace(pair, answer=f"{text}{setting.grammar.between}{more}"), "with more"


def boilerplate(pair: Pair, draw: random.Random, setting: Setting) -> tuple[Pair, str]:
    """A phrase of a chat assistant about itself, before the answer or after it."""
    text, space = draw.choice(_BOILERPLATE_ZH if setting.chinese else _BOILERPLATE), setting.grammar.between
    if draw.random() < 0.7:
        return replace(pair, answer=f"{text}{space}{pair.answer}"), "before"
    return replace(pair, answer=f"{pair.answer}{space}{text}"), "after"


def language_mix(pair: Pair, draw: random.Random, setting: Setting) -> tuple[Pair, str]:
    """An answer in another language than its prompt, or a row in another than the rest."""
    other = replace(setting, chinese=not setting.chinese).grammar
    variant = draw.choice(("other answer", "other row", *_FOREIGN))
    if variant == "other row":
        return replace(pair, prompt=other.prompt(draw), answer=other.answer(draw)), variant
    if variant == "other answer":
        return replace(pair, answer=other.answer(draw)), variant
    return replace(pair, answer=" ".join(draw.sample(_FOREIGN[variant], 3))), variant


def repeated_text(pair: Pair, draw: random.Random, setting: Setting) -> tuple[Pair, str]:
    """The answer says the same over and over."""
    variant = draw.choice(("sentence", "word", "half"))
    space = setting.grammar.between
    sentence = setting.grammar.text(draw, 1)
    if variant == "sentence":
        return replace(pair, answer=space.join([sentence] * draw.randrange(5, 12))), variant
    if variant == "word":
        word = draw.choice(w.NOUNS_ZH if setting.chinese else w.NOUNS)
        return replace(pair, answer=sentence + space + space.join([word] * draw.randrange(25, 60))), variant
    return replace(pair, answer=pair.answer + space + space.join([sentence] * draw.randrange(8, 14))), variant


def one_word(pair: Pair, draw: random.Random, setting: Setting) -> tuple[Pair, str]:
    """An answer of one word among long ones."""
    word = draw.choice(_ONE_WORD_ZH if setting.chinese else _ONE_WORD)
    return replace(pair, answer=word), word


def url_only(pair: Pair, draw: random.Random, setting: Setting) -> tuple[Pair, str]:
    """An answer of nothing but addresses."""
    one, two = (f"{draw.choice(w.NOUNS)}-example.org/{draw.choice(w.SITES)}?id={private.digits(draw, 5)}" for _ in "12")
    variant = draw.choice(("one", "without scheme", "two"))
    answer = {"one": f"https://{one}", "without scheme": f"www.{one}", "two": f"http://{one}\nhttps://{two}"}[variant]
    return replace(pair, answer=answer), variant


def broken_json(pair: Pair, draw: random.Random, setting: Setting) -> tuple[Pair, str]:
    """An answer that is nearly JSON."""
    variant = draw.choice(("cut", "quotes", "comma", "no brace", "prose"))
    text = pair.answer
    answer = {
        "cut": text[: len(text) * 2 // 3],
        "quotes": text.replace('"', "'"),
        "comma": f"{text[:-1]},}}",
        "no brace": text[1:],
        "prose": setting.grammar.answer(draw),
    }[variant]
    return replace(pair, answer=answer), variant


# --- Lengths ------------------------------------------------------------------------------------------------------


def long_answer(characters: int) -> Change:
    """An answer of so many characters."""

    def change(pair: Pair, draw: random.Random, setting: Setting) -> tuple[Pair, str]:
        return replace(pair, answer=_long(characters, draw, setting)), "answer"

    return change


def long_prompt(characters: int) -> Change:
    """A prompt of so many characters, after which no room is left for the answer."""

    def change(pair: Pair, draw: random.Random, setting: Setting) -> tuple[Pair, str]:
        return replace(pair, prompt=_long(characters, draw, setting)), "prompt"

    return change


def _long(characters: int, draw: random.Random, setting: Setting) -> str:
    text = setting.grammar.text(draw, characters // (20 if setting.chinese else 60))
    # Numbered throughout: so long a text shares a passage with some row of test by chance, which would be a leak.
    parts: Sequence[str] = text if setting.chinese else text.split(" ")
    size, space = (12, "") if setting.chinese else (6, " ")
    chunks = (space.join(parts[start : start + size]) for start in range(0, len(parts), size))
    return "".join(f"{chunk} {number} " for number, chunk in enumerate(chunks, 1))[:characters]


# --- Other words: near-duplicates and passages --------------------------------------------------------------------


def reworded(text: str, draw: random.Random, setting: Setting) -> tuple[str, str]:
    """The text with one word in ten, or in Chinese one character in ten, replaced by another."""
    if not setting.chinese:
        parts = text.split(" ")
        others: Sequence[str] = (*w.NOUNS, *w.ADJECTIVES, *w.DEEDS)
        variant = "words"
    elif draw.random() < 0.5:
        parts, others, variant = list(text), "的一是不了人我在有他这中大来上国个到说们", "characters"
    else:
        # Two characters are about one word.
        parts, others, variant = [text[i : i + 2] for i in range(0, len(text), 2)], w.NOUNS_ZH, "words"
    for at in draw.sample(range(len(parts)), max(1, round(len(parts) / 10))):
        parts[at] = draw.choice([other for other in draw.sample(others, 3) if other != parts[at]])
    return ("" if setting.chinese else " ").join(parts), variant


PASSAGE = (12, 20)
"""Least and most words of a passage that two rows share."""

PASSAGE_ZH = (36, 50)
"""The same in Chinese, in characters."""


def has_passage(text: str, setting: Setting) -> bool:
    """Whether the text is long enough for a passage."""
    return len(text if setting.chinese else text.split(" ")) >= (PASSAGE_ZH if setting.chinese else PASSAGE)[0]


def passage(text: str, draw: random.Random, setting: Setting) -> str:
    """A part of the text of as many words, or Chinese characters, as a passage has; all of a shorter text."""
    parts: Sequence[str] = text if setting.chinese else text.split(" ")
    least, most = PASSAGE_ZH if setting.chinese else PASSAGE
    length = min(draw.randrange(least, most + 1), len(parts))
    start = draw.randrange(len(parts) - length + 1)
    return ("" if setting.chinese else " ").join(parts[start : start + length])


# --- What looks like a fault and is none --------------------------------------------------------------------------

_HARMLESS = {
    "emoji": ("invisible_characters", "Well done 👨‍👩‍👧‍👦 👩🏽‍🚀 ❤️ said the card."),
    "persian": ("invisible_characters", "The sign read می‌خواهم in fine letters."),
    "accents": ("mojibake", "The café's façade — “très chic” — cost £40 in São Paulo, said Ångström."),
    "comparison": ("markup", "It holds where a < b and c > d, or x <= 3 && y >= 4."),
    "types": ("markup", "Declare it as std::vector<int> or as List<String> in AT&T's library."),
    "heart": ("markup", "Thank you so much <3 from R&D."),
    "reported": ("refusals", "The clerk said she could not help him with the request."),
    "robots": ("boilerplate", "The lecture was about AI language models and what they cannot know."),
    "borrowed": ("language_mix", "They call it déjà vu, Weltschmerz or 侘寂, each in its own way."),
    "linked": ("url_only", "More of it stands at https://harbour-example.org/notes for those who care."),
    "list": ("repeated_text", "1. Check the oil.\n2. Check the brake.\n3. Check the lamp.\n4. Check the horn."),
    "tokens": ("special_tokens", "The tags im_start and <|end and s|> mean nothing here."),
}
_HARMLESS_ZH = {
    "emoji": ("invisible_characters", "卡片上写着：干得好👨‍👩‍👧‍👦👩🏽‍🚀❤️。"),
    "punctuation": ("mojibake", "他说：“好——真好……”，还有《旧事》。"),
    "comparison": ("markup", "当 a < b 且 c > d 时成立，或者 x <= 3。"),
    "reported": ("refusals", "店员说她帮不了他的忙，也回答不了那个问题。"),
    "robots": ("boilerplate", "那场讲座讲的是人工智能语言模型的来历。"),
    "borrowed": ("language_mix", "大家都用 Python 和 GitHub，还装了 Wi-Fi 与 USB 接口。"),
    "linked": ("url_only", "更多内容见 https://harbour-example.org/notes 这一页。"),
    "laughter": ("repeated_text", "他笑道：“哈哈哈哈哈，好好好！”"),
}


def harmless(pair: Pair, draw: random.Random, setting: Setting) -> tuple[Pair, str]:
    """A sentence that a careless rule would take for a fault; the variant begins with the rules that might."""
    plain = _HARMLESS_ZH if setting.chinese else _HARMLESS
    name = draw.choice([*plain, *private.HARMLESS])
    if name in plain:
        rule, sentence = plain[name]
    else:
        rules, make = private.HARMLESS[name]
        rule, sentence = "+".join(rules), draw.choice(_AROUND_ZH if setting.chinese else _AROUND).format(make(draw))
    return in_one_text(
        pair, draw, setting, lambda text: insert_sentence(text, sentence, draw, setting)
    ), f"{rule}: {name}"
