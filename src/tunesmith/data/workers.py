"""Work on chunks of rows by all cores, with the results in the order of the chunks and bounded memory.

The processes are new ones, by loky: forks of this one would hang where a library of it has started threads (rayon's do
not survive a fork), and multiprocessing's would run a user's script anew that has no `__main__` guard. Small sets are
done here: to start others takes seconds. What is computed does not depend on who does it.
"""

from __future__ import annotations

import atexit
import multiprocessing
import multiprocessing.util  # registers its wait at exit before ours, which therefore runs first
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

from tunesmith.control_groups import usable_cores
from tunesmith.errors import DataError

Shared = TypeVar("Shared")
Chunk = TypeVar("Chunk")
Result = TypeVar("Result")

CHUNKS_DONE_HERE = 8
"""Chunks done in this process before others are started."""

WAITING_CHUNKS = 2
"""Chunks a process that wait or are in work; more would only take memory."""

_PARENT_CHECK_SECONDS = 1.0

_ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
"""The processes are the parallelism; threads beneath them would only be in each other's way."""

_running: set[Any] = set()
"""Processes that were started and not yet seen to their end."""

_shared: Any = None
"""In a worker process: what all chunks share."""


def map_chunks(
    function: Callable[[Shared, Chunk], Result], shared: Shared, chunks: Iterable[Chunk], *, num_proc: int | None
) -> Iterator[Result]:
    """`function(shared, chunk)` for each chunk, in the order of the chunks.

    Args:
        function: a function of a module; chunk and result travel between processes.
        shared: given to every call, sent to each process once.
        chunks: taken as they are needed.
        num_proc: processes to use; None takes one for each core.

    Raises:
        DataError: a process was killed, as the system does when memory runs out.
    """
    remaining = iter(chunks)
    count = usable_cores() if num_proc is None else num_proc
    for chunk in remaining if count == 1 else islice(remaining, CHUNKS_DONE_HERE):
        yield function(shared, chunk)
    for chunk in remaining:  # there are more: others are started, and the work goes on here until they are ready
        yield from _map_in_processes(function, shared, chunk, remaining, count)


def _map_in_processes(
    function: Callable[[Shared, Chunk], Result], shared: Shared, first: Chunk, rest: Iterator[Chunk], count: int
) -> Iterator[Result]:
    from concurrent.futures.process import BrokenProcessPool

    import cloudpickle
    from loky.process_executor import ProcessPoolExecutor

    # Packed once and beforehand, so that processes start within a moment.
    packed = cloudpickle.dumps(shared)
    before = set(multiprocessing.active_children())
    started: set[Any] = set()
    waiting: deque[Any] = deque()
    finished = False
    with _interrupts_ignored():
        executor = ProcessPoolExecutor(count, initializer=_begin, initargs=(packed, os.getpid()), env=_ENVIRONMENT)
        is_ready = executor.submit(os.getpid)  # starts them
        started.update(set(multiprocessing.active_children()) - before)
        _running.update(started)
    try:
        yield function(shared, first)
        for chunk in rest:
            if not is_ready.done():
                yield function(shared, chunk)
                continue
            waiting.append(executor.submit(_call, function, chunk))
            if len(waiting) > count * WAITING_CHUNKS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
        finished = True
    except BrokenProcessPool as error:  # loky's errors are kinds of it
        raise DataError(
            "a process that read the data was killed, most likely because memory ran out",
            place="data.num_proc",
            remedy="set it to fewer processes, or to 1",
        ) from error
    finally:
        if not finished:
            _end(started)
        executor.shutdown(wait=True, kill_workers=not finished)
        _running.difference_update(started)


def _end(processes: set[Any]) -> None:
    for process in processes:
        if process.is_alive():
            process.terminate()


@atexit.register
def _end_all() -> None:
    """Ends what an interrupt at a bad moment left: the exit would wait for it forever."""
    _end(_running)


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Ignores Ctrl-C for the moment in which processes start, which inherit that.

    A KeyboardInterrupt there would leave processes that nobody knows of; and one that gets the signal while it is
    starting breaks the pool. The parent ends them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _begin(packed: bytes, parent: int) -> None:
    """Makes a new process ready."""
    global _shared
    import cloudpickle

    _shared = cloudpickle.loads(packed)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of the terminal; the parent handles it
    if hasattr(os, "getppid") and os.getppid() == parent:
        threading.Thread(target=_end_with, args=(parent,), daemon=True, name="parent watch").start()


def _end_with(parent: int) -> None:
    """Ends this process once its parent has ended, however that was."""
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK_SECONDS)
    os._exit(1)


def _call(function: Callable[[Any, Chunk], Result], chunk: Chunk) -> Result:
    return function(_shared, chunk)
