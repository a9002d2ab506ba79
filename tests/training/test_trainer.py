"""The loop: equal to a plain PEFT loop, exact on resume, right in its accounting."""

import hashlib
import json
import math
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import get_linear_schedule_with_warmup

from tests.training.conftest import TrainerMaker, lora_model, make_examples
from tunesmith.data.batching import StepPlan, collate
from tunesmith.data.records import IGNORED_LABEL, Place, TokenizedExample
from tunesmith.errors import RunError, StoppedError, TrainError
from tunesmith.training import trainer as trainer_module
from tunesmith.training.metrics import Window


def metrics(folder: Path, key: str) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


def digest(model: PeftModel) -> str:
    state = hashlib.sha256()
    for name, value in sorted(model.named_parameters()):
        if value.requires_grad:
            state.update(name.encode() + value.detach().numpy().tobytes())
    return state.hexdigest()


def plain_loop(examples: list[TokenizedExample], steps: int, batch_size: int) -> list[float]:
    """Twenty lines as a user of PEFT would write them: padded batches with an attention mask, full logits, AdamW."""
    model = lora_model()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, 3, steps)
    lengths = [len(example.input_ids) for example in examples]
    plan = StepPlan(lengths, micro_batch_size=batch_size, micro_batches=1, strategy="random", seed=0)
    losses = []
    for step in range(steps):
        chosen = [examples[index] for group in plan.step(step) for index in group]
        batch = collate(chosen, pad_token_id=0)
        mask_BT = torch.zeros_like(batch.input_ids_BT)
        for row, example in enumerate(chosen):
            mask_BT[row, : len(example.input_ids)] = 1
        logits_BTV = model(input_ids=batch.input_ids_BT, attention_mask=mask_BT).logits
        loss = cross_entropy(logits_BTV[:, :-1].flatten(0, 1), batch.labels_BT[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_the_losses_are_those_of_a_plain_peft_loop(make_trainer: TrainerMaker, tmp_path: Path) -> None:
    examples = make_examples(40)
    settings = {"max_steps": 20, "learning_rate": 1e-2, "warmup_steps": 3, "train_sampling_strategy": "random"}
    make_trainer(examples, per_device_train_batch_size=4, logging_steps=1, **settings).train()
    ours = metrics(tmp_path / "run", "loss")
    assert len(ours) == 20
    assert ours == pytest.approx(plain_loop(examples, 20, 4), abs=1e-4)
    assert ours[-1] < ours[0]


def test_accumulation_does_not_change_the_result(make_trainer: TrainerMaker) -> None:
    whole, parts = lora_model(), lora_model()
    examples = make_examples(24)
    settings = {"max_steps": 5, "learning_rate": 1e-2}
    make_trainer(examples, model=whole, folder="a", per_device_train_batch_size=8, **settings).train()
    make_trainer(
        examples, model=parts, folder="b", per_device_train_batch_size=2, gradient_accumulation_steps=4, **settings
    ).train()
    for ours, theirs in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def test_gradient_checkpointing_does_not_change_the_result(make_trainer: TrainerMaker) -> None:
    plain, checkpointed = lora_model(), lora_model()
    examples = make_examples(16)
    make_trainer(examples, model=plain, folder="a", max_steps=4, learning_rate=1e-2).train()
    make_trainer(
        examples, model=checkpointed, folder="b", max_steps=4, learning_rate=1e-2, gradient_checkpointing=True
    ).train()
    for ours, theirs in zip(plain.parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_same_seed_gives_the_same_bytes_and_another_gives_others(make_trainer: TrainerMaker) -> None:
    results = []
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        model = lora_model(lora_dropout=0.2)
        make_trainer(make_examples(20), model=model, folder=folder, seed=seed, max_steps=6).train()
        results.append(digest(model))
    assert results[0] == results[1] != results[2]


class _StopAfter:
    """Sends this process SIGINT when a given step is done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
        original = trainer_module.Trainer._train_step

        def train_step(trainer: trainer_module.Trainer, window: Window) -> None:
            original(trainer, window)
            if trainer._state.step == step:
                os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(trainer_module.Trainer, "_train_step", train_step)


def test_a_stopped_and_resumed_run_is_the_undisturbed_run(
    make_trainer: TrainerMaker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = {"max_steps": 11, "learning_rate": 1e-2, "logging_steps": 2, "eval_steps": 4, "warmup_steps": 2}
    examples, validation = make_examples(30), make_examples(6, seed=1)
    undisturbed = lora_model(lora_dropout=0.1)
    whole = make_trainer(examples, validation, model=undisturbed, folder="whole", **settings).train()
    with monkeypatch.context() as patch:
        _StopAfter(patch, 7)
        with pytest.raises(StoppedError) as stopped:
            make_trainer(examples, validation, model=lora_model(lora_dropout=0.1), folder="cut", **settings).train()
    assert stopped.value.exit_code == 75
    resumed = lora_model(lora_dropout=0.1)
    result = make_trainer(examples, validation, model=resumed, folder="cut", **settings).train()
    assert result.resumed_from == 7
    assert digest(resumed) == digest(undisturbed)
    assert (result.adapter_step, result.state.best_loss) == (whole.adapter_step, whole.state.best_loss)
    assert metrics(tmp_path / "cut", "eval_loss") == metrics(tmp_path / "whole", "eval_loss")
    assert metrics(tmp_path / "cut", "step") == metrics(tmp_path / "whole", "step")
    assert metrics(tmp_path / "cut", "loss") == metrics(tmp_path / "whole", "loss")


def test_a_checkpoint_of_other_data_is_refused(make_trainer: TrainerMaker) -> None:
    make_trainer(make_examples(8), max_steps=2).train()
    with pytest.raises(RunError, match="other: data"):
        make_trainer(make_examples(8), max_steps=2, fingerprint={"data": "b"}).train()


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(
    make_trainer: TrainerMaker, tmp_path: Path
) -> None:
    undisturbed, resumed = lora_model(), lora_model()
    make_trainer(make_examples(16), model=undisturbed, max_steps=6, save_steps=2).train()
    newest = tmp_path / "run" / "checkpoints" / "step-00000006"
    with (newest / "adapter.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    result = make_trainer(make_examples(16), model=resumed, max_steps=6, save_steps=2).train()
    assert result.resumed_from == 4
    assert "adapter.safetensors is damaged" in result.set_aside[0]
    assert digest(resumed) == digest(undisturbed)


def test_the_best_adapter_is_kept_and_survives_rotation(make_trainer: TrainerMaker, tmp_path: Path) -> None:
    # Training on noise at a high rate: the validation loss is lowest early on.
    model = lora_model()
    result = make_trainer(
        make_examples(16),
        make_examples(8, seed=7),
        model=model,
        max_steps=24,
        learning_rate=5e-2,
        eval_steps=1,
        save_steps=4,
        save_total_limit=1,
        per_device_train_batch_size=4,
    ).train()
    losses = metrics(tmp_path / "run", "eval_loss")[1:]
    assert result.adapter_step == result.state.best_step == losses.index(min(losses)) + 1 < 24
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == [f"step-{result.adapter_step:08d}", "step-00000024"]
    holding_best = make_trainer(make_examples(16), make_examples(8, seed=7), model=model, folder="other", max_steps=1)
    assert holding_best._validate() == {"eval_loss": pytest.approx(min(losses), abs=1e-6)}


def test_early_stopping_ends_the_run(make_trainer: TrainerMaker, tmp_path: Path) -> None:
    settings = {"max_steps": 60, "learning_rate": 5e-2, "eval_steps": 1, "early_stopping_patience": 3}
    result = make_trainer(make_examples(16), make_examples(8, seed=7), **settings).train()
    assert result.state.stopped_early
    assert result.state.step == (result.state.best_step or 0) + 3 < 60
    again = make_trainer(make_examples(16), make_examples(8, seed=7), model=lora_model(), **settings).train()
    assert again.state.step == result.state.step, "a run that stopped early is finished"


def test_a_loss_that_is_not_a_number_ends_the_run_and_names_the_examples(make_trainer: TrainerMaker) -> None:
    model = lora_model()
    next(p for p in model.parameters() if p.requires_grad).data.fill_(math.nan)
    with pytest.raises(TrainError, match=r"3 steps in a row[\s\S]*train\.jsonl:\d+"):
        make_trainer(make_examples(8), model=model, max_steps=4).train()


def test_bf16_trains_and_its_adapter_stays_in_float32(make_trainer: TrainerMaker, tmp_path: Path) -> None:
    model = lora_model()
    make_trainer(make_examples(16), model=model, precision="bf16", max_steps=8, learning_rate=1e-2).train()
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert metrics(tmp_path / "run", "loss")[-1] < 5.6


def test_tensorboard_gets_the_figures(make_trainer: TrainerMaker, tmp_path: Path) -> None:
    make_trainer(make_examples(8), max_steps=2, report_to="tensorboard").train()
    assert list((tmp_path / "run" / "trackers").rglob("events.out.tfevents.*"))


def test_an_example_without_targets_in_a_batch_changes_nothing(make_trainer: TrainerMaker, tmp_path: Path) -> None:
    silent = TokenizedExample((1, 2, 3), (IGNORED_LABEL,) * 3, Place("train.jsonl", 99))
    examples = make_examples(4)
    make_trainer(examples, folder="a", max_steps=1).train()
    make_trainer([*examples, silent], folder="b", max_steps=1).train()
    assert metrics(tmp_path / "a", "loss") == pytest.approx(metrics(tmp_path / "b", "loss"), abs=1e-6)


class _ReadOneByOne(Sequence[TokenizedExample]):
    """Examples that are counted when read, and are not to be walked through or cut into slices."""

    def __init__(self, examples: list[TokenizedExample]) -> None:
        self.lengths = np.array([len(example.input_ids) for example in examples], dtype=np.uint32)
        self.read: list[int] = []
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: object) -> TokenizedExample:  # type: ignore[override]
        assert type(index) is int, "one example at a time"
        self.read.append(index)
        return self._examples[index]

    def __iter__(self) -> Iterator[TokenizedExample]:
        raise AssertionError("all examples were asked for at once")


def test_examples_on_disk_are_read_only_when_they_are_needed(make_trainer: TrainerMaker, tmp_path: Path) -> None:
    examples, validation = make_examples(32), make_examples(7, seed=1)
    in_memory, on_disk = lora_model(), lora_model()
    settings = {"max_steps": 4, "eval_steps": 2, "learning_rate": 1e-2, "per_device_train_batch_size": 4}
    make_trainer(examples, validation, model=in_memory, folder="memory", **settings).train()
    lazy, lazy_validation = _ReadOneByOne(examples), _ReadOneByOne(validation)
    trainer = make_trainer(lazy, lazy_validation, model=on_disk, folder="disk", **settings)
    assert lazy.read == lazy_validation.read == []
    trainer.train()
    assert digest(on_disk) == digest(in_memory)
    assert metrics(tmp_path / "disk", "eval_loss") == metrics(tmp_path / "memory", "eval_loss")
    assert len(lazy.read) == len(set(lazy.read)) == 4 * 4, "each example of the four steps once, and no other"
    assert sorted(lazy_validation.read) == sorted(3 * list(range(7))), "three validations"
