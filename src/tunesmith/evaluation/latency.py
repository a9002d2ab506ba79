"""How long a user waits: time to first token and between tokens, tokens/s and memory, one request at a time.

Measured in a process of its own (`python -m tunesmith.evaluation.latency`): the peak of memory is that of loading
and answering, not of the training or scoring that went before. The process reads a JSON request from standard input
and writes one JSON object a line to standard output: `{"done": 1}` after each request, and at the end
`{"latency": {...}}` or `{"error": {...}}`. Whatever else is printed goes to standard error.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from tunesmith.adapters.files import load_adapter
from tunesmith.errors import EvaluationError, TunesmithError
from tunesmith.models.backend import Precision, configure_cpu, peak_memory_bytes, select_device
from tunesmith.models.generation import stream
from tunesmith.models.loading import load_model
from tunesmith.progress import task


@dataclass(frozen=True)
class Latency:
    """What answering costs, one request at a time.

    Args:
        requests: how many were timed, after one that was not.
        tokens: how many tokens they gave together.
        time_to_first_token_ms: median from request to first token.
        ms_per_token: median time between two tokens of an answer; None if no answer had two.
        ms_per_token_p95: the time that 95 % of them stay below.
        tokens_per_second: tokens of all answers over their whole time.
        peak_memory_bytes: the most memory the process held, loading included.
    """

    requests: int
    tokens: int
    time_to_first_token_ms: float
    ms_per_token: float | None
    ms_per_token_p95: float | None
    tokens_per_second: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class LatencyRequest:
    """What the process is asked to time.

    Args:
        model_folder: the model.
        adapter_folder: an adapter put on it, unmerged; None for the model alone.
        prompts: token ids of each request.
        precision: "fp32", "bf16" or "fp16".
        max_new_tokens: longest answer.
        stop_token_ids: tokens that end an answer.
    """

    model_folder: str
    adapter_folder: str | None
    prompts: tuple[tuple[int, ...], ...]
    precision: str
    max_new_tokens: int
    stop_token_ids: tuple[int, ...]


def measure_latency(
    model_folder: Path,
    adapter_folder: Path | None,
    prompts: Sequence[Sequence[int]],
    *,
    precision: Precision,
    max_new_tokens: int,
    stop_token_ids: Sequence[int],
    what: str = "Timing answers",
) -> Latency:
    """Loads the model in a fresh process, answers `prompts` greedily one at a time, and times each token.

    Args:
        model_folder: the model.
        adapter_folder: an adapter put on it, unmerged; None for the model alone.
        prompts: token ids of each request, at least one; the first is answered once more before, untimed.
        precision: of the weights and of the arithmetic.
        max_new_tokens: longest answer.
        stop_token_ids: tokens that end an answer.
        what: what the progress line says.

    Raises:
        EvaluationError: there is no prompt, or the process failed.
    """
    if not prompts:
        raise EvaluationError("there is no prompt to time")
    request = LatencyRequest(
        model_folder=str(model_folder.absolute()),
        adapter_folder=None if adapter_folder is None else str(adapter_folder.absolute()),
        prompts=tuple(tuple(prompt) for prompt in prompts),
        precision=precision,
        max_new_tokens=max_new_tokens,
        stop_token_ids=tuple(stop_token_ids),
    )
    with task(what, total=len(prompts), unit="requests") as progress:
        result = run_process(json.dumps(asdict(request)), on_done=progress.advance)
    return Latency(**result)


def run_process(request: str, *, on_done: Callable[[], None]) -> dict[str, Any]:
    """Runs the timing process on a JSON request and returns its figures.

    Args:
        request: a `LatencyRequest` as JSON.
        on_done: called after each timed request.

    Raises:
        EvaluationError: the process failed, with what it said last.
    """
    command = [sys.executable, "-m", "tunesmith.evaluation.latency"]
    environment = {**os.environ}
    if paths := environment.get("PYTHONPATH"):
        environment["PYTHONPATH"] = os.pathsep.join(
            str(Path(path).absolute()) for path in paths.split(os.pathsep) if path
        )
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log,
        # `-m` imports modules that lie in the current folder; so that is an empty one, not the user's.
        tempfile.TemporaryDirectory(prefix="tunesmith-") as empty,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=empty,
            env=environment,
            encoding="utf-8",
        ) as process,
    ):
        try:
            return _converse(process, request, on_done, log)
        finally:
            process.kill()


def time_requests(
    answer: Callable[[Sequence[int]], Iterable[int]],
    prompts: Sequence[Sequence[int]],
    *,
    on_done: Callable[[], None],
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Times each prompt's answer; the fields of `Latency` but for the memory.

    Args:
        answer: yields an answer's tokens one by one.
        prompts: token ids of each request.
        on_done: called after each timed request.
        clock: the time in seconds.
    """
    for _ in answer(prompts[0]):  # the first answer pays for set-up that no later one does
        pass
    first: list[float] = []
    gaps: list[float] = []
    tokens, seconds = 0, 0.0
    for prompt in prompts:
        started = clock()
        moments = [clock() for _ in answer(prompt)]
        ended = clock()
        # An answer that is only a stop token has its first token at its end.
        first.append((moments[0] if moments else ended) - started)
        gaps.extend(later - earlier for earlier, later in pairwise(moments))
        tokens += len(moments)
        seconds += ended - started
        on_done()
    return {
        "requests": len(prompts),
        "tokens": tokens,
        "time_to_first_token_ms": 1000 * float(np.median(first)),
        "ms_per_token": 1000 * float(np.median(gaps)) if gaps else None,
        "ms_per_token_p95": 1000 * float(np.quantile(gaps, 0.95)) if gaps else None,
        "tokens_per_second": tokens / seconds if seconds else 0.0,
    }


def main() -> int:
    """The timing process: JSON request on standard input, JSON lines on standard output; returns the exit code."""
    lines = sys.stdout

    def say(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=lines, flush=True)

    with redirect_stdout(sys.stderr):
        try:
            say({"latency": _answer_and_time(LatencyRequest(**json.load(sys.stdin)), lambda: say({"done": 1}))})
        except TunesmithError as error:
            say({"error": {"message": error.message, "place": error.place, "remedy": error.remedy}})
            return 1
    return 0


def _answer_and_time(request: LatencyRequest, on_done: Callable[[], None]) -> dict[str, Any]:
    configure_cpu()
    device = select_device()
    precision = cast(Precision, request.precision)
    model: nn.Module = load_model(Path(request.model_folder), precision=precision, device=device)
    if request.adapter_folder is not None:
        model = load_adapter(cast(PreTrainedModel, model), Path(request.adapter_folder), precision=precision)

    def answer(prompt: Sequence[int]) -> Iterable[int]:
        return stream(model, prompt, max_new_tokens=request.max_new_tokens, stop_token_ids=request.stop_token_ids)

    figures = time_requests(answer, request.prompts, on_done=on_done)
    return {**figures, "peak_memory_bytes": peak_memory_bytes(device)}


def _converse(
    process: subprocess.Popen[str], request: str, on_done: Callable[[], None], log: IO[str]
) -> dict[str, Any]:
    """Sends the request and reads the lines until the figures come."""
    stdin, stdout = cast(IO[str], process.stdin), cast(IO[str], process.stdout)
    # A process that ended before it read all of it says why in its log.
    with suppress(BrokenPipeError):
        stdin.write(request)
        stdin.close()
    for line in stdout:
        message = json.loads(line)
        if "latency" in message:
            return cast(dict[str, Any], message["latency"])
        if "error" in message:
            raise EvaluationError(**{**message["error"], "message": f"timing failed: {message['error']['message']}"})
        on_done()
    code = process.wait()
    log.seek(0)
    said = [line.strip() for line in log if line.strip()]
    if code < 0:
        raise EvaluationError(
            f"the timing process was ended by {_signal_name(-code)}",
            remedy="if memory ran out, free some, or set evaluate.latency_requests: 0 to leave timing out",
        )
    raise EvaluationError(f"timing failed: {said[-1] if said else f'the process ended with code {code}'}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


if __name__ == "__main__":
    sys.exit(main())
