"""The paired bootstrap, against resampling done by hand and intervals known from statistics."""

import numpy as np
import pytest

from tunesmith.errors import EvaluationError
from tunesmith.evaluation import bootstrap
from tunesmith.evaluation.bootstrap import paired_bootstrap
from tunesmith.evaluation.metrics import mean_from_sums, perplexity_from_sums


def with_ones(values: list[float] | np.ndarray) -> np.ndarray:
    return np.stack([np.asarray(values, dtype=np.float64), np.ones(len(values))], axis=1)


def test_the_interval_of_a_mean_is_about_two_standard_errors() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(5, 2, size=400)
    result = paired_bootstrap(mean_from_sums, with_ones(values), with_ones(values + 1), resamples=4000, confidence=0.95)
    error = values.std() / 20
    assert result.base.value == pytest.approx(values.mean())
    assert result.base.low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert result.base.high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def test_pairing_makes_a_steady_gain_sure() -> None:
    values = np.random.default_rng(0).normal(0, 10, size=50)
    result = paired_bootstrap(
        mean_from_sums, with_ones(values), with_ones(values + 0.5), resamples=500, confidence=0.95
    )
    assert (result.gain.value, result.gain.low, result.gain.high) == pytest.approx((0.5, 0.5, 0.5))
    assert result.is_better
    assert result.base.high - result.base.low > 3


def test_no_gain_is_not_better_and_a_loss_neither() -> None:
    values = np.random.default_rng(0).integers(0, 2, size=60).astype(float)
    other = np.random.default_rng(1).permutation(values)
    chance = paired_bootstrap(mean_from_sums, with_ones(values), with_ones(other), resamples=500, confidence=0.95)
    assert chance.gain.low < 0 < chance.gain.high
    assert not chance.is_better
    assert not paired_bootstrap(
        mean_from_sums, with_ones(values), with_ones(values - 1), resamples=500, confidence=0.95
    ).is_better


def test_lower_is_better_turns_the_sign_of_the_gain_only() -> None:
    base = np.array([[20.0, 10.0], [44.0, 20.0], [9.0, 5.0]])
    tuned = base * [0.5, 1.0]
    result = paired_bootstrap(perplexity_from_sums, base, tuned, resamples=200, confidence=0.9, lower_is_better=True)
    assert result.base.value == pytest.approx(np.exp(73 / 35))
    assert result.tuned.value == pytest.approx(np.exp(36.5 / 35))
    assert result.gain.value == pytest.approx(result.base.value - result.tuned.value)
    assert 0 < result.gain.low < result.gain.value < result.gain.high


def test_draws_are_those_of_a_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "COUNTS_AT_ONCE", 40)
    base = np.random.default_rng(2).normal(size=(9, 2)) + 3
    tuned = base + np.random.default_rng(3).normal(size=(9, 2)) * 0.1
    result = paired_bootstrap(mean_from_sums, base, tuned, resamples=101, confidence=0.8, seed=7)
    generator = np.random.default_rng(7)
    gains = []
    for _ in range(101):
        rows = generator.integers(9, size=9)
        sums = [side[rows].sum(axis=0) for side in (base, tuned)]
        gains.append(sums[1][0] / sums[1][1] - sums[0][0] / sums[0][1])
    assert (result.gain.low, result.gain.high) == pytest.approx(tuple(np.quantile(gains, [0.1, 0.9])))


def test_the_seed_decides() -> None:
    values, other = with_ones([0, 1, 1, 0, 1]), with_ones([1, 1, 1, 0, 1])
    runs = [
        paired_bootstrap(mean_from_sums, values, other, resamples=100, confidence=0.9, seed=seed) for seed in (1, 1, 2)
    ]
    assert runs[0] == runs[1]


def test_sides_of_different_length_cannot_be_compared() -> None:
    with pytest.raises(EvaluationError, match="cannot compare 2 examples with 1"):
        paired_bootstrap(mean_from_sums, with_ones([1, 2]), with_ones([1]), resamples=100, confidence=0.9)
    with pytest.raises(EvaluationError):
        paired_bootstrap(mean_from_sums, np.zeros((0, 2)), np.zeros((0, 2)), resamples=100, confidence=0.9)
