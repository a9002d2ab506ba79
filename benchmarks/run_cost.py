"""What safety costs: the share of a demo run that goes into checkpoints (save_steps: 100) and into health.

Trains some real steps of recipes/demo.yaml, writes a checkpoint of that run several times, and times both. The bars:
a checkpoint under 1 % of 100 steps, health under 0.5 % of a step.

Usage: python -m benchmarks.run_cost     (`make bench-run-cost`)
"""

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine
from tunesmith import pipeline
from tunesmith.recipe_file import load_recipe
from tunesmith.training.health import Health
from tunesmith.training.trainer import Trainer

RESULTS = Path(__file__).parent / "results" / "run_cost.json"
STEPS = 12
WARM = 2
SAVES = 7
SAVE_STEPS = 100


class Stopwatch:
    """Times every call of a method."""

    def __init__(self, owner: type, name: str) -> None:
        self.seconds: list[float] = []
        original = getattr(owner, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return original(*arguments, **options)
            finally:
                self.seconds.append(time.perf_counter() - started)

        setattr(owner, name, timed)


def main() -> None:
    steps = Stopwatch(Trainer, "_train_step")
    health = Stopwatch(Health, "observe_step")
    trainers: list[Trainer] = []
    original = Trainer.train

    def train(trainer: Trainer) -> Any:
        trainers.append(trainer)
        return original(trainer)

    Trainer.train = train  # type: ignore[method-assign,assignment]
    with tempfile.TemporaryDirectory() as name:
        recipe = load_recipe("recipes/demo.yaml", [f"train.max_steps={STEPS}", f"train.eval_steps={STEPS}"])
        pipeline.train(recipe, Path(name) / "run")
        saves = []
        for number in range(SAVES):
            trainers[0]._state.step = STEPS + 1 + number  # each one a checkpoint of its own
            started = time.perf_counter()
            trainers[0]._save()
            saves.append(time.perf_counter() - started)
    step = statistics.median(steps.seconds[WARM:])
    save, watch = statistics.median(saves), statistics.median(health.seconds[WARM:])
    result = {
        "machine": describe_machine(),
        "recipe": "recipes/demo.yaml",
        "step_s": {"median": step, "least": min(steps.seconds[WARM:]), "most": max(steps.seconds[WARM:])},
        "save_s": {"median": save, "least": min(saves), "most": max(saves)},
        "health_s_a_step": {"median": watch, "most": max(health.seconds[WARM:])},
        "save_share_percent": 100 * save / (SAVE_STEPS * step + save),
        "health_share_percent": 100 * watch / step,
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
