"""The training loss with weights: equal to examples taken one at a time, and no part of what is only measured."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.tiny import FAMILIES, tiny_model
from tests.training.conftest import TrainerMaker, lora_model, make_examples
from tests.training.test_trainer import digest, metrics
from tunesmith.data.batching import Batch, collate
from tunesmith.data.records import IGNORED_LABEL, TokenizedExample
from tunesmith.models import label_head as label_head_module
from tunesmith.models.label_head import label_head
from tunesmith.training import loss as loss_module
from tunesmith.training.loss import summed_loss

WEIGHTS = (1.0, 0.25, 3.0, 1.0, 1.0, 0.001, 0.5, 1.0)
"""Of eight examples; the fourth and fifth make up a micro-batch without weights."""


pytestmark = pytest.mark.usefixtures("one_thread")


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


def by_head_and_by_forward(model: torch.nn.Module, batch: Batch, weights: bool) -> list[dict[str, torch.Tensor]]:
    """Loss and gradients, once through `label_head` and once through the model's own `forward`."""
    results = []
    for way in ("head", "forward"):
        assert label_head(model) is not None
        with pytest.MonkeyPatch.context() as patch:
            if way == "forward":
                patch.setattr(loss_module, "label_head", lambda _model: None)
            model.zero_grad()
            loss = summed_loss(model, batch, batch.weights_B if weights else None)
            loss.backward()
            assert (loss.dtype, loss.shape) == (torch.float32, ())
            results.append({"loss": loss.detach(), **{name: g.clone() for name, g in gradients(model).items()}})
    return results


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_where_a_label_is_gives_what_the_models_own_forward_gives(
    family: str, weights: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_head_module, "CHUNK_BYTES", 1)
    batch = collate(weighted_examples(), pad_token_id=0)
    assert int((batch.labels_BT != IGNORED_LABEL).sum()) > 3 * 16, "several chunks"
    ours, theirs = by_head_and_by_forward(tiny_model(family), batch, weights)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], atol=2e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize("modules_to_save", [None, ["lm_head"]])
def test_a_batch_without_a_label_has_a_loss_of_zero_and_a_graph(modules_to_save: list[str] | None) -> None:
    """As a rank without work has in a last, short step. The first token is never a target."""
    model = lora_model(target_modules=["q_proj"], modules_to_save=modules_to_save)
    examples = [replace(example, labels=(5, *[IGNORED_LABEL] * (len(example.input_ids) - 1)))
                for example in make_examples(3)]  # fmt: skip
    batch = collate(examples, pad_token_id=0)
    for result in by_head_and_by_forward(model, batch, weights=False):
        assert not any(tensor.any() for tensor in result.values())


def test_a_model_that_changes_its_logits_is_left_to_its_own_forward() -> None:
    model = tiny_model()
    batch = collate(weighted_examples(), pad_token_id=0)
    plain = summed_loss(model, batch).item()

    def halved(_module: torch.nn.Module, _inputs: Any, output: Any) -> Any:
        output.logits = output.logits / 2
        return output

    changed = tiny_model()
    changed.register_forward_hook(halved)
    expected = sum(loss_alone(changed, example).item() for example in weighted_examples())
    assert summed_loss(changed, batch).item() == pytest.approx(expected, rel=1e-5)
    assert abs(expected - plain) > 1


def test_no_logits_are_computed_where_there_is_no_label() -> None:
    model: Any = tiny_model()
    label_head(model)
    rows: list[int] = []
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda _module, inputs, _output: rows.append(inputs[0].shape[0]))
    batch = collate(weighted_examples(), pad_token_id=0)
    with torch.no_grad():
        summed_loss(model, batch)
    assert sum(rows) == int((batch.labels_BT[:, 1:] != IGNORED_LABEL).sum())
