"""Parity of two models: the figures against a plain computation, and what the bound lets pass."""

import copy
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

from tests.tiny import FAMILIES, tiny_model
from tunesmith.errors import ModelError
from tunesmith.models import parity
from tunesmith.models.generation import Answer
from tunesmith.models.parity import Parity, ParityBound, bound_for, compare, compare_models, record

PROMPTS = [[72, 101, 108], [1, 2, 3, 4, 5, 6, 7], [200]]
LONG = 8


def compared(first: torch.nn.Module, second: torch.nn.Module, stops: tuple[int, ...] = ()) -> Parity:
    return compare_models(
        first, second, PROMPTS, max_new_tokens=LONG, stop_token_ids=stops, pad_token_id=256, batch_size=2
    )


def output_weights(model: PreTrainedModel) -> torch.Tensor:
    """`weight_VD` of the last layer."""
    return cast(torch.Tensor, cast(Any, model).get_output_embeddings().weight)


def nudged(model: PreTrainedModel, size: float) -> PreTrainedModel:
    """A copy whose output weights are moved at random."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        weight = output_weights(other)
        weight += size * torch.randn(weight.shape, generator=generator)
    return other


def test_a_model_agrees_with_itself_exactly() -> None:
    model = tiny_model()
    result = compared(model, model)
    assert (result.max_kl, result.max_logit_difference, result.first_difference) == (0.0, 0.0, None)
    assert (result.top_token_agreement, result.answer_agreement) == (1.0, 1.0)
    assert (result.prompts, result.positions) == (3, 3 * (LONG + 1))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_adapter_keeps_the_fp32_bound(family: str) -> None:
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    wrapped = get_peft_model(tiny_model(family), config)
    recording = record(wrapped, PROMPTS, max_new_tokens=LONG, stop_token_ids=[], pad_token_id=256, batch_size=2)
    result = compare(recording, wrapped.merge_and_unload())
    assert result.failures(bound_for("fp32")) == []
    assert compare(recording, tiny_model(family)).failures(bound_for("bf16"))


def test_figures_are_those_of_a_plain_computation() -> None:
    first = tiny_model()
    second = nudged(first, 0.05)
    result = compared(first, second)
    kl, differences, gaps = [], [], []
    for prompt in PROMPTS:
        text = list(prompt)
        for _ in range(LONG + 1):
            with torch.no_grad():
                one, two = (m(input_ids=torch.tensor([text])).logits[0, -1].double() for m in (first, second))
            p, q = torch.softmax(one, -1), torch.softmax(two, -1)
            kl.append(float((p * (p / q).log()).sum()))
            differences.append((one - two).abs())
            if one.argmax() != two.argmax():
                gaps.append(float(one.max() - one[two.argmax()]))
            text.append(int(one.argmax()))
    assert result.mean_kl == pytest.approx(sum(kl) / len(kl), rel=1e-4)
    assert result.max_kl == pytest.approx(max(kl), rel=1e-4)
    assert result.mean_logit_difference == pytest.approx(float(torch.stack(differences).mean()), rel=1e-4)
    assert result.max_logit_difference == pytest.approx(float(torch.stack(differences).max()), rel=1e-4)
    assert gaps
    assert result.top_token_gaps == pytest.approx(gaps, rel=1e-3, abs=1e-5)


def test_answers_that_part_are_counted_with_their_gap() -> None:
    first = tiny_model()
    result = compared(first, nudged(first, 0.2))
    assert result.answer_agreement < 1
    assert result.first_difference == 0
    assert all(gap >= 0 for gap in result.answer_gaps)
    assert len(result.answer_gaps) == round((1 - result.answer_agreement) * 3)


def test_a_model_that_no_longer_stops_differs() -> None:
    first = tiny_model()
    stop = compared_first_token(first)
    second = copy.deepcopy(first)
    with torch.no_grad():
        output_weights(second)[stop] *= -1
    result = compared(first, second, stops=(stop,))
    assert result.first_difference == 0
    assert result.failures(bound_for("bf16"))


def compared_first_token(model: PreTrainedModel) -> int:
    with torch.no_grad():
        return int(model(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1].argmax())


def test_positions_are_limited_and_spread_over_the_prompts() -> None:
    model = tiny_model()
    settings: dict[str, Any] = {"max_new_tokens": LONG, "stop_token_ids": [], "pad_token_id": 256, "batch_size": 2}
    recording = record(model, PROMPTS, max_positions=5, **settings)
    assert sum(map(len, recording.compared)) == 5
    assert all(recording.compared)
    assert {len(logits_PV) for logits_PV in recording.logits.values()} <= {1, 2}
    assert compare(recording, model).positions == 5
    one = record(model, PROMPTS, max_positions=1, **settings)
    changed = compare(one, nudged(model, 0.2))
    assert changed.positions == 1
    assert len(changed.answer_gaps) >= 1


def test_the_bound_lets_near_ties_pass_and_nothing_else() -> None:
    bound = ParityBound(max_mean_kl=0.01, near_tie=0.5, min_top_token_agreement=0.9, min_answer_agreement=1.0)
    good = Parity(2, 10, 0.001, 0.1, 0.1, 3.0, (0.4, 0.1, 0.2), (0.3,), 1)
    assert good.failures(bound) == []
    assert good.top_token_agreement == pytest.approx(0.7)
    (failure,) = replace(good, answer_gaps=(0.3, 0.6)).failures(bound)
    assert "greedy answers" in failure
    (failure,) = replace(good, top_token_gaps=(0.6, 0.6)).failures(bound)
    assert "same likeliest token" in failure
    (failure,) = replace(good, mean_kl=float("nan")).failures(bound)
    assert "KL" in failure
    (failure,) = good.failures(replace(bound, max_logit_difference=1.0))
    assert "logit is 3, above 1" in failure


def test_a_model_gone_bad_is_not_taken_as_equal() -> None:
    first = tiny_model()
    second = copy.deepcopy(first)
    with torch.no_grad():
        output_weights(second)[5] = float("nan")
    assert len(compared(first, second).failures(bound_for("fp32"))) >= 2


def test_nothing_to_compare_is_an_error() -> None:
    model = tiny_model()
    with pytest.raises(ModelError, match="no prompt"):
        compare_models(model, model, [], max_new_tokens=2, stop_token_ids=[], pad_token_id=256, batch_size=2)
    with pytest.raises(ModelError, match="vocabularies of 264 and 272"):
        compared(model, tiny_model(vocab_size=272))


@pytest.mark.parametrize(
    ("first", "second", "parting"),
    [
        (Answer((1, 2), True), Answer((1, 2), True), None),
        (Answer((1, 2), True), Answer((1, 3), True), 1),
        (Answer((1,), True), Answer((1, 3), True), 1),
        (Answer((1, 3), False), Answer((), True), 0),
    ],
)
def test_where_two_answers_part(first: Answer, second: Answer, parting: int | None) -> None:
    assert parity._parting(first, second) == parting
