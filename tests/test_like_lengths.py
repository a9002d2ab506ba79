"""Batches of like length: every example once, within both limits, and none smaller than it has to be."""

import random
from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.like_lengths import batches_of_like_length


@given(
    lengths=st.lists(st.integers(1, 50), max_size=40),
    max_examples=st.integers(1, 9),
    max_tokens=st.none() | st.integers(1, 200),
    multiple_of=st.sampled_from([1, 8]),
    order=st.randoms(),
)
def test_batches_hold_every_example_once_within_both_limits(
    lengths: list[int], max_examples: int, max_tokens: int | None, multiple_of: int, order: random.Random
) -> None:
    indices = [index for index in range(len(lengths)) if index % 3]
    order.shuffle(indices)
    batches = batches_of_like_length(
        lengths, indices, max_examples=max_examples, max_tokens=max_tokens, multiple_of=multiple_of
    )
    assert sorted(index for batch in batches for index in batch) == sorted(indices)

    def padded(batch: list[int], count: int) -> int:
        return count * -(-max(lengths[index] for index in batch) // multiple_of) * multiple_of

    for batch in batches:
        assert 1 <= len(batch) <= max_examples
        assert len(batch) == 1 or max_tokens is None or padded(batch, len(batch)) <= max_tokens
    for batch, following in pairwise(batches):
        assert min(lengths[index] for index in batch) >= lengths[following[0]], "like lengths together"
        one_more = max_tokens is None or padded(batch, len(batch) + 1) <= max_tokens
        assert len(batch) == max_examples or not one_more, "none could have taken one more"


def test_all_are_taken_where_none_are_named_and_equal_ones_stay_in_their_order() -> None:
    lengths = [5, 30, 7, 80, 7, 2]
    assert batches_of_like_length(lengths, max_examples=9, max_tokens=40) == [[3], [1], [2, 4, 0, 5]]
    stored: Any = np.array(lengths, dtype=np.uint32)  # lengths of a set on disk have no negatives
    assert batches_of_like_length(stored, max_examples=2) == [[3, 1], [2, 4], [0, 5]]
    assert batches_of_like_length([], max_examples=2) == []
