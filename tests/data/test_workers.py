"""Chunks are worked on in order, here or in other processes, with the same results."""

import os
from collections.abc import Iterator

import pytest

from tunesmith.data.workers import CHUNKS_DONE_HERE, WAITING_CHUNKS, map_chunks
from tunesmith.errors import DataError


def add(shared: int, chunk: int) -> int:
    return shared + chunk


def fail_at_twelve(shared: None, chunk: int) -> int:
    if chunk == 12:
        raise DataError("twelve", place="chunk 12", remedy="leave it out")
    return chunk


def die_at_twelve(shared: None, chunk: int) -> int:
    if chunk == 12:
        os._exit(9)
    return chunk


@pytest.mark.parametrize("num_proc", [1, 2])
@pytest.mark.parametrize("count", [0, 1, CHUNKS_DONE_HERE, 30])
def test_results_come_in_the_order_of_the_chunks(num_proc: int, count: int) -> None:
    assert list(map_chunks(add, 100, range(count), num_proc=num_proc)) == [100 + n for n in range(count)]


def test_chunks_are_taken_as_they_are_needed() -> None:
    taken = 0

    def chunks() -> Iterator[int]:
        nonlocal taken
        for number in range(1000):
            taken += 1
            yield number

    results = map_chunks(add, 0, chunks(), num_proc=2)
    for _ in range(CHUNKS_DONE_HERE + 3):
        next(results)
    assert taken <= CHUNKS_DONE_HERE + 3 + 2 * WAITING_CHUNKS + 1


@pytest.mark.parametrize("num_proc", [1, 2])
def test_an_error_keeps_its_place_and_remedy(num_proc: int) -> None:
    with pytest.raises(DataError, match="twelve") as caught:
        list(map_chunks(fail_at_twelve, None, range(30), num_proc=num_proc))
    assert (caught.value.place, caught.value.remedy) == ("chunk 12", "leave it out")


def test_a_killed_process_is_told_with_the_remedy() -> None:
    with pytest.raises(DataError, match="was killed") as caught:
        list(map_chunks(die_at_twelve, None, range(30), num_proc=2))
    assert caught.value.place == "data.num_proc"
