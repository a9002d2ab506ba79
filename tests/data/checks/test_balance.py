"""Classes, how unequal they are, and what makes them more equal."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tunesmith.data.checks.balance import (
    FEWEST_CLASS_ROWS,
    MOST_ANSWER_CLASSES,
    NO_CLASS,
    BalanceMethod,
    Classes,
    find_classes,
    imbalance,
    plan_balance,
)
from tunesmith.data.checks.balance_report import _without_rare
from tunesmith.data.checks.overlap.text_set import text_hash


def found_in(answers: list[str], **others: object) -> list[Classes]:
    """`find_classes` for rows of one source in English, changed by `others`."""
    values: dict[str, object] = {
        "answers_N": np.array([text_hash(a) for a in answers], dtype=np.uint64),
        "answer_words_N": np.array([len(a.split()) for a in answers], dtype=np.uint16),
        "name_of_answer": answers.__getitem__,
        "sources_N": np.zeros(len(answers), dtype=np.int32),
        "source_names": ["a.jsonl"],
        "languages_N": np.full(len(answers), b"en", dtype="S3"),
    }
    return find_classes(**(values | others))  # type: ignore[arg-type]


def test_repeated_short_answers_are_classes() -> None:
    (classes,) = found_in(["no", "yes", "yes", "not sure"] * FEWEST_CLASS_ROWS + ["yse"])
    assert (classes.kind, classes.names) == ("answer", ("yes", "no", "not sure"))
    assert classes.counts.tolist() == [10, 5, 5]
    assert classes.of_row_N.tolist() == [1, 0, 0, 2] * FEWEST_CLASS_ROWS + [NO_CLASS]
    assert classes.can_be_balanced


@pytest.mark.parametrize(
    "answers",
    [
        [],
        [f"answer {number}" for number in range(200)],
        ["this one is just too long a class"] * 100,
        ["yes", "no"] * 50 + [f"it is {number}" for number in range(10)],
        [f"label {number}" for number in range(MOST_ANSWER_CLASSES + 1)] * FEWEST_CLASS_ROWS,
        ["yes", "no"] * (FEWEST_CLASS_ROWS - 1),
    ],
    ids=["empty", "all differ", "long", "too many others", "too many classes", "too few rows"],
)
def test_answers_that_are_no_classes(answers: list[str]) -> None:
    assert found_in(answers) == []


def test_a_column_comes_before_the_answers() -> None:
    (classes,) = found_in(
        ["yes", "no"] * 10,
        field_N=np.array([7, 9] * 9 + [7, 0], dtype=np.uint64),
        field_names={7: "sports", 9: "news"},
    )
    assert (classes.kind, classes.names, classes.counts.tolist()) == ("field", ("sports", "news"), [10, 9])
    assert classes.of_row_N[-1] == NO_CLASS


def test_an_empty_column_gives_no_classes() -> None:
    assert found_in(["yes"] * 20, field_N=np.zeros(20, dtype=np.uint64), field_names={}) == []


def test_sources_and_languages_are_only_reported() -> None:
    sources, languages = found_in(
        [f"answer {number}" for number in range(10)],
        sources_N=np.array([1] * 7 + [0] * 3, dtype=np.int32),
        source_names=["a.jsonl", "b.jsonl"],
        languages_N=np.array([b"en"] * 2 + [b"zh"] * 6 + [b""] * 2, dtype="S3"),
    )
    assert (sources.kind, sources.names, sources.counts.tolist()) == ("source", ("b.jsonl", "a.jsonl"), [7, 3])
    assert (languages.kind, languages.names, languages.counts.tolist()) == ("language", ("Chinese", "English"), [6, 2])
    assert not sources.can_be_balanced
    assert not languages.can_be_balanced


@pytest.mark.parametrize(("english", "languages"), [(80, 6), (96, 1)])
def test_small_languages_are_listed_unless_nearly_all_is_of_one(english: int, languages: int) -> None:
    smaller = [1, 2, 3, 4, 5] * 4 if english == 80 else [1] * 4
    classes = Classes("language", ("English", "a", "b", "c", "d", "e"), np.array([0] * english + smaller, np.int32))
    assert len(_without_rare(classes).names) == languages


def classes_of(of_row: list[int]) -> Classes:
    of_row_N = np.array(of_row, dtype=np.int32)
    return Classes("answer", tuple(f"class {one}" for one in range(max(of_row, default=-1) + 1)), of_row_N)


@pytest.mark.parametrize(
    ("of_row", "ratio"),
    [([0, 0, 0, 1, 2, 2], 3.0), ([0, 0, 1, 1, -1, -1, -1], 1.0), ([0, 0], 1.0), ([], 1.0), ([-1], 1.0)],
)
def test_ratio_of_the_largest_to_the_smallest(of_row: list[int], ratio: float) -> None:
    assert imbalance(classes_of(of_row)) == ratio


# Twelve rows of one class, two of another and one of none; hashes fall with the row.
SKEWED = classes_of([0] * 12 + [1] * 2 + [NO_CLASS])
HASHES = np.arange(15, 0, -1, dtype=np.uint64)


def test_downsampling_keeps_the_smallest_hashes() -> None:
    plan = plan_balance(SKEWED, "downsample", 3.0, HASHES)
    assert plan.repeats_N.tolist() == [0] * 6 + [1] * 6 + [1, 1] + [1]
    assert set(plan.weights_N.tolist()) == {1.0}


def test_upsampling_repeats_whole_and_then_the_smallest_hashes() -> None:
    plan = plan_balance(SKEWED, "upsample", 2.4, HASHES)
    assert plan.repeats_N.tolist() == [1] * 12 + [2, 3] + [1]
    assert set(plan.weights_N.tolist()) == {1.0}


def test_weights_of_a_large_class_are_small() -> None:
    plan = plan_balance(SKEWED, "weight", 3.0, HASHES)
    assert set(plan.repeats_N.tolist()) == {1}
    # Half the weight for the large class, then scaled by 15 / (12 * 0.5 + 2 + 1).
    assert plan.weights_N == pytest.approx(np.array([0.5] * 12 + [1.0] * 3) * 15 / 9)


METHODS: list[BalanceMethod] = ["downsample", "upsample", "weight"]

class_lists = st.lists(st.integers(NO_CLASS, 4), min_size=1, max_size=60).filter(lambda rows: max(rows) >= 0)
ratios = st.floats(1, 6)


def used(classes: Classes, how: BalanceMethod, ratio: float, order_N: NDArray[np.uint64]) -> NDArray[np.float64]:
    """How much each class that has rows counts for in an epoch."""
    plan = plan_balance(classes, how, ratio, order_N)
    has_class_N = classes.of_row_N != NO_CLASS
    weights_N = plan.repeats_N[has_class_N] * plan.weights_N[has_class_N].astype(np.float64)
    counts_C = np.zeros(len(classes.names))
    np.add.at(counts_C, classes.of_row_N[has_class_N], weights_N)
    return counts_C[classes.counts > 0]


@pytest.mark.parametrize("how", METHODS)
@given(of_row=class_lists, ratio=ratios)
def test_ratio_holds_afterwards(how: BalanceMethod, of_row: list[int], ratio: float) -> None:
    counts_C = used(classes_of(of_row), how, ratio, np.arange(len(of_row), dtype=np.uint64))
    assert counts_C.min() > 0
    assert counts_C.max() <= ratio * counts_C.min() * (1 + 1e-5)


@pytest.mark.parametrize("how", [*METHODS, "none"])
@given(of_row=class_lists, ratio=ratios)
def test_rows_and_weights(how: BalanceMethod, of_row: list[int], ratio: float) -> None:
    classes = classes_of(of_row)
    plan = plan_balance(classes, how, ratio, np.arange(len(of_row), dtype=np.uint64))
    assert plan.weights_N.sum(dtype=np.float64) == pytest.approx(len(of_row), rel=1e-5)
    assert (plan.weights_N > 0).all()
    assert (plan.repeats_N[classes.of_row_N == NO_CLASS] == 1).all()
    assert plan.repeats_N.max() <= 1 or how == "upsample"
    assert plan.repeats_N.min() >= 1 or how == "downsample"
    if imbalance(classes) <= ratio or how == "none":
        assert (plan.repeats_N == 1).all()
        assert (plan.weights_N == 1).all()


@pytest.mark.parametrize("how", METHODS)
@given(data=st.data(), of_row=class_lists, ratio=ratios)
def test_order_of_rows_changes_nothing(
    how: BalanceMethod, data: st.DataObject, of_row: list[int], ratio: float
) -> None:
    hashes = data.draw(st.lists(st.integers(0, 30), min_size=len(of_row), max_size=len(of_row)))
    moved = data.draw(st.permutations(range(len(of_row))))

    def contents(rows: list[int]) -> list[tuple[int, int, float]]:
        order_N = np.array([hashes[row] for row in rows], dtype=np.uint64)
        classes = Classes("answer", tuple("abcde"), np.array([of_row[row] for row in rows], dtype=np.int32))
        plan = plan_balance(classes, how, ratio, order_N)
        return sorted(
            (of_row[row], hashes[row], float(weight))
            for row, repeats, weight in zip(rows, plan.repeats_N, plan.weights_N, strict=True)
            for _ in range(repeats)
        )

    assert contents(list(range(len(of_row)))) == contents(moved)
