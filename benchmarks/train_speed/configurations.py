"""What is run: one row a configuration. A further option of a recipe is one more entry in a row's `settings`."""

import re
from dataclasses import dataclass, field, replace
from typing import Literal

from tunesmith.config import TrainSection

Tool = Literal["article", "trl", "peft", "tunesmith"]
Settings = dict[str, str | int | float | bool]
PARTS = ("speed", "last2", "last2-1b", "examples", "budgets")

RANK, ALPHA, LEARNING_RATE = 16, 32, 2e-4
"""Of all tools; the rate is constant."""

ARTICLE_LENGTH = 512
"""What the article's recipe pads to."""

ARTICLE_DROPOUT = 0.1
EPOCHS_LAST2 = 3
MODEL = "smollm2-135m"
ONE_BILLION = "llama-1b"
"""The shape of a 1B Llama with random weights, written for the benchmark alone."""


@dataclass(frozen=True)
class Configuration:
    """One process.

    Args:
        part: which part of the benchmark it belongs to.
        tool: what trains.
        name: unique within the part.
        batch: examples of a step.
        examples: rows that are trained on.
        settings: of Tunesmith, recipe keys as `--set` takes them; of a peer, what `peers` reads.
        precision: fp32 or bf16; None takes that of the whole benchmark.
        warm: steps before the steady ones.
        steady: steps that count, at least five in a full run.
        model: a catalog name, or `ONE_BILLION`.
        x: where it stands on its part's chart: the batch, the number of examples, the budget in tokens.
    """

    part: str
    tool: Tool
    name: str
    batch: int
    examples: int
    settings: Settings = field(default_factory=dict)
    precision: str | None = None
    warm: int = 2
    steady: int = 8
    model: str = MODEL
    x: int = 0

    @property
    def key(self) -> str:
        """Unique over all parts, and fit for a folder's name."""
        return "-".join(re.findall(r"\w+", f"{self.part} {self.tool} {self.name}"))


SPEED_BATCHES = (4, 8, 16)
PACKED_LENGTH = 1024

TUNESMITH_SPEED: dict[str, Settings] = {
    "batch": {},
}
"""Variants of Tunesmith, each run at every batch; the best counts. The key names the variant."""

TUNESMITH_LAST2: Settings = {"adapter.layers": "last:2"}
SEQUENTIAL: Settings = {"train.train_sampling_strategy": "sequential"}
"""The same first batches whatever the number of examples."""

EXAMPLE_COUNTS = (100, 1_000, 10_000)
BUDGETS = (1024, 2048, 4096, 8192)
BUDGET_KEY = "max_tokens_per_micro_batch"
TOKENS_AN_EXAMPLE = 256
"""An example's share of a budget: the mean of 217 tokens and what padding adds."""


def steps_at(batch: int) -> int:
    """Steady steps; fewer where each is long."""
    return 8 if batch <= 4 else 5


def speed(precision: str) -> list[Configuration]:
    """The article's recipe, TRL at each of its settings, and Tunesmith.

    A grouped run is one epoch over the first steps x batch rows, so that at one batch TRL and Tunesmith see the same
    batches, the longest included, which decides the peak of memory.
    """

    def grouped(tool: Tool, batch: int, name: str, settings: Settings) -> Configuration:
        steady = steps_at(batch)
        return Configuration("speed", tool, name, batch, (2 + steady) * batch, settings, steady=steady, x=batch)

    rows = [Configuration("speed", "article", "q/v, padded to 512, batch 4, fp32", 4, 40, precision="fp32", x=4)]
    if precision != "fp32":
        rows.append(Configuration("speed", "article", f"the same, {precision} autocast", 4, 40, x=4))
    rows += [grouped("trl", batch, f"grouped, batch {batch}", {"autocast": True}) for batch in SPEED_BATCHES]
    if precision != "fp32":  # without autocast there are no casts from step to step: another chance for the peer
        rows += [
            grouped("trl", batch, f"grouped, batch {batch}, no autocast", {"autocast": False})
            for batch in SPEED_BATCHES
        ]
    for batch, steady in ((1, 5), (4, 5)):
        packed: Settings = {"autocast": True, "packed": PACKED_LENGTH}
        name = f"packed at {PACKED_LENGTH}, batch {batch}"
        rows.append(Configuration("speed", "trl", name, batch, 64 * batch, packed, steady=steady))
    rows += [
        grouped("tunesmith", batch, f"{variant} {batch}", settings)
        for variant, settings in TUNESMITH_SPEED.items()
        for batch in SPEED_BATCHES
    ]
    return rows


def last_two() -> list[Configuration]:
    """`last:2` from the second epoch on, on SmolLM2-135M: 64 examples, 8 steps an epoch."""
    last = Configuration("last2", "peft", "the same layers, batch 8", 8, 64, {"last": 2}, warm=8, steady=16)
    return [last, replace(last, tool="tunesmith", name="last:2, batch 8", settings=TUNESMITH_LAST2)]


def last_two_1b() -> list[Configuration]:
    """The same on a 1B shape with few and short examples: 12 of them, 3 steps an epoch."""
    last = Configuration(
        "last2-1b", "peft", "the same layers, batch 4", 4, 12, {"last": 2}, warm=3, steady=6, model=ONE_BILLION
    )
    return [last, replace(last, tool="tunesmith", name="last:2, batch 4", settings=TUNESMITH_LAST2)]


def example_counts() -> list[Configuration]:
    """The same first batches out of sets of different sizes."""
    return [
        Configuration("examples", "tunesmith", f"{count:,} examples", 8, count, SEQUENTIAL, x=count)
        for count in EXAMPLE_COUNTS
    ]


def budgets() -> list[Configuration]:
    """The same steps in micro-batches of different numbers of tokens.

    Where the recipe has no key for that, the examples of a step stand for it, and the steps differ.
    """
    rows = []
    for budget in BUDGETS:
        has_key = BUDGET_KEY in TrainSection.model_fields
        settings: Settings = {f"train.{BUDGET_KEY}": budget} if has_key else {}
        batch = (max(BUDGETS) if has_key else budget) // TOKENS_AN_EXAMPLE
        steady = steps_at(batch)
        name, examples = f"{budget:,} tokens", (2 + steady) * batch
        rows.append(Configuration("budgets", "tunesmith", name, batch, examples, settings, steady=steady, x=budget))
    return rows


def configurations(precision: str, parts: tuple[str, ...], *, quick: bool) -> list[Configuration]:
    """The rows of `parts` in order; `quick` keeps few and shortens them.

    Raises:
        ValueError: a name is used twice.
    """
    everything = [*speed(precision), *last_two(), *last_two_1b(), *example_counts(), *budgets()]
    chosen = [one for one in everything if one.part in parts]
    if quick:
        chosen = [_shortened(one) for one in chosen if _is_short(one)]
    if len({one.key for one in chosen}) != len(chosen):
        raise ValueError("two configurations have one name")
    return chosen


def _is_short(one: Configuration) -> bool:
    """Whether a smoke run keeps it."""
    if one.part in ("examples", "budgets"):
        return one.x <= 1_024
    return one.part.startswith("last2") or one.batch == (1 if "packed" in one.settings else 4)


def _shortened(one: Configuration) -> Configuration:
    """Three steps for a smoke run; the parts with epochs keep three, of two steps each."""
    if one.part.startswith("last2"):
        name = one.name.replace(f"batch {one.batch}", "batch 4")
        return replace(one, name=name, batch=4, examples=8, warm=2, steady=4)
    if one.part == "examples":
        return replace(one, batch=4, warm=1, steady=2)
    if one.part == "budgets":
        return replace(one, batch=4, warm=1, steady=2, examples=12)
    return replace(one, warm=1, steady=2, examples=(32 if "packed" in one.settings else 3) * one.batch)
