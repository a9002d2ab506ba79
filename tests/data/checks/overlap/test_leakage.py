"""Rows of train that stand in an evaluation set, wholly or in part, and those that only share a template with it."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.data.checks.overlap.text_sets import Pair, han, overlaps, pair, prose, reworded, text_set
from tunesmith.data.checks.overlap.leakage import EXACT, NEAR, NGRAM, NO_LEAK, Leaks

SYSTEM = prose(random.Random(99), 80)


def leaks(folder: Path, train: list[Pair], *others: list[Pair]) -> Leaks:
    return overlaps(folder / "scratch", train, *others).leaks


def rows_of(draw: random.Random, count: int) -> list[Pair]:
    return [pair(prose(draw)) for _ in range(count)]


def test_each_kind_is_found_and_says_where(tmp_path: Path) -> None:
    draw = random.Random(0)
    clean, validation, test = rows_of(draw, 20), rows_of(draw, 10), rows_of(draw, 10)
    passage = " ".join(test[4][1].split()[3:17])
    train = [
        *clean,
        (validation[3][0].upper(), validation[3][1]),
        (test[7][0], prose(draw)),
        pair(reworded(" ".join(test[2]), draw)),
        (prose(draw), f"{prose(draw)}: {passage.upper()}! {prose(draw)}"),
    ]
    result = leaks(tmp_path, train, validation, test)
    assert result.kind_N.tolist() == [NO_LEAK] * 20 + [EXACT, EXACT, NEAR, NGRAM]
    assert result.set_N.tolist() == [-1] * 20 + [0, 1, 1, 1]
    assert result.row_N.tolist() == [-1] * 20 + [3, 7, 2, 4]


@pytest.mark.parametrize(
    ("make", "enough"), [(prose, 12), (han, 24)], ids=["12 words", "24 characters of a script without spaces"]
)
def test_a_passage_has_to_be_long_enough(make: Callable[..., str], enough: int, tmp_path: Path) -> None:
    draw = random.Random(1)
    separator = " " if make is prose else ""
    test = [("", make(draw, 100)) for _ in range(40)]
    train = []
    for number, (_, text) in enumerate(test):
        units = text.split() if separator else list(text)
        start = draw.randrange(len(units) - enough)
        length = enough if number < 20 else enough - 1
        train.append(("", separator.join((make(draw, 30), *units[start : start + length], make(draw, 30)))))
    assert leaks(tmp_path, train, test).kind_N.tolist() == [NGRAM] * 20 + [NO_LEAK] * 20


@pytest.mark.parametrize("make", [prose, han])
def test_near_duplicates_of_evaluation_rows_are_found(make: Callable[..., str], tmp_path: Path) -> None:
    draw = random.Random(2)
    test = [("", make(draw, draw.randrange(20, 90))) for _ in range(100)]
    train = [("", reworded(text, draw)) for _, text in test] + [("", make(draw)) for _ in range(100)]
    result = leaks(tmp_path, train, test)
    assert np.count_nonzero(result.kind_N[:100]) >= 97
    found = np.flatnonzero(result.kind_N)
    assert result.row_N[found].tolist() == found.tolist()


def test_a_template_on_both_sides_is_no_leak(tmp_path: Path) -> None:
    draw = random.Random(3)
    train = [(f"{SYSTEM} {prose(draw, 8)}", prose(draw, 6)) for _ in range(60)]
    test = [(f"{SYSTEM} {prose(draw, 8)}", prose(draw, 6)) for _ in range(20)]
    train.append(test[5])
    assert leaks(tmp_path, train, test).kind_N.tolist() == [NO_LEAK] * 60 + [EXACT]


def test_a_template_of_the_benchmark_is_no_leak_where_few_rows_of_train_have_it(tmp_path: Path) -> None:
    draw = random.Random(4)
    test = [(f"{SYSTEM} {prose(draw, 20)}", "a") for _ in range(30)]
    train = [*rows_of(draw, 60), (f"{SYSTEM} {prose(draw, 20)}", "b")]
    assert not np.any(leaks(tmp_path, train, test).kind_N)


def test_several_questions_about_one_text_of_a_test_set_are_no_template(tmp_path: Path) -> None:
    draw = random.Random(5)
    text = prose(draw, 40)
    test = [*rows_of(draw, 60), *((f"{text} {prose(draw, 20)}", "a") for _ in range(6))]
    train = [*rows_of(draw, 60), (f"{text} {prose(draw, 60)}", "b")]
    assert leaks(tmp_path, train, test).kind_N.tolist() == [NO_LEAK] * 60 + [NGRAM]


def test_counting_is_no_passage(tmp_path: Path) -> None:
    draw = random.Random(6)
    numbers = " ".join(map(str, range(1, 30)))
    train = [(prose(draw), f"{numbers} {prose(draw)}")]
    assert not np.any(leaks(tmp_path, train, [(prose(draw), f"{numbers} {prose(draw)}")]).kind_N)


def test_an_instruction_for_all_rows_is_no_leaked_prompt(tmp_path: Path) -> None:
    draw = random.Random(7)
    train = [("Tell a joke.", prose(draw)) for _ in range(40)]
    assert not np.any(leaks(tmp_path, train, [("Tell a joke.", prose(draw)) for _ in range(3)]).kind_N)


def test_a_test_question_with_many_answers_in_train_is_a_leak(tmp_path: Path) -> None:
    draw = random.Random(8)
    train = [("What is 6 times 7?", prose(draw)) for _ in range(40)]
    test = [("What is 6 times 7?", "42"), ("What is 6 times 8?", "48")]
    assert leaks(tmp_path, train, test).kind_N.tolist() == [EXACT] * 40


def test_plain_texts_have_no_prompt_to_leak(tmp_path: Path) -> None:
    assert not np.any(leaks(tmp_path, [("", "one text")], [("", "another text")]).kind_N)


def test_exact_copies_leak_as_their_original_does(tmp_path: Path) -> None:
    draw = random.Random(9)
    test = rows_of(draw, 5)
    near, long = pair(reworded(" ".join(test[1]), draw)), (prose(draw), f"{prose(draw)} {test[2][0]}")
    train = [*rows_of(draw, 5), *([near, long, test[3]] * 2), (near[0].upper(), near[1])]
    result = leaks(tmp_path, train, test)
    assert result.kind_N.tolist() == [NO_LEAK] * 5 + [NEAR, NGRAM, EXACT] * 2 + [NEAR]
    assert result.row_N.tolist() == [-1] * 5 + [1, 2, 3] * 2 + [1]


def test_of_several_rows_the_one_with_the_smallest_hash_is_named(tmp_path: Path) -> None:
    draw = random.Random(10)
    question = prose(draw)
    sets = [[(question, prose(draw)) for _ in range(4)] for _ in range(2)]
    orders = np.concatenate([text_set(rows).order_N for rows in sets])
    smallest = int(np.argmin(orders))
    for number, there in enumerate((sets, [rows[::-1] for rows in sets])):
        result = overlaps(tmp_path / str(number), [(question, prose(draw))], *there).leaks
        row = smallest % 4
        assert result.set_N.tolist() == [smallest // 4]
        assert result.row_N.tolist() == [row if number == 0 else 3 - row]


def test_of_several_passages_the_row_with_most_of_them_is_named(tmp_path: Path) -> None:
    draw = random.Random(11)
    test = rows_of(draw, 6)
    pieces = [" ".join(test[number][0].split()[:length]) for number, length in ((0, 12), (1, 20), (2, 14))]
    train = [(prose(draw), " ".join((prose(draw), *pieces, prose(draw))))]
    result = leaks(tmp_path, train, test)
    assert (result.kind_N.tolist(), result.row_N.tolist()) == ([NGRAM], [1])


def test_the_order_of_rows_changes_nothing(tmp_path: Path) -> None:
    draw = random.Random(12)
    test = [*rows_of(draw, 20), *rows_of(draw, 3) * 2]
    train = [pair(reworded(" ".join(draw.choice(test)), draw, draw.choice((3, 5, 10)))) for _ in range(50)]
    train += [(prose(draw), f"{prose(draw)} {draw.choice(test)[1]}") for _ in range(20)] + test[:3] + train[:5]
    results = []
    for number in range(2):
        result = overlaps(tmp_path / str(number), train, test, near=False).leaks
        there = [test[row] if row >= 0 else None for row in result.row_N.tolist()]
        results.append(sorted(zip(train, result.kind_N.tolist(), there, strict=True), key=str))
        draw.shuffle(train)
        draw.shuffle(test)
    assert results[0] == results[1]
    assert {kind for _, kind, _ in results[0]} == {NO_LEAK, EXACT, NEAR, NGRAM}


def test_no_leaks_where_they_are_not_looked_for(tmp_path: Path) -> None:
    rows = rows_of(random.Random(13), 3)
    result = overlaps(tmp_path / "scratch", rows, rows, leakage=False).leaks
    assert result.kind_N.tolist() == [NO_LEAK] * 3
