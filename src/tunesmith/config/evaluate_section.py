"""The recipe's `evaluate` section."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tunesmith.config.section import Section


class Targets(Section):
    """Gates: an evaluation that misses one fails with exit code 1.

    Args:
        bleu: lowest corpus BLEU, a share in [0, 1].
        rouge_l: lowest ROUGE-L, a share in [0, 1].
        exact_match: lowest share of answers equal to the reference.
        perplexity: highest perplexity of the references.
        time_to_first_token_ms: highest median.
        ms_per_token: highest median of the time between tokens, one request at a time.
        peak_memory_gb: highest peak memory of a fresh process that answers, in 10^9 bytes.
        better_than_base: metrics whose paired interval of the gain over the base model must exclude zero.
    """

    bleu: Annotated[float, Field(ge=0, le=1)] | None = None
    rouge_l: Annotated[float, Field(ge=0, le=1)] | None = None
    exact_match: Annotated[float, Field(ge=0, le=1)] | None = None
    perplexity: Annotated[float, Field(ge=1)] | None = None
    time_to_first_token_ms: Annotated[float, Field(gt=0)] | None = None
    ms_per_token: Annotated[float, Field(gt=0)] | None = None
    peak_memory_gb: Annotated[float, Field(gt=0)] | None = None
    better_than_base: list[Literal["bleu", "rouge_l", "exact_match", "perplexity"]] = Field(default_factory=list)


class EvaluateSection(Section):
    """How the test set is answered and scored.

    Args:
        max_new_tokens: longest answer; auto takes 1.5 times the longest reference.
        batch_size: requests answered together.
        limit: score only the first so many test examples.
        tokenize: sacreBLEU's tokenisation; auto takes zh or ja-mecab by the references' script, else 13a.
        bootstrap_samples: resamples behind each interval.
        confidence: the intervals' coverage.
        latency_requests: requests timed one at a time in a fresh process; 0 leaves timing out.
        samples: answers shown side by side.
        targets: the gates.
    """

    max_new_tokens: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    batch_size: int = Field(16, ge=1)
    limit: Annotated[int, Field(ge=1)] | None = None
    tokenize: Literal["auto", "13a", "intl", "zh", "ja-mecab", "char", "none"] = "auto"
    bootstrap_samples: int = Field(1000, ge=100)
    confidence: float = Field(0.95, gt=0.5, lt=1)
    latency_requests: int = Field(8, ge=0)
    samples: int = Field(5, ge=0)
    targets: Targets = Field(default_factory=Targets)
