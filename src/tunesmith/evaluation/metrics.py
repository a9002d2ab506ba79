"""BLEU, exact match and perplexity, with what the bootstrap needs of each example.

Shape suffixes: N examples, S resamples, K statistics of one example.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics import BLEU

from tunesmith.errors import EvaluationError, MissingPackageError
from tunesmith.evaluation.rouge import check_references
from tunesmith.evaluation.tokens import script_shares

MAX_ORDER = 4
"""Longest n-gram of BLEU."""

UNSPACED_SHARE = 0.05
"""From this share of Han and kana among the letters, references count as Chinese or Japanese.

So low because in JSON most letters are those of the keys. Nothing is lost on text that is mostly Latin: sacreBLEU's
"zh" cuts that as "13a" does.
"""

KANA_SHARE = 0.1
"""From this share of kana among Han and kana, they count as Japanese: Japanese prose holds about half."""


@dataclass(frozen=True)
class BleuScore:
    """Corpus BLEU.

    Args:
        score: a share in [0, 1]; sacreBLEU prints a hundred times it.
        signature: sacreBLEU's: what was computed, by which version.
        statistics: N rows, what each example adds: length of answer and of reference in tokens, matched n-grams of
            orders 1 to 4, n-grams of orders 1 to 4. `bleu_from_sums` makes the score of their sum.
    """

    score: float
    signature: str
    statistics: NDArray[np.float64] = field(repr=False, compare=False)


def corpus_bleu(answers: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: str) -> BleuScore:
    """Corpus BLEU as sacreBLEU computes it (Papineni et al., 2002; Post, 2018).

    Args:
        answers: one text an example; an empty answer counts.
        references: the accepted texts of each example, at least one.
        tokenize: sacreBLEU's tokenisation; see `choose_tokenize`.

    Raises:
        EvaluationError: there is no answer, the lengths differ, or an example has no reference.
        MissingPackageError: the Japanese tokeniser is not installed.
    """
    check_references(answers, references)
    if not answers:
        raise EvaluationError("there are no answers to score")
    bleu = _bleu(tokenize)
    streams = [
        [accepted[k] if k < len(accepted) else None for accepted in references]
        for k in range(max(map(len, references)))
    ]
    corpus = bleu.corpus_score(list(answers), streams)
    # The counts of one sentence do not depend on effective_order; without it sacreBLEU warns at each sentence.
    by_sentence = _bleu(tokenize, effective_order=True)
    rows = []
    for answer, accepted in zip(answers, references, strict=True):
        one = by_sentence.sentence_score(answer, list(accepted))
        rows.append([one.sys_len, one.ref_len, *one.counts, *one.totals])
    return BleuScore(corpus.score / 100, str(bleu.get_signature()), np.array(rows, dtype=np.float64))


def bleu_from_sums(sums_SK: NDArray[np.float64]) -> NDArray[np.float64]:
    """BLEU of S corpora from their summed statistics, as shares: sacreBLEU's formula with its smoothing "exp".

    An order without a match counts as 1/2, 1/4, ... of one match for the first, second, ... such order; a corpus
    without any match, or without a 4-gram, scores 0.
    """
    lengths_S, reference_lengths_S = sums_SK[:, 0], sums_SK[:, 1]
    matched_SO, total_SO = sums_SK[:, 2 : 2 + MAX_ORDER], sums_SK[:, 2 + MAX_ORDER :]
    smoothed_SO = np.where(matched_SO == 0, 0.5 ** np.cumsum(matched_SO == 0, axis=1), matched_SO)
    precisions_SO = smoothed_SO / np.maximum(total_SO, 1)
    brevity_S = np.exp(np.minimum(0.0, 1 - reference_lengths_S / np.maximum(lengths_S, 1)))
    scores_S = brevity_S * np.exp(np.log(precisions_SO).mean(axis=1))
    defined_S = matched_SO.any(axis=1) & total_SO.all(axis=1)
    return np.where(defined_S, scores_S, 0.0)


def resolve_tokenize(wanted: str, references: Sequence[str]) -> str:
    """sacreBLEU's tokenisation: the recipe's `wanted`, or for "auto" the one that fits the script of the references."""
    return choose_tokenize(references) if wanted == "auto" else wanted


def check_bleu(references: Sequence[str], *, tokenize: str) -> None:
    """Computes BLEU once on a reference, so that a tokeniser that is missing shows before the long work.

    Raises:
        MissingPackageError: the Japanese tokeniser is needed and not installed.
    """
    if references:
        corpus_bleu([references[0]], [[references[0]]], tokenize=resolve_tokenize(tokenize, references))


def choose_tokenize(references: Sequence[str]) -> str:
    """sacreBLEU's tokenisation for the script of `references`: "ja-mecab" for kana, "zh" for Han, else "13a"."""
    han, kana = script_shares(references)
    if han + kana < UNSPACED_SHARE:
        return "13a"
    return "ja-mecab" if kana >= KANA_SHARE * (han + kana) else "zh"


def exact_matches(answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """1.0 for each answer equal to one of its references, else 0.0.

    Space around a text does not count, and composed and decomposed characters are the same (NFC); all else does:
    letter case, punctuation, the spaces within.

    Raises:
        EvaluationError: the lengths differ, or an example has no reference.
    """
    check_references(answers, references)
    return [
        float(bool(answer.strip()) and _normal(answer) in {_normal(reference) for reference in accepted})
        for answer, accepted in zip(answers, references, strict=True)
    ]


def perplexity(likelihoods: Sequence[tuple[float, int]]) -> float:
    """exp of the mean negative log-likelihood over all tokens of all examples.

    Args:
        likelihoods: for each example the sum in nats, and the number of tokens.

    Raises:
        EvaluationError: there is no token.
    """
    if not sum(count for _, count in likelihoods):
        raise EvaluationError("there are no reference tokens to compute the perplexity of")
    return float(perplexity_from_sums(np.array(likelihoods, dtype=np.float64).sum(axis=0, keepdims=True))[0])


def perplexity_from_sums(sums_SK: NDArray[np.float64]) -> NDArray[np.float64]:
    """Perplexity of S corpora from their summed (negative log-likelihood, tokens)."""
    # A resample may hold none but examples without a token; exp(700) is near the largest float.
    return np.exp(np.minimum(sums_SK[:, 0] / np.maximum(sums_SK[:, 1], 1), 700.0))


def mean_from_sums(sums_SK: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of S corpora from their summed (value, 1)."""
    return sums_SK[:, 0] / sums_SK[:, 1]


def _bleu(tokenize: str, *, effective_order: bool = False) -> Any:
    try:
        return BLEU(tokenize=tokenize, effective_order=effective_order)
    except (RuntimeError, ImportError, NameError) as error:
        if tokenize != "ja-mecab":
            raise
        raise MissingPackageError("MeCab", extra="ja", needed_for="BLEU with Japanese tokenisation") from error


def _normal(text: str) -> str:
    return unicodedata.normalize("NFC", text.strip())
