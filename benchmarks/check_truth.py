"""Plants a known number of every fault in clean data, and counts what `tunesmith check` finds, misses and invents.

The clean data are made by `tests.planted`. With --real, sets of the user's own are checked as they are, so that a
person can judge what is flagged, and the same faults are planted among their rows. The bars, on made and on real rows:
99 % of the faults that can be told exactly, 90 % of near-duplicates and of what takes judgement; and on clean made rows
no rule that names 1 % of them.

Usage: python -m benchmarks.check_truth [--each N] [--real FOLDER]     (`make bench-check-truth`)
"""

import argparse
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.planted import (
    ANY_ROW,
    CORPORA,
    LINES,
    PAIRS,
    PROSE,
    Kind,
    Pair,
    Planted,
    Score,
    Setting,
    plant,
    read_records,
    recipe_for,
    score,
)
from tests.planted.score import EXACT_BAR, OTHER_BAR
from tests.tiny import tiny_model_folder

import tunesmith
from benchmarks.machine import describe_machine
from tunesmith.config import DataSection
from tunesmith.data.rows import BadRow
from tunesmith.data.shapes import RowError, convert_row
from tunesmith.data.sources import iter_rows
from tunesmith.recipe_file import load_recipe

RESULTS = Path(__file__).parent / "results" / "check_truth.json"

EACH = 100
MOST_REAL_EACH = 50
SHOWN = 3

CONTEXT = 4096
"""Tokens, which are bytes, that the model of the made sets can read."""

LONG_CONTEXT = 1 << 20
"""The same for real sets: none of their rows is too long by the byte."""

SHORTEST_REAL = {False: 30, True: 60}
"""Words, or Chinese characters, of a real row in which faults are planted: in fewer, one in ten is none or one."""


@dataclass(frozen=True)
class Outcome:
    """One set with faults, and how the check did on it."""

    name: str
    planted: Planted
    score: Score
    bars_for_clean: bool

    @property
    def failures(self) -> list[str]:
        """The bars that are missed.

        Rows of a real set are not known to be clean, and some that take a fault cannot show it (markup in a row about
        markup): there the bars hold for all exact kinds together and for all others together.
        """
        if self.bars_for_clean:
            return [f"{self.name}: {failure}" for failure in self.score.failures]
        missed = []
        for is_exact, bar in ((True, EXACT_BAR), (False, OTHER_BAR)):
            kinds = [k for k in self.score.kinds if k.kind.exact == is_exact]
            planted, found = sum(k.planted for k in kinds), sum(k.found for k in kinds)
            if found < bar * planted:
                missed.append(f"{self.name}: {found} of {planted} {'exact' if is_exact else 'other'} faults found")
        return missed

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the results."""
        return {
            "rows": {split: len(lines) for split, lines in self.planted.lines.items()},
            "kinds": [
                {
                    "kind": k.kind.name,
                    "exact": k.kind.exact,
                    "planted": k.planted,
                    "found": k.found,
                    "missed": len(k.missed),
                    "missed_variants": dict(Counter(fault.variant for fault in k.missed)),
                }
                for k in self.score.kinds
            ],
            "clean_rows": self.score.clean_rows,
            "false_alarms": {rule: len(rows) for rule, rows in self.score.false_alarms.items()},
            "harmless": {what: {"planted": n, "flagged": hits} for what, (n, hits) in self.score.harmless.items()},
            "also": {f"{kind} -> {rule}": count for (kind, rule), count in self.score.also.items()},
        }


def check(paths: dict[str, Path], model: Path, run: Path, **data: Any) -> list[dict[str, Any]]:
    """Runs the check; returns what it wrote about rows."""
    recipe = recipe_for(paths, model)
    tunesmith.check(load_recipe({**recipe, "data": {**recipe["data"], **data}}), run)
    return read_records(run)


# --- Made sets ----------------------------------------------------------------------------------------------------


def made_sets(folder: Path, each: int) -> Iterator[Outcome]:
    """Each made set, planted and checked."""
    model = tiny_model_folder(folder / "model", max_position_embeddings=CONTEXT)
    for name, corpus in CORPORA.items():
        planted = corpus.plant(each)
        (folder / name).mkdir()
        records = check(planted.write(folder / name), model, folder / name / "run")
        yield Outcome(name, planted, score(planted, records), bars_for_clean=True)


# --- Real sets ----------------------------------------------------------------------------------------------------


def real_files(folder: Path) -> list[Path]:
    """The data files of a folder."""
    return sorted(path for path in folder.iterdir() if path.suffix in (".json", ".jsonl"))


def splits_beside(path: Path) -> dict[str, Path]:
    """A file as train, and NAME_test and NAME_validation beside NAME_train."""
    others = {split: path.with_name(path.name.replace("train", split)) for split in ("validation", "test")}
    there = {split: other for split, other in others.items() if other != path and other.is_file()}
    return {"train": path, **there}


def flagged_as_it_is(path: Path, model: Path, run: Path) -> dict[str, Any]:
    """How many rows of a real set each rule names, with the first of them."""
    records = check(splits_beside(path), model, run, max_length="auto")
    total = sum(1 for _ in iter_rows(str(path)))
    rules: dict[str, Any] = {}
    for record in records:
        if record["split"] != "train":
            continue
        entry = rules.setdefault(record["rule"], {"rows": set(), "first": []})
        entry["rows"].add(record.get("line") or record["row"])
        if len(entry["first"]) < SHOWN:
            entry["first"].append(
                {key: record.get(key) for key in ("line", "row", "action", "reason") if key in record}
            )
    named = {
        rule: {"rows": len(entry["rows"]), "share": len(entry["rows"]) / total, "first": entry["first"]}
        for rule, entry in sorted(rules.items())
    }
    return {"rows": total, "rules": named}


def real_pairs(path: Path) -> list[Pair]:
    """The rows of a real set that are one question and one answer, each once."""
    data, pairs = DataSection(train=[str(path)]), {}
    for place, row in iter_rows(str(path)):
        try:
            messages = () if isinstance(row, BadRow) else convert_row(row, place, data).example.messages
        except RowError:
            continue
        if [message.role for message in messages] == ["user", "assistant"]:
            prompt, answer = (message.content for message in messages)
            pairs[" ".join(prompt.lower().split())] = Pair(prompt, answer)
    return list(pairs.values())


def is_chinese(pairs: Sequence[Pair]) -> bool:
    """Whether more than a quarter of the characters are Chinese."""
    text = "".join(pair.prompt + pair.answer for pair in pairs[:200])
    return sum("\u4e00" <= c <= "\u9fff" for c in text) > len(text) / 4


def plant_in_real(path: Path, model: Path, folder: Path) -> Outcome | None:
    """Faults planted among the rows of a real set, and checked; None where it has too few rows."""
    pairs = real_pairs(path)
    setting = Setting(chinese=is_chinese(pairs))

    def length(pair: Pair) -> int:
        text = f"{pair.prompt} {pair.answer}"
        return len(text) if setting.chinese else len(text.split())

    pairs = [pair for pair in pairs if length(pair) >= SHORTEST_REAL[setting.chinese]]
    random.Random(path.name).shuffle(pairs)
    lengths = ("prompt too long", "answer too long")  # the model of real sets reads everything
    kinds: list[Kind] = [k for k in (*PAIRS, *ANY_ROW, *PROSE, *LINES) if k.name not in lengths]
    each = min(MOST_REAL_EACH, len(pairs) // (2 * len(kinds)))
    if not each:
        return None
    validation, test = pairs[: 2 * each + 5], pairs[2 * each + 5 : (6 + len(kinds) // 6) * each + 10]
    rows = {"train": pairs[len(validation) + len(test) :], "validation": validation, "test": test}
    planted = plant(rows, kinds, each, seed=0, setting=setting)
    folder.mkdir()
    records = check(planted.write(folder), model, folder / "run", max_length="auto")
    return Outcome(path.stem, planted, score(planted, records), bars_for_clean=False)


# --- Printing -----------------------------------------------------------------------------------------------------


def print_outcome(outcome: Outcome) -> None:
    """The table of one set."""
    result = outcome.score
    rows = ", ".join(f"{len(lines):,} {split}" for split, lines in outcome.planted.lines.items())
    print(f"\n{outcome.name} ({rows})\n{'fault':24}{'planted':>8}{'found':>8}{'missed':>8}")
    for kind in result.kinds:
        variants = ", ".join(f"{count} {what}" for what, count in Counter(f.variant for f in kind.missed).items())
        mark = "" if kind.passes else "  BELOW THE BAR"
        print(f"{kind.kind.name:24}{kind.planted:8}{kind.found:8}{len(kind.missed):8}  {variants}{mark}")
    what = "false alarms" if outcome.bars_for_clean else "also named (not known to be clean)"
    print(f"{what} on {result.clean_rows:,} rows:", end=" ")
    rates = (
        f"{rule} {len(rows)} ({100 * result.false_rate(rule):.2f} %)" for rule, rows in result.false_alarms.items()
    )
    print(", ".join(rates) or "none")
    invented = (f"{what} {hits} of {n}" for what, (n, hits) in result.harmless.items() if hits)
    print(f"harmless but flagged: {', '.join(invented) or 'none'}", flush=True)


def print_flagged(name: str, flagged: dict[str, Any]) -> None:
    """What each rule names in a real set."""
    print(f"\n{name} as it is: {flagged['rows']:,} rows")
    for rule, entry in flagged["rules"].items():
        print(f"  {rule:22}{entry['rows']:6}  {100 * entry['share']:6.2f} %")
        for one in entry["first"]:
            print(f"    {one.get('line') or one.get('row')}: {str(one['reason'])[:110]}")
    sys.stdout.flush()


def _without_texts(flagged: dict[str, Any]) -> dict[str, Any]:
    """The counts alone: what is quoted from somebody's data is for the screen, not for the results."""
    rules = {rule: {"rows": entry["rows"], "share": entry["share"]} for rule, entry in flagged["rules"].items()}
    return {**flagged, "rules": rules}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--each", type=int, default=EACH, help=f"faults of each kind (default: {EACH})")
    parser.add_argument("--real", type=Path, metavar="FOLDER", help="real sets (.json, .jsonl) to check as well")
    options = parser.parse_args()
    flagged: dict[str, Any] = {}
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for outcome in made_sets(folder, options.each):
            print_outcome(outcome)
            outcomes.append(outcome)
        made = len(outcomes)
        model = tiny_model_folder(folder / "long-model", max_position_embeddings=LONG_CONTEXT)
        for path in real_files(options.real) if options.real else ():
            flagged[path.name] = flagged_as_it_is(path, model, folder / f"{path.name}-run")
            print_flagged(path.name, flagged[path.name])
            if (real := plant_in_real(path, model, folder / path.name)) is not None:
                print_outcome(real)
                outcomes.append(real)
    failures = [failure for outcome in outcomes for failure in outcome.failures]
    result = {
        "machine": describe_machine(),
        "each": options.each,
        "made": {outcome.name: outcome.to_dict() for outcome in outcomes[:made]},
        "real": {outcome.name: outcome.to_dict() for outcome in outcomes[made:]},
        "real_as_they_are": {name: _without_texts(one) for name, one in flagged.items()},
        "failures": failures,
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print("\n" + ("\n".join(failures) or "every bar is met"))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
