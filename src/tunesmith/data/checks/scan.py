"""The first pass over the data, done in worker processes: from rows to examples, tokens and what is found in them.

Each row is looked at alone. What needs other rows (duplicates, leakage, balance) works later on the columns that this
pass fills, one entry a row.

Shapes: N usable rows of the chunk.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tunesmith.config import DataSection
from tunesmith.data.checks.dataset_rules import answer_words, json_state
from tunesmith.data.checks.entries import Action, Entry
from tunesmith.data.checks.language import language_of, mentions_language
from tunesmith.data.checks.overlap.text_set import normalised, text_hash
from tunesmith.data.checks.rules import TextRule, answers_of, texts_of
from tunesmith.data.checks.text.answers import BOILERPLATE, REFUSALS, URL_ONLY
from tunesmith.data.checks.text.characters import INVISIBLE_CHARACTERS, MOJIBAKE
from tunesmith.data.checks.text.markup import MARKUP
from tunesmith.data.checks.text.private import API_KEY, CARD_NUMBER, EMAIL, NATIONAL_ID, PHONE
from tunesmith.data.checks.text.repetition import REPEATED_TEXT
from tunesmith.data.checks.text.special_tokens import special_tokens_rule
from tunesmith.data.records import ROLES, Example, Place
from tunesmith.data.rows import BadRow, Row, raw_row, shortened
from tunesmith.data.shapes import RowError, convert_row
from tunesmith.data.store import pack_example, pack_tokens
from tunesmith.data.template import ChatTemplate, EncodedExample
from tunesmith.data.tokens import Tokens
from tunesmith.errors import TemplateError

NOT_ENCODED = EncodedExample("", Tokens([], [], []), ())

COLUMNS = np.dtype(
    [
        ("prompt", "u8"),
        ("answer", "u8"),
        ("content", "u8"),
        ("order", "u8"),
        ("class_", "u8"),
        ("tokens", "u4"),
        ("targets", "u4"),
        ("first_target", "u4"),
        ("answer_words", "u2"),
        ("json", "u1"),
        ("roles", "u1"),
        ("prompt_language", "S3"),
        ("answer_language", "S3"),
        ("names_language", "?"),
        ("stops", "?"),
        ("two_bos", "?"),
    ]
)
"""What is kept of each row in memory: hashes as in `TextSet`, the hash of its class, tokens in all and trained on,
index of the first trained token, features for the rules that need all rows, a bit for each of `ROLES` it has, and
whether it trains a stop token and begins with two BOS tokens."""


def text_rules(template: ChatTemplate) -> tuple[TextRule, ...]:
    """The rules about one row, in the order in which they are applied."""
    return (
        MOJIBAKE,
        INVISIBLE_CHARACTERS,
        MARKUP,
        special_tokens_rule(template.special_token),  # after markup, which makes characters of entities
        API_KEY,
        EMAIL,
        CARD_NUMBER,
        NATIONAL_ID,
        PHONE,
        URL_ONLY,
        REFUSALS,
        BOILERPLATE,
        REPEATED_TEXT,
    )


@dataclass(frozen=True)
class ScanSettings:
    """What all chunks share.

    Args:
        data: how a row is read, and the rules.
        template: encodes the examples.
    """

    data: DataSection
    template: ChatTemplate

    @cached_property
    def rules(self) -> list[tuple[TextRule, bool]]:
        """The rules that are on, each with whether it is to be fixed."""
        modes = ((rule, getattr(self.data.rules, rule.name)) for rule in text_rules(self.template))
        return [(rule, mode == "fix") for rule, mode in modes if mode != "off"]


@dataclass(frozen=True)
class Chunk:
    """Some rows of a split, in order.

    Args:
        split: train, validation, test or benchmarks.
        rows: the rows.
        only_read: do not encode: a row was bad, and the split will end with an error.
    """

    split: str
    rows: list[Row]
    only_read: bool = False


@dataclass
class ScannedChunk:
    """What became of a chunk's rows. Lists and `columns` have one entry for each usable row unless said otherwise.

    Args:
        split: as in the chunk.
        rows_read: rows of the chunk.
        places: where the usable rows stand.
        columns: of dtype `COLUMNS`.
        examples: what `pack_example` gives.
        tokens: what `pack_tokens` gives.
        entries: rows left out and texts changed, in order.
        flags: what was found and only reported, each with its usable row's number in the chunk.
        bad_rows: rows that cannot be read; in `entries` too.
        refusals: the template's errors; in `entries` too.
        shapes: rows of each shape.
        unused_keys: keys that were not read, and in how many rows.
        classes: names of the classes, by hash.
    """

    split: str
    rows_read: int
    places: list[Place] = field(default_factory=list)
    columns: NDArray[np.void] = field(default_factory=lambda: np.zeros(0, COLUMNS))
    examples: list[bytes] = field(default_factory=list)
    tokens: list[bytes] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    flags: list[tuple[int, Entry]] = field(default_factory=list)
    bad_rows: list[BadRow] = field(default_factory=list)
    refusals: list[TemplateError] = field(default_factory=list)
    shapes: Counter[str] = field(default_factory=Counter)
    unused_keys: Counter[str] = field(default_factory=Counter)
    classes: dict[int, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Candidate:
    """A row that could be read, before it is encoded."""

    example: Example
    class_hash: int
    found: list[Entry]


def scan_chunk(settings: ScanSettings, chunk: Chunk) -> ScannedChunk:
    """Reads, mends, judges and encodes the rows of a chunk."""
    scanned = ScannedChunk(chunk.split, len(chunk.rows))
    candidates = [
        candidate for place, row in chunk.rows if (candidate := _candidate(settings, scanned, place, row)) is not None
    ]
    if chunk.only_read:
        return scanned
    columns = []
    examples = [candidate.example for candidate in candidates]
    # Rows of a benchmark are only compared with, so the template need not take them.
    encoded = [NOT_ENCODED] * len(examples) if chunk.split == "benchmarks" else settings.template.encode_spans(examples)
    for candidate, result in zip(candidates, encoded, strict=True):
        example = candidate.example
        if isinstance(result, TemplateError):
            scanned.refusals.append(result)
            scanned.entries.append(
                Entry(chunk.split, example.place, Action.DROPPED, "template-refuses", result.message, one_line(example))
            )
            continue
        number = len(scanned.places)
        scanned.flags += [(number, entry) for entry in candidate.found]
        scanned.places.append(example.place)
        packed = pack_example(example)
        scanned.examples.append(packed)
        scanned.tokens.append(pack_tokens(result.tokens.ids, result.trained))
        columns.append(_columns_of(settings, example, result, packed, candidate.class_hash))
    scanned.columns = np.array(columns, dtype=COLUMNS)
    return scanned


def _candidate(settings: ScanSettings, scanned: ScannedChunk, place: Place, row: object) -> _Candidate | None:
    """The row as an example, mended; None where it is left out, which `scanned` then says."""
    split = scanned.split
    example = None
    if not isinstance(row, BadRow):
        assert isinstance(row, dict)
        try:
            converted = convert_row(row, place, settings.data)
        except RowError as error:
            row = BadRow(place, error.reason, raw_row(row))
        else:
            example = converted.example
            scanned.shapes[converted.shape] += 1
            scanned.unused_keys.update(key for key in converted.unused_keys if key != settings.data.class_field)
    if isinstance(row, BadRow):
        scanned.bad_rows.append(row)
        scanned.entries.append(Entry(split, place, Action.DROPPED, "bad-row", row.reason, row.raw))
        return None
    assert example is not None
    mended = _apply_rules(settings, scanned, example)
    return None if mended is None else _Candidate(mended[0], _class_of(settings, scanned, row), mended[1])


def _apply_rules(settings: ScanSettings, scanned: ScannedChunk, example: Example) -> tuple[Example, list[Entry]] | None:
    """The example with what is to be fixed mended, and what was only found; None where a rule leaves it out."""
    split = scanned.split
    if split == "benchmarks":  # mended as train is, so that what is the same stays the same
        for rule, fix in settings.rules:
            if fix and rule.mend is not None and rule.find(example) is not None:
                example = rule.mend(example)
        return example, []
    flags = []
    for rule, fix in settings.rules:
        found = rule.find(example)
        if found is None:
            continue
        if not fix or (rule.mend is None and split != "train"):
            flags.append(Entry(split, example.place, Action.FLAGGED, rule.name, found))
            continue
        if rule.mend is None:
            scanned.entries.append(Entry(split, example.place, Action.DROPPED, rule.name, found, one_line(example)))
            return None
        mended = rule.mend(example)
        if mended == example:
            flags.append(Entry(split, example.place, Action.FLAGGED, rule.name, f"cannot be mended: {found}"))
            continue
        if _empties_a_text(example, mended):
            reason = "nothing would be left of a text"
            if split != "train":
                flags.append(Entry(split, example.place, Action.FLAGGED, rule.name, f"not mended, {reason}: {found}"))
                continue
            scanned.entries.append(Entry(split, example.place, Action.DROPPED, rule.name, reason, one_line(example)))
            return None
        scanned.entries += _changes(split, rule.name, found, example, mended)
        example = mended
    return example, flags


def _empties_a_text(example: Example, mended: Example) -> bool:
    texts = zip(texts_of(example), texts_of(mended), strict=True)
    return any(before.strip() and not after.strip() for before, after in texts)


def _changes(split: str, rule: str, found: str, example: Example, mended: Example) -> list[Entry]:
    """One entry for each text that differs."""
    return [
        Entry(split, example.place, Action.CHANGED, rule, found, before, after)
        for before, after in zip(texts_of(example), texts_of(mended), strict=True)
        if before != after
    ]


def _class_of(settings: ScanSettings, scanned: ScannedChunk, row: object) -> int:
    """The hash of the row's class by the recipe's field; 0 for none."""
    name = settings.data.class_field
    value = row.get(name) if name is not None and isinstance(row, dict) else None
    if value is None or isinstance(value, (dict, list)):
        return 0
    label = value if isinstance(value, str) else str(value)
    hashed = text_hash(label)
    if hashed:
        scanned.classes.setdefault(hashed, shortened(label, 40))
    return hashed


def _columns_of(
    settings: ScanSettings, example: Example, encoded: EncodedExample, packed: bytes, class_hash: int
) -> tuple[object, ...]:
    answer = answers_of(example)[-1]
    if example.text is None:
        last = max(index for index, message in enumerate(example.messages) if message.role == "assistant")
        prompt_texts = [message.content for message in example.messages[:last]]
        prompt = normalised("\n".join(f"{m.role}: {m.content}" for m in example.messages[:last]))
    else:
        prompt_texts, prompt = [], ""
    asked = prompt_texts[-1] if prompt_texts else ""
    answer_normalised = normalised(answer)
    watch_language = settings.data.rules.language_mix != "off"
    ids, trained = encoded.tokens.ids, encoded.trained
    return (
        text_hash(prompt),
        text_hash(answer_normalised),
        text_hash(f"{prompt}\n{answer_normalised}"),
        text_hash(packed.decode()),
        class_hash,
        len(ids),
        sum(end - max(start, 1) for start, end in trained),
        min((max(start, 1) for start, _ in trained), default=len(ids)),
        answer_words(answer),
        json_state(answer),
        _roles_of(example),
        language_of(asked).encode() if watch_language else b"",
        language_of(answer).encode() if watch_language else b"",
        # Of a long conversation the first message, which may be the system's, and the last say what is asked for.
        watch_language and any(map(mentions_language, {*prompt_texts[:1], *prompt_texts[-1:]})),
        bool(trained) and ids[trained[-1][1] - 1] in settings.template.stop_token_ids,
        settings.template.begins_with_two_bos(ids),
    )


def _roles_of(example: Example) -> int:
    return sum(1 << ROLES.index(role) for role in {message.role for message in example.messages})


def one_line(example: Example) -> str:
    """The texts of an example, each with its role."""
    texts: Sequence[str] = (
        [example.text] if example.text is not None else [f"{m.role}: {m.content}" for m in example.messages]
    )
    return " | ".join(texts)
