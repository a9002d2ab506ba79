"""Answering a test set, and the report that compares base and tuned model."""

import json
from dataclasses import replace

import pytest

from tests.tiny import tiny_model
from tunesmith.config import EvaluateSection
from tunesmith.data.records import IGNORED_LABEL, Place, TokenizedExample
from tunesmith.errors import EvaluationError
from tunesmith.evaluation.evaluator import (
    SideResult,
    TestItem,
    answer_test_set,
    build_report,
    compare_sides,
)
from tunesmith.evaluation.gates import check_gates
from tunesmith.evaluation.latency import Latency
from tunesmith.models.generation import stream
from tunesmith.report import Report, Severity

REFERENCES = [f"the order holds {n} red apples and {n + 1} green pears" for n in range(40)]
LATENCY = Latency(8, 100, 200.0, 30.0, 45.0, 28.0, 2_500_000_000)


def item(reference: str, number: int = 1) -> TestItem:
    example = TokenizedExample((1, 2, 3), (IGNORED_LABEL, 2, 3), Place("test.jsonl", number))
    return TestItem((1,), reference, f"question {number}", example)


def side(answers: list[str], nll: float = 2.0, **changes: object) -> SideResult:
    result = SideResult(tuple(answers), (True,) * len(answers), ((nll, 2),) * len(answers), 200, 4.0)
    return replace(result, **changes)  # type: ignore[arg-type]


ITEMS = [item(reference, n + 1) for n, reference in enumerate(REFERENCES)]
BASE = side(["I do not know what you mean by that"] * 40, nll=4.0)
TUNED = side([*REFERENCES[:30], *["the order holds nothing at all today"] * 10], nll=1.0)


def section(**changes: object) -> EvaluateSection:
    return EvaluateSection.model_validate({"bootstrap_samples": 200, "samples": 2, **changes})


def report(
    tuned: SideResult = TUNED, *, targets: dict[str, object] | None = None, latencies: dict[str, Latency] | None = None
) -> Report:
    measured = {"base": LATENCY, "tuned": LATENCY} if latencies is None else latencies
    return build_report(ITEMS, BASE, tuned, measured, section(targets=targets or {}))


def codes(result: Report, severity: Severity) -> list[str]:
    return [finding.code for finding in result.findings if finding.severity is severity]


def test_every_figure_of_both_models_is_reported() -> None:
    result = report()
    assert result.figure("tuned_exact_match") == 0.75
    assert result.figure("base_exact_match") == 0.0
    assert result.figure("gain_exact_match") == 0.75
    assert result.figure("base_perplexity") == pytest.approx(7.389, abs=1e-3)
    assert result.figure("tuned_perplexity") == pytest.approx(1.6487, abs=1e-3)
    assert result.figure("gain_perplexity") == pytest.approx(7.389 - 1.6487, abs=1e-3)
    assert result.figure("tuned_bleu") > 0.7  # type: ignore[operator]
    assert result.figure("tuned_rouge_l") > 0.75  # type: ignore[operator]
    assert "tok:13a" in str(result.figure("bleu_signature"))
    assert "beta:1.2" in str(result.figure("rouge_signature"))
    assert result.figure("tuned_peak_memory_gb") == 2.5
    assert result.figure("tuned_ms_per_token_p95") == 45.0
    assert result.figure("tuned_batch_tokens_per_second") == 50.0
    (shown,) = [figure for figure in result.figures if figure.name == "tuned_exact_match"]
    assert shown.detail.startswith("95 % interval 0.")
    assert result.passed
    assert Report.from_dict(json.loads(result.to_json())) == result


def test_tables_hold_base_and_tuned_side_by_side() -> None:
    scores, latencies = report().tables
    assert [row[0] for row in scores.rows] == [
        "BLEU", "ROUGE-L", "Exact match", "Perplexity", "Answers cut at the limit", "Empty answers",
    ]  # fmt: skip
    assert scores.rows[2][:4] == ("Exact match", 0.0, 0.75, 0.75)
    assert latencies.columns == ("measure", "base", "tuned")
    assert len(report(latencies={}).tables) == 1


def test_samples_are_the_first_ones_with_both_answers() -> None:
    samples = report().samples
    assert [sample.title for sample in samples] == ["test.jsonl:1", "test.jsonl:2"]
    assert dict(samples[0].texts) == {
        "prompt": "question 1",
        "reference": REFERENCES[0],
        "base": BASE.answers[0],
        "tuned": REFERENCES[0],
    }


def test_met_targets_are_notes() -> None:
    everything = {
        "bleu": 0.5, "rouge_l": 0.5, "exact_match": 0.75, "perplexity": 2, "time_to_first_token_ms": 200,
        "ms_per_token": 30, "peak_memory_gb": 3, "better_than_base": ["bleu", "rouge_l", "exact_match", "perplexity"],
    }  # fmt: skip
    result = report(targets=everything)
    assert result.passed
    assert codes(result, Severity.NOTE) == ["target-met"] * 7 + ["better-than-base"] * 4


@pytest.mark.parametrize(
    ("target", "value"),
    [
        ("bleu", 0.99),
        ("rouge_l", 0.99),
        ("exact_match", 0.76),
        ("perplexity", 1.5),
        ("time_to_first_token_ms", 199.0),
        ("ms_per_token", 29.9),
        ("peak_memory_gb", 2.4),
    ],
)
def test_a_missed_target_is_an_error_with_figure_target_and_remedy(target: str, value: float) -> None:
    result = report(targets={target: value})
    assert codes(result, Severity.ERROR) == ["target-missed"]
    (finding,) = result.errors
    assert f"{value:g}" in finding.message
    assert ("model.precision" in str(finding.remedy)) == (target.endswith(("_ms", "_token", "_gb")))


def test_the_remedy_follows_the_metric_not_what_it_is_called() -> None:
    result = Report("evaluate", "Evaluation")
    scores = compare_sides(ITEMS, BASE, TUNED, section())
    labels = dict.fromkeys(scores.estimates, "Perplexität")
    check_gates(
        result, scores.estimates, LATENCY, section(targets={"perplexity": 1, "ms_per_token": 1}).targets, labels
    )
    assert ["model.precision" in str(finding.remedy) for finding in result.errors] == [False, True]


def test_a_target_that_was_not_measured_is_missed() -> None:
    assert codes(report(targets={"ms_per_token": 5}, latencies={}), Severity.ERROR) == ["target-not-measured"]
    one_token = {"tuned": replace(LATENCY, ms_per_token=None, ms_per_token_p95=None)}
    assert codes(report(targets={"ms_per_token": 5}, latencies=one_token), Severity.ERROR) == ["target-not-measured"]


def test_a_gain_that_may_be_chance_is_not_better() -> None:
    lucky = side([BASE.answers[0]] * 39 + [REFERENCES[39]], nll=4.0)
    result = report(lucky, targets={"better_than_base": ["exact_match", "perplexity"]})
    assert codes(result, Severity.ERROR) == ["not-better-than-base"] * 2
    assert "Exact match" in result.errors[0].message


def test_a_perplexity_that_is_not_a_number_fails_its_gates() -> None:
    broken = replace(TUNED, likelihoods=((float("nan"), 2),) * 40)
    result = report(broken, targets={"perplexity": 100, "better_than_base": ["perplexity"]})
    assert codes(result, Severity.ERROR) == ["target-missed", "not-better-than-base"]


def test_answers_that_do_not_stop_or_are_empty_are_warned_of() -> None:
    tuned = side(["", *REFERENCES[1:]], finished=(True,) * 37 + (False,) * 3)
    result = report(tuned)
    assert codes(result, Severity.WARNING) == ["answers-do-not-stop", "empty-answers"]
    assert result.findings[0].evidence == ("test.jsonl:38", "test.jsonl:39", "test.jsonl:40")
    assert result.figure("tuned_exact_match") == pytest.approx(39 / 40)
    assert result.figure("tuned_unfinished_answers") == 3
    two = side(REFERENCES, finished=(True,) * 38 + (False,) * 2)
    assert codes(report(two), Severity.WARNING) == []


def test_a_tuned_model_that_lost_is_warned_of() -> None:
    result = build_report(ITEMS, TUNED, BASE, {}, section())
    (finding,) = [finding for finding in result.findings if finding.code == "worse-than-base"]
    assert "Exact match" in finding.message
    assert result.passed


def test_few_examples_are_warned_of() -> None:
    few = build_report(ITEMS[:5], side(["a b c d"] * 5), side(REFERENCES[:5]), {}, section())
    assert codes(few, Severity.WARNING) == ["few-test-examples"]


def test_chinese_references_choose_their_tokenisation_unless_the_recipe_does() -> None:
    items = [item("今天天气很好我们去公园")] * 3
    answers = side(["今天天气很好我们去学校"] * 3)
    chosen = compare_sides(items, answers, answers, section())
    assert "tok:zh" in chosen.bleu_signature
    assert chosen.estimates["bleu"].tuned.value > 0.5
    assert chosen.estimates["rouge_l"].tuned.value == pytest.approx(9 / 11)
    fixed = compare_sides(items, answers, answers, section(tokenize="char"))
    assert "tok:char" in fixed.bleu_signature


def test_an_empty_test_set_is_an_error() -> None:
    nothing = side([])
    with pytest.raises(EvaluationError, match="nothing to score"):
        build_report([], nothing, nothing, {}, section())


def test_the_test_set_is_answered_and_scored_in_order() -> None:
    model = tiny_model()

    def example(*ids: int) -> TokenizedExample:
        return TokenizedExample(ids, (IGNORED_LABEL, *ids[1:]), Place("t", 1))

    items = [
        TestItem((5, 6, 7), "x", "p", example(5, 6, 7, 8)),
        TestItem((9,), "y", "p", example(9, 1)),
        TestItem((3, 3), "z", "p", example(3, 3, 3)),
    ]
    result = answer_test_set(
        model,
        items,
        decode=lambda ids: ",".join(map(str, ids)),
        max_new_tokens=4,
        stop_token_ids=[260],
        pad_token_id=256,
        batch_size=2,
        name="base",
    )
    expected = [list(stream(model, i.prompt_ids, max_new_tokens=4, stop_token_ids=[260])) for i in items]
    assert result.answers == tuple(",".join(map(str, ids)) for ids in expected)
    assert result.finished == tuple(len(ids) < 4 for ids in expected)
    assert [count for _, count in result.likelihoods] == [3, 1, 2]
    assert result.tokens == sum(map(len, expected))
