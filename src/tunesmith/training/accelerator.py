"""The accelerator: device, mixed precision, gradient scaling and trackers; and what keeps dropout repeatable."""

import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin

from tunesmith.errors import MissingPackageError, TrainError
from tunesmith.models.backend import select_device

ACCELERATE_PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


def make_accelerator(precision: str, report_to: Sequence[str] = (), project_folder: Path | None = None) -> Accelerator:
    """The accelerator for fp32, bf16 or fp16 on the device at hand.

    Args:
        precision: what the model computes in.
        report_to: trackers by accelerate's names.
        project_folder: where trackers that write files put them.

    Raises:
        MissingPackageError: a tracker's package is not installed.
        TrainError: it was started as several processes.
    """
    for name in report_to:
        if importlib.util.find_spec(name) is None:
            raise MissingPackageError(name, extra=name, needed_for=f"train.report_to: {name}")
    # accelerate keeps the first precision for the life of the process; a library may train twice in one.
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        cpu=select_device().type == "cpu",
        mixed_precision=ACCELERATE_PRECISION[precision],
        # The trainer divides by the step's targets itself; a number in the environment must not divide again.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        log_with=list(report_to) or None,
        project_dir=project_folder,
    )
    if accelerator.num_processes > 1:
        raise TrainError(
            f"started as {accelerator.num_processes} processes; training on several is not there yet",
            remedy="start one: tunesmith train RECIPE, without torchrun or accelerate launch",
        )
    return accelerator


def seed_dropout(seed: int, step: int, micro_batch: int) -> None:
    """Seeds torch's generators for one micro-batch, so that dropout is the same whether a run was resumed or not."""
    digest = hashlib.sha256(f"{seed}/{step}/{micro_batch}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
