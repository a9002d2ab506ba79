"""What makes training faster without changing its result: each part on where it is exact and pays, or off with why."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from accelerate import Accelerator
from torch import nn

from tunesmith.adapters.fast_lora import use_fast_layers
from tunesmith.adapters.gated_mlp import use_lean_mlps
from tunesmith.config import TrainSection
from tunesmith.data.records import TokenizedExample
from tunesmith.models.attention import TAKEN_DTYPES
from tunesmith.models.backend import CPU_ATTENTION, Precision, micro_batch_tokens, torch_dtype
from tunesmith.models.label_head import label_head
from tunesmith.models.liger import use_liger
from tunesmith.models.rms_norm import use_lean_norms
from tunesmith.report import Table
from tunesmith.runs import Run
from tunesmith.training.compilation import CompiledLayers, compile_layers, forecast, typical_shapes
from tunesmith.training.frozen_trunk import FrozenTrunk
from tunesmith.training.signals import StopRequest
from tunesmith.training.trunk_layers import trunk_obstacle
from tunesmith.training.trunk_store import remove_stores

FEWEST_PASSES = 1.25
"""Passes over the data from which on it pays to compute the frozen layers' output ahead: that costs one."""


@dataclass
class Speedups:
    """What was decided, for the report.

    Args:
        lines: (what, on or off or how many, why) in the order they were decided.
    """

    lines: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, what: str, state: str, why: str = "") -> None:
        """Notes one decision; a later one about the same thing takes its place."""
        self.lines = [line for line in self.lines if line[0] != what] + [(what, state, why)]

    def why(self, what: str) -> str:
        """The reason noted with a decision, "" where there is none."""
        return next((why for name, _, why in self.lines if name == what), "")

    def table(self) -> Table:
        """The decisions as a table of the report."""
        return Table("How it was computed", ("part", "state", "why"), tuple(self.lines))


def use_exact_layers(model: nn.Module, precision: Precision) -> Speedups:
    """Puts the fast LoRA layers and the lean norms and MLPs in place, and says how head and attention are computed.

    To be called under the autocast that training runs in: the head is tried against the model's own logits.
    """
    speedups = Speedups()
    liger = use_liger(model)
    speedups.add("LoRA layers", use_fast_layers(model).describe())
    if liger is not None:
        speedups.add("Norms and MLPs", liger)
    else:
        norms, mlps = use_lean_norms(model), use_lean_mlps(model)
        unknown = "the model's are of classes that are not known to be computed alike"
        speedups.add("Norms", f"less kept: {norms} layers" if norms else "by the model's own", "" if norms else unknown)
        speedups.add("MLPs", f"less kept: {mlps} layers" if mlps else "by the model's own", "" if mlps else unknown)
    if label_head(model) is not None:
        speedups.add("Logits", "in chunks, where there is a label")
    else:
        speedups.add("Logits", "by the model's own forward", "its head is not one that is known to be computed alike")
    attention = str(getattr(getattr(model, "config", None), "_attn_implementation", None))
    if attention == CPU_ATTENTION and torch_dtype(precision) in TAKEN_DTYPES:
        speedups.add("Attention", "by a backward of our own")
    elif attention == CPU_ATTENTION:
        speedups.add("Attention", "sdpa", f"torch's own is as fast in {precision}")
    else:
        speedups.add("Attention", attention)
    return speedups


def prepare_trunk(
    speedups: Speedups,
    model: nn.Module,
    splits: Mapping[str, Sequence[TokenizedExample]],
    section: TrainSection,
    run: Run,
    accelerator: Accelerator,
    *,
    passes: float,
    fingerprint: Mapping[str, str],
    pad_token_id: int,
) -> FrozenTrunk | None:
    """The output of the layers below the adapter for every example, where that can be kept and pays.

    Args:
        speedups: what was decided is noted here.
        model: PEFT around the model, as the accelerator prepared it.
        splits: the examples of train and validation.
        section: the recipe's train section.
        run: its data folder holds the files.
        accelerator: for its device and precision.
        passes: passes over the training data that are planned.
        fingerprint: digests of what the outputs depend on.
        pad_token_id: any id.

    Raises:
        ModelError: there is not enough memory for a single example.
        StoppedError: a signal asked for it; what is there is kept.
    """
    what, folder = "Frozen layers", run.data_folder / "trunk"
    if section.frozen_layers_cache_gb == 0:
        reason = "train.frozen_layers_cache_gb is 0"
    elif (obstacle := trunk_obstacle(model)) is not None:
        reason = obstacle
    elif passes < FEWEST_PASSES:
        reason = f"the data are passed over {passes:.2g} times, and computing ahead costs once"
    else:
        begun = time.monotonic()
        with StopRequest() as stop:
            trunk = FrozenTrunk.prepare(
                model,
                splits,
                folder,
                fingerprint=fingerprint,
                pad_token_id=pad_token_id,
                autocast=accelerator.autocast,
                device=accelerator.device,
                limit_bytes=int(section.frozen_layers_cache_gb * 1e9),
                # Not the recipe's budget, which may change from one part of a run to the next.
                tokens_at_once=micro_batch_tokens(accelerator.device),
                is_stopped=lambda: stop.requested,
            )
        if isinstance(trunk, FrozenTrunk):
            took = f"{trunk.byte_count / 1e9:.3g} GB and {time.monotonic() - begun:.1f} s"
            speedups.add(what, "computed once", f"{trunk.depth} layers below the adapter; their output took {took}")
            return trunk
        reason = trunk
    remove_stores(folder)  # of an earlier part of the run
    speedups.add(what, "in every step", reason)
    return None


def prepare_compilation(
    speedups: Speedups,
    model: nn.Module,
    mode: str,
    typical_batches: Callable[[], Sequence[Sequence[int]]],
    lengths: Sequence[int],
    *,
    as_begun: bool | None,
    tokens: float,
    accelerator: Accelerator,
) -> CompiledLayers | None:
    """The decoder layers compiled, where that is wanted and works, and in auto where a forecast says that it pays.

    Args:
        speedups: what was decided is noted here.
        model: PEFT around the model, as the accelerator prepared it.
        mode: the recipe's train.compile.
        typical_batches: gives the indices of the examples of some micro-batches that are typical of the run.
        lengths: tokens of every example.
        as_begun: what an earlier part of the run did, which auto does again; None in the first part.
        tokens: real tokens of the whole run.
        accelerator: for its device and autocast.
    """
    what = "Decoder layers"
    if mode == "off":
        reason: str | None = "train.compile is off"
    elif mode == "auto" and as_begun is False:
        reason = "as when the run began"
    elif mode == "auto" and as_begun is None:
        reason = forecast(model, accelerator.device, tokens)
    else:
        reason = None
    if reason is None:
        compiled = compile_layers(
            model,
            typical_shapes(typical_batches(), lengths),
            device=accelerator.device,
            autocast=accelerator.autocast,
        )
        if isinstance(compiled, CompiledLayers):
            speedups.add(what, *compiled.describe())
            return compiled
        reason = compiled
    speedups.add(what, "not compiled", reason)
    return None
