"""Work on chunks of rows by all cores, with the results in the order of the chunks and bounded memory.

The processes are new ones, by loky: forks of this one would hang where a library of it has started threads (rayon's do
not survive a fork), and multiprocessing's would run a user's script anew that has no `__main__` guard. Small sets are
done here: to start others takes seconds. What is computed does not depend on who does it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

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

_shared: Any = None
"""In a worker process: what all chunks share."""


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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

    from loky.process_executor import ProcessPoolExecutor

    executor = ProcessPoolExecutor(count, initializer=_begin, initargs=(shared, os.getpid()), env=_ENVIRONMENT)
    waiting: deque[Any] = deque()
    finished = False
    try:
        is_ready = executor.submit(os.getpid)
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
        executor.shutdown(wait=True, kill_workers=not finished)


def _begin(shared: object, parent: int) -> None:
    """Makes a new process ready."""
    global _shared
    _shared = shared
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
