"""Injects faults into real training runs by real means, and counts what is lost. The target is nothing.

Each try trains a tiny model in a process of its own, with one fault: killed at a write, sync or rename; killed at a
random moment; a full disk; a damaged checkpoint; memory that runs out; and so on. Then the same command runs again
without the fault. A try passes when the final adapter has the SHA-256 of the undisturbed run's, or, where the fault
forbids that (changed data, a loss that is no number), when there is one clear message and the last good state stays.

Usage: python -m benchmarks.faults [--short]     (`make test-faults`)
"""

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# One thread: a forked child must not wait for threads that only its parent has; and the tiny model needs no more.
os.environ["OMP_NUM_THREADS"] = "1"

import torch
from tests.orders import tiny_recipe, write_orders
from tests.tiny import CHATML, byte_tokenizer, tiny_model_folder

from tunesmith import failpoints, pipeline
from tunesmith.errors import TunesmithError
from tunesmith.recipe_file import load_recipe

RESULTS = Path(__file__).parent / "results" / "faults.json"
RUN = Path("runs") / "run"
"""Below the folder of a try: all runs and their parents have one name, since fail-points are called by file names."""

STEPS = 12
TRAINING = {
    "max_steps": STEPS,
    "learning_rate": 1e-2,
    "per_device_train_batch_size": 3,
    "gradient_accumulation_steps": 2,
    "logging_steps": 2,
    "eval_steps": 4,
    "save_steps": 3,
    "save_total_limit": 2,
    "early_stopping_patience": 3,
}
CLOSE = 1e-3
"""Largest difference of a weight where memory ran out: other micro-batches round otherwise."""


@dataclass
class Row:
    """One kind of fault."""

    fault: str
    tries: int = 0
    lost: list[str] = field(default_factory=list)


class Suite:
    """The folder of all tries, the recipe, and the undisturbed run that the others are compared with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = tiny_model_folder(folder / "model")
        values = tiny_recipe(folder, self.model, adapter={"lora_dropout": 0.1}, train=TRAINING)
        self.recipe = load_recipe({**values, "train": TRAINING})
        self.rows: dict[str, Row] = {}
        self.number = 0
        log = folder / "points"
        started = time.monotonic()
        code, message = self.train(folder / "reference" / RUN, environment={failpoints.LOG_VARIABLE: str(log)})
        self.seconds = time.monotonic() - started
        if code != 0:
            raise SystemExit(f"the undisturbed run failed: {message}")
        self.points = _numbered(log.read_text(encoding="utf-8").split())
        self.reference = digest(folder / "reference" / RUN)

    def train(
        self, run: Path, *, environment: dict[str, str] | None = None, prepare: Callable[[], None] | None = None
    ) -> tuple[int, str]:
        """Trains in a forked process; its exit code (negative: the signal) and the message it ended with."""
        process, output = self.start(run, environment=environment, prepare=prepare)
        return wait(process, output)

    def start(
        self, run: Path, *, environment: dict[str, str] | None = None, prepare: Callable[[], None] | None = None
    ) -> tuple[int, Path]:
        """Starts training in a forked process; its id and the file it writes to."""
        self.number += 1
        output = self.folder / f"output-{self.number}"
        output.touch()
        process = os.fork()
        if process == 0:
            _child(self, run, output, environment or {}, prepare)
        return process, output

    def check(self, fault: str, run: Path, problem: str | None = None, *, wanted: str | None = None) -> None:
        """Counts one try: goes on without the fault, and compares the result."""
        row = self.rows.setdefault(fault, Row(fault))
        row.tries += 1
        if problem is None:
            code, message = self.train(run)
            if code != 0:
                problem = f"going on ended with {code}: {message}"
            elif digest(run) != (wanted or self.reference):
                problem = "the adapter is another"
        if problem is not None:
            row.lost.append(f"{run.parent.parent.name}: {problem}")
        shutil.rmtree(run.parent.parent, ignore_errors=True)

    @contextmanager
    def fresh(self, name: str) -> Iterator[Path]:
        """A run folder for one try."""
        self.number += 1
        yield self.folder / f"{name}-{self.number}" / RUN


def _child(
    suite: Suite, run: Path, output: Path, environment: dict[str, str], prepare: Callable[[], None] | None
) -> None:
    os.environ.update(environment)
    failpoints.reload()
    with output.open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    code = 1
    try:
        if prepare is not None:
            prepare()
        pipeline.train(suite.recipe, run)
        code = 0
    except TunesmithError as error:
        print(f"tunesmith: error: {error}", file=sys.stderr)
        code = error.exit_code
    except BaseException as error:
        print(f"Traceback: {type(error).__name__}: {error}", file=sys.stderr)
        code = 99
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(process: int, output: Path) -> tuple[int, str]:
    """Waits for a process that `Suite.start` began."""
    _, status = os.waitpid(process, 0)
    text = output.read_text(encoding="utf-8", errors="replace").strip()
    return os.waitstatus_to_exitcode(status), text[-600:]


def digest(run: Path) -> str:
    """SHA-256 of the adapter's weights."""
    return hashlib.sha256((run / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


def _numbered(points: list[str]) -> list[tuple[str, int]]:
    return [(point, points[: index + 1].count(point)) for index, point in enumerate(points)]


def checkpoint_state(run: Path) -> dict[str, str]:
    """Digest of every file of the checkpoints and the adapter, by name."""
    files = [p for part in ("checkpoints", "adapter") for p in sorted((run / part).rglob("*")) if p.is_file()]
    return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def killed_at_every_point(suite: Suite, every: int) -> None:
    durable = [p for p in suite.points if p[0].split(":")[0] in ("write", "sync", "rename")]
    for point, passing in durable[::every]:
        with suite.fresh("kill") as run:
            code, message = suite.train(run, environment={failpoints.VARIABLE: f"{point}@{passing}=kill"})
            problem = None if code == -signal.SIGKILL else f"was not killed at {point}@{passing}: {code} {message}"
            suite.check("SIGKILL at each write, sync and rename", run, problem)


def killed_at_random_moments(suite: Suite, count: int) -> None:
    generator = random.Random(0)
    for _ in range(count):
        with suite.fresh("moment") as run:
            process, output = suite.start(run)
            time.sleep(generator.uniform(0, suite.seconds))
            os.kill(process, signal.SIGKILL)
            wait(process, output)
            suite.check("SIGKILL at a random moment", run)


def stopped_within_a_step(suite: Suite, count: int) -> None:
    for step in range(1, count + 1):
        for passing in (1, 2):
            with suite.fresh("term") as run:
                where = f"forward:{step}@{passing}=term"
                code, message = suite.train(run, environment={failpoints.VARIABLE: where})
                problem = None if code == 75 else f"ended with {code}, not 75: {message}"
                suite.check("SIGTERM in the middle of accumulation", run, problem)


def disk_errors(suite: Suite, every: int) -> None:
    writes = [p for p in suite.points if p[0].startswith("write:")]
    for action in ("enospc", "eio", "short", "erofs"):
        for point, passing in writes[::every]:
            with suite.fresh(action) as run:
                where = f"{point}@{passing}={action}"
                code, message = suite.train(run, environment={failpoints.VARIABLE: where})
                clear = code == 2 and "remedy" in message and "Traceback" not in message
                suite.check(f"{action.upper()} at a write", run, None if clear else f"{where}: {code} {message}")


def full_disk(suite: Suite, sizes: list[int]) -> None:
    for kilobytes in sizes:
        with suite.fresh("full") as run:
            disk = run.parent.parent.with_name(f"{run.parent.parent.name}-disk")
            disk.mkdir(parents=True)
            mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(disk)]
            if subprocess.run(mount, capture_output=True, check=False).returncode:
                return  # Mounting is not allowed here.
            try:
                code, message = suite.train(disk / RUN)
                clear = code == 2 and "the disk is full" in message and "Traceback" not in message
                subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
                suite.check("a full disk (tmpfs)", disk / RUN, None if clear else f"{kilobytes} kB: {code} {message}")
            finally:
                subprocess.run(["umount", str(disk)], check=True)


def half_a_run(suite: Suite, run: Path) -> Path:
    """Stops a run after step 8, with two checkpoints; returns the newest."""
    suite.train(run, environment={failpoints.VARIABLE: "forward:8@1=term"})
    return sorted((run / "checkpoints").glob("step-*"))[-1]


def damaged_checkpoints(suite: Suite) -> None:
    def cut(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:-1])

    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))

    def empty(path: Path) -> None:
        path.write_bytes(b"")

    names = ("adapter.safetensors", "optimizer.safetensors", "state.json", "manifest.json")
    harms: tuple[tuple[str, Callable[[Path], None]], ...] = (
        ("one byte cut off", cut),
        ("one bit flipped", flip),
        ("emptied", empty),
        ("missing", Path.unlink),
    )
    for harm, damage in harms:
        for name in names:
            with suite.fresh("damage") as run:
                damage(half_a_run(suite, run) / name)
                suite.check(f"a file of the newest checkpoint: {harm}", run)


def lost_renames(suite: Suite) -> None:
    for name in (".step-00000008.new", ".step-00000008.old"):
        with suite.fresh("lost") as run:
            newest = half_a_run(suite, run)
            newest.rename(newest.with_name(name))
            suite.check("a lost rename", run)


def skewed_times(suite: Suite) -> None:
    with suite.fresh("times") as run:
        half_a_run(suite, run)
        for age, path in enumerate(sorted((run / "checkpoints").glob("step-*"))):
            os.utime(path, (1e9 - age * 1e6, 1e9 - age * 1e6))
        suite.check("modification times that lie", run)


def two_at_once(suite: Suite, count: int) -> None:
    for _ in range(count):
        with suite.fresh("two") as run:
            first, output = suite.start(run)
            while not (run / "recipe.yaml").exists():
                time.sleep(0.01)
            code, message = suite.train(run)
            refused = code == 2 and "another process is at work" in message
            first_code, first_message = wait(first, output)
            if not refused and first_code == 0 and code == 0:
                refused = True  # The first was done before the second began.
            problem = None if refused and first_code == 0 else f"{code} {message} / {first_code} {first_message}"
            suite.check("two trainers at once", run, problem)


def stale_lock(suite: Suite) -> None:
    with suite.fresh("stale") as run:
        run.parent.mkdir(parents=True)
        run.parent.joinpath(f".{run.name}.lock").write_text("")
        note = run.parent / f".{run.name}.lock.json"
        note.write_text(json.dumps({"pid": 999999, "host": "elsewhere", "since": "2020-01-01"}), encoding="utf-8")
        code, message = suite.train(run)
        problem = None if code == 0 and not note.exists() else f"{code} {message}"
        suite.check("a stale lock of a dead process", run, problem)


def out_of_memory(suite: Suite) -> None:
    # Without dropout: its noise is drawn by micro-batch, and smaller ones draw other noise.
    with_dropout, suite.recipe = suite.recipe, load_recipe(suite.recipe.model_dump(), ["adapter.lora_dropout=0"])
    suite.train(suite.folder / "no-dropout" / RUN)
    reference = _weights(suite.folder / "no-dropout" / RUN)
    for where in ("forward:1", "forward:7", "forward:12"):
        with suite.fresh("memory") as run:
            code, message = suite.train(run, environment={failpoints.VARIABLE: f"{where}@1=oom"})
            problem = None if code == 0 else f"{code} {message}"
            if problem is None:
                far = max(float((a - b).abs().max()) for a, b in zip(reference, _weights(run), strict=True))
                problem = None if far < CLOSE else f"a weight differs by {far}"
            suite.check(
                "memory runs out in a step (the result is the same up to rounding)", run, problem, wanted=_same(run)
            )
    suite.recipe = with_dropout
    for where in ("memory:validating", "write:adapter.safetensors", "write:state.json"):
        with suite.fresh("memory") as run:
            code, message = suite.train(run, environment={failpoints.VARIABLE: f"{where}@1=oom"})
            suite.check("memory runs out in validation or saving", run, None if code == 0 else f"{code} {message}")


def _weights(run: Path) -> list[torch.Tensor]:
    from safetensors.torch import load_file

    return [value for _, value in sorted(load_file(run / "adapter" / "adapter_model.safetensors").items())]


def _same(run: Path) -> str | None:
    return digest(run) if (run / "adapter").exists() else None


def real_memory_limits(suite: Suite) -> None:
    """A batch that does not fit, under a limit of the address space and under one of a control group."""
    rows = []
    for number in range(256):
        question = {"role": "user", "content": f"{number} " + "word " * 80}
        rows.append({"messages": [question, {"role": "assistant", "content": "x" * 60}]})
    large = suite.folder / "large.jsonl"
    large.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    edits = [f"data.train={large}", "data.validation=null", "data.test=null", "adapter.lora_dropout=0"]
    edits += ["train.eval_steps=null", "train.early_stopping_patience=null", "train.max_steps=2"]
    edits += ["train.per_device_train_batch_size=256", "train.gradient_accumulation_steps=1"]
    edits += ["train.max_tokens_per_micro_batch=1000000"]  # else the batch is divided before memory can run out
    usual, suite.recipe = suite.recipe, load_recipe(suite.recipe.model_dump(), edits)
    suite.train(suite.folder / "large" / RUN)
    reference = _weights(suite.folder / "large" / RUN)
    for where, prepare in _memory_limits():
        with suite.fresh("limit") as run:
            code, message = suite.train(run, prepare=prepare)
            for _ in range(MOST_KILLS):
                if code == -signal.SIGKILL:  # By the system, for its control group; the same command again.
                    code, message = suite.train(run, prepare=prepare)
            problem = None if code == 0 and "micro-batches of" in message else f"{code} {message}"
            if problem is None:
                far = max(float((a - b).abs().max()) for a, b in zip(reference, _weights(run), strict=True))
                problem = None if far < CLOSE else f"a weight differs by {far}"
            suite.check(f"a batch too large for {where}", run, problem, wanted=_same(run))
    suite.recipe = usual
    if GROUP.exists():
        GROUP.rmdir()


ALLOWED_BYTES = 350_000_000
MOST_KILLS = 8
GROUP = Path("/sys/fs/cgroup/memory/tunesmith-faults")


def _memory_limits() -> Iterator[tuple[str, Callable[[], None]]]:
    """Real limits of memory, each with what puts this process under it."""

    def limit_address_space() -> None:
        now = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (now + ALLOWED_BYTES, now + ALLOWED_BYTES))

    def enter_group() -> None:
        (GROUP / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")

    yield "a limit of the address space", limit_address_space
    try:  # Version 1 of control groups; where none may be made, this try is left out.
        GROUP.mkdir(exist_ok=True)
        (GROUP / "memory.limit_in_bytes").write_text(str(ALLOWED_BYTES), encoding="ascii")
    except OSError:
        return
    yield "a control group", enter_group


def not_a_number(suite: Suite) -> None:
    for step in (1, 6):
        with suite.fresh("nan") as run:
            code, message = suite.train(run, environment={failpoints.VARIABLE: f"forward:{step}@1=nan"})
            named = code == 0 and f"step {step} is left out" in message and "train.jsonl:" in message
            suite.check("one loss that is no number", run, None if named else f"{code} {message}", wanted=_same(run))
    with suite.fresh("nan") as run:
        half_a_run(suite, run)
        before = checkpoint_state(run)
        armed = ";".join(f"forward:{step}@1=nan" for step in (9, 10, 11))
        code, message = suite.train(run, environment={failpoints.VARIABLE: armed})
        after = checkpoint_state(run)
        kept = all(after.get(name) == value for name, value in before.items() if "step-00000008" in name)
        clear = code == 2 and "3 steps in a row" in message
        row = suite.rows.setdefault(
            "three losses in a row that are no number", Row("three losses in a row that are no number")
        )
        row.tries += 1
        if not (kept and clear):
            row.lost.append(f"kept {kept}: {code} {message}")


def changed_inputs(suite: Suite) -> None:
    def refused(run: Path, fault: str, part: str) -> None:
        before = checkpoint_state(run)
        code, message = suite.train(run)
        row = suite.rows.setdefault(fault, Row(fault))
        row.tries += 1
        if code != 2 or part not in message or checkpoint_state(run) != before:
            row.lost.append(f"{code} {message}")

    train = suite.folder / "train.jsonl"
    original = train.read_bytes()
    with suite.fresh("data") as run:
        half_a_run(suite, run)
        write_orders(train, 24, first=50)
        refused(run, "changed training data", "training data")
        train.write_bytes(original)
        suite.check("changed training data, then put back", run)
    with suite.fresh("template") as run:
        half_a_run(suite, run)
        byte_tokenizer(CHATML.replace("\\n", " ")).save_pretrained(suite.model)
        refused(run, "changed chat template", "template")
        byte_tokenizer().save_pretrained(suite.model)
        suite.check("changed chat template, then put back", run)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--short", action="store_true", help="a few tries of each kind")
    short = parser.parse_args().short
    with tempfile.TemporaryDirectory() as name:
        suite = Suite(Path(name))
        durable = sum(point.split(":")[0] in ("write", "sync", "rename") for point, _ in suite.points)
        print(f"undisturbed run: {suite.seconds:.1f} s, {durable} writes, syncs and renames", flush=True)
        killed_at_every_point(suite, durable // 8 if short else 1)
        killed_at_random_moments(suite, 3 if short else 60)
        stopped_within_a_step(suite, 2 if short else 8)
        disk_errors(suite, 12 if short else 3)
        full_disk(suite, [60] if short else [8, 20, 40, 60, 90, 120, 150, 180])
        damaged_checkpoints(suite)
        lost_renames(suite)
        skewed_times(suite)
        two_at_once(suite, 1 if short else 5)
        stale_lock(suite)
        out_of_memory(suite)
        real_memory_limits(suite)
        not_a_number(suite)
        changed_inputs(suite)
        return report(suite, write=not short)


def report(suite: Suite, *, write: bool) -> int:
    """Prints the table; returns the exit code."""
    rows = list(suite.rows.values())
    width = max(len(row.fault) for row in rows)
    print(f"{'fault':{width}}  tries  lost")
    for row in rows:
        print(f"{row.fault:{width}}  {row.tries:5}  {len(row.lost):4}")
    tries, lost = sum(row.tries for row in rows), sum(len(row.lost) for row in rows)
    print(f"{'all':{width}}  {tries:5}  {lost:4}")
    for row in rows:
        for line in row.lost[:5]:
            print(f"lost: {row.fault}: {line}")
    if write:
        table: list[dict[str, Any]] = [{"fault": row.fault, "tries": row.tries, "lost": len(row.lost)} for row in rows]
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(
            json.dumps({"tries": tries, "lost": lost, "faults": table}, indent=2) + "\n", encoding="utf-8"
        )
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
