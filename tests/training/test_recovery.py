"""Memory that runs out and losses that are no number: the run goes on, and says what it did."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.training.conftest import TrainerMaker, lora_model, make_examples
from tests.training.test_trainer import digest, metrics
from tunesmith import failpoints
from tunesmith.errors import TrainError
from tunesmith.training.checkpoint import TrainState
from tunesmith.training.health import LengthenWarmup, LowerLearningRate, StopEarly
from tunesmith.training.recovery import adjust, need_less_memory

SETTINGS = {"max_steps": 6, "learning_rate": 1e-2, "logging_steps": 1, "per_device_train_batch_size": 8}


@pytest.fixture
def arm(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Fail-points of this test end with it."""
    yield monkeypatch
    monkeypatch.undo()
    failpoints.reload()


def set_failpoint(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(failpoints.VARIABLE, value)
    failpoints.reload()


def events(folder: Path) -> list[str]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["event"] for line in lines if "event" in line]


def test_after_memory_ran_out_the_result_is_the_same(
    make_trainer: TrainerMaker, arm: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    undisturbed, halved = lora_model(), lora_model()
    make_trainer(make_examples(24), model=undisturbed, folder="a", **SETTINGS).train()
    set_failpoint(arm, "forward:3=oom;forward:4=oom")
    result = make_trainer(make_examples(24), model=halved, folder="b", **SETTINGS).train()
    assert result.state.micro_batch_size == 2
    assert [event.split(":")[0] for event in events(tmp_path / "b")] == [
        "memory ran out in step 3",
        "memory ran out in step 4",
    ]
    assert metrics(tmp_path / "b", "loss") == pytest.approx(metrics(tmp_path / "a", "loss"), abs=1e-4)
    for ours, theirs in zip(undisturbed.parameters(), halved.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def test_less_memory_is_tried_in_turn_until_nothing_is_left() -> None:
    state = TrainState(micro_batch_size=8)
    enabled: list[int] = []

    def tried(largest: int) -> str:
        return need_less_memory(state, largest, lambda: enabled.append(1))

    assert "micro-batches of 2" in tried(3), "the budget of tokens allowed three, so halving eight would change nothing"
    assert state.micro_batch_size == 2
    assert "micro-batches of 1" in tried(2)
    assert "checkpointing" in tried(1)
    assert enabled == [1]
    with pytest.raises(TrainError, match=r"one example at a time[\s\S]*max_length"):
        tried(1)


def test_the_smaller_micro_batch_holds_after_a_resume(
    make_trainer: TrainerMaker, arm: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    set_failpoint(arm, "forward:2=oom")
    make_trainer(make_examples(24), **SETTINGS).train()
    arm.delenv(failpoints.VARIABLE)
    failpoints.reload()
    again = make_trainer(make_examples(24), **{**SETTINGS, "max_steps": 8}).train()
    assert again.resumed_from == 6
    assert again.state.micro_batch_size == 4


def test_memory_that_runs_out_in_validation_halves_the_batch(
    make_trainer: TrainerMaker, arm: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_trainer(make_examples(8), make_examples(9, seed=3), folder="a", **SETTINGS).train()
    set_failpoint(arm, "memory:validating=oom")
    make_trainer(make_examples(8), make_examples(9, seed=3), folder="b", **SETTINGS).train()
    losses = [metrics(tmp_path / name, "eval_loss") for name in "ab"]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_a_step_whose_loss_is_no_number_is_left_out(
    make_trainer: TrainerMaker, arm: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    set_failpoint(arm, "forward:3=nan")
    model = lora_model()
    result = make_trainer(make_examples(24), model=model, **SETTINGS).train()
    assert result.state.step == 6
    assert "step 3 is left out" in events(tmp_path / "run")[0]
    assert "train.jsonl:" in events(tmp_path / "run")[0]
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert len(metrics(tmp_path / "run", "loss")) == 5


def test_the_third_in_a_row_ends_the_run_and_keeps_the_last_good_checkpoint(
    make_trainer: TrainerMaker, arm: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    set_failpoint(arm, "forward:3=nan;forward:4=nan;forward:5=nan")
    with pytest.raises(TrainError, match=r"3 steps in a row[\s\S]*train\.jsonl:[\s\S]*learning_rate"):
        make_trainer(make_examples(24), **{**SETTINGS, "save_steps": 2}).train()
    arm.delenv(failpoints.VARIABLE)
    failpoints.reload()
    undisturbed, resumed = lora_model(), lora_model()
    make_trainer(make_examples(24), model=undisturbed, folder="whole", **{**SETTINGS, "save_steps": 2}).train()
    # The newest checkpoint is of step 4, after two steps that were left out.
    result = make_trainer(make_examples(24), model=resumed, **{**SETTINGS, "save_steps": 2}).train()
    assert result.resumed_from == 4
    assert digest(resumed) != digest(undisturbed), "two steps are missing in it"


def test_a_bad_example_is_named(make_trainer: TrainerMaker, tmp_path: Path) -> None:
    model = lora_model()
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, torch.nn.Embedding)
    examples = make_examples(8)
    with torch.no_grad():
        embedding.weight[263] = math.nan
    bad = examples[5]
    poisoned = type(bad)((263, *bad.input_ids[1:]), bad.labels, bad.place)
    settings = {**SETTINGS, "max_steps": 1}
    make_trainer([*examples[:5], poisoned, *examples[6:]], model=model, **settings).train()
    assert events(tmp_path / "run") == [
        f"step 1 is left out: its loss or gradient is not a number; examples: {bad.place}"
    ]


def test_adjusting_changes_the_state() -> None:
    state = TrainState()
    assert "0.5 of the schedule" in adjust(state, LowerLearningRate(0.5))
    assert "10 steps longer" in adjust(state, LengthenWarmup(10))
    assert "ends here" in adjust(state, StopEarly())
    assert (state.learning_rate_scale, state.more_warmup, state.stopped_early) == (0.5, 10, True)


def test_a_long_example_alone_does_not_cost_the_short_ones_their_batches(
    make_trainer: TrainerMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where one example at a time is too much, halving the others is no help: activations are recomputed."""
    examples = [*make_examples(7), *make_examples(1, seed=5, longest=200)]
    settings = {**SETTINGS, "max_steps": 1, "max_tokens_per_micro_batch": 60}
    trainer = make_trainer(examples, **settings)
    assert len(trainer._micro_batches(0)[0]) == 1
    accumulate, tries = trainer._accumulate, []

    def fails_first(step: int) -> object:
        tries.append(step)
        if len(tries) == 1:
            trainer._examples_at_work = 1
            raise MemoryError
        return accumulate(step)

    monkeypatch.setattr(trainer, "_accumulate", fails_first)
    state = trainer.train().state
    assert (len(tries), state.micro_batch_size, state.gradient_checkpointing) == (2, 8, True)
