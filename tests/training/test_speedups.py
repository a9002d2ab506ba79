"""What makes training faster, through the trainer: on where it is exact and pays, told, and the same result."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from tests.training.conftest import TrainerMaker, lora_model, make_examples
from tests.training.test_trainer import digest, metrics
from tunesmith.errors import StoppedError
from tunesmith.training import schedule
from tunesmith.training import speedups as speedups_module
from tunesmith.training import trainer as trainer_module
from tunesmith.training.frozen_trunk import FrozenTrunk
from tunesmith.training.signals import StopRequest
from tunesmith.training.speedups import Speedups

SETTINGS = {"max_steps": 8, "learning_rate": 1e-2, "logging_steps": 1, "save_steps": 4, "eval_steps": 4,
            "per_device_train_batch_size": 4}  # fmt: skip
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def top_layer_model(**changes: Any) -> PeftModel:
    """LoRA on the upper of two layers."""
    return lora_model(target_modules=LINEAR, layers_to_transform=[1], layers_pattern="layers", **changes)


def line(speedups: Speedups, part: str) -> tuple[str, str]:
    return next((state, why) for name, state, why in speedups.lines if name == part)


def test_frozen_layers_computed_once_give_the_same_run(make_trainer: TrainerMaker, tmp_path: Path) -> None:
    results, models = {}, {}
    for folder, cache in (("once", 20.0), ("each", 0.0)):
        models[folder] = top_layer_model()
        results[folder] = make_trainer(
            make_examples(16), make_examples(5, seed=3), model=models[folder], folder=folder,
            frozen_layers_cache_gb=cache, **SETTINGS,
        ).train()  # fmt: skip
    assert line(results["once"].speedups, "Frozen layers")[0] == "computed once"
    assert line(results["each"].speedups, "Frozen layers") == ("in every step", "train.frozen_layers_cache_gb is 0")
    for key in ("loss", "eval_loss", "grad_norm"):
        assert metrics(tmp_path / "once", key) == pytest.approx(metrics(tmp_path / "each", key), rel=1e-4), key
    for ours, theirs in zip(models["once"].parameters(), models["each"].parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
    assert not list((tmp_path / "once" / "data" / "trunk").glob("*")), "removed when the run is done"


def test_a_stopped_run_with_frozen_layers_ends_with_the_same_bytes(
    make_trainer: TrainerMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed, resumed = top_layer_model(), top_layer_model()
    make_trainer(make_examples(16), model=undisturbed, folder="a", **SETTINGS).train()
    stopping = make_trainer(make_examples(16), model=top_layer_model(), folder="b", **SETTINGS)

    def stop_in_step_6(step: int, *args: Any, **kwargs: Any) -> float:
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return schedule.learning_rate_at(step, *args, **kwargs)

    monkeypatch.setattr(trainer_module, "learning_rate_at", stop_in_step_6)
    with pytest.raises(StoppedError, match="step 6 of 8"):
        stopping.train()
    monkeypatch.undo()
    assert list((tmp_path / "b" / "data" / "trunk").glob("*")), "kept for the next process"
    result = make_trainer(make_examples(16), model=resumed, folder="b", **SETTINGS).train()
    assert (result.resumed_from, line(result.speedups, "Frozen layers")[0]) == (6, "computed once")
    assert digest(resumed) == digest(undisturbed)


def test_a_run_that_began_without_goes_on_without(make_trainer: TrainerMaker) -> None:
    make_trainer(make_examples(16), model=top_layer_model(), frozen_layers_cache_gb=0.0, **SETTINGS).train()
    longer = {**SETTINGS, "max_steps": 12}
    result = make_trainer(make_examples(16), model=top_layer_model(), **longer).train()
    assert (result.resumed_from, result.state.step) == (8, 12)
    assert line(result.speedups, "Frozen layers") == ("in every step", "as when the run began")


def test_one_pass_over_the_data_does_not_compute_ahead(make_trainer: TrainerMaker) -> None:
    result = make_trainer(make_examples(32), model=top_layer_model(), **SETTINGS).train()
    assert "passed over 1 times" in line(result.speedups, "Frozen layers")[1]


def test_the_report_says_how_layers_and_logits_are_computed(make_trainer: TrainerMaker) -> None:
    fast = make_trainer(make_examples(4), max_steps=1).train().speedups
    assert line(fast, "LoRA layers") == ("fast: 14 layers", "")
    assert line(fast, "Norms") == ("less kept: 5 layers", "")
    assert line(fast, "MLPs") == ("less kept: 2 layers", "")
    assert line(fast, "Logits")[0] == "in chunks, where there is a label"
    assert line(fast, "Frozen layers") == ("in every step", "no frozen layer lies below the lowest part that trains")
    dora = make_trainer(make_examples(4), model=lora_model(use_dora=True), folder="dora", max_steps=1).train().speedups
    assert line(dora, "LoRA layers") == ("PEFT's own: 14 (Dora)", "")
    assert dora.table().rows == tuple(dora.lines)


def test_a_budget_of_tokens_changes_micro_batches_and_not_the_run(make_trainer: TrainerMaker, tmp_path: Path) -> None:
    whole, divided = lora_model(), lora_model()
    settings = {**SETTINGS, "per_device_train_batch_size": 8}
    make_trainer(make_examples(24), model=whole, folder="whole", **settings).train()
    small = make_trainer(make_examples(24), model=divided, folder="small", max_tokens_per_micro_batch=40, **settings)
    parts = small._micro_batches(0)
    assert len(parts) > 2
    assert sorted(index for part in parts for index in part) == sorted(i for p in small._plan.step(0) for i in p)
    small.train()
    assert metrics(tmp_path / "whole", "loss") == pytest.approx(metrics(tmp_path / "small", "loss"), abs=1e-4)
    for ours, theirs in zip(whole.parameters(), divided.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def test_a_finished_run_does_not_compute_ahead_again(
    make_trainer: TrainerMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_trainer(make_examples(16), model=top_layer_model(), **SETTINGS).train()
    monkeypatch.setattr(FrozenTrunk, "prepare", lambda *_, **__: pytest.fail("nothing is left to train"))
    assert make_trainer(make_examples(16), model=top_layer_model(), **SETTINGS).train().state.step == 8


def test_a_signal_while_computing_ahead_stops_the_run_and_keeps_what_is_there(
    make_trainer: TrainerMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed, resumed = top_layer_model(), top_layer_model()
    monkeypatch.setattr(speedups_module, "micro_batch_tokens", lambda _: 48)
    make_trainer(make_examples(16), model=undisturbed, folder="a", **SETTINGS).train()
    asked = []

    def ask(stop: StopRequest) -> bool:
        asked.append(stop)
        return len(asked) == 3

    monkeypatch.setattr(StopRequest, "requested", property(ask, lambda *_: None), raising=False)
    with pytest.raises(StoppedError, match="the frozen layers give"):
        make_trainer(make_examples(16), model=top_layer_model(), folder="b", **SETTINGS).train()
    monkeypatch.undo()
    monkeypatch.setattr(speedups_module, "micro_batch_tokens", lambda _: 48)
    assert list((tmp_path / "b" / "data" / "trunk").glob("*.hidden"))
    make_trainer(make_examples(16), model=resumed, folder="b", **SETTINGS).train()
    assert digest(resumed) == digest(undisturbed)


def test_giving_the_room_back_removes_the_files(make_trainer: TrainerMaker, tmp_path: Path) -> None:
    left = tmp_path / "run" / "data" / "trunk" / "train.hidden"
    make_trainer(make_examples(16), model=top_layer_model(), **SETTINGS)
    left.parent.mkdir(parents=True)
    left.write_bytes(b"of an earlier part of the run")
    make_trainer(make_examples(16), model=top_layer_model(), frozen_layers_cache_gb=0.0, **SETTINGS).train()
    assert not left.exists()
