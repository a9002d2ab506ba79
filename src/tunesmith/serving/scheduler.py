"""What is computed in the next step, and who must wait. No torch.

A step takes at most `max_tokens_per_step` tokens. Running requests that need one token come first, so that nobody's
stream stalls; what is left goes to prompts, in chunks, in the order of arrival; then to waiting requests. When
blocks run out, the newest running request gives its blocks back and waits at the front of its queue: its tokens are
kept, and computed again later (or found in the prefix cache).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tunesmith.errors import QueueFullError, ServingError
from tunesmith.serving.fair_queue import FairQueue
from tunesmith.serving.kv_cache import KvCache
from tunesmith.serving.request import Mix, Request


@dataclass(frozen=True)
class Limits:
    """What the scheduler keeps to.

    Args:
        max_running: most requests that are computed at the same time.
        max_tokens_per_step: most tokens of a step; at least `max_running`.
        max_waiting_requests: more are refused.
        max_waiting_tokens: likewise, over the tokens of the waiting requests. One request alone is always taken.
    """

    max_running: int = 32
    max_tokens_per_step: int = 256
    max_waiting_requests: int = 1024
    max_waiting_tokens: int = 1 << 20

    def __post_init__(self) -> None:
        for name in ("max_running", "max_tokens_per_step", "max_waiting_requests", "max_waiting_tokens"):
            if getattr(self, name) < 1:
                raise ServingError(f"{name} is {getattr(self, name)}; it must be at least 1", place=name)
        if self.max_tokens_per_step < self.max_running:
            raise ServingError(
                f"max_tokens_per_step is {self.max_tokens_per_step}, less than max_running ({self.max_running})",
                place="max_tokens_per_step",
                remedy="each running request needs one token a step; raise one or lower the other",
            )


@dataclass(frozen=True)
class Chunk:
    """The tokens of one request in a step.

    Args:
        request: whose.
        start: position of the first token.
        count: how many.
        extents: runs of cache blocks (first block, how many) that hold its tokens up to the last of these.
    """

    request: Request
    start: int
    count: int
    extents: tuple[tuple[int, int], ...]

    @property
    def end(self) -> int:
        """One past the position of the last token."""
        return self.start + self.count

    @property
    def token_ids(self) -> list[int]:
        """The tokens."""
        return self.request.token_ids[self.start : self.end]

    @property
    def samples(self) -> bool:
        """Whether the step computes all that is missing, so that a next token can be chosen."""
        return self.end == len(self.request.token_ids)


@dataclass(frozen=True)
class StepPlan:
    """A step: chunks in the order of their rows; those with the same adapters lie side by side.

    Args:
        chunks: each request at most once.
    """

    chunks: tuple[Chunk, ...]

    def __len__(self) -> int:
        return sum(chunk.count for chunk in self.chunks)

    def segments(self) -> Iterator[tuple[Mix, list[Chunk]]]:
        """The chunks by mix."""
        group: list[Chunk] = []
        for chunk in self.chunks:
            if group and chunk.request.mix.parts != group[0].request.mix.parts:
                yield group[0].request.mix, group
                group = []
            group.append(chunk)
        if group:
            yield group[0].request.mix, group


class Scheduler:
    """Requests on their way through the cache.

    Args:
        cache: the cache, which the scheduler alone changes.
        limits: what it keeps to.
    """

    def __init__(self, cache: KvCache, limits: Limits) -> None:
        self.cache = cache
        self.limits = limits
        self._waiting = FairQueue()
        self._running: list[Request] = []  # in the order in which they arrived
        self._requests: dict[str, Request] = {}
        self._arrivals: dict[str, int] = {}
        self._arrived = 0
        self.preemptions = 0

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests that are being computed."""
        return len(self._running)

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._requests

    def get(self, request_id: str) -> Request | None:
        """An unfinished request."""
        return self._requests.get(request_id)

    def unfinished(self) -> list[Request]:
        """All requests that wait or run, in the order of arrival."""
        return list(self._requests.values())

    def add(self, request: Request) -> None:
        """Puts a request into the queue.

        Raises:
            QueueFullError: too many wait already.
            ServingError: its id is taken, or it would not fit into the whole cache.
        """
        if request.request_id in self._requests:
            raise ServingError(f"there is an unfinished request {request.request_id!r} already", place="request_id")
        # The last token is never computed.
        if request.longest - 1 > self.cache.capacity:
            raise ServingError(
                f"prompt and answer may take {request.longest} tokens; the cache holds {self.cache.capacity}",
                place="max_tokens",
                remedy="ask for a shorter answer, or give the engine a larger kv_cache_tokens",
            )
        limits = self.limits
        full = len(self._waiting) >= limits.max_waiting_requests
        if full or (self._waiting and self._waiting.tokens + len(request.token_ids) > limits.max_waiting_tokens):
            raise QueueFullError(
                f"{len(self._waiting)} requests of {self._waiting.tokens} tokens are waiting already",
                remedy="ask again later",
            )
        self._requests[request.request_id] = request
        self._arrivals[request.request_id] = self._arrived
        self._arrived += 1
        self._waiting.push(request)

    def finish(self, request: Request) -> None:
        """Takes a request out, whether it runs or waits, and gives its blocks back."""
        del self._requests[request.request_id]
        del self._arrivals[request.request_id]
        if not self._waiting.remove(request):
            self._stop(request)

    def schedule(self) -> StepPlan:
        """The next step; empty only if there is nothing to do. `advance` must follow once it is computed."""
        planned: dict[str, Chunk] = {}
        budget = self.limits.max_tokens_per_step
        preempted = False
        # Those of one token first; each group stays in the order of arrival.
        for request in sorted(self._running, key=lambda r: len(r.token_ids) - r.computed > 1):
            if request not in self._running:
                continue  # preempted for an earlier one in this loop
            count = min(len(request.token_ids) - request.computed, budget)
            if count == 0:
                continue
            while request in self._running and not self.cache.grow(request, request.computed + count):
                victim = self._running[-1]
                self._preempt(victim)
                preempted = True
                if (dropped := planned.pop(victim.request_id, None)) is not None:
                    budget += dropped.count
            if request in self._running:
                planned[request.request_id] = self._chunk(request, count)
                budget -= count
        if not preempted:
            self._admit(planned, budget)
        for chunk in planned.values():
            self._waiting.charge(chunk.request, chunk.count)
        return StepPlan(tuple(sorted(planned.values(), key=_row_order)))

    def advance(self, chunk: Chunk) -> None:
        """Notes that a chunk of the plan was computed; its full blocks can be shared from now on."""
        request = chunk.request
        request.computed = chunk.end
        self.cache.commit(request)

    def check_integrity(self) -> None:
        """Raises AssertionError unless queue, running requests and cache agree."""
        self.cache.check_integrity()
        assert len(self._waiting) + len(self._running) == len(self._requests)
        assert self._requests.keys() == self._arrivals.keys()
        arrivals = [self._arrivals[request.request_id] for request in self._running]
        assert arrivals == sorted(arrivals), "running requests are out of order"
        for request in self._running:
            held = len(self.cache.table(request).blocks)
            assert held >= self.cache.blocks_for(request.computed), f"{request.request_id} lacks blocks"
            assert request.computed < len(request.token_ids)
        if self.is_idle:
            assert self.cache.used_share == 0, "blocks are in use though no request is"
            assert self._waiting.tokens == 0

    def _admit(self, planned: dict[str, Chunk], budget: int) -> None:
        while budget > 0 and len(self._running) < self.limits.max_running:
            request = self._waiting.peek()
            if request is None or not self.cache.can_begin(request):
                return
            self._waiting.started(request)
            self._waiting.remove(request)
            request.computed = self.cache.begin(request)
            if request.preemptions == 0:
                request.cached = request.computed
            count = min(len(request.token_ids) - request.computed, budget)
            assert self.cache.grow(request, request.computed + count)
            self._running.append(request)
            self._running.sort(key=lambda r: self._arrivals[r.request_id])
            planned[request.request_id] = self._chunk(request, count)
            budget -= count

    def _preempt(self, request: Request) -> None:
        request.computed = 0
        request.preemptions += 1
        self.preemptions += 1
        self._waiting.push(request, first=True)
        self._stop(request)

    def _stop(self, request: Request) -> None:
        self._running.remove(request)
        self.cache.release(request)
        self._waiting.stopped(request)

    def _chunk(self, request: Request, count: int) -> Chunk:
        return Chunk(request, request.computed, count, tuple(self.cache.table(request).extents))


def _row_order(chunk: Chunk) -> tuple[object, ...]:
    """By adapters, then by place in the cache: neighbours there are read as one tensor."""
    return (chunk.request.mix.parts, chunk.extents[0][0], chunk.request.request_id)
