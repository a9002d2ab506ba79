"""Batches: padding that changes nothing, and an order that is a function of (seed, epoch)."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import FAMILIES, tiny_model
from tests.training.conftest import make_examples
from tunesmith.data.batching import MEGABATCH_STEPS, StepPlan, collate, lengths_of, shortest_first
from tunesmith.data.records import IGNORED_LABEL, TokenizedExample
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


def test_a_batch_has_weights_only_where_some_are_not_one() -> None:
    examples = make_examples(3)
    plain = collate(examples, pad_token_id=0)
    assert plain.weights_B is None
    assert plain.target_weight == plain.target_count
    weights = (0.5, 1.0, 2.0)
    weighted = [replace(example, weight=weight) for example, weight in zip(examples, weights, strict=True)]
    batch = collate(weighted, pad_token_id=0).to(torch.device("cpu"))
    assert batch.weights_B is not None
    assert batch.weights_B.tolist() == list(weights)
    assert batch.target_weight == pytest.approx(sum(e.weight * e.target_count for e in weighted))
    assert (batch.target_count, batch.token_count) == (plain.target_count, plain.token_count)


class _OnDisk(Sequence[TokenizedExample]):
    """Examples that must not be touched, and their lengths."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = np.array(lengths, dtype=np.uint32)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: object) -> "TokenizedExample":  # type: ignore[override]
        raise AssertionError(f"example {index} was read")


def test_lengths_are_taken_from_the_sequence_or_counted() -> None:
    examples = make_examples(6)
    lengths = [len(example.input_ids) for example in examples]
    assert list(lengths_of(examples)) == lengths
    assert list(lengths_of(tuple(examples))) == lengths
    assert list(lengths_of(_OnDisk(lengths))) == lengths
    assert list(lengths_of([])) == []


@given(st.lists(st.integers(1, 9)))
def test_the_shortest_come_first_and_like_lengths_stay_in_their_order(lengths: list[int]) -> None:
    assert shortest_first(lengths).tolist() == sorted(range(len(lengths)), key=lambda index: lengths[index])


def _reference_steps(lengths: list[int], step_size: int, strategy: str, seed: int, epoch: int) -> list[list[int]]:
    """The order in plain lists."""

    def chunks(indices: list[int]) -> list[list[int]]:
        return [indices[at : at + step_size] for at in range(0, len(indices), step_size)]

    indices = list(range(len(lengths)))
    generator = random.Random(f"{seed}/{epoch}")
    if strategy != "sequential":
        generator.shuffle(indices)
    if strategy != "group_by_length":
        return chunks(indices)
    steps = []
    for at in range(0, len(indices), step_size * MEGABATCH_STEPS):
        together = sorted(indices[at : at + step_size * MEGABATCH_STEPS], key=lambda index: -lengths[index])
        grouped = chunks(together)
        generator.shuffle(grouped)
        steps += grouped
    return steps


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=400),
    micro_batch_size=st.integers(1, 3),
    micro_batches=st.integers(1, 2),
    strategy=st.sampled_from(["random", "sequential", "group_by_length"]),
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from([list, np.array, np.uint16]),
)
def test_the_order_is_that_of_plain_lists(
    lengths: list[int], micro_batch_size: int, micro_batches: int, strategy: str, seed: int, kind: type
) -> None:
    sizes = {"micro_batch_size": micro_batch_size, "micro_batches": micro_batches}
    plan = StepPlan(kind(lengths), **sizes, strategy=strategy, seed=seed)
    step_size = micro_batch_size * micro_batches
    for epoch in (1, 0):
        expected = _reference_steps(lengths, step_size, strategy, seed, epoch)
        assert plan.steps_per_epoch == len(expected) == math.ceil(len(lengths) / step_size)
        steps = [plan.step(epoch * len(expected) + position) for position in range(len(expected))]
        assert [[index for batch in step for index in batch] for step in steps] == expected


@pytest.mark.parametrize(
    ("strategy", "steps"),
    [
        ("sequential", [[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8, 9], [10]]] * 2),
        (
            "random",
            [
                *([[9, 6], [8, 0]], [[5, 2], [1, 4]], [[3, 7], [10]]),
                *([[7, 4], [3, 2]], [[1, 9], [5, 6]], [[8, 10], [0]]),
            ],
        ),
        (
            "group_by_length",
            [
                *([[10, 6], [4]], [[7, 8], [2, 1]], [[0, 5], [9, 3]]),
                *([[10, 6], [4]], [[5, 0], [9, 3]], [[7, 2], [1, 8]]),
            ],
        ),
    ],
)
def test_an_order_once_given_stays(strategy: str, steps: list[list[list[int]]]) -> None:
    """A run that is resumed with a later version must see the examples in the order that it began with."""
    lengths = [9, 4, 4, 7, 1, 9, 2, 5, 4, 8, 3]
    plan = StepPlan(lengths, micro_batch_size=2, micro_batches=2, strategy=strategy, seed=5)
    assert [plan.step(number) for number in range(6)] == steps


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
