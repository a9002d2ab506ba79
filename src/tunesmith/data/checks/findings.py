"""From what happened to rows to findings: counts by split, three examples, the remedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tunesmith.config import DataRules
from tunesmith.data.checks.entries import Action, Journal
from tunesmith.data.checks.rules import TextRule
from tunesmith.report import Report, Severity
from tunesmith.report.text import plural

WARN_SHARE = 0.01
"""A fault of the texts in fewer rows than this is a note, for a few among thousands spoil nothing."""

_ALWAYS_WARN = {
    "bad-row",
    "template-refuses",
    "no-targets",
    "too-long-to-answer",
    "leakage",
    "special_tokens",
    "email",
    "phone",
    "card_number",
    "national_id",
    "api_key",
}

_OWN_FINDING = {"answers-cut", "balanced"}
"""What another module reports with more to say."""


class RuleText(NamedTuple):
    """How a rule is reported.

    Args:
        what: completes "3 rows of train ...".
        remedy: what to do, beside `fix`; empty where its rows are always left out.
        mends: whether `fix` mends the text; else it leaves rows of train out.
    """

    what: str
    remedy: str
    mends: bool = False


_ROW_TEXTS = {
    "bad-row": RuleText("cannot be read", ""),
    "template-refuses": RuleText("are refused by the chat template", ""),
    "no-targets": RuleText("hold nothing that would be trained on", ""),
    "too-long-to-answer": RuleText("are too long for the model's context", ""),
    "exact_duplicates": RuleText("repeat another", "repeats weigh more than other examples; remove those not meant"),
    "near_duplicates": RuleText("share most of their words with another", "keep one of each"),
    "conflicting_answers": RuleText(
        "have the same prompt as another and a different answer",
        "decide which answer is right; where several are, this is as it is",
    ),
    "leakage": RuleText(
        "also stand in validation, test or a benchmark, whose scores would say too much",
        "remove them from train, or from the other side",
    ),
    "one_word_answers": RuleText("have an answer of one word, where most are long", "complete them"),
    "broken_json": RuleText("have an answer that is no JSON, where nearly all are", "mend them"),
    "language_mix": RuleText(
        "are answered in another language than they ask in, or are in another than the rest",
        "see whether this is meant",
    ),
}


def rule_texts(rules: Sequence[TextRule]) -> dict[str, RuleText]:
    """How each rule is reported, by its name."""
    return {**_ROW_TEXTS, **{rule.name: RuleText(rule.what, rule.remedy, rule.mend is not None) for rule in rules}}


def add_rule_findings(
    report: Report,
    journal: Journal,
    flagged: Journal,
    texts: Mapping[str, RuleText],
    rows_read: Mapping[str, int],
    modes: DataRules,
    listed_in: Path | None,
) -> None:
    """One finding for each rule and what was done: left out, merged, changed, only reported.

    Args:
        report: takes the findings.
        journal: what was left out and changed.
        flagged: what was only reported.
        texts: how each rule is reported.
        rows_read: rows of each split.
        modes: what each rule is set to.
        listed_in: the file that lists every row left out, merged or changed; None where none is kept.
    """
    listed = "" if listed_in is None else f"every one stands in {listed_in}"
    for source in (journal, flagged):
        for rule, action in source.rules():
            if rule in _OWN_FINDING:
                continue
            counts = source.by_split(rule, action)
            report.add_finding(
                _severity(rule, action, counts, rows_read),
                rule.replace("_", "-"),
                _message(texts[rule].what, action, counts),
                evidence=source.evidence(rule, action),
                remedy=_remedy(rule, texts[rule], modes) if action is Action.FLAGGED else listed,
                count=sum(counts.values()),
            )


def _remedy(rule: str, text: RuleText, modes: DataRules) -> str:
    if rule not in DataRules.model_fields:
        return text.remedy
    if getattr(modes, rule) == "fix":
        return f"{text.remedy}; {'these cannot be mended' if text.mends else 'fix leaves rows of train out only'}"
    return f"{text.remedy}; data.rules.{rule}: fix {'mends the texts' if text.mends else 'leaves rows of train out'}"


def _severity(rule: str, action: Action, counts: Mapping[str, int], rows_read: Mapping[str, int]) -> Severity:
    if action in (Action.CHANGED, Action.MERGED):
        return Severity.NOTE
    share = max(count / max(rows_read[split], 1) for split, count in counts.items())
    return Severity.WARNING if rule in _ALWAYS_WARN or share >= WARN_SHARE else Severity.NOTE


def _message(what: str, action: Action, counts: Mapping[str, int]) -> str:
    nouns = "texts" if action is Action.CHANGED else "rows"
    rows = " and ".join(f"{plural(count, nouns[:-1])} of {split}" for split, count in counts.items())
    is_one = sum(counts.values()) == 1
    if is_one:
        what = _for_one(what)
    if action is Action.FLAGGED:
        return f"{rows} {what}"
    if action is Action.CHANGED:
        return f"{rows} {'was' if is_one else 'were'} mended: {'it' if is_one else 'they'} {_past(what)}"
    done = "merged into the one that stays" if action is Action.MERGED else "left out"
    return f"{rows} {'is' if is_one else 'are'} {done}: {'it' if is_one else 'they'} {what}"


_SINGULAR = {"are": "is", "have": "has", "hold": "holds", "repeat": "repeats", "share": "shares", "stand": "stands"}


def _for_one(what: str) -> str:
    """`what` about one row: "hold ..." -> "holds ..."."""
    first, _, rest = what.partition(" ")
    if first == "also":
        return f"also {_for_one(rest)}"
    return f"{_SINGULAR.get(first, first)} {rest}"


def _past(what: str) -> str:
    first, _, rest = what.partition(" ")
    past = {"hold": "held", "holds": "held", "are": "were", "is": "was", "have": "had", "has": "had"}
    return f"{past.get(first, first)} {rest}"
