"""Base and tuned model on the test set: answers, scores side by side, and the report with its gates.

`answer_test_set` is called once a model; `build_report` needs no model any more.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tunesmith.config import EvaluateSection
from tunesmith.data.records import TokenizedExample
from tunesmith.errors import EvaluationError
from tunesmith.evaluation.bootstrap import PairedEstimate, paired_bootstrap
from tunesmith.evaluation.gates import check_gates
from tunesmith.evaluation.latency import Latency
from tunesmith.evaluation.metrics import (
    bleu_from_sums,
    corpus_bleu,
    exact_matches,
    mean_from_sums,
    perplexity,
    perplexity_from_sums,
    resolve_tokenize,
)
from tunesmith.evaluation.rouge import SIGNATURE as ROUGE_SIGNATURE
from tunesmith.evaluation.rouge import rouge_l_scores
from tunesmith.models.generation import generate, token_log_likelihood
from tunesmith.report import Report, Sample, Severity, Table

FEW_EXAMPLES = 30
"""Below this many test examples an interval is too wide, and too roughly known, to lean on."""

UNFINISHED_SHARE = 0.05
"""From this share of cut answers on, the tuned model is said not to stop."""

METRIC_LABELS = {"bleu": "BLEU", "rouge_l": "ROUGE-L", "exact_match": "Exact match", "perplexity": "Perplexity"}

SHOWN = 3


@dataclass(frozen=True)
class TestItem:
    """One test example, prepared.

    Args:
        prompt_ids: the conversation up to the last answer, with the generation prompt.
        reference: the last answer as the data have it.
        prompt_text: what a reader is shown of the prompt.
        example: the whole conversation, labels on its answers; the perplexity is that of these.
    """

    __test__: ClassVar[bool] = False  # pytest would take the class for a test

    prompt_ids: tuple[int, ...]
    reference: str
    prompt_text: str
    example: TokenizedExample


@dataclass(frozen=True)
class SideResult:
    """One model's answers to all items, in their order.

    Args:
        answers: the texts.
        finished: whether each ended by itself, not at the limit.
        likelihoods: for each item the negative log-likelihood of its labelled tokens in nats, and their number.
        tokens: tokens of all answers.
        seconds: time it took to generate them, in batches.
    """

    answers: tuple[str, ...]
    finished: tuple[bool, ...]
    likelihoods: tuple[tuple[float, int], ...]
    tokens: int
    seconds: float


def answer_test_set(
    model: nn.Module,
    items: Sequence[TestItem],
    *,
    decode: Callable[[Sequence[int]], str],
    max_new_tokens: int,
    stop_token_ids: Sequence[int],
    pad_token_id: int,
    batch_size: int,
    name: str,
) -> SideResult:
    """Answers every item greedily, and scores its reference.

    Args:
        model: the base or the tuned model.
        items: the test set.
        decode: an answer's token ids to text.
        max_new_tokens: longest answer.
        stop_token_ids: tokens that end an answer.
        pad_token_id: fills a batch.
        batch_size: items handled together.
        name: "base" or "tuned", for the progress line.

    Raises:
        ModelError: an item does not fit the model's context.
    """
    started = time.monotonic()
    answers = generate(
        model,
        [item.prompt_ids for item in items],
        max_new_tokens=max_new_tokens,
        stop_token_ids=stop_token_ids,
        pad_token_id=pad_token_id,
        batch_size=batch_size,
        what=f"Answering the test set ({name} model)",
    )
    seconds = time.monotonic() - started
    likelihoods = token_log_likelihood(
        model,
        [(item.example.input_ids, item.example.labels) for item in items],
        batch_size=batch_size,
        pad_token_id=pad_token_id,
        what=f"Perplexity of the references ({name} model)",
    )
    return SideResult(
        answers=tuple(decode(answer.token_ids) for answer in answers),
        finished=tuple(answer.finished for answer in answers),
        likelihoods=tuple(likelihoods),
        tokens=sum(len(answer.token_ids) for answer in answers),
        seconds=seconds,
    )


@dataclass(frozen=True)
class Scores:
    """The metrics of both models.

    Args:
        estimates: by metric: bleu, rouge_l, exact_match, perplexity.
        bleu_signature: sacreBLEU's.
    """

    estimates: dict[str, PairedEstimate]
    bleu_signature: str


def compare_sides(
    items: Sequence[TestItem], base: SideResult, tuned: SideResult, section: EvaluateSection, *, seed: int = 0
) -> Scores:
    """All metrics of both models with paired-bootstrap intervals.

    Raises:
        EvaluationError: there is no item, or a side has another number of answers.
        MissingPackageError: the Japanese tokeniser is needed and not installed.
    """
    if not items:
        raise EvaluationError("the test set holds nothing to score", place="data.test")
    references = [[item.reference] for item in items]
    tokenize = resolve_tokenize(section.tokenize, [item.reference for item in items])
    bleus = [corpus_bleu(side.answers, references, tokenize=tokenize) for side in (base, tuned)]

    def pair(
        figure: Callable[[NDArray[np.float64]], NDArray[np.float64]],
        sides: Sequence[NDArray[np.float64]],
        *,
        lower_is_better: bool = False,
    ) -> PairedEstimate:
        return paired_bootstrap(
            figure,
            sides[0],
            sides[1],
            resamples=section.bootstrap_samples,
            confidence=section.confidence,
            seed=seed,
            lower_is_better=lower_is_better,
        )

    rouges = [_with_ones(rouge_l_scores(side.answers, references)) for side in (base, tuned)]
    matches = [_with_ones(exact_matches(side.answers, references)) for side in (base, tuned)]
    for side in (base, tuned):
        perplexity(side.likelihoods)  # refuses a test set without a labelled token
    likelihoods = [np.array(side.likelihoods, dtype=np.float64) for side in (base, tuned)]
    return Scores(
        estimates={
            "bleu": pair(bleu_from_sums, [bleu.statistics for bleu in bleus]),
            "rouge_l": pair(mean_from_sums, rouges),
            "exact_match": pair(mean_from_sums, matches),
            "perplexity": pair(perplexity_from_sums, likelihoods, lower_is_better=True),
        },
        bleu_signature=bleus[1].signature,
    )


def build_report(
    items: Sequence[TestItem],
    base: SideResult,
    tuned: SideResult,
    latencies: Mapping[str, Latency],
    section: EvaluateSection,
    *,
    seed: int = 0,
) -> Report:
    """The report of the evaluate stage: an error finding for each gate that is missed.

    Args:
        items: the test set.
        base: the base model's answers.
        tuned: the tuned model's.
        latencies: "base" and "tuned", as far as they were measured.
        section: the recipe's evaluate section.
        seed: of the bootstrap.

    Raises:
        EvaluationError: there is no item, or a side has another number of answers.
        MissingPackageError: the Japanese tokeniser is needed and not installed.
    """
    scores = compare_sides(items, base, tuned, section, seed=seed)
    report = Report("evaluate", f"Base and tuned model on {len(items)} test examples")
    _add_scores(report, scores)
    _add_answers(report, base, tuned)
    _add_latencies(report, latencies)
    report.add_figure("test_examples", "Test examples", len(items))
    report.add_figure("bleu_signature", "BLEU signature", scores.bleu_signature)
    report.add_figure("rouge_signature", "ROUGE signature", ROUGE_SIGNATURE)
    report.tables.append(_score_table(scores, base, tuned))
    if latencies:
        report.tables.append(_latency_table(latencies))
    check_gates(report, scores.estimates, latencies.get("tuned"), section.targets, METRIC_LABELS)
    _add_warnings(report, items, tuned, scores)
    _add_samples(report, items, base, tuned, section.samples)
    return report


def _add_scores(report: Report, scores: Scores) -> None:
    for name, paired in scores.estimates.items():
        label = METRIC_LABELS[name]
        for side, estimate in (("tuned", paired.tuned), ("base", paired.base), ("gain", paired.gain)):
            what = {"tuned": "tuned model", "base": "base model", "gain": "gain over the base model"}[side]
            interval = f"{100 * paired.confidence:g} % interval {estimate.low:.4g} to {estimate.high:.4g}"
            report.add_figure(f"{side}_{name}", f"{label}, {what}", estimate.value, detail=interval)


def _add_answers(report: Report, base: SideResult, tuned: SideResult) -> None:
    for name, side in (("tuned", tuned), ("base", base)):
        report.add_figure(f"{name}_unfinished_answers", f"Answers cut at the limit, {name} model", _unfinished(side))
        report.add_figure(f"{name}_empty_answers", f"Empty answers, {name} model", _empty(side))
        report.add_figure(
            f"{name}_batch_tokens_per_second",
            f"Speed in batches, {name} model",
            side.tokens / max(side.seconds, 1e-9),
            "tokens/s",
        )


def _add_latencies(report: Report, latencies: Mapping[str, Latency]) -> None:
    for name, latency in latencies.items():
        where = f"{name} model"
        alone = f"{latency.requests} requests, one at a time"
        for key, label, value, unit in (
            ("time_to_first_token_ms", "Time to first token", latency.time_to_first_token_ms, "ms"),
            ("ms_per_token", "Time per token, median", latency.ms_per_token, "ms"),
            ("ms_per_token_p95", "Time per token, 95th percentile", latency.ms_per_token_p95, "ms"),
            ("tokens_per_second", "Speed", latency.tokens_per_second, "tokens/s"),
            ("peak_memory_gb", "Peak memory of a fresh process", latency.peak_memory_bytes / 1e9, "GB"),
        ):
            report.add_figure(f"{name}_{key}", f"{label}, {where}", value, unit, alone)


def _score_table(scores: Scores, base: SideResult, tuned: SideResult) -> Table:
    rows: list[tuple[str | float | int | None, ...]] = []
    for name, paired in scores.estimates.items():
        interval = f"{paired.gain.low:.3g} to {paired.gain.high:.3g}"
        rows.append((METRIC_LABELS[name], paired.base.value, paired.tuned.value, paired.gain.value, interval))
    rows.append(("Answers cut at the limit", _unfinished(base), _unfinished(tuned), None, None))
    rows.append(("Empty answers", _empty(base), _empty(tuned), None, None))
    confidence = next(iter(scores.estimates.values())).confidence
    columns = ("metric", "base", "tuned", "gain", f"{100 * confidence:g} % interval of the gain")
    return Table("Base and tuned model (gain is positive where the tuned model is better)", columns, tuple(rows))


def _latency_table(latencies: Mapping[str, Latency]) -> Table:
    measured = list(latencies.values())
    return Table(
        "One request at a time, in a fresh process",
        ("measure", *latencies),
        (
            ("time to first token (ms)", *(one.time_to_first_token_ms for one in measured)),
            ("time per token, median (ms)", *(one.ms_per_token for one in measured)),
            ("time per token, 95th percentile (ms)", *(one.ms_per_token_p95 for one in measured)),
            ("tokens/s", *(one.tokens_per_second for one in measured)),
            ("peak memory (GB)", *(one.peak_memory_bytes / 1e9 for one in measured)),
        ),
    )


def _add_warnings(report: Report, items: Sequence[TestItem], tuned: SideResult, scores: Scores) -> None:
    worse = [METRIC_LABELS[name] for name, paired in scores.estimates.items() if paired.gain.high < 0]
    if worse:
        report.add_finding(
            Severity.WARNING,
            "worse-than-base",
            f"the tuned model is worse than the base in {', '.join(worse)}: the interval of the gain lies below zero",
            remedy="look at the samples; lower train.learning_rate, train for fewer epochs, or check the training data",
        )
    unfinished = [i for i, finished in enumerate(tuned.finished) if not finished]
    if len(unfinished) > UNFINISHED_SHARE * len(items):
        report.add_finding(
            Severity.WARNING,
            "answers-do-not-stop",
            f"{len(unfinished)} of {len(items)} answers of the tuned model were cut at the limit of new tokens",
            evidence=tuple(str(items[i].example.place) for i in unfinished[:SHOWN]),
            remedy="check that the stop token is trained on (tunesmith check --show), train longer, "
            "or raise evaluate.max_new_tokens if the answers are meant to be that long",
        )
    empty = [i for i, answer in enumerate(tuned.answers) if not answer.strip()]
    if empty:
        report.add_finding(
            Severity.WARNING,
            "empty-answers",
            f"{len(empty)} of {len(items)} answers of the tuned model are empty; each scores 0",
            evidence=tuple(str(items[i].example.place) for i in empty[:SHOWN]),
            remedy="look for empty answers in the training data, or train for fewer steps at a lower rate",
        )
    if len(items) < FEW_EXAMPLES:
        report.add_finding(
            Severity.WARNING,
            "few-test-examples",
            f"with {len(items)} test examples the intervals are wide and rough",
            remedy=f"add examples to data.test; at least {FEW_EXAMPLES}, better some hundreds",
        )


def _add_samples(report: Report, items: Sequence[TestItem], base: SideResult, tuned: SideResult, count: int) -> None:
    """The first `count` items: a choice by score would flatter one side."""
    for item, by_base, by_tuned in list(zip(items, base.answers, tuned.answers, strict=True))[:count]:
        texts = (("prompt", item.prompt_text), ("reference", item.reference), ("base", by_base), ("tuned", by_tuned))
        report.samples.append(Sample(str(item.example.place), texts))


def _with_ones(values: Sequence[float]) -> NDArray[np.float64]:
    """Statistics of a mean: (value, 1) an example."""
    return np.stack([np.array(values, dtype=np.float64), np.ones(len(values))], axis=1)


def _unfinished(side: SideResult) -> int:
    return sum(not finished for finished in side.finished)


def _empty(side: SideResult) -> int:
    return sum(not answer.strip() for answer in side.answers)
