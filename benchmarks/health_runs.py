"""What `tunesmith.training.health` costs, and how often it is wrong about healthy runs.

    python benchmarks/health_runs.py [RUNS]

Prints the time of one step's rules, of one look at an adapter of 210 modules (SmolLM2-135M, rank 16) and of saving its
memory, and for each family of healthy loss curves how many of RUNS runs (of 75, 400 and 1500 steps each) drew advice.
"""

import json
import math
import random
import sys
import time
from collections.abc import Callable

import torch

from tunesmith.config import TrainSection
from tunesmith.data.records import Place
from tunesmith.training.health import Advice, Health, StepFigures
from tunesmith.training.schedule import learning_rate_at

LENGTHS = (75, 400, 1500)
NOISE: dict[str, Callable[[random.Random], float]] = {
    "normal on a log scale, 5 %": lambda draw: math.exp(draw.gauss(0, 0.05)),
    "normal on a log scale, 20 %": lambda draw: math.exp(draw.gauss(0, 0.2)),
    "normal on a log scale, 40 %": lambda draw: math.exp(draw.gauss(0, 0.4)),
    "even, half up or down": lambda draw: 1 + draw.uniform(-0.5, 0.5),
    "exponential tail": lambda draw: 0.5 + draw.expovariate(2),
    "gamma, shape 4": lambda draw: draw.gammavariate(4, 0.25),
    "Student, 8 degrees": lambda draw: math.exp(0.2 * draw.gauss(0, 1) / math.sqrt(draw.gammavariate(4, 0.25))),
    "three kinds of batch": lambda draw: draw.choice([0.3, 1, 1, 1, 2.5]) * math.exp(draw.gauss(0, 0.15)),
    "answers of one token": lambda draw: math.exp(draw.gauss(0, 1.0)),
}


def healthy_run(noise: Callable[[random.Random], float], steps: int, draw: random.Random) -> tuple[list[Advice], float]:
    """The advice on one run, and the seconds that all its steps took the rules."""
    section = TrainSection(lr_scheduler_type=draw.choice(["linear", "cosine", "constant"]))
    health, advice, seconds = Health(section, total_steps=steps, warmup=0), [], 0.0
    start, end = draw.uniform(1.5, 4), draw.choice([0.02, 0.05, 0.3, 0.9, 1.4])
    fast, slow = draw.uniform(3, 15), draw.uniform(0.1, 1) * steps
    memory = 2.6e9
    for step in range(steps):
        base = end + (start - end) * (0.8 * math.exp(-step / fast) + 0.2 * math.exp(-step / slow))
        if draw.random() < 0.1:
            memory = max(memory, 2.6e9 + 1.8e9 * draw.random() * min(1, step / 80))
        tokens, loss = draw.randint(200, 1000), base * noise(draw)
        figures = StepFigures(
            step=step + 1,
            loss=loss,
            grad_norm=(0.05 + 0.5 * loss) * math.exp(draw.gauss(0, 0.5)),
            learning_rate=learning_rate_at(step, section, steps),
            tokens=tokens,
            seconds=tokens / 500 * math.exp(draw.gauss(0, 0.2)),
            memory_bytes=int(memory),
            places=tuple(Place("train.jsonl", draw.randint(1, 5000)) for _ in range(8)),
        )
        begun = time.perf_counter()
        advice += health.observe_step(figures)
        seconds += time.perf_counter() - begun
        if step % max(5, steps // 8) == 0:
            advice += health.observe_validation(step + 1, base * math.exp(draw.gauss(0, 0.02)))
    return advice, seconds


def adapter_cost() -> tuple[float, float, int]:
    """Seconds of one look at an adapter, seconds of saving what is remembered, and its bytes."""
    health = Health(TrainSection(), total_steps=1000, warmup=0)
    names = [f"layers.{layer}.{name}.lora_B.default.weight" for layer in range(30) for name in "qkvogud"]
    adapter = {name: torch.randn(1536 if name[9] in "gu" else 576, 16) for name in names}
    for step in range(1, 101):
        health.observe_step(StepFigures(step, 1.0, 0.5, 2e-4, 500, 1.0, 10**9, ()))
    begun = time.perf_counter()
    for look in range(20):
        health.observe_adapter(100 + look, adapter)
    looked = time.perf_counter()
    for _ in range(20):
        text = json.dumps(health.to_dict())
    return (looked - begun) / 20, (time.perf_counter() - looked) / 20, len(text)


def main(runs: int) -> None:
    """Prints the table."""
    steps, seconds = 0, 0.0
    print(f"{'noise of the step losses':32}{'runs':>6}{'with advice':>13}  codes")
    for name, noise in NOISE.items():
        told: list[str] = []
        wrong = 0
        for length in LENGTHS:
            for seed in range(runs):
                advice, spent = healthy_run(noise, length, random.Random(f"{name}/{length}/{seed}"))
                steps, seconds, wrong = steps + length, seconds + spent, wrong + bool(advice)
                told += [one.finding.code for one in advice]
        counted = ", ".join(f"{code} {told.count(code)}" for code in sorted(set(told)))
        print(f"{name:32}{runs * len(LENGTHS):>6}{wrong:>13}  {counted}")
    look, save, size = adapter_cost()
    print(f"\na step's rules: {1e6 * seconds / steps:.0f} µs; a look at the adapter: {1e3 * look:.2f} ms")
    print(f"saving what is remembered: {1e3 * save:.2f} ms, {size / 1e3:.1f} kB")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 30)
