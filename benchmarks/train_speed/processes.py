"""Runs one configuration in a process of its own, and returns what it measured.

The peak of memory is the kernel's account of the whole life of that process (VmHWM, as `wait4` hands it over).
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.train_speed import examples
from benchmarks.train_speed.configurations import ALPHA, LEARNING_RATE, RANK, Configuration
from benchmarks.train_speed.peers import Job

LONGEST_SECONDS = 1800
"""A process that takes longer is ended, and reported as failed."""


class FailedError(Exception):
    """A process did not give its figures; the message is the reason."""


@dataclass(frozen=True)
class Place:
    """Where a configuration runs.

    Args:
        folder: for its files; empty.
        model_folder: config.json, safetensors and tokenizer.
        rows: the examples.
        precision: fp32 or bf16.
    """

    folder: Path
    model_folder: Path
    rows: Sequence[examples.Row]
    precision: str


@dataclass(frozen=True)
class Usage:
    """What a process took, its children with it.

    Args:
        peak_bytes: most resident memory of one process.
        cpu_seconds: of user and system; much less than cores times `wall_seconds` shows that others ran beside it.
        wall_seconds: from start to end, imports and checks included.
    """

    peak_bytes: int
    cpu_seconds: float
    wall_seconds: float


def run_process(command: Sequence[str], log: Path) -> Usage:
    """Runs `command` with its output in `log`.

    Raises:
        FailedError: it ended with another code than 0, or had to be ended.
    """
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    started = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, cwd=examples.ROOT)
    timer = threading.Timer(LONGEST_SECONDS, process.kill)
    timer.start()
    try:
        _, status, usage = os.wait4(process.pid, 0)
    finally:
        timer.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
        raise FailedError(f"exit code {process.returncode}: {last[:300]}")
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Usage(peak, usage.ru_utime + usage.ru_stime, time.monotonic() - started)


def measure(one: Configuration, place: Place) -> dict[str, Any]:
    """Runs `one` and returns its raw figures: of each step tokens a second and loss, memory, and sums of all steps.

    Raises:
        FailedError: it did not end well, or counted fewer steps than it should.
    """
    raw = _tunesmith(one, place) if one.tool == "tunesmith" else _peer(one, place)
    if len(raw["tokens_per_second"]) != one.warm + one.steady:
        raise FailedError(f"{len(raw['tokens_per_second'])} steps were measured, {one.warm + one.steady} were wanted")
    return raw


def _peer(one: Configuration, place: Place) -> dict[str, Any]:
    tokens, output = place.folder / "tokens.jsonl", place.folder / "result.json"
    encoded = examples.tokenize(place.rows, place.model_folder)
    examples.write_tokens(encoded if one.tool == "article" else examples.grouped(encoded, one.batch), tokens)
    job = Job(
        tool=one.tool,
        model_folder=str(place.model_folder),
        tokens=str(tokens),
        batch=one.batch,
        steps=one.warm + one.steady,
        precision=place.precision,
        settings=one.settings,
        output=str(output),
    )
    job_file = place.folder / "job.json"
    job_file.write_text(json.dumps(asdict(job)), encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks.train_speed.peers", str(job_file)]
    usage = run_process(command, place.folder / "log.txt")
    return {**json.loads(output.read_text(encoding="utf-8")), **asdict(usage)}


def _tunesmith(one: Configuration, place: Place) -> dict[str, Any]:
    """`tunesmith train` with a recipe; speed and loss from metrics.jsonl, sums from the last checkpoint."""
    data, recipe_file, run = place.folder / "train.jsonl", place.folder / "recipe.yaml", place.folder / "run"
    examples.write_rows(place.rows, data)
    recipe = recipe_of(one, place, data)
    recipe_file.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    edits = [part for key, value in one.settings.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    command = [sys.executable, "-m", "tunesmith.cli", "train", str(recipe_file), "--run", str(run), *edits]
    usage = run_process(command, place.folder / "log.txt")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if "tokens_per_second" in line]
    state = json.loads(max((run / "checkpoints").glob("step-*/state.json")).read_text(encoding="utf-8"))
    return {
        "tokens_per_second": [step["tokens_per_second"] for step in steps],
        "losses": [step["loss"] for step in steps],
        "all_tokens": state["tokens"],
        "all_seconds": state["seconds"],
        "events": [line["event"] for line in lines if "event" in line],
        **asdict(usage),
    }


def recipe_of(one: Configuration, place: Place, data: Path) -> dict[str, Any]:
    """The recipe that every Tunesmith run begins with; its settings are edits of it."""
    return {
        "model": {"name": str(place.model_folder), "precision": place.precision},
        "data": {"train": str(data)},
        "adapter": {"r": RANK, "lora_alpha": ALPHA, "target_modules": "all-linear"},
        "train": {
            "max_steps": one.warm + one.steady,
            "per_device_train_batch_size": one.batch,
            "learning_rate": LEARNING_RATE,
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
        },
        "export": {"merge": False},
    }


def imports_only_bytes(folder: Path) -> int:
    """Peak memory of a process that imports Tunesmith's pipeline and does nothing.

    Raises:
        FailedError: it cannot be imported.
    """
    return run_process([sys.executable, "-c", "import tunesmith.pipeline"], folder / "imports.txt").peak_bytes
