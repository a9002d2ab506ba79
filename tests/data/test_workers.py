"""Chunks are worked on in order, here or in other processes, with the same results."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import count, islice
from pathlib import Path

import pytest

from tunesmith.data.workers import CHUNKS_DONE_HERE, WAITING_CHUNKS, map_chunks
from tunesmith.errors import DataError


def where(shared: int, chunk: int) -> tuple[int, int]:
    return shared + chunk, os.getpid()


def fail_elsewhere(parent: int, chunk: int) -> None:
    if os.getpid() != parent:
        raise DataError("elsewhere", place="a chunk", remedy="leave it out")


def die_elsewhere(parent: int, chunk: int) -> None:
    if os.getpid() != parent:
        os._exit(9)


@pytest.mark.parametrize("num_proc", [1, 2])
@pytest.mark.parametrize("total", [0, 1, CHUNKS_DONE_HERE, CHUNKS_DONE_HERE + 1, 30])
def test_every_chunk_has_its_result(num_proc: int, total: int) -> None:
    results = [result for result, _ in map_chunks(where, 100, range(total), num_proc=num_proc)]
    assert results == [100 + number for number in range(total)]


def test_results_come_in_the_order_of_the_chunks_whoever_does_them() -> None:
    elsewhere = 0
    for number, (result, process) in enumerate(map_chunks(where, 100, count(), num_proc=2)):
        assert result == 100 + number
        elsewhere += process != os.getpid()
        if elsewhere == 50:
            break


def test_one_process_starts_no_other() -> None:
    results = islice(map_chunks(where, 0, count(), num_proc=1), 10_000)
    assert {process for _, process in results} == {os.getpid()}


def test_chunks_are_taken_as_they_are_needed() -> None:
    taken = 0

    def chunks() -> Iterator[int]:
        nonlocal taken
        for number in count():
            taken += 1
            yield number

    for done, (_, process) in enumerate(map_chunks(where, 0, chunks(), num_proc=2), 1):
        assert taken <= done + 2 * WAITING_CHUNKS + 1
        if process != os.getpid():
            break


def test_an_error_keeps_its_place_and_remedy() -> None:
    with pytest.raises(DataError, match="elsewhere") as caught:
        for _ in map_chunks(fail_elsewhere, os.getpid(), count(), num_proc=2):
            pass
    assert (caught.value.place, caught.value.remedy) == ("a chunk", "leave it out")


def test_a_killed_process_is_told_with_the_remedy() -> None:
    with pytest.raises(DataError, match="was killed") as caught:
        for _ in map_chunks(die_elsewhere, os.getpid(), count(), num_proc=2):
            pass
    assert caught.value.place == "data.num_proc"


SCRIPT = """
import itertools, os, signal, sys
from tunesmith.data.workers import map_chunks

signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests run in the background

def work(shared, chunk):
    return os.getpid()

others = set()

def chunks():
    for number in itertools.count():
        if len(others) == 2:
            print(*others, flush=True)
            sys.stdin.read()
        yield number

for process in map_chunks(work, None, chunks(), num_proc=2):
    if process != os.getpid():
        others.add(process)
"""


EARLY = """
import itertools, os, signal
from tunesmith.data.workers import map_chunks

signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests run in the background

def work(shared, chunk):
    if chunk == 10:
        print("starting", flush=True)
    return os.getpid()

for process in map_chunks(work, None, itertools.count(), num_proc=2):
    pass
"""


@pytest.mark.skipif(os.name == "nt", reason="needs signals of POSIX")
@pytest.mark.parametrize("delay", [0, 1000, 30_000, 100_000])
def test_an_interrupt_while_processes_start_ends_all(delay: int, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(EARLY, encoding="utf-8")
    command = [sys.executable, str(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "starting\n"
        for _ in range(delay):  # lets the others come further each time
            os.getpid()
        errors = ""
        for _ in range(30):  # one that comes in the very moment of starting is lost, and a user presses again
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                errors = process.communicate(timeout=2)[1]
                break
        else:
            process.kill()
    assert "KeyboardInterrupt" in errors
    assert process.returncode != 0


@pytest.mark.skipif(not Path("/proc").exists(), reason="needs /proc to look")
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_processes_end_with_the_one_that_started_them(by: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")  # without a guard of __main__, as users write it
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        others = [Path("/proc") / number for number in process.stdout.readline().split()]
        assert len(others) == 2
        if by is signal.SIGINT:
            os.killpg(process.pid, by)  # Ctrl-C reaches all
        else:
            process.send_signal(by)
        _, errors = process.communicate(timeout=60)
    # The script's own, and none of another process.
    assert errors.count("Traceback") == (1 if by is signal.SIGINT else 0), errors
    deadline = time.monotonic() + 60
    while any(other.exists() for other in others):
        assert time.monotonic() < deadline
