"""The cleaned splits as files, with a manifest and the lists of rows left out: for whoever trains elsewhere."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from tunesmith.config import HubDataset, Recipe
from tunesmith.data.checks.audit import Audit
from tunesmith.data.checks.entries import Journal
from tunesmith.data.checks.splits import Split
from tunesmith.data.records import Example
from tunesmith.durable import replaced_folder
from tunesmith.errors import DataError, disk_errors
from tunesmith.progress import track

MANIFEST = "manifest.json"

KIND = "tunesmith cleaned splits"
"""What the manifest says of itself: only such a folder is ever replaced."""

_READ_AT_ONCE = 256


def write_cleaned(audit: Audit, folder: Path, recipe: Recipe) -> None:
    """Writes train.jsonl, validation.jsonl and test.jsonl as messages, the accounts of the rows, and manifest.json.

    Rows are those in use: mended, without those left out, repeated where the classes are balanced by that. They are
    whole, not cut to a length; where the classes are balanced by weight, each has a column `weight`. The lists of
    rows are without their texts, which may hold what was masked. A folder written before is replaced in one step;
    any other folder is left alone.

    Args:
        audit: of the recipe's data.
        folder: where to write.
        recipe: what was checked.

    Raises:
        DataError: the folder holds something else, or data that the recipe reads.
        DiskError: it cannot be written; what was there stays.
    """
    check_target(folder, recipe)
    with replaced_folder(folder, option="--write") as beside:
        files = {name: _write_split(beside, name, split) for name, split in audit.splits.items()}
        for journal in (audit.journal, audit.flagged):
            _copy_without_texts(journal, beside / journal.path.name)
        manifest = {
            "kind": KIND,
            "format": 1,
            "balance": recipe.data.balance,
            "recipe_digest": recipe.digest(),
            "max_length": audit.max_length,
            "passed": audit.report.passed,
            "splits": {
                name: {**about, "sources": _source_names(getattr(recipe.data, name)), **audit.accounts[name]}
                for name, about in files.items()
            },
            "rules": _counts(audit.journal, audit.flagged),
        }
        text = json.dumps(manifest, ensure_ascii=False, indent=2) + "\n"
        (beside / MANIFEST).write_text(text, encoding="utf-8", newline="\n")


def check_target(folder: Path, recipe: Recipe) -> None:
    """Whether `write_cleaned` may write to `folder`.

    Raises:
        DataError: it may not: the folder holds something else, or data that the recipe reads.
        DiskError: the system refuses to look at it.
    """
    with disk_errors(folder, option="--write"):
        _check_target(folder, recipe)


def _check_target(folder: Path, recipe: Recipe) -> None:
    target = Path(os.path.realpath(folder))  # pathlib's resolve raises in a circle of links
    if target in (Path.cwd(), Path(target.anchor)):
        remedy = "name a folder of its own with --write"
        raise DataError("this is the folder you are in, or the root", place=str(folder), remedy=remedy)
    if folder.exists() and not folder.is_dir():
        raise DataError("this is a file, not a folder", place=str(folder), remedy="name a folder with --write")
    if folder.is_dir() and not {path.name for path in folder.iterdir()} <= _own_files(folder):
        remedy = "name a folder with --write that does not exist yet, or is empty"
        raise DataError("the folder holds other files", place=str(folder), remedy=remedy)
    for name in ("train", "validation", "test", "benchmarks"):
        for source in _source_names(getattr(recipe.data, name) or []):
            if target in Path(source).expanduser().resolve().parents:
                raise DataError(
                    f"data.{name} is read from this folder", place=str(folder), remedy="choose another with --write"
                )


def _own_files(folder: Path) -> set[str]:
    """The files that an earlier `write_cleaned` put into a folder; none where it did not."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["kind"] != KIND:
            return set()
        return {MANIFEST, "dropped.jsonl", "flagged.jsonl", *(one["file"] for one in manifest["splits"].values())}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()


def _copy_without_texts(journal: Journal, target: Path) -> None:
    with journal.path.open(encoding="utf-8") as source, target.open("x", encoding="utf-8", newline="\n") as file:
        for line in source:
            entry = json.loads(line)
            entry.pop("before", None)
            entry.pop("after", None)
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")


def _write_split(folder: Path, name: str, split: Split) -> dict[str, Any]:
    path = folder / f"{name}.jsonl"
    digest = sha256()
    examples = split.examples
    with path.open("xb") as file:
        for at in track(range(0, len(examples), _READ_AT_ONCE), f"Writing {name}"):
            weights = split.weights(at, at + _READ_AT_ONCE)
            content = "".join(map(_row, examples[at : at + _READ_AT_ONCE], weights)).encode()
            digest.update(content)
            file.write(content)
    return {"file": path.name, "rows": len(examples), "sha256": digest.hexdigest()}


def _row(example: Example, weight: float | None) -> str:
    values: dict[str, Any] = (
        {"text": example.text}
        if example.text is not None
        else {"messages": [{"role": message.role, "content": message.content} for message in example.messages]}
    )
    if weight is not None:
        values["weight"] = round(weight, 6)
    return json.dumps(values, ensure_ascii=False) + "\n"


def _source_names(sources: list[str | HubDataset]) -> list[str]:
    return [f"hub:{source.path}" if isinstance(source, HubDataset) else source for source in sources]


def _counts(*journals: Journal) -> dict[str, dict[str, dict[str, int]]]:
    """Rule -> what was done -> split -> rows or texts."""
    counts: dict[str, dict[str, dict[str, int]]] = defaultdict(dict)
    for journal in journals:
        for rule, action in journal.rules():
            counts[rule][action.value] = journal.by_split(rule, action)
    return counts
