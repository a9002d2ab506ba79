"""Scheduler and cache with a runner that remembers what every slot holds: nothing stale, shared wrongly or lost."""

from __future__ import annotations

import itertools
from collections import Counter
from hashlib import blake2b
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tunesmith.errors import QueueFullError, ServingError
from tunesmith.serving.kv_cache import KvCache
from tunesmith.serving.request import BASE, Mix, Request, SamplingParameters
from tunesmith.serving.scheduler import Chunk, Limits, Scheduler, StepPlan

MIXES = (BASE, Mix(((1, 1.0),), b"a", "a"), Mix(((2, 1.0),), b"b", "b"))


def next_token(mix: Mix, tokens: list[int]) -> int:
    """A model: the next token depends on the mix and on every token before."""
    return blake2b(mix.salt + bytes(tokens), digest_size=1).digest()[0] % 3


class FakeRunner:
    """Keeps in each slot what a cache would stand for there: the mix, the position, the tokens up to it."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.slots: dict[int, tuple[bytes, tuple[int, ...]]] = {}

    def run(self, plan: StepPlan) -> dict[Chunk, int]:
        for chunk in plan.chunks:
            blocks = [block for first, count in chunk.extents for block in range(first, first + count)]
            slots = [block * self.block_size + i for block in blocks for i in range(self.block_size)]
            tokens, salt = chunk.request.token_ids, chunk.request.mix.salt
            for position in range(chunk.start):
                assert self.slots[slots[position]] == (salt, tuple(tokens[: position + 1])), "a stale slot is read"
            for position in range(chunk.start, chunk.end):
                self.slots[slots[position]] = (salt, tuple(tokens[: position + 1]))
        # Only after all have written: whoever overwrote another's slot is found out in the next step.
        return {c: next_token(c.request.mix, c.request.token_ids) for c in plan.chunks if c.samples}


class Serving(RuleBasedStateMachine):
    """Requests come, are cancelled and are computed, in any order."""

    @initialize(
        blocks=st.integers(4, 12),
        block_size=st.integers(1, 4),
        max_running=st.integers(1, 4),
        more=st.integers(0, 8),
        prefix_cache=st.booleans(),
    )
    def begin(self, blocks: int, block_size: int, max_running: int, more: int, prefix_cache: bool) -> None:
        limits = Limits(max_running, max_running + more, max_waiting_requests=6, max_waiting_tokens=60)
        self.cache = KvCache(blocks, block_size, prefix_cache=prefix_cache)
        self.scheduler = Scheduler(self.cache, limits)
        self.runner = FakeRunner(block_size)
        self.number = 0

    @rule(
        prompt=st.lists(st.integers(0, 1), min_size=1, max_size=20),
        mix=st.sampled_from(MIXES),
        tokens=st.integers(1, 9),
    )
    def add(self, prompt: list[int], mix: Mix, tokens: int) -> None:
        self.number += 1
        request = Request(str(self.number), tuple(prompt), SamplingParameters(max_tokens=tokens), mix)
        waiting = self.scheduler.waiting
        try:
            self.scheduler.add(request)
        except QueueFullError:
            assert waiting > 0
        except ServingError:
            assert request.longest - 1 > self.cache.capacity

    @precondition(lambda self: not self.scheduler.is_idle)
    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        self.scheduler.finish(data.draw(st.sampled_from(self.scheduler.unfinished())))

    @precondition(lambda self: not self.scheduler.is_idle)
    @rule(steps=st.integers(1, 4))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.one_step()

    def one_step(self) -> None:
        before = {r.request_id: len(r.token_ids) - r.computed for r in self.scheduler._running}
        plan = self.scheduler.schedule()
        assert self.scheduler.is_idle or plan.chunks, "work is left and nothing is planned"
        assert len(plan) <= self.scheduler.limits.max_tokens_per_step
        assert self.scheduler.running <= self.scheduler.limits.max_running
        assert len({c.request.request_id for c in plan.chunks}) == len(plan.chunks)
        mixes = [mix for mix, _ in plan.segments()]
        assert len(mixes) == len(set(mixes)), "rows of one mix are apart"
        planned = {c.request.request_id for c in plan.chunks}
        stalled = [r for r in self.scheduler._running if before.get(r.request_id) == 1 and r.request_id not in planned]
        assert not stalled, "a request that needs one token did not get it"
        sampled = self.runner.run(plan)
        for chunk in plan.chunks:
            self.scheduler.advance(chunk)
        for chunk, token in sampled.items():
            request = chunk.request
            request.append(token)
            if len(request.token_ids) == request.longest:
                self.scheduler.finish(request)

    @invariant()
    def sound(self) -> None:
        if hasattr(self, "scheduler"):
            self.scheduler.check_integrity()

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for _ in range(2000):
            if self.scheduler.is_idle:
                break
            self.one_step()
        assert self.scheduler.is_idle, "requests starve"
        self.scheduler.check_integrity()


Serving.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestServing = Serving.TestCase


def scheduler(blocks: int = 64, block_size: int = 4, **limits: Any) -> Scheduler:
    return Scheduler(KvCache(blocks, block_size), Limits(**{"max_running": 8, "max_tokens_per_step": 8, **limits}))


def request(name: str, prompt: int, tokens: int = 4, mix: Mix = BASE) -> Request:
    return Request(name, tuple(hash(name) % 97 + i for i in range(prompt)), SamplingParameters(max_tokens=tokens), mix)


def drive(one: Scheduler, steps: int) -> list[dict[str, int]]:
    """Computes steps and says how many tokens each request had in each."""
    seen = []
    for _ in range(steps):
        plan = one.schedule()
        seen.append({c.request.request_id: c.count for c in plan.chunks})
        for chunk in plan.chunks:
            done = chunk.samples
            one.advance(chunk)
            if done:
                chunk.request.append(1)
                if len(chunk.request.token_ids) == chunk.request.longest:
                    one.finish(chunk.request)
    return seen


def test_a_long_prompt_is_computed_in_chunks_and_stalls_nobody() -> None:
    one = scheduler()
    one.add(request("short", 3, tokens=20))
    drive(one, 1)
    one.add(request("long", 30))
    assert drive(one, 3) == [{"short": 1, "long": 7}] * 3


def test_blocks_that_run_out_take_the_newest_request_back() -> None:
    one = scheduler(blocks=4, max_tokens_per_step=20)
    old, new = request("old", 7, tokens=8), request("new", 7, tokens=8)
    one.add(old)
    one.add(new)
    drive(one, 2)
    assert old.preemptions == new.preemptions == 0
    drive(one, 2)
    assert (old.preemptions, new.preemptions) == (0, 1)
    drive(one, 20)
    assert one.is_idle
    assert len(new.token_ids) == new.longest
    one.check_integrity()


def test_a_common_beginning_is_computed_once_but_only_for_the_same_adapters() -> None:
    one = scheduler(max_tokens_per_step=64)
    prompt = tuple(range(18))
    for number, (mix, cached) in enumerate([(BASE, 0), (BASE, 16), (MIXES[1], 0), (MIXES[1], 16), (MIXES[2], 0)]):
        asked = Request(str(number), prompt, SamplingParameters(max_tokens=1), mix)
        one.add(asked)
        drive(one, 1)
        assert asked.cached == cached
    assert one.cache.kept_blocks == 3 * 4


def test_content_is_evicted_in_the_order_of_last_use() -> None:
    one = scheduler(blocks=8, max_tokens_per_step=64)
    prompts = {name: tuple(1000 * i + j for j in range(9)) for i, name in enumerate("abcd")}

    def ask(name: str) -> int:
        asked = Request(name, prompts[name], SamplingParameters(max_tokens=1))
        one.add(asked)
        drive(one, 1)
        return asked.cached

    assert [ask(name) for name in "abca"] == [0, 0, 0, 8]
    assert one.cache.kept_blocks == 6
    assert ask("d") == 0
    assert ask("a") == 8
    assert ask("b") < 8
    one.check_integrity()


def test_requests_with_room_lie_side_by_side() -> None:
    one = scheduler(blocks=64, max_tokens_per_step=64)
    for name in "abcd":
        one.add(request(name, 6, tokens=20))
    drive(one, 15)
    extents = [one.cache.table(r).extents for r in one.unfinished()]
    assert all(len(runs) == 1 for runs in extents)
    starts = [runs[0][0] for runs in extents]
    assert len({b - a for a, b in itertools.pairwise(starts)}) == 1


def test_a_flood_of_one_adapter_lets_others_through() -> None:
    one = scheduler(max_running=1, max_tokens_per_step=64)
    for number in range(10):
        one.add(request(f"flood{number}", 10, tokens=2, mix=MIXES[1]))
    drive(one, 2)
    for number in range(3):
        one.add(request(f"other{number}", 10, tokens=2, mix=MIXES[2]))
    order = [next(iter(step)) for step in drive(one, 12)[::2]]
    assert Counter(name[:5] for name in order) == {"flood": 3, "other": 3}


def test_nothing_is_saved_up_while_idle() -> None:
    one = scheduler(max_running=1, max_tokens_per_step=64)
    for number in range(6):
        one.add(request(f"early{number}", 10, tokens=2, mix=MIXES[1]))
    drive(one, 8)
    for number in range(4):
        one.add(request(f"later{number}", 10, tokens=2, mix=MIXES[2]))
    order = [next(iter(step)) for step in drive(one, 6)[::2]]
    assert Counter(name[:5] for name in order)["early"] >= 1


def test_the_queue_is_bounded_by_requests_and_tokens() -> None:
    one = scheduler(max_waiting_requests=2)
    one.add(request("a", 3))
    one.add(request("b", 3))
    with pytest.raises(QueueFullError, match="2 requests of 6 tokens"):
        one.add(request("c", 3))
    two = scheduler(max_waiting_tokens=10)
    two.add(request("a", 30))
    with pytest.raises(QueueFullError):
        two.add(request("b", 1))


def test_what_never_fits_is_refused_at_once() -> None:
    one = scheduler(blocks=2)
    with pytest.raises(ServingError, match="the cache holds 8"):
        one.add(request("a", 8, tokens=2))
    one.add(request("b", 8, tokens=1))
    with pytest.raises(ServingError, match="unfinished request 'b' already"):
        one.add(request("b", 1))
    with pytest.raises(ServingError, match="less than max_running"):
        Limits(max_running=8, max_tokens_per_step=4)
