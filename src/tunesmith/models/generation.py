"""Answers and likelihoods from a causal language model: token ids in, token ids out.

`generate` answers many prompts greedily, in batches; `stream` yields one answer token by token; `token_log_likelihood`
scores given texts. The generation settings that a model folder carries (sampling, repetition penalty, length limits)
never apply here: an evaluation must give the same answers for the base model and for the tuned one.

Shape suffixes: B batch, T tokens, P positions, N labelled tokens, C some of them,
H hidden size, V vocabulary.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList

from tunesmith.errors import ModelError
from tunesmith.like_lengths import batches_of_like_length
from tunesmith.models.folder import context_length
from tunesmith.models.halving import in_halves
from tunesmith.models.label_head import label_head
from tunesmith.models.modules import evaluation_mode, unwrapped
from tunesmith.progress import task

IGNORED_LABEL = -100
"""Label of a token that is not scored; PyTorch's default. The same as in `data.records`, which is not imported here."""

LOGITS_AT_ONCE = 2**27
"""Most logits that scoring holds together: 256 MB in bfloat16. Batches are made smaller to keep to it."""

TOKENS_AT_ONCE = 1 << 14
"""Most tokens that are scored together."""

ROWS_AT_ONCE = 512
"""Rows of logits turned into float32 together."""


@dataclass(frozen=True)
class Answer:
    """One generated answer.

    Args:
        token_ids: the answer's tokens, without the stop token.
        finished: whether the model stopped by itself; if not, the answer was cut at its limit.
    """

    token_ids: tuple[int, ...]
    finished: bool


def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int | Sequence[int],
    stop_token_ids: Sequence[int],
    pad_token_id: int,
    batch_size: int,
    what: str = "Generating",
) -> list[Answer]:
    """The greedy answer to each prompt, in the order of the prompts.

    Prompts of like length are answered together, padded on the left; which ones share a batch changes the logits by
    no more than rounding.

    Args:
        model: a causal model of transformers, or PEFT's wrapper of one.
        prompts: the token ids of each prompt.
        max_new_tokens: the longest answer, stop token included; one number, or one a prompt. An answer also ends
            where the model's context does.
        stop_token_ids: tokens that end an answer.
        pad_token_id: fills the batch; it is masked, so any id of the vocabulary does.
        batch_size: the most prompts answered together.
        what: what the progress line says.

    Raises:
        ModelError: a prompt is empty, or leaves no room for an answer in the model's context.
    """
    limits = _answer_limits(model, prompts, max_new_tokens)
    answers: dict[int, Answer] = {}
    with task(what, total=len(prompts), unit="answers") as progress, evaluation_mode(model), _neutral_settings(model):
        started, tokens = time.monotonic(), 0
        for indices in batches_of_like_length([len(prompt) for prompt in prompts], max_examples=batch_size):
            batch = in_halves(
                lambda some: _generate_batch(
                    model, [prompts[i] for i in some], [limits[i] for i in some], stop_token_ids, pad_token_id
                ),
                indices,
                what="answering",
            )
            answers.update(zip(indices, batch, strict=True))
            tokens += sum(len(answer.token_ids) + answer.finished for answer in batch)
            progress.advance(len(indices), note=f"{tokens / max(time.monotonic() - started, 1e-9):.0f} tokens/s")
    return [answers[i] for i in range(len(prompts))]


def stream(
    model: nn.Module,
    prompt_ids: Sequence[int],
    *,
    max_new_tokens: int,
    stop_token_ids: Sequence[int],
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
) -> Iterator[int]:
    """Yields one answer token by token, without its stop token, as soon as each is known.

    Args:
        model: a causal model of transformers, or PEFT's wrapper of one.
        prompt_ids: the prompt.
        max_new_tokens: the longest answer, stop token included; it also ends where the model's context does.
        stop_token_ids: tokens that end the answer.
        temperature: divides the logits before sampling; 0 takes the likeliest token.
        top_p: sample only among the likeliest tokens that hold this share of the probability
            (Holtzman et al., 2020, 1904.09751, section 3.1).
        seed: makes the sampling repeatable.

    Raises:
        ModelError: the prompt is empty, or leaves no room for an answer in the model's context.
    """
    (limit,) = _answer_limits(model, [prompt_ids], max_new_tokens)
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return _stream(model, list(prompt_ids), limit, frozenset(stop_token_ids), temperature, top_p, generator)


def token_log_likelihood(
    model: nn.Module,
    examples: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    batch_size: int,
    pad_token_id: int,
    what: str = "Scoring",
) -> list[tuple[float, int]]:
    """Negative log-likelihood of each example's labelled tokens.

    Padding is on the right and needs no mask: in a causal model no token sees what comes after it.

    Args:
        model: a causal model of transformers, or PEFT's wrapper of one.
        examples: (input ids, labels) of T tokens each. Label t belongs to token t and is compared with the logits of
            token t-1; `IGNORED_LABEL` is not scored, nor is the first token, which nothing predicts.
        batch_size: the most examples scored together; fewer where the vocabulary is large.
        pad_token_id: fills the batch.
        what: what the progress line says.

    Returns:
        For each example the sum in nats, and the number of tokens in it.

    Raises:
        ModelError: an example is longer than the model's context.
    """
    for i, (input_ids, _) in enumerate(examples):
        _check_length(model, f"example {i + 1}", len(input_ids))
    scores: dict[int, tuple[float, int]] = {}
    # Only where the model's own forward is needed do the logits of all positions exist at once.
    tokens_at_once = LOGITS_AT_ONCE // _config(model).vocab_size if label_head(model) is None else TOKENS_AT_ONCE
    with task(what, total=len(examples), unit="examples") as progress, evaluation_mode(model), torch.inference_mode():
        lengths = [len(input_ids) for input_ids, _ in examples]
        for indices in batches_of_like_length(lengths, max_examples=batch_size, max_tokens=tokens_at_once):
            batch = in_halves(
                lambda some: _score_batch(model, [examples[i] for i in some], pad_token_id), indices, what="scoring"
            )
            scores.update(zip(indices, batch, strict=True))
            progress.advance(len(indices))
    return [scores[i] for i in range(len(examples))]


def logits_at(model: nn.Module, input_ids_BT: Tensor, positions_P: Tensor) -> Tensor:
    """The next-token logits at some positions only, `logits_BPV`: the largest product of a small model is its last.

    Args:
        model: a causal model of transformers, or PEFT's wrapper of one.
        input_ids_BT: the tokens, padded on the right where lengths differ.
        positions_P: indices in [0, T), the same for every row.
    """
    causal = cast(Any, model)
    if causal._supports_logits_to_keep():
        logits_BPV = causal(input_ids=input_ids_BT, use_cache=False, logits_to_keep=positions_P).logits
    else:
        logits_BPV = causal(input_ids=input_ids_BT, use_cache=False).logits[:, positions_P]
    return cast(Tensor, logits_BPV)


class _RowLimits(StoppingCriteria):
    """Ends each row of a batch at its own length."""

    def __init__(self, ends_B: Tensor) -> None:
        self._ends_B = ends_B

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:  # noqa: ARG002
        return self._ends_B <= input_ids.shape[1]


def _generate_batch(
    model: nn.Module, prompts: list[Sequence[int]], limits: list[int], stop_token_ids: Sequence[int], pad_token_id: int
) -> list[Answer]:
    device = device_of(model)
    width = max(map(len, prompts))
    input_ids_BT = torch.tensor([[pad_token_id] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask_BT = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    settings = _settings(
        do_sample=False,
        max_new_tokens=max(limits),
        eos_token_id=list(stop_token_ids) or None,
        pad_token_id=pad_token_id,
    )
    with torch.inference_mode():
        # Position ids follow from the mask within: padding does not count.
        output_BT = cast(Any, model).generate(
            input_ids=input_ids_BT,
            attention_mask=mask_BT,
            generation_config=settings,
            stopping_criteria=StoppingCriteriaList([_RowLimits(torch.tensor(limits, device=device) + width)]),
        )
    rows = output_BT[:, width:].tolist()
    return [_cut(row[:limit], frozenset(stop_token_ids)) for row, limit in zip(rows, limits, strict=True)]


def _cut(token_ids: list[int], stop_token_ids: frozenset[int]) -> Answer:
    for i, token_id in enumerate(token_ids):
        if token_id in stop_token_ids:
            return Answer(tuple(token_ids[:i]), finished=True)
    return Answer(tuple(token_ids), finished=False)


def _stream(
    model: nn.Module,
    token_ids: list[int],
    limit: int,
    stop_token_ids: frozenset[int],
    temperature: float,
    top_p: float,
    generator: torch.Generator,
) -> Iterator[int]:
    config = _config(model)
    # Models with a long and a short rotary factor (Phi-3) change it here, and keys in the cache hold the old one.
    factor_change = getattr(config, "original_max_position_embeddings", None)
    cache, unseen = DynamicCache(config=config), token_ids
    with evaluation_mode(model):
        for _ in range(limit):
            if len(token_ids) - 1 == factor_change:
                cache, unseen = DynamicCache(config=config), token_ids
            token_id = _choose(_next_logits(model, unseen, cache), temperature, top_p, generator)
            if token_id in stop_token_ids:
                return
            yield token_id
            token_ids = [*token_ids, token_id]
            unseen = [token_id]


@torch.inference_mode()
def _next_logits(model: nn.Module, token_ids: list[int], cache: DynamicCache) -> Tensor:
    """`logits_V` after `token_ids`, which are added to the cache. Inference mode must not stay on over a yield."""
    causal = cast(Any, model)
    keep = {"logits_to_keep": 1} if causal._supports_logits_to_keep() else {}
    input_ids_1T = torch.tensor([token_ids], device=device_of(model))
    output = causal(input_ids=input_ids_1T, past_key_values=cache, use_cache=True, **keep)
    return cast(Tensor, output.logits[0, -1].float())


@torch.inference_mode()
def _choose(logits_V: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    if temperature <= 0:
        return int(logits_V.argmax())
    probabilities_V, ids_V = torch.sort(torch.softmax(logits_V.cpu() / temperature, dim=-1), descending=True)
    # The token that carries the sum over top_p is still in; so one always is.
    outside_V = probabilities_V.cumsum(-1) - probabilities_V >= top_p
    outside_V[0] = False
    return int(ids_V[torch.multinomial(probabilities_V.masked_fill(outside_V, 0.0), 1, generator=generator)])


def _score_batch(
    model: nn.Module, examples: list[tuple[Sequence[int], Sequence[int]]], pad_token_id: int
) -> list[tuple[float, int]]:
    device = device_of(model)
    width = max(len(input_ids) for input_ids, _ in examples)
    input_ids_BT = torch.tensor([[*ids, *[pad_token_id] * (width - len(ids))] for ids, _ in examples])
    targets_BT = torch.tensor([[*labels[1:], *[IGNORED_LABEL] * (width - len(labels) + 1)] for _, labels in examples])
    scored_BT = targets_BT != IGNORED_LABEL
    counts = scored_BT.sum(dim=1).tolist()
    if not sum(counts):
        return [(0.0, 0)] * len(examples)
    head = label_head(model)
    if head is None:
        losses_N = _losses_by_forward(model, input_ids_BT.to(device), targets_BT.to(device))
    else:
        rows_N = scored_BT.flatten().nonzero()[:, 0]
        hidden_NH = head.hidden(input_ids_BT.to(device)).flatten(0, 1).index_select(0, rows_N.to(device))
        losses_N = head.losses(hidden_NH, targets_BT.flatten()[rows_N].to(device))
    sums = [float(losses.double().sum()) for losses in torch.split(losses_N, counts)]
    return list(zip(sums, counts, strict=True))


def _losses_by_forward(model: nn.Module, input_ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
    """The loss of each scored token, by the model's own `forward`."""
    scored_BT = targets_BT != IGNORED_LABEL
    positions_P = scored_BT.any(dim=0).nonzero()[:, 0]
    logits_BPV = logits_at(model, input_ids_BT, positions_P)
    scored_BP, targets_BP = scored_BT[:, positions_P], targets_BT[:, positions_P]
    chunks = zip(logits_BPV[scored_BP].split(ROWS_AT_ONCE), targets_BP[scored_BP].split(ROWS_AT_ONCE), strict=True)
    return torch.cat(
        [nn.functional.cross_entropy(logits_CV.float(), some_C, reduction="none") for logits_CV, some_C in chunks]
    )


def _answer_limits(
    model: nn.Module, prompts: Sequence[Sequence[int]], max_new_tokens: int | Sequence[int]
) -> list[int]:
    wanted = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    context = _context(model)
    limits = []
    for i, (prompt, limit) in enumerate(zip(prompts, wanted, strict=True)):
        if not prompt:
            raise ModelError(f"prompt {i + 1} is empty: it holds no token to answer")
        _check_length(model, f"prompt {i + 1}", len(prompt) + 1)
        limits.append(limit if context is None else min(limit, context - len(prompt)))
    return limits


def _check_length(model: nn.Module, name: str, length: int) -> None:
    context = _context(model)
    if context is not None and length > context:
        raise ModelError(
            f"{name} needs {length} tokens, and the model's context holds {context}",
            remedy="shorten it, set data.max_length, or choose a model with a longer context",
        )


def _config(model: nn.Module) -> Any:
    return cast(Any, model).config.get_text_config(decoder=True)


def _context(model: nn.Module) -> int | None:
    return context_length(cast(Any, model).config)


def device_of(model: nn.Module) -> torch.device:
    """The device that token ids must be on: that of the input embeddings."""
    return cast(Tensor, cast(Any, model).get_input_embeddings().weight).device


def _settings(**values: Any) -> GenerationConfig:
    return GenerationConfig(**values)


@contextmanager
def _neutral_settings(model: nn.Module) -> Iterator[None]:
    """Takes the model's own generation settings away within.

    transformers fills whatever a given `GenerationConfig` leaves open from them, so a `repetition_penalty` of the
    model's folder would apply. A PEFT wrapper has settings of its own beside those of the model within.
    """
    holders = list(dict.fromkeys([cast(Any, model), unwrapped(model)]))
    own = [holder.generation_config for holder in holders]
    for holder in holders:
        holder.generation_config = _settings()
    try:
        yield
    finally:
        for holder, settings in zip(holders, own, strict=True):
            holder.generation_config = settings
