"""How much of what training computes is padding, by the batches that a run would make of some data.

Only the tokenizer is loaded. For each file and number of examples a step: the positions of all micro-batches of three
epochs, the share of them that is padding, and how many shapes there are. The bar: under 5 % at every setting.

Usage: python -m benchmarks.padding [--precision bf16|fp32] [FILE ...]
    (by default the sets beside the checkout where they are there, else the demo's)
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.train_speed.examples import DEMO, GSM8K
from tunesmith.data.batching import StepPlan, lengths_of
from tunesmith.data_preparation import DataPreparation
from tunesmith.like_lengths import batches_of_like_length
from tunesmith.models.backend import micro_batch_tokens, select_device, width_multiple
from tunesmith.recipe_file import load_recipe
from tunesmith.runs import Run

RESULTS = Path(__file__).parent / "results" / "padding.json"
NAMES = ("gsm8k_train.jsonl", "alpaca_en.json", "alpaca_zh.json")
BATCHES = (4, 8, 16, 32)
EPOCHS = 3
BAR = 0.05


def lengths_in(file: Path, folder: Path) -> list[int]:
    """Tokens of each example that training would see."""
    recipe = load_recipe("recipes/demo.yaml", [f"data.train={file}"])
    lengths = lengths_of(DataPreparation(recipe, Run.create(folder, recipe)).split("train").tokenized)
    return [int(length) for length in lengths]


def padding(lengths: list[int], batch: int, multiple_of: int) -> dict[str, Any]:
    """Real tokens, positions and shapes of `EPOCHS` epochs at `batch` examples a step."""
    plan = StepPlan(lengths, micro_batch_size=batch, micro_batches=1, strategy="group_by_length", seed=0)
    positions, tokens, shapes = 0, 0, set()
    for step in range(EPOCHS * plan.steps_per_epoch):
        parts = batches_of_like_length(
            lengths,
            [index for part in plan.step(step) for index in part],
            max_examples=batch,
            max_tokens=micro_batch_tokens(select_device()),
            multiple_of=multiple_of,
        )
        for part in parts:
            longest = max(lengths[index] for index in part)
            width = -(-longest // multiple_of) * multiple_of
            positions += width * len(part)
            tokens += sum(lengths[index] for index in part)
            shapes.add((len(part), width))
    return {"batch": batch, "tokens": tokens, "padding_share": 1 - tokens / positions, "shapes": len(shapes)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16", help="decides how widths are rounded")
    parser.add_argument("files", nargs="*", type=Path)
    options = parser.parse_args()
    found = [path for name in NAMES if (path := GSM8K.parent / name).is_file()]
    files = options.files or found or [DEMO]
    results = []
    for file in files:
        with tempfile.TemporaryDirectory() as name:
            lengths = lengths_in(file, Path(name) / "run")
        for batch in BATCHES:
            shares = padding(lengths, batch, width_multiple(options.precision))
            one: dict[str, Any] = {"data": file.name, "examples": len(lengths), **shares}
            results.append(one)
            print(f"{file.name}, {batch} examples a step: {100 * one['padding_share']:.2f} %, {one['shapes']} shapes")
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(
        json.dumps({"precision": options.precision, "results": results}, indent=2) + "\n", encoding="utf-8"
    )
    return 0 if all(one["padding_share"] < BAR for one in results) else 1


if __name__ == "__main__":
    sys.exit(main())
