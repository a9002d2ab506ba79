"""Plants a known number of every fault in clean rows, and remembers on which line each one came to lie."""

from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from tests.planted import private, texts
from tests.planted.clean import Pair
from tests.planted.texts import Change, Setting

Shape = Callable[[object, object, str], dict[str, Any]]
"""Prompt, answer and instruction as the values of a row; the first two may be no texts, where a fault asks for it."""

LONG = 12_000
"""Characters of a text that is too long."""

BAD_ROW = ("bad-row",)


def as_messages(prompt: object, answer: object, instruction: str) -> dict[str, Any]:
    """OpenAI's messages; the instruction is the system message."""
    system = [{"role": "system", "content": instruction}] if instruction else []
    return {"messages": [*system, {"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}


def as_alpaca(prompt: object, answer: object, instruction: str) -> dict[str, Any]:
    """Alpaca's three keys."""
    if not instruction:
        return {"instruction": prompt, "input": "", "output": answer}
    return {"instruction": instruction, "input": prompt, "output": answer}


def as_question_answer(prompt: object, answer: object, instruction: str) -> dict[str, Any]:
    """Question and answer; the instruction is the system message."""
    return {**({"system": instruction} if instruction else {}), "question": prompt, "answer": answer}


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Args:
        name: what it is called in tables.
        rules: the rules or codes of the check that may name it; none for what is no fault.
        exact: whether all of them are to be found; of others, such as near-duplicates, nine in ten.
        change: makes the fault within a row. None for faults of a line or of two rows, which `plant` knows by name.
        only_train: whether it is planted in train alone: rows of test are not cut at `max_length`, so that no length
            up to the model's context is too long for them; and of sentences that many faults share, one in test would
            make leaks of those in train.
    """

    name: str
    rules: tuple[str, ...]
    exact: bool = True
    change: Change | None = None
    only_train: bool = False


PAIRS = (
    Kind("exact duplicate", ("exact_duplicates",)),
    Kind("near-duplicate", ("near_duplicates",), exact=False),
    Kind("conflicting answers", ("conflicting_answers",)),
    Kind("leaked row", ("leakage",)),
    Kind("leaked prompt", ("leakage",)),
    Kind("leaked near-duplicate", ("leakage",), exact=False),
    Kind("leaked passage", ("leakage",)),
)
"""Faults of two rows."""

LINES = tuple(
    Kind(name, BAD_ROW)
    for name in (
        "empty answer", "invalid UTF-8", "NUL byte", "key given twice", "number for text", "nested too deeply",
        "broken line",
    )
)  # fmt: skip
"""Rows that cannot be read."""

ANY_ROW = (
    Kind("mojibake", ("mojibake",), exact=False, change=texts.mojibake, only_train=True),
    Kind("invisible characters", ("invisible_characters",), change=texts.invisible),
    Kind("markup", ("markup",), change=texts.markup),
    Kind("special tokens", ("special_tokens",), change=texts.special_tokens),
    Kind("e-mail", ("email",), change=texts.private_data(private.MAIL)),
    Kind("phone", ("phone",), change=texts.private_data(private.PHONE, private.PHONE_ZH)),
    Kind("card number", ("card_number",), change=texts.private_data(private.CARD)),
    Kind("national id", ("national_id",), change=texts.private_data(private.NATIONAL_ID)),
    Kind("API key", ("api_key",), change=texts.private_data(private.API_KEY)),
    Kind("prompt too long", ("no-targets", "too-long-to-answer"), change=texts.long_prompt(LONG)),
    Kind("harmless", (), change=texts.harmless),
)
"""Faults that any set may have, and what only looks like one."""

PROSE = (
    Kind("repeated text", ("repeated_text",), exact=False, change=texts.repeated_text),
    Kind("one-word answer", ("one_word_answers",), change=texts.one_word),
    Kind("refusal", ("refusals",), exact=False, change=texts.refusal, only_train=True),
    Kind("boilerplate", ("boilerplate",), exact=False, change=texts.boilerplate, only_train=True),
    Kind("language mix", ("language_mix",), exact=False, change=texts.language_mix, only_train=True),
    Kind("URL only", ("url_only",), change=texts.url_only),
    Kind("answer too long", ("answers-cut",), change=texts.long_answer(LONG), only_train=True),
)
"""Faults of answers in prose."""

JSON = (Kind("broken JSON", ("broken_json",), change=texts.broken_json),)
"""Faults of answers in JSON."""

TEST_SHARE = 6
"""Of so many faults within a row one is planted in test, the others in train; all of a kind that is `only_train`."""

Where = tuple[str, int]
"""Split and line."""


@dataclass(frozen=True)
class Fault:
    """A planted fault.

    Args:
        kind: what it is.
        variant: how it was made.
        at: split and line of the row that has it.
        other: split and line of the row that it is a copy of, or shares something with.
    """

    kind: Kind
    variant: str
    at: Where
    other: Where | None = None


@dataclass(frozen=True)
class Planted:
    """Rows with faults in them.

    Args:
        lines: the lines of each split without their ends.
        faults: every fault in them.
    """

    lines: Mapping[str, Sequence[bytes]]
    faults: Sequence[Fault]

    def write(self, folder: Path) -> dict[str, Path]:
        """Writes SPLIT.jsonl for each split."""
        paths = {split: folder / f"{split}.jsonl" for split in self.lines}
        for split, path in paths.items():
            path.write_bytes(b"".join(line + b"\n" for line in self.lines[split]))
        return paths


@dataclass
class _Row:
    """A row on its way to a line: what stands on it, and its number once that is known."""

    split: str
    pair: Pair
    line: bytes | None = None
    number: int = 0

    @property
    def at(self) -> Where:
        return self.split, self.number


@dataclass
class _Planter:
    draw: random.Random
    setting: Setting
    shape: Shape
    rows: dict[str, list[_Row]]
    clean: dict[str, list[_Row]] = field(init=False)
    found: list[tuple[Kind, str, _Row, _Row | None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clean = {split: self.draw.sample(rows, len(rows)) for split, rows in self.rows.items()}

    def take(self, split: str) -> _Row:
        """A row that has no fault yet and takes part in none."""
        if not self.clean[split]:
            raise ValueError(f"{split} has too few rows for so many faults")
        return self.clean[split].pop()

    def change(self, kind: Kind, count: int) -> None:
        """Faults within a row."""
        assert kind.change is not None
        for number in range(count):
            in_test = number % TEST_SHARE == TEST_SHARE - 1 and not kind.only_train
            row = self.take("test" if in_test else "train")
            row.pair, variant = kind.change(row.pair, self.draw, self.setting)
            self.found.append((kind, variant, row, None))

    def spoil(self, kind: Kind, count: int) -> None:
        """Rows that cannot be read."""
        for number in range(count):
            row = self.take("test" if number % TEST_SHARE == TEST_SHARE - 1 else "train")
            row.line = _bad_line(kind.name, row.pair, self.shape)
            self.found.append((kind, "", row, None))

    def pair_up(self, kind: Kind, count: int) -> None:
        """Faults of two rows: the second one is new in train."""
        for number in range(count):
            source = "train"
            if kind.rules == ("leakage",):
                source = "validation" if number % 3 == 2 else "test"
            original = self.take(source)
            pair, variant = _copy(kind.name, original.pair, self)
            copy = _Row("train", pair)
            self.rows["train"].append(copy)
            self.found.append((kind, variant, copy, original))

    def finish(self) -> Planted:
        """Puts the rows of train in random order and writes every row on its line."""
        self.draw.shuffle(self.rows["train"])
        lines: dict[str, list[bytes]] = {}
        for split, rows in self.rows.items():
            for number, row in enumerate(rows, 1):
                row.number = number
            lines[split] = [_line(row.pair, self.shape) if row.line is None else row.line for row in rows]
        faults = [
            Fault(kind, variant, row.at, None if other is None else other.at)
            for kind, variant, row, other in self.found
        ]
        return Planted(lines, faults)


def plant(
    rows: Mapping[str, Sequence[Pair]],
    kinds: Sequence[Kind],
    each: int,
    *,
    seed: int,
    shape: Shape = as_messages,
    setting: Setting | None = None,
) -> Planted:
    """Plants faults.

    Args:
        rows: clean rows of train, validation and test; each takes part in one fault at most.
        kinds: what to plant.
        each: how many of each kind. Of faults within a row one in `TEST_SHARE` goes to test, unless they are
            `only_train`; of leaks one in three is from validation; all others concern train and test.
        seed: the same gives the same bytes.
        shape: how a row is written.
        setting: the language, and whether answers are for machines; by default English prose.

    Raises:
        ValueError: a split has too few rows.
    """
    own = {split: [_Row(split, pair) for pair in pairs] for split, pairs in rows.items()}
    planter = _Planter(random.Random(seed), setting or Setting(), shape, own)
    for kind in kinds:
        if kind.change is not None:
            planter.change(kind, each)
        elif kind.rules == BAD_ROW:
            planter.spoil(kind, each)
        else:
            planter.pair_up(kind, each)
    return planter.finish()


def _line(pair: Pair, shape: Shape) -> bytes:
    return json.dumps(shape(pair.prompt, pair.answer, pair.instruction), ensure_ascii=False).encode()


# --- Two rows -----------------------------------------------------------------------------------------------------


def _copy(name: str, pair: Pair, planter: _Planter) -> tuple[Pair, str]:
    """A row that makes a fault of that kind with `pair`, and the variant."""
    draw, setting = planter.draw, planter.setting
    if name in ("exact duplicate", "leaked row"):
        return _same(pair, draw)
    if name in ("near-duplicate", "leaked near-duplicate"):
        prompt, variant = texts.reworded(pair.prompt, draw, setting)
        if setting.prompt_only:
            return replace(pair, prompt=prompt), variant
        # By the same kind of unit in both texts.
        answer = prompt
        other = ""
        while other != variant:
            answer, other = texts.reworded(pair.answer, draw, setting)
        return replace(pair, prompt=prompt, answer=answer), variant
    # What the new row has beside the shared part is a clean row of its own, which is thereby no longer in the set.
    fresh = planter.take("train")
    planter.rows["train"].remove(fresh)
    if name in ("conflicting answers", "leaked prompt"):
        answers = [fresh.pair.answer, *(row.pair.answer for row in planter.clean["train"][:50])]
        return replace(pair, answer=next(a for a in answers if a != pair.answer)), ""
    candidates = {"of the prompt": pair.prompt, **({} if setting.prompt_only else {"of the answer": pair.answer})}
    long_enough = [name for name, text in candidates.items() if texts.has_passage(text, setting)]
    variant = draw.choice(long_enough or list(candidates))
    part = texts.passage(candidates[variant], draw, setting)
    insert = partial(texts.insert_sentence, sentence=part, draw=draw, setting=setting)
    return texts.in_one_text(fresh.pair, draw, setting, insert), variant


def _same(pair: Pair, draw: random.Random) -> tuple[Pair, str]:
    """The same row in other letters, white space or width."""
    variant = draw.choice(("same", "capitals", "small letters", "white space", "width"))
    change: Callable[[str], str] = {
        "same": lambda text: text,
        "capitals": str.upper,
        "small letters": str.lower,
        "white space": lambda text: "  " + text.replace(" ", "  ") + "\n",
        "width": _other_width,
    }[variant]
    return replace(pair, prompt=change(pair.prompt), answer=change(pair.answer)), variant


def _other_width(text: str) -> str:
    """Half-width letters and marks as full-width ones, and Chinese commas as half-width ones."""
    wide = "".join(chr(ord(c) + 0xFEE0) if c.isalnum() and c.isascii() else c for c in text)
    narrow = wide.replace("，", ",").replace("？", "?").replace("：", ":").replace("！", "!")
    assert unicodedata.normalize("NFKC", narrow) == unicodedata.normalize("NFKC", text)
    return narrow


# --- Lines --------------------------------------------------------------------------------------------------------


def _bad_line(name: str, pair: Pair, shape: Shape) -> bytes:
    """A row that cannot be read, or that nothing can be learned from."""
    line = _line(pair, shape)
    middle = len(line) // 2
    values = shape(pair.prompt, pair.answer, pair.instruction)
    key = next(iter(values))
    again = f"{json.dumps(key)}: {json.dumps(values[key], ensure_ascii=False)}, ".encode()
    makers: dict[str, Callable[[], bytes]] = {
        "empty answer": lambda: _line(replace(pair, answer=" \n" if middle % 2 else ""), shape),
        "invalid UTF-8": lambda: line[:middle] + (b"\xff" if middle % 2 else b"\xe4\xf6") + line[middle:],
        "NUL byte": lambda: line.replace(b'": "', b'": "\0', 1),
        "key given twice": lambda: b"{" + again + line[1:],
        "number for text": lambda: json.dumps(shape(pair.prompt, middle, pair.instruction)).encode(),
        "nested too deeply": lambda: b'{"' + key.encode() + b'": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        "broken line": lambda: line[: middle + middle // 2],
    }
    return makers[name]()
