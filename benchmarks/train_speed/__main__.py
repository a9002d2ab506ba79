"""Training speed and peak memory of Tunesmith, TRL, PEFT and the article's recipe, each in a process, in turn.

Real tokens a second (padding does not count) of at least five steady steps, as median and quartiles, over the same
examples; peak memory of each process; losses; and which of the bars are met. Exit code 1 where one is not, or a run
failed.

Usage: python -m benchmarks.train_speed [--quick] [--only PART] [--precision auto|bf16|fp32]     (`make bench-train`)
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine
from benchmarks.train_speed import examples
from benchmarks.train_speed.configurations import MODEL, ONE_BILLION, PARTS, Configuration, configurations
from benchmarks.train_speed.figures import Result, summarize, verdicts
from benchmarks.train_speed.processes import FailedError, Place, imports_only_bytes, measure
from benchmarks.train_speed.report import TOOLS, build_report, print_tables
from tunesmith.config import ModelSection
from tunesmith.models.backend import resolve_precision, select_device
from tunesmith.models.catalog import resolve_model
from tunesmith.report.html import render_html

RESULTS = Path(__file__).parents[1] / "results" / "train.json"
LAYERS_1B, LAYERS_QUICK = 16, 4
SHORTEST_OF = 2_000
"""The short examples of the 1B shape are the shortest of so many rows."""


class Bench:
    """Runs configurations one after another.

    Args:
        folder: for all files; the model of 1B shape is written there when it is first needed.
        data: the rows.
        precision: of every configuration that names none.
        quick: whether this is a smoke run.
    """

    def __init__(self, folder: Path, data: Path, precision: str, *, quick: bool) -> None:
        self._folder = folder
        self._data = data
        self._precision = precision
        self._layers = LAYERS_QUICK if quick else LAYERS_1B
        self._model_folder = resolve_model(ModelSection(name=MODEL))
        self._baseline = imports_only_bytes(folder)

    def run(self, one: Configuration) -> Result:
        """The figures of one configuration, or why there are none."""
        folder = self._folder / one.key
        folder.mkdir()
        precision = one.precision or self._precision
        known: Result = {**asdict(one), "precision": precision}
        try:
            raw = measure(one, Place(folder, self._model(one), self._rows(one), precision))
        except FailedError as error:
            return {**known, "failed": str(error)}
        return {**known, "baseline_bytes": self._baseline, **summarize(raw, warm=one.warm)}

    def _model(self, one: Configuration) -> Path:
        if one.model != ONE_BILLION:
            return self._model_folder
        folder = self._folder / ONE_BILLION
        if not folder.exists():
            say("writing the model of 1B shape")
            examples.write_model_1b(self._model_folder, folder, layers=self._layers)
        return folder

    def _rows(self, one: Configuration) -> list[examples.Row]:
        if one.model != ONE_BILLION:
            return examples.first_rows(one.examples, self._data)
        return examples.shortest(examples.first_rows(SHORTEST_OF, self._data), one.examples)


def say(line: str) -> None:
    """A line of progress."""
    print(line, file=sys.stderr, flush=True)


def run_all(chosen: list[Configuration], data: Path, precision: str, *, quick: bool) -> list[Result]:
    """All results, in order."""
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), data, precision, quick=quick)
        for number, one in enumerate(chosen, 1):
            started = time.monotonic()
            results.append(bench.run(one))
            figures = results[-1]
            done = figures.get("failed") or (
                f"{figures['median_tokens_per_second']:.0f} tokens/s, {figures['peak_bytes'] / 1e9:.1f} GB"
            )
            seconds = time.monotonic() - started
            say(f"{number}/{len(chosen)} {one.part}: {TOOLS[one.tool]}, {one.name}: {done} ({seconds:.0f} s)")
    return results


def others(path: Path, outcome: dict[str, Any], parts: tuple[str, ...]) -> list[Result]:
    """Results of the other parts in `path`, if they were measured on this machine in the same way."""
    if not path.is_file():
        return []
    before = json.loads(path.read_text(encoding="utf-8"))
    if any(before.get(key) != value for key, value in outcome.items()):
        return []
    return [one for one in before["results"] if one["part"] not in parts]


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a smoke run of some minutes; its figures mean nothing")
    parser.add_argument("--only", choices=PARTS, help="run one part; the results of the others are kept")
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    parser.add_argument("--data", type=Path, default=examples.default_source(), help="rows of a question and an answer")
    parser.add_argument("--output", type=Path, default=RESULTS, help=f"default: {RESULTS.name} in benchmarks/results")
    return parser.parse_args()


def main() -> int:
    chosen = options()
    precision = resolve_precision(chosen.precision, select_device())
    parts = (chosen.only,) if chosen.only else PARTS
    packages = {package: metadata.version(package) for package in ("peft", "trl", "datasets")}
    outcome: dict[str, Any] = {
        "machine": {**describe_machine(), **packages},
        "precision": precision,
        "quick": chosen.quick,
        "data": f"{chosen.data.parent.name}/{chosen.data.name}, rendered with the chat template of {MODEL}",
    }
    kept = others(chosen.output, outcome, parts)
    measured = run_all(configurations(precision, parts, quick=chosen.quick), chosen.data, precision, quick=chosen.quick)
    results = sorted([*kept, *measured], key=lambda one: PARTS.index(one["part"]))
    judged = verdicts(results)
    outcome |= {"results": results, "verdicts": [asdict(verdict) for verdict in judged]}
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    chosen.output.write_text(json.dumps(outcome, indent=2) + "\n", encoding="utf-8")
    chosen.output.with_suffix(".html").write_text(render_html(build_report(outcome, judged)), encoding="utf-8")
    print_tables(outcome, judged)
    return 0 if all(verdict.is_met for verdict in judged) and not any("failed" in one for one in results) else 1


if __name__ == "__main__":
    sys.exit(main())
