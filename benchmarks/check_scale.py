"""What `tunesmith check` takes in time, memory and disk, from ten thousand rows to a million.

Each size is a process of its own, on made rows of about 200 tokens (SmolLM2-135M's tokenizer) with a test split of
1,000 rows. Every hundredth row is repeated word for word, so that it is known how many are merged. The bars: a million
rows in less than 600 seconds and 3 GB, all processes together, and a time a row that does not grow.

Usage: python -m benchmarks.check_scale [--sizes N,N,...] [--folder FOLDER]     (`make bench-check-scale`)
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from tests.planted import Pair, as_messages, english

from benchmarks.machine import describe_machine
from tunesmith.control_groups import usable_cores
from tunesmith.report import Report, Series, Severity, Table
from tunesmith.report.html import render_html

RESULTS = Path(__file__).parent / "results" / "check_scale.json"

SIZES = (10_000, 100_000, 1_000_000)
TEST_ROWS = 1_000
REPEAT_EVERY = 100
"""Every row with a number that this divides is one that stood before."""

MOST_SECONDS = 600
MOST_BYTES = 3e9
LARGE = 1_000_000
"""From so many rows on the two bars above hold."""

MOST_GROWTH = 1.25
"""Largest ratio of the time a row to that of the next smaller size."""

SAMPLE_SECONDS = 0.2
MODEL = "smollm2-135m"


def rows(count: int, seed: int) -> Iterator[Pair]:
    """So many rows, some of them repeated."""
    source = english(seed)
    before = next(english(seed + 1))
    for number in range(1, count + 1):
        if number % REPEAT_EVERY == 0:
            yield before
            continue
        pair = next(source)
        if number % REPEAT_EVERY == REPEAT_EVERY // 2:
            before = pair
        yield pair


def write_rows(path: Path, pairs: Iterator[Pair]) -> int:
    """Writes rows as messages; returns the bytes."""
    with path.open("w", encoding="utf-8") as file:
        for chunk in iter(lambda: list(islice(pairs, 1000)), []):
            file.write(
                "".join(json.dumps(as_messages(p.prompt, p.answer, ""), ensure_ascii=False) + "\n" for p in chunk)
            )
    return path.stat().st_size


class Watch(threading.Thread):
    """Measures a process and all below it until it ends, from /proc.

    Args:
        process: the process.
        folders: where it may write; their size is the disk it uses.

    Attributes:
        peak_bytes: most memory of all processes together; pages that several share count once (PSS).
        peak_main_bytes: most resident memory of the first process alone (VmHWM).
        peak_disk_bytes: most bytes in the folders.
        most_processes: most processes at once.
    """

    def __init__(self, process: subprocess.Popen[bytes], folders: list[Path]) -> None:
        super().__init__(daemon=True)
        self._process = process
        self._folders = folders
        self.peak_bytes = self.peak_main_bytes = self.peak_disk_bytes = self.most_processes = 0

    def run(self) -> None:
        while self._process.poll() is None:
            family = _family(self._process.pid)
            self.most_processes = max(self.most_processes, len(family))
            self.peak_bytes = max(self.peak_bytes, sum(_field(f"{pid}/smaps_rollup", "Pss") for pid in family))
            self.peak_main_bytes = max(self.peak_main_bytes, _field(f"{self._process.pid}/status", "VmHWM"))
            self.peak_disk_bytes = max(self.peak_disk_bytes, sum(map(_size, self._folders)))
            time.sleep(SAMPLE_SECONDS)


def _family(first: int) -> list[int]:
    """A process and all below it."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 - a name is all that is needed, five times a second
        if name.isdigit():
            try:
                parent = int(Path("/proc", name, "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):  # it has ended
                continue
            children.setdefault(parent, []).append(int(name))
    found = [first]
    for pid in found:
        found += children.get(pid, [])
    return found


def _field(name: str, key: str) -> int:
    """A number of kB in a file of /proc, in bytes; 0 where the process has ended."""
    try:
        text = Path("/proc", name).read_text()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in text.splitlines() if line.startswith(f"{key}:")), 0)


def _size(folder: Path) -> int:
    """Bytes that the files of a folder take."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += 512 * os.lstat(os.path.join(root, name)).st_blocks  # noqa: PTH118 - runs five times a second
            except OSError:  # removed meanwhile
                continue
    return total


def measure(size: int, parent: Path | None) -> dict[str, Any]:
    """Checks one size in a process of its own."""
    with tempfile.TemporaryDirectory(dir=parent) as name:
        folder = Path(name)
        started = time.perf_counter()
        input_bytes = write_rows(folder / "train.jsonl", rows(size, seed=size))
        write_rows(folder / "test.jsonl", islice(english(1), TEST_ROWS))
        written = time.perf_counter() - started
        (folder / "scratch").mkdir()
        recipe = {
            "model": {"name": MODEL},
            "data": {"train": str(folder / "train.jsonl"), "test": str(folder / "test.jsonl")},
        }
        (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
        command = ["check", str(folder / "recipe.yaml"), "--run", str(folder / "run"), "--json"]
        started = time.perf_counter()
        with (folder / "errors.txt").open("wb") as errors, (folder / "report.json").open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "tunesmith.cli", *command],
                stdout=output,
                stderr=errors,
                env={**os.environ, "TMPDIR": str(folder / "scratch")},
            )
            watch = Watch(process, [folder / "scratch", folder / "run"])
            watch.start()
            code = process.wait()
        seconds = time.perf_counter() - started
        watch.join()
        if code != 0:
            message = (folder / "errors.txt").read_text(encoding="utf-8", errors="replace")[-2000:]
            print(f"{size:,} rows: exit code {code}\n{message}", file=sys.stderr)
        return {
            "rows": size,
            "exit_code": code,
            "seconds": seconds,
            "rows_per_second": size / seconds,
            "microseconds_per_row": 1e6 * seconds / size,
            "peak_memory_bytes": watch.peak_bytes,
            "peak_main_process_bytes": watch.peak_main_bytes,
            "most_processes": watch.most_processes,
            "peak_disk_bytes": watch.peak_disk_bytes,
            "input_bytes": input_bytes,
            "writing_input_seconds": written,
            "repeats": size // REPEAT_EVERY,
            "repeats_found": _dropped(folder / "run", "exact_duplicates"),
            "leaked": _dropped(folder / "run", "leakage"),
        }


def _dropped(run: Path, rule: str) -> int:
    path = run / "data" / "dropped.jsonl"
    if not path.is_file():
        return 0
    with path.open(encoding="utf-8") as file:
        return sum(json.loads(line)["rule"] == rule for line in file)


def failures(results: list[dict[str, Any]]) -> list[str]:
    """The bars that are missed, in words."""
    missed = []
    for before, one in zip([None, *results], results, strict=False):
        rows_ = f"{one['rows']:,} rows"
        if one["exit_code"] != 0:
            missed.append(f"{rows_}: exit code {one['exit_code']}")
        # A row whose original shares a passage with a test row by chance is left out as a leak, as its copy is.
        if not one["repeats"] - one["leaked"] <= one["repeats_found"] <= one["repeats"]:
            missed.append(f"{rows_}: {one['repeats_found']} of {one['repeats']} repeats found")
        if one["rows"] >= LARGE and one["seconds"] >= MOST_SECONDS:
            missed.append(f"{rows_}: {one['seconds']:.0f} s, the bar is {MOST_SECONDS}")
        if one["rows"] >= LARGE and one["peak_memory_bytes"] >= MOST_BYTES:
            missed.append(f"{rows_}: {one['peak_memory_bytes'] / 1e9:.2f} GB, the bar is {MOST_BYTES / 1e9:.0f}")
        if before and one["microseconds_per_row"] > MOST_GROWTH * before["microseconds_per_row"]:
            growth = one["microseconds_per_row"] / before["microseconds_per_row"]
            missed.append(f"{rows_}: {growth:.2f} times the time a row of {before['rows']:,} rows")
    return missed


def build_report(results: list[dict[str, Any]], missed: list[str]) -> Report:
    """The page with the charts."""
    report = Report("benchmark", "tunesmith check by the number of rows")
    sizes = tuple(float(one["rows"]) for one in results)
    for chart, key, factor, unit in (
        ("Time a row", "microseconds_per_row", 1.0, "µs"),
        ("Time in all", "seconds", 1.0, "s"),
        ("Peak memory of all processes", "peak_memory_bytes", 1e-9, "GB"),
        ("Peak disk of scratch and run folder", "peak_disk_bytes", 1e-9, "GB"),
    ):
        values = tuple(factor * one[key] for one in results)
        report.series.append(Series(chart, chart, sizes, values, "rows", unit, "bar"))
    columns = ("rows", "s", "rows/s", "µs a row", "GB of memory", "GB of the main process", "processes", "GB of disk")
    report.tables.append(Table("Sizes", columns, tuple(_cells(one) for one in results)))
    for failure in missed:
        report.add_finding(Severity.ERROR, "bar-missed", failure)
    return report


def _cells(one: dict[str, Any]) -> tuple[int | float, ...]:
    return (
        one["rows"],
        round(one["seconds"], 1),
        round(one["rows_per_second"]),
        round(one["microseconds_per_row"], 1),
        round(one["peak_memory_bytes"] / 1e9, 2),
        round(one["peak_main_process_bytes"] / 1e9, 2),
        one["most_processes"],
        round(one["peak_disk_bytes"] / 1e9, 2),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--sizes",
        type=lambda text: sorted(int(part.replace("_", "")) for part in text.split(",")),
        default=list(SIZES),
        metavar="N,N,...",
        help=f"rows of train (default: {','.join(map(str, SIZES))})",
    )
    parser.add_argument("--folder", type=Path, help="where the data and the scratch files lie (default: the system's)")
    options = parser.parse_args()
    results = []
    heads = ("rows", "s", "rows/s", "us/row", "GB all", "GB main", "processes", "GB disk")
    print("".join(f"{head:>11}" for head in heads), flush=True)
    for size in options.sizes:
        results.append(measure(size, options.folder))
        print("".join(f"{cell:>11,}" for cell in _cells(results[-1])), flush=True)
    missed = failures(results)
    machine = {**describe_machine(), "cores": usable_cores()}
    result = {"machine": machine, "model": MODEL, "test_rows": TEST_ROWS, "sizes": results, "failures": missed}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    RESULTS.with_suffix(".html").write_text(render_html(build_report(results, missed)), encoding="utf-8")
    print("\n".join(missed) or "every bar is met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
