"""Whether there is something to learn: trained tokens, stop tokens, BOS, answers that are cut, the template."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.checks.entries import SHOWN
from tunesmith.data.checks.ledger import Ledger, Reasons
from tunesmith.data.checks.scanned import ScannedSplit
from tunesmith.data.lengths import KEPT_SHARE, quantile
from tunesmith.data.records import ROLES
from tunesmith.data.template import ChatTemplate
from tunesmith.report import Report, Severity
from tunesmith.report.text import percent, plural

FEW_TARGETS = 0.05
"""Below this share of trained tokens nearly all of the work goes into prompts."""

ENCODED_SPLITS = ("train", "validation", "test")


def leave_out_what_cannot_be_used(ledger: Ledger, max_length: int, context_length: int | None) -> None:
    """Rows with no trained token within `max_length`, and test rows that the context cannot hold.

    Training and validation examples are cut to the longest allowed; test examples are answered whole.
    """
    for name, split in _encoded(ledger):
        columns_N = split.columns_N
        if name == "test":
            if context_length is not None:
                rows = np.flatnonzero(columns_N["tokens"] > context_length)
                reason = f"{{}} tokens, of which {context_length} fit"
                ledger.leave_out(name, rows, "too-long-to-answer", _reason(columns_N, reason))
            limit = context_length
        else:
            limit = max_length
        has_none_N = columns_N["targets"] == 0
        if limit is not None:
            has_none_N |= columns_N["first_target"] >= limit
        within = "" if limit is None else f" within {limit}"
        reason = f"no trained token{within} of its {{}} tokens"
        ledger.leave_out(name, np.flatnonzero(has_none_N), "no-targets", _reason(columns_N, reason))


def check_training_signal(
    report: Report, ledger: Ledger, template: ChatTemplate, *, max_length: int, context_length: int | None
) -> None:
    """Adds what is wrong with what would be trained on."""
    _describe_template(report, template)
    _check_roles(report, ledger, template)
    for name, split in _encoded(ledger):
        rows_K = ledger.rows(name)
        if len(rows_K):
            if name != "test":
                _check_cut(report, ledger, name, max_length=max_length, context_length=context_length)
            _check_stops(report, name, split, rows_K)
            _check_bos(report, name, split, rows_K)
    _check_share(report, ledger)


def _encoded(ledger: Ledger) -> list[tuple[str, ScannedSplit]]:
    return [(name, split) for name, split in ledger.splits.items() if name in ENCODED_SPLITS]


def _reason(columns_N: NDArray[np.void], text: str) -> Reasons:
    return lambda row: text.format(columns_N["tokens"][row])


def _describe_template(report: Report, template: ChatTemplate) -> None:
    contract = template.contract()
    report.add_figure("template", "Chat template", template.source, detail=f"SHA-256 {template.digest[:12]}")
    report.add_figure("stop_tokens", "Answers end with", ", ".join(str(token) for token in contract["stop_tokens"]))
    if not template.prompts_match_training:
        report.add_finding(
            Severity.WARNING,
            "prompt-differs-from-training",
            "the template begins answers differently in a prompt than in a finished conversation, "
            "so the model is asked otherwise than it was trained",
            remedy="write what the template puts before answers (such as a thinking part) into the answers",
        )
    if template.uses_date:
        report.add_finding(
            Severity.NOTE,
            "template-with-date",
            f"the chat template writes the date into prompts; this run keeps that of its first day, {template.date}",
        )
    if template.source == "plain":
        report.add_finding(
            Severity.NOTE,
            "plain-template",
            "the base model has no chat template; Tunesmith's plain one is used and saved with the adapter",
        )
    if template.tokenizer_adds_bos and not contract["prompts_begin_with_bos"]:
        report.add_finding(
            Severity.WARNING,
            "bos-missing",
            f"the model's tokenizer puts {contract['bos_token']} before every text, but its chat template does not, "
            "so the model sees a beginning that it was not trained with",
            remedy="begin the model's chat_template.jinja with {{ bos_token }}, unless its authors left it out",
        )
    elif template.tokenizer_adds_bos:
        report.add_finding(
            Severity.NOTE,
            "bos-added-twice-elsewhere",
            f"template and tokenizer both put {contract['bos_token']} first; Tunesmith gives one",
            remedy="a tool that tokenizes the rendered text needs add_special_tokens=False, or it gives two",
        )


def _check_roles(report: Report, ledger: Ledger, template: ChatTemplate) -> None:
    for role in ("system", "tool"):
        bit = 1 << ROLES.index(role)
        counts = {}
        for name, split in _encoded(ledger):
            rows_K = ledger.rows(name)
            having = rows_K[(split.columns_N["roles"][rows_K] & bit) != 0]
            if len(having):
                counts[name] = having
        if counts and not template.renders(role):
            report.add_finding(
                Severity.ERROR,
                "role-not-rendered",
                f"the chat template renders messages of the role '{role}' to nothing, and "
                f"{_by_split(counts)} {'has' if sum(map(len, counts.values())) == 1 else 'have'} one",
                evidence=_places(ledger, counts),
                remedy=f"put what the {role} messages say into the user's, or use a template that renders them",
                count=sum(map(len, counts.values())),
            )


def _check_cut(report: Report, ledger: Ledger, name: str, *, max_length: int, context_length: int | None) -> None:
    split, rows_K = ledger.splits[name], ledger.rows(name)
    tokens_K = split.columns_N["tokens"][rows_K]
    cut = rows_K[tokens_K > max_length]
    if not len(cut):
        return
    lengths = tokens_K.tolist()
    lost = int((split.columns_N["tokens"][cut].astype(np.int64) - max_length).sum())
    ledger.flag(name, cut, "answers-cut", lambda row: f"{split.columns_N['tokens'][row] - max_length} tokens cut")
    report.add_finding(
        Severity.WARNING,
        "answers-cut",
        f"{plural(len(cut), 'example')} of {name} ({percent(len(cut), len(rows_K))}) "
        f"{'is' if len(cut) == 1 else 'are'} cut by max_length={max_length} tokens and "
        f"{'loses' if len(cut) == 1 else 'lose'} {plural(lost, 'token')} at the end, the stop token among them",
        evidence=tuple(
            f"{split.places[row]}: {split.columns_N['tokens'][row] - max_length} tokens cut" for row in cut[:SHOWN]
        ),
        remedy=_lengths_to_keep(lengths, max_length, context_length),
        count=len(cut),
    )


def _lengths_to_keep(lengths: list[int], max_length: int, context_length: int | None) -> str:
    """The values of `data.max_length` that cut 1 % of the examples and none, as far as the model's context goes."""
    most, longest = quantile(lengths, KEPT_SHARE), max(lengths)
    fits = [n for n in (most, longest) if n > max_length and (context_length is None or n <= context_length)]
    kept = [f"{n} keeps {'all' if n == longest else f'{KEPT_SHARE:.0%}'} of them whole" for n in dict.fromkeys(fits)]
    parts = [f"data.max_length: {', '.join(kept)}"] if kept else []
    if longest not in fits:
        context = f"the model's context of {context_length:,}"
        parts.append(f"the longest has {longest:,} tokens, more than {context}: shorten it")
    return "; ".join(parts)


def _check_stops(report: Report, name: str, split: ScannedSplit, rows_K: NDArray[np.int64]) -> None:
    never = rows_K[~split.columns_N["stops"][rows_K]]
    if len(never):
        report.add_finding(
            Severity.ERROR,
            "stop-token-missing",
            f"{plural(len(never), 'example')} of {name} train no stop token, "
            "so the model would not learn to end its answer",
            evidence=tuple(str(split.places[row]) for row in never[:SHOWN]),
            remedy="the chat template must render the end of an assistant turn; see check --show 1",
            count=len(never),
        )


def _check_bos(report: Report, name: str, split: ScannedSplit, rows_K: NDArray[np.int64]) -> None:
    doubled = rows_K[split.columns_N["two_bos"][rows_K]]
    if len(doubled):
        report.add_finding(
            Severity.ERROR,
            "two-bos",
            f"{plural(len(doubled), 'example')} of {name} begin with two BOS tokens",
            evidence=tuple(str(split.places[row]) for row in doubled[:SHOWN]),
            remedy="take the BOS token out of the texts (data.rules.special_tokens: fix), or out of the chat template",
            count=len(doubled),
        )


def _check_share(report: Report, ledger: Ledger) -> None:
    columns_K = ledger.splits["train"].columns_N[ledger.rows("train")]
    tokens, targets = int(columns_K["tokens"].sum(dtype=np.int64)), int(columns_K["targets"].sum(dtype=np.int64))
    share = targets / max(tokens, 1)
    report.add_figure("target_share", "Share of tokens trained on", round(100 * share, 1), "%")
    if share < FEW_TARGETS:
        report.add_finding(
            Severity.WARNING,
            "few-targets",
            f"only {100 * share:.1f} % of the tokens are trained on: nearly all of the work goes into prompts",
            remedy="shorten what all prompts share, such as a long system message, or give longer answers",
        )


def _by_split(rows: Mapping[str, NDArray[np.int64]]) -> str:
    return " and ".join(f"{plural(len(one), 'example')} of {name}" for name, one in rows.items())


def _places(ledger: Ledger, rows: Mapping[str, NDArray[np.int64]]) -> tuple[str, ...]:
    return tuple(str(ledger.splits[name].places[int(row)]) for name, one in rows.items() for row in one[:SHOWN])[:SHOWN]
