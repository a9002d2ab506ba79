"""The learning rate of each step, as a pure function: there is no scheduler state to save.

The curves are those of transformers' `get_linear_schedule_with_warmup` and its cosine and constant kin.
"""

import math

from tunesmith.config import TrainSection


def total_steps(section: TrainSection, steps_per_epoch: int) -> int:
    """Optimizer steps of the whole run."""
    return section.max_steps or max(1, math.ceil(section.num_train_epochs * steps_per_epoch))


def warmup_steps(section: TrainSection, total: int) -> int:
    """Steps of warmup; a share is rounded up."""
    if section.warmup_ratio is not None:
        return math.ceil(section.warmup_ratio * total)
    asked = section.warmup_steps or 0
    return math.ceil(asked * total) if asked < 1 else int(asked)


def learning_rate_at(step: int, section: TrainSection, total: int, *, more_warmup: int = 0) -> float:
    """Learning rate of step `step`, counted from 0, of `total`.

    It rises linearly from 0 over the warmup, then falls to 0 at `total` along a line or half a cosine wave, or stays.
    `more_warmup` steps are added to the recipe's warmup.
    """
    warmup = warmup_steps(section, total) + more_warmup
    if step < warmup:
        return section.learning_rate * step / warmup
    if section.lr_scheduler_type == "constant":
        return section.learning_rate
    progress = (step - warmup) / max(1, total - warmup)
    if section.lr_scheduler_type == "cosine":
        return section.learning_rate * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return section.learning_rate * max(0.0, 1 - progress)
