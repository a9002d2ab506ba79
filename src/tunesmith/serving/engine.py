"""The engine: requests in, events out, one step at a time in the caller's thread.

    engine = Engine("smollm2-135m")
    engine.load_adapter("orders", "runs/demo/adapter")
    for answer in engine.generate(["What is 2+2?"], adapters="orders"):
        print(answer.text)

A step is: the scheduler's plan, one forward pass, one token for each request whose tokens are all computed.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunesmith.config import ModelSection
from tunesmith.data.records import Message
from tunesmith.data.template import ChatTemplate
from tunesmith.errors import ServingError
from tunesmith.models.backend import (
    RequestedPrecision,
    configure_cpu,
    memory_in_use_bytes,
    resolve_precision,
    select_device,
    total_memory_bytes,
)
from tunesmith.models.catalog import resolve_model
from tunesmith.models.folder import load_tokenizer
from tunesmith.models.loading import load_model, memory_errors, weights_digest
from tunesmith.serving.adapter_bank import Adapters, AdapterVersion
from tunesmith.serving.adapter_loading import prepare_adapter
from tunesmith.serving.kv_cache import KvCache
from tunesmith.serving.request import Answer, Event, FinishReason, Request, SamplingParameters, TokenLogprobs
from tunesmith.serving.rows import WantedRows
from tunesmith.serving.runner import Runner
from tunesmith.serving.sampling import logprobs, sample
from tunesmith.serving.scheduler import Chunk, Limits, Scheduler
from tunesmith.serving.text import AnswerText

Prompt = str | Sequence[int] | Sequence[Message]
"""A text (one user message where there is a template), token ids as they are, or a conversation."""

DEFAULT_CACHE_TOKENS = 16384
_CACHE_SHARE = 0.5


class Engine:
    """Answers many requests at once, each with adapters of its own, on one base model.

    Args:
        model: a catalog name, a hub id, a folder, or a model of transformers in memory, which the engine then has to
            itself until `close`.
        tokenizer: where the model is in memory; without one, prompts are token ids and there is no text.
        precision: fp32, bf16, fp16, or auto for the best of this device; of no effect on a model in memory.
        kv_cache_tokens: tokens whose keys and values are kept; None for 16,384 or one context, whichever is more,
            within half of the memory that is free.
        block_size: tokens of a cache block: what prefixes are shared by.
        prefix_cache: whether prompts with a common beginning share its keys and values.
        max_running: most requests computed at the same time.
        max_tokens_per_step: most tokens of a step; longer prompts are computed in chunks of what is left of it.
        max_waiting_requests: further requests are refused.
        max_waiting_tokens: likewise, by their tokens.

    Raises:
        ModelError: the model cannot be loaded, or not be served exactly; the message says why.
        ServingError: a setting is out of range.
    """

    def __init__(
        self,
        model: str | Path | PreTrainedModel,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        precision: RequestedPrecision = "auto",
        kv_cache_tokens: int | None = None,
        block_size: int = 16,
        prefix_cache: bool = True,
        max_running: int = 32,
        max_tokens_per_step: int = 256,
        max_waiting_requests: int = 1024,
        max_waiting_tokens: int = 1 << 20,
    ) -> None:
        limits = Limits(max_running, max_tokens_per_step, max_waiting_requests, max_waiting_tokens)
        if not 1 <= block_size <= 1024:
            raise ServingError(f"block_size is {block_size}; it must be from 1 to 1024", place="block_size")
        configure_cpu()
        self._folder: Path | None = None
        if isinstance(model, (str, Path)):
            device = select_device()
            self._folder = resolve_model(ModelSection(name=str(model)))
            tokenizer = load_tokenizer(self._folder) if tokenizer is None else tokenizer
            model = load_model(self._folder, precision=resolve_precision(precision, device), device=device)
        self.tokenizer = tokenizer
        self.template = None if tokenizer is None else ChatTemplate(tokenizer)
        self._runner = Runner(model)
        self._bank = self._runner.bank
        self._base_digest: str | None = None
        self.context = self._runner.context
        try:
            cache = KvCache(self._blocks(kv_cache_tokens, block_size), block_size, prefix_cache=prefix_cache)
            with memory_errors("hold the cache", place="kv_cache_tokens"):
                self._pool = self._runner.make_pool(cache.capacity)
        except BaseException:
            self._runner.close()  # the model is as it was
            raise
        self.scheduler = Scheduler(cache, limits)
        self._texts: dict[str, AnswerText] = {}
        self._scored: dict[str, int] = {}  # prompt tokens whose log-probability was reported
        self._pending: list[Event] = []
        self._numbered = 0

    def close(self) -> None:
        """Ends all requests and gives the model back as it was."""
        for request in self.scheduler.unfinished():
            self._finish(request, "cancelled")
        self._runner.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Adapters

    @property
    def adapters(self) -> dict[str, AdapterVersion]:
        """The current version of each adapter, by name."""
        return {name: self._bank.current(name) for name in self._bank.names}

    def load_adapter(self, name: str, folder: str | Path) -> AdapterVersion:
        """Reads, checks and publishes an adapter; under a name that exists it is a new version.

        Requests that began with the version before finish on it.

        Args:
            name: up to 128 letters, digits, `.`, `_` and `-`.
            folder: an adapter folder by Tunesmith or by stock PEFT.

        Raises:
            AdapterError: the name is none, the adapter cannot be read, does not fit, cannot be served exactly, or
                changes nothing.
            ContractError: it was trained with another base, template or tokenizer, or does not answer as it did then.
        """
        tokenizer = self.tokenizer
        version = prepare_adapter(
            self._runner, name, Path(folder), tokenizer=tokenizer, base_digest=self._digest_of_base
        )
        self._bank.publish(version)
        return version

    def rollback_adapter(self, name: str) -> AdapterVersion:
        """Makes the version before the last load the current one again.

        Raises:
            AdapterError: there is none.
        """
        return self._bank.rollback(name)

    def unload_adapter(self, name: str) -> None:
        """Takes a name away at once; requests under way finish, then the memory is free.

        Raises:
            AdapterError: there is none of this name.
        """
        self._bank.remove(name)

    # Requests

    def add_request(
        self,
        prompt: Prompt,
        sampling: SamplingParameters | None = None,
        *,
        adapters: Adapters = None,
        request_id: str | None = None,
        text: bool = False,
    ) -> str:
        """Puts a request into the queue; `step` will give its events.

        Args:
            prompt: text, token ids, or a conversation.
            sampling: how to choose tokens.
            adapters: a name, or names with scales; None for the base model.
            request_id: unique among the unfinished; made up if None.
            text: whether events carry text. They do too where the answer has a stop text.

        Returns:
            The request's id.

        Raises:
            QueueFullError: too many requests wait.
            ServingError: the request cannot be served; the message says why.
            AdapterError: there is no such adapter.
        """
        sampling = SamplingParameters() if sampling is None else sampling
        prompt_ids = self._encode(prompt)
        if request_id is None:
            self._numbered += 1
            request_id = f"request-{self._numbered}"
        stop_ids = sampling.stop_token_ids
        if stop_ids is None:
            stop_ids = () if self.template is None else self.template.stop_token_ids
        if (text or sampling.stop) and self.tokenizer is None:
            raise ServingError("text needs a tokenizer", place="stop", remedy="give the engine one")
        mix = self._bank.mix(adapters)
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        request = Request(request_id, prompt_ids, sampling, mix, frozenset(stop_ids), seed)
        self._check_length(request)
        self.scheduler.add(request)
        self._bank.acquire(mix)
        if text or sampling.stop:
            self._texts[request_id] = AnswerText(self._decode, sampling.stop)
        return request_id

    def cancel(self, request_id: str) -> bool:
        """Ends a request at once; its last event comes with the next step. False if there is none of this id."""
        request = self.scheduler.get(request_id)
        if request is None:
            return False
        self._pending.append(self._finish(request, "cancelled"))
        return True

    @property
    def has_work(self) -> bool:
        """Whether a step would do something."""
        return bool(self._pending) or not self.scheduler.is_idle

    def step(self) -> list[Event]:
        """Computes one step and gives what came of it, at most one event a request."""
        events, self._pending = self._pending, []
        plan = self.scheduler.schedule()
        if not plan.chunks:
            return events
        wanted = WantedRows(plan, self._scored)
        logits_PV = self._runner.run(plan, self._pool, self.scheduler.cache.block_size, wanted.all)
        scores = {chunk: self._score_prompt(chunk, wanted.of_prompt(chunk, logits_PV)) for chunk in wanted.scored}
        sampled, sampled_SV = wanted.sampled, wanted.of_samples(logits_PV)
        raw = {
            c: sampled_SV[i : i + 1].clone() for i, c in enumerate(sampled) if c.request.sampling.logprobs is not None
        }
        tokens = dict(zip(sampled, sample(sampled_SV, [chunk.request for chunk in sampled]), strict=True))
        for chunk in plan.chunks:
            event = self._event(chunk, tokens, raw.get(chunk), scores.get(chunk, ()))
            if event is not None:
                events.append(event)
        return events

    def generate(
        self,
        prompts: Iterable[Prompt],
        sampling: SamplingParameters | Sequence[SamplingParameters] | None = None,
        *,
        adapters: Adapters | list[Any] = None,
    ) -> list[Answer]:
        """The answer to each prompt, in the order of the prompts. Requests under way go on beside them.

        Args:
            prompts: texts, token ids, or conversations.
            sampling: for all, or one a prompt.
            adapters: for all; or a list with one entry a prompt, each a name, a tuple of names with scales, or None.

        Raises:
            ServingError: a request cannot be served.
        """
        prompts = list(prompts)
        per_prompt = adapters if isinstance(adapters, list) else [adapters] * len(prompts)
        samplings = list(sampling) if isinstance(sampling, Sequence) else [sampling] * len(prompts)
        if len(per_prompt) != len(prompts) or len(samplings) != len(prompts):
            raise ServingError("give one adapter and one sampling for each prompt, or one for all", place="generate")
        gathered: dict[str, list[Event]] = {}
        waiting = list(zip(prompts, samplings, per_prompt, strict=True))[::-1]
        order: list[str] = []
        others: list[Event] = []
        unfinished: set[str] = set()
        while waiting or unfinished:
            while waiting and self.scheduler.waiting < self.scheduler.limits.max_waiting_requests:
                prompt, chosen, mixed = waiting[-1]
                try:
                    order.append(self.add_request(prompt, chosen, adapters=mixed))
                except ServingError:
                    for request_id in order:
                        self.cancel(request_id)
                    raise
                waiting.pop()
                gathered[order[-1]] = []
                unfinished.add(order[-1])
            for event in self.step():
                gathered.get(event.request_id, others).append(event)
                if event.finish_reason is not None:
                    unfinished.discard(event.request_id)
        self._pending = others + self._pending
        return [
            self._answer(gathered[request_id], with_text=chosen is not None and bool(chosen.stop))
            for request_id, chosen in zip(order, samplings, strict=True)
        ]

    def check_integrity(self) -> None:
        """Raises AssertionError unless queue, cache and adapters agree; when idle, unless nothing is held."""
        self.scheduler.check_integrity()
        if self.scheduler.is_idle:
            self._bank.check_idle()
            assert not self._texts
            assert not self._scored

    # Within

    def _event(
        self, chunk: Chunk, tokens: dict[Chunk, int | None], logits_1V: Tensor | None, scores: tuple[TokenLogprobs, ...]
    ) -> Event | None:
        request = chunk.request
        samples = chunk in tokens
        token_id = tokens.get(chunk)
        if samples and token_id is None:
            return self._finish(request, "error", message="the model's logits are no finite numbers", scores=scores)
        self.scheduler.advance(chunk)
        if not samples:
            return Event(request.request_id, prompt_logprobs=scores) if scores else None
        assert token_id is not None
        noted = () if logits_1V is None else tuple(logprobs(logits_1V, [token_id], request.sampling.logprobs or 0))
        if token_id in request.stop_token_ids:
            return self._finish(request, "stop", scores=scores)
        request.append(token_id)
        text, stopped = "", False
        if (answer := self._texts.get(request.request_id)) is not None:
            text, stopped = answer.push(token_id)
        reason: FinishReason | None = "stop" if stopped else None
        if reason is None and len(request.token_ids) >= request.longest:
            reason = "length"
        if reason is not None:
            return self._finish(request, reason, (token_id,), text, noted, scores, stopped=stopped)
        return Event(request.request_id, (token_id,), text, noted, scores)

    def _finish(
        self,
        request: Request,
        reason: FinishReason,
        token_ids: tuple[int, ...] = (),
        text: str = "",
        noted: tuple[TokenLogprobs, ...] = (),
        scores: tuple[TokenLogprobs, ...] = (),
        *,
        stopped: bool = False,
        message: str = "",
    ) -> Event:
        self.scheduler.finish(request)
        self._bank.release(request.mix)
        self._scored.pop(request.request_id, None)
        answer = self._texts.pop(request.request_id, None)
        if answer is not None and not stopped:
            text += answer.finish()
        return Event(
            request.request_id, token_ids, text, noted, scores, reason, len(request.prompt_ids), request.cached, message
        )

    def _score_prompt(self, chunk: Chunk, logits_NV: Tensor) -> tuple[TokenLogprobs, ...]:
        request = chunk.request
        end = min(chunk.end, len(request.prompt_ids) - 1)
        first = end - len(logits_NV)
        self._scored[request.request_id] = end
        return tuple(
            logprobs(logits_NV, request.prompt_ids[first + 1 : end + 1], request.sampling.prompt_logprobs or 0)
        )

    def _answer(self, events: list[Event], *, with_text: bool) -> Answer:
        last = events[-1]
        token_ids = tuple(token for event in events for token in event.token_ids)
        text = "".join(event.text for event in events)
        if not with_text and self.tokenizer is not None:
            text = self._decode(list(token_ids))
        return Answer(
            token_ids,
            text,
            cast(FinishReason, last.finish_reason),
            tuple(noted for event in events for noted in event.logprobs),
            tuple(scored for event in events for scored in event.prompt_logprobs),
            last.cached_tokens,
            last.message,
        )

    def _encode(self, prompt: Prompt) -> tuple[int, ...]:
        if isinstance(prompt, str):
            prompt = [Message("user", prompt)]
        if any(isinstance(item, Message) for item in prompt):
            if self.template is None:
                raise ServingError("a text needs a tokenizer", place="prompt", remedy="give token ids")
            return tuple(self.template.encode_prompt(cast(Sequence[Message], prompt)))
        size = self._runner.vocabulary_size
        ids = tuple(cast(Sequence[int], prompt))
        if not ids or any(type(i) is not int or not 0 <= i < size for i in ids):
            raise ServingError(f"a prompt holds one or more token ids from 0 to {size - 1}", place="prompt")
        return ids

    def _check_length(self, request: Request) -> None:
        if self.context is not None and request.longest > self.context:
            raise ServingError(
                f"prompt ({len(request.prompt_ids)} tokens) and answer ({request.sampling.max_tokens}) are longer "
                f"than the model's context of {self.context}",
                place="max_tokens",
                remedy="shorten the prompt, or ask for fewer tokens",
            )

    def _decode(self, ids: list[int]) -> str:
        tokenizer: Any = self.tokenizer
        return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _digest_of_base(self) -> str | None:
        if self._base_digest is None and self._folder is not None:
            self._base_digest = weights_digest(self._folder)
        return self._base_digest

    def _blocks(self, kv_cache_tokens: int | None, block_size: int) -> int:
        if kv_cache_tokens is not None:
            if kv_cache_tokens < block_size:
                raise ServingError(f"kv_cache_tokens is {kv_cache_tokens}, less than a block", place="kv_cache_tokens")
            return kv_cache_tokens // block_size
        device = self._runner.device
        free = total_memory_bytes(device) - memory_in_use_bytes(device)
        fitting = int(_CACHE_SHARE * max(free, 0)) // self._runner.bytes_per_token
        wanted = max(DEFAULT_CACHE_TOKENS, self.context or 0)
        return max(1, min(wanted, fitting) // block_size)
