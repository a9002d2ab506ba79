"""Rows of train that repeat others, against comparing all with all."""

import random
import re
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.checks.overlap.text_sets import Pair, han, overlaps, pair, prose, reworded, text_set
from tunesmith.data.checks.overlap import boilerplate, distinct, duplicates
from tunesmith.data.checks.overlap.distinct import DistinctRows
from tunesmith.data.checks.overlap.duplicates import Duplicates, conflicting_answers

SYSTEM = prose(random.Random(99), 80)


def found(folder: Path, rows: list[Pair]) -> Duplicates:
    return overlaps(folder / "scratch", rows).duplicates


def clusters(near_of: list[int]) -> set[frozenset[int]]:
    """The clusters of more than one row."""
    members: dict[int, set[int]] = {}
    for row, original in enumerate(near_of):
        if original >= 0:
            members.setdefault(original, {original}).add(row)
    return set(map(frozenset, members.values()))


def all_with_all(texts: list[str]) -> set[frozenset[int]]:
    """Clusters by the Jaccard similarity of pairs of words, or of characters, each pair of rows compared."""
    units = [re.findall(r"[a-z0-9]+|[\u4e00-\u9fff]", text) for text in texts]
    shingles = [set(pairwise(row)) for row in units]
    cluster_of = list(range(len(texts)))
    for one in range(len(texts)):
        for other in range(one):
            shared = len(shingles[one] & shingles[other])
            if shared >= duplicates.SMALLEST_SIMILARITY * len(shingles[one] | shingles[other]):
                joined = {cluster_of[one], cluster_of[other]}
                cluster_of = [min(joined) if number in joined else number for number in cluster_of]
    members = (frozenset(row for row, of in enumerate(cluster_of) if of == number) for number in set(cluster_of))
    return {cluster for cluster in members if len(cluster) > 1}


def test_each_distinct_row_is_read_once_in_chunks_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(3)
    rows = [pair(prose(draw, draw.choice((5, 40)))) for _ in range(300)]
    texts = [f"{prompt}\n{answer}" for prompt, answer in rows]
    monkeypatch.setattr(distinct, "CHUNK_ROWS", 7)
    monkeypatch.setattr(distinct, "CHUNK_CHARACTERS", 500)
    chunks = list(DistinctRows(text_set([*rows, *rows[:50]])).chunks())
    assert sorted(text for chunk in chunks for text in chunk) == sorted(texts)
    assert all(len(chunk) <= 7 and sum(map(len, chunk[:-1])) < 500 for chunk in chunks)


def test_rows_equal_but_for_case_width_and_white_space_are_exact_duplicates(tmp_path: Path) -> None:
    rows = [("Two mugs", "OK"), ("two  MUGS", "ok\n"), ("ｔｗｏ mugs", "OK"), ("Two mugs!", "OK"), ("Two mugs", "No")]
    exact_of = found(tmp_path, rows).exact_of_N
    kept = int(np.argmin(text_set(rows).order_N[:3]))
    assert exact_of.tolist() == [-1 if row in (kept, 3, 4) else kept for row in range(5)]


def test_plain_text_is_compared_too(tmp_path: Path) -> None:
    text = prose(random.Random(0))
    rows = [("", text), ("", text.upper()), ("", reworded(text, random.Random(1))), ("", prose(random.Random(2)))]
    result = found(tmp_path, rows)
    assert np.count_nonzero(result.exact_of_N >= 0) == 1
    assert np.count_nonzero(result.near_of_N >= 0) == 1
    assert not np.any(result.conflict_of_N >= 0)


@pytest.mark.parametrize("make", [prose, han])
def test_clusters_are_those_of_comparing_all_with_all(
    make: Callable[[random.Random, int], str], tmp_path: Path
) -> None:
    draw = random.Random(4)
    texts = [make(draw, draw.randrange(22, 120)) for _ in range(60)]
    texts += [reworded(texts[number], draw, every) for every in (3, 4, 10, 10, 20) for number in range(0, 60, 3)]
    near_of = found(tmp_path, [("", text) for text in texts]).near_of_N.tolist()
    assert clusters(near_of) == all_with_all(texts)


def test_a_chain_is_one_cluster_and_named_by_its_smallest_hash(tmp_path: Path) -> None:
    draw = random.Random(5)
    chain = [prose(draw).split()]
    for step in range(4):
        following = list(chain[-1])
        following[12 * step : 12 * step + 12] = prose(draw, 12).split()
        chain.append(following)
    rows = [pair(" ".join(words)) for words in chain] + [pair(prose(draw)) for _ in range(20)]
    assert not all_with_all([" ".join(chain[0]), " ".join(chain[-1])])
    near_of = found(tmp_path, rows).near_of_N
    smallest = int(np.argmin(text_set(rows).order_N[: len(chain)]))
    assert near_of.tolist() == [smallest if row != smallest else -1 for row in range(len(chain))] + [-1] * 20


def test_a_star_is_one_cluster(tmp_path: Path) -> None:
    draw = random.Random(6)
    centre = prose(draw, 100)
    rows = [pair(reworded(centre, draw, every=7)) for _ in range(8)]
    rows += [pair(centre)] + [pair(prose(draw)) for _ in range(30)]
    assert clusters(found(tmp_path, rows).near_of_N.tolist()) == {frozenset(range(9))}


def test_exact_copies_are_no_near_duplicates(tmp_path: Path) -> None:
    draw = random.Random(7)
    text = prose(draw)
    rows = [pair(text), pair(text.upper()), pair(reworded(text, draw)), pair(prose(draw))]
    result = found(tmp_path, rows)
    copy = int(np.flatnonzero(result.exact_of_N >= 0)[0])
    assert copy in (0, 1)
    assert result.near_of_N[copy] == -1
    assert clusters(result.near_of_N.tolist()) == {frozenset({1 - copy, 2})}


def test_short_rows_are_compared_exactly_only(tmp_path: Path) -> None:
    rows = [("What is the capital of France?", "Paris."), ("What is the capital of France, please?", "Paris.")]
    result = found(tmp_path, [*rows, rows[0]])
    assert result.near_of_N.tolist() == [-1, -1, -1]
    assert np.count_nonzero(result.exact_of_N >= 0) == 1


def test_a_template_that_rows_share_makes_no_duplicates(tmp_path: Path) -> None:
    draw = random.Random(8)
    rows = [(f"{SYSTEM} {prose(draw, 8)}", prose(draw, 6)) for _ in range(40)]
    result = overlaps(tmp_path / "scratch", [*rows, rows[3]])
    assert not np.any(result.duplicates.near_of_N >= 0)
    assert np.flatnonzero(result.duplicates.exact_of_N >= 0).tolist() in ([3], [40])
    assert result.template_share == pytest.approx(80 / 94, abs=0.001)


def test_rows_alike_in_what_is_their_own_are_found_in_spite_of_a_template(tmp_path: Path) -> None:
    draw = random.Random(9)
    own = [prose(draw, 40) for _ in range(40)]
    rows = [(SYSTEM, text) for text in [*own, reworded(own[11], draw)]]
    assert clusters(found(tmp_path, rows).near_of_N.tolist()) == {frozenset({11, 40})}


def test_slots_of_few_values_make_no_duplicates(tmp_path: Path) -> None:
    draw = random.Random(10)
    things, days = [f"thing{number}" for number in range(60)], ["monday", "tuesday", "friday", "sunday"]

    def order() -> Pair:
        thing, count, day, place = draw.choice(things), draw.randrange(2, 12), draw.choice(days), draw.choice("abc")
        asked = f"Good morning, could you please send me {count} of your {thing} on {day}, to the house number {place}?"
        return asked, f'{{"name":"{thing}","count":{count},"day":"{day}","deliver to house number":"{place}"}}'

    rows = [order() for _ in range(500)]
    result = found(tmp_path, rows)
    assert not np.any(result.near_of_N >= 0)
    assert np.count_nonzero(result.exact_of_N >= 0) == 500 - len(set(rows))


@given(st.lists(st.tuples(st.sampled_from("pqr"), st.sampled_from("ABC")), max_size=12))
def test_conflicts_name_the_smallest_row_with_another_answer(rows: list[Pair]) -> None:
    rows = [(prompt if prompt != "r" else "", answer) for prompt, answer in rows]
    train = text_set(rows)
    expected = []
    for prompt, answer in rows:
        others = [row for row, (p, a) in enumerate(rows) if p and p == prompt and a != answer]
        expected.append(min(others, key=lambda row: (train.order_N[row], row), default=-1))
    assert conflicting_answers(DistinctRows(train)).tolist() == expected


def test_an_instruction_that_many_rows_share_is_no_conflict() -> None:
    rows = [("Tell a joke.", f"joke {number}") for number in range(30)] + [("2 + 2?", "4"), ("2 + 2?", "5")]
    assert conflicting_answers(DistinctRows(text_set(rows))).tolist() == [-1] * 30 + [31, 30]


def mixed_rows(draw: random.Random) -> list[Pair]:
    texts = [prose(draw, draw.randrange(20, 60)) for _ in range(30)]
    texts += [reworded(draw.choice(texts), draw, draw.choice((4, 8, 15))) for _ in range(25)]
    rows = [pair(text) for text in texts]
    rows += [(p.upper(), a) for p, a in draw.sample(rows, 8)]
    return rows + [(p, prose(draw, 12)) for p, _ in draw.sample(rows, 8)]


def by_content(rows: list[Pair], of: list[int]) -> Counter[tuple[Pair, Pair | None]]:
    return Counter((row, rows[other] if other >= 0 else None) for row, other in zip(rows, of, strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_rows_changes_nothing(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boilerplate, "SAMPLE_ROWS", 20)
    draw = random.Random(seed)
    rows = mixed_rows(draw)
    results = []
    for number in range(2):
        result = overlaps(tmp_path / str(number), rows, leakage=False).duplicates
        results.append(
            [by_content(rows, of.tolist()) for of in (result.exact_of_N, result.near_of_N, result.conflict_of_N)]
        )
        draw.shuffle(rows)
    assert results[0] == results[1]
    assert all(sum(count for (_, other), count in of.items() if other) > 5 for of in results[0])


def test_other_processes_find_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distinct, "CHUNK_ROWS", 5)
    rows = mixed_rows(random.Random(11))
    test = [pair(reworded(" ".join(row), random.Random(12))) for row in rows[:10]]
    one, two = (overlaps(tmp_path / str(count), rows, test, num_proc=count) for count in (1, 2))
    for name in ("exact_of_N", "near_of_N", "conflict_of_N"):
        assert np.array_equal(getattr(one.duplicates, name), getattr(two.duplicates, name))
    for name in ("kind_N", "set_N", "row_N"):
        assert np.array_equal(getattr(one.leaks, name), getattr(two.leaks, name))
    assert one.template_share == two.template_share


@pytest.mark.parametrize("rows", [[], [("a", "b")]])
def test_no_rows_and_one(rows: list[Pair], tmp_path: Path) -> None:
    result = overlaps(tmp_path / "scratch", rows, [])
    assert result.duplicates.near_of_N.tolist() == [-1] * len(rows)
    assert result.leaks.kind_N.tolist() == [0] * len(rows)


def test_near_duplicates_are_not_looked_for_where_not_wanted(tmp_path: Path) -> None:
    text = prose(random.Random(13))
    rows = [pair(text), pair(reworded(text, random.Random(14))), pair(text)]
    result = overlaps(tmp_path / "scratch", rows, [pair(text)], near=False).duplicates
    assert not np.any(result.near_of_N >= 0)
    assert np.count_nonzero(result.exact_of_N >= 0) == 1
