"""Who is next among waiting requests, so that no adapter's users wait for another's flood. No torch.

Each owner has a queue and a counter of the tokens computed for it; the next request is the first of the owner with
the least. An owner that comes back from idleness starts at the least counter of those who are busy, so that nothing
is saved up. This is the Virtual Token Counter (Sheng et al., 2401.00588, algorithm 2).
"""

from __future__ import annotations

from collections import deque

from tunesmith.serving.request import Request


class FairQueue:
    """Waiting requests by owner (`request.mix.owner`)."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[Request]] = {}
        self._served: dict[str, float] = {}
        self._busy: dict[str, int] = {}
        self.tokens = 0

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def push(self, request: Request, *, first: bool = False) -> None:
        """Adds a request at the end of its owner's queue, or at its front if it was served before."""
        owner = request.mix.owner
        if owner not in self._queues and not self._busy.get(owner):
            active = [self._served[other] for other in {*self._queues, *self._busy}]
            self._served[owner] = max(self._served.get(owner, 0.0), min(active, default=0.0))
        queue = self._queues.setdefault(owner, deque())
        if first:
            queue.appendleft(request)
        else:
            queue.append(request)
        self.tokens += len(request.token_ids)

    def peek(self) -> Request | None:
        """The next request."""
        if not self._queues:
            return None
        # In a tie the owner that came first.
        return self._queues[min(self._queues, key=lambda owner: self._served[owner])][0]

    def remove(self, request: Request) -> bool:
        """Takes a request out; whether it was there."""
        queue = self._queues.get(request.mix.owner)
        if queue is None or request not in queue:
            return False
        queue.remove(request)
        self.tokens -= len(request.token_ids)
        if not queue:
            del self._queues[request.mix.owner]
        self._clean(request.mix.owner)
        return True

    def started(self, request: Request) -> None:
        """Says that a request of this owner is being computed."""
        self._busy[request.mix.owner] = self._busy.get(request.mix.owner, 0) + 1

    def stopped(self, request: Request) -> None:
        """Says that it is no longer."""
        owner = request.mix.owner
        self._busy[owner] -= 1
        if not self._busy[owner]:
            del self._busy[owner]
        self._clean(owner)

    def charge(self, request: Request, tokens: int) -> None:
        """Counts computed tokens to the request's owner."""
        self._served[request.mix.owner] += tokens

    def _clean(self, owner: str) -> None:
        """Counters of the absent go when nobody is left, else one for each name ever used would stay."""
        if not self._queues and not self._busy:
            self._served.clear()
        elif owner not in self._queues and owner not in self._busy:
            least = min(self._served[other] for other in {*self._queues, *self._busy})
            # Below the least it would be lifted to it anyway.
            if self._served[owner] <= least:
                del self._served[owner]
