"""The learning rate is transformers' at every step."""

from typing import Any

import pytest
import torch
from transformers import get_scheduler

from tunesmith.config import TrainSection
from tunesmith.training.schedule import learning_rate_at, total_steps, warmup_steps


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0, 5])
def test_the_curve_is_that_of_transformers(kind: str, warmup: int) -> None:
    section = TrainSection.model_validate({"learning_rate": 0.5, "lr_scheduler_type": kind, "warmup_steps": warmup})
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    theirs = "constant_with_warmup" if kind == "constant" else kind
    scheduler = get_scheduler(theirs, optimizer, num_warmup_steps=warmup, num_training_steps=30)
    for step in range(30):
        assert learning_rate_at(step, section, 30) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    ("values", "steps", "warmup"),
    [
        ({"num_train_epochs": 3}, 30, 0),
        ({"num_train_epochs": 0.25}, 3, 0),
        ({"num_train_epochs": 9, "max_steps": 7, "warmup_ratio": 0.3}, 7, 3),
        ({"warmup_steps": 0.1}, 30, 3),
        ({"warmup_steps": 100}, 30, 100),
    ],
)
def test_steps_and_warmup(values: dict[str, Any], steps: int, warmup: int) -> None:
    section = TrainSection.model_validate(values)
    assert total_steps(section, steps_per_epoch=10) == steps
    assert warmup_steps(section, steps) == warmup
