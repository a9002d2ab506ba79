"""Batches: which examples make up which optimizer step, and how they are padded.

Examples are padded on the right and no attention mask is given: under a causal mask no token sees what comes after
it, so no real token sees padding or another example, and padding carries no label. The order is a pure function of
(seed, epoch), so that a resumed run sees what the undisturbed one would have seen.

Shapes: B examples of a micro-batch, T tokens of the longest of them.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

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
        target_weight: the same, each counted with the weight of its example; what the training loss is divided by.
        weights_B: the weight of each example, None where all of them are 1.
    """

    input_ids_BT: torch.Tensor
    labels_BT: torch.Tensor
    places: tuple[Place, ...]
    token_count: int
    target_count: int
    target_weight: float
    weights_B: torch.Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """The same batch on `device`."""
        return replace(
            self,
            input_ids_BT=self.input_ids_BT.to(device),
            labels_BT=self.labels_BT.to(device),
            weights_B=None if self.weights_B is None else self.weights_B.to(device),
        )


def lengths_of(examples: Sequence[TokenizedExample]) -> Sequence[int]:
    """Tokens of each example.

    A sequence that reads its examples from disk has them as its attribute `lengths`, an array or a sequence; then no
    example is touched.
    """
    known: Sequence[int] | None = getattr(examples, "lengths", None)
    return [len(example.input_ids) for example in examples] if known is None else known


def shortest_first(lengths: Sequence[int]) -> NDArray[np.intp]:
    """The indices of `lengths` from the smallest length to the largest; equal ones stay in their order."""
    return np.argsort(np.asarray(lengths, dtype=np.int64), kind="stable")


def collate(examples: Sequence[TokenizedExample], pad_token_id: int, *, multiple_of: int = 1) -> Batch:
    """Pads `examples` to the longest of them, or to the next multiple of `multiple_of`.

    Raises:
        ValueError: there is no example.
    """
    longest = math.ceil(max(len(example.input_ids) for example in examples) / multiple_of) * multiple_of
    input_ids_BT = torch.full((len(examples), longest), pad_token_id, dtype=torch.long)
    labels_BT = torch.full((len(examples), longest), IGNORED_LABEL, dtype=torch.long)
    for row, example in enumerate(examples):
        length = len(example.input_ids)
        input_ids_BT[row, :length] = torch.tensor(example.input_ids, dtype=torch.long)
        labels_BT[row, :length] = torch.tensor(example.labels, dtype=torch.long)
    weights = [example.weight for example in examples]
    target_counts = [example.target_count for example in examples]
    return Batch(
        input_ids_BT,
        labels_BT,
        places=tuple(example.place for example in examples),
        token_count=sum(len(example.input_ids) for example in examples),
        target_count=sum(target_counts),
        target_weight=math.fsum(weight * count for weight, count in zip(weights, target_counts, strict=True)),
        weights_B=None if all(weight == 1 for weight in weights) else torch.tensor(weights, dtype=torch.float32),
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
        self._lengths = np.asarray(lengths)
        self._micro_batch_size = micro_batch_size
        self._step_size = micro_batch_size * micro_batches
        self._strategy = strategy
        self._seed = seed
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)
        self._chunk_of_step: Sequence[int] = ()

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass over the data; the last may be smaller."""
        return math.ceil(len(self._lengths) / self._step_size)

    def step(self, number: int) -> list[list[int]]:
        """The micro-batches, as example indices, of optimizer step `number`, counted from 0 over all epochs."""
        epoch, position = divmod(number, self.steps_per_epoch)
        if epoch != self._epoch:
            self._arrange(epoch)
            self._epoch = epoch
        start = self._chunk_of_step[position] * self._step_size
        indices: list[int] = self._order[start : start + self._step_size].tolist()
        return [indices[at : at + self._micro_batch_size] for at in range(0, len(indices), self._micro_batch_size)]

    def _arrange(self, epoch: int) -> None:
        """Puts the examples in order, and says which chunk of it, `_step_size` examples each, is which step's.

        The order is kept as one array: lists of a million examples would be some hundred megabytes.
        """
        self._chunk_of_step = range(self.steps_per_epoch)
        if self._strategy == "sequential":
            self._order = np.arange(len(self._lengths))
            return
        # A string seed is hashed with SHA-512: neighbouring seeds and epochs give unrelated orders on every platform.
        generator = random.Random(f"{self._seed}/{epoch}")
        # Python's own shuffle, because an order once given must stay what it is.
        indices = list(range(len(self._lengths)))
        generator.shuffle(indices)
        self._order = np.array(indices)
        if self._strategy == "random":
            return
        chunk_of_step: list[int] = []
        for first in range(0, self.steps_per_epoch, MEGABATCH_STEPS):
            chunks = list(range(first, min(first + MEGABATCH_STEPS, self.steps_per_epoch)))
            together = self._order[first * self._step_size : (first + MEGABATCH_STEPS) * self._step_size]
            # The longest first, equal ones in their order. Unsigned lengths have no negative.
            together[:] = together[np.argsort(-self._lengths[together].astype(np.int64), kind="stable")]
            generator.shuffle(chunks)
            chunk_of_step += chunks
        self._chunk_of_step = chunk_of_step
