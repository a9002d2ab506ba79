"""BLEU against sacreBLEU, exact match and perplexity."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.errors import EvaluationError, MissingPackageError
from tunesmith.evaluation.metrics import (
    bleu_from_sums,
    check_bleu,
    choose_tokenize,
    corpus_bleu,
    exact_matches,
    mean_from_sums,
    perplexity,
    perplexity_from_sums,
)

DATA = Path(__file__).parents[2] / "data"

SENTENCES = [
    "the cat sat on the mat today",
    "a dog sat on the mat",
    "the cat sat",
    "the cat sat on a warm red mat near the door",
    "",
    "nothing in common",
]
words = st.lists(st.sampled_from(["the", "cat", "sat", "on", "mat", "a"]), max_size=9).map(" ".join)


def test_score_and_signature_are_sacrebleus() -> None:
    references = ["the cat sat on the mat", "a dog sat on a mat", "the cat sat down", *SENTENCES[3:4], "a b", "x y z w"]
    result = corpus_bleu(SENTENCES, [[r] for r in references], tokenize="13a")
    metric = sacrebleu.metrics.BLEU(tokenize="13a")
    assert result.score == pytest.approx(metric.corpus_score(SENTENCES, [references]).score / 100)
    assert 0.2 < result.score < 1
    assert result.signature == str(metric.get_signature())
    assert "tok:13a" in result.signature
    assert f"version:{sacrebleu.__version__}" in result.signature


@given(pairs=st.lists(st.tuples(words, words), min_size=1, max_size=6), seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_a_resample_scores_as_sacrebleu_scores_its_texts(pairs: list[tuple[str, str]], seed: int) -> None:
    answers, references = [a for a, _ in pairs], [r for _, r in pairs]
    statistics = corpus_bleu(answers, [[r] for r in references], tokenize="13a").statistics
    drawn = np.random.default_rng(seed).integers(len(pairs), size=(3, len(pairs)))
    scores = bleu_from_sums(np.stack([statistics[rows].sum(axis=0) for rows in drawn]))
    for rows, score in zip(drawn, scores, strict=True):
        texts, accepted = [answers[i] for i in rows], [references[i] for i in rows]
        expected = sacrebleu.metrics.BLEU(tokenize="13a").corpus_score(texts, [accepted]).score
        assert score == pytest.approx(expected / 100, abs=1e-9)


def test_examples_may_have_different_numbers_of_references() -> None:
    result = corpus_bleu(["a b c d", "e f g h"], [["a b c d"], ["x", "e f g h"]], tokenize="13a")
    assert result.score == pytest.approx(1.0)
    assert bleu_from_sums(result.statistics.sum(axis=0, keepdims=True))[0] == pytest.approx(1.0)


def test_chinese_needs_its_own_tokenisation() -> None:
    answers, references = ["今天天气很好我们去公园"], [["今天天气很好我们去学校"]]
    assert corpus_bleu(answers, references, tokenize="zh").score > 0.5
    assert corpus_bleu(answers, references, tokenize="13a").score == 0


def test_empty_answers_count() -> None:
    full = corpus_bleu(["a b c d e"] * 2, [["a b c d e"]] * 2, tokenize="13a").score
    half = corpus_bleu(["a b c d e", ""], [["a b c d e"]] * 2, tokenize="13a").score
    assert half < full
    assert corpus_bleu([""], [["a"]], tokenize="13a").score == 0


def test_japanese_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from sacrebleu.tokenizers import tokenizer_ja_mecab

    monkeypatch.setattr(tokenizer_ja_mecab, "MeCab", None)
    with pytest.raises(MissingPackageError, match=r"tunesmith\[ja\]"):
        corpus_bleu(["はい"], [["はい"]], tokenize="ja-mecab")


@pytest.mark.parametrize(
    ("references", "tokenize"),
    [
        (["The cat sat."], "13a"),
        (["今天天气很好", "我们去公园"], "zh"),
        (['{"产品": "苹果", "数量": 3}'], "zh"),
        (["今日は天気がいいです"], "ja-mecab"),
        (["コーヒーをください"], "ja-mecab"),
        (["He said 好 to everyone in the room, and they said it back."], "13a"),
        (["안녕하세요"], "13a"),
        (["123", ""], "13a"),
        ([], "13a"),
    ],
)
def test_tokenisation_follows_the_script(references: list[str], tokenize: str) -> None:
    assert choose_tokenize(references) == tokenize


@pytest.mark.parametrize(("folder", "tokenize"), [("orders", "13a"), ("orders_zh", "zh")])
def test_tokenisation_fits_the_data_sets_of_the_project(folder: str, tokenize: str) -> None:
    lines = (DATA / folder / "test.jsonl").read_text(encoding="utf-8").splitlines()
    references = [json.loads(line)["messages"][-1]["content"] for line in lines]
    assert choose_tokenize(references) == tokenize
    assert choose_tokenize(references[:8]) == tokenize


def test_chinese_tokenisation_does_no_harm_to_english() -> None:
    references = [
        [text] for text in ("the cat, which sat on 3.5 mats, left!", "it's a dog-like cat (small)", "yes: a b c d")
    ]
    answers = ["the cat, which sat on 3.5 mats", "it's a cat-like dog (small)", "yes: a b c"]
    scores = [corpus_bleu(answers, references, tokenize=name).score for name in ("13a", "zh")]
    assert scores[0] == pytest.approx(scores[1])


def test_exact_match_forgives_outer_space_and_composition_only() -> None:
    answers = [" a\n", "caf\u00e9", "A", "a  b", "", "b"]
    references = [["a"], ["cafe\u0301"], ["a"], ["a b"], [""], ["a", "b"]]
    assert exact_matches(answers, references) == [1, 1, 0, 0, 0, 1]


def test_perplexity_weighs_tokens_not_examples() -> None:
    assert perplexity([(math.log(2), 1), (math.log(8) * 3, 3)]) == pytest.approx(2 ** (10 / 4))
    assert perplexity_from_sums(np.array([[0.0, 0.0]]))[0] == 1.0
    with pytest.raises(EvaluationError, match="no reference tokens"):
        perplexity([(0.0, 0)])


def test_mean_from_sums() -> None:
    assert mean_from_sums(np.array([[3.0, 4.0]]))[0] == 0.75


def test_no_answers_is_an_error() -> None:
    with pytest.raises(EvaluationError, match="no answers"):
        corpus_bleu([], [], tokenize="13a")


def test_a_missing_tokeniser_shows_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    from sacrebleu.tokenizers import tokenizer_ja_mecab

    monkeypatch.setattr(tokenizer_ja_mecab, "MeCab", None)
    check_bleu(["An answer in English."], tokenize="auto")
    with pytest.raises(MissingPackageError, match="tunesmith"):
        check_bleu(["これはペンです"], tokenize="auto")
