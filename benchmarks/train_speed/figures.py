"""From steps to figures, and from figures to verdicts: what is pure."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

LEAST_OVER_TRL = 4.0
LEAST_OVER_ARTICLE = 10.0
MOST_OF_TRL_MEMORY = 1 / 3
LEAST_LAST2 = 6.0
LEAST_LAST2_1B = 10.0
MOST_UNEVEN = 0.10

Result = dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """One bar.

    Args:
        bar: what is asked, in words.
        figure: what was measured; None where a run that it needs failed or was left out.
        is_met: None without a figure.
        detail: between which runs.
    """

    bar: str
    figure: float | None
    is_met: bool | None
    detail: str


def summarize(raw: Result, *, warm: int) -> Result:
    """Median and quartiles of the steady steps' speed, the speed over all steps, and the losses.

    Args:
        raw: what `processes.measure` gives.
        warm: steps that are left out.
    """
    steady = raw["tokens_per_second"][warm:]
    low, median, high = quartiles(steady)
    losses = raw["losses"]
    return {
        **raw,
        "steady_steps": len(steady),
        "median_tokens_per_second": median,
        "quartiles": [low, high],
        "all_tokens_per_second": raw["all_tokens"] / raw["all_seconds"],
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "mean_loss": statistics.fmean(losses),
    }


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile, by linear interpolation.

    Raises:
        ValueError: there is no value.
    """
    if not values:
        raise ValueError("no values")
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


def verdicts(results: Sequence[Result]) -> list[Verdict]:
    """Every bar of the parts that were run, from the results as they are."""
    judged: list[Verdict] = []
    parts = {one["part"] for one in results}
    if "speed" in parts:
        judged += _speed(results)
    for part, least, model in (
        ("last2", LEAST_LAST2, "SmolLM2-135M"),
        ("last2-1b", LEAST_LAST2_1B, "a 1B-shaped Llama"),
    ):
        if part in parts:
            bar = f"last:2 from the second epoch on, {model}: at least {least:g} times PEFT with the same layers"
            judged.append(_ratio(bar, best(results, part, "tunesmith"), best(results, part, "peft"), least))
    if "examples" in parts:
        judged.append(_even("cost a token within 10 % from 100 to 10,000 examples", results, "examples"))
    if "budgets" in parts:
        judged.append(_even("cost a token within 10 % from budgets of 1k to 8k tokens", results, "budgets"))
    return judged


def best(results: Sequence[Result], part: str, tool: str, precision: str | None = None) -> Result | None:
    """The fastest run of `tool` in `part` by its median; None where none ended well."""
    there = [
        one
        for one in results
        if one["part"] == part and one["tool"] == tool and "failed" not in one and precision in (None, one["precision"])
    ]
    return max(there, key=lambda one: one["median_tokens_per_second"], default=None)


def _speed(results: Sequence[Result]) -> list[Verdict]:
    ours = best(results, "speed", "tunesmith")
    return [
        _ratio("all linear layers: at least 4 times TRL's best", ours, best(results, "speed", "trl"), LEAST_OVER_TRL),
        _ratio(
            "all linear layers: at least 10 times the article's recipe (fp32, q and v)",
            ours,
            best(results, "speed", "article", "fp32"),
            LEAST_OVER_ARTICLE,
        ),
        _memory(results),
    ]


def _ratio(bar: str, ours: Result | None, theirs: Result | None, least: float) -> Verdict:
    if ours is None or theirs is None:
        return Verdict(bar, None, None, "a run that this needs failed or was left out")
    ratio = ours["median_tokens_per_second"] / theirs["median_tokens_per_second"]
    return Verdict(bar, ratio, ratio >= least, f"{ours['name']} against {theirs['name']}")


def _memory(results: Sequence[Result]) -> Verdict:
    """The worst share over all batches: of TRL the smallest peak at a batch, of Tunesmith that of its fastest run."""
    bar = "the same batch: at most a third of TRL's peak memory"
    shares = []
    rows = [one for one in results if one["part"] == "speed" and "failed" not in one]
    for batch in sorted({one["batch"] for one in rows}):
        at_batch = [one for one in rows if one["batch"] == batch]
        ours = best(at_batch, "speed", "tunesmith")
        theirs = [one["peak_bytes"] for one in at_batch if one["tool"] == "trl" and "packed" not in one["settings"]]
        if ours is not None and theirs:
            shares.append((ours["peak_bytes"] / min(theirs), batch))
    if not shares:
        return Verdict(bar, None, None, "a run that this needs failed or was left out")
    share, _ = max(shares)
    detail = ", ".join(f"batch {batch}: {100 * one:.0f} %" for one, batch in shares)
    return Verdict(bar, share, share <= MOST_OF_TRL_MEMORY, detail)


def _even(bar: str, results: Sequence[Result], part: str) -> Verdict:
    """How much dearer a token is in the dearest run than in the cheapest."""
    rows = [one for one in results if one["part"] == part]
    if len(rows) < 2 or any("failed" in one for one in rows):
        return Verdict(bar, None, None, "a run that this needs failed or was left out")
    rates = {one["name"]: one["median_tokens_per_second"] for one in rows}
    uneven = max(rates.values()) / min(rates.values()) - 1
    detail = ", ".join(f"{name}: {rate:.0f} tokens/s" for name, rate in rates.items())
    return Verdict(bar, uneven, uneven <= MOST_UNEVEN, detail)
