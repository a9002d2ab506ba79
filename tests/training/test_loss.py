"""The training loss with weights: equal to examples taken one at a time, and no part of what is only measured."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.tiny import tiny_model
from tests.training.conftest import TrainerMaker, lora_model, make_examples
from tests.training.test_trainer import digest, metrics
from tunesmith.data.batching import collate
from tunesmith.data.records import TokenizedExample
from tunesmith.training.loss import summed_loss

WEIGHTS = (1.0, 0.25, 3.0, 1.0, 1.0, 0.001, 0.5, 1.0)
"""Of eight examples; the fourth and fifth make up a micro-batch without weights."""


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """The models here are so small that a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def weighted_examples(weights: Sequence[float] = WEIGHTS, *, seed: int = 0) -> list[TokenizedExample]:
    examples = make_examples(len(weights), seed=seed)
    return [replace(example, weight=weight) for example, weight in zip(examples, weights, strict=True)]


def loss_alone(model: torch.nn.Module, example: TokenizedExample) -> torch.Tensor:
    """The sum of one example's token losses, without padding, from all logits."""
    logits_TV = model(input_ids=torch.tensor([example.input_ids]), use_cache=False).logits[0]
    return cross_entropy(logits_TV[:-1], torch.tensor(example.labels[1:]), reduction="sum")


def naive_loss(model: torch.nn.Module, examples: Sequence[TokenizedExample]) -> torch.Tensor:
    divisor = sum(example.weight * example.target_count for example in examples)
    total = torch.stack([example.weight * loss_alone(model, example) for example in examples]).sum()
    return total / divisor


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("size", "accumulation", "affordable"), [(8, 1, 8), (2, 4, 2), (8, 1, 3)], ids=["whole", "accumulated", "split"]
)
@pytest.mark.parametrize("factor", [1.0, 1e-4])
def test_a_step_has_the_gradients_of_its_examples_one_at_a_time(
    make_trainer: TrainerMaker, size: int, accumulation: int, affordable: int, factor: float
) -> None:
    """Whatever the micro-batches are, also after memory ran out, and where all weights together are less than 1."""
    examples = weighted_examples([weight * factor for weight in WEIGHTS])
    model, reference = lora_model(), lora_model()
    # What PEFT starts at zero has to move first, or half of the gradients are zero.
    with torch.no_grad():
        for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
            if ours.requires_grad:
                theirs.copy_(ours.copy_(torch.randn(ours.shape, generator=torch.Generator().manual_seed(0)) / 5))
    trainer = make_trainer(
        examples,
        model=model,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        train_sampling_strategy="sequential",
    )
    trainer._state.micro_batch_size = affordable
    _, mean_loss = trainer._accumulate(0)
    expected = naive_loss(reference, examples)
    expected.backward()
    assert mean_loss == pytest.approx(expected.item(), abs=1e-5)
    ours, theirs = gradients(model), gradients(reference)
    assert ours.keys() == theirs.keys()
    assert len(ours) == 28, "A and B of seven linear layers in each of two blocks"
    for name in theirs:
        assert theirs[name].abs().max() > 1e-4, name
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-5, rtol=1e-5)


def test_weights_that_are_all_alike_are_no_weights(make_trainer: TrainerMaker, tmp_path: Path) -> None:
    plain, tripled = lora_model(), lora_model()
    settings = {"max_steps": 4, "learning_rate": 1e-2, "logging_steps": 1, "per_device_train_batch_size": 4}
    make_trainer(weighted_examples([1.0] * 12), model=plain, folder="plain", **settings).train()
    make_trainer(weighted_examples([3.0] * 12), model=tripled, folder="tripled", **settings).train()
    for ours, theirs in zip(plain.parameters(), tripled.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
    assert metrics(tmp_path / "plain", "loss") == pytest.approx(metrics(tmp_path / "tripled", "loss"), abs=1e-5)


def test_an_example_of_weight_zero_is_as_good_as_absent(make_trainer: TrainerMaker, tmp_path: Path) -> None:
    examples = weighted_examples([1.0, 2.0, 1.0, 0.0])
    make_trainer(examples, folder="with", max_steps=1, per_device_train_batch_size=4).train()
    make_trainer(examples[:3], folder="without", max_steps=1, per_device_train_batch_size=4).train()
    assert metrics(tmp_path / "with", "loss") == pytest.approx(metrics(tmp_path / "without", "loss"), abs=1e-6)
    assert metrics(tmp_path / "with", "grad_norm") == pytest.approx(metrics(tmp_path / "without", "grad_norm"), 1e-4)


def test_a_step_of_weight_zero_alone_changes_nothing(make_trainer: TrainerMaker) -> None:
    model = lora_model()
    before = digest(model)
    result = make_trainer(weighted_examples([0.0] * 4), model=model, max_steps=1, weight_decay=0.0).train()
    assert (result.state.step, digest(model)) == (1, before)


@pytest.mark.parametrize("factor", [1.0, 1e-4])
def test_the_logged_loss_is_the_weighted_mean_over_its_steps_and_tokens_are_real(
    make_trainer: TrainerMaker, tmp_path: Path, factor: float
) -> None:
    examples = weighted_examples([weight * factor for weight in WEIGHTS])
    with torch.no_grad():
        expected = naive_loss(lora_model(), examples).item()
    result = make_trainer(
        examples, per_device_train_batch_size=2, max_steps=4, logging_steps=4, learning_rate=1e-12
    ).train()
    assert metrics(tmp_path / "run", "loss") == [pytest.approx(expected, abs=1e-5)]
    assert result.state.tokens == sum(len(example.input_ids) for example in examples)
    (speed,) = metrics(tmp_path / "run", "tokens_per_second")
    assert speed == pytest.approx(result.state.tokens / result.state.seconds)


def test_the_validation_loss_knows_no_weights(make_trainer: TrainerMaker, tmp_path: Path) -> None:
    settings = {"max_steps": 2, "eval_steps": 1, "per_device_eval_batch_size": 3}
    make_trainer(make_examples(8), weighted_examples(seed=1), folder="weighted", **settings).train()
    make_trainer(make_examples(8), make_examples(len(WEIGHTS), seed=1), folder="plain", **settings).train()
    assert metrics(tmp_path / "weighted", "eval_loss") == metrics(tmp_path / "plain", "eval_loss")


def test_a_loss_is_unweighted_unless_weights_are_given() -> None:
    model = tiny_model()
    batch = collate(weighted_examples(), pad_token_id=0)
    plain = collate(make_examples(len(WEIGHTS)), pad_token_id=0)
    with torch.no_grad():
        assert summed_loss(model, batch) == summed_loss(model, plain)
        assert summed_loss(model, batch, batch.weights_B) != summed_loss(model, plain)
        assert summed_loss(model, plain, torch.ones(8)) == pytest.approx(summed_loss(model, plain))
