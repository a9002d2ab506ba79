"""Work that halves itself when memory runs out, and nothing else."""

from collections.abc import Sequence

import pytest
import torch

from tunesmith.errors import ModelError
from tunesmith.models.backend import is_out_of_memory
from tunesmith.models.halving import in_halves


def test_the_results_are_those_of_the_whole_in_order() -> None:
    sizes = []

    def double(items: Sequence[int]) -> list[int]:
        sizes.append(len(items))
        if len(items) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [2 * item for item in items]

    assert in_halves(double, list(range(10)), what="doubling") == [2 * n for n in range(10)]
    assert sizes == [10, 5, 2, 3, 5, 2, 3]


def test_one_example_that_does_not_fit_is_a_clear_error() -> None:
    def fail(items: Sequence[int]) -> list[int]:
        raise MemoryError

    with pytest.raises(ModelError, match="not enough memory for doubling"):
        in_halves(fail, [1, 2], what="doubling")


def test_other_errors_are_not_taken_for_lack_of_memory() -> None:
    def fail(items: Sequence[int]) -> list[int]:
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        in_halves(fail, [1, 2], what="doubling")


def test_the_allocators_own_error_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**62, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(ValueError("out of range"))
