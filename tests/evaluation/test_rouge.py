"""ROUGE-L, against the textbook table of the longest common subsequence."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.errors import EvaluationError
from tunesmith.evaluation.rouge import lcs_length, rouge_l, rouge_l_scores
from tunesmith.evaluation.tokens import comparison_tokens


def lcs_by_table(first: list[int], second: list[int]) -> int:
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


@given(st.lists(st.integers(0, 4), max_size=40), st.lists(st.integers(0, 4), max_size=40))
def test_length_is_that_of_the_table(first: list[int], second: list[int]) -> None:
    assert lcs_length(first, second) == lcs_by_table(first, second)


def test_chinese_is_compared_by_character() -> None:
    assert rouge_l(["今天天气很好"], [["今天天气不好"]], beta=1.0) == pytest.approx(5 / 6)


def test_figures_worked_out_by_hand() -> None:
    # Lin (2004), section 3.1: S1 "police killed the gunman", S2 "police kill the gunman", S3 "the gunman kill police".
    reference = [["police killed the gunman"]]
    assert rouge_l(["police kill the gunman"], reference, beta=1.0) == pytest.approx(3 / 4)
    assert rouge_l(["the gunman kill police"], reference, beta=1.0) == pytest.approx(2 / 4)
    # precision 2/2, recall 2/4, beta 1.2
    assert rouge_l(["police gunman"], reference) == pytest.approx(2.44 * 0.5 / (0.5 + 1.44))


def test_the_best_reference_counts() -> None:
    assert rouge_l_scores(["a b"], [["x y", "a b", "a"]]) == [1.0]


def test_empty_answers_count_as_zero() -> None:
    assert rouge_l(["", "a"], [["a"], ["a"]]) == 0.5


@given(text=st.text(min_size=1))
def test_a_text_equals_itself(text: str) -> None:
    assert rouge_l([text], [[text]]) == pytest.approx(1.0 if comparison_tokens(text) else 0.0)


@given(st.text(), st.text())
def test_scores_are_shares(answer: str, reference: str) -> None:
    assert 0 <= rouge_l([answer], [[reference]]) <= 1


def test_lengths_that_differ_and_missing_references_are_errors() -> None:
    with pytest.raises(EvaluationError, match="2 answers but 1 lists"):
        rouge_l(["a", "b"], [["a"]])
    with pytest.raises(EvaluationError, match="example 2 has no reference"):
        rouge_l(["a", "b"], [["a"], []])
    with pytest.raises(EvaluationError, match="no answers"):
        rouge_l([], [])
