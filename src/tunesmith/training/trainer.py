"""The training loop.

One optimizer step: the token losses of all its micro-batches are summed and divided by the step's target tokens, each
token counted with its example's weight in both; then clipping, AdamW, and the learning rate of the step. What varies
from step to step (order of the data, dropout, learning rate) is a function of (seed, step), so a checkpoint holds only
tensors and counters.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from tunesmith.adapters.methods import regularization_loss
from tunesmith.config import TrainSection
from tunesmith.data.batching import Batch, StepPlan, collate, lengths_of
from tunesmith.data.records import TokenizedExample
from tunesmith.errors import RunError, StoppedError, TrainError
from tunesmith.failpoints import passing
from tunesmith.like_lengths import batches_of_like_length
from tunesmith.models.backend import (
    Precision,
    is_out_of_memory,
    memory_in_use_bytes,
    micro_batch_tokens,
    release_memory,
    width_multiple,
)
from tunesmith.models.halving import in_halves
from tunesmith.progress import task, track
from tunesmith.report import Finding
from tunesmith.runs import Run
from tunesmith.training import optimizer as optim
from tunesmith.training.accelerator import make_accelerator, seed_dropout
from tunesmith.training.checkpoint import CheckpointStore, TrainState
from tunesmith.training.compilation import CompiledLayers
from tunesmith.training.frozen_trunk import FrozenTrunk
from tunesmith.training.health import Advice, Health, StepFigures
from tunesmith.training.loss import summed_loss
from tunesmith.training.metrics import Trackers, Window
from tunesmith.training.recovery import (
    adjust,
    leave_step_out,
    need_less_memory,
    not_finite_places,
)
from tunesmith.training.schedule import learning_rate_at, total_steps, warmup_steps
from tunesmith.training.signals import StopRequest
from tunesmith.training.speedups import Speedups, prepare_compilation, prepare_trunk, use_exact_layers

TYPICAL_STEPS = 200
"""Steps that are looked at for the shapes of micro-batches."""


@dataclass(frozen=True)
class TrainResult:
    """What a finished run looks like.

    Args:
        state: counters at the end.
        total_steps: optimizer steps that were planned.
        adapter_step: the step whose weights the model now holds.
        resumed_from: the step this process went on from, 0 for a fresh start.
        set_aside: damaged checkpoints, each with the reason.
        health: what the health rules found.
        speedups: how it was computed.
    """

    state: TrainState
    total_steps: int
    adapter_step: int
    resumed_from: int
    set_aside: tuple[str, ...]
    health: tuple[Finding, ...]
    speedups: Speedups


class Trainer:
    """Trains the parameters of `model` that require gradients.

    Args:
        model: PEFT around a causal language model; trainable parameters in float32.
        train: the training examples.
        validation: watched while training; may be empty.
        section: the recipe's train section.
        run: where metrics and checkpoints go.
        precision: fp32, bf16 or fp16, the numbers that the model computes in.
        pad_token_id: any id; padding carries no label and nothing attends to it.
        fingerprint: digests of what must not change between a checkpoint and its resumption, by name.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Sequence[TokenizedExample],
        validation: Sequence[TokenizedExample],
        section: TrainSection,
        run: Run,
        *,
        precision: Precision,
        pad_token_id: int,
        fingerprint: Mapping[str, str],
    ) -> None:
        self._section = section
        self._run = run
        self._examples = train
        self._validation = validation
        self._pad_token_id = pad_token_id
        self._multiple = width_multiple(precision)
        self._accelerator: Accelerator = make_accelerator(precision, section.report_to, run.folder / "trackers")
        self._parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
        with self._accelerator.autocast():
            self._speedups = use_exact_layers(model, precision)
        self._model = self._accelerator.prepare_model(model)
        self._trunk: FrozenTrunk | None = None
        self._compiled: CompiledLayers | None = None
        self._examples_at_work = 0
        self._optimizer = self._accelerator.prepare_optimizer(optim.make_adamw(self._parameters, section))
        self._lengths = lengths_of(train)
        budget = section.max_tokens_per_micro_batch
        self._max_tokens = micro_batch_tokens(self._accelerator.device) if budget == "auto" else budget
        self._plan = StepPlan(
            self._lengths,
            micro_batch_size=section.per_device_train_batch_size,
            micro_batches=section.gradient_accumulation_steps,
            strategy=section.train_sampling_strategy,
            seed=section.seed,
        )
        self._total = total_steps(section, self._plan.steps_per_epoch)
        self._validation_interval = section.eval_steps or self._plan.steps_per_epoch
        self._store = CheckpointStore(run.checkpoints_folder, keep=section.save_total_limit)
        self._state = TrainState(
            fingerprint=dict(fingerprint),
            micro_batch_size=section.per_device_train_batch_size,
            gradient_checkpointing=section.gradient_checkpointing,
        )
        self._health = Health(section, total_steps=self._total, warmup=warmup_steps(section, self._total))

    def train(self) -> TrainResult:
        """Trains from the newest checkpoint, or from the start, to the end.

        Raises:
            StoppedError: a signal asked for it; a checkpoint was written and the same command goes on.
            TrainError: the loss stays without a finite value, memory does not suffice for one example, the run is
                unhealthy and `on_unhealthy` says stop, or a tracker fails.
            RunError: the newest checkpoint is of other data or another model.
            DiskError: metrics or a checkpoint cannot be written.
        """
        resumed_from = self._resume()
        self._prepare()
        trackers = Trackers(self._accelerator, self._section, self._run)
        window = Window(self._state.window)
        if self._state.step == 0:
            figures = self._validate()
            trackers.log({"step": 0, **figures})
            if figures:
                self._heed(self._health.observe_validation(0, figures["eval_loss"]))
        with StopRequest() as stop, task("Training", self._total, "steps") as progress:
            progress.start_at(self._state.step)
            while self._state.step < self._total and not self._state.stopped_early:
                self._train_step(window)
                progress.advance(1, window.note())
                improved = self._is_due(self._validation_interval) and self._judge(trackers)
                if self._is_due(self._section.logging_steps):
                    self._heed(self._health.observe_adapter(self._state.step, self._parameters))
                if self._is_due(self._section.logging_steps) and not window.is_empty:
                    trackers.log({"step": self._state.step, "epoch": self._epoch, **window.take()})
                if improved or self._is_due(self._section.save_steps) or self._state.stopped_early or stop.requested:
                    self._save()
                if stop.requested:
                    trackers.close()
                    self._close_compiled()
                    if self._trunk is not None:
                        self._trunk.close()
                    raise self._stopped()
        trackers.close()
        self._close_compiled()
        if self._trunk is not None:
            self._trunk.remove()
        return TrainResult(
            self._state,
            self._total,
            self._take_best(),
            resumed_from,
            tuple(self._store.set_aside),
            tuple(self._health.findings()),
            self._speedups,
        )

    def _prepare(self) -> None:
        """What goes before the first step of this process: its memory, and what can be computed ahead."""
        if self._state.gradient_checkpointing:
            self._checkpoint_activations()
        if self._run.killed_for_memory:
            # Which of the steps since the checkpoint it was is not known.
            steps = range(self._state.step, self._state.step + self._section.save_steps)
            largest = max(len(part) for step in steps for part in self._micro_batches(step))
            change = need_less_memory(self._state, largest, self._checkpoint_activations)
            self._say(f"the system killed the last process for lack of memory: {change}")
            self._save(replace=True)  # If it is killed again, the next process goes on from this change.
        if self._state.step < self._total and not self._state.stopped_early:
            self._prepare_trunk()
            self._prepare_compilation()

    def _train_step(self, window: Window) -> None:
        """One optimizer step, counted in the state when it is done; without an update if its loss is no number."""
        started = time.monotonic()
        step = self._state.step
        learning_rate = self._learning_rate_at(step)
        self._model.train()
        batches, mean_loss = self._accumulate_with_less_memory(step)
        tokens = sum(batch.token_count for batch in batches)
        norm = optim.clip(self._accelerator, self._parameters.values(), self._section.max_grad_norm)
        # A gradient scaler (fp16) looks for infinite gradients itself, lowers its scale and leaves the step out.
        is_finite = math.isfinite(mean_loss) and (math.isfinite(norm) or self._accelerator.scaler is not None)
        if is_finite:
            optim.set_learning_rate(self._optimizer, learning_rate)
            self._optimizer.step()
            self._state.not_finite_in_a_row = 0
        self._optimizer.zero_grad()
        if not is_finite:
            optim.leave_out(self._accelerator)
            self._say(leave_step_out(self._state, mean_loss, not_finite_places(self._loss, batches)), step + 1)
        seconds = time.monotonic() - started
        self._state.step += 1
        self._state.tokens += tokens
        self._state.seconds += seconds
        if is_finite:
            memory = memory_in_use_bytes(self._accelerator.device)
            places = tuple(place for batch in batches for place in batch.places)
            figures = StepFigures(step + 1, mean_loss, norm, learning_rate, tokens, seconds, memory, places)
            window.add(figures, targets=sum(batch.target_weight for batch in batches))
            self._heed(self._health.observe_step(figures))

    def _accumulate_with_less_memory(self, step: int) -> tuple[list[Batch], float]:
        """`_accumulate`, tried again with less memory as often as memory runs out."""
        while True:
            try:
                return self._accumulate(step)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            # Outside the handler: its traceback would keep the failed attempt's tensors alive.
            self._optimizer.zero_grad()
            release_memory()
            change = need_less_memory(self._state, self._examples_at_work, self._checkpoint_activations)
            self._say(f"memory ran out in step {step + 1}: {change}", step + 1)

    def _accumulate(self, step: int) -> tuple[list[Batch], float]:
        """Computes the gradients of one step; returns its micro-batches and its (weighted) mean loss."""
        parts = self._micro_batches(step)
        batches = [self._collate([self._examples[index] for index in part]) for part in parts]
        targets = sum(batch.target_weight for batch in batches) or 1.0
        loss_sum = 0.0
        for number, (part, batch) in enumerate(zip(parts, batches, strict=True)):
            self._examples_at_work = len(part)
            seed_dropout(self._section.seed, step, number)
            action = passing(f"forward:{step + 1}")
            with self._frozen_layers("train", part, batch):
                loss = self._loss(batch, batch.weights_B) / targets
            loss = loss * math.nan if action == "nan" else loss
            term = regularization_loss(self._model)
            self._accelerator.backward(loss if term is None else loss + term / len(batches))
            loss_sum += loss.item()
        return batches, loss_sum

    def _micro_batches(self, step: int) -> list[list[int]]:
        """The examples of a step as they are computed together.

        The losses of a step are summed, so how it is divided changes nothing but rounding (and with dropout its noise,
        which is drawn by micro-batch).
        """
        return batches_of_like_length(
            self._lengths,
            [index for part in self._plan.step(step) for index in part],
            max_examples=self._state.micro_batch_size,
            max_tokens=self._max_tokens,
            multiple_of=self._multiple,
        )

    def _prepare_trunk(self) -> None:
        """Computes what the layers below the adapter give ahead, where that pays. A resumed run does as it began."""
        if self._state.uses_trunk is False:
            self._speedups.add("Frozen layers", "in every step", "as when the run began")
            return
        self._trunk = prepare_trunk(
            self._speedups,
            self._model,
            {"train": self._examples, "validation": self._validation},
            self._section,
            self._run,
            self._accelerator,
            passes=self._total / self._plan.steps_per_epoch,
            fingerprint=self._state.fingerprint,
            pad_token_id=self._pad_token_id,
        )
        if self._state.uses_trunk and self._trunk is None:
            reason = self._speedups.why("Frozen layers")
            self._say(f"the frozen layers' output is computed in every step from here on: {reason}")
        self._state.uses_trunk = self._trunk is not None

    def _prepare_compilation(self) -> None:
        """Compiles decoder layers, where that pays. A resumed run does as it began."""
        section, epoch = self._section, self._plan.steps_per_epoch
        self._compiled = prepare_compilation(
            self._speedups,
            self._model,
            section.compile,
            lambda: [part for step in range(min(epoch, TYPICAL_STEPS)) for part in self._micro_batches(step)],
            self._lengths,
            as_begun=self._state.compiles,
            tokens=sum(map(int, self._lengths)) * self._total / epoch,
            accelerator=self._accelerator,
        )
        wanted = section.compile == "on" or bool(self._state.compiles and section.compile == "auto")
        if wanted and self._compiled is None:
            self._say(f"decoder layers are computed in eager: {self._speedups.why('Decoder layers')}")
        self._state.compiles = self._compiled is not None

    def _close_compiled(self) -> None:
        if self._compiled is not None:
            self._speedups.add("Decoder layers", *self._compiled.describe())
            self._compiled.close()

    def _frozen_layers(self, split: str, indices: Sequence[int], batch: Batch) -> AbstractContextManager[None]:
        """Within it, the model takes what the layers below the adapter give from disk, if it is there."""
        if self._trunk is None:
            return nullcontext()
        return self._trunk.reading(split, indices, batch.input_ids_BT.shape[1])

    def _loss(self, batch: Batch, weights_B: torch.Tensor | None = None) -> torch.Tensor:
        with self._accelerator.autocast():
            return summed_loss(self._model, batch, weights_B)

    def _collate(self, examples: Sequence[TokenizedExample]) -> Batch:
        return collate(examples, self._pad_token_id, multiple_of=self._multiple).to(self._accelerator.device)

    def _learning_rate_at(self, step: int) -> float:
        rate = learning_rate_at(step, self._section, self._total, more_warmup=self._state.more_warmup)
        return rate * self._state.learning_rate_scale

    def _heed(self, advices: Sequence[Advice]) -> None:
        """Says what health found, and acts on it as the recipe's `on_unhealthy` wants."""
        for advice in advices:
            self._say(f"{advice.finding.message}. {advice.finding.remedy}")
            # A finding that asks for nothing, such as a single spike, is no reason to end or change a run.
            if self._section.on_unhealthy == "stop" and advice.action is not None:
                self._save()
                raise TrainError(
                    advice.finding.message,
                    place=str(self._run.folder),
                    remedy=f"{advice.finding.remedy}; a checkpoint of step {self._state.step} was written",
                )
            if self._section.on_unhealthy == "adjust" and advice.action is not None:
                self._say(adjust(self._state, advice.action))

    def _checkpoint_activations(self) -> None:
        inner: Any = self._accelerator.unwrap_model(self._model)
        inner.activation_checkpointing_enable({"use_reentrant": False})

    def _say(self, line: str, step: int | None = None) -> None:
        """A line of its own beside the progress, and in metrics.jsonl; `step` is the one at work, if it is not done."""
        print(line, file=sys.stderr, flush=True)
        self._run.append_metrics({"step": self._state.step if step is None else step, "event": line})

    def _validate(self) -> dict[str, float]:
        """{"eval_loss": nats a target token, without weights}, or nothing where there is no validation set."""
        if not self._validation:
            return {}
        parts = batches_of_like_length(
            lengths_of(self._validation),
            max_examples=self._section.per_device_eval_batch_size,
            max_tokens=self._max_tokens,
            multiple_of=self._multiple,
        )
        self._model.eval()
        loss_sum, count = 0.0, 0
        with torch.no_grad():
            for part in track(parts, "Validating", len(parts), "batches"):
                for loss, targets in in_halves(self._validation_losses, part, what="validating"):
                    loss_sum, count = loss_sum + loss, count + targets
        return {"eval_loss": loss_sum / max(count, 1)}

    def _validation_losses(self, indices: Sequence[int]) -> list[tuple[float, int]]:
        """(summed loss, target tokens); the first stands for all, as `in_halves` wants one an example."""
        batch = self._collate([self._validation[index] for index in indices])
        with self._frozen_layers("validation", indices, batch):
            return [(self._loss(batch).item(), batch.target_count), *[(0.0, 0)] * (len(indices) - 1)]

    def _judge(self, trackers: Trackers) -> bool:
        """Validates; whether this is the best loss so far. Sets `stopped_early` when patience has run out."""
        figures = self._validate()
        if not figures:
            return False
        trackers.log({"step": self._state.step, "epoch": self._epoch, **figures})
        self._heed(self._health.observe_validation(self._state.step, figures["eval_loss"]))
        loss, best = figures["eval_loss"], self._state.best_loss
        improved = math.isfinite(loss) and (best is None or loss < best)
        gained = improved and (best is None or loss < best - self._section.early_stopping_threshold)
        if improved:
            self._state.best_loss, self._state.best_step = loss, self._state.step
        self._state.evaluations_without_gain = 0 if gained else self._state.evaluations_without_gain + 1
        patience = self._section.early_stopping_patience
        self._state.stopped_early |= patience is not None and self._state.evaluations_without_gain >= patience
        return improved

    def _is_due(self, interval: int) -> bool:
        return self._state.step % interval == 0 or self._state.step == self._total

    @property
    def _epoch(self) -> float:
        return round(self._state.step / self._plan.steps_per_epoch, 4)

    def _save(self, *, replace: bool = False) -> None:
        self._state.scaler = optim.scaler_numbers(self._accelerator)
        self._state.health = self._health.to_dict()
        for last_try in (False, True):
            try:
                tensors = optim.optimizer_tensors(self._optimizer, self._parameters)
                self._store.save(self._state, self._parameters, tensors, replace=replace)
                return
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if last_try:
                    raise TrainError(
                        f"there is not enough memory to write the checkpoint of step {self._state.step}",
                        remedy="free memory, or lower train.per_device_train_batch_size; the last checkpoint is kept",
                    ) from None
            release_memory()

    def _resume(self) -> int:
        """Takes up the newest checkpoint, if there is one; returns its step."""
        newest = self._store.newest()
        for line in self._store.set_aside:
            print(f"damaged checkpoint set aside: {line}", file=sys.stderr, flush=True)
        if newest is None and self._store.set_aside:
            raise RunError(
                f"all {len(self._store.set_aside)} checkpoints are damaged and were set aside",
                place=str(self._run.checkpoints_folder),
                remedy="restore one of them, or start anew with --fresh (this run is kept aside)",
            )
        if newest is None:
            self._run.keep_metrics(until_step=-1)
            return 0
        changed = [
            name for name, digest in self._state.fingerprint.items() if newest.state.fingerprint.get(name) != digest
        ]
        if changed:
            raise RunError(
                f"the checkpoint of step {newest.state.step} was trained with other: {', '.join(changed)}",
                place=str(self._run.folder),
                remedy="restore what changed, or start anew with --fresh (this run is kept aside)",
            )
        self._state = newest.state
        self._health.load_dict(newest.state.health)
        optim.load_parameters(self._parameters, newest.adapter())
        optim.load_optimizer(self._optimizer, self._parameters, newest.optimizer())
        optim.load_scaler(self._accelerator, newest.state.scaler)
        self._run.keep_metrics(until_step=newest.state.step or -1)
        self._forget_a_damaged_best()
        return newest.state.step

    def _forget_a_damaged_best(self) -> None:
        """A best checkpoint that cannot be read is told now, not after hours of training; the next best replaces it."""
        best = self._state.best_step
        if best is None or best == self._state.step:
            return
        try:
            self._store.at(best)
        except TrainError as error:
            self._state.best_step = self._state.best_loss = None
            self._say(f"{error.message}; the best from here on is kept instead")

    def _take_best(self) -> int:
        """Puts the best weights into the model where that is wanted; returns the step they are of."""
        best = self._state.best_step
        if not self._section.load_best_model_at_end or best is None or best == self._state.step:
            return self._state.step
        optim.load_parameters(self._parameters, self._store.at(best).adapter())
        return best

    def _stopped(self) -> StoppedError:
        return StoppedError(
            f"stopped after step {self._state.step} of {self._total}; everything so far is saved",
            place=str(self._run.folder),
            remedy="the same command goes on from there",
        )
