"""Compiled decoder layers: the same gradients, eager wherever that does not work, and the same bytes after a resume.

Most tests take the backend "eager", which traces as the real one and compiles nothing.
"""

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from tests.tiny import tiny_model
from tests.training.conftest import TrainerMaker, make_examples
from tests.training.test_speedups import line
from tests.training.test_trainer import digest, metrics
from tunesmith.adapters.fast_lora import use_fast_layers
from tunesmith.data.batching import collate
from tunesmith.errors import StoppedError
from tunesmith.models.attention import register_attention
from tunesmith.models.backend import CPU_ATTENTION
from tunesmith.models.cache import cache_folder
from tunesmith.training import compilation, schedule
from tunesmith.training import speedups as speedups_module
from tunesmith.training import trainer as trainer_module
from tunesmith.training.compilation import CompiledLayers, compile_layers, forecast, typical_shapes
from tunesmith.training.loss import summed_loss

CPU = torch.device("cpu")
SETTINGS = {"max_steps": 8, "learning_rate": 1e-2, "logging_steps": 1, "save_steps": 4, "eval_steps": 4,
            "per_device_train_batch_size": 4, "compile": "on"}  # fmt: skip


def deep_model(family: str = "llama", **changes: Any) -> PeftModel:
    """LoRA on every linear layer of three decoder layers, B not zero."""
    settings = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False, "task_type": "CAUSAL_LM", **changes}
    torch.manual_seed(0)
    return get_peft_model(tiny_model(family, num_hidden_layers=3), LoraConfig(**settings))


def compiled(model: PeftModel, backend: str = "eager", shapes: tuple[tuple[int, int], ...] = ((2, 16),)) -> Any:
    return compile_layers(model, shapes, device=CPU, autocast=_no_autocast, backend=backend)


def _no_autocast() -> Any:
    return torch.autocast("cpu", enabled=False)


def gradients(model: PeftModel, examples: int = 4, *, longest: int = 24) -> dict[str, torch.Tensor]:
    model.train()
    torch.manual_seed(7)
    summed_loss(model, collate(make_examples(examples, longest=longest), 0)).backward()
    found = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    return found


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], tolerance: float = 1e-5) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert (ours[name] - value).norm() <= tolerance * value.norm(), name


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer's layers are traced and not compiled, which is much faster."""
    monkeypatch.setattr(speedups_module, "compile_layers", partial(compile_layers, backend="eager"))


@pytest.mark.parametrize(("family", "dropout"), [("llama", 0.0), ("gemma2", 0.2)])
def test_gradients_are_those_of_eager(family: str, dropout: float) -> None:
    model = deep_model(family, lora_dropout=dropout)
    use_fast_layers(model)
    eager = {count: gradients(model, count) for count in (2, 4, 7)}
    layers = compiled(model)
    assert isinstance(layers, CompiledLayers), layers
    for count, theirs in eager.items():
        assert_same(gradients(model, count), theirs)
    assert not layers.eager_calls, "one artefact for all shapes"
    assert layers.describe()[0] == "compiled: 2 of 3"
    layers.close()
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_in_bf16_gradients_are_those_of_eager_within_its_rounding() -> None:
    def bf16() -> Any:
        return torch.autocast("cpu", dtype=torch.bfloat16)

    register_attention()
    model = deep_model()
    model.get_base_model().set_attn_implementation(CPU_ATTENTION)
    for value in model.parameters():
        value.data = value.data if value.requires_grad else value.data.bfloat16()
    use_fast_layers(model)
    with bf16():
        theirs = gradients(model)
    # This backend decomposes as the real one does, and so rounds elsewhere than eager.
    layers = compile_layers(model, [(2, 16)], device=CPU, autocast=bf16, backend="aot_eager_decomp_partition")
    assert isinstance(layers, CompiledLayers), layers
    with bf16():
        assert_same(gradients(model), theirs, tolerance=5e-2)
    assert not layers.eager_calls


def test_what_fits_no_artefact_runs_in_eager_and_is_counted() -> None:
    model = deep_model()
    alone = gradients(model, 1)
    layers = compiled(model)
    assert_same(gradients(model, 1), alone)
    assert list(layers.eager_calls.values()) == [2], "both compiled layers, once"
    gradients(model, 1)
    assert list(layers.eager_calls.values()) == [2], "known by now, and not tried again"
    assert "eager for 1 shapes" in layers.describe()[1]


def test_batches_of_one_and_of_several_get_an_artefact_each_where_both_are_common() -> None:
    assert typical_shapes([[0, 1], [2], [3, 4, 5]], [9] * 6) == [(2, 9), (1, 9)]
    assert typical_shapes([[0, 1, 2, 3], [4]], [9, 9, 9, 9, 2]) == [(2, 9)]
    assert typical_shapes([[0], [1]], [5, 7]) == [(1, 7)]
    layers = compiled(model := deep_model(), shapes=((2, 16), (1, 16)))
    for count in (1, 3):
        gradients(model, count)
    assert not layers.eager_calls


def test_activation_checkpointing_computes_the_layer_again_compiled() -> None:
    model = deep_model()
    theirs = gradients(model)
    layers = compiled(model)
    model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    assert_same(gradients(model), theirs)
    assert not layers.eager_calls


def test_without_gradients_layers_run_in_eager() -> None:
    model = deep_model()
    ids = torch.arange(12).view(2, 6)
    layers = compiled(model)
    layers.layers[0].__dict__["forward"]._compiled = lambda *_: pytest.fail("nothing to gain")
    with torch.no_grad():
        before = model.eval()(input_ids=ids).logits
        layers.close()
        assert torch.equal(model(input_ids=ids).logits, before)


@pytest.mark.parametrize("compiler", ["/nowhere/g++", "false"])
def test_without_a_compiler_training_goes_on_in_eager(
    compiler: str, make_trainer: TrainerMaker, capfd: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    import torch._inductor.config as inductor

    with inductor.patch({"cpp.cxx": (compiler,)}):
        result = make_trainer(make_examples(16), **SETTINGS).train()
    assert line(result.speedups, "Decoder layers") == (
        "not compiled", "there is no C++ compiler (g++, or the one that CXX names)",
    )  # fmt: skip
    assert result.state.compiles is False
    error = capfd.readouterr().err
    assert "decoder layers are computed in eager: there is no C++ compiler" in error
    assert "Traceback" not in error


def test_layers_that_give_other_numbers_stay_in_eager() -> None:
    def wrong(graph: torch.fx.GraphModule, _inputs: Any) -> Any:
        return lambda *args: tuple(value * 1.01 for value in graph(*args))

    model = deep_model()
    assert compiled(model, backend=wrong) == "layer 1 gives other numbers when compiled"  # type: ignore[arg-type]
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_what_cannot_be_traced_stays_in_eager() -> None:
    def broken(_graph: torch.fx.GraphModule, _inputs: Any) -> Any:
        raise RuntimeError("no\nsuch luck")

    assert "it did not work" in compiled(deep_model(), backend=broken)  # type: ignore[arg-type]


def test_layers_of_many_kinds_stay_in_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "MOST_ARTEFACTS", 1)
    assert "more than 1 kinds" in compiled(deep_model(), shapes=((2, 16), (1, 16)))


def test_a_single_layer_that_trains_is_not_compiled() -> None:
    model = deep_model(target_modules=["q_proj"], layers_to_transform=[2], layers_pattern="layers")
    assert compiled(model) == "there is no decoder layer above the lowest one that trains"


def test_the_forecast_weighs_what_is_saved_against_what_it_costs() -> None:
    model = deep_model()
    assert "it would save about 0 s of this run" in str(forecast(model, CPU, 1e5))
    assert forecast(model, CPU, 1e13) is None
    assert "not measured" in str(forecast(model, torch.device("cuda"), 1e13))


def test_a_stopped_run_with_compiled_layers_ends_with_the_same_bytes(
    make_trainer: TrainerMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, traced: None
) -> None:
    validation = make_examples(5, seed=3)
    undisturbed, resumed = deep_model(), deep_model()
    first = make_trainer(make_examples(16), validation, model=undisturbed, folder="a", **SETTINGS).train()
    assert line(first.speedups, "Decoder layers")[0] == "compiled: 2 of 3"
    stopping = make_trainer(make_examples(16), validation, model=deep_model(), folder="b", **SETTINGS)

    def stop_in_step_6(step: int, *args: Any, **kwargs: Any) -> float:
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return schedule.learning_rate_at(step, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(trainer_module, "learning_rate_at", stop_in_step_6)
        with pytest.raises(StoppedError, match="step 6 of 8"):
            stopping.train()
    # auto: the forecast alone would say no.
    result = make_trainer(
        make_examples(16), validation, model=resumed, folder="b", **{**SETTINGS, "compile": "auto"}
    ).train()
    assert (result.resumed_from, result.state.compiles) == (6, True)
    assert digest(resumed) == digest(undisturbed)
    assert metrics(tmp_path / "a", "loss") == metrics(tmp_path / "b", "loss")


def test_auto_goes_on_in_eager_where_the_run_began_so(
    make_trainer: TrainerMaker, monkeypatch: pytest.MonkeyPatch, traced: None
) -> None:
    settings = {**SETTINGS, "compile": "auto"}
    first = make_trainer(make_examples(16), model=deep_model(), **{**settings, "max_steps": 4}).train()
    assert "it would save about 0 s" in line(first.speedups, "Decoder layers")[1]
    monkeypatch.setattr(compilation, "SAVED_CORE_SECONDS", 1e9)
    second = make_trainer(make_examples(16), model=deep_model(), **settings).train()
    assert line(second.speedups, "Decoder layers") == ("not compiled", "as when the run began")


def test_frozen_layers_and_lost_memory_go_with_compiled_layers(
    make_trainer: TrainerMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, traced: None
) -> None:
    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    models = [deep_model(target_modules=linear, layers_to_transform=[1, 2], layers_pattern="layers") for _ in range(2)]
    make_trainer(make_examples(16), model=models[0], folder="a", **{**SETTINGS, "compile": "off"}).train()
    trainer = make_trainer(make_examples(16), model=models[1], folder="b", **SETTINGS)
    whole, failures = trainer._accumulate, iter([torch.OutOfMemoryError()])

    def fail_once(step: int) -> Any:
        if step == 3 and (error := next(failures, None)) is not None:
            trainer._examples_at_work = 4
            raise error
        return whole(step)

    monkeypatch.setattr(trainer, "_accumulate", fail_once)
    result = trainer.train()
    assert line(result.speedups, "Frozen layers")[0] == "computed once"
    assert line(result.speedups, "Decoder layers")[0] == "compiled: 1 of 3"
    assert result.state.micro_batch_size == 2
    for ours, theirs in zip(models[1].parameters(), models[0].parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def test_the_real_compiler_keeps_no_pickle_in_a_private_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    model = deep_model()
    theirs = gradients(model)
    layers = compiled(model, backend="inductor")
    if isinstance(layers, str) and "compiler" in layers:
        pytest.skip(layers)
    assert isinstance(layers, CompiledLayers), layers
    assert_same(gradients(model), theirs)
    folder = cache_folder() / "compiled"
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".so" for path in files)
    assert not [path for path in files if b"\x80\x04\x95" in path.read_bytes()[:64] or path.suffix == ".pkl"]
    assert folder.stat().st_mode & 0o077 == 0
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ or str(folder) not in os.environ["TORCHINDUCTOR_CACHE_DIR"]
