"""The rule about left-overs of HTML: tags and entities that were meant to be rendered.

Tags are known by their names: `List<String>`, `<name>`, `<think>` and `a<b` are no HTML.
"""

from __future__ import annotations

import re
from html import unescape
from html.entities import name2codepoint

from tunesmith.data.checks.rules import TextRule, excerpt, texts_of, with_texts
from tunesmith.data.records import Example


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_LONE = _words("br p div span strong li ul ol td tr font blockquote nobr")
"""Tags that mean HTML wherever they stand."""

_PAIRED = _words("a b i u em del ins sup sub small big strike tt h1 h2 h3 h4 h5 h6 th hr img")
"""Tags that are also names of keys, of variables and of types: these count with an attribute or a closing tag only."""

_BESIDE = _words("table thead tbody center pre code section article header footer label dl dt dd")
"""Tags that are also marks in prompts, as `<table>` around data: these count beside others only."""

_BLOCKS = (_BESIDE - _words("label code dt dd")) | _words("p div li ul ol tr blockquote h1 h2 h3 h4 h5 h6 hr")
"""Tags that end a line."""

_CELLS = _words("td th dt dd")
"""Tags around what stands apart from its neighbours on the same line."""

_VARIABLES = _words(
    "and cap cup empty exist fork image int lang loz ni not or order part perp prop rang real sim sub sum sup there4"
)
"""Names of entities that a variable may have, of which code takes the address, as in `p = &sum;`."""

_NAMED_ENTITIES = (frozenset(name2codepoint) - _VARIABLES) | _words("apos AMP LT GT QUOT")

_NAMES = "|".join(sorted(_LONE | _PAIRED | _BESIDE, key=len, reverse=True))

_SCAN = re.compile(
    r"(?P<code>```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|``[^\n]+?``|`[^`\n]+`|^[ \t]*\|[^\n]*)"  # and rows of a Markdown table
    r"|<sup>(?P<raised>[^<>\n]{1,20})</sup>"
    rf"|<(?P<close>/?)(?P<name>{_NAMES}|{_NAMES.upper()})"
    r"""(?P<attributes>(?:\s+[a-zA-Z][\w:.-]*\s*=\s*(?:"[^"\n]*"|'[^'\n]*'|[^\s"'<>]+))*)\s*/?>(?P<blank>[ \t]*)"""
    r"|&(?P<entity>\#[0-9]{1,7}|\#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,7});",
    re.DOTALL | re.MULTILINE,
)

_CANDIDATE = re.compile(r"[<&][/#a-zA-Z]")

_ABOUT_MARKUP = re.compile(
    r"(?<!\.)(?:x?html|xml)|\b(?:css|svg|jsx|tsx|vue|react|angular|svelte|php|javascript|typescript|jquery"
    r"|bootstrap|markdown|ssml|dom|mark-?up|web ?pages?|landing page|front-?end)\b"
    r"|(?<!price[ -])(?<!name[ -])(?<!gift[ -])(?<!dog[ -])(?<!luggage[ -])\btags?\b(?! (?:along|sale|team))"
    r"|网页|标记语言|前端|超文本|转义"
    # Chinese says "tag" and "label" with one word.
    rf"|(?:(?<![a-z])(?:{_NAMES})|/?>|`) ?标签|(?:闭合|起始|开始|结束|成对|嵌套|块级|行内|去除|过滤|清除)标签"
    r"|标签(?:属性|嵌套|闭合|包[裹围住]|括起)"
    r"|<!doctype|<\?|</?(?:head|body|script|style|form|input|button|nav|meta|link|template|select|iframe|canvas)\b"
    r"|innerHTML|getElementById|className=|createElement|\{\{|@click|\bv-(?:if|for|model)\b"
    r"|&lt;[/!]?[a-z][^&<>\n]{0,80}&gt;",  # a tag that is meant to be read
    re.IGNORECASE,
)

_STYLED = re.compile(r"<[a-z][^<>]*\s(?:class|id)=", re.IGNORECASE)

_MOST_STYLED = 2
"""Tags with a class or an id; from the next one on it is a page that was asked for."""

_RAISED = str.maketrans("0123456789+-−=()ni", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁼⁽⁾ⁿⁱ")

_ORDINALS = frozenset(("st", "nd", "rd", "th", "er", "e", "o", "a", "tm", "TM", "®", "©"))


def _find(example: Example) -> str | None:
    texts = texts_of(example)
    if not any(map(_may_hold_markup, texts)) or _is_about_markup(texts):
        return None
    for text in texts:
        left_over = _first_left_over(text)
        if left_over:
            return excerpt(text, *left_over.span())
    return None


def _mend(example: Example) -> Example:
    texts = texts_of(example)
    if not any(map(_may_hold_markup, texts)) or _is_about_markup(texts):
        return example
    return with_texts(example, _rendered)


def _may_hold_markup(text: str) -> bool:
    return ("<" in text or "&" in text) and _CANDIDATE.search(text) is not None


def _is_about_markup(texts: list[str]) -> bool:
    return any(map(_ABOUT_MARKUP.search, texts)) or sum(len(_STYLED.findall(text)) for text in texts) > _MOST_STYLED


def _first_left_over(text: str) -> re.Match[str] | None:
    if not _may_hold_markup(text):
        return None
    names = _names_that_count(text)
    return next((match for match in _SCAN.finditer(text) if _is_left_over(match, names)), None)


def _names_that_count(text: str) -> frozenset[str]:
    """The tags that mean HTML in this text, lower case."""
    sure, beside = set(), set()
    for match in _SCAN.finditer(text):
        name = (match["name"] or "").lower()
        if name in _BESIDE:
            beside.add(name)
        elif match["raised"]:
            sure.add("sup")
        elif name and _means_html(match, name):
            sure.add(name)
    return frozenset(sure | beside) if sure else frozenset()


def _means_html(match: re.Match[str], name: str) -> bool:
    if match["attributes"]:
        return True
    if name == "a" or match["name"] == "P":  # <a> marks an answer in some prompts, and P is a type
        return name == "p" and bool(match["close"])
    return name in _LONE or bool(match["close"])


def _is_left_over(match: re.Match[str], names: frozenset[str]) -> bool:
    if match["code"]:
        return False
    if match["entity"]:
        return _resolved(match) is not None
    return match["raised"] is not None or match["name"].lower() in names


def _resolved(match: re.Match[str]) -> str | None:
    """The character an entity stands for, None where it is none, or one that text should not hold."""
    if match["entity"][0] != "#" and match["entity"] not in _NAMED_ENTITIES:
        return None
    character = unescape(match[0]).replace("\xa0", " ")
    # A back-tick would make code of what follows.
    return (
        character if (character.isprintable() or character in "\n\t") and character not in ("`", "\ufffd", "") else None
    )


_MOST_PASSES = 20


def _rendered(text: str) -> str:
    """The text as a reader of the page would have seen it."""
    # Again until nothing changes, for entities that were escaped twice; a text escaped oftener is made to take time.
    for _ in range(_MOST_PASSES):
        if not _may_hold_markup(text):
            break
        rendered = _rendered_once(text)
        if rendered == text:
            break
        text = rendered
    return text


def _rendered_once(text: str) -> str:
    names = _names_that_count(text)
    parts: list[str] = []
    position = 0
    for match in _SCAN.finditer(text):
        if not _is_left_over(match, names):
            continue
        parts.append(text[position : match.start()])
        position = match.end()
        before = next((part[-1] for part in reversed(parts) if part), "")
        parts.append(_in_its_place(match, before, text[position : position + 1]))
    rendered = "".join([*parts, text[position:]])
    return rendered if position < len(text) or position == 0 else rendered.rstrip()


def _in_its_place(match: re.Match[str], before: str, after: str) -> str:
    """What is seen of a tag or an entity between the characters `before` and `after`, "" at an end of the text."""
    if match["entity"]:
        return _resolved(match) or ""
    if match["raised"]:
        return _raised(match["raised"])
    name = match["name"].lower()
    if name == "br":
        return "" if after in ("", "\n") else "\n"
    if name in _BLOCKS:
        line_end = "" if before in ("", "\n") or after in ("", "\n") else "\n"
        return line_end + "- " if name == "li" and not match["close"] else line_end
    if name in _CELLS:
        return "" if before in ("", " ", "\n") or after in ("", " ", "\n") else " "
    return str(match["blank"])


def _raised(text: str) -> str:
    """What stands raised, "2" as "²"; with a caret where there are no such characters."""
    if text in _ORDINALS:
        return text
    raised = text.translate(_RAISED)
    if not set(raised) & set(text):
        return raised
    return f"^{text}" if text.isalnum() else f"^({text})"


MARKUP = TextRule(
    name="markup",
    what="hold left-overs of HTML",
    remedy="take the text of the pages instead of their source",
    find=_find,
    mend=_mend,
)
"""Tags and entities of HTML that were meant to be rendered.

Not flagged are code in back-ticks, rows of Markdown tables, where `<br>` has its use, and rows about markup or pages.
`mend` renders: `<br>`, `<p>` and other blocks end a line, other tags go, entities become their characters.
"""
