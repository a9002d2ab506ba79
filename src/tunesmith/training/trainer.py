"""The training loop.

One optimizer step: the token losses of all its micro-batches are summed and divided by the step's target tokens, over
all processes; then clipping, AdamW, and the learning rate of the step. What varies from step to step (order of the
data, dropout, learning rate) is a function of (seed, step), so a checkpoint holds only tensors and counters.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from tunesmith.adapters.methods import regularization_loss
from tunesmith.config import TrainSection
from tunesmith.data.batching import Batch, StepPlan, collate
from tunesmith.data.records import TokenizedExample
from tunesmith.errors import RunError, StoppedError
from tunesmith.models.backend import memory_in_use_bytes
from tunesmith.progress import task, track
from tunesmith.runs import Run
from tunesmith.training import optimizer as optim
from tunesmith.training.checkpoint import CheckpointStore, TrainState
from tunesmith.training.loss import require_finite, summed_loss
from tunesmith.training.metrics import Trackers, Window
from tunesmith.training.parallel import make_accelerator, rank_share, seed_dropout, without_targets
from tunesmith.training.schedule import learning_rate_at, total_steps
from tunesmith.training.signals import StopRequest


@dataclass(frozen=True)
class TrainResult:
    """What a finished run looks like.

    Args:
        state: counters at the end.
        total_steps: optimizer steps that were planned.
        adapter_step: the step whose weights the model now holds.
        resumed_from: the step this process went on from, 0 for a fresh start.
        set_aside: damaged checkpoints, each with the reason.
    """

    state: TrainState
    total_steps: int
    adapter_step: int
    resumed_from: int
    set_aside: tuple[str, ...]


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
        precision: str,
        pad_token_id: int,
        fingerprint: Mapping[str, str],
    ) -> None:
        self._section = section
        self._run = run
        self._examples = train
        self._validation = validation
        self._pad_token_id = pad_token_id
        self._accelerator: Accelerator = make_accelerator(precision, section.report_to, run.folder / "trackers")
        self._parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
        if section.gradient_checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        self._model = self._accelerator.prepare_model(model)
        self._optimizer = self._accelerator.prepare_optimizer(optim.make_adamw(self._parameters, section))
        self._plan = StepPlan(
            [len(example.input_ids) for example in train],
            micro_batch_size=section.per_device_train_batch_size,
            micro_batches=section.gradient_accumulation_steps * self._accelerator.num_processes,
            strategy=section.train_sampling_strategy,
            seed=section.seed,
        )
        self._total = total_steps(section, self._plan.steps_per_epoch)
        self._validation_interval = section.eval_steps or self._plan.steps_per_epoch
        self._store = CheckpointStore(run.checkpoints_folder, keep=section.save_total_limit)
        self._state = TrainState(fingerprint=dict(fingerprint))

    def train(self) -> TrainResult:
        """Trains from the newest checkpoint, or from the start, to the end.

        Raises:
            StoppedError: a signal asked for it; a checkpoint was written and the same command goes on.
            TrainError: the loss is not finite, or a tracker's package fails.
            RunError: the newest checkpoint is of other data or another model.
            DiskError: metrics or a checkpoint cannot be written.
        """
        resumed_from = self._resume()
        trackers = Trackers(self._accelerator, self._section, self._run)
        window = Window()
        if self._state.step == 0:
            trackers.log({"step": 0, **self._validate()})
        with StopRequest() as stop, task("Training", self._total, "steps") as progress:
            progress.start_at(self._state.step)
            while self._state.step < self._total and not self._state.stopped_early:
                self._train_step(window)
                progress.advance(1, window.note())
                improved = self._is_due(self._validation_interval) and self._judge(trackers)
                if self._is_due(self._section.logging_steps):
                    trackers.log({"step": self._state.step, "epoch": self._epoch, **window.take()})
                if improved or self._is_due(self._section.save_steps) or self._state.stopped_early or stop.requested:
                    self._save()
                if stop.requested and self._state.step < self._total:
                    trackers.close()
                    raise self._stopped()
        trackers.close()
        return TrainResult(self._state, self._total, self._take_best(), resumed_from, tuple(self._store.set_aside))

    def _train_step(self, window: Window) -> None:
        """One optimizer step, counted in the state when it is done."""
        started = time.monotonic()
        step = self._state.step
        learning_rate = learning_rate_at(step, self._section, self._total)
        batches = self._my_batches(step)
        targets, tokens = self._sum_over_processes(
            [sum(batch.target_count for batch in batches), sum(batch.token_count for batch in batches)]
        )
        self._model.train()
        loss_sum = 0.0
        for number, batch in enumerate(batches):
            seed_dropout(self._section.seed, step, number, self._accelerator.process_index)
            is_last = number == len(batches) - 1
            with nullcontext() if is_last else self._accelerator.no_sync(self._model):
                # DDP averages gradients over the processes; times their number makes that a sum.
                loss = summed_loss(self._model, batch) * (self._accelerator.num_processes / targets)
                self._accelerator.backward(loss + self._regularization(len(batches)))
            loss_sum += loss.item() / self._accelerator.num_processes
        (mean_loss,) = self._sum_over_processes([loss_sum])
        require_finite(mean_loss, step, batches)
        optim.set_learning_rate(self._optimizer, learning_rate)
        norm = optim.clip(self._accelerator, self._parameters.values(), self._section.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        seconds = time.monotonic() - started
        self._state.step += 1
        self._state.tokens += int(tokens)
        self._state.seconds += seconds
        memory = memory_in_use_bytes(self._accelerator.device)
        window.add(mean_loss, targets, int(tokens), seconds, learning_rate, norm, memory)

    def _regularization(self, parts: int) -> torch.Tensor | float:
        """The part of one of `parts` micro-batches in the term that some variants add to the loss of a step."""
        term = regularization_loss(self._accelerator.unwrap_model(self._model))
        return 0.0 if term is None else term / parts

    def _my_batches(self, step: int) -> list[Batch]:
        """This process's micro-batches of the step; every process gets as many, the spare ones without targets."""
        micro_batches = self._plan.step(step)
        batches = []
        for indices, is_spare in rank_share(
            micro_batches, self._accelerator.process_index, self._accelerator.num_processes
        ):
            batch = collate([self._examples[index] for index in indices], self._pad_token_id)
            batches.append((without_targets(batch) if is_spare else batch).to(self._accelerator.device))
        return batches

    def _validate(self) -> dict[str, float]:
        """{"eval_loss": nats a target token}, or nothing where there is no validation set."""
        if not self._validation:
            return {}
        size = self._section.per_device_eval_batch_size
        by_length = sorted(self._validation, key=lambda example: len(example.input_ids))
        chunks = [by_length[at : at + size] for at in range(0, len(by_length), size)]
        mine = chunks[self._accelerator.process_index :: self._accelerator.num_processes]
        self._model.eval()
        loss_sum, count = 0.0, 0
        with torch.no_grad():
            for chunk in track(mine, "Validating", len(mine), "batches"):
                batch = collate(chunk, self._pad_token_id).to(self._accelerator.device)
                loss_sum += summed_loss(self._model, batch).item()
                count += batch.target_count
        loss_sum, targets = self._sum_over_processes([loss_sum, count])
        return {"eval_loss": loss_sum / targets}

    def _judge(self, trackers: Trackers) -> bool:
        """Validates; whether this is the best loss so far. Sets `stopped_early` when patience has run out."""
        figures = self._validate()
        if not figures:
            return False
        trackers.log({"step": self._state.step, "epoch": self._epoch, **figures})
        loss, best = figures["eval_loss"], self._state.best_loss
        improved = best is None or loss < best
        gained = best is None or loss < best - self._section.early_stopping_threshold
        if improved:
            self._state.best_loss, self._state.best_step = loss, self._state.step
        self._state.evaluations_without_gain = 0 if gained else self._state.evaluations_without_gain + 1
        patience = self._section.early_stopping_patience
        self._state.stopped_early = patience is not None and self._state.evaluations_without_gain >= patience
        return improved

    def _is_due(self, interval: int) -> bool:
        return self._state.step % interval == 0 or self._state.step == self._total

    @property
    def _epoch(self) -> float:
        return round(self._state.step / self._plan.steps_per_epoch, 4)

    def _sum_over_processes(self, values: Sequence[float]) -> list[float]:
        if self._accelerator.num_processes == 1:
            return list(values)
        summed: Any = self._accelerator.reduce(
            torch.tensor(values, dtype=torch.float64, device=self._accelerator.device), reduction="sum"
        )
        return [float(value) for value in summed]

    def _save(self) -> None:
        self._state.scaler = optim.scaler_numbers(self._accelerator)
        if self._accelerator.is_main_process:
            self._store.save(self._state, self._parameters, optim.optimizer_tensors(self._optimizer, self._parameters))
        self._accelerator.wait_for_everyone()

    def _resume(self) -> int:
        """Takes up the newest checkpoint, if there is one; returns its step."""
        newest = self._store.newest() if self._accelerator.is_main_process else None
        self._accelerator.wait_for_everyone()
        newest = newest or self._store.newest()
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
        optim.load_parameters(self._parameters, newest.adapter())
        optim.load_optimizer(self._optimizer, self._parameters, newest.optimizer())
        optim.load_scaler(self._accelerator, newest.state.scaler)
        if self._accelerator.is_main_process:
            self._run.keep_metrics(until_step=newest.state.step)
        return newest.state.step

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
