"""Batches: padding that changes nothing, and an order that is a function of (seed, epoch)."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import FAMILIES, tiny_model
from tests.training.conftest import make_examples
from tunesmith.data.batching import StepPlan, collate
from tunesmith.data.records import IGNORED_LABEL
from tunesmith.training.loss import summed_loss


@pytest.mark.parametrize("family", FAMILIES)
def test_no_example_attends_to_another_or_to_padding(family: str) -> None:
    """A padded batch gives each example the gradients and the loss that it has alone."""
    examples = make_examples(5, longest=40)
    model = tiny_model(family)
    together = summed_loss(model, collate(examples, pad_token_id=3))
    together.backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    alone = torch.zeros(())
    for example in examples:
        loss = summed_loss(model, collate([example], pad_token_id=3))
        loss.backward()
        alone = alone + loss.detach()
    torch.testing.assert_close(together.detach(), alone, rtol=1e-5, atol=1e-4)
    for ours, theirs in zip(gradients, (p.grad for p in model.parameters() if p.grad is not None), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_changing_a_neighbour_or_the_padding_changes_no_logit(family: str) -> None:
    model = tiny_model(family)
    first, second, third = make_examples(3, longest=30)
    length = len(first.input_ids)
    with torch.no_grad():
        one = model(input_ids=collate([first, second], 0).input_ids_BT, use_cache=False).logits[0, :length]
        other = model(input_ids=collate([first, third], 9).input_ids_BT, use_cache=False).logits[0, :length]
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_collate_counts_what_is_real_and_what_is_trained() -> None:
    examples = make_examples(4)
    batch = collate(examples, pad_token_id=7)
    assert batch.token_count == sum(len(example.input_ids) for example in examples)
    assert batch.target_count == int((batch.labels_BT[:, 1:] != IGNORED_LABEL).sum())
    assert batch.input_ids_BT.shape == batch.labels_BT.shape
    for row, example in enumerate(examples):
        assert batch.input_ids_BT[row].tolist()[: len(example.input_ids)] == list(example.input_ids)
        assert set(batch.labels_BT[row, len(example.input_ids) :].tolist()) <= {IGNORED_LABEL}


@given(
    lengths=st.lists(st.integers(1, 500), min_size=1, max_size=120),
    micro_batch_size=st.integers(1, 7),
    micro_batches=st.integers(1, 4),
    strategy=st.sampled_from(["random", "sequential", "group_by_length"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_example_is_seen_once_an_epoch_whatever_the_sizes(
    lengths: list[int], micro_batch_size: int, micro_batches: int, strategy: str, seed: int
) -> None:
    plan = StepPlan(
        lengths, micro_batch_size=micro_batch_size, micro_batches=micro_batches, strategy=strategy, seed=seed
    )
    again = StepPlan(
        lengths, micro_batch_size=micro_batch_size, micro_batches=micro_batches, strategy=strategy, seed=seed
    )
    for epoch in range(2):
        steps = [plan.step(epoch * plan.steps_per_epoch + position) for position in range(plan.steps_per_epoch)]
        assert sorted(index for step in steps for batch in step for index in batch) == list(range(len(lengths)))
        assert all(len(step) <= micro_batches and len(batch) <= micro_batch_size for step in steps for batch in step)
    last = 2 * plan.steps_per_epoch - 1
    assert again.step(last) == plan.step(last), "a step does not depend on which steps were asked for before"


def test_epochs_and_seeds_differ_and_like_lengths_go_together() -> None:
    lengths = [n % 97 + 1 for n in range(400)]

    def plan(seed: int, strategy: str = "group_by_length") -> StepPlan:
        return StepPlan(lengths, micro_batch_size=8, micro_batches=1, strategy=strategy, seed=seed)

    assert plan(0).step(0) != plan(0).step(plan(0).steps_per_epoch)
    assert plan(0).step(0) != plan(1).step(0)

    def padding(strategy: str) -> int:
        batches = [batch for step in range(50) for batch in plan(0, strategy).step(step)]
        return sum(len(batch) * max(lengths[i] for i in batch) - sum(lengths[i] for i in batch) for batch in batches)

    assert padding("group_by_length") < padding("random") / 10
