"""Batches: which examples make up which optimizer step, and how they are padded.

Examples are padded on the right and no attention mask is given: under a causal mask no token sees what comes after
it, so no real token sees padding or another example, and padding carries no label. The order is a pure function of
(seed, epoch), so that a resumed run sees what the undisturbed one would have seen.

Shapes: B examples of a micro-batch, T tokens of the longest of them.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tunesmith.data.records import IGNORED_LABEL, Place, TokenizedExample

MEGABATCH_STEPS = 50
"""Steps whose examples are sorted by length together, as in transformers' LengthGroupedSampler."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch.

    Args:
        input_ids_BT: token ids, padded on the right.
        labels_BT: labels, not shifted; `IGNORED_LABEL` where nothing is trained on.
        places: the rows the examples came from.
        token_count: real tokens, without padding.
        target_count: tokens that are trained on.
    """

    input_ids_BT: torch.Tensor
    labels_BT: torch.Tensor
    places: tuple[Place, ...]
    token_count: int
    target_count: int

    def to(self, device: torch.device) -> "Batch":
        """The same batch on `device`."""
        return Batch(
            self.input_ids_BT.to(device), self.labels_BT.to(device), self.places, self.token_count, self.target_count
        )


def collate(examples: Sequence[TokenizedExample], pad_token_id: int) -> Batch:
    """Pads `examples` to the longest of them.

    Raises:
        ValueError: there is no example.
    """
    longest = max(len(example.input_ids) for example in examples)
    input_ids_BT = torch.full((len(examples), longest), pad_token_id, dtype=torch.long)
    labels_BT = torch.full((len(examples), longest), IGNORED_LABEL, dtype=torch.long)
    for row, example in enumerate(examples):
        length = len(example.input_ids)
        input_ids_BT[row, :length] = torch.tensor(example.input_ids, dtype=torch.long)
        labels_BT[row, :length] = torch.tensor(example.labels, dtype=torch.long)
    return Batch(
        input_ids_BT,
        labels_BT,
        places=tuple(example.place for example in examples),
        token_count=sum(len(example.input_ids) for example in examples),
        target_count=sum(example.target_count for example in examples),
    )


class StepPlan:
    """Which examples make up which optimizer step.

    Args:
        lengths: tokens of each example.
        micro_batch_size: examples of one forward pass, on one process.
        micro_batches: micro-batches of one step, over all processes.
        strategy: random, sequential or group_by_length, as `TrainingArguments.train_sampling_strategy`.
        seed: decides the order together with the epoch.
    """

    def __init__(
        self, lengths: Sequence[int], *, micro_batch_size: int, micro_batches: int, strategy: str, seed: int
    ) -> None:
        self._lengths = lengths
        self._micro_batch_size = micro_batch_size
        self._step_size = micro_batch_size * micro_batches
        self._strategy = strategy
        self._seed = seed
        self._epoch = -1
        self._steps: list[list[int]] = []

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass over the data; the last may be smaller."""
        return math.ceil(len(self._lengths) / self._step_size)

    def step(self, number: int) -> list[list[int]]:
        """The micro-batches, as example indices, of optimizer step `number`, counted from 0 over all epochs."""
        epoch, position = divmod(number, self.steps_per_epoch)
        if epoch != self._epoch:
            self._steps = self._order(epoch)
            self._epoch = epoch
        indices = self._steps[position]
        return [indices[at : at + self._micro_batch_size] for at in range(0, len(indices), self._micro_batch_size)]

    def _order(self, epoch: int) -> list[list[int]]:
        indices = list(range(len(self._lengths)))
        if self._strategy == "sequential":
            return self._chunks(indices)
        # A string seed is hashed with SHA-512: neighbouring seeds and epochs give unrelated orders on every platform.
        generator = random.Random(f"{self._seed}/{epoch}")
        generator.shuffle(indices)
        if self._strategy == "random":
            return self._chunks(indices)
        steps: list[list[int]] = []
        for at in range(0, len(indices), self._step_size * MEGABATCH_STEPS):
            together = indices[at : at + self._step_size * MEGABATCH_STEPS]
            together.sort(key=lambda index: -self._lengths[index])
            chunks = self._chunks(together)
            generator.shuffle(chunks)
            steps += chunks
        return steps

    def _chunks(self, indices: list[int]) -> list[list[int]]:
        return [indices[at : at + self._step_size] for at in range(0, len(indices), self._step_size)]
