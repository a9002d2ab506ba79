"""Which length auto chooses, and what cutting loses."""

import pytest

from tests.training.conftest import make_examples
from tunesmith.data.lengths import choose_max_length, cut, quantile


@pytest.mark.parametrize(
    ("lengths", "context", "expected"),
    [
        ([10, 20, 65], None, 128),
        ([10, 64], None, 64),
        ([1000] * 999 + [9000], None, 1024),
        ([100] * 50 + [3000] * 50, None, 3008),
        ([5000] * 10, 2048, 2048),
        ([700], 512, 512),
    ],
)
def test_auto_keeps_all_of_short_data_and_all_but_outliers_of_long(
    lengths: list[int], context: int | None, expected: int
) -> None:
    assert choose_max_length(lengths, context) == expected


def test_cutting_counts_what_is_lost() -> None:
    (example,) = make_examples(1, longest=30)
    short = cut(example, 5)
    assert short.input_ids == example.input_ids[:5]
    assert short.labels == example.labels[:5]
    assert short.tokens_cut == len(example.input_ids) - 5
    assert cut(example, 500) is example


def test_quantile_is_the_value_that_a_share_does_not_exceed() -> None:
    values = list(range(1, 101))
    assert quantile(values, 0.99) == 99
    assert quantile(values, 0.5) == 50
    assert quantile([7], 0.01) == 7
    with pytest.raises(ValueError, match="no values"):
        quantile([], 0.5)
