"""Greedy answers, streaming and likelihoods, against loops that do one thing at a time."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel

from tests.tiny import FAMILIES, tiny_model
from tunesmith.errors import ModelError
from tunesmith.models import generation
from tunesmith.models.generation import Answer, generate, stream, token_log_likelihood

PAD = 256
PROMPTS = [[72, 101, 108], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [200], [5, 4, 3, 2, 1], [9] * 30]


def greedy_without_cache(model: PreTrainedModel, prompt: list[int], count: int, stops: set[int]) -> Answer:
    """The plainest greedy loop: the whole text again for each token."""
    answer: list[int] = []
    for _ in range(count):
        with torch.no_grad():
            logits_V: Tensor = model(input_ids=torch.tensor([prompt + answer]), use_cache=False).logits[0, -1]
        token_id = int(logits_V.argmax())
        if token_id in stops:
            return Answer(tuple(answer), finished=True)
        answer.append(token_id)
    return Answer(tuple(answer), finished=False)


def stops_that_end_some(model: PreTrainedModel) -> list[int]:
    """A stop token that ends the second prompt's answer midway."""
    return [greedy_without_cache(model, PROMPTS[1], 6, set()).token_ids[3]]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_answers_are_those_of_one_prompt_at_a_time(family: str, batch_size: int) -> None:
    model = tiny_model(family)
    stops = stops_that_end_some(model)
    expected = [greedy_without_cache(model, prompt, 8, set(stops)) for prompt in PROMPTS]
    answers = generate(model, PROMPTS, max_new_tokens=8, stop_token_ids=stops, pad_token_id=PAD, batch_size=batch_size)
    assert answers == expected
    assert {answer.finished for answer in answers} == {True, False}


def test_each_prompt_has_its_own_limit() -> None:
    model = tiny_model()
    limits = [1, 7, 3, 2, 5]
    answers = generate(model, PROMPTS, max_new_tokens=limits, stop_token_ids=[], pad_token_id=PAD, batch_size=5)
    assert [len(answer.token_ids) for answer in answers] == limits


def test_settings_of_the_model_folder_do_not_apply_and_stay_as_they_were() -> None:
    model = tiny_model()
    plain = generate(model, PROMPTS, max_new_tokens=8, stop_token_ids=[], pad_token_id=PAD, batch_size=2)
    own = model.generation_config
    own.do_sample, own.temperature, own.repetition_penalty, own.no_repeat_ngram_size = True, 5.0, 3.0, 1
    own.max_length, own.eos_token_id = 4, list(range(200))
    model.train()
    assert generate(model, PROMPTS, max_new_tokens=8, stop_token_ids=[], pad_token_id=PAD, batch_size=2) == plain
    assert model.generation_config is own
    assert model.training


def test_a_peft_model_answers_with_its_adapter_and_keeps_its_settings() -> None:
    model = tiny_model()
    plain = generate(model, PROMPTS, max_new_tokens=6, stop_token_ids=[], pad_token_id=PAD, batch_size=5)
    own = model.generation_config
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    own.repetition_penalty = 5.0
    answers = generate(wrapped, PROMPTS, max_new_tokens=6, stop_token_ids=[], pad_token_id=PAD, batch_size=5)
    assert answers != plain
    assert answers == [greedy_without_cache(wrapped, prompt, 6, set()) for prompt in PROMPTS]
    assert model.generation_config is own


def test_no_prompts_give_no_answers() -> None:
    model = tiny_model()
    assert generate(model, [], max_new_tokens=3, stop_token_ids=[], pad_token_id=PAD, batch_size=4) == []


def test_a_prompt_that_leaves_no_room_is_named() -> None:
    model = tiny_model(max_position_embeddings=16)
    with pytest.raises(ModelError, match=r"prompt 2 needs 17 tokens.* holds 16"):
        generate(model, [[1], [2] * 16], max_new_tokens=3, stop_token_ids=[], pad_token_id=PAD, batch_size=4)
    with pytest.raises(ModelError, match="prompt 1 is empty"):
        generate(model, [[]], max_new_tokens=3, stop_token_ids=[], pad_token_id=PAD, batch_size=4)


def test_an_answer_ends_where_the_context_does() -> None:
    model = tiny_model(max_position_embeddings=16)
    answers = generate(model, [[1] * 14], max_new_tokens=9, stop_token_ids=[], pad_token_id=PAD, batch_size=4)
    assert (len(answers[0].token_ids), answers[0].finished) == (2, False)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_stream_is_the_greedy_answer(family: str) -> None:
    model = tiny_model(family)
    stops = stops_that_end_some(model)
    for prompt in PROMPTS:
        tokens = list(stream(model, prompt, max_new_tokens=8, stop_token_ids=stops))
        assert tuple(tokens) == greedy_without_cache(model, prompt, 8, set(stops)).token_ids


def test_the_stream_follows_a_model_that_changes_its_rotary_factor() -> None:
    factors = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [8.0] * 4}
    model = tiny_model("phi3", original_max_position_embeddings=16, rope_parameters=factors)
    expected = greedy_without_cache(model, PROMPTS[1], 12, set())
    assert tuple(stream(model, PROMPTS[1], max_new_tokens=12, stop_token_ids=[])) == expected.token_ids
    answers = generate(model, PROMPTS[1:2], max_new_tokens=12, stop_token_ids=[], pad_token_id=PAD, batch_size=1)
    assert answers == [expected]


def test_sampling_repeats_with_its_seed_and_differs_with_another() -> None:
    model = tiny_model()

    def sample(seed: int, top_p: float = 1.0) -> list[int]:
        return list(
            stream(model, [1, 2], max_new_tokens=20, stop_token_ids=[], temperature=1.0, top_p=top_p, seed=seed)
        )

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)
    assert sample(1, top_p=1e-9) == list(stream(model, [1, 2], max_new_tokens=20, stop_token_ids=[]))


def test_top_p_leaves_only_the_likeliest_tokens() -> None:
    logits_V = torch.tensor([0.1, 0.5, 0.3, 0.1]).log()
    generator = torch.Generator().manual_seed(0)
    chosen = {generation._choose(logits_V, 1.0, 0.7, generator) for _ in range(50)}
    assert chosen == {1, 2}


def test_a_stream_left_early_gives_the_model_back_as_it_was() -> None:
    model = tiny_model().train()
    tokens = stream(model, [1, 2], max_new_tokens=20, stop_token_ids=[])
    next(tokens)
    assert not torch.is_inference_mode_enabled()
    tokens.close()  # type: ignore[attr-defined]
    assert model.training


def naive_likelihood(model: PreTrainedModel, input_ids: list[int], labels: list[int]) -> tuple[float, int]:
    """All logits of one example, one label after the other."""
    with torch.no_grad():
        log_TV = model(input_ids=torch.tensor([input_ids]), use_cache=False).logits[0].double().log_softmax(-1)
    scored = [(t, label) for t, label in enumerate(labels) if t > 0 and label != -100]
    return -sum(float(log_TV[t - 1, label]) for t, label in scored), len(scored)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("by_forward", [False, True], ids=["head", "forward"])
def test_likelihood_is_that_of_a_naive_loop(family: str, by_forward: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "ROWS_AT_ONCE", 3)
    if by_forward:
        monkeypatch.setattr(generation, "label_head", lambda _: None)
    model = tiny_model(family)
    examples = [
        ([1, 2, 3, 4, 5, 6, 7], [-100, -100, 3, 4, -100, 6, 7]),
        ([9, 8, 7], [9, 8, 7]),
        ([5] * 12, [-100] * 11 + [5]),
        ([4, 4, 4, 4], [-100] * 4),
    ]
    scores = token_log_likelihood(model, examples, batch_size=3, pad_token_id=PAD)
    for (nll, count), (input_ids, labels) in zip(scores, examples, strict=True):
        expected_nll, expected_count = naive_likelihood(model, input_ids, labels)
        assert count == expected_count
        assert nll == pytest.approx(expected_nll, rel=1e-5, abs=1e-5)


def test_likelihood_works_through_a_peft_wrapper() -> None:
    model = get_peft_model(tiny_model(), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    ((nll, count),) = token_log_likelihood(model, [([1, 2, 3], [1, 2, 3])], batch_size=2, pad_token_id=PAD)
    expected_nll, expected_count = naive_likelihood(model, [1, 2, 3], [1, 2, 3])
    assert count == expected_count
    assert nll == pytest.approx(expected_nll, rel=1e-5)


def test_an_example_longer_than_the_context_is_named() -> None:
    model = tiny_model(max_position_embeddings=16)
    with pytest.raises(ModelError, match="example 1 needs 17 tokens"):
        token_log_likelihood(model, [([1] * 17, [1] * 17)], batch_size=2, pad_token_id=PAD)
