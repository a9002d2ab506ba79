"""How long examples may be, and what is lost when they are cut."""

import math
from collections.abc import Sequence
from dataclasses import replace

from tunesmith.data.records import TokenizedExample

ROUND_TO = 64
"""Chosen lengths are multiples of this many tokens."""

ALWAYS_WHOLE = 1024
"""Up to this length auto keeps every example whole: the cost of a few longer ones is small."""

KEPT_SHARE = 0.99
"""Share of the examples that auto keeps whole above `ALWAYS_WHOLE`."""


def quantile(values: Sequence[int], share: float) -> int:
    """The smallest value that at least `share` of `values` do not exceed.

    Raises:
        ValueError: there are no values.
    """
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no values")
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def choose_max_length(lengths: Sequence[int], context_length: int | None) -> int:
    """The length that `max_length: auto` stands for, in tokens.

    Every example is kept whole where the longest has at most `ALWAYS_WHOLE` tokens; else 99 % of them are, since a
    single outlier would decide the memory of the run. Never more than the model's context.
    """
    longest = max(lengths)
    wanted = longest if longest <= ALWAYS_WHOLE else max(ALWAYS_WHOLE, quantile(lengths, KEPT_SHARE))
    rounded = math.ceil(wanted / ROUND_TO) * ROUND_TO
    return min(rounded, context_length) if context_length else rounded


def cut(example: TokenizedExample, max_length: int) -> TokenizedExample:
    """The example's first `max_length` tokens; `tokens_cut` counts the rest."""
    surplus = len(example.input_ids) - max_length
    if surplus <= 0:
        return example
    return replace(
        example,
        input_ids=example.input_ids[:max_length],
        labels=example.labels[:max_length],
        tokens_cut=example.tokens_cut + surplus,
    )
