"""The folder of one run: the only state that commands share.

recipe.yaml  environment.json  metrics.jsonl  data/  checkpoints/step-00000500/  adapter/  export/merged/
reports/{check,train,evaluate,export}.{json,html}
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tunesmith._version import __version__
from tunesmith.config import Recipe
from tunesmith.control_groups import memory_kills
from tunesmith.durable import write_text
from tunesmith.errors import RunError, disk_errors
from tunesmith.recipe_file import load_recipe
from tunesmith.report import Report

TRAINING_SECTIONS = ("model", "data", "adapter", "train")
"""Sections that decide what is trained; the others may change at any time."""

MAY_CHANGE = (
    "data.test",
    "data.accept",
    "data.num_proc",
    "train.logging_steps",
    "train.save_steps",
    "train.save_total_limit",
    "train.max_tokens_per_micro_batch",
    "train.frozen_layers_cache_gb",
    "train.compile",
    "train.load_best_model_at_end",
    "train.on_unhealthy",
    "train.report_to",
)
"""Keys that may change between the parts of a run: what is trained stays the same, up to rounding, and with dropout up
to its noise, where the division of a step changes."""

MAY_GROW = ("train.num_train_epochs", "train.max_steps")
"""Keys that may only grow."""

RECORDED_PACKAGES = ("torch", "transformers", "peft", "accelerate", "safetensors", "tokenizers", "sacrebleu", "numpy")


class Run:
    """The folder of one run.

    Args:
        folder: where it is; `create` makes one, `open` reads one.

    Attributes:
        killed_for_memory: whether the system killed the last process on this run for lack of memory; known within
            `one_writer`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.killed_for_memory = False

    @classmethod
    def create(cls, folder: Path, recipe: Recipe, *, fresh: bool = False) -> Run:
        """Makes the run folder, or takes up the one that is there.

        Args:
            folder: the run folder.
            recipe: written to recipe.yaml with every default.
            fresh: move a run that is there aside, to FOLDER.1, FOLDER.2, ..., and start anew.

        Raises:
            RunError: the folder holds something that is not a run, or a trained run of another recipe.
            DiskError: it cannot be written.
        """
        run = cls(folder)
        if folder.is_dir() and not run.recipe_file.exists() and any(map(_is_foreign, folder.iterdir())):
            raise RunError(
                "this folder holds other files and is not a run", place=str(folder), remedy="choose another with --run"
            )
        if not fresh and run.has_trained:
            run._refuse_changes(recipe)
        with disk_errors(folder):
            if fresh and run.recipe_file.exists():
                run._move_aside()
            folder.mkdir(parents=True, exist_ok=True)
        write_text(run.recipe_file, recipe.to_yaml())
        begun = run.begun_on
        now = environment()
        write_text(run.environment_file, json.dumps({**now, "begun_on": begun or now["created"][:10]}, indent=2) + "\n")
        return run

    @classmethod
    def open(cls, folder: Path) -> Run:
        """The run in `folder`.

        Raises:
            RunError: there is none.
        """
        run = cls(folder)
        if not folder.is_dir():
            raise RunError("there is no such run folder", place=str(folder), remedy="tunesmith run RECIPE makes one")
        if not run.recipe_file.is_file():
            raise RunError("this folder is not a run: it has no recipe.yaml", place=str(folder))
        return run

    @property
    def recipe(self) -> Recipe:
        """The recipe that the run was made with.

        Raises:
            RecipeError: recipe.yaml was edited into something invalid.
        """
        return load_recipe(self.recipe_file)

    @property
    def begun_on(self) -> str | None:
        """The day (ISO) on which the run was begun, which dated chat templates keep writing; None before that."""
        try:
            begun = json.loads(self.environment_file.read_text(encoding="utf-8"))["begun_on"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return begun if isinstance(begun, str) and re.fullmatch(r"\d{4}-\d{2}-\d{2}", begun) else None

    @property
    def recipe_file(self) -> Path:
        return self.folder / "recipe.yaml"

    @property
    def environment_file(self) -> Path:
        return self.folder / "environment.json"

    @property
    def metrics_file(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def data_folder(self) -> Path:
        return self.folder / "data"

    @property
    def checkpoints_folder(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def adapter_folder(self) -> Path:
        return self.folder / "adapter"

    @property
    def merged_folder(self) -> Path:
        return self.folder / "export" / "merged"

    @contextmanager
    def one_writer(self) -> Iterator[None]:
        """Within the block no other process writes this run.

        The lock is the operating system's, so that it ends with its process however that ends; a note beside it says
        who holds it, or that the last holder ended without finishing.

        Raises:
            RunError: another process holds it.
            DiskError: the folder cannot be written.
        """
        place = self._place
        lock = place.with_name(f".{place.name}.lock")
        note = place.with_name(f".{place.name}.lock.json")
        with disk_errors(place.parent):
            place.parent.mkdir(parents=True, exist_ok=True)
            if not lock.exists():
                lock.touch()  # FileLock takes a file that cannot be made for one that another process holds
            try:
                held = FileLock(lock).acquire(blocking=False)
            except Timeout:
                raise RunError(
                    f"another process is at work on this run ({_holder(note)})",
                    place=str(self.folder),
                    remedy="wait for it or stop it, or choose another folder with --run",
                ) from None
        with held:
            kills = memory_kills()
            if note.exists():
                self.killed_for_memory = kills > _noted_kills(note)
                why = ": the system killed it for lack of memory" if self.killed_for_memory else ""
                print(f"the last process on this run ({_holder(note)}) did not finish{why}; going on", file=sys.stderr)
            about = {"pid": os.getpid(), "host": platform.node(), "since": _now(), "memory_kills": kills}
            write_text(note, json.dumps(about) + "\n")
            try:
                yield
            finally:
                note.unlink(missing_ok=True)

    @property
    def unverified_folder(self) -> Path:
        """Where a merged model lies until it is shown to answer as the adapter does."""
        return self.folder / "export" / "unverified"

    def forget_report(self, stage: str) -> None:
        """Removes the report of a stage that begins anew, so that an old one is not taken for its outcome."""
        with disk_errors(self.folder):
            for ending in ("json", "html"):
                (self.folder / "reports" / f"{stage}.{ending}").unlink(missing_ok=True)

    def forget_results(self) -> None:
        """Removes what was made from an adapter that is about to be replaced: its scores and its merged model."""
        for stage in ("evaluate", "export"):
            self.forget_report(stage)
        shutil.rmtree(self.merged_folder.parent, ignore_errors=True)

    def trained_adapter(self) -> Path:
        """The adapter folder of a run that was trained.

        Raises:
            RunError: the run has no adapter yet.
        """
        if not (self.adapter_folder / "adapter_config.json").is_file():
            raise RunError(
                "this run has no adapter yet", place=str(self.folder), remedy=f"tunesmith train {self.recipe_file}"
            )
        return self.adapter_folder

    def append_metrics(self, values: Mapping[str, Any]) -> None:
        """Adds one line to metrics.jsonl; a number that is not finite becomes null.

        Raises:
            DiskError: it cannot be written.
        """
        with disk_errors(self.folder), self.metrics_file.open("a", encoding="utf-8", newline="\n") as file:
            finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
            file.write(json.dumps(finite, ensure_ascii=False) + "\n")

    def read_metrics(self) -> Iterator[dict[str, Any]]:
        """The lines of metrics.jsonl; a last line cut short by a crash is left out."""
        if not self.metrics_file.is_file():
            return
        with self.metrics_file.open(encoding="utf-8") as file:
            for line in file:
                try:
                    yield json.loads(line)
                except ValueError:
                    return

    def keep_metrics(self, *, until_step: int) -> None:
        """Drops the lines of steps after `until_step`, which a resumed run will write again.

        Raises:
            DiskError: the file cannot be written.
        """
        kept = [json.dumps(line) + "\n" for line in self.read_metrics() if line.get("step", 0) <= until_step]
        if kept or self.metrics_file.exists():
            write_text(self.metrics_file, "".join(kept))

    def save_report(self, report: Report) -> Path:
        """Writes reports/STAGE.json and reports/STAGE.html; returns the page.

        Raises:
            DiskError: they cannot be written.
        """
        from tunesmith.report.html import render_html

        folder = self.folder / "reports"
        write_text(folder / f"{report.stage}.json", report.to_json())
        page = folder / f"{report.stage}.html"
        write_text(page, render_html(report))
        return page

    def load_report(self, stage: str) -> Report | None:
        """The report of `stage`, or None if that stage has not run."""
        path = self.folder / "reports" / f"{stage}.json"
        if not path.is_file():
            return None
        try:
            return Report.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"the report cannot be read: {error}", place=str(path), remedy="run the stage again"
            ) from None

    @property
    def has_trained(self) -> bool:
        """Whether training has begun here: there are checkpoints or an adapter."""
        return self.recipe_file.is_file() and (self.checkpoints_folder.is_dir() or self.adapter_folder.is_dir())

    def belongs_to_another(self, recipe: Recipe) -> bool:
        """Whether the folder holds a run that was trained with what `recipe` may not change."""
        return self.has_trained and bool(self._changes(recipe))

    def _changes(self, recipe: Recipe) -> list[str]:
        """What differs from the run's recipe, except for `MAY_CHANGE` and more epochs or steps."""
        old, changed = self.recipe, []
        for section in TRAINING_SECTIONS:
            before, after = getattr(old, section), getattr(recipe, section)
            for key in type(before).model_fields:
                name, was, now = f"{section}.{key}", getattr(before, key), getattr(after, key)
                longer = name in MAY_GROW and None not in (was, now) and now > was
                if was != now and name not in MAY_CHANGE and not longer:
                    changed.append(f"{name}: {_as_written(was)} -> {_as_written(now)}")
        return changed

    def _refuse_changes(self, recipe: Recipe) -> None:
        changed = self._changes(recipe)
        if changed:
            raise RunError(
                "this run was begun with another recipe\n" + "\n".join(f"  - {line}" for line in changed),
                place=str(self.folder),
                remedy="choose another folder with --run, or train anew with --fresh (the old run is kept aside)",
            )

    @property
    def _place(self) -> Path:
        """The folder with a name of its own, also where it was given as "." or "runs/demo/..": for what lies beside."""
        return Path(os.path.abspath(self.folder))  # noqa: PTH100 (Path.absolute keeps "..")

    def _move_aside(self) -> None:
        # Up to gigabytes that nothing would read again.
        shutil.rmtree(self.data_folder / "trunk", ignore_errors=True)
        place = self._place
        numbered = re.compile(re.escape(place.name) + r"\.(\d+)")
        taken = [int(found[1]) for path in place.parent.iterdir() if (found := numbered.fullmatch(path.name))]
        place.rename(place.with_name(f"{place.name}.{max(taken, default=0) + 1}"))


def _as_written(value: object) -> str:
    """A value as it stands in a recipe."""
    return "null" if value is None else str(value)


def _is_foreign(path: Path) -> bool:
    """Not a file that a process of ours was writing when it was killed; see `durable`."""
    return not (path.name.startswith(".") and path.name.endswith(".new"))


def _holder(note: Path) -> str:
    try:
        held = json.loads(note.read_text(encoding="utf-8"))
        return f"process {held['pid']} on {held['host']}, since {held['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "it left no note"


def _noted_kills(note: Path) -> int:
    """How many kills for memory the last process saw when it began; infinite (no evidence) where it left no number."""
    try:
        return int(json.loads(note.read_text(encoding="utf-8"))["memory_kills"])
    except (OSError, ValueError, KeyError, TypeError):
        return sys.maxsize


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def environment() -> dict[str, Any]:
    """Versions and machine, for the record."""
    packages = {}
    for name in RECORDED_PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "tunesmith": __version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "packages": packages,
        "created": _now(),
    }
