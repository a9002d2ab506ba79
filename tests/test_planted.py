"""The ground truth itself: clean rows are clean, and what is said to be planted is there, on the line that is named."""

import json
import random
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from itertools import combinations, pairwise
from pathlib import Path

import pytest

from tests.planted import CORPORA, Fault, Pair, Planted, chinese, classification, english, json_task, score, take
from tests.planted.clean import LABELS
from tests.planted.private import (
    API_KEY,
    CARD,
    NATIONAL_ID,
    brazilian_check_digits,
    china_check_digit,
    french_key,
    luhn_digit,
    spanish_letter,
)
from tests.planted.texts import Setting, passage, reworded
from tunesmith.config import DataSection
from tunesmith.data.records import Example
from tunesmith.data.rows import BadRow
from tunesmith.data.shapes import RowError, convert_row
from tunesmith.data.sources import iter_rows

EACH = 8
Source = Callable[[int], Iterator[Pair]]


@cache
def planted(name: str) -> Planted:
    return CORPORA[name].plant(EACH)


def faults(name: str, kind: str) -> list[Fault]:
    return [fault for fault in planted(name).faults if fault.kind.name == kind]


def pair_at(name: str, at: tuple[str, int]) -> Pair:
    """Prompt and answer on a line that can be read."""
    values = json.loads(planted(name).lines[at[0]][at[1] - 1])
    if "messages" in values:
        return Pair(values["messages"][-2]["content"], values["messages"][-1]["content"])
    if "output" in values:
        return Pair(values["input"] or values["instruction"], values["output"])
    return Pair(values["question"], values["answer"])


def normalised(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


# --- Clean rows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [english, chinese, json_task, classification])
def test_a_seed_gives_the_same_rows_and_another_gives_others(source: Source) -> None:
    assert take(source(1), 20) == take(source(1), 20)
    assert not set(take(source(1), 20)) & set(take(source(2), 20))


@pytest.mark.parametrize(("source", "gram"), [(english, 12), (chinese, 24), (json_task, 12), (classification, 12)])
def test_no_two_clean_rows_share_a_passage(source: Source, gram: int) -> None:
    seen: dict[str, int] = {}
    for number, pair in enumerate(take(source(3), 1000)):
        for text in (pair.prompt, pair.answer):
            parts = list(text) if source is chinese else text.split()
            for start in range(len(parts) - gram + 1):
                assert seen.setdefault(" ".join(parts[start : start + gram]), number) == number


@pytest.mark.parametrize("source", [english, chinese])
def test_no_two_clean_rows_are_alike(source: Source) -> None:
    sets = []
    for pair in take(source(4), 200):
        parts = list(pair.prompt + pair.answer) if source is chinese else f"{pair.prompt} {pair.answer}".split()
        sets.append(set(pairwise(parts)))
    assert max(len(a & b) / len(a | b) for a, b in combinations(sets, 2)) < 0.35


def test_texts_have_the_lengths_that_are_promised() -> None:
    words = [(len(pair.prompt.split()), len(pair.answer.split())) for pair in take(english(5), 1000)]
    assert all(20 <= prompt <= 60 and 20 <= answer <= 160 for prompt, answer in words)
    signs = [(len(pair.prompt), len(pair.answer)) for pair in take(chinese(5), 1000)]
    assert all(40 <= prompt <= 150 and 40 <= answer <= 320 for prompt, answer in signs)


def test_machine_answers_are_json_and_labels() -> None:
    assert all(isinstance(json.loads(pair.answer), dict) for pair in take(json_task(6), 200))
    counts = Counter(pair.answer for pair in take(classification(6), 400))
    assert set(counts) == set(LABELS)
    assert max(counts.values()) < 2 * min(counts.values())


# --- What is planted ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CORPORA)
def test_every_kind_is_planted_so_many_times_on_rows_of_its_own(name: str) -> None:
    truth = planted(name)
    assert Counter(fault.kind.name for fault in truth.faults) == {kind.name: EACH for kind in CORPORA[name].kinds}
    rows = [at for fault in truth.faults for at in (fault.at, fault.other) if at is not None]
    assert len(rows) == len(set(rows))
    assert all(1 <= line <= len(truth.lines[split]) for split, line in rows)
    assert CORPORA[name].plant(EACH).lines == truth.lines
    assert CORPORA[name].plant(EACH, seed=1).lines != truth.lines


def test_answers_too_long_are_in_train_alone_for_test_is_not_cut() -> None:
    truth = CORPORA["english"].plant(12)
    splits = {kind: {f.at[0] for f in truth.faults if f.kind.name == kind} for kind in ("answer too long", "e-mail")}
    assert splits == {"answer too long": {"train"}, "e-mail": {"train", "test"}}


@pytest.mark.parametrize("name", CORPORA)
def test_the_rows_that_cannot_be_read_are_exactly_those_that_were_spoilt(name: str, tmp_path: Path) -> None:
    paths = planted(name).write(tmp_path)
    data = DataSection(train="train.jsonl")
    unread = set()
    for split, path in paths.items():
        for place, row in iter_rows(str(path)):
            try:
                if isinstance(row, BadRow):
                    raise RowError(row.reason)
                assert isinstance(convert_row(row, place, data).example, Example)
            except RowError:
                unread.add((split, place.line))
    assert unread == {fault.at for fault in planted(name).faults if fault.kind.rules == ("bad-row",)}


@pytest.mark.parametrize("name", CORPORA)
def test_copies_are_the_same_but_for_case_width_and_white_space(name: str) -> None:
    for fault in faults(name, "exact duplicate") + faults(name, "leaked row"):
        assert fault.other is not None
        one, other = pair_at(name, fault.at), pair_at(name, fault.other)
        assert normalised(one.prompt) == normalised(other.prompt)
        assert normalised(one.answer) == normalised(other.answer)
        assert (one == other) == (fault.variant == "same") or name == "chinese"


@pytest.mark.parametrize("name", ["english", "json"])
def test_near_duplicates_differ_in_one_word_of_ten(name: str) -> None:
    for fault in faults(name, "near-duplicate") + faults(name, "leaked near-duplicate"):
        assert fault.other is not None
        one, other = (pair_at(name, at).prompt.split() for at in (fault.at, fault.other))
        changed = sum(a != b for a, b in zip(one, other, strict=True))
        assert changed == max(1, round(len(other) / 10))


def test_near_duplicates_in_chinese_differ_in_one_character_or_one_word_of_ten() -> None:
    for fault in faults("chinese", "near-duplicate"):
        assert fault.other is not None
        one, other = (pair_at("chinese", at).prompt for at in (fault.at, fault.other))
        if fault.variant == "characters":
            assert sum(a != b for a, b in zip(one, other, strict=True)) == max(1, round(len(other) / 10))
        assert one != other


def test_the_same_prompt_gets_another_answer() -> None:
    for name in CORPORA:
        for fault in faults(name, "conflicting answers") + faults(name, "leaked prompt"):
            assert fault.other is not None
            one, other = pair_at(name, fault.at), pair_at(name, fault.other)
            assert one.prompt == other.prompt
            assert one.answer != other.answer


@pytest.mark.parametrize("name", CORPORA)
def test_a_leaked_passage_is_long_enough_and_no_whole_row(name: str) -> None:
    gram = 36 if name == "chinese" else 12
    for fault in faults(name, "leaked passage"):
        assert fault.other is not None
        assert fault.other[0] in ("test", "validation")
        one, other = pair_at(name, fault.at), pair_at(name, fault.other)
        part = list if name == "chinese" else str.split
        there = " ".join(part(f"{one.prompt} {one.answer}"))
        source = [part(text) for text in (other.prompt, other.answer)]
        windows = [" ".join(words[i : i + gram]) for words in source for i in range(len(words) - gram + 1)]
        assert any(window in there for window in windows)
        assert one.prompt != other.prompt


def test_mojibake_can_be_undone() -> None:
    for name in ("english", "chinese"):
        for fault in faults(name, "mojibake"):
            pair = pair_at(name, fault.at)
            texts = [text for text in (pair.prompt, pair.answer) if not text.isascii()]
            undone = []
            for text in texts:
                try:
                    undone.append(b"".join(_byte(character, fault.variant) for character in text).decode("utf-8"))
                except (UnicodeEncodeError, UnicodeDecodeError):
                    continue
            assert undone


def _byte(character: str, encoding: str) -> bytes:
    return bytes([ord(character)]) if ord(character) < 256 else character.encode(encoding)


def test_broken_json_is_no_object_of_json() -> None:
    for fault in faults("json", "broken JSON"):
        with pytest.raises(json.JSONDecodeError):
            json.loads(pair_at("json", fault.at).answer)


def test_checksums_are_those_of_known_numbers() -> None:
    assert luhn_digit("7992739871") == "3"  # the example of ISO/IEC 7812-1's description
    assert luhn_digit("411111111111111") == "1"
    assert china_check_digit("11010519491231002") == "X"  # the example of GB 11643-1999
    assert spanish_letter("12345678") == "Z"  # the one on every specimen
    assert brazilian_check_digits("111444777") == "35"
    assert french_key("2550814168025") == "38"


def test_secrets_are_of_many_forms_and_each_is_new() -> None:
    draw = random.Random(0)
    for makers in (API_KEY, CARD, NATIONAL_ID):
        values = [make(draw) for make in makers.values() for _ in range(20)]
        assert len(set(values)) == len(values)
    assert all(sum(map(int, _doubled(make(draw)))) % 10 == 0 for make in CARD.values())


def _doubled(number: str) -> str:
    """The digits of Luhn's sum, by its definition: every second digit from the right doubled."""
    digits = [int(c) for c in number if c.isdigit()][::-1]
    return "".join(str(2 * digit) if place % 2 else str(digit) for place, digit in enumerate(digits))


def test_words_are_replaced_and_passages_cut_by_the_unit_of_the_language() -> None:
    draw = random.Random(0)
    text = " ".join(f"w{number}" for number in range(40))
    changed, _ = reworded(text, draw, Setting())
    assert sum(a != b for a, b in zip(changed.split(), text.split(), strict=True)) == 4
    assert 12 <= len(passage(text, draw, Setting()).split()) <= 20
    assert 36 <= len(passage("字" * 99, draw, Setting(chinese=True))) <= 50


# --- The comparison -----------------------------------------------------------------------------------------------


def record(rule: str, at: tuple[str, int]) -> dict[str, object]:
    return {"split": at[0], "line": at[1], "rule": rule, "action": "flagged", "reason": ""}


def test_a_check_that_finds_everything_scores_full_marks() -> None:
    truth = planted("english")
    result = score(truth, [record(f.kind.rules[0], f.at) for f in truth.faults if f.kind.rules])
    assert result.failures == []
    assert all(kind.found == EACH for kind in result.kinds)
    assert not result.false_alarms
    assert not result.also
    assert all(alarms == 0 for _, alarms in result.harmless.values())


def test_a_check_that_finds_nothing_or_names_the_wrong_rule_fails() -> None:
    truth = planted("english")
    for records in ([], [record("unknown", fault.at) for fault in truth.faults]):
        result = score(truth, records)
        assert len(result.failures) == len(CORPORA["english"].kinds) - 1  # what is harmless need not be found
        assert all(kind.found == 0 for kind in result.kinds)


def test_alarms_about_clean_rows_are_counted_by_rule() -> None:
    truth = planted("english")
    busy = {at for fault in truth.faults for at in (fault.at, fault.other)}
    clean = [("train", line) for line in range(1, len(truth.lines["train"]) + 1) if ("train", line) not in busy]
    result = score(truth, [record("phone", at) for at in clean])
    assert result.false_alarms["phone"] == clean
    assert result.false_rate("phone") > 0.8
    assert any(failure.startswith("phone: names") for failure in result.failures)


def test_an_alarm_about_what_is_harmless_counts_against_the_rules_that_might_raise_it() -> None:
    truth = planted("english")
    innocent = faults("english", "harmless")
    rule = innocent[0].variant.split(":")[0].split("+")[0]
    result = score(truth, [record(rule, fault.at) for fault in innocent])
    assert result.harmless[innocent[0].variant][1] > 0
    assert sum(count for count, _ in result.harmless.values()) == EACH
