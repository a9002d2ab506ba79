"""Several processes: which micro-batches each one takes, and what keeps them in step."""

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from tunesmith.data.batching import Batch
from tunesmith.data.records import IGNORED_LABEL
from tunesmith.errors import MissingPackageError
from tunesmith.models.backend import select_device

T = TypeVar("T")

ACCELERATE_PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


def make_accelerator(precision: str, report_to: Sequence[str] = (), project_folder: Path | None = None) -> Accelerator:
    """The accelerator for fp32, bf16 or fp16 on the device at hand.

    Args:
        precision: what the model computes in.
        report_to: trackers by accelerate's names.
        project_folder: where trackers that write files put them.

    Raises:
        MissingPackageError: a tracker's package is not installed.
    """
    for name in report_to:
        if importlib.util.find_spec(name) is None:
            raise MissingPackageError(name, extra=name, needed_for=f"train.report_to: {name}")
    # accelerate keeps the first precision for the life of the process; a library may train twice in one.
    AcceleratorState._reset_state()
    return Accelerator(
        cpu=select_device().type == "cpu",
        mixed_precision=ACCELERATE_PRECISION[precision],
        log_with=list(report_to) or None,
        project_dir=project_folder,
    )


def rank_share(micro_batches: Sequence[T], rank: int, world_size: int) -> list[tuple[T, bool]]:
    """The micro-batches of process `rank`, dealt in turn.

    Where they do not divide evenly (the last step of an epoch), a process without one runs the first of them again
    without targets, since every process must take part in the exchange of gradients. The flag marks those.
    """
    rounds = -(-len(micro_batches) // world_size)
    share = []
    for number in range(rounds):
        index = number * world_size + rank
        is_spare = index >= len(micro_batches)
        share.append((micro_batches[0 if is_spare else index], is_spare))
    return share


def without_targets(batch: Batch) -> Batch:
    """The same batch with nothing to train on."""
    return replace(batch, labels_BT=torch.full_like(batch.labels_BT, IGNORED_LABEL), token_count=0, target_count=0)


def seed_dropout(seed: int, step: int, micro_batch: int, rank: int) -> None:
    """Seeds torch's generators for one micro-batch, so that dropout is the same whether a run was resumed or not."""
    digest = hashlib.sha256(f"{seed}/{step}/{micro_batch}/{rank}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
