"""Which words belong to a template, by the rows that share them."""

import random
from collections.abc import Sequence

import pytest

from tests.data.checks.overlap.text_sets import Pair, prose, text_set
from tunesmith.data.checks.overlap import boilerplate
from tunesmith.data.checks.overlap.boilerplate import Boilerplate, find_boilerplate, shared_by_many
from tunesmith.data.checks.overlap.distinct import DistinctRows
from tunesmith.data.checks.overlap.shingles import words_of

PHRASE = "kindly answer in one short sentence"


def boilerplate_of(rows: Sequence[Pair], *others: Sequence[Pair]) -> Boilerplate:
    sets = [DistinctRows(text_set(other)) for other in others]
    return find_boilerplate(DistinctRows(text_set(rows)), sets, num_proc=1)


def marked(found: Boilerplate, text: str) -> tuple[list[str], list[str]]:
    """The words of the text that belong to a template, and those that are common in passages."""
    words, runs = text.split(), found.runs_in(words_of([text]))
    masks = (found.words_of_template(runs), found.words_of_common_passages(runs))
    template, common = ([word for word, is_in in zip(words, mask, strict=True) if is_in] for mask in masks)
    return template, common


@pytest.mark.parametrize(("rows", "template", "common"), [(1500, 30, 15), (600, 20, 6), (30, 16, 5), (8, 5, 5)])
def test_what_enough_rows_share_is_a_template(rows: int, template: int, common: int) -> None:
    draw = random.Random(rows)
    assert shared_by_many(rows) == template
    for sharing, in_template, in_passages in (
        (template, True, True),
        (template - 1, False, template - 1 >= common),
        (common, common >= template, True),
        (common - 1, False, False),
    ):
        own = [prose(draw, 12) for _ in range(rows)]
        texts = [f"{text} {PHRASE}" if number < sharing else text for number, text in enumerate(own)]
        expected = PHRASE.split() if in_template else [], PHRASE.split() if in_passages else []
        assert marked(boilerplate_of([("", text) for text in texts]), f"before {PHRASE} after") == expected


def test_exact_copies_make_no_template() -> None:
    draw = random.Random(0)
    rows = [("", prose(draw, 12)) for _ in range(40)]
    copied = f"{prose(draw, 12)} {PHRASE}"
    assert marked(boilerplate_of([*rows, *[("", copied)] * 40]), copied) == ([], [])


def test_a_row_that_says_it_often_is_one_row() -> None:
    draw = random.Random(1)
    rows = [("", prose(draw, 12)) for _ in range(40)]
    assert marked(boilerplate_of([*rows, ("", " ".join([PHRASE] * 50))]), PHRASE) == ([], [])


def test_what_an_evaluation_set_asks_with_belongs_to_a_template_by_the_stricter_measure() -> None:
    draw = random.Random(2)
    rows = [("", prose(draw, 12)) for _ in range(60)]
    for sharing in (20, 19):
        test = [("", f"{prose(draw, 12)} {PHRASE}") for _ in range(sharing)] + rows[:20]
        found = marked(boilerplate_of(rows, test), PHRASE)
        assert found == ((PHRASE.split(), PHRASE.split()) if sharing == 20 else ([], []))


def test_the_sample_does_not_depend_on_the_order_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boilerplate, "SAMPLE_ROWS", 60)
    draw = random.Random(3)
    phrases = [prose(draw, 5) for _ in range(12)]
    rows = [("", f"{prose(draw, 12)} {draw.choice(phrases)}") for _ in range(400)]
    found = []
    for _ in range(3):
        result = boilerplate_of(rows)
        found.append((set(result.runs.sorted_S.tolist()), set(result.passage_runs.sorted_S.tolist())))
        draw.shuffle(rows)
    assert found[0] == found[1] == found[2]
    assert 0 < len(found[0][1]) < len(phrases)
