"""Rules on all but the loss: gradients, adapter weights, speed and memory."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from tunesmith.training.advice import Advice, StepFigures, listed, warn
from tunesmith.training.levels import SLOW, SMALLEST_RISE, WINDOW, Levels, median, nats


@dataclass
class Gradients:
    """Norms that vanish although the loss is still high, or lie orders above what they were, for several steps."""

    norms: list[float] = field(default_factory=list)
    early: list[float] = field(default_factory=list)
    first_level: float | None = None

    def explode(self, figures: StepFigures, max_grad_norm: float) -> Advice | None:
        if len(self.early) < 20:
            self.early.append(figures.grad_norm)
        self.norms.append(figures.grad_norm)
        del self.norms[:-WINDOW]
        if figures.grad_norm <= max_grad_norm or len(self.norms) < 26:
            return None
        usual, last = median(self.norms[:-6]), self.norms[-6:]
        if sum(norm > max(30 * usual, max_grad_norm) for norm in last) < 4:
            return None
        return warn(
            "gradients-explode",
            f"the gradients explode: their norm is {figures.grad_norm:.3g} in step {figures.step}, "
            f"where {usual:.3g} was usual",
            (f"norms of the last {len(last)} steps: " + ", ".join(f"{norm:.3g}" for norm in last),),
            "lower train.learning_rate or train.max_grad_norm; with model.precision: fp16, take bf16 or fp32",
        )

    def vanish(self, losses: Levels) -> Advice | None:
        if self.first_level is None:
            self.first_level = losses.first
        if len(self.norms) < 40 or self.first_level is None:
            return None
        recent, early = median(self.norms[-20:]), median(self.early)
        loss = nats(losses.recent())
        if recent > max(1e-3 * early, 1e-7) or loss < max(0.5 * nats(self.first_level), SMALLEST_RISE):
            return None
        return warn(
            "gradients-vanish",
            f"the gradients vanish: the median norm of 20 steps is {recent:.2g}, while the loss is still {loss:.3g}",
            (
                f"median norm of the first 20 steps: {early:.2g}",
                f"loss of the first step: {nats(self.first_level):.3g}",
            ),
            "lower train.learning_rate (a rate far too high can leave a model that no longer answers to its adapter); "
            "with model.precision: fp16, take bf16 or fp32",
        )


@dataclass
class Throughput:
    """For 20 steps, far fewer tokens a second than in the best 32 steps; the first 5 steps do not count.

    Short batches give fewer tokens a second too: the steps must also take longer.
    """

    skipped: int = 0
    slowness: Levels = field(default_factory=Levels)
    seconds: Levels = field(default_factory=Levels)

    def check(self, figures: StepFigures) -> Advice | None:
        if figures.tokens <= 0 or figures.seconds <= 0:
            return None
        if self.skipped < 5:
            self.skipped += 1
            return None
        self.slowness.add(math.log(figures.seconds / figures.tokens), least=SLOW)
        self.seconds.add(math.log(figures.seconds), least=SLOW)
        best = self.slowness.lowest
        if len(self.slowness.values) < 50 or best is None:
            return None
        now = self.slowness.recent(20)
        if now - best < math.log(1.6) or now - best < 2.5 * max(self.slowness.noise(), self.slowness.usual_noise):
            return None
        if self.seconds.recent(20) - (self.seconds.lowest or 0.0) < math.log(1.3):
            return None
        return warn(
            "throughput-drops",
            f"training has slowed down: {math.exp(-now):.3g} tokens a second over the 20 steps to step {figures.step}, "
            f"and {math.exp(-best):.3g} before",
            (f"median seconds a step: {math.exp(self.seconds.recent(20)):.3g}",),
            "see whether another program uses the machine, whether it is hot, or whether memory is short and swapped",
        )


@dataclass
class Memory:
    """Memory that grows as steadily as it did 100 steps ago, and would grow by a fifth more until the end.

    Longer batches make it grow too, but in jumps and ever less: the growth of eight blocks of 25 steps must be spread
    over all of them, and must not have slowed down. The first 50 steps do not count.
    """

    skipped: int = 0
    block: list[int] = field(default_factory=list)
    medians: list[float] = field(default_factory=list)

    def check(self, figures: StepFigures, total_steps: int) -> Advice | None:
        if self.skipped < 50:
            self.skipped += 1
            return None
        self.block.append(figures.memory_bytes)
        if len(self.block) == 25:
            self.medians = [*self.medians, median(self.block)][-9:]
            self.block = []
        if len(self.medians) < 9 or self.medians[-1] <= 1.05 * self.medians[0]:
            return None
        growths = [b - a for a, b in itertools.pairwise(self.medians)]
        growth, now = sum(growths), self.medians[-1]
        by_the_end = now + growth / 200 * (total_steps - figures.step)
        is_steady = min(growths) > 0 and max(growths) < 0.3 * growth and sum(growths[4:]) > 0.75 * sum(growths[:4])
        if not is_steady or by_the_end < 1.2 * now:
            return None
        return warn(
            "memory-creeps",
            f"memory grows steadily: by {growth / 1e9:.3g} GB in 200 steps, to {now / 1e9:.3g} GB at step "
            f"{figures.step}; it would be {by_the_end / 1e9:.3g} GB at the end",
            ("medians of 25 steps, in GB: " + ", ".join(f"{one / 1e9:.3g}" for one in self.medians),),
            "lower train.save_steps, so that a run that dies goes on from near by: the same command resumes in a fresh "
            "process; if it persists without train.report_to, please report it",
        )


@dataclass
class DeadAdapter:
    """Tensors that start at zero (LoRA's B) and are still there, or weights that no longer move.

    Under Adam, even gradients of pure noise move a weight by about the root of the sum of the squared learning rates
    (a random walk of steps as long as the learning rate); a hundredth of that, or 1e-8, is hardly more than zero.
    """

    steps: int = 0
    rate_squares: float = 0.0
    rate_sum: float = 0.0
    seen_steps: int = 0
    seen_rate_sum: float = 0.0
    seen_norms: list[float] = field(default_factory=list)

    def count_step(self, learning_rate: float) -> None:
        self.steps += 1
        self.rate_squares += learning_rate**2
        self.rate_sum += learning_rate

    def check(self, step: int, parameters: Mapping[str, torch.Tensor]) -> Advice | None:
        watched = {name: value for name, value in parameters.items() if _starts_at_zero(name)}
        if self.steps < 20 or not watched:
            return None
        sizes = _root_mean_squares(list(watched.values()))
        least = max(0.01 * math.sqrt(self.rate_squares), 1e-8)
        dead = [name for name, size in zip(watched, sizes, strict=True) if size <= least]
        rate = (self.rate_sum - self.seen_rate_sum) / max(1, self.steps - self.seen_steps)
        is_stuck = sizes == self.seen_norms and self.steps - self.seen_steps >= 10 and rate > 0
        if sizes != self.seen_norms or self.steps - self.seen_steps >= 10:
            self.seen_norms, self.seen_steps, self.seen_rate_sum = sizes, self.steps, self.rate_sum
        if not dead and not is_stuck:
            return None
        evidence = (f"mean learning rate so far: {self.rate_sum / self.steps:.2g}", listed(dead, len(dead)))
        remedy = (
            "see that train.learning_rate is not far too low and that adapter.target_modules names layers that take "
            "part in the answer; adapter.exclude_modules leaves out those that do not"
        )
        if not dead:
            message = f"the adapter's weights do not move any more: all are as they were before step {step}"
            return warn("dead-adapter", message, evidence[:1], remedy)
        what = "the adapter is" if len(dead) == len(watched) else f"{len(dead)} of {len(watched)} adapter parts are"
        message = f"{what} dead: after {self.steps} steps their B matrices are still about zero, so they do nothing"
        return warn("dead-adapter", message, evidence, remedy)


def _starts_at_zero(name: str) -> bool:
    """Whether PEFT starts the tensor at zero, in its default initialisation."""
    return ".lora_B." in name or ".lora_embedding_A." in name


def _root_mean_squares(tensors: Sequence[torch.Tensor]) -> list[float]:
    """The root mean square of each tensor; one wait for the device in all."""
    norms = [torch.linalg.vector_norm(one.detach(), dtype=torch.float32) for one in tensors]
    together: list[float] = torch.stack([norm.to(norms[0].device) for norm in norms]).tolist()
    return [norm / math.sqrt(max(1, one.numel())) for norm, one in zip(together, tensors, strict=True)]
