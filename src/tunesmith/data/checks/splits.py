"""A split ready for use: its kept rows, as texts and as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.checks.scanned import ScannedSplit
from tunesmith.data.records import Example, TokenizedExample
from tunesmith.data.store import ExampleRows, TokenizedRows


@dataclass(frozen=True)
class Split:
    """The kept rows of a split, read from disk when asked for; `examples` and `tokenized` go together one to one.

    Args:
        examples: the rows, mended.
        tokenized: their tokens, cut to the longest allowed.
    """

    examples: Sequence[Example] = ()
    tokenized: Sequence[TokenizedExample] = ()

    def weights(self, start: int, stop: int) -> Sequence[float | None]:
        """The weights of some examples in the loss; None each where all weigh the same."""
        if isinstance(self.tokenized, TokenizedRows) and self.tokenized.weights_N is not None:
            weights: list[float | None] = self.tokenized.weights_N[start:stop].tolist()
            return weights
        return [None] * (min(stop, len(self.examples)) - start)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over token ids, labels and weights, in order: what the model sees of the split."""
        return self.tokenized.digest() if isinstance(self.tokenized, TokenizedRows) else sha256().hexdigest()


def make_split(
    scanned: ScannedSplit,
    rows_K: NDArray[np.int64],
    *,
    max_length: int | None,
    weights_K: NDArray[np.float32] | None = None,
) -> Split:
    """The rows `rows_K` of a scanned split, in this order.

    Args:
        scanned: the split after the first pass.
        rows_K: the rows that are in use; one may come several times.
        max_length: most tokens of an example; None cuts nothing.
        weights_K: weights in the loss; None for 1 each.
    """
    tokens_K = scanned.columns_N["tokens"][rows_K]
    return Split(
        ExampleRows(scanned.examples, rows_K),
        TokenizedRows(scanned.tokens, scanned.places, rows_K, tokens_K, max_length=max_length, weights_N=weights_K),
    )
