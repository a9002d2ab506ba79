"""Whether two models that should be one answer alike: an adapter on its base, and the merged weights.

The first model answers held-out prompts greedily. Both then read the same prompts and answers, and their next-token
distributions are compared at each token of the answers. The two need not be in memory together: `record` keeps what
is needed of the first, `compare` reads it with the second.

Shape suffixes: B batch, T tokens, P positions of one batch, N compared positions, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.errors import ModelError
from tunesmith.models.generation import Answer, device_of, generate, logits_at
from tunesmith.models.modules import evaluation_mode
from tunesmith.progress import track

MAX_POSITIONS = 512
"""Positions whose logits are kept: 50 MB in bfloat16 for a vocabulary of 49,152, 262 MB for one of 256,000."""


@dataclass(frozen=True)
class ParityBound:
    """How far two models may be apart.

    Args:
        max_mean_kl: highest mean of KL(first || second) over the compared positions, in nats.
        near_tie: two tokens whose logits are this close may change places; a larger gap counts as a difference.
        min_top_token_agreement: lowest share of positions with the same likeliest token, near ties aside.
        min_answer_agreement: lowest share of greedy answers that are the same, or part at a near tie.
        max_logit_difference: highest absolute difference of any logit; None leaves it open.
    """

    max_mean_kl: float
    near_tie: float
    min_top_token_agreement: float
    min_answer_agreement: float
    max_logit_difference: float | None = None


def bound_for(precision: str) -> ParityBound:
    """The bound for an adapter and its merged weights, by the precision that they are computed in.

    fp32: both compute the same sums in another order. On a 30-layer model with logits up to 42 the largest difference
    of a logit was 8e-5 and the mean divergence 1e-11; the bound leaves a factor of a hundred for larger models, and a
    wrong scale or a missing module is far outside it.

    bf16 (8 bits of mantissa): merging rounds the sum of base weight and update, where the adapter kept the two apart.
    On the same model the mean divergence was 0.002 nats, and the logits, rounded to steps of 0.125 themselves,
    differed by 0.14 in the mean. So two tokens less than a nat apart may change places, and from there on a greedy
    answer is another text: of free texts of 32 tokens every second one was. Counting that as a difference would
    refuse honest merges, so an answer may part at a near tie and nowhere else. fp16 (11 bits) rounds 8 times finer.

    Args:
        precision: "fp32", "bf16" or "fp16".
    """
    if precision == "fp32":
        return ParityBound(
            max_mean_kl=1e-6,
            near_tie=1e-2,
            min_top_token_agreement=1.0,
            min_answer_agreement=1.0,
            max_logit_difference=1e-2,
        )
    if precision == "fp16":
        return ParityBound(max_mean_kl=1e-3, near_tie=0.25, min_top_token_agreement=0.99, min_answer_agreement=0.9)
    return ParityBound(max_mean_kl=1e-2, near_tie=1.0, min_top_token_agreement=0.99, min_answer_agreement=0.9)


@dataclass(frozen=True)
class Parity:
    """How far the second model is from the first.

    Args:
        prompts: how many were answered.
        positions: how many next-token distributions were compared.
        mean_kl: mean KL(first || second) in nats.
        max_kl: the largest.
        mean_logit_difference: mean absolute difference of the logits.
        max_logit_difference: the largest.
        top_token_gaps: one number for each position with another likeliest token: by how much the first model
            preferred its own over the second's.
        answer_gaps: one number for each greedy answer that differs: by how much the second model preferred its own
            token over the first's where the answers part.
        first_difference: index of the first prompt answered differently; None if there is none.
    """

    prompts: int
    positions: int
    mean_kl: float
    max_kl: float
    mean_logit_difference: float
    max_logit_difference: float
    top_token_gaps: tuple[float, ...]
    answer_gaps: tuple[float, ...]
    first_difference: int | None

    @property
    def top_token_agreement(self) -> float:
        """Share of positions with the same likeliest token."""
        return 1 - len(self.top_token_gaps) / self.positions

    @property
    def answer_agreement(self) -> float:
        """Share of greedy answers that are the same, token by token."""
        return 1 - len(self.answer_gaps) / self.prompts

    def failures(self, bound: ParityBound) -> list[str]:
        """One line for each part of `bound` that is not kept; empty if the models agree."""
        top = 1 - _beyond(self.top_token_gaps, bound.near_tie) / self.positions
        same = 1 - _beyond(self.answer_gaps, bound.near_tie) / self.prompts
        aside = f"near ties (logits within {bound.near_tie:g}) aside"
        highest = [("the mean KL divergence", self.mean_kl, bound.max_mean_kl)]
        if bound.max_logit_difference is not None:
            highest.append(("the largest difference of a logit", self.max_logit_difference, bound.max_logit_difference))
        lowest = [
            (f"the share of positions with the same likeliest token, {aside},", top, bound.min_top_token_agreement),
            (f"the share of greedy answers that are the same, {aside},", same, bound.min_answer_agreement),
        ]
        # Written so that a figure that is not a number fails too.
        return [f"{name} is {value:.4g}, above {limit:g}" for name, value, limit in highest if not value <= limit] + [
            f"{name} is {value:.4g}, below {limit:g}" for name, value, limit in lowest if not value >= limit
        ]


@dataclass(frozen=True)
class Recording:
    """What the second model is compared with.

    Args:
        prompts: the token ids of each prompt.
        answers: the first model's greedy answers.
        compared: for each prompt, the positions of prompt and answer whose next-token logits are compared: the last of
            the prompt and all of the answer, or evenly spaced ones among them where those are more than allowed.
        logits: by prompt, the first model's `logits_PV` there, on the CPU, in the precision it computed them in.
        settings: the arguments of `generate`.
    """

    prompts: tuple[tuple[int, ...], ...]
    answers: tuple[Answer, ...]
    compared: tuple[tuple[int, ...], ...]
    logits: dict[int, Tensor]
    settings: dict[str, Any]


def compare_models(
    first: nn.Module,
    second: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_token_ids: Sequence[int],
    pad_token_id: int,
    batch_size: int,
) -> Parity:
    """Compares two models that are both in memory; see `record` and `compare`."""
    recording = record(
        first,
        prompts,
        max_new_tokens=max_new_tokens,
        stop_token_ids=stop_token_ids,
        pad_token_id=pad_token_id,
        batch_size=batch_size,
    )
    return compare(recording, second)


def record(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_token_ids: Sequence[int],
    pad_token_id: int,
    batch_size: int,
    max_positions: int = MAX_POSITIONS,
) -> Recording:
    """Answers `prompts` with the first model and keeps its logits at the answers' tokens.

    Args:
        model: the first model.
        prompts: token ids of held-out prompts, at least one.
        max_new_tokens: the longest answer.
        stop_token_ids: tokens that end an answer.
        pad_token_id: fills a batch.
        batch_size: prompts handled together.
        max_positions: positions compared over all prompts.

    Raises:
        ModelError: there is no prompt, or one does not fit the model's context.
    """
    if not prompts:
        raise ModelError("there is no prompt to compare the models on")
    settings: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "stop_token_ids": tuple(stop_token_ids),
        "pad_token_id": pad_token_id,
        "batch_size": batch_size,
    }
    answers = generate(model, prompts, what="Answering for parity (1 of 2)", **settings)
    compared = _choose_positions(prompts, answers, max_positions)
    texts = [(*prompt, *answer.token_ids) for prompt, answer in zip(prompts, answers, strict=True)]
    return Recording(
        prompts=tuple(tuple(prompt) for prompt in prompts),
        answers=tuple(answers),
        compared=compared,
        logits={i: logits_PV.cpu() for i, logits_PV in _logits(model, texts, compared)},
        settings=settings,
    )


def compare(recording: Recording, model: nn.Module) -> Parity:
    """Compares the second model with what was recorded of the first.

    Raises:
        ModelError: the two have different vocabularies.
    """
    answers = generate(model, recording.prompts, what="Answering for parity (2 of 2)", **recording.settings)
    partings = [_parting(a, b) for a, b in zip(recording.answers, answers, strict=True)]
    texts = [(*prompt, *answer.token_ids) for prompt, answer in zip(recording.prompts, recording.answers, strict=True)]
    wanted = [
        [*compared, *([] if parting is None else [len(prompt) - 1 + parting])]
        for prompt, compared, parting in zip(recording.prompts, recording.compared, partings, strict=True)
    ]
    distances = _Distances()
    answer_gaps = []
    stops = recording.settings["stop_token_ids"]
    for i, second_PV in _logits(model, texts, wanted):
        parting = partings[i]
        if parting is not None:
            own, other = (_tokens_at(answer, parting, stops) for answer in (answers[i], recording.answers[i]))
            answer_gaps.append(float(second_PV[-1, own].max() - second_PV[-1, other].max()))
        if i in recording.logits:
            distances.add(recording.logits[i].to(second_PV.device), second_PV)
    return Parity(
        prompts=len(texts),
        positions=len(distances.kl),
        mean_kl=_mean(distances.kl),
        max_kl=_max(distances.kl),
        mean_logit_difference=_mean(distances.mean_difference),
        max_logit_difference=_max(distances.max_difference),
        top_token_gaps=tuple(distances.top_token_gaps),
        answer_gaps=tuple(answer_gaps),
        first_difference=next((i for i, parting in enumerate(partings) if parting is not None), None),
    )


def mean_divergence(recording: Recording, model: nn.Module) -> float:
    """Mean KL(first || model) in nats over the recorded positions: with the base model, how much the adapter does."""
    texts = [(*prompt, *answer.token_ids) for prompt, answer in zip(recording.prompts, recording.answers, strict=True)]
    distances = _Distances()
    for i, other_PV in _logits(model, texts, recording.compared):
        distances.add(recording.logits[i].to(other_PV.device), other_PV)
    return _mean(distances.kl)


class _Distances:
    """Collects how far apart two models' logits are, one value a position."""

    def __init__(self) -> None:
        self.kl: list[float] = []
        self.mean_difference: list[float] = []
        self.max_difference: list[float] = []
        self.top_token_gaps: list[float] = []

    def add(self, first_PV: Tensor, second_PV: Tensor) -> None:
        """Adds P positions; `second_PV` may hold more, which are left out."""
        if first_PV.shape[-1] != second_PV.shape[-1]:
            raise ModelError(f"the models have vocabularies of {first_PV.shape[-1]} and {second_PV.shape[-1]} tokens")
        # One position at a time: in float64 a large vocabulary would take gigabytes.
        for first_V, second_V in zip(first_PV, second_PV[: len(first_PV)], strict=True):
            first_V, second_V = first_V.double(), second_V.double()
            log_first_V, log_second_V = first_V.log_softmax(-1), second_V.log_softmax(-1)
            self.kl.append(float((log_first_V.exp() * (log_first_V - log_second_V)).sum()))
            difference_V = (first_V - second_V).abs()
            self.mean_difference.append(float(difference_V.mean()))
            self.max_difference.append(float(difference_V.max()))
            top, other = int(first_V.argmax()), int(second_V.argmax())
            if top != other:
                self.top_token_gaps.append(float(first_V[top] - first_V[other]))


def _parting(first: Answer, second: Answer) -> int | None:
    """Index of the first token in which two answers differ, a stop included; None if they are the same."""
    if first == second:
        return None
    pairs = zip(first.token_ids, second.token_ids, strict=False)
    shorter = min(len(first.token_ids), len(second.token_ids))
    return next((i for i, (a, b) in enumerate(pairs) if a != b), shorter)


def _tokens_at(answer: Answer, index: int, stop_token_ids: Sequence[int]) -> list[int]:
    """The token at `index` of an answer; where it ended there, all that may have ended it."""
    return [answer.token_ids[index]] if index < len(answer.token_ids) else list(stop_token_ids)


def _beyond(gaps: Sequence[float], near_tie: float) -> int:
    return sum(not gap <= near_tie for gap in gaps)


def _choose_positions(
    prompts: Sequence[Sequence[int]], answers: Sequence[Answer], max_positions: int
) -> tuple[tuple[int, ...], ...]:
    """The positions compared, for each prompt; evenly spaced over all of them where there are too many."""
    pairs = [
        (i, position)
        for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
        for position in range(len(prompt) - 1, len(prompt) + len(answer.token_ids))
    ]
    count = min(max_positions, len(pairs))
    chosen = {pairs[k * len(pairs) // count] for k in range(count)}
    return tuple(tuple(sorted(position for i, position in chosen if i == index)) for index in range(len(prompts)))


def _logits(
    model: nn.Module, texts: Sequence[Sequence[int]], compared: Sequence[Sequence[int]]
) -> Iterator[tuple[int, Tensor]]:
    """Yields each text's index and its `logits_PV` at the compared positions; texts without any are left out."""
    device = device_of(model)
    with evaluation_mode(model):
        for i, text in enumerate(track(texts, "Comparing logits", total=len(texts), unit="prompts")):
            if not compared[i]:
                continue
            # One text at a time: padding would change the rounding, and with it what is measured.
            with torch.inference_mode():
                input_ids_1T = torch.tensor([text], device=device)
                logits_1PV = logits_at(model, input_ids_1T, torch.tensor(compared[i], device=device))
            yield i, logits_1PV[0]


def _mean(values: Sequence[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).mean())


def _max(values: Sequence[float]) -> float:
    # Python's max() would pass over a value that is not a number.
    return float(torch.tensor(values, dtype=torch.float64).max())
