"""Watches a run and says what goes wrong in it, with evidence and remedy.

The rules stand in `loss_rules` and `resource_rules`, the statistics they share in `levels`. All that is remembered is
plain data of bounded size, so that a resumed run judges as an undisturbed one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch

from tunesmith.config import TrainSection
from tunesmith.report import Finding, Severity
from tunesmith.training.advice import (
    SHOWN,
    Action,
    Advice,
    LengthenWarmup,
    LowerLearningRate,
    StepFigures,
    StopEarly,
)
from tunesmith.training.levels import Levels, level_of
from tunesmith.training.loss_rules import Divergence, Oscillation, Overfitting, Plateau, Spikes
from tunesmith.training.resource_rules import DeadAdapter, Gradients, Memory, Throughput

__all__ = ["Action", "Advice", "Health", "LengthenWarmup", "LowerLearningRate", "StepFigures", "StopEarly"]

CALM = 30
"""Steps without a fault after which the same fault is a new one."""


class Health:
    """Takes the figures of a run in their order, and gives advice on each fault once, when it begins.

    Args:
        section: the recipe's train section.
        total_steps: optimizer steps of the whole run.
        warmup: steps of them in which the learning rate rises.
    """

    def __init__(self, section: TrainSection, *, total_steps: int, warmup: int) -> None:
        self._section = section
        self._total_steps = total_steps
        self._warmup = warmup
        self._losses = Levels()
        self._spikes = Spikes()
        self._divergence = Divergence()
        self._oscillation = Oscillation()
        self._plateau = Plateau()
        self._gradients = Gradients()
        self._throughput = Throughput()
        self._memory = Memory()
        self._validation = Overfitting()
        self._adapter = DeadAdapter()
        self._active: dict[str, int] = {}
        self._found: dict[str, dict[str, Any]] = {}

    def observe_step(self, figures: StepFigures) -> list[Advice]:
        """Advice after one step; a step whose loss or norm is not finite is passed over (the trainer deals with it)."""
        if not (math.isfinite(figures.loss) and math.isfinite(figures.grad_norm)):
            return []
        section, losses = self._section, self._losses
        self._adapter.count_step(figures.learning_rate)
        spike = self._spikes.check(figures, losses)
        losses.add(level_of(figures.loss))
        is_ordered = section.train_sampling_strategy == "sequential"
        divergence = self._divergence.check(figures, losses, self._warmup, is_ordered)
        plateau = self._plateau.check(figures, losses, self._total_steps, section.learning_rate)
        if "loss-diverges" in self._found:
            plateau = None  # It stays where the divergence has left it: that has been said.
        explosion = self._gradients.explode(figures, section.max_grad_norm or 1.0)
        return [
            *self._tell("loss-spike", figures.step, spike),
            *self._tell("loss-diverges", figures.step, divergence),
            *self._tell("loss-oscillates", figures.step, self._oscillation.check(figures, losses, is_ordered)),
            *self._tell("plateau", figures.step, plateau, calm=self._total_steps),
            *self._tell("gradients-explode", figures.step, explosion),
            *self._tell("gradients-vanish", figures.step, self._gradients.vanish(losses)),
            *self._tell("throughput-drops", figures.step, self._throughput.check(figures)),
            *self._tell("memory-creeps", figures.step, self._memory.check(figures, self._total_steps), calm=0),
        ]

    def observe_validation(self, step: int, eval_loss: float) -> list[Advice]:
        """Advice after a validation; `eval_loss` in nats per target token."""
        if not math.isfinite(eval_loss):
            return []
        return self._tell("overfitting", step, self._validation.check(step, eval_loss, self._losses), calm=0)

    def observe_adapter(self, step: int, parameters: Mapping[str, torch.Tensor]) -> list[Advice]:
        """Advice on the trainable parameters, by name; call it where a log line is due, not at each step."""
        return self._tell("dead-adapter", step, self._adapter.check(step, parameters), calm=0)

    def findings(self) -> list[Finding]:
        """All faults so far, one finding a code, in the order in which they began."""
        found = []
        for code, one in self._found.items():
            times, evidence = one["times"], tuple(one["evidence"])
            if code == "loss-spike":
                evidence += self._spikes.repeated_places()
            message = one["message"] + (f" (the first of {times} times)" if times > 1 else "")
            found.append(Finding(code, Severity.WARNING, message, evidence, one["remedy"]))
        return found

    def to_dict(self) -> dict[str, Any]:
        """All that is remembered, for JSON; some tens of kilobytes at most."""
        parts = {name: dataclasses.asdict(part) for name, part in self._parts().items()}
        found = {code: {**one, "evidence": list(one["evidence"])} for code, one in self._found.items()}
        return {**parts, "active": dict(self._active), "found": found}

    def load_dict(self, data: Mapping[str, Any]) -> None:
        """Takes up what `to_dict` gave; what it does not hold stays as it is."""
        for name, part in self._parts().items():
            kept = data.get(name, {})
            for one in dataclasses.fields(part):
                if one.name in kept:
                    value = kept[one.name]
                    is_levels = isinstance(getattr(part, one.name), Levels)
                    setattr(part, one.name, Levels(**_copied(value)) if is_levels else _copied(value))
        self._active = dict(data.get("active", {}))
        self._found = {code: {**one, "evidence": list(one["evidence"])} for code, one in data.get("found", {}).items()}

    def _parts(self) -> dict[str, Any]:
        return {name.removeprefix("_"): part for name, part in vars(self).items() if dataclasses.is_dataclass(part)}

    def _tell(self, code: str, step: int, advice: Advice | None, *, calm: int = CALM) -> list[Advice]:
        """The advice if its fault begins here; a fault ends after more than `calm` steps without it."""
        if advice is None:
            if step - self._active.get(code, step) > calm:
                del self._active[code]
            return []
        is_new = code not in self._active
        self._active[code] = step
        if code == "loss-spike" or is_new:  # Each spike is a fault of its own, but is said aloud only after a calm.
            self._keep(advice.finding)
        return [advice] if is_new else []

    def _keep(self, finding: Finding) -> None:
        first = {"message": finding.message, "remedy": finding.remedy, "evidence": [], "times": 0}
        kept = self._found.setdefault(finding.code, first)
        kept["times"] += 1
        kept["evidence"] = (kept["evidence"] + list(finding.evidence))[:SHOWN]


def _copied(value: Any) -> Any:
    """A list or dict that shares nothing with `value`."""
    if isinstance(value, dict):
        return {key: _copied(one) for key, one in value.items()}
    return [_copied(one) for one in value] if isinstance(value, list) else value
