"""The engine on tiny models, against stock PEFT one request at a time."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.serving.adapters import KINDS, adapted, greedy, write_adapter
from tests.tiny import FAMILIES, byte_tokenizer, tiny_model, tiny_model_folder
from tunesmith.errors import AdapterError, ModelError, QueueFullError, ServingError
from tunesmith.serving.engine import Engine
from tunesmith.serving.request import Event, SamplingParameters

TOKENS = 8
GREEDY = SamplingParameters(max_tokens=TOKENS, stop_token_ids=())
Job = tuple[tuple[int, ...], "str | None", tuple[int, ...]]
"""Prompt, adapter, and stock PEFT's answer."""

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    parent = tmp_path_factory.mktemp("adapters")
    return {kind: write_adapter(parent / kind, seed, **config) for seed, (kind, config) in enumerate(KINDS.items())}


@pytest.fixture(scope="module")
def jobs(folders: dict[str, Path]) -> list[Job]:
    rng = random.Random(1)
    common = [rng.randrange(256) for _ in range(12)]
    found: list[Job] = []
    for name in [None, *KINDS]:
        model = adapted(folders[name] if name else None)
        for number in range(3):
            own = [rng.randrange(256) for _ in range(rng.randrange(2, 40))]
            prompt = (*common, *own) if number else tuple(own)
            found.append((prompt, name, greedy(model, prompt, TOKENS)))
    return found


@pytest.fixture
def engine(folders: dict[str, Path]) -> Iterator[Engine]:
    with made(folders) as one:
        yield one


def made(folders: dict[str, Path], **settings: Any) -> Engine:
    engine = Engine(tiny_model(), **{"block_size": 4, "kv_cache_tokens": 1024, **settings})
    for name, folder in folders.items():
        engine.load_adapter(name, folder)
    return engine


def drain(engine: Engine) -> list[Event]:
    events = []
    while engine.has_work:
        events += engine.step()
    engine.check_integrity()
    return events


def tokens_of(events: list[Event], request_id: str) -> tuple[int, ...]:
    return tuple(token for event in events if event.request_id == request_id for token in event.token_ids)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"prefix_cache": False, "max_tokens_per_step": 9, "max_running": 5},
        {"kv_cache_tokens": 96, "max_tokens_per_step": 16, "max_running": 8},
        {"block_size": 1, "kv_cache_tokens": 100, "max_running": 12, "max_tokens_per_step": 12},
    ],
    ids=["large", "chunks", "preemption", "single slots"],
)
def test_mixed_answers_are_those_of_stock_peft_alone(
    folders: dict[str, Path], jobs: list[Job], settings: dict[str, Any]
) -> None:
    rng = random.Random(2)
    with made(folders, **settings) as engine:
        for _ in range(2):  # again, on what the prefix cache kept
            waiting, events, doomed = rng.sample(list(enumerate(jobs)), len(jobs)), [], []
            while waiting or engine.has_work:
                for _ in range(rng.randrange(4)):
                    if waiting:
                        number, (prompt, name, _) = waiting.pop()
                        engine.add_request(prompt, GREEDY, adapters=name, request_id=f"job{number}")
                        doomed.append(engine.add_request(prompt, GREEDY, adapters="plain"))
                if doomed and rng.random() < 0.6:
                    engine.cancel(doomed.pop(rng.randrange(len(doomed))))
                events += engine.step()
                engine.check_integrity()
            for number, (_, name, expected) in enumerate(jobs):
                assert tokens_of(events, f"job{number}") == expected, f"job {number} with {name}"
        if settings.get("kv_cache_tokens"):
            assert engine.scheduler.preemptions > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str, tmp_path: Path) -> None:
    changes = {"sliding_window": 8} if family in ("mistral", "gemma2") else {}
    config = KINDS["plain"]
    folder = write_adapter(tmp_path / "a", 0, family, changes=changes, **config)
    rng = random.Random(3)
    prompts = [[rng.randrange(256) for _ in range(length)] for length in (3, 25, 25, 14)]
    with Engine(tiny_model(family, **changes), block_size=4, max_running=4, max_tokens_per_step=11) as engine:
        engine.load_adapter("a", folder)
        answers = engine.generate(prompts, GREEDY, adapters=["a", "a", None, "a"])
        engine.check_integrity()
    for prompt, answer, name in zip(prompts, answers, ["a", "a", None, "a"], strict=True):
        assert answer.token_ids == greedy(adapted(folder if name else None, family, **changes), prompt, TOKENS)


def test_a_trained_bias_counts(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", 0, "qwen2", r=2, target_modules=["q_proj", "o_proj"], bias="lora_only")
    with Engine(tiny_model("qwen2")) as engine:
        engine.load_adapter("a", folder)
        (answer,) = engine.generate([[5, 6, 7]], GREEDY, adapters="a")
    assert answer.token_ids == greedy(adapted(folder, "qwen2"), [5, 6, 7], TOKENS)


def test_adapters_add_up_with_their_scales(engine: Engine, folders: dict[str, Path]) -> None:
    model = adapted(folders["plain"])
    model.load_adapter(str(folders["rslora"]), "rslora")
    model.base_model.set_adapter(["default", "rslora"])
    for module in model.modules():
        if hasattr(module, "set_scale"):
            module.set_scale("default", 0.5)
            module.set_scale("rslora", -1.5)
    mixed: Any = (("plain", 0.5), ("rslora", -1.5))
    (answer, alone) = engine.generate([[1, 2, 3]] * 2, GREEDY, adapters=[mixed, ("plain",)])
    assert answer.token_ids == greedy(model, [1, 2, 3], TOKENS)
    assert alone.token_ids == greedy(adapted(folders["plain"]), [1, 2, 3], TOKENS)
    (nothing,) = engine.generate([[1, 2, 3]], GREEDY, adapters=("plain", 0.0))
    assert nothing.token_ids == greedy(tiny_model(), [1, 2, 3], TOKENS)


def test_a_reload_leaves_running_requests_alone_and_can_be_rolled_back(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    old = {name: adapted(folders[name]) for name in ("plain", "twin")}
    prompt = tuple(range(20))
    expected = {name: greedy(model, prompt, TOKENS) for name, model in old.items()}
    with made({"a": folders["plain"]}) as engine:
        engine.add_request(prompt, GREEDY, adapters="a", request_id="old")
        events = engine.step() + engine.step()
        engine.load_adapter("a", folders["twin"])
        engine.add_request(prompt, GREEDY, adapters="a", request_id="new")
        events += drain(engine)
        assert tokens_of(events, "old") == expected["plain"]
        assert tokens_of(events, "new") == expected["twin"]
        assert engine.rollback_adapter("a").digest != engine.load_adapter("b", folders["twin"]).digest
        again = engine.generate([prompt] * 2, GREEDY, adapters=["a", "b"])
        assert [a.token_ids for a in again] == [expected["plain"], expected["twin"]]
        assert again[1].cached_tokens == 16  # the same content under another name
        engine.check_integrity()


def test_unloading_drains(folders: dict[str, Path]) -> None:
    with made({"a": folders["plain"]}) as engine:
        engine.add_request([1, 2, 3], GREEDY, adapters="a", request_id="r")
        events = engine.step()
        engine.unload_adapter("a")
        with pytest.raises(AdapterError, match="no adapter of this name; loaded: none"):
            engine.add_request([1, 2, 3], GREEDY, adapters="a")
        assert len(engine._bank.draining) == 1
        events += drain(engine)
        assert tokens_of(events, "r") == greedy(adapted(folders["plain"]), [1, 2, 3], TOKENS)
        assert engine._bank.draining == []


def test_sampled_answers_do_not_depend_on_company(folders: dict[str, Path]) -> None:
    sampling = SamplingParameters(max_tokens=TOKENS, temperature=1.0, seed=7, stop_token_ids=())
    others = SamplingParameters(max_tokens=TOKENS, temperature=1.0, stop_token_ids=())
    with made(folders) as engine:
        (alone,) = engine.generate([[9, 8, 7]], sampling, adapters="plain")
        prompts = [[n, n + 1] for n in range(9)] + [[9, 8, 7]]
        answers = engine.generate(prompts, [others] * 9 + [sampling], adapters=["rslora"] * 9 + ["plain"])
        assert answers[-1].token_ids == alone.token_ids
        assert len({a.token_ids for a in engine.generate([[9, 8, 7]] * 6, others, adapters="plain")}) > 1


def test_logprobs_of_answer_and_prompt(folders: dict[str, Path]) -> None:
    prompt = list(range(3, 25))
    wanted = SamplingParameters(max_tokens=3, logprobs=2, prompt_logprobs=1, stop_token_ids=())
    with made(folders, max_tokens_per_step=8, max_running=2) as engine:
        engine.generate([prompt], GREEDY, adapters="head")  # fills the prefix cache
        (answer,) = engine.generate([prompt], wanted, adapters="head")
        engine.check_integrity()
    model = adapted(folders["head"])
    with torch.inference_mode():
        whole = torch.tensor([[*prompt, *answer.token_ids]])
        scores_TV = model(input_ids=whole, use_cache=False).logits[0].log_softmax(dim=-1)
    assert [scored.token_id for scored in answer.prompt_logprobs] == prompt[1:]
    noted = [*answer.prompt_logprobs, *answer.logprobs]
    assert len(noted) == len(prompt) - 1 + 3
    for position, one in enumerate(noted):
        assert one.logprob == pytest.approx(float(scores_TV[position, one.token_id]), abs=1e-4)
        assert one.top[0][0] == int(scores_TV[position].argmax())
    assert answer.cached_tokens == 0


def test_text_stop_texts_and_stop_tokens(tmp_path: Path) -> None:
    with Engine(tiny_model_folder(tmp_path / "model")) as engine:
        free = SamplingParameters(max_tokens=40, stop_token_ids=(), seed=1, temperature=1.5)
        (answer,) = engine.generate(["Hello"], free)
        assert answer.finish_reason == "length"
        assert answer.text == byte_tokenizer().decode(list(answer.token_ids), skip_special_tokens=True)
        stop = next(c for c in answer.text[5:] if c.isascii() and c.isprintable())
        chosen = SamplingParameters(max_tokens=40, stop_token_ids=(), seed=1, temperature=1.5, stop=(stop,))
        (ended,) = engine.generate(["Hello"], chosen)
        assert ended.finish_reason == "stop"
        assert ended.text == answer.text[: answer.text.index(stop)]
        at = answer.token_ids[3]
        by_token = SamplingParameters(max_tokens=40, stop_token_ids=(at,), seed=1, temperature=1.5)
        (cut,) = engine.generate(["Hello"], by_token)
        assert cut.finish_reason == "stop"
        assert cut.token_ids == answer.token_ids[: answer.token_ids.index(at)]
        engine.add_request("Hello", free, request_id="streamed", text=True)
        assert "".join(event.text for event in drain(engine)) == answer.text


def test_the_example_of_the_readme_runs(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "Engine" in block)
    model = tiny_model_folder(tmp_path / "model")
    for name, path in {'"smollm2-135m"': model, '"runs/demo/adapter"': folders["plain"]}.items():
        assert name in code
        code = code.replace(name, repr(str(path)))
    exec(code, {})
    lines = capsys.readouterr().out
    assert len(re.findall("^(length|stop) ", lines, re.MULTILINE)) == 2


def test_requests_that_cannot_be_served_are_refused(folders: dict[str, Path]) -> None:
    with made({"a": folders["plain"]}, max_waiting_requests=1) as engine:
        refused: list[tuple[Any, dict[str, Any]]] = [
            ([], {}),
            ([999], {}),
            ([-1], {}),
            ("text", {}),
            ([1], {"sampling": SamplingParameters(max_tokens=600)}),
            ([1], {"sampling": SamplingParameters(stop=("x",))}),
            ([1], {"adapters": "../a"}),
            ([1], {"adapters": ["a", "a"]}),
            ([1], {"adapters": [("a", float("nan"))]}),
            ([1], {"adapters": [("a", "b")]}),
            ([1], {"adapters": [3]}),
        ]
        for prompt, options in refused:
            with pytest.raises((ServingError, AdapterError)):
                engine.add_request(prompt, options.pop("sampling", GREEDY), **options)
        engine.check_integrity()
        engine.add_request([1], GREEDY)
        with pytest.raises(QueueFullError):
            engine.add_request([1], GREEDY)
        assert not engine.cancel("nobody")
        drain(engine)


def test_more_prompts_than_may_wait(engine: Engine) -> None:
    engine.scheduler.limits = type(engine.scheduler.limits)(max_waiting_requests=2)
    answers = engine.generate([[n] for n in range(40)], GREEDY)
    assert [len(answer.token_ids) for answer in answers] == [TOKENS] * 40


def test_an_adapter_that_overflows_harms_no_neighbour(folders: dict[str, Path], jobs: list[Job]) -> None:
    with made({name: folders[name] for name in ("plain", "twin")}) as engine:
        wild = engine._bank.current("twin").weights
        for part in wild.groups.values():
            part.a_IR.mul_(1e30)
        events: list[Event] = []
        for number, (prompt, name, _) in enumerate(jobs):
            if name in ("plain", None):
                engine.add_request(prompt, GREEDY, adapters=name, request_id=f"job{number}")
                engine.add_request(prompt, GREEDY, adapters="twin", request_id=f"wild{number}")
        events = drain(engine)
        assert {e.finish_reason for e in events if e.request_id.startswith("wild") and e.finish_reason} == {"error"}
        for number, (_, name, expected) in enumerate(jobs):
            if name in ("plain", None):
                assert tokens_of(events, f"job{number}") == expected


def test_an_engine_that_cannot_be_made_gives_the_model_back() -> None:
    model = tiny_model()
    ids_1T = torch.tensor([[5, 6, 7]])
    before = model(input_ids=ids_1T).logits
    with pytest.raises(ServingError, match="less than a block"):
        Engine(model, block_size=16, kv_cache_tokens=8)
    torch.testing.assert_close(model(input_ids=ids_1T).logits, before)


def test_a_closed_engine_gives_the_model_back(folders: dict[str, Path]) -> None:
    model: Any = tiny_model()
    before = model(input_ids=torch.tensor([[1, 2, 3]])).logits
    engine = Engine(model)
    engine.load_adapter("a", folders["plain"])
    with pytest.raises(ModelError, match="belongs to an engine"):
        model(input_ids=torch.tensor([[1, 2, 3]]))
    engine.close()
    assert torch.equal(model(input_ids=torch.tensor([[1, 2, 3]])).logits, before)


def test_models_that_are_not_computed_exactly_are_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match="carries an adapter"):
        Engine(adapted(folders["plain"]))
    model: Any = tiny_model()
    model.config.layer_types = ["full_attention", "chunked_attention"]
    with pytest.raises(ModelError, match="chunked_attention"):
        Engine(model)
    odd: Any = tiny_model()
    forward = type(odd.model).forward

    def shifted(**inputs: Any) -> Any:
        # Position ids that are not passed on: packed tokens of two requests would be taken for one text.
        if inputs.get("paged") is not None:
            inputs["position_ids"] = torch.arange(inputs["input_ids"].shape[1])[None]
        return forward(odd.model, **inputs)

    odd.model.forward = shifted
    with pytest.raises(ModelError, match="packed logits are off"):
        Engine(odd)
