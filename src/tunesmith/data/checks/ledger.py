"""Which rows stay: read = kept + dropped + merged in every split, to the row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.checks.entries import Action, Entry, FlagStore, Journal
from tunesmith.data.checks.scan import one_line
from tunesmith.data.checks.scanned import ScannedSplit

Reasons = Callable[[int], str]
"""Row to what shows the fault."""


class Ledger:
    """The rows of all splits, and what becomes of them.

    Args:
        splits: the splits after the first pass; all their usable rows are kept at first.
        journal: what was left out and changed; entries are added.
        flags: what was found and only reported; entries are added.
    """

    def __init__(self, splits: Mapping[str, ScannedSplit], journal: Journal, flags: FlagStore) -> None:
        self.splits = splits
        self.journal = journal
        self._flags = flags
        self._is_kept = {name: np.ones(len(split), dtype=np.bool_) for name, split in splits.items()}

    def rows(self, name: str) -> NDArray[np.int64]:
        """The rows of a split that are kept, rising."""
        return np.flatnonzero(self._is_kept[name])

    def leave_out(
        self, name: str, rows: Iterable[int], rule: str, reason: Reasons, *, action: Action = Action.DROPPED
    ) -> None:
        """Takes rows out of a split; those that are out already stay as they are.

        Args:
            name: the split.
            rows: its rows.
            rule: the rule or code that leaves them out.
            reason: why, for a row.
            action: dropped, or merged into another row that stays.
        """
        split = self.splits[name]
        is_kept_N = self._is_kept[name]
        for row in map(int, rows):
            if is_kept_N[row]:
                is_kept_N[row] = False
                example = split.examples[row]
                self.journal.add(Entry(name, example.place, action, rule, reason(row), one_line(example)))

    def flag(self, name: str, rows: Iterable[int], rule: str, reason: Reasons) -> None:
        """Notes rows that only are to be reported."""
        for row in map(int, rows):
            self._flags.add(name, row, rule, reason(row))

    def handle(self, name: str, rows: Iterable[int], rule: str, reason: Reasons, *, fix: bool) -> None:
        """Leaves rows of train out where the rule is to be fixed; else they are only reported."""
        if fix and name == "train":
            self.leave_out(name, rows, rule, reason)
        else:
            self.flag(name, rows, rule, reason)

    def report_flags(self, flagged: Journal) -> None:
        """Adds what was only reported to `flagged`, of rows that are kept; call it once, at the end."""
        for name, split in self.splits.items():
            is_kept_N = self._is_kept[name]
            for row, rule, reason in self._flags.of(name):
                if is_kept_N[row]:
                    flagged.add(Entry(name, split.places[row], Action.FLAGGED, rule, reason))

    def accounts(self) -> dict[str, dict[str, int]]:
        """For each split how many rows were read, kept, dropped and merged.

        Raises:
            AssertionError: they do not add up.
        """
        accounts = {}
        for name, split in self.splits.items():
            kept = int(self._is_kept[name].sum())
            dropped = self.journal.count(split=name, action=Action.DROPPED)
            merged = self.journal.count(split=name, action=Action.MERGED)
            if split.rows_read != kept + dropped + merged:
                raise AssertionError(f"{name}: {split.rows_read} read, {kept} kept, {dropped} dropped, {merged} merged")
            accounts[name] = {"read": split.rows_read, "kept": kept, "dropped": dropped, "merged": merged}
        return accounts
