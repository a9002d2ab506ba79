"""Rows joined to clusters by pairs that are alike; known by its smallest row."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Clusters:
    """Disjoint clusters of M rows, at first each of one.

    Args:
        count: M.
    """

    def __init__(self, count: int) -> None:
        self._parent_M = np.arange(count)

    def join(self, one: int, other: int) -> None:
        """Makes the clusters of two rows one."""
        one, other = self._root(one), self._root(other)
        self._parent_M[max(one, other)] = min(one, other)

    def _root(self, row: int) -> int:
        parent_M = self._parent_M
        while (parent := int(parent_M[row])) != row:
            parent_M[row] = parent_M[parent]  # halves the way for those who come after
            row = parent
        return row

    def smallest(self) -> NDArray[np.int64]:
        """For each row the smallest of its cluster."""
        while not np.array_equal(parents := self._parent_M[self._parent_M], self._parent_M):
            self._parent_M = parents
        return self._parent_M.copy()
