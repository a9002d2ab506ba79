"""Paired bootstrap: how sure a figure is, and the gain of one model over another on the same examples.

Examples are drawn with replacement, the same ones for both models, and the figure is computed anew for each draw
(Koehn, 2004, "Statistical significance tests for machine translation evaluation"); the interval is that between the
percentiles of these figures (Efron & Tibshirani, 1993, chapter 13).

Every figure here is a function of sums over examples, so a resample is one row of counts times the examples'
statistics, and a thousand resamples are one matrix product.

Shape suffixes: N examples, S resamples, K statistics of one example.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tunesmith.errors import EvaluationError

COUNTS_AT_ONCE = 2**23
"""Most counts of the resampling held together: 64 MB."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A figure over all examples, and the interval it lies in."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedEstimate:
    """A figure of two models on the same examples.

    Args:
        base: the base model's.
        tuned: the tuned model's.
        gain: by how much the tuned model is better: tuned - base, or base - tuned where lower is better.
        confidence: the intervals' coverage.
    """

    base: Estimate
    tuned: Estimate
    gain: Estimate
    confidence: float

    @property
    def is_better(self) -> bool:
        """Whether the interval of the gain lies above zero."""
        return self.gain.low > 0


def paired_bootstrap(
    figure: Callable[[Floats], Floats],
    base_NK: Floats,
    tuned_NK: Floats,
    *,
    resamples: int,
    confidence: float,
    seed: int = 0,
    lower_is_better: bool = False,
) -> PairedEstimate:
    """The figure of both models and the gain, each with its interval.

    Args:
        figure: maps the summed statistics of S corpora, `sums_SK`, to their S values.
        base_NK: statistics of each example for the base model.
        tuned_NK: the same for the tuned model, examples in the same order.
        resamples: how often the examples are drawn anew.
        confidence: the intervals' coverage, as 0.95.
        seed: makes the draws repeatable.
        lower_is_better: as for perplexity; turns the sign of the gain.

    Raises:
        EvaluationError: there is no example, or the two differ in shape.
    """
    if base_NK.shape != tuned_NK.shape or not len(base_NK):
        raise EvaluationError(f"cannot compare {len(base_NK)} examples with {len(tuned_NK)}")
    base_S, tuned_S = (figure(sums_SK) for sums_SK in _resampled_sums(base_NK, tuned_NK, resamples, seed))
    base, tuned = (float(figure(all_NK.sum(axis=0, keepdims=True))[0]) for all_NK in (base_NK, tuned_NK))
    sign = -1 if lower_is_better else 1
    return PairedEstimate(
        base=_estimate(base, base_S, confidence),
        tuned=_estimate(tuned, tuned_S, confidence),
        gain=_estimate(sign * (tuned - base), sign * (tuned_S - base_S), confidence),
        confidence=confidence,
    )


def _resampled_sums(base_NK: Floats, tuned_NK: Floats, resamples: int, seed: int) -> tuple[Floats, Floats]:
    """`sums_SK` of both models; a draw takes the same examples for both."""
    examples = len(base_NK)
    generator = np.random.default_rng(seed)
    base, tuned = [], []
    rows = max(1, COUNTS_AT_ONCE // examples)
    for start in range(0, resamples, rows):
        draws = min(rows, resamples - start)
        drawn = generator.integers(examples, size=(draws, examples))
        # Row s of the counts stands at s * examples in the flat array.
        flat = (drawn + examples * np.arange(draws)[:, None]).ravel()
        counts_SN = np.bincount(flat, minlength=draws * examples).reshape(draws, examples).astype(np.float64)
        base.append(counts_SN @ base_NK)
        tuned.append(counts_SN @ tuned_NK)
    return np.concatenate(base), np.concatenate(tuned)


def _estimate(value: float, resampled_S: Floats, confidence: float) -> Estimate:
    low, high = np.quantile(resampled_S, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(value, float(low), float(high))
