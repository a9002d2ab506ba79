"""What is asked of the engine: a prompt, how to sample, which adapters; and what comes back. No torch.

A request keeps its own state: all tokens so far, and how many of them have their keys and values in the cache. There
are no phases: the computed tokens catch up with the tokens, and where they have, the next token is sampled.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from tunesmith.errors import ServingError

FinishReason = Literal["stop", "length", "cancelled", "error"]

MAX_LOGPROBS = 50
"""Most alternatives reported for a token."""
MAX_STOPS = 16
MAX_BIASED_TOKENS = 1024


@dataclass(frozen=True)
class SamplingParameters:
    """How the tokens of an answer are chosen; the names are those of OpenAI's API and vLLM's.

    The order: `logit_bias`, then penalties, then `temperature`, `min_p`, `top_k`, `top_p`. Log-probabilities are those
    of the model itself, before any of it.

    Args:
        max_tokens: the longest answer, a stop token included.
        temperature: divides the logits; 0 takes the likeliest token.
        top_p: sample among the likeliest tokens that hold this share of the probability (1904.09751, section 3.1).
        top_k: sample among this many of the likeliest; 0 is all.
        min_p: leave out tokens with less than this share of the likeliest one's probability (2407.01082, section 3).
        presence_penalty: subtracted from the logit of each token that the answer holds already.
        frequency_penalty: subtracted as often as the answer holds it.
        repetition_penalty: divides positive logits and multiplies negative ones of tokens in prompt or answer
            (1909.05858, section 4.1).
        logit_bias: added to the logits of these token ids.
        stop_token_ids: tokens that end the answer; None for those of the model's template.
        stop: texts that end the answer; it ends before them.
        seed: makes the sampling repeatable, whoever else is served at the same time; None draws one.
        logprobs: how many of the likeliest tokens to report with each token's own log-probability; None for none.
        prompt_logprobs: the same for the tokens of the prompt.

    Raises:
        ServingError: a value is out of range.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop_token_ids: tuple[int, ...] | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and low <= value <= high):
                raise ServingError(f"{name} is {value!r}; it must be from {low:g} to {high:g}", place=name)
        for name in _WHOLE:
            if (value := getattr(self, name)) is not None and type(value) is not int:
                raise ServingError(f"{name} is {value!r}; it must be a whole number", place=name)
        if self.top_p == 0 or self.repetition_penalty == 0:
            name = "top_p" if self.top_p == 0 else "repetition_penalty"
            raise ServingError(f"{name} is 0; it must be more", place=name)
        if len(self.stop) > MAX_STOPS or not all(isinstance(text, str) and text for text in self.stop):
            raise ServingError(f"stop holds at most {MAX_STOPS} texts, none of them empty", place="stop")
        if len(self.logit_bias) > MAX_BIASED_TOKENS:
            raise ServingError(f"logit_bias holds at most {MAX_BIASED_TOKENS} tokens", place="logit_bias")
        for token_id, bias in self.logit_bias.items():
            if type(token_id) is not int or token_id < 0 or not _is_number(bias) or not -100 <= bias <= 100:
                raise ServingError("logit_bias maps token ids to numbers from -100 to 100", place="logit_bias")

    @property
    def has_penalties(self) -> bool:
        """Whether the logits depend on the tokens so far."""
        return bool(self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1.0)


_RANGES = (
    ("max_tokens", 1, 1 << 24),
    ("temperature", 0.0, 100.0),
    ("top_p", 0.0, 1.0),
    ("top_k", 0, 1 << 24),
    ("min_p", 0.0, 1.0),
    ("presence_penalty", -2.0, 2.0),
    ("frequency_penalty", -2.0, 2.0),
    ("repetition_penalty", 0.0, 10.0),
    ("seed", -(1 << 63), (1 << 63) - 1),
    ("logprobs", 0, MAX_LOGPROBS),
    ("prompt_logprobs", 0, MAX_LOGPROBS),
)
_WHOLE = ("max_tokens", "top_k", "seed", "logprobs", "prompt_logprobs")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Mix:
    """What a request is computed with beside the base model: adapters, each times a scale.

    Args:
        parts: (number of the adapter's version in the bank, scale); empty for the base alone.
        salt: differs where keys and values differ: the contents' digests and the scales. Two mixes with one salt may
            share cached blocks.
        owner: whom the work is counted to when requests wait: the adapters' names.
    """

    parts: tuple[tuple[int, float], ...] = ()
    salt: bytes = b""
    owner: str = ""


BASE = Mix()


@dataclass(eq=False)
class Request:
    """One answer under way.

    Args:
        request_id: unique among the unfinished ones.
        prompt_ids: the prompt; at least one token.
        sampling: how to choose.
        mix: adapters.
        stop_token_ids: resolved: what ends this answer.
        seed: resolved: of this answer's draws.

    Attributes:
        token_ids: prompt and answer so far.
        computed: how many of them have keys and values in the cache.
        counts: how often the answer holds each token; kept where a penalty needs it.
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParameters
    mix: Mix = BASE
    stop_token_ids: frozenset[int] = frozenset()
    seed: int = 0

    def __post_init__(self) -> None:
        self.token_ids: list[int] = list(self.prompt_ids)
        self.computed = 0
        self.cached = 0
        self.preemptions = 0
        self.counts: Counter[int] = Counter()

    @property
    def answer_length(self) -> int:
        """Tokens sampled so far."""
        return len(self.token_ids) - len(self.prompt_ids)

    @property
    def longest(self) -> int:
        """Tokens of prompt and answer, if the answer becomes as long as it may."""
        return len(self.prompt_ids) + self.sampling.max_tokens

    @property
    def scores_prompt(self) -> bool:
        """Whether each token of the prompt is to be scored; then none of it may come from the cache."""
        return self.sampling.prompt_logprobs is not None

    def append(self, token_id: int) -> None:
        """Adds a sampled token."""
        self.token_ids.append(token_id)
        if self.sampling.has_penalties:
            self.counts[token_id] += 1


@dataclass(frozen=True)
class TokenLogprobs:
    """What the model thought of a token before it came.

    Args:
        token_id: the token.
        logprob: its log-probability in nats.
        rank: how many tokens were at least as likely; 1 is the likeliest.
        top: (token id, log-probability) of the likeliest ones, in order.
    """

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Event:
    """What a step gave for one request.

    Args:
        request_id: whose.
        token_ids: new tokens; a stop token is not among them.
        text: new text, where the engine has a tokenizer. Text that may yet become a stop text is held back.
        logprobs: one for each new token, where asked for.
        prompt_logprobs: for the prompt's tokens from the second on, once, where asked for.
        finish_reason: set on the last event: stop, length, cancelled or error.
        prompt_tokens: length of the prompt.
        cached_tokens: how many of the prompt's tokens came from the cache.
        message: what went wrong, where `finish_reason` is error.
    """

    request_id: str
    token_ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    message: str = ""


@dataclass(frozen=True)
class Answer:
    """A whole answer.

    Args:
        token_ids: without the stop token.
        text: decoded, where the engine has a tokenizer; ends before a stop text.
        finish_reason: stop, length, cancelled or error.
        logprobs: one for each token, where asked for.
        prompt_logprobs: for the prompt's tokens from the second on, where asked for.
        cached_tokens: how many tokens of the prompt came from the cache.
        message: what went wrong, where the reason is error.
    """

    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    cached_tokens: int = 0
    message: str = ""
