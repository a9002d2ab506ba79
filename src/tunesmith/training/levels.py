"""Robust levels of a noisy series.

Step losses of small batches vary by half of their value. Levels are hence medians over windows, and noise is the
upper quartile of the absolute differences of neighbours, scaled to the standard deviation of a normal variable (in the
manner of Rousseeuw and Croux, 1993, section 3): it does not see a trend, and single outliers do not move it.

Losses are compared as log(loss + 0.05): ratios matter while the loss is large, and below 0.05 nats nothing does.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

WINDOW = 64
"""Steps that a level's noise is measured over."""
SLOW = 32
"""Steps of the level that is compared with; the lowest such median of the run is remembered."""
RECENT = 10
"""Steps of the present level of the loss."""
LOSS_FLOOR = 0.05
SMALLEST_RISE = 0.3
"""Nats a token; a lesser rise is no fault, whatever its ratio."""
NORMAL_QUARTILE = 1.1503 * math.sqrt(2)
"""Three quarters of the differences of two normal variables of unit deviation are smaller than this."""


@dataclass
class Levels:
    """Medians and noise of a series, of which low is good."""

    values: list[float] = field(default_factory=list)
    first: float | None = None
    lowest: float | None = None
    usual_noise: float = 0.0
    count: int = 0

    def add(self, value: float, *, least: int = RECENT) -> None:
        """One more value; a slow level counts from `least` values on."""
        self.first = value if self.first is None else self.first
        self.count += 1
        self.values.append(value)
        del self.values[:-WINDOW]
        if len(self.values) >= least:
            # The mean of all so far, and of about the last 64 later on.
            self.usual_noise += (self.noise() - self.usual_noise) / min(self.count - least + 1, WINDOW)
            slow = median(self.values[-SLOW:])
            self.lowest = slow if self.lowest is None else min(self.lowest, slow)

    def recent(self, steps: int = RECENT) -> float:
        return median(self.values[-steps:])

    def noise(self, *, lag: int = 1, until: int | None = None) -> float:
        """Standard deviation of a value about its level, from `values[:until]`.

        With a greater lag, slow wandering counts as noise too.
        """
        values = self.values[:until]
        differences = sorted(abs(late - early) for early, late in zip(values, values[lag:], strict=False))
        return differences[3 * len(differences) // 4] / NORMAL_QUARTILE if differences else 0.0

    def without_start(self) -> list[float]:
        """The values, without those of the first steps of the run, where a loss falls steeply."""
        return self.values[max(0, RECENT - (self.count - len(self.values))) :]

    def start_anew(self) -> None:
        """Forgets what was low: the present level is what comes next is compared with."""
        self.values = self.values[-RECENT:]
        self.first = self.lowest = None


def level_of(loss: float) -> float:
    return math.log(max(loss, 0.0) + LOSS_FLOOR)


def nats(level: float) -> float:
    """The loss whose `level_of` it is."""
    return math.exp(min(level, 700.0)) - LOSS_FLOOR


def median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def climbs_of(values: Sequence[float], least: float) -> list[tuple[float, float]]:
    """The (low, high) of each climb by more than `least` that a fall by as much follows."""
    found = []
    low = high = values[0]
    for value in values:
        high = max(high, value)
        if high - low > least:
            if high - value > least:
                found.append((low, high))
                low = high = value
        elif value < low:
            low = high = value
    return found


def von_neumann_ratio(values: Sequence[float]) -> float:
    """Mean squared difference of neighbours over twice the variance about a line (von Neumann, 1941).

    It is about 1 where neighbours are independent, near 0 where they are alike, and near 2 where they alternate.
    """
    count = len(values)
    centre, mean = (count - 1) / 2, sum(values) / count
    slope = sum((at - centre) * value for at, value in enumerate(values)) / (count * (count**2 - 1) / 12)
    rest = [value - mean - slope * (at - centre) for at, value in enumerate(values)]
    variance = sum(value * value for value in rest) / count
    differences = sum((late - early) ** 2 for early, late in itertools.pairwise(rest)) / (count - 1)
    return differences / (2 * variance) if variance else 1.0
