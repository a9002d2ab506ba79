"""Whether the fast path trains as plain PEFT does: the losses of some hundred real steps of both, in one precision.

Three runs over the demo's data, with its recipe: Tunesmith with seed 0; and, with seeds 0 and 1, a loop of plain
transformers, PEFT and torch that takes nothing of Tunesmith's but the order of the examples and the learning rate of a
step. The bar: with one seed, Tunesmith's curve is no further from the loop's than the loop's own curves of two seeds
are from each other. Curves are means over ten steps, distances their root mean square.

Usage: python -m benchmarks.loss_curve [--steps 200] [--batch 4] [--precision auto|bf16|fp32]
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from benchmarks.machine import describe_machine
from benchmarks.train_speed.peers import padded
from tunesmith import pipeline
from tunesmith.config import Recipe
from tunesmith.data.batching import StepPlan, lengths_of
from tunesmith.data.records import IGNORED_LABEL, TokenizedExample
from tunesmith.models.backend import configure_cpu, resolve_precision, seed_everything, select_device, torch_dtype
from tunesmith.preparation import Preparation
from tunesmith.recipe_file import load_recipe
from tunesmith.report import Report, Series, Severity, Table
from tunesmith.report.html import render_html
from tunesmith.runs import Run
from tunesmith.training.schedule import learning_rate_at, total_steps

RESULTS = Path(__file__).parent / "results" / "loss_curve.json"
WINDOW = 10
"""Steps that make one point of a curve."""


def recipe_with(steps: int, batch: int, precision: str, seed: int) -> Recipe:
    """The demo's recipe for `steps` steps, without validation, every step logged."""
    edits = {
        "model.precision": precision,
        "train.max_steps": steps,
        "train.per_device_train_batch_size": batch,
        "train.logging_steps": 1,
        "train.eval_steps": steps,
        "train.load_best_model_at_end": "false",
        "train.seed": seed,
    }
    return load_recipe("recipes/demo.yaml", [f"{key}={value}" for key, value in edits.items()])


def tunesmith_losses(recipe: Recipe, folder: Path) -> list[float]:
    """The loss of every step as a run logs it."""
    pipeline.train(recipe, folder)
    return [row["loss"] for row in Run.open(folder).read_metrics() if "loss" in row]


def plain_losses(recipe: Recipe, folder: Path) -> list[float]:
    """The same training by transformers, PEFT and torch alone."""
    section = recipe.train
    seed_everything(section.seed)
    prepared = Preparation(recipe, Run.create(folder, recipe))
    examples = prepared.split("train").tokenized
    dtype = torch_dtype(prepared.precision)
    base: Any = AutoModelForCausalLM.from_pretrained(prepared.model_folder, dtype=dtype, attn_implementation="sdpa")
    config = LoraConfig(r=recipe.adapter.r, lora_alpha=recipe.adapter.lora_alpha, target_modules="all-linear")
    model = get_peft_model(base.to(prepared.device), config).train()
    optimizer = torch.optim.AdamW(
        (value for value in model.parameters() if value.requires_grad), weight_decay=section.weight_decay
    )
    plan = StepPlan(
        lengths_of(examples),
        micro_batch_size=section.per_device_train_batch_size,
        micro_batches=section.gradient_accumulation_steps,
        strategy=section.train_sampling_strategy,
        seed=section.seed,
    )
    total = total_steps(section, plan.steps_per_epoch)
    losses = []
    for step in range(total):
        parts = [[_ids(examples[index]) for index in part] for part in plan.step(step)]
        batches = [padded(part, prepared.template.pad_token_id) for part in parts]
        targets = sum(int((batch["labels"][:, 1:] != IGNORED_LABEL).sum()) for batch in batches)
        loss_sum = 0.0
        for batch in batches:
            tensors = {name: tensor.to(prepared.device) for name, tensor in batch.items()}
            labels_BT = tensors.pop("labels")
            with torch.autocast(prepared.device.type, dtype, enabled=dtype != torch.float32):
                logits_BTV = model(**tensors, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(
                logits_BTV[:, :-1].flatten(0, 1).float(), labels_BT[:, 1:].flatten(), reduction="sum"
            )
            (loss / targets).backward()
            loss_sum += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), section.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, section, total)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss_sum / targets)
        if (step + 1) % WINDOW == 0:
            say(f"plain, seed {section.seed}: step {step + 1} of {total}, loss {losses[-1]:.4f}")
    return losses


def _ids(example: TokenizedExample) -> dict[str, list[int]]:
    return {"input_ids": list(example.input_ids), "labels": list(example.labels)}


def curve(losses: Sequence[float]) -> list[float]:
    """Means over `WINDOW` steps."""
    return [statistics.fmean(losses[at : at + WINDOW]) for at in range(0, len(losses), WINDOW)]


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """Root mean square of the difference of two curves."""
    return math.sqrt(statistics.fmean((a - b) ** 2 for a, b in zip(one, other, strict=True)))


def say(line: str) -> None:
    """A line of progress."""
    print(line, file=sys.stderr, flush=True)


def build_report(outcome: dict[str, Any]) -> Report:
    """The page: the three curves and the two distances."""
    report = Report(
        "benchmark", f"Losses of {outcome['steps']} steps in {outcome['precision']}, fast path and plain PEFT"
    )
    report.add_figure("device", "Device", outcome["machine"]["device"])
    met = outcome["distance_same_seed"] <= outcome["distance_two_seeds"]
    report.add_finding(
        Severity.NOTE if met else Severity.ERROR,
        "bar-met" if met else "bar-not-met",
        f"with one seed the fast path is {outcome['distance_same_seed']:.4f} nats a token from plain PEFT; "
        f"two seeds of plain PEFT are {outcome['distance_two_seeds']:.4f} apart",
    )
    for name, losses in outcome["losses"].items():
        points = curve(losses)
        steps = tuple(float(WINDOW * (number + 1)) for number in range(len(points)))
        report.series.append(Series("Training loss", name, steps, tuple(points), "step", "nats a token"))
    rows = tuple(_row(name, losses) for name, losses in outcome["losses"].items())
    report.tables.append(Table("Runs", ("run", "first ten steps", "last ten steps"), rows))
    return report


def _row(name: str, losses: Sequence[float]) -> tuple[str, float, float]:
    points = curve(losses)
    return name, round(points[0], 4), round(points[-1], 4)


def runs(options: argparse.Namespace, precision: str, folder: Path) -> Iterator[tuple[str, list[float]]]:
    """Name and losses of each run, in turn."""
    for name, seed, losses_of in (
        ("plain PEFT, seed 0", 0, plain_losses),
        ("Tunesmith, seed 0", 0, tunesmith_losses),
        ("plain PEFT, seed 1", 1, plain_losses),
    ):
        recipe = recipe_with(options.steps, options.batch, precision, seed)
        yield name, losses_of(recipe, folder / name)
        say(f"{name}: done")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    options = parser.parse_args()
    configure_cpu()
    precision = resolve_precision(options.precision, select_device())
    with tempfile.TemporaryDirectory() as name:
        losses = dict(runs(options, precision, Path(name)))
    plain, fast, other = (curve(values) for values in losses.values())
    outcome = {
        "machine": describe_machine(),
        "precision": precision,
        "steps": options.steps,
        "batch": options.batch,
        "distance_same_seed": distance(plain, fast),
        "distance_two_seeds": distance(plain, other),
        "losses": losses,
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(outcome, indent=2) + "\n", encoding="utf-8")
    RESULTS.with_suffix(".html").write_text(render_html(build_report(outcome)), encoding="utf-8")
    print(f"one seed: {outcome['distance_same_seed']:.5f}; two seeds: {outcome['distance_two_seeds']:.5f} nats a token")
    return 0 if outcome["distance_same_seed"] <= outcome["distance_two_seeds"] else 1


if __name__ == "__main__":
    sys.exit(main())
