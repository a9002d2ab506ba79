"""What happened to a row, and the journal of all that happened.

`data/dropped.jsonl` has one line for each row left out and each text changed, `data/flagged.jsonl` one for each row and
rule that was only reported. Both are written as the data are read, so their size does not matter.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from tunesmith.data.records import Place
from tunesmith.data.store import Blobs, Scratch
from tunesmith.durable import move
from tunesmith.errors import disk_errors

_READ_AT_ONCE = 1024

SHOWN = 3
"""Examples of each finding that a report shows."""


class Action(str, Enum):
    """What was done with a row."""

    DROPPED = "dropped"
    MERGED = "merged"
    CHANGED = "changed"
    FLAGGED = "flagged"


@dataclass(frozen=True, slots=True)
class Entry:
    """One row and what a rule did with it.

    Args:
        split: train, validation, test or benchmarks.
        place: where the row stands.
        action: what was done.
        rule: a key of the recipe's `data.rules`, or the code of another check, as "bad-row".
        reason: what shows the fault, or why the row cannot be used.
        before: the row, or the text that was changed.
        after: the changed text.
    """

    split: str
    place: Place
    action: Action
    rule: str
    reason: str
    before: str | None = None
    after: str | None = None

    def to_json(self) -> str:
        """One line of JSON without its end."""
        values = {
            "split": self.split,
            "file": self.place.file,
            "row" if self.place.is_row_number else "line": self.place.line,
            "action": self.action.value,
            "rule": self.rule,
            "reason": self.reason,
            "before": self.before,
            "after": self.after,
        }
        # A surrogate that UTF-8 cannot hold is written as an escape.
        text = json.dumps({key: value for key, value in values.items() if value is not None}, ensure_ascii=False)
        return text.encode("utf-8", "backslashreplace").decode()


class Journal:
    """Entries on disk, with their counts and the first few of each kind in memory.

    Args:
        path: the file; it must not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with disk_errors(path):
            self._file = path.open("x", encoding="utf-8", newline="\n")
        self._counts: Counter[tuple[str, str, Action]] = Counter()
        self._first: dict[tuple[str, Action], list[str]] = defaultdict(list)

    def add(self, entry: Entry) -> None:
        """Appends one.

        Raises:
            DiskError: the disk is full or fails.
        """
        with disk_errors(self.path):
            self._file.write(entry.to_json() + "\n")
        self._counts[entry.split, entry.rule, entry.action] += 1
        first = self._first[entry.rule, entry.action]
        if len(first) < SHOWN:
            first.append(f"{entry.place}: {entry.reason}")

    def finish(self) -> None:
        """Ends the writing.

        Raises:
            DiskError: the disk is full or fails.
        """
        with disk_errors(self.path):
            self._file.close()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            with suppress(OSError):  # after an error nobody needs the rest
                self._file.close()

    def move_to(self, path: Path) -> None:
        """Puts the finished file at `path`, on the same file system, in one step.

        Raises:
            DiskError: it cannot be renamed.
        """
        move(self.path, path)
        self.path = path

    def count(self, *, split: str | None = None, rule: str | None = None, action: Action | None = None) -> int:
        """Entries of a split, a rule and an action; None counts all."""
        return sum(
            count
            for (one_split, one_rule, one_action), count in self._counts.items()
            if split in (None, one_split) and rule in (None, one_rule) and action in (None, one_action)
        )

    def rules(self) -> Iterator[tuple[str, Action]]:
        """Each rule and action that there are entries of, in the order of the first."""
        return iter(self._first)

    def by_split(self, rule: str, action: Action) -> dict[str, int]:
        """How many entries of a rule and an action each split has."""
        return {split: n for (split, one, what), n in self._counts.items() if (one, what) == (rule, action)}

    def evidence(self, rule: str, action: Action) -> tuple[str, ...]:
        """The first entries of a rule and an action, each in one line."""
        return tuple(self._first[rule, action])


class FlagStore:
    """What was found and only reported, on disk, until it is known which rows stay: of others it is of no interest.

    Args:
        scratch: where to keep it.
    """

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch
        self._kept: dict[str, tuple[Blobs, array[int]]] = {}

    def add(self, split: str, row: int, rule: str, reason: str) -> None:
        """Appends one.

        Raises:
            DiskError: the disk is full or fails.
        """
        if split not in self._kept:
            self._kept[split] = (Blobs(self._scratch, f"{split}.flags"), array("q"))
        blobs, rows = self._kept[split]
        content = f"{rule}\t{reason}".encode("utf-8", "surrogatepass")
        blobs.extend(content, [len(content)])
        rows.append(row)

    def of(self, split: str) -> Iterator[tuple[int, str, str]]:
        """Row, rule and reason of each, in the order of adding; nothing can be added afterwards."""
        if split not in self._kept:
            return
        blobs, rows = self._kept[split]
        for at in range(0, len(rows), _READ_AT_ONCE):
            stop = min(at + _READ_AT_ONCE, len(rows))
            for row, content in zip(rows[at:stop], blobs.read(at, stop), strict=True):
                rule, _, reason = content.decode("utf-8", "surrogatepass").partition("\t")
                yield row, rule, reason
