from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from tunesmith.errors import ServingError
from tunesmith.serving.request import Request, SamplingParameters
from tunesmith.serving.sampling import logprobs, sample

LOGITS_V = torch.log(torch.tensor([0.4, 0.3, 0.2, 0.1]))


def request(seed: int = 0, prompt: tuple[int, ...] = (0,), answer: tuple[int, ...] = (), **sampling: Any) -> Request:
    made = Request("r", prompt, SamplingParameters(**sampling), seed=seed)
    for token in answer:
        made.append(token)
    return made


def drawn(count: int = 2000, **sampling: Any) -> Counter[int | None]:
    requests = [request(seed, temperature=1.0, **sampling) for seed in range(count)]
    return Counter(sample(LOGITS_V.repeat(count, 1), requests))


def test_greedy_takes_the_likeliest() -> None:
    assert sample(LOGITS_V[None].clone(), [request()]) == [0]


def test_frequencies_are_those_of_the_model() -> None:
    counts = drawn()
    for token, share in enumerate([0.4, 0.3, 0.2, 0.1]):
        assert counts[token] / 2000 == pytest.approx(share, abs=0.04)


@pytest.mark.parametrize(
    ("sampling", "left"),
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_p": 0.65}, {0, 1}),
        ({"top_p": 0.3}, {0}),
        ({"min_p": 0.6}, {0, 1}),
        ({"top_k": 3, "top_p": 0.7}, {0, 1}),  # 0.4 and 0.3 are 0.78 of what top_k leaves
        ({"logit_bias": {0: -100, 1: -100, 999: 5}}, {2, 3}),
    ],
)
def test_what_is_cut_never_comes(sampling: dict[str, Any], left: set[int]) -> None:
    assert set(drawn(300, **sampling)) == left


def test_a_large_vocabulary_is_cut_alike() -> None:
    logits_V = torch.zeros(1000)
    requests = [request(seed, temperature=1.0, top_p=0.5) for seed in range(400)]
    tokens = sample(logits_V.repeat(400, 1), requests)
    assert len(set(tokens)) > 150  # of 500: more than are looked at first
    assert max(Counter(tokens).values()) < 10


def test_a_draw_depends_on_seed_and_number_only() -> None:
    generator = torch.Generator().manual_seed(0)
    logits_PV = torch.randn(6, 50, generator=generator)
    kinds: list[dict[str, Any]] = [
        {},
        {"top_k": 5},
        {"top_p": 0.5},
        {"min_p": 0.1},
        {"temperature": 0.0},
        {"top_p": 0.9},
    ]
    requests = [request(i, **{"temperature": 0.8, **kind}) for i, kind in enumerate(kinds)]
    together = sample(logits_PV.clone(), requests)
    alone = [sample(logits_PV[i : i + 1].clone(), [one])[0] for i, one in enumerate(requests)]
    assert together == alone
    assert (
        len({sample(logits_PV[:1].clone(), [request(3, temperature=1.0, answer=(0,) * n)])[0] for n in range(20)}) > 3
    )


def test_penalties() -> None:
    def best(**sampling: Any) -> int | None:
        return sample(torch.tensor([[2.0, 1.5, -1.0]]), [request(answer=(0, 0), **sampling)])[0]

    assert best(presence_penalty=0.4) == 0
    assert best(presence_penalty=0.6) == 1
    assert best(frequency_penalty=0.2) == 0
    assert best(frequency_penalty=0.3) == 1
    # The prompt counts for repetition only: 2 / 1.5 < 1.5.
    one = request(prompt=(0,), repetition_penalty=1.5)
    assert sample(torch.tensor([[2.0, 1.5, -1.0]]), [one]) == [1]
    two = request(prompt=(0,), presence_penalty=2.0)
    assert sample(torch.tensor([[2.0, 1.5, -1.0]]), [two]) == [0]


def test_logits_that_are_no_numbers_harm_no_neighbour() -> None:
    logits_PV = torch.stack([LOGITS_V, torch.full((4,), float("nan")), LOGITS_V])
    requests = [request(1, temperature=1.0), request(2, temperature=1.0), request()]
    assert [token is None for token in sample(logits_PV, requests)] == [False, True, False]


def test_logprobs_are_the_models_own() -> None:
    (noted,) = logprobs(LOGITS_V[None] + 3, [2], 2)
    assert noted.logprob == pytest.approx(-1.6094, abs=1e-4)
    assert noted.rank == 3
    assert [token for token, _ in noted.top] == [0, 1]
    assert noted.top[0][1] == pytest.approx(-0.9163, abs=1e-4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": 0},
        {"max_tokens": 1.5},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"repetition_penalty": 0.0},
        {"presence_penalty": 3},
        {"logit_bias": {-1: 1.0}},
        {"logit_bias": {1: 101}},
        {"stop": ("",)},
        {"stop": ("x",) * 17},
        {"seed": 1 << 64},
        {"logprobs": 51},
        {"max_tokens": True},
    ],
)
def test_values_out_of_range_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ServingError) as caught:
        SamplingParameters(**wrong)
    assert next(iter(wrong)) in str(caught.value)
