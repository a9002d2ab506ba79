"""Checkpoints: what a run needs to go on, in safetensors and JSON only.

A checkpoint is written beside, synced, and renamed into place; its manifest, written last, holds the size and SHA-256
of each file.
The order of the data, dropout and the learning rate are functions of (seed, step), so the step number stands for them.

checkpoints/step-00000500/{adapter.safetensors, optimizer.safetensors, state.json, manifest.json}
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialize

from tunesmith.durable import replaced_folder, write_bytes
from tunesmith.errors import TrainError, disk_errors

MANIFEST = "manifest.json"
ADAPTER = "adapter.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"


@dataclass
class TrainState:
    """Where a run stands.

    Args:
        step: optimizer steps done.
        tokens: real tokens seen.
        seconds: time spent training, over all processes that ran one after another.
        best_step: the step with the lowest validation loss, None before the first validation.
        best_loss: that loss, in nats a token.
        evaluations_without_gain: validations since then, for early stopping.
        stopped_early: early stopping has ended the run.
        micro_batch_size: examples of one forward pass; less than the recipe's after memory ran out.
        gradient_checkpointing: whether activations are recomputed; also turned on after memory ran out.
        uses_trunk: whether the frozen layers' output is computed ahead; None before that is decided.
        compiles: whether decoder layers are compiled; None before that is decided.
        not_finite_in_a_row: steps since the last finite loss.
        learning_rate_scale: factor on the schedule, below 1 after `on_unhealthy: adjust` lowered it.
        more_warmup: steps that `on_unhealthy: adjust` added to the warmup.
        window: sums since the last log line.
        health: what `Health` remembers.
        scaler: the gradient scaler's numbers (fp16), else empty.
        fingerprint: what must be the same to go on: digests of data, template, base model and machine type.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_step: int | None = None
    best_loss: float | None = None
    evaluations_without_gain: int = 0
    stopped_early: bool = False
    micro_batch_size: int = 1
    gradient_checkpointing: bool = False
    uses_trunk: bool | None = None
    compiles: bool | None = None
    not_finite_in_a_row: int = 0
    learning_rate_scale: float = 1.0
    more_warmup: int = 0
    window: dict[str, float] = field(default_factory=dict)
    health: dict[str, Any] = field(default_factory=dict)
    scaler: dict[str, float] = field(default_factory=dict)
    fingerprint: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint folder, verified."""

    folder: Path
    state: TrainState

    def adapter(self) -> dict[str, torch.Tensor]:
        """Trainable tensors by parameter name."""
        return load_file(self.folder / ADAPTER)

    def optimizer(self) -> dict[str, torch.Tensor]:
        """Optimizer tensors as "PARAMETER/STATE", such as "...lora_A.default.weight/exp_avg"."""
        return load_file(self.folder / OPTIMIZER)


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        folder: the run's checkpoints folder.
        keep: how many to keep; the newest and the best always stay.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        self._folder = folder
        self._keep = keep
        self.set_aside: list[str] = []

    def save(
        self,
        state: TrainState,
        adapter: Mapping[str, torch.Tensor],
        optimizer: Mapping[str, torch.Tensor],
        *,
        replace: bool = False,
    ) -> Path:
        """Writes a checkpoint of `state.step` and removes those that are no longer kept.

        A valid one of that step that is there stays, unless it is to be replaced: its state may have changed.

        Raises:
            DiskError: it cannot be written; the checkpoints that were there stay.
        """
        final = self._folder / f"step-{state.step:08d}"
        if not replace and final.is_dir() and _problem(final) is None:  # The step that a resumed run began with.
            return final
        with disk_errors(self._folder), replaced_folder(final) as beside:
            files = {
                ADAPTER: serialize({name: _on_cpu(value) for name, value in adapter.items()}),
                OPTIMIZER: serialize({name: _on_cpu(value) for name, value in optimizer.items()}),
                STATE: (json.dumps(dataclasses.asdict(state), indent=2) + "\n").encode(),
            }
            for name, content in files.items():
                write_bytes(beside / name, content)
            manifest = {name: _describe(content) for name, content in files.items()}
            write_bytes(beside / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
        self._rotate(state)
        return final

    def newest(self) -> Checkpoint | None:
        """The valid checkpoint of the highest step; invalid ones are renamed invalid-..., and named in `set_aside`."""
        for folder in reversed(self._folders()):
            problem = _problem(folder)
            if problem is None:
                return self._read(folder)
            aside = folder.with_name(f"invalid-{folder.name}")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            self.set_aside.append(f"{aside}: {problem}")
        return None

    def at(self, step: int) -> Checkpoint:
        """The checkpoint of `step`.

        Raises:
            TrainError: it is missing or damaged.
        """
        folder = self._folder / f"step-{step:08d}"
        problem = _problem(folder) if folder.is_dir() else "it is missing"
        if problem is not None:
            raise TrainError(
                f"the best checkpoint cannot be used: {problem}", place=str(folder), remedy="train anew with --fresh"
            )
        return self._read(folder)

    def _read(self, folder: Path) -> Checkpoint:
        return Checkpoint(folder, TrainState(**json.loads((folder / STATE).read_text(encoding="utf-8"))))

    def _folders(self) -> list[Path]:
        if not self._folder.is_dir():
            return []
        return sorted(path for path in self._folder.iterdir() if re.fullmatch(r"step-\d{8}", path.name))

    def _rotate(self, state: TrainState) -> None:
        best = f"step-{state.best_step:08d}" if state.best_step is not None else ""
        for folder in self._folders()[: -self._keep]:
            if folder.name != best:
                shutil.rmtree(folder, ignore_errors=True)


def _problem(folder: Path) -> str | None:
    """Why the checkpoint cannot be used, or None."""
    try:
        manifest: dict[str, dict[str, Any]] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if not {ADAPTER, OPTIMIZER, STATE} <= manifest.keys():
            return "its manifest is not whole"
        for name in (ADAPTER, OPTIMIZER, STATE):
            if _describe((folder / name).read_bytes()) != manifest[name]:
                return f"{name} is damaged"
        TrainState(**json.loads((folder / STATE).read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        return f"it cannot be read ({error})"
    return None


def _describe(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _on_cpu(value: torch.Tensor) -> torch.Tensor:
    return value.detach().to("cpu").contiguous()
