"""ROUGE-L: the longest common subsequence of answer and reference (Lin, 2004, section 3).

The usual package drops every character outside a-z and 0-9, which scores Chinese as zero. Here words are compared for
languages that write spaces, characters for those that do not.
"""

from collections.abc import Hashable, Sequence

from tunesmith.errors import EvaluationError
from tunesmith.evaluation.tokens import comparison_tokens

BETA = 1.2
"""Weight of recall over precision, as in the E2E and COCO evaluations."""

SIGNATURE = f"ROUGE-L|beta:{BETA:g}|case:lc|punctuation:no|tok:words, characters in scripts without spaces|stem:no"
"""What is computed, in the manner of sacreBLEU's signatures."""


def rouge_l(answers: Sequence[str], references: Sequence[Sequence[str]], *, beta: float = BETA) -> float:
    """Mean over examples of the best F-measure against any reference.

    Args:
        answers: one generated text an example; an empty answer counts, and scores 0.
        references: the accepted texts of each example, at least one.
        beta: weight of recall over precision.

    Returns:
        A share in [0, 1].

    Raises:
        EvaluationError: there is no answer, the two lengths differ, or an example has no reference.
    """
    scores = rouge_l_scores(answers, references, beta=beta)
    if not scores:
        raise EvaluationError("there are no answers to score")
    return sum(scores) / len(scores)


def rouge_l_scores(answers: Sequence[str], references: Sequence[Sequence[str]], *, beta: float = BETA) -> list[float]:
    """The best F-measure of each example; see `rouge_l`.

    Raises:
        EvaluationError: the two lengths differ, or an example has no reference.
    """
    check_references(answers, references)
    return [_best_f(answer, accepted, beta) for answer, accepted in zip(answers, references, strict=True)]


def check_references(answers: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Checks that each answer has a reference.

    Raises:
        EvaluationError: the two lengths differ, or an example has no reference.
    """
    if len(answers) != len(references):
        raise EvaluationError(
            f"{len(answers)} answers but {len(references)} lists of references", remedy="give one list an answer"
        )
    for i, accepted in enumerate(references):
        if not accepted:
            raise EvaluationError(f"example {i + 1} has no reference", remedy="give at least one text an example")


def lcs_length(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence.

    Bit-parallel: one column of the table is one integer, whose zero bits count the length (Hyyrö, 2004, "Bit-parallel
    LCS-length computation revisited").
    """
    positions: dict[Hashable, int] = {}
    for i, item in enumerate(first):
        positions[item] = positions.get(item, 0) | 1 << i
    full = (1 << len(first)) - 1
    column = full
    for item in second:
        matches = column & positions.get(item, 0)
        column = ((column + matches) | (column - matches)) & full
    return len(first) - column.bit_count()


def _best_f(answer: str, accepted: Sequence[str], beta: float) -> float:
    answer_tokens = comparison_tokens(answer)
    return max(_f_measure(answer_tokens, comparison_tokens(reference), beta) for reference in accepted)


def _f_measure(answer: list[str], reference: list[str], beta: float) -> float:
    common = lcs_length(reference, answer)
    if not common:
        return 0.0
    precision, recall = common / len(answer), common / len(reference)
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)
