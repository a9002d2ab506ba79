"""Compares what a check says with what was planted."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.planted.faults import Fault, Kind, Planted, Where

EXACT_BAR = 0.99
"""Share of an exact kind that must be found."""

OTHER_BAR = 0.90
"""Share of near-duplicates, and of what takes judgement, that must be found."""

FALSE_BAR = 0.01
"""Share of the clean rows that a rule may flag."""


@dataclass(frozen=True)
class KindScore:
    """How a kind of fault fared."""

    kind: Kind
    planted: int
    missed: Sequence[Fault]

    @property
    def found(self) -> int:
        """How many were found."""
        return self.planted - len(self.missed)

    @property
    def passes(self) -> bool:
        """Whether enough were found."""
        return self.found >= (EXACT_BAR if self.kind.exact else OTHER_BAR) * self.planted


@dataclass(frozen=True)
class Score:
    """The whole comparison.

    Args:
        kinds: each kind of fault that was planted.
        clean_rows: rows that have no fault, take part in none and look like none.
        false_alarms: for each rule the clean rows that it named.
        harmless: for each harmless thing ("rule: what"), how many were planted and how many its rules named.
        also: rows with a fault that were named by a rule for another, by kind and rule.
    """

    kinds: Sequence[KindScore]
    clean_rows: int
    false_alarms: Mapping[str, Sequence[Where]]
    harmless: Mapping[str, tuple[int, int]]
    also: Mapping[tuple[str, str], int]

    def false_rate(self, rule: str) -> float:
        """Share of the clean rows that a rule named."""
        return len(self.false_alarms.get(rule, ())) / max(self.clean_rows, 1)

    @property
    def failures(self) -> list[str]:
        """Each bar that is missed, in words."""
        kinds = [f"{k.kind.name}: {k.found} of {k.planted} found" for k in self.kinds if not k.passes]
        rules = [r for r in self.false_alarms if self.false_rate(r) >= FALSE_BAR]
        return kinds + [f"{rule}: names {100 * self.false_rate(rule):.1f} % of the clean rows" for rule in rules]


def read_records(run: Path) -> list[dict[str, Any]]:
    """What a check wrote into its run folder: every row left out, changed or flagged."""
    names = ("dropped.jsonl", "flagged.jsonl")
    paths = [path for name in names if (path := run / "data" / name).is_file()]
    return [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").split("\n") if line]


def named_rows(records: Iterable[Mapping[str, Any]]) -> dict[Where, set[str]]:
    """The rules that named each row."""
    named: dict[Where, set[str]] = defaultdict(set)
    for record in records:
        named[record["split"], record.get("line") or record["row"]].add(record["rule"])
    return dict(named)


def score(planted: Planted, records: Iterable[Mapping[str, Any]]) -> Score:
    """Compares.

    Of two rows of train that are alike either may be named; of a leak it must be the row of train.

    Args:
        planted: the rows and their faults.
        records: the objects of dropped.jsonl and flagged.jsonl.
    """
    named = named_rows(records)
    missed: dict[Kind, list[Fault]] = defaultdict(list)
    harmless: dict[str, list[bool]] = defaultdict(list)
    also: Counter[tuple[str, str]] = Counter()
    involved: set[Where] = set()
    for fault in planted.faults:
        involved.update(_rows_of(fault))
        rules = set().union(*(named.get(where, ()) for where in _rows_of(fault)))
        if not fault.kind.rules:
            suspects = fault.variant.split(":")[0].split("+")
            harmless[fault.variant].append(bool(rules.intersection(suspects)))
        elif not rules.intersection(fault.kind.rules):
            missed[fault.kind].append(fault)
        also.update((fault.kind.name, rule) for rule in rules.difference(fault.kind.rules))
    false: dict[str, list[Where]] = defaultdict(list)
    for where, rules in named.items():
        for rule in rules if where not in involved else ():
            false[rule].append(where)
    counts = Counter(fault.kind for fault in planted.faults if fault.kind.rules)
    return Score(
        [KindScore(kind, count, missed[kind]) for kind, count in counts.items()],
        sum(map(len, planted.lines.values())) - len(involved),
        {rule: sorted(rows) for rule, rows in sorted(false.items())},
        {what: (len(hits), sum(hits)) for what, hits in sorted(harmless.items())},
        dict(sorted(also.items())),
    )


def _rows_of(fault: Fault) -> list[Where]:
    return [fault.at] if fault.other is None else [fault.at, fault.other]
