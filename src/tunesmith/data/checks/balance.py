"""How many rows each class has, and what brings the classes nearer to each other.

Balance is the ratio of the largest class to the smallest. That 3:1 is still well is a rule of thumb: no experiment on
fine-tuning shows a threshold there. So a larger ratio is reported, and acted on only where the recipe says so.

Shapes: N rows, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.checks.language_names import language_name

NO_CLASS = -1

MOST_ANSWER_CLASSES = 50
MOST_CLASS_WORDS = 5
FEWEST_CLASS_ROWS = 5
SMALLEST_COVERED_SHARE = 0.95
"""Answers are classes where at most so many, of at most so many words and in at least so many rows each, make up this
share of the rows. A rarer answer is a slip of the pen more often than a class."""

BalanceMethod = Literal["none", "downsample", "upsample", "weight"]


@dataclass(frozen=True)
class Classes:
    """A way to divide the rows.

    Args:
        kind: what divides them: a column, the answer, the source they are from, or the language of the answer.
        names: of the C classes, the largest first.
        of_row_N: the class of each row, `NO_CLASS` for none.
    """

    kind: Literal["field", "answer", "source", "language"]
    names: tuple[str, ...]
    of_row_N: NDArray[np.int32]

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Rows of each of the C classes."""
        return np.bincount(self.of_row_N[self.of_row_N != NO_CLASS], minlength=len(self.names)).astype(np.int64)

    @property
    def can_be_balanced(self) -> bool:
        """Whether `plan_balance` is meant for them.

        How much of a set comes from each source, and is in each language, was somebody's decision; it is only reported.
        Whoever wants them balanced names a column that holds them.
        """
        return self.kind in ("field", "answer")


def find_classes(
    *,
    answers_N: NDArray[np.uint64],
    answer_words_N: NDArray[np.uint16],
    name_of_answer: Callable[[int], str],
    sources_N: NDArray[np.int32],
    source_names: Sequence[str],
    languages_N: NDArray[np.bytes_],
    field_N: NDArray[np.uint64] | None = None,
    field_names: Mapping[int, str] | None = None,
) -> list[Classes]:
    """The ways in which the rows fall into classes: by the recipe's column or else by the answer, then by the others.

    Sources and languages are left out where there is but one. The result does not depend on the order of the rows, if
    `name_of_answer` gives the same name for equal answers.

    Args:
        answers_N: hash of each row's normalised answer.
        answer_words_N: words of each answer.
        name_of_answer: the normalised answer of a row; asked once for each class.
        sources_N: index of each row's source in `source_names`.
        source_names: of the files and hub datasets.
        languages_N: code of each answer's language, dtype "S3", b"" where unknown.
        field_N: hash of what the recipe's column holds, 0 where it holds nothing; None where it names no column.
        field_names: what the hashes of `field_N` stand for.
    """
    main: Classes | None
    if field_N is not None:
        names = field_names or {}
        main = _classes("field", field_N, field_N != 0, lambda row: names[int(field_N[row])])
    else:
        main = _answer_classes(answers_N, answer_words_N, name_of_answer)
    has_source_N = np.ones(len(sources_N), dtype=np.bool_)
    beside = [
        _classes("source", sources_N, has_source_N, lambda row: source_names[int(sources_N[row])]),
        _classes(
            "language", languages_N, languages_N != b"", lambda row: language_name(bytes(languages_N[row]).decode())
        ),
    ]
    found = [main] if main is not None and main.names else []
    return found + [classes for classes in beside if len(classes.names) > 1]


def _answer_classes(
    answers_N: NDArray[np.uint64], answer_words_N: NDArray[np.uint16], name_of: Callable[[int], str]
) -> Classes | None:
    """The answers as classes; None where they are not short, few and repeated."""
    is_short_N = answer_words_N <= MOST_CLASS_WORDS
    if np.count_nonzero(is_short_N) < SMALLEST_COVERED_SHARE * len(answers_N):
        return None
    answers, counts = np.unique(answers_N[is_short_N], return_counts=True)
    repeated = answers[counts >= FEWEST_CLASS_ROWS]
    if not 0 < len(repeated) <= MOST_ANSWER_CLASSES:
        return None
    in_class_N = is_short_N & np.isin(answers_N, repeated)
    if np.count_nonzero(in_class_N) < SMALLEST_COVERED_SHARE * len(answers_N):
        return None
    return _classes("answer", answers_N, in_class_N, name_of)


def _classes(
    kind: Literal["field", "answer", "source", "language"],
    key_N: NDArray[np.uint64] | NDArray[np.int32] | NDArray[np.bytes_],
    in_class_N: NDArray[np.bool_],
    name_of: Callable[[int], str],
) -> Classes:
    """One class for each key of the rows that are in one, the largest first and equal ones by name."""
    rows_K = np.flatnonzero(in_class_N)
    _, first_C, class_K, counts_C = np.unique(key_N[rows_K], return_index=True, return_inverse=True, return_counts=True)
    names_C = [name_of(int(row)) for row in rows_K[first_C]]
    order_C = sorted(range(len(names_C)), key=lambda one: (-int(counts_C[one]), names_C[one]))
    place_C = np.empty(len(names_C), dtype=np.int32)
    place_C[order_C] = np.arange(len(names_C), dtype=np.int32)
    of_row_N = np.full(len(key_N), NO_CLASS, dtype=np.int32)
    of_row_N[rows_K] = place_C[class_K.reshape(-1)]
    return Classes(kind, tuple(names_C[one] for one in order_C), of_row_N)


def imbalance(classes: Classes) -> float:
    """How many times as large as the smallest class the largest is; 1.0 where there are fewer than two."""
    counts_C = classes.counts[classes.counts > 0]
    return float(counts_C.max() / counts_C.min()) if len(counts_C) > 1 else 1.0


@dataclass(frozen=True)
class BalancePlan:
    """What becomes of each row.

    Args:
        repeats_N: how many times it is used in an epoch; 0 leaves it out, 1 is as before.
        weights_N: the weight of its loss; their mean is 1.
    """

    repeats_N: NDArray[np.int32]
    weights_N: NDArray[np.float32]


def plan_balance(
    classes: Classes, how: BalanceMethod, max_class_ratio: float, order_N: NDArray[np.uint64]
) -> BalancePlan:
    """Brings the largest class to at most `max_class_ratio` times the smallest; rows without a class stay as they are.

    With s and l the rows of the smallest and the largest class and r the ratio:

    - downsample: classes of more than r*s rows keep r*s of them, rounded down, those of the smallest `order_N`.
    - upsample: classes of less than l/r rows get l/r, rounded up: every row as often as it goes, those of the smallest
      `order_N` once more.
    - weight: rows of a class of n rows weigh min(1, r*s/n) and rows without a class 1, times what makes the mean of all
      1, so that the learning rate keeps its meaning. The sums of the classes' weights have the ratio.

    Which contents stay does not depend on the order of the rows: equal hashes are equal rows.

    Args:
        classes: that are to be balanced.
        how: the method; none changes nothing.
        max_class_ratio: at least 1.
        order_N: a hash of each row's content.
    """
    repeats_N = np.ones(len(order_N), dtype=np.int32)
    weights_N = np.ones(len(order_N), dtype=np.float32)
    if how == "none" or imbalance(classes) <= max_class_ratio:
        return BalancePlan(repeats_N, weights_N)
    counts_C = classes.counts
    smallest, largest = int(counts_C[counts_C > 0].min()), int(counts_C.max())
    rows_K = np.flatnonzero(classes.of_row_N != NO_CLASS)
    class_K = classes.of_row_N[rows_K]
    if how == "weight":
        weight_C = np.minimum(1.0, max_class_ratio * smallest / np.maximum(counts_C, 1))
        # Summed by class, because a sum by row would depend on their order in its last digits.
        total = float(counts_C @ weight_C) + len(order_N) - len(rows_K)
        weights_N[rows_K] = weight_C[class_K]
        return BalancePlan(repeats_N, (weights_N * (len(order_N) / total)).astype(np.float32))
    if how == "downsample":
        wanted_C = np.minimum(counts_C, math.floor(max_class_ratio * smallest))
    else:
        wanted_C = np.maximum(counts_C, math.ceil(largest / max_class_ratio))
    whole_K, once_more_K = np.divmod(wanted_C[class_K], counts_C[class_K])
    repeats_N[rows_K] = whole_K + (_rank_in_class(class_K, order_N[rows_K], counts_C) < once_more_K)
    return BalancePlan(repeats_N, weights_N)


def _rank_in_class(
    class_K: NDArray[np.int32], order_K: NDArray[np.uint64], counts_C: NDArray[np.int64]
) -> NDArray[np.int64]:
    """How many rows of its class come before each row, by hash and then by row."""
    sorted_K = np.lexsort((order_K, class_K))
    starts_C = np.cumsum(counts_C) - counts_C
    rank_K = np.empty(len(class_K), dtype=np.int64)
    rank_K[sorted_K] = np.arange(len(class_K)) - starts_C[class_K[sorted_K]]
    return rank_K
