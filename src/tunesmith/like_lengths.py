"""Batches of like length: whatever is padded to the longest of a batch wastes little that way."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence


def batches_of_like_length(
    lengths: Sequence[int],
    indices: Iterable[int] | None = None,
    *,
    max_examples: int,
    max_tokens: int | None = None,
    multiple_of: int = 1,
) -> list[list[int]]:
    """Divides examples into batches of like length.

    The longest come first, so that a lack of memory shows at once; equal ones stay in their order. A batch is closed
    when another example would not fit; an example that is longer than `max_tokens` is alone.

    Args:
        lengths: tokens of every example.
        indices: the examples to divide; None takes all of them.
        max_examples: most examples of a batch.
        max_tokens: most tokens of a batch, padding counted; None sets no bound.
        multiple_of: what the padded length is rounded up to.
    """
    batches: list[list[int]] = []
    room = 0
    for index in sorted(range(len(lengths)) if indices is None else indices, key=lambda index: -int(lengths[index])):
        if room == 0:
            width = max(1, math.ceil(int(lengths[index]) / multiple_of) * multiple_of)
            room = max_examples if max_tokens is None else min(max_examples, max(1, max_tokens // width))
            batches.append([])
        batches[-1].append(index)
        room -= 1
    return batches
