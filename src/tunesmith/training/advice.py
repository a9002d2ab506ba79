"""What health looks at and what it says: the figures of a step, a fault, and the action against it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.data.records import Place
from tunesmith.report import Finding, Severity

SHOWN = 8
"""Places, names or lines of evidence that are shown."""


@dataclass(frozen=True)
class StepFigures:
    """One optimizer step.

    Args:
        step: counted from 1.
        loss: mean nats per target token.
        grad_norm: before clipping.
        learning_rate: of this step.
        tokens: real tokens, without padding.
        seconds: wall time.
        memory_bytes: held by the process after the step.
        places: the rows of its examples.
    """

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    tokens: int
    seconds: float
    memory_bytes: int
    places: tuple[Place, ...]


@dataclass(frozen=True)
class LowerLearningRate:
    """Multiply the learning rate of the rest of the run by `factor`."""

    factor: float


@dataclass(frozen=True)
class LengthenWarmup:
    """Add `steps` optimizer steps to the warmup."""

    steps: int


@dataclass(frozen=True)
class StopEarly:
    """End the training here; the best adapter so far is the result."""


Action = LowerLearningRate | LengthenWarmup | StopEarly


@dataclass(frozen=True)
class Advice:
    """A fault, and what `train.on_unhealthy: adjust` would do about it (None: nothing that a run can do itself)."""

    finding: Finding
    action: Action | None


def listed(names: Sequence[str], count: int) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {count - SHOWN} more" if count > SHOWN else "")


def warn(code: str, message: str, evidence: tuple[str, ...], remedy: str, action: Action | None = None) -> Advice:
    return Advice(Finding(code, Severity.WARNING, message, evidence, remedy), action)
