"""What a run does when a step fails: less memory for the next try, or the step left out and its examples named."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from tunesmith.data.batching import Batch
from tunesmith.data.records import Place
from tunesmith.errors import TrainError
from tunesmith.training.checkpoint import TrainState
from tunesmith.training.health import Action, LengthenWarmup, LowerLearningRate

MOST_IN_A_ROW = 3
"""So many steps in a row without a finite loss end the run."""


def need_less_memory(state: TrainState, largest: int, enable_checkpointing: Callable[[], None]) -> str:
    """Changes how the next try is computed, not what: first smaller micro-batches, then activation checkpointing.

    The step keeps its examples, and the loss is divided by its target tokens whatever the micro-batches are, so the
    result is the same up to rounding. What was changed is part of the state, and holds after a resume too.

    Args:
        state: its `micro_batch_size` or `gradient_checkpointing` is changed.
        largest: examples of the micro-batch that failed; the budget of tokens may allow fewer than
            `micro_batch_size`.
        enable_checkpointing: turns activation checkpointing on.

    Returns:
        What was changed, for the log.

    Raises:
        TrainError: nothing is left to change.
    """
    if largest > 1:
        state.micro_batch_size = math.ceil(largest / 2)
        return f"micro-batches of {state.micro_batch_size} from here on (the effective batch stays)"
    if not state.gradient_checkpointing:
        enable_checkpointing()
        state.gradient_checkpointing = True
        return "activation checkpointing from here on"
    raise TrainError(
        f"there is not enough memory to train on one example at a time (step {state.step + 1}), "
        "even with activation checkpointing",
        remedy="lower data.max_length, adapt fewer layers (adapter.layers: last:N), take a smaller model "
        "or model.precision: bf16, or free memory; the last checkpoint is kept",
    )


def not_finite_places(loss_of: Callable[[Batch], torch.Tensor], batches: Sequence[Batch]) -> list[Place]:
    """The examples whose own loss is not a number; all of them where none is to blame alone.

    Args:
        loss_of: the summed loss of a batch.
        batches: the micro-batches of the step.
    """
    blamed = []
    with torch.no_grad():
        for batch in batches:
            for row, place in enumerate(batch.places):
                alone = Batch(batch.input_ids_BT[row : row + 1], batch.labels_BT[row : row + 1], (place,), 0, 0, 0)
                if not math.isfinite(loss_of(alone).item()):
                    blamed.append(place)
    return blamed or [place for batch in batches for place in batch.places]


def leave_step_out(state: TrainState, loss: float, places: Sequence[Place]) -> str:
    """Counts a step whose loss or gradient is not a number as done without an update.

    Returns:
        A line for the log.

    Raises:
        TrainError: it is the third in a row.
    """
    state.not_finite_in_a_row += 1
    names = ", ".join(map(str, places[:8])) + (f" and {len(places) - 8} more" if len(places) > 8 else "")
    if state.not_finite_in_a_row >= MOST_IN_A_ROW:
        raise TrainError(
            f"the loss or its gradient was not a number in {MOST_IN_A_ROW} steps in a row, "
            f"the last of them step {state.step + 1} (loss {loss}); its examples: {names}",
            remedy="lower train.learning_rate or lengthen the warmup if it went wrong after a good start; use "
            "model.precision: bf16 or fp32 if it is fp16; look at the examples if they are the same ones. "
            "The last checkpoint is kept",
        )
    return f"step {state.step + 1} is left out: its loss or gradient is not a number; examples: {names}"


def adjust(state: TrainState, action: Action) -> str:
    """Does what health advises; the change is part of the state, and holds after a resume too.

    Returns:
        A line for the log.
    """
    if isinstance(action, LowerLearningRate):
        state.learning_rate_scale *= action.factor
        return f"the learning rate is {state.learning_rate_scale:g} of the schedule's from here on"
    if isinstance(action, LengthenWarmup):
        state.more_warmup += action.steps
        return f"the warmup is {action.steps} steps longer"
    state.stopped_early = True
    return "training ends here; the best adapter so far is kept"
