"""Health on real runs of a tiny model: each fault is made, and healthy runs stay silent."""

import copy
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from tests.tiny import tiny_model
from tests.training.conftest import lora_model, make_examples
from tests.training.test_health import Told, codes, falling, feed, figures, make_health
from tunesmith.config import TrainSection
from tunesmith.data.batching import StepPlan, collate
from tunesmith.data.records import IGNORED_LABEL, Place, TokenizedExample
from tunesmith.training.health import Health, LengthenWarmup
from tunesmith.training.loss import summed_loss
from tunesmith.training.schedule import learning_rate_at, warmup_steps


def _sequences(count: int, seed: int = 0) -> list[TokenizedExample]:
    """Sequences with a rule that a tiny model learns: each multiple of a start, plus 3 for each position."""
    draw = random.Random(seed)
    examples = []
    for line in range(1, count + 1):
        start, length = draw.randrange(16), draw.randint(6, 20)
        ids = tuple((start * (at + 1) + 3 * at) % 64 for at in range(length))
        examples.append(TokenizedExample(ids, (IGNORED_LABEL,) * 2 + ids[2:], Place("train.jsonl", line)))
    return examples


def _train(
    model: nn.Module,
    examples: Sequence[TokenizedExample],
    steps: int,
    learning_rate: float,
    *,
    batch_size: int = 8,
    validation: Sequence[TokenizedExample] = (),
    scale: float = 1.0,
    **section: Any,
) -> tuple[Told, Health]:
    """A plain loop under health's eyes; `scale` times the learning rate is what the optimizer gets."""
    settings_ = TrainSection.model_validate({"learning_rate": learning_rate, **section})
    health = Health(settings_, total_steps=steps, warmup=warmup_steps(settings_, steps))
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), weight_decay=0.0)
    lengths = [len(one.input_ids) for one in examples]
    plan = StepPlan(lengths, micro_batch_size=batch_size, micro_batches=1, strategy="random", seed=0)
    told: Told = []
    model.train()
    for step in range(steps):
        rate = learning_rate_at(step, settings_, steps)
        optimizer.param_groups[0]["lr"] = rate * scale
        batch = collate([examples[index] for index in plan.step(step)[0]], 0)
        loss = summed_loss(model, batch) / batch.target_count
        loss.backward()
        norm = float(nn.utils.clip_grad_norm_(trained.values(), 1.0))
        optimizer.step()
        optimizer.zero_grad()
        advice = health.observe_step(
            figures(step + 1, loss.item(), grad_norm=norm, learning_rate=rate, places=batch.places)
        )
        if validation and step % 10 == 9:
            with torch.no_grad():
                held_out = collate(validation, 0)
                eval_loss = summed_loss(model, held_out).item() / held_out.target_count
            advice += health.observe_validation(step + 1, eval_loss)
        if step % 10 == 9:
            advice += health.observe_adapter(step + 1, trained)
        told += [(step + 1, one) for one in advice]
    return told, health


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def pretrained() -> nn.Module:
    """A tiny model that knows the rule of `_sequences`."""
    model = tiny_model()
    _train(model, _sequences(400, seed=1), 120, 5e-3, batch_size=16, lr_scheduler_type="constant")
    return model


def _with_lora(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted: nn.Module = get_peft_model(copy.deepcopy(model), config)
    return adapted


def test_a_real_healthy_run_is_silent(pretrained: nn.Module) -> None:
    validation = _sequences(16, seed=3)
    told, health = _train(_with_lora(pretrained), _sequences(100), 60, 1e-3, validation=validation, warmup_steps=3)
    assert told == []
    told, _ = _train(tiny_model(), _sequences(200), 120, 5e-3, validation=validation)  # From nothing.
    assert told == []
    assert health.findings() == []


def test_a_learning_rate_far_too_high_diverges(pretrained: nn.Module) -> None:
    told, health = _train(_with_lora(pretrained), _sequences(100), 60, 0.3)
    assert "loss-diverges" in codes(told)
    first = next(advice for _, advice in told if advice.finding.code == "loss-diverges")
    assert isinstance(first.action, LengthenWarmup)
    assert "loss-diverges" in [finding.code for finding in health.findings()]


def test_a_rate_beyond_what_the_whole_batch_bears_oscillates() -> None:
    # Where it begins to swing differs between machines; one of these does, and none at a tenth of it.
    few = _sequences(16)

    def told_at(rate: float) -> list[str]:
        return codes(_train(tiny_model(), few, 180, rate, batch_size=16, lr_scheduler_type="constant")[0])

    assert any("loss-oscillates" in told_at(rate) for rate in (0.06, 0.08, 0.07, 0.1, 0.05, 0.12, 0.09, 0.15))
    assert told_at(0.006) == []


def test_noise_learnt_by_heart_is_overfitting() -> None:
    told, _ = _train(tiny_model(), make_examples(16, seed=1), 80, 5e-3, validation=make_examples(24, seed=2))
    assert "overfitting" in codes(told)


def test_a_garbage_example_is_named(pretrained: nn.Module) -> None:
    examples = _sequences(96)
    garbage = make_examples(8, seed=9)[0].input_ids
    examples[40] = TokenizedExample(garbage, garbage, Place("train.jsonl", 41))
    told, health = _train(_with_lora(pretrained), examples, 72, 5e-4, warmup_steps=3)
    assert set(codes(told)) == {"loss-spike"}
    (finding,) = health.findings()
    assert all("train.jsonl:41" in line for line in finding.evidence), finding


def test_an_adapter_that_does_not_move_is_dead() -> None:
    told, _ = _train(lora_model(), make_examples(32), 40, 1e-3, scale=0.0)
    ((step, advice),) = told
    assert (step, advice.finding.code) == (20, "dead-adapter")
    assert "the adapter is dead" in advice.finding.message


def test_a_frozen_part_of_the_adapter_is_named() -> None:
    model = lora_model()
    for name, value in model.named_parameters():
        if "layers.1.self_attn.q_proj.lora_B" in name:
            value.register_hook(torch.zeros_like)
    told, _ = _train(model, make_examples(32), 40, 1e-3)
    ((_, advice),) = told
    assert "1 of 14 adapter parts are dead" in advice.finding.message
    assert any("layers.1.self_attn.q_proj.lora_B" in line for line in advice.finding.evidence)


def test_weights_that_stop_moving_are_told() -> None:
    health = make_health(100)
    adapter = {"layer.lora_B.default.weight": torch.ones(2, 2)}
    told = []
    for step, loss in enumerate(falling(60), 1):
        health.observe_step(figures(step, loss))
        adapter["layer.lora_B.default.weight"] += 1e-3 if step <= 30 else 0.0
        if step % 10 == 0:
            told += [(step, advice) for advice in health.observe_adapter(step, adapter)]
    ((step, advice),) = told
    assert step == 40
    assert "do not move" in advice.finding.message


def test_other_methods_than_lora_are_not_judged_by_their_zeros() -> None:
    health = make_health(100)
    feed(health, falling(60))
    assert health.observe_adapter(60, {"prompt.weight": torch.zeros(2, 2)}) == []
