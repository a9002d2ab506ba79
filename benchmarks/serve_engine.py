"""Exactness and speed of the engine on the default model, against stock PEFT and transformers' generate.

`--exact large | small` asks 40 prompts over 8 random adapters of different ranks in a random order, others beside them
cancelled on the way, and compares each answer with the one that stock PEFT gives to the prompt alone, in fp32; with a
small cache, requests are preempted. Without it, one stream and 32 requests of 64 tokens are timed: transformers'
generate (base, and one PEFT adapter), the engine with the base only, with one adapter for all, and with 8 adapters, in
turn in the same process; and the time to first token of a prompt of 1,000 tokens, new and repeated.

Usage: python -m benchmarks.serve_engine [--exact large|small] [--rounds N] [--precision P]     (`make bench-engine`)
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from benchmarks.machine import describe_machine
from tunesmith import Engine, SamplingParameters
from tunesmith.config import ModelSection
from tunesmith.data.records import Message
from tunesmith.data.template import ChatTemplate
from tunesmith.models.backend import configure_cpu, select_device
from tunesmith.models.catalog import resolve_model
from tunesmith.models.folder import load_tokenizer
from tunesmith.models.loading import load_model

RESULTS = Path(__file__).parent / "results" / "serve_engine.json"
DATA = Path(__file__).parents[1] / "data" / "orders" / "test.jsonl"
ADAPTERS = 8
TOKENS = 64
EXACT_PROMPTS, EXACT_TOKENS = 40, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--exact", choices=["large", "small"], help="compare answers, with this cache, and time nothing"
    )
    parser.add_argument("--rounds", type=int, default=3, help="times each thing is timed, in turn")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    configure_cpu()
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), options.precision)
        found = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        found["machine"] = describe_machine()
        if options.exact:
            found.setdefault("exact", {}).update(bench.exact(options.exact))
        else:
            found[f"speed_{options.precision}"] = bench.speed(options.rounds)
    RESULTS.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))


class Bench:
    """The default model, made-up adapters, and prompts of the demo."""

    def __init__(self, folder: Path, precision: Any) -> None:
        self.model_folder = resolve_model(ModelSection(name="smollm2-135m"))
        self.precision = precision
        tokenizer = load_tokenizer(self.model_folder)
        self.template = ChatTemplate(tokenizer)
        rows = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]
        texts = [next(m["content"] for m in row["messages"] if m["role"] == "user") for row in rows]
        self.prompts = [self.template.encode_prompt([Message("user", text)]) for text in texts]
        self.folder = folder

    def load(self) -> Any:
        return load_model(self.model_folder, precision=self.precision, device=select_device())

    def adapters(self, *, ranks: tuple[int, ...]) -> list[Path]:
        """Random adapters that change answers, of these ranks in turn."""
        base = self.load()
        folders = []
        for number in range(ADAPTERS):
            torch.manual_seed(number)
            rank = ranks[number % len(ranks)]
            model = get_peft_model(base, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if "lora_B" in name:
                        parameter.copy_(torch.randn_like(parameter) * 0.01)
            folders.append(self.folder / f"{len(ranks)}-{number}")
            model.save_pretrained(folders[-1])
            base = model.unload()
        return folders

    def exact(self, cache: str) -> dict[str, Any]:
        """How many answers equal those of stock PEFT, with a large cache or a small one."""
        rng = random.Random(0)
        jobs = [(i, self.prompts[i], rng.randrange(ADAPTERS)) for i in range(EXACT_PROMPTS)]
        result: dict[str, Any] = {}
        expected: dict[int, list[int]] = {}
        folders = self.adapters(ranks=(4, 8, 12, 16))
        base = self.load()
        for number in range(ADAPTERS):
            adapted = PeftModel.from_pretrained(base, str(folders[number])).eval()
            for job, prompt, adapter in jobs:
                if adapter == number:
                    expected[job] = _generate(adapted, [prompt], EXACT_TOKENS)[0]
            base = adapted.unload()
            print(f"stock PEFT: {len(expected)} of {len(jobs)} answers", file=sys.stderr, flush=True)
        small: dict[str, Any] = {"max_tokens_per_step": 24, "max_running": 16, "kv_cache_tokens": 1024}
        with Engine(base, **(small if cache == "small" else {})) as engine:
            for i, folder in enumerate(folders):
                engine.load_adapter(f"a{i}", folder)
            for turn in ("first", "again"):
                answers, cancelled = _served(engine, jobs, rng)
                same = sum(answers[job] == expected[job] for job in answers)
                print(f"{cache} cache, {turn}: {same} of {len(answers)} equal", file=sys.stderr, flush=True)
                result[f"{cache} cache, {turn}"] = {
                    "answers": len(answers),
                    "equal": same,
                    "cancelled": cancelled,
                    "preemptions": engine.scheduler.preemptions,
                }
            engine.check_integrity()
        return result

    def speed(self, rounds: int) -> dict[str, Any]:
        """Tokens a second of each way, the median of the rounds, and the spread."""
        base = self.load()
        folders = self.adapters(ranks=(16,))
        tuned = PeftModel.from_pretrained(self.load(), str(folders[0])).eval()
        engine = Engine(self.load(), prefix_cache=False)
        for i, folder in enumerate(folders):
            engine.load_adapter(f"a{i}", folder)
        prompts = self.prompts[:32]
        names: list[Any] = [f"a{i % ADAPTERS}" for i in range(32)]

        def served(count: int, adapters: Any) -> Callable[[int], object]:
            def work(tokens: int) -> object:
                sampling = SamplingParameters(max_tokens=tokens, stop_token_ids=())
                return engine.generate(prompts[:count], sampling, adapters=adapters)

            return work

        ways: dict[str, tuple[int, Callable[[int], object]]] = {
            "1 transformers base": (1, lambda tokens: _generate(base, prompts[:1], tokens)),
            "1 engine base": (1, served(1, None)),
            "1 PEFT one adapter": (1, lambda tokens: _generate(tuned, prompts[:1], tokens)),
            "1 engine one adapter": (1, served(1, "a0")),
            "32 transformers base": (32, lambda tokens: _generate(base, prompts, tokens)),
            "32 engine base": (32, served(32, None)),
            "32 PEFT one adapter": (32, lambda tokens: _generate(tuned, prompts, tokens)),
            "32 engine one adapter": (32, served(32, "a0")),
            "32 engine 8 adapters": (32, served(32, names)),
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(rounds + 1):
            for way, (_, work) in ways.items():
                started = time.perf_counter()
                work(TOKENS if turn else 2)  # the first turn warms up
                print(f"{way}: {time.perf_counter() - started:.1f} s", file=sys.stderr, flush=True)
                if turn:
                    seconds[way].append(time.perf_counter() - started)
        result: dict[str, Any] = {
            way: {
                "tokens_per_s": round(count * TOKENS / statistics.median(seconds[way]), 1),
                "least": round(count * TOKENS / max(seconds[way]), 1),
                "most": round(count * TOKENS / min(seconds[way]), 1),
            }
            for way, (count, _) in ways.items()
        }
        result["floor_ms_per_token"] = round(1000 * _weights_read_once(base), 1)
        result["prefix"] = self._prefix()
        return result

    def _prefix(self) -> dict[str, float]:
        """Milliseconds to the first token of a long prompt, new and repeated."""
        prompt = [token for some in self.prompts for token in some][:1000]
        with Engine(self.load()) as engine:
            times = []
            for last in ([5], [6], [7]):
                started = time.perf_counter()
                engine.generate([prompt + last], SamplingParameters(max_tokens=1))
                times.append(1000 * (time.perf_counter() - started))
        return {"new_ms": round(times[0], 1), "repeated_ms": round(min(times[1:]), 1)}


def _generate(model: Any, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    """Transformers' own greedy answers, prompts padded on the left."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False,
            eos_token_id=None, pad_token_id=0, repetition_penalty=1.0,
        )  # fmt: skip
    return [row.tolist() for row in output[:, width:]]


def _served(engine: Engine, jobs: list[Any], rng: random.Random) -> tuple[dict[int, list[int]], int]:
    """The jobs in a random order, a few at a time; others beside them are cancelled on the way."""
    waiting, doomed, cancelled = rng.sample(jobs, len(jobs)), [], 0
    answers: dict[int, list[int]] = {}
    sampling = SamplingParameters(max_tokens=EXACT_TOKENS, stop_token_ids=())
    while waiting or engine.has_work:
        for _ in range(rng.randrange(4)):
            if waiting:
                job, prompt, adapter = waiting.pop()
                engine.add_request(prompt, sampling, adapters=f"a{adapter}", request_id=str(job))
                answers[job] = []
                if rng.random() < 0.3:
                    doomed.append(engine.add_request(prompt, sampling, adapters=f"a{(adapter + 1) % ADAPTERS}"))
        if doomed and rng.random() < 0.2:
            cancelled += engine.cancel(doomed.pop(rng.randrange(len(doomed))))
        for event in engine.step():
            if event.request_id.isdigit():
                answers[int(event.request_id)].extend(event.token_ids)
    return answers, cancelled


def _weights_read_once(model: Any) -> float:
    """Seconds to read every weight once, the least of some."""
    weights = {p.data_ptr(): p for p in model.parameters()}.values()
    times = []
    with torch.inference_mode():
        for _ in range(5):
            started = time.perf_counter()
            for weight in weights:
                weight.sum()
            times.append(time.perf_counter() - started)
    return min(times)


if __name__ == "__main__":
    main()
