"""Each rule fires on a run made to have its fault, and none on healthy ones."""

import json
import math
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.config import TrainSection
from tunesmith.data.records import Place
from tunesmith.training.health import Advice, Health, LengthenWarmup, LowerLearningRate, StepFigures, StopEarly
from tunesmith.training.schedule import learning_rate_at, warmup_steps

Told = list[tuple[int, Advice]]


def make_health(total: int, **section: Any) -> Health:
    settings_ = TrainSection.model_validate(section)
    return Health(settings_, total_steps=total, warmup=warmup_steps(settings_, total))


def figures(step: int, loss: float, **changes: Any) -> StepFigures:
    usual: dict[str, Any] = {
        "grad_norm": 0.5,
        "learning_rate": 2e-4,
        "tokens": 500,
        "seconds": 1.0,
        "memory_bytes": 3 * 10**9,
        "places": (Place("train.jsonl", step),),
    }
    return StepFigures(step=step, loss=loss, **{**usual, **changes})


def feed(health: Health, losses: Iterable[float], **series: Sequence[Any]) -> Told:
    """The advice on steps with these losses, each with its step; `series` give other figures of each step."""
    told = []
    for step, loss in enumerate(losses, 1):
        one = figures(step, loss, **{name: values[step - 1] for name, values in series.items()})
        told += [(step, advice) for advice in health.observe_step(one)]
    return told


def codes(told: Told) -> list[str]:
    return [advice.finding.code for _, advice in told]


def falling(steps: int, noise: float = 0.3, *, seed: int = 0, start: float = 2.5, end: float = 0.8) -> list[float]:
    """A loss that falls steeply at first, with a noise that is normal on a log scale."""
    draw = random.Random(seed)
    return [(end + (start - end) * math.exp(-step / 8)) * math.exp(draw.gauss(0, noise)) for step in range(steps)]


# Healthy runs. Each family gives the losses of `steps` steps from a random generator.


def _shape(draw: random.Random, steps: int) -> Callable[[int], float]:
    start, end = draw.uniform(1.5, 4), draw.choice([0.02, 0.05, 0.3, 0.9, 1.4])
    fast, slow = draw.uniform(3, 15), draw.uniform(0.1, 1) * steps
    return lambda step: end + (start - end) * (0.8 * math.exp(-step / fast) + 0.2 * math.exp(-step / slow))


def _mixture(draw: random.Random) -> float:
    return draw.choice([0.3, 1, 1, 1, 2.5]) * math.exp(draw.gauss(0, 0.15))


FACTORS: dict[str, Callable[[random.Random], float]] = {
    "quiet": lambda draw: math.exp(draw.gauss(0, 0.05)),
    "usual": lambda draw: math.exp(draw.gauss(0, 0.2)),
    "noisy": lambda draw: math.exp(draw.gauss(0, 0.4)),
    "half up or down": lambda draw: 1 + draw.uniform(-0.5, 0.5),
    "long tail": lambda draw: 0.5 + draw.expovariate(2),
    "gamma": lambda draw: draw.gammavariate(4, 0.25),
    "easy and hard batches": _mixture,
    "answers of one token": lambda draw: math.exp(draw.gauss(0, 1.0)),
}


def _healthy(family: str, steps: int, base: Callable[[int], float], draw: random.Random) -> list[float]:
    if family in FACTORS:
        return [base(step) * FACTORS[family](draw) for step in range(steps)]
    if family == "flat after the first steps":
        return [(1.1 + 0.5 * math.exp(-step / 8)) * math.exp(draw.gauss(0, 0.3)) for step in range(steps)]
    if family == "learnt by heart":
        return [0.02 + abs(draw.gauss(0, 0.03)) + 3 * math.exp(-step / 8) for step in range(steps)]
    if family == "a stair each epoch":
        return [base(step) * 0.6 ** (3 * step // steps) * math.exp(draw.gauss(0, 0.3)) for step in range(steps)]
    assert family == "from zero on"
    return [0.0 for _ in range(steps)]


FAMILIES = (*FACTORS, "flat after the first steps", "learnt by heart", "a stair each epoch", "from zero on")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("steps", [20, 75, 400, 1500])
def test_healthy_runs_are_silent(family: str, steps: int) -> None:
    for seed in range(3):
        draw = random.Random(f"{family}/{steps}/{seed}")
        schedule = draw.choice(["linear", "cosine", "constant"])
        section = TrainSection(lr_scheduler_type=schedule, warmup_ratio=draw.choice([0.0, 0.03, 0.1]))
        health = Health(section, total_steps=steps, warmup=warmup_steps(section, steps))
        base, memory, told = _shape(draw, steps), 2.6e9, []
        for step, loss in enumerate(_healthy(family, steps, base, draw), 1):
            if draw.random() < 0.1:  # A batch longer than any before it.
                memory = max(memory, 2.6e9 + 1.8e9 * draw.random() * min(1, step / 80))
            tokens = draw.randint(200, 1000)
            told += health.observe_step(
                figures(
                    step,
                    loss,
                    grad_norm=(0.05 + 0.5 * loss) * math.exp(draw.gauss(0, 0.5)),
                    learning_rate=learning_rate_at(step - 1, section, steps),
                    tokens=tokens,
                    # The first step is slow, and some are because another program had the machine for a moment.
                    seconds=tokens
                    / 500
                    * math.exp(draw.gauss(0, 0.2))
                    * (4 if step == 1 or draw.random() < 0.01 else 1),
                    memory_bytes=int(memory),
                )
            )
            if step % max(5, steps // 8) == 0:
                told += health.observe_validation(step, base(step) * math.exp(draw.gauss(0, 0.02)))
        assert told == [], [advice.finding.message for advice in told]
        assert health.findings() == []


def test_a_long_run_is_silent() -> None:
    assert feed(make_health(5000), falling(5000, 0.4)) == []


def test_the_reference_run_is_silent() -> None:
    """Means of five steps each, from a real run on 600 examples with a learning rate of 2e-3."""
    means = [2.26, 0.588, 0.308, 0.222, 0.126, 0.117, 0.105, 0.069, 0.048, 0.040, 0.047, 0.054, 0.031, 0.055, 0.069]
    norms = [2.14, 0.605, 0.563, 0.546, 0.551, 0.522, 0.210, 0.317, 0.207, 0.529, 0.171, 0.121, 0.156, 0.071, 0.060]
    rates = [176, 559, 419, 617, 617, 586, 625, 629, 606, 602, 575, 569, 569, 596, 619]
    memory = [2.59, 3.08, 3.11, 3.43, 3.45, 4.04, 4.04, 4.05, 4.05, 4.06, 4.30, 4.30, 4.30, 4.30, 4.31]
    validation = {1: 2.450, 25: 0.130, 50: 0.061, 75: 0.053}
    for seed in range(20):
        draw = random.Random(seed)
        health, told = make_health(75, learning_rate=2e-3, lr_scheduler_type="cosine"), []
        for step in range(1, 76):
            at = (step - 1) // 5
            told += health.observe_step(
                figures(
                    step,
                    means[at] * math.exp(draw.gauss(0, 0.4)),
                    grad_norm=norms[at] * math.exp(draw.gauss(0, 0.5)),
                    seconds=500 / rates[at],
                    memory_bytes=int(memory[at] * 1e9),
                )
            )
            if step in validation:
                told += health.observe_validation(step, validation[step])
        assert told == []


# Series made to have a fault.


def test_a_divergence_within_the_warmup_asks_for_a_longer_one() -> None:
    health = make_health(400, warmup_steps=40)
    losses = falling(30, 0.2) + [5.0 + 0.1 * step for step in range(20)]
    ((step, advice),) = feed(health, losses)
    assert advice.finding.code == "loss-diverges"
    assert 30 < step <= 40
    assert "warmup is too short" in advice.finding.message
    assert "warmup of 40 steps" in advice.finding.message
    assert "about step 31" in advice.finding.message
    assert "train.warmup_steps" in advice.finding.remedy
    assert advice.action == LengthenWarmup(max(40, 2 * step - 40))


def test_a_divergence_long_after_the_warmup_asks_for_a_lower_rate() -> None:
    losses = falling(200) + [5.0] * 30
    ((step, advice),) = feed(make_health(400, warmup_steps=10), losses)
    assert (advice.finding.code, advice.action) == ("loss-diverges", LowerLearningRate(0.5))
    assert 200 < step <= 210
    assert "5 nats" in advice.finding.message
    assert "train.learning_rate" in advice.finding.remedy


def test_a_divergence_is_told_once_and_a_second_one_again() -> None:
    losses = falling(100, end=0.3) + [2.0] * 150 + [9.0] * 100
    told = feed(make_health(350), losses)
    assert codes(told) == ["loss-diverges", "loss-diverges"]
    assert [step // 100 for step, _ in told] == [1, 2]


def test_a_loss_that_leaves_the_untrained_models_at_once_diverges() -> None:
    told = feed(make_health(200), [2.5, 4.0, 7.0] + [9.0 + 0.1 * (step % 3) for step in range(40)])
    assert codes(told)[:1] == ["loss-diverges"]
    assert isinstance(told[0][1].action, LengthenWarmup)


def test_data_in_its_order_may_become_harder() -> None:
    losses = falling(150, end=0.5) + [1.6] * 100
    assert codes(feed(make_health(250), losses)) == ["loss-diverges"]
    assert "loss-diverges" not in codes(feed(make_health(250, train_sampling_strategy="sequential"), losses))


@pytest.mark.parametrize("period", [2, 12, 20])
def test_oscillation(period: int) -> None:
    draw = random.Random(0)
    losses = [math.exp(0.8 * math.sin(2 * math.pi * step / period + 0.8) + draw.gauss(0, 0.1)) for step in range(200)]
    told = [
        one for one in feed(make_health(200), falling(20, end=1) + losses) if one[1].finding.code != "loss-diverges"
    ]
    assert codes(told) == ["loss-oscillates"]
    assert told[0][1].action == LowerLearningRate(0.5)
    assert told[0][1].finding.evidence


def test_a_spike_names_its_examples() -> None:
    losses = falling(60, 0.2, end=0.2)
    losses[40] = 4.0
    health = make_health(60)
    places = [(Place("train.jsonl", step), Place("other.jsonl", 7)) for step in range(60)]
    ((_, advice),) = feed(health, losses, places=places)
    assert advice.finding.code == "loss-spike"
    assert "step 41" in advice.finding.message
    assert advice.finding.evidence == ("step 41, loss 4: train.jsonl:40, other.jsonl:7",)
    assert advice.action is None


def test_the_place_that_spikes_share_is_pointed_out() -> None:
    losses = falling(300, 0.2, end=0.2)
    places: list[tuple[Place, ...]] = [(Place("train.jsonl", step),) for step in range(300)]
    for step in (50, 60, 150):
        losses[step] = 4.0
        places[step] = (Place("train.jsonl", step), Place("bad.jsonl", 3))
    health = make_health(300)
    told = feed(health, losses, places=places)
    assert codes(told) == ["loss-spike", "loss-spike"]  # The one of step 61 follows too soon to be said aloud.
    (finding,) = health.findings()
    assert finding.evidence[-1] == "bad.jsonl:3 was in 3 of these steps"
    assert "3 times" in finding.message


def test_a_loss_that_stays_up_is_no_spike() -> None:
    assert "loss-spike" not in codes(feed(make_health(200), falling(100, 0.2, end=0.2) + [3.0] * 50))


def _validate(health: Health, validations: Sequence[float], train: Sequence[float], every: int = 25) -> Told:
    """Trains `every` steps at each of the `train` levels, and validates after each."""
    told, draw = [], random.Random(0)
    for number, (eval_loss, level) in enumerate(zip(validations, train, strict=True)):
        for step in range(number * every + 1, (number + 1) * every + 1):
            told += [(step, one) for one in health.observe_step(figures(step, level * math.exp(draw.gauss(0, 0.3))))]
        told += [(step, one) for one in health.observe_validation(step, eval_loss)]
    return told


def test_overfitting() -> None:
    validations, train = [1.5, 1.2, 1.1, 1.19, 1.3, 1.42, 1.6], [1.6, 1.2, 0.9, 0.6, 0.4, 0.25, 0.15]
    ((step, advice),) = _validate(make_health(175), validations, train)
    assert (advice.finding.code, advice.action) == ("overfitting", StopEarly())
    assert step in (125, 150)
    assert "lowest at step 75 (1.1)" in advice.finding.message
    assert advice.finding.evidence[0].startswith("step 100: validation 1.19")


@pytest.mark.parametrize(
    ("validations", "train"),
    [
        ([1.5, 1.2, 1.1, 1.12, 1.09, 1.11, 1.1], [1.6, 1.2, 0.9, 0.6, 0.4, 0.25, 0.15]),  # It stands still.
        ([1.5, 1.2, 1.1, 1.3, 1.4, 1.5, 1.6], [1.6, 1.2, 1.0, 1.1, 1.0, 1.1, 1.0]),  # Training does not fall.
        ([1.5, 1.2, 1.1, 1.3, 1.05, 1.2, 1.0], [1.6, 1.2, 0.9, 0.6, 0.4, 0.25, 0.15]),  # Single ones are up.
        ([0.9, 0.05, 0.04, 0.05, 0.05, 0.055, 0.05], [0.9, 0.06, 0.03, 0.02, 0.01, 0.005, 0.003]),  # It is low.
    ],
)
def test_no_overfitting(validations: list[float], train: list[float]) -> None:
    assert "overfitting" not in codes(_validate(make_health(175), validations, train))


def test_a_loss_that_does_not_move_is_a_plateau() -> None:
    draw = random.Random(0)
    told = feed(
        make_health(400, lr_scheduler_type="constant"), [2.4 * math.exp(draw.gauss(0, 0.1)) for _ in range(400)]
    )
    assert codes(told) == ["plateau"]
    assert "2.41 nats" in told[0][1].finding.message
    assert told[0][1].action is None


def test_no_plateau_at_a_low_rate_or_a_low_loss() -> None:
    low_rate = [2e-5] * 400
    assert feed(make_health(400), [2.4] * 400, learning_rate=low_rate) == []
    assert feed(make_health(400), [1.2] * 400) == []
    assert feed(make_health(400), [1.8 + 1.2 * math.exp(-step / 3) for step in range(400)]) == []


def test_gradients_that_explode() -> None:
    norms = [0.5 + 0.1 * (step % 5) for step in range(100)]
    norms[50] = 400.0  # One alone is none.
    norms[80:] = [100.0 + step for step in range(20)]
    ((step, advice),) = feed(make_health(100), falling(100), grad_norm=norms)
    assert (step, advice.finding.code) == (84, "gradients-explode")
    assert "103" in advice.finding.message


def test_gradients_that_vanish() -> None:
    norms = [0.5] * 40 + [1e-5] * 60
    assert codes(feed(make_health(100), [2.5] * 100, grad_norm=norms)) == ["gradients-vanish"]
    assert feed(make_health(100), falling(100, end=0.01), grad_norm=norms) == []


def test_throughput_that_drops_for_long() -> None:
    draw = random.Random(0)
    seconds = [math.exp(draw.gauss(0, 0.15)) for _ in range(300)]
    seconds[:3] = [20.0, 10.0, 5.0]
    seconds[90] = seconds[91] = 30.0
    assert feed(make_health(300), falling(300), seconds=seconds) == []
    seconds[150:250] = [2 * one for one in seconds[150:250]]
    ((step, advice),) = feed(make_health(300), falling(300), seconds=seconds)
    assert advice.finding.code == "throughput-drops"
    assert 155 < step <= 175
    # Short batches: fewer tokens a second, but no slower steps.
    tokens = [500] * 150 + [150] * 150
    assert feed(make_health(300), falling(300), tokens=tokens) == []


def test_memory_that_creeps() -> None:
    draw = random.Random(0)
    memory = [int(3e9 + 2e6 * step + draw.uniform(0, 2e7)) for step in range(600)]
    ((step, advice),) = feed(make_health(2000), falling(600), memory_bytes=memory)
    assert advice.finding.code == "memory-creeps"
    assert 275 <= step <= 350
    assert "at the end" in advice.finding.message
    levelling = [int(3e9 + 1.5e9 * (1 - math.exp(-step / 80))) for step in range(600)]
    assert feed(make_health(2000), falling(600), memory_bytes=levelling) == []


def test_few_steps_are_not_judged() -> None:
    assert feed(make_health(10), [2.5, 9.0, 1.0, 8.0, 9.0, 1.0, 20.0, 1.0, 30.0, 30.0]) == []


def test_figures_that_are_no_numbers_are_passed_over() -> None:
    health = make_health(100)
    assert feed(health, [math.nan, math.inf, *falling(60)], grad_norm=[1.0] * 30 + [math.inf] + [1.0] * 31) == []
    assert health.observe_validation(60, math.nan) == []
    json.dumps(health.to_dict(), allow_nan=False)


# A resumed run.


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), cut=st.integers(0, 249))
def test_a_resumed_run_judges_as_the_undisturbed_one(seed: int, cut: int) -> None:
    draw = random.Random(seed)
    steps = [
        figures(
            step,
            draw.choice([1, 1, 1, 12]) * loss + (4 if step > draw.choice([100, 180, 400]) else 0),
            grad_norm=draw.lognormvariate(0, 2),
            seconds=draw.choice([0.5, 1, 4]),
            memory_bytes=10**9 + step * 10**7,
            places=tuple(Place("train.jsonl", draw.randint(1, 30)) for _ in range(4)),
        )
        for step, loss in enumerate(falling(250, 0.2, seed=seed), 1)
    ]
    adapter = {"layer.lora_B.default.weight": torch.full((2, 2), draw.choice([0.0, 0.1]))}

    def observe(health: Health, one: StepFigures) -> list[Advice]:
        told = health.observe_step(one)
        if one.step % 20 == 0:
            told += health.observe_validation(one.step, 1 + abs(one.step - 80) / 100)
            told += health.observe_adapter(one.step, adapter)
        return told

    undisturbed = make_health(400)
    before = [observe(undisturbed, one) for one in steps[:cut]]
    kept = json.dumps(undisturbed.to_dict(), allow_nan=False)
    resumed = make_health(400)
    resumed.load_dict(json.loads(kept))
    assert [observe(resumed, one) for one in steps[cut:]] == [observe(undisturbed, one) for one in steps[cut:]]
    assert resumed.findings() == undisturbed.findings()
    assert resumed.to_dict() == undisturbed.to_dict()
    assert len(before) == cut


def test_what_is_kept_is_of_bounded_size() -> None:
    draw = random.Random(0)
    health = make_health(4000)
    sizes = []
    for step in range(1, 4001):
        loss = 30.0 if step % 25 == 0 else math.exp(draw.gauss(0, 0.2))
        health.observe_step(figures(step, loss, places=tuple(Place("t", 600 * step + n) for n in range(100))))
        if step in (2000, 4000):
            sizes.append(len(json.dumps(health.to_dict())))
    assert max(sizes) < 60_000
    assert sizes[1] < 1.1 * sizes[0]


def test_an_empty_memory_is_a_fresh_start() -> None:
    health = make_health(100)
    health.load_dict({})
    assert health.to_dict() == make_health(100).to_dict()
