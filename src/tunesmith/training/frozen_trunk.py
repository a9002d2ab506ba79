"""The output of the frozen layers, computed once for each example and read from disk in every later use.

Where only the upper layers carry an adapter (`adapter.layers: last:N`), what the layers below give for an example is
the same in every epoch. Filling goes in batches that depend on the data alone, not on which
training batch an example meets first: so a run that was stopped and resumed reads what the undisturbed one reads.

Shapes: B examples, T tokens, H the hidden size.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tunesmith.data.batching import collate, lengths_of, shortest_first
from tunesmith.data.records import TokenizedExample
from tunesmith.errors import DiskError, StoppedError
from tunesmith.like_lengths import batches_of_like_length
from tunesmith.models.halving import in_halves
from tunesmith.models.modules import evaluation_mode
from tunesmith.progress import Task, task
from tunesmith.training.trunk_layers import (
    Autocast,
    HiddenFormat,
    Stack,
    find_stack,
    probe,
    standing_in,
    trunk_depth,
    trunk_obstacle,
    trunk_output,
)
from tunesmith.training.trunk_store import TrunkStore, remove_stores, trunk_bytes

RESERVE_BYTES = 2 << 30
"""Room that must be left on the disk: checkpoints, the adapter and reports are still to be written."""

COMMIT_BYTES = 32 << 20
"""So much is written between two syncs; what a killed process had not synced is computed again."""

_WHAT = "computing what the frozen layers give"


@dataclass(frozen=True)
class _Split:
    examples: Sequence[TokenizedExample]
    lengths: NDArray[np.int64]
    batches: list[list[int]]
    store: TrunkStore

    def tokens_of(self, batches: Sequence[Sequence[int]]) -> int:
        return sum(int(self.lengths[list(batch)].sum()) for batch in batches)

    @property
    def tokens_done(self) -> int:
        return self.tokens_of(self.batches[: self.store.batches_done])

    @property
    def tokens_left(self) -> int:
        return self.tokens_of(self.batches[self.store.batches_done :])


class FrozenTrunk:
    """What the frozen layers give for all examples; made by `prepare`.

    Attributes:
        depth: layers that are left out.
        byte_count: bytes on disk.
    """

    def __init__(
        self, stack: Stack, depth: int, splits: Mapping[str, _Split], folder: Path, device: torch.device
    ) -> None:
        self.depth = depth
        self.byte_count = sum(split.store.byte_count for split in splits.values())
        self._stack = stack
        self._splits = splits
        self._folder = folder
        self._device = device

    @classmethod
    def prepare(
        cls,
        model: nn.Module,
        examples_by_split: Mapping[str, Sequence[TokenizedExample]],
        folder: Path,
        *,
        fingerprint: Mapping[str, str],
        pad_token_id: int,
        autocast: Autocast,
        device: torch.device,
        limit_bytes: int,
        tokens_at_once: int,
        is_stopped: Callable[[], bool] = bool,
    ) -> FrozenTrunk | str:
        """Computes what is not there yet, or says why it cannot be kept.

        An interrupted call leaves what it has; the next one, of the same model and data, goes on from there. What was
        made of others is removed, and so is everything where the answer is a reason.

        Args:
            model: PEFT around a causal language model, as training runs it, on `device`.
            examples_by_split: the examples by the name of their split; an empty split is left out.
            folder: where the files are; nothing else may be in it.
            fingerprint: digests of the base weights, the data and whatever else decides the numbers, by name.
            pad_token_id: any id.
            autocast: gives the context that training computes in, as `Accelerator.autocast`.
            device: where the model is.
            limit_bytes: most bytes on disk.
            tokens_at_once: most tokens of one forward pass, padding counted.
            is_stopped: asked between two of them.

        Returns:
            The trunk, complete; or the reason why not, in words.

        Raises:
            ModelError: there is not enough memory for a single example.
            StoppedError: `is_stopped` said so; the next call goes on from there.
        """
        filled = {name: examples for name, examples in examples_by_split.items() if len(examples)}
        kept = _examine(model, filled, pad_token_id, autocast, limit_bytes)
        if isinstance(kept, str):
            remove_stores(folder)
            return kept
        stack, depth, format_ = kept
        marks = {**fingerprint, **_marks(stack, depth, tokens_at_once)}
        splits = {}
        for name, examples in filled.items():
            lengths = np.asarray(lengths_of(examples), dtype=np.int64)
            store = TrunkStore(folder, name, lengths, hidden_size=format_.size, dtype=format_.dtype, fingerprint=marks)
            batches = batches_of_like_length(lengths.tolist(), max_examples=len(lengths), max_tokens=tokens_at_once)
            splits[name] = _Split(examples, lengths, batches, store)
        trunk = cls(stack, depth, splits, folder, device)
        obstacle = _no_room(folder, splits.values()) or trunk._fill(model, pad_token_id, autocast, is_stopped)
        if obstacle is not None:
            trunk.remove()
            return obstacle
        return trunk

    @contextmanager
    def reading(self, split: str, indices: Sequence[int], length: int) -> Iterator[None]:
        """Within the block the model takes the stored hidden states of these examples in place of running the trunk.

        Activation checkpointing of the layers above may recompute after the block: it keeps its inputs.

        Args:
            split: the split's name.
            indices: the examples of the batch, in its order.
            length: the batch's tokens, at least those of the longest example.

        Raises:
            TrainError: the file is gone or was cut.
            ValueError: an example is longer than `length`; within the block, if another batch is run.
        """
        pinned = self._device.type == "cuda"
        hidden_BTH = self._splits[split].store.read(indices, length, pinned=pinned)
        with standing_in(self._stack.layers[: self.depth], hidden_BTH.to(self._device, non_blocking=pinned)):
            yield

    def close(self) -> None:
        """Closes the files; they stay for a later `prepare`."""
        for split in self._splits.values():
            split.store.close()

    def remove(self) -> None:
        """Removes the files."""
        self.close()
        remove_stores(self._folder)

    def _fill(
        self, model: nn.Module, pad_token_id: int, autocast: Autocast, is_stopped: Callable[[], bool]
    ) -> str | None:
        """Computes what is not there; returns why it could not be written, or None."""
        splits = self._splits.values()
        if not any(split.tokens_left for split in splits):
            return None
        done = sum(split.tokens_done for split in splits)
        total = done + sum(split.tokens_left for split in splits)
        try:
            with evaluation_mode(model), torch.no_grad(), task(_WHAT.capitalize(), total, "tokens") as progress:
                progress.start_at(done)
                for split in splits:
                    self._fill_split(split, pad_token_id, autocast, is_stopped, progress)
        except DiskError as error:
            return f"what the frozen layers give could not be written: {error.message}"
        return None

    def _fill_split(
        self, split: _Split, pad_token_id: int, autocast: Autocast, is_stopped: Callable[[], bool], progress: Task
    ) -> None:
        store = split.store
        done, uncommitted = store.batches_done, 0

        def compute(rows: Sequence[int]) -> list[None]:
            batch = collate([split.examples[row] for row in rows], pad_token_id)
            hidden_BTH = trunk_output(self._stack, self.depth, batch.input_ids_BT.to(self._device), autocast).cpu()
            for row, hidden_TH in zip(rows, hidden_BTH, strict=True):
                store.write(row, hidden_TH[: split.lengths[row]])
            return [None] * len(rows)

        try:
            for batch in split.batches[done:]:
                in_halves(compute, batch, what=_WHAT)
                done += 1
                tokens = split.tokens_of([batch])
                progress.advance(tokens)
                uncommitted += store.bytes_of(tokens)
                if uncommitted >= COMMIT_BYTES:
                    store.commit(done)
                    uncommitted = 0
                if is_stopped():
                    raise StoppedError(
                        "stopped while computing what the frozen layers give; everything so far is kept",
                        place=str(self._folder.parent.parent),
                        remedy="the same command goes on from there",
                    )
            store.commit(done)
        except BaseException:
            # What is there is kept for the next process; why this one ends is more important than that.
            with suppress(OSError, DiskError):
                if done > store.batches_done:
                    store.commit(done)
            raise


def _examine(
    model: nn.Module,
    examples_by_split: Mapping[str, Sequence[TokenizedExample]],
    pad_token_id: int,
    autocast: Autocast,
    limit_bytes: int,
) -> tuple[Stack, int, HiddenFormat] | str:
    """The trunk and what it gives for each token, or why that cannot be kept."""
    lengths = [lengths_of(examples) for examples in examples_by_split.values()]
    if not lengths:
        return "there is no example"
    longest = max(int(np.max(some)) for some in lengths)
    obstacle, stack, depth = trunk_obstacle(model, longest), find_stack(model), trunk_depth(model)
    if obstacle is not None or stack is None:
        return obstacle or "no list of decoder layers was found in the model"
    examples = next(iter(examples_by_split.values()))
    order = shortest_first(lengths[0])
    rows = [examples[int(order[at])].input_ids for at in (0, -1)]
    found = probe(model, stack, depth, rows, pad_token_id, autocast)
    if isinstance(found, str):
        return found
    wanted = sum(trunk_bytes(some, found.size, found.dtype) for some in lengths)
    if wanted > limit_bytes:
        return (
            f"what the frozen layers give would take {wanted / 1e9:.3g} GB on disk, more than the "
            f"{limit_bytes / 1e9:.3g} GB it may take"
        )
    return stack, depth, found


def _marks(stack: Stack, depth: int, tokens_at_once: int) -> dict[str, str]:
    """What else decides the numbers, to the last bit: the fingerprint of a store holds it."""
    return {
        "trunk_depth": str(depth),
        "tokens_at_once": str(tokens_at_once),
        "attention": str(getattr(stack.base.config, "_attn_implementation", None)),
        **{name: metadata.version(name) for name in ("torch", "transformers")},
    }


def _no_room(folder: Path, splits: Collection[_Split]) -> str | None:
    """Why the disk cannot hold what is still to be written."""
    wanted = sum(split.store.bytes_of(split.tokens_left) for split in splits)
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    if wanted and free - wanted < RESERVE_BYTES:
        return (
            f"what the frozen layers give takes {wanted / 1e9:.3g} GB more, and of the {free / 1e9:.3g} GB free on the "
            f"disk {RESERVE_BYTES / 1e9:.3g} GB are kept for the rest of the run"
        )
    return None
