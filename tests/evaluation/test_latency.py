"""Timing in a process of its own, and the figures made of the moments."""

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model

import tunesmith
from tests.tiny import tiny_model, tiny_model_folder
from tunesmith.errors import EvaluationError
from tunesmith.evaluation.latency import Latency, LatencyRequest, measure_latency, run_process, time_requests
from tunesmith.models.generation import stream


class FakeClock:
    """Time that passes only when an answer says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_figures_come_from_the_moments_of_the_tokens() -> None:
    clock = FakeClock()
    asked = []

    def answer(prompt: Sequence[int]) -> Iterable[int]:
        asked.append(prompt[0])
        waits = {1: [0.5, 0.01, 0.03], 2: [0.7, 0.02], 3: []}[prompt[0]]
        for wait in waits:
            clock.now += wait
            yield 0
        clock.now += 0.1  # the stop token

    done: list[int] = []
    figures = time_requests(answer, [[1], [2], [3]], on_done=lambda: done.append(1), clock=clock)
    assert asked == [1, 1, 2, 3]
    assert len(done) == 3
    assert figures["time_to_first_token_ms"] == pytest.approx(500)
    assert figures["ms_per_token"] == pytest.approx(20)
    assert figures["ms_per_token_p95"] == pytest.approx(29)
    assert (figures["requests"], figures["tokens"]) == (3, 5)
    assert figures["tokens_per_second"] == pytest.approx(5 / (0.64 + 0.82 + 0.1))


def test_answers_of_one_token_have_no_time_between_tokens() -> None:
    figures = time_requests(lambda _: [7], [[1]], on_done=lambda: None)
    assert figures["ms_per_token"] is None
    assert figures["ms_per_token_p95"] is None


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("models") / "tiny")


def test_a_fresh_process_loads_answers_and_times(model_folder: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    wrapped = get_peft_model(tiny_model(), config)
    wrapped.save_pretrained(adapter)
    prompts = [[1, 2, 3], [4, 5]]
    result = measure_latency(model_folder, adapter, prompts, precision="fp32", max_new_tokens=4, stop_token_ids=[260])
    expected = [list(stream(wrapped, p, max_new_tokens=4, stop_token_ids=[260])) for p in prompts]
    assert isinstance(result, Latency)
    assert (result.requests, result.tokens) == (2, sum(map(len, expected)))
    assert result.time_to_first_token_ms > 0
    assert result.peak_memory_bytes > 50e6


def test_an_error_of_the_process_keeps_its_place_and_remedy(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="timing failed: the model folder has no config") as raised:
        measure_latency(tmp_path, None, [[1]], precision="fp32", max_new_tokens=4, stop_token_ids=[])
    assert raised.value.place == str(tmp_path)
    assert raised.value.remedy


def test_an_unexpected_failure_shows_its_last_line_only(monkeypatch: pytest.MonkeyPatch) -> None:
    python(monkeypatch, "raise ValueError('what went wrong')")
    with pytest.raises(EvaluationError, match=r"^timing failed: ValueError: what went wrong$"):
        run_process("{}", on_done=lambda: None)


def test_a_killed_process_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    python(monkeypatch, "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(EvaluationError, match="ended by SIGKILL") as raised:
        run_process("x" * 10**6, on_done=lambda: None)
    assert "memory" in str(raised.value)


def test_modules_in_the_users_folder_are_not_imported(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json", "numpy", "tunesmith"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the folder')")
    (tmp_path / "model").symlink_to(model_folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(tunesmith.__file__).parents[1]))
    result = measure_latency(Path("model"), None, [[1, 2]], precision="fp32", max_new_tokens=2, stop_token_ids=[])
    assert result.tokens == 2


def test_the_process_starts_in_an_empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "relative")
    code = """import json, os; there = [os.getcwd(), os.listdir(), os.environ['PYTHONPATH']]
print(json.dumps({'latency': {'there': there}}))"""
    python(monkeypatch, code)
    folder, files, path = run_process("{}", on_done=lambda: None)["there"]
    assert (files, path) == ([], str(tmp_path / "relative"))
    assert not Path(folder).exists()


def test_progress_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    python(monkeypatch, """import sys; sys.stdin.read(); print('{"done": 1}'); print('{"latency": {"tokens": 3}}')""")
    done: list[int] = []
    assert run_process("{}", on_done=lambda: done.append(1)) == {"tokens": 3}
    assert done == [1]


def test_the_request_survives_json() -> None:
    request = LatencyRequest("m", None, ((1, 2), (3,)), "fp32", 4, (5,))
    again = LatencyRequest(**json.loads(json.dumps(asdict(request))))
    assert [list(p) for p in again.prompts] == [[1, 2], [3]]


def test_no_prompt_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="no prompt"):
        measure_latency(tmp_path, None, [], precision="fp32", max_new_tokens=4, stop_token_ids=[])


def python(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Lets a small program take the place of the timing process."""
    start = subprocess.Popen

    def replaced(command: list[str], **settings: object) -> subprocess.Popen[str]:
        assert command == [sys.executable, "-m", "tunesmith.evaluation.latency"]
        return start([sys.executable, "-c", code], **settings)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(subprocess, "Popen", replaced)
