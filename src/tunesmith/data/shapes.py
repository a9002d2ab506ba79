"""The shapes a row of data comes in, and how each becomes an `Example`.

Accepted are OpenAI messages, ShareGPT, Alpaca, prompt/completion, question/answer, plain text, and columns named by the
recipe. A row is taken only when exactly one reading fits; nothing is guessed and nothing is dropped without a word: a
row that cannot be used raises `RowError` with the reason, and keys that no shape reads are named in the result.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.config import ColumnMapping, DataSection
from tunesmith.data.records import Example, Message, Place
from tunesmith.data.rows import quoted, shown

ROLE_NAMES: Mapping[str, str] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "ipython": "tool",
}
"""The names of a speaker in usual data, in lower case, and the role each stands for."""

TOOL_CALLS_REASON = "tool calls are not supported yet"

_TURN_KEYS = ("messages", "conversations", "conversation")
_SYSTEM_KEYS = ("system", "system_prompt")


class RowError(Exception):
    """A row cannot become an example; `reason` says why, without the place."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class ConvertedRow:
    """An example, and how its row was read.

    Args:
        example: what to train on.
        shape: the shape the row was read as, one of the recipe's values of `data.format`.
        unused_keys: keys of the row that hold a value and were not read, in order; `messages[].name` for a key within
            the turns.
    """

    example: Example
    shape: str
    unused_keys: tuple[str, ...] = ()


def convert_row(values: Mapping[str, Any], place: Place, data: DataSection) -> ConvertedRow:
    """One row as an example.

    Args:
        values: the row; a key whose value is None counts as absent, as Parquet files and the hub fill rows so.
        place: where the row comes from.
        data: `format`, `mapping` and `system` decide how it is read.

    Raises:
        RowError: the row fits no shape, or several, or breaks a rule of its shape.
    """
    row = _Row(values)
    if data.mapping is not None:
        shape, parts = "mapping", _read_mapping(row, data.mapping)
    else:
        found = _detect(row) if data.format == "auto" else _SHAPES_BY_NAME[data.format]
        _require(row, found)
        shape, parts = found.name, found.read(row)
    if isinstance(parts, str):
        example = Example(messages=(), place=place, text=parts)
    else:
        if data.system and not (parts and parts[0].role == "system"):
            parts = [Message("system", data.system), *parts]
        _check_conversation(parts)
        example = Example(messages=tuple(parts), place=place)
    return ConvertedRow(example, shape, row.unused_keys())


def looks_like_row(values: Mapping[str, Any]) -> bool:
    """Whether an object has the keys of a row of some shape, and so is not a wrapper around a list of rows."""
    row = _Row(values)
    return any(_fits(row, shape) for shape in _SHAPES if shape.name not in _CONVERSATIONS) or any(
        key in row.values and _turn_style(row.values[key]) is not None for key in _TURN_KEYS
    )


class _Row:
    """The values of a row that are not null, and a note of which were read."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = {key: value for key, value in values.items() if value is not None}
        self.keys = list(values)
        self.unused_in_turns: dict[str, None] = {}
        self._read: set[str] = set()

    def take(self, *names: str) -> tuple[str, Any]:
        """The name that is there and its value; the first name and None where none is.

        Raises:
            RowError: more than one of them is there.
        """
        there = [name for name in names if name in self.values]
        if len(there) > 1:
            raise RowError(f"has both {quoted(there)}; say which to read with data.mapping")
        name = there[0] if there else names[0]
        self._read.add(name)
        return name, self.values.get(name)

    def take_text(self, *names: str) -> str:
        """The text under one of the names, "" where none is there."""
        name, value = self.take(*names)
        return "" if value is None else _text(value, f"'{name}'")

    def unused_keys(self) -> tuple[str, ...]:
        return (*(key for key in self.values if key not in self._read), *self.unused_in_turns)


# --- The shapes ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Shape:
    """A shape: its name in the recipe, the keys it needs (one of each group), and how it is read."""

    name: str
    needs: tuple[tuple[str, ...], ...]
    read: Callable[[_Row], list[Message] | str]


def _read_messages(row: _Row) -> list[Message]:
    key, turns = row.take(*_TURN_KEYS)
    return _with_system(
        row.take_text(*_SYSTEM_KEYS), _read_turns(row, turns, key, role_key="role", content_key="content")
    )


def _read_sharegpt(row: _Row) -> list[Message]:
    key, turns = row.take(*_TURN_KEYS)
    return _with_system(
        row.take_text(*_SYSTEM_KEYS), _read_turns(row, turns, key, role_key="from", content_key="value")
    )


def _read_alpaca(row: _Row) -> list[Message]:
    """Instruction and input joined by a line feed, as LLaMA-Factory's alpaca converter does; `history` goes before."""
    parts = [row.take_text("instruction"), row.take_text("input", "context")]
    prompt = "\n".join(part for part in parts if part)
    answer = row.take_text("output", "response")
    turns = [*_read_history(row), Message("user", prompt), Message("assistant", answer)]
    return _with_system(row.take_text(*_SYSTEM_KEYS), turns)


def _read_history(row: _Row) -> Iterator[Message]:
    _, history = row.take("history")
    if history is None:
        return
    if not isinstance(history, list):
        raise RowError(f"'history' is {_kind(history)}, not a list of [question, answer] pairs")
    for number, pair in enumerate(history, 1):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise RowError(f"pair {number} of 'history' is not [question, answer]")
        yield Message("user", _text(pair[0], f"the question of pair {number} of 'history'"))
        yield Message("assistant", _text(pair[1], f"the answer of pair {number} of 'history'"))


def _read_prompt_completion(row: _Row) -> list[Message]:
    return _read_pair(row, ("prompt",), ("completion", "response"), _SYSTEM_KEYS)


def _read_question_answer(row: _Row) -> list[Message]:
    return _read_pair(row, ("question", "query"), ("answer", "answers", "response"), _SYSTEM_KEYS)


def _read_pair(
    row: _Row, prompt_names: tuple[str, ...], answer_names: tuple[str, ...], system_names: tuple[str, ...]
) -> list[Message]:
    """A prompt and its answer; each is a text, or a list of turns as in TRL's conversational prompt/completion."""
    turns: list[Message] = []
    for names, role in ((prompt_names, "user"), (answer_names, "assistant")):
        key, value = row.take(*names)
        if isinstance(value, list):
            turns += _read_turns(row, value, key, role_key="role", content_key="content")
        else:
            turns.append(Message(role, _text(value, f"'{key}'")))
    return _with_system(row.take_text(*system_names) if system_names else "", turns)


def _read_text(row: _Row) -> str:
    _, value = row.take("text")
    return _plain_text(value, "text")


def _plain_text(value: Any, key: str) -> str:
    text = _text(value, f"'{key}'")
    if not text.strip():
        raise RowError("empty text")
    return text


_SHAPES = (
    _Shape("messages", (_TURN_KEYS,), _read_messages),
    _Shape("sharegpt", (_TURN_KEYS,), _read_sharegpt),
    _Shape("alpaca", (("instruction",), ("output", "response")), _read_alpaca),
    _Shape("prompt_completion", (("prompt",), ("completion", "response")), _read_prompt_completion),
    _Shape("question_answer", (("question", "query"), ("answer", "answers", "response")), _read_question_answer),
    _Shape("text", (("text",),), _read_text),
)
_SHAPES_BY_NAME = {shape.name: shape for shape in _SHAPES}
_CONVERSATIONS = ("messages", "sharegpt")
_ACCEPTED = (
    "messages [{role, content}]; conversations [{from, value}]; instruction, input, output; prompt, completion; "
    "question, answer; text; or name the columns with data.mapping"
)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ASKING = _words("ask human input instruct instruction prompt q query question request source title user")
_ANSWERING = _words("a answer answers assistant bot completion label output reply resolution response summary target")
"""What columns are often called, so that the example of a mapping is likely the one that is wanted."""

_NUMBERING = _words("id ids uuid guid index idx date time timestamp url hash")
_SPEAKER_KEYS = _words("role from speaker who author sender name")
_LONGEST_NAME = 60

_WORDS_OF_YAML = _words("y n yes no on off true false null")


def mapping_example(values: Mapping[str, Any]) -> str:
    """A value of `data.mapping` that reads a row by names of its own, as {prompt: ask, completion: reply}.

    It shows the form; which column is which is guessed from their names, and COLUMN stands where that fails. ""
    where no value is a text, or a name is not fit to be shown.
    """
    if not all(key.isprintable() and len(key) <= _LONGEST_NAME for key in values):
        return ""
    for key, value in values.items():
        if isinstance(value, list) and value and isinstance(value[0], dict) and len(value[0]) > 1:
            return _turns_example(key, value[0])
    names = [key for key, value in values.items() if isinstance(value, str)]
    names = [name for name in names if _last_word(name) not in _NUMBERING] or names
    if len(names) < 2:
        return f"{{text: {_in_yaml(names[0])}}}" if names else ""
    answer = next((name for name in names if _last_word(name) in _ANSWERING), None)
    prompt = next((name for name in names if name != answer and _last_word(name) in _ASKING), None)
    if len(names) == 2:  # the other one, or in their order
        prompt = prompt or next(name for name in names if name != answer)
        answer = answer or next(name for name in names if name != prompt)
    return f"{{prompt: {_in_yaml(prompt or 'COLUMN')}, completion: {_in_yaml(answer or 'COLUMN')}}}"


def _turns_example(column: str, turn: dict[str, Any]) -> str:
    """The same for a column of turns, by the first turn."""
    speaks = [key for key, value in turn.items() if isinstance(value, str) and value.lower() in ROLE_NAMES]
    named = [key for key in turn if key.lower() in _SPEAKER_KEYS]
    role = [*speaks, *named, *turn][0]
    content = next(key for key in turn if key != role)
    if not f"{role}{content}".isprintable() or len(role) + len(content) > _LONGEST_NAME:
        return ""
    return f"{{messages: {_in_yaml(column)}, role: {_in_yaml(role)}, content: {_in_yaml(content)}}}"


def _last_word(name: str) -> str:
    """ "reply" of "agent_reply": what a column's name is about stands last."""
    return re.split(r"[\W_]+", name.lower().strip("_ "))[-1]


def _in_yaml(name: str) -> str:
    is_plain = name.replace("_", "a").isalnum() and name[0].isalpha() and name.lower() not in _WORDS_OF_YAML
    return name if is_plain else json.dumps(name, ensure_ascii=False)


def _read_mapping(row: _Row, mapping: ColumnMapping) -> list[Message] | str:
    columns = (mapping.messages, mapping.prompt, mapping.completion, mapping.text)
    missing = [name for name in columns if name is not None and name not in row.values]
    if missing:
        state = "is null" if missing[0] in row.keys else f"is not there; the row has {quoted(row.keys)}"
        raise RowError(f"{quoted(missing[:1])}, which data.mapping names, {state}")
    system_names = (mapping.system,) if mapping.system is not None else ()
    if mapping.text is not None:
        return _plain_text(row.take(mapping.text)[1], mapping.text)
    if mapping.messages is not None:
        key, turns = row.take(mapping.messages)
        read = _read_turns(row, turns, key, role_key=mapping.role, content_key=mapping.content)
        return _with_system(row.take_text(*system_names) if system_names else "", read)
    assert mapping.prompt is not None  # the recipe's validation
    assert mapping.completion is not None
    return _read_pair(row, (mapping.prompt,), (mapping.completion,), system_names)


# --- Detection ----------------------------------------------------------------------------------------------------


def _fits(row: _Row, shape: _Shape) -> bool:
    return all(any(name in row.values for name in group) for group in shape.needs)


def _detect(row: _Row) -> _Shape:
    """The one shape whose keys the row has.

    `text` beside another shape is that example written out, as in the Alpaca data set, and does not count.

    Raises:
        RowError: none fits, or more than one.
    """
    fitting = [shape for shape in _SHAPES if shape.name not in _CONVERSATIONS and _fits(row, shape)]
    if any(key in row.values for key in _TURN_KEYS):
        _, turns = row.take(*_TURN_KEYS)
        fitting.insert(0, _SHAPES_BY_NAME[_turn_style(turns) or "messages"])
    structured = [shape for shape in fitting if shape.name != "text"] or fitting
    if len(structured) == 1:
        return structured[0]
    if structured:
        names = " and as ".join(shape.name for shape in structured)
        raise RowError(f"can be read as {names}; choose one with data.format")
    for shape in _SHAPES:
        if all(any(name in row.keys for name in group) for group in shape.needs):
            return shape  # its keys are there with null values, which _require names
    example = mapping_example(row.values)
    as_here = f", here perhaps {example}" if example else ""
    raise RowError(f"not a known shape: it has {quoted(row.keys)}; accepted are {_ACCEPTED}{as_here}")


def _turn_style(turns: Any) -> str | None:
    """`messages` or `sharegpt` by the keys of the first turn; None where it has neither's."""
    first = turns[0] if isinstance(turns, list) and turns else None
    if not isinstance(first, dict):
        return None
    if first.get("role") is not None:
        return "messages"
    return "sharegpt" if first.get("from") is not None else None


def _require(row: _Row, shape: _Shape) -> None:
    for group in shape.needs:
        if any(name in row.values for name in group):
            continue
        null = [name for name in group if name in row.keys]
        if null:
            raise RowError(f"'{null[0]}' is null")
        raise RowError(f"lacks {'/'.join(group)}, which {shape.name} needs; it has {quoted(row.keys)}")


# --- Turns and texts ----------------------------------------------------------------------------------------------


def _read_turns(row: _Row, turns: Any, key: str, *, role_key: str, content_key: str) -> list[Message]:
    if not isinstance(turns, list):
        raise RowError(f"'{key}' is {_kind(turns)}, not a list of turns")
    messages = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict):
            raise RowError(
                f"turn {number} of '{key}' is {_kind(turn)}, not an object with {role_key} and {content_key}"
            )
        messages.append(_read_turn(turn, f"turn {number} of '{key}'", role_key, content_key))
        extra = (name for name, value in turn.items() if value is not None and name not in (role_key, content_key))
        row.unused_in_turns.update((f"{key}[].{name}", None) for name in extra)
    return messages


def _read_turn(turn: Mapping[str, Any], where: str, role_key: str, content_key: str) -> Message:
    if turn.get("tool_calls") or turn.get("function_call"):
        raise RowError(f"{where}: {TOOL_CALLS_REASON}")
    if turn.get("weight") == 0:
        raise RowError(f"{where}: weight 0 (a turn not to learn from) is not supported yet")
    name = turn.get(role_key)
    if name is None:
        raise RowError(f"{where} has no '{role_key}'; it has {quoted(list(turn))}")
    role = ROLE_NAMES.get(name.lower()) if isinstance(name, str) else None
    if name == "function_call":
        raise RowError(f"{where}: {TOOL_CALLS_REASON}")
    if role is None:
        raise RowError(f"{where} has the unknown {role_key} {shown(name)}; known are {', '.join(ROLE_NAMES)}")
    if content_key not in turn:
        raise RowError(f"{where} has no '{content_key}'; it has {quoted(list(turn))}")
    content = turn[content_key]
    if isinstance(content, list):
        return Message(role, "".join(_part_text(part, where) for part in content))
    return Message(role, _text(content, f"'{content_key}' of {where}"))


def _part_text(part: Any, where: str) -> str:
    """The text of one of OpenAI's content parts."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind != "text":
        raise RowError(f"{where} has a content part of type {shown(kind)}; only text parts can be read")
    return _text(part.get("text"), f"the text part of {where}")


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        number = f" ({value})" if isinstance(value, (int, float)) and abs(value) < 1e15 else ""
        raise RowError(f"{what} is {_kind(value)}{number}, not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        # JSON can write half of a surrogate pair; no tokenizer can encode it.
        raise RowError(f"{what} holds half a character (\\u{ord(value[error.start]):04x})") from None
    return value


def _with_system(system: str, turns: list[Message]) -> list[Message]:
    if not system.strip():
        return turns
    if turns and turns[0].role == "system":
        raise RowError("has two system messages, one beside the turns and one among them")
    return [Message("system", system), *turns]


def _check_conversation(messages: list[Message]) -> None:
    """The rules of a conversation that can be learned from.

    Raises:
        RowError: it has no assistant turn, does not start with the user, has a system message elsewhere than first, or
            an empty user or assistant turn.
    """
    if not messages:
        raise RowError("has no turns")
    if all(message.role != "assistant" for message in messages):
        raise RowError("no assistant turn to learn from")
    turns = [message for message in messages if message.role != "system"]
    if turns[0].role != "user":
        raise RowError(f"starts with the {turns[0].role}; the first turn must be the user's")
    for number, message in enumerate(messages, 1):
        if message.role == "system" and number > 1:
            raise RowError(f"has a system message as message {number}; it can only be the first")
        if message.role == "assistant" and not message.content.strip():
            raise RowError(f"empty answer (message {number})")
        if message.role == "user" and not message.content.strip():
            raise RowError(f"empty user turn (message {number})")


_KINDS: tuple[tuple[type, str], ...] = (
    (bool, "a truth value (bool)"),
    (int, "a number (int)"),
    (float, "a number (float)"),
    (str, "text (str)"),
    (list, "a list"),
    (dict, "an object"),
    (type(None), "null"),
)


def _kind(value: Any) -> str:
    return next((name for kind, name in _KINDS if isinstance(value, kind)), f"of type {type(value).__name__}")
