"""Rules on the training and validation loss: spikes, divergence, oscillation, plateau, overfitting."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Any

from tunesmith.training.advice import (
    SHOWN,
    Advice,
    LengthenWarmup,
    LowerLearningRate,
    StepFigures,
    StopEarly,
    listed,
    warn,
)
from tunesmith.training.levels import (
    RECENT,
    SLOW,
    SMALLEST_RISE,
    WINDOW,
    Levels,
    climbs_of,
    level_of,
    median,
    nats,
    von_neumann_ratio,
)

DEVIATIONS = 3.5
"""Of the noise. A first loss is one noisy value, and the lowest median of a long run lies below its level by chance."""
MOST_NOISE = 0.8
"""No greater deviation of a step's log loss is taken for noise: what is called so then is the climb."""


@dataclass
class Spikes:
    """A loss far above those before it, that is gone again at once: its examples are to blame.

    Neither the median of the last 64 losses nor their noise sees single outliers. That the loss falls back within three
    steps tells a spike from the begin of a divergence.
    """

    pending: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def check(self, figures: StepFigures, before: Levels) -> Advice | None:
        value = level_of(figures.loss)
        if self.pending:
            self.pending["after"].append(value)
            return self._confirmed(before) if len(self.pending["after"]) == 3 else None
        window = before.without_start()
        if len(window) < 16:
            return None
        level = median(window)
        spread = before.noise()
        # Where the tail is heavy, large losses are usual: one outlier may be in the window, not two of this kind.
        second = sorted(window[-SLOW:])[-2] - level
        is_far = value - level > max(math.log(2.5), 7 * spread, 1.5 * second)
        if is_far and figures.loss - nats(level) > SMALLEST_RISE:
            self.pending = {
                "step": figures.step,
                "loss": figures.loss,
                "value": value,
                "level": level,
                "spread": max(spread, 1e-6),
                "places": [str(place) for place in figures.places[:WINDOW]],
                "place_count": len(figures.places),
                "after": [],
            }
        return None

    def _confirmed(self, losses: Levels) -> Advice | None:
        seen, self.pending = self.pending, {}
        excess = seen["value"] - seen["level"]
        if median(seen["after"]) - seen["level"] > excess / 2:
            return None
        losses.values[-len(seen["after"])] = seen["level"]  # The next spike is held against what is usual.
        for place in seen["places"]:
            if place in self.counts or len(self.counts) < 4 * WINDOW:
                self.counts[place] = self.counts.get(place, 0) + 1
        names = listed(seen["places"], seen["place_count"])
        return warn(
            "loss-spike",
            f"the loss of step {seen['step']} was {seen['loss']:.3g}, where {nats(seen['level']):.3g} was usual "
            f"({excess / seen['spread']:.0f} standard deviations, on a log scale), and fell back at once: "
            "an example of that step is unlike the others",
            (f"step {seen['step']}, loss {seen['loss']:.3g}: {names}",),
            "look at the examples named and drop or mend what is garbage; if they are sound, lower "
            "train.learning_rate, or raise train.gradient_accumulation_steps",
        )

    def repeated_places(self) -> tuple[str, ...]:
        """The places that the most of the spikes have in common, if it is more than one."""
        most = max(self.counts.values(), default=0)
        common = [place for place, count in self.counts.items() if count == most > 1]
        return tuple(f"{place} was in {most} of these steps" for place in common[:SHOWN])


@dataclass
class Divergence:
    """The loss level climbs well above the lowest one, or above that of the untrained model."""

    has_lengthened: bool = False

    def check(self, figures: StepFigures, losses: Levels, warmup: int, is_ordered: bool) -> Advice | None:
        if len(losses.values) < RECENT + 2:
            return None
        recent = losses.recent()
        # Data that is read in its order may become harder on the way: only the untrained model's loss counts there.
        for reference in (None if is_ordered else losses.lowest, losses.first):
            if reference is None or recent - reference < math.log(1.5):
                continue
            # The climb itself is no noise.
            before = -RECENT if len(losses.values) >= 2 * RECENT else None
            noise = max(losses.usual_noise, losses.noise(until=before), losses.noise(lag=8, until=before))
            is_far = recent - reference > DEVIATIONS * min(noise, MOST_NOISE)
            if is_far and nats(recent) - nats(reference) > SMALLEST_RISE:
                return self._advice(figures, losses, warmup, recent, reference)
        return None

    def _advice(self, figures: StepFigures, losses: Levels, warmup: int, recent: float, reference: float) -> Advice:
        middle = (recent + reference) / 2
        climb = sum(1 for _ in itertools.takewhile(lambda value: value > middle, reversed(losses.values)))
        losses.start_anew()
        onset = figures.step - climb + 1
        is_early = onset <= max(RECENT, 1.5 * warmup) and not self.has_lengthened
        now = nats(losses.recent(5))
        message = f"the loss diverges: it is at {now:.3g} nats a token and was at {nats(reference):.3g}"
        evidence = (
            f"steps {figures.step - 4} to {figures.step}: median loss {now:.3g}",
            f"learning rate of step {figures.step}: {figures.learning_rate:.2g}; warmup: {warmup} steps",
            f"gradient norm of step {figures.step}: {figures.grad_norm:.3g}",
        )
        if is_early:
            self.has_lengthened = True
            longer = max(2 * warmup, 2 * figures.step)
            return warn(
                "loss-diverges",
                f"{message}. It began about step {onset}, "
                + (f"with a warmup of {warmup} steps" if warmup else "without any warmup")
                + ": the warmup is too short, or the learning rate too high",
                evidence,
                f"set train.warmup_steps: {longer} or more; if that does not help, halve train.learning_rate",
                LengthenWarmup(longer - warmup),
            )
        return warn(
            "loss-diverges",
            f"{message}. It began about step {onset}, after the warmup: the learning rate is too high",
            evidence,
            f"halve train.learning_rate (step {figures.step} had {figures.learning_rate:.2g}), "
            "or lower train.max_grad_norm; the best adapter so far is kept with train.load_best_model_at_end",
            LowerLearningRate(0.5),
        )


@dataclass
class Oscillation:
    """The loss climbs by much and falls again, three times in 64 steps or at every other step.

    Batches drawn at random give independent losses: their von Neumann ratio is 1, give or take 1/8 over 64 steps.
    Where the weights swing, neighbours are alike (far below 1) or opposite (towards 2).
    """

    smoothed: list[float] = field(default_factory=list)

    def check(self, figures: StepFigures, losses: Levels, is_ordered: bool) -> Advice | None:
        self.smoothed.append(losses.recent(5))
        del self.smoothed[:-WINDOW]
        if len(losses.values) < SLOW or is_ordered:
            return None
        noise = losses.noise()
        climbs = _climbs(self.smoothed, max(math.log(1.5), 1.5 * noise))
        if len(climbs) >= 3 and von_neumann_ratio(losses.values) < 0.5:
            return self._advice(figures, f"climbed {len(climbs)} times by more than its noise", climbs)
        if noise > math.log(1.5) and len(losses.values) >= WINDOW and von_neumann_ratio(losses.values) > 1.7:
            jumps = _climbs(losses.values, math.log(1.5))
            if len(jumps) > WINDOW // 4:
                return self._advice(figures, f"jumped {len(jumps)} times, at about every other step,", jumps)
        return None

    def _advice(self, figures: StepFigures, what: str, climbs: list[tuple[float, float]]) -> Advice:
        return warn(
            "loss-oscillates",
            f"the loss oscillates: in the {len(self.smoothed)} steps to step {figures.step} it {what} and fell again",
            tuple(f"from {nats(low):.3g} up to {nats(high):.3g}" for low, high in climbs[:4]),
            f"halve train.learning_rate (step {figures.step} had {figures.learning_rate:.2g}), or raise "
            "train.gradient_accumulation_steps",
            LowerLearningRate(0.5),
        )


def _climbs(values: list[float], least: float) -> list[tuple[float, float]]:
    """The climbs of the log loss, by `least` and by 0.2 nats."""
    return [(low, high) for low, high in climbs_of(values, least) if nats(high) - nats(low) > 0.2]


@dataclass
class Plateau:
    """Two fifths of the run at a high learning rate without a fall of the loss, which is still high.

    Fine-tuning often gains all it can in its first steps and is flat from there on, which is no fault. High is hence
    above 3 nats (a perplexity of 20), or above 1.5 nats and within 5 % of the untrained model's loss.
    """

    means: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    block: list[float] = field(default_factory=list)
    start: float | None = None
    is_flat: bool = False

    def check(self, figures: StepFigures, losses: Levels, total_steps: int, peak_rate: float) -> Advice | None:
        if self.start is None and losses.count == 3:  # Later ones may be far lower.
            self.start = losses.recent()
        self._add(level_of(figures.loss), figures.learning_rate / peak_rate)
        if self.block[0] >= total_steps / 50:
            self.means = [*self.means, self.block[1] / self.block[0]][-20:]
            self.rates = [*self.rates, self.block[2]][-20:]
            self.block = []
            self.is_flat = self._judge(losses, total_steps)
        if not self.is_flat or self.start is None:
            return None
        level = nats(sum(self.means[10:]) / 10)
        return warn(
            "plateau",
            f"the loss has stayed at {level:.3g} nats a token for two fifths of the run, to step {figures.step}, "
            "although the learning rate was high",
            (f"untrained: {nats(self.start):.3g}", f"learning rate of this step: {figures.learning_rate:.2g}"),
            "look at what is trained on (tunesmith check --show 5); try a tenth of the train.learning_rate, or ten "
            "times as much, or a greater adapter.r with adapter.target_modules: all-linear",
        )

    def _add(self, value: float, rate: float) -> None:
        """The block in progress: its steps, the sum of their levels, their lowest share of the peak learning rate."""
        steps, total, lowest = self.block or (0, 0.0, rate)
        self.block = [steps + 1, total + value, min(lowest, rate)]

    def _judge(self, losses: Levels, total_steps: int) -> bool:
        if len(self.means) < 20 or total_steps < 150 or min(self.rates) < 0.5 or self.start is None:
            return False
        before, after = sum(self.means[:10]) / 10, sum(self.means[10:]) / 10
        # The fall is surely (two standard errors) under a tenth: in a short or noisy run, that cannot be known.
        error = losses.noise() * math.sqrt(2 / (total_steps / 5))
        has_learned = after < self.start - 0.05 + 0.5 * losses.noise()  # The start is a median of three.
        is_high = nats(after) > 3 or (nats(after) > 1.5 and not has_learned)
        return is_high and before - after + 2 * error < 0.1


@dataclass
class Overfitting:
    """Validation loss clearly above its best in three validations (or far above in two), while training falls."""

    best: list[float | None] = field(default_factory=list)
    later: list[list[float]] = field(default_factory=list)

    def check(self, step: int, eval_loss: float, losses: Levels) -> Advice | None:
        level = losses.recent(SLOW) if losses.values else None
        if not self.best or eval_loss < (self.best[1] or 0.0):
            self.best, self.later = [step, eval_loss, level], []
            return None
        if level is None:
            return None
        self.later = [*self.later, [step, eval_loss, level]][-3:]
        best_loss, best_level = self.best[1] or 0.0, self.best[2] if self.best[2] is not None else losses.first
        above = [one[1] - best_loss for one in self.later]
        is_up = len(above) == 3 and above[-1] == max(above) and min(above) > max(0.02, 0.05 * best_loss)
        is_far_up = len(above) >= 2 and above[-1] > above[-2] > max(0.05, 0.1 * best_loss)
        has_learned = best_level is not None and best_level - level > max(0.05, 0.5 * losses.noise())
        if not (is_up or is_far_up) or not has_learned or best_level is None:
            return None
        return warn(
            "overfitting",
            f"the run overfits: the validation loss was lowest at step {self.best[0]} ({best_loss:.4g}) and is "
            f"{eval_loss:.4g} at step {step}, while the training loss fell from {nats(best_level):.3g} to "
            f"{nats(level):.3g}",
            tuple(f"step {int(at)}: validation {loss:.4g}, training {nats(now):.3g}" for at, loss, now in self.later),
            "fewer train.num_train_epochs or train.early_stopping_patience: 2 (train.load_best_model_at_end keeps the "
            "best adapter); more or more varied examples; a smaller adapter.r or adapter.lora_dropout: 0.1",
            StopEarly(),
        )
