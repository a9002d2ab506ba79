"""The check stage: what will be trained on, found out before a model is loaded.

`audit` reads as the list of checks; each adds its figures and findings to the report. Every row is accounted for:
read = kept + dropped, in each split, and each dropped row is named with its reason.
"""

from __future__ import annotations

import math
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tunesmith.data.lengths import choose_max_length, cut, quantile
from tunesmith.data.questions import is_answerable
from tunesmith.data.records import IGNORED_LABEL, Example, Place, TokenizedExample
from tunesmith.data.sources import ReadResult
from tunesmith.data.template import ChatTemplate
from tunesmith.errors import DataError, TemplateError
from tunesmith.progress import track
from tunesmith.report import Report, Series, Severity, Table

SHOWN = 3
"""Examples given as evidence of a finding."""

MOST_NAMED = 10
"""Rows named in an error."""

HISTOGRAM_BARS = 20


@dataclass(frozen=True)
class Dropped:
    """A row that is left out, and why."""

    split: str
    place: Place
    rule: str
    reason: str
    row: str


@dataclass(frozen=True)
class Split:
    """One split, ready for use: `examples` and `tokenized` go together one to one."""

    examples: tuple[Example, ...]
    tokenized: tuple[TokenizedExample, ...]


@dataclass
class Audit:
    """What `audit` gives.

    Args:
        report: the check stage's report.
        splits: train, validation and test, those that there are.
        max_length: the length examples were cut to, in tokens.
        dropped: every row that was left out.
    """

    report: Report
    splits: dict[str, Split]
    max_length: int
    dropped: list[Dropped] = field(default_factory=list)


def audit(
    reads: Mapping[str, ReadResult],
    template: ChatTemplate,
    *,
    max_length: int | None,
    context_length: int | None,
    skip_bad_rows: bool = False,
) -> Audit:
    """Encodes every split and checks what training would see.

    Training and validation examples are cut to the longest allowed; test examples are answered whole.

    Args:
        reads: rows of each split, "train" first.
        template: of the base model.
        max_length: longest example in tokens; None chooses it from the training and validation data.
        context_length: most tokens the base model can take, None if it does not say.
        skip_bad_rows: leave out the rows that the template refuses, instead of ending with a list of them.

    Raises:
        DataError: nothing is left to train on, or `max_length` exceeds the model's context.
        TemplateError: the template cannot render some examples, and they are not skipped.
    """
    report = Report("check", "What the model will be trained on")
    dropped = _bad_rows(reads)
    whole = {name: _encode(name, read, template, dropped, skip_bad_rows=skip_bad_rows) for name, read in reads.items()}
    trained_or_watched = [len(t.input_ids) for name in whole if name != "test" for _, t in whole[name]]
    longest = _longest(max_length, trained_or_watched, context_length)
    splits = {}
    for name, pairs in whole.items():
        limit = context_length if name == "test" else longest
        splits[name] = _cut_and_keep(name, pairs, limit, dropped)
    if not splits["train"].examples:
        raise DataError(
            f"no training example has a trained token left within {longest} tokens",
            place="data.train",
            remedy="raise data.max_length, or shorten the prompts",
        )
    _account(report, reads, splits, dropped)
    _note_unused_keys(report, reads)
    _describe_template(report, template)
    _describe_lengths(report, splits, longest)
    _check_cut(report, splits, template, context_length)
    _check_special_tokens(report, splits, template)
    _check_overlap(report, splits)
    _check_answerable(report, splits)
    return Audit(report, splits, longest, dropped)


def _encode(
    name: str, read: ReadResult, template: ChatTemplate, dropped: list[Dropped], *, skip_bad_rows: bool
) -> list[tuple[Example, TokenizedExample]]:
    """Pairs of example and tokens; rows that the template refuses are dropped or all named in one error."""
    pairs, refused = [], []
    encoded = template.encode_many(read.examples)
    for example, result in zip(
        read.examples, track(encoded, f"Encoding {name}", len(read.examples), "examples"), strict=True
    ):
        if isinstance(result, TokenizedExample):
            pairs.append((example, result))
        else:
            refused.append((example, result))
    if refused and (not skip_bad_rows or not pairs):
        lines = [f"  {example.place}: {error.message}" for example, error in refused[:MOST_NAMED]]
        more = [f"  and {len(refused) - MOST_NAMED} more"] if len(refused) > MOST_NAMED else []
        count = _count(len(refused), "row", "rows")
        raise TemplateError(
            "\n".join([f"the chat template refuses {count}", *lines, *more]),
            place=f"data.{name}",
            remedy=refused[0][1].remedy or "change these rows, or leave them out with data.on_bad_row: skip",
        )
    dropped += [
        Dropped(name, example.place, "template-refuses", error.message, _one_line(example))
        for example, error in refused
    ]
    return pairs


def _bad_rows(reads: Mapping[str, ReadResult]) -> list[Dropped]:
    return [
        Dropped(name, row.place, "bad-row", row.reason, row.raw)
        for name, read in reads.items()
        for row in read.bad_rows
    ]


def _longest(asked: int | None, lengths: Sequence[int], context_length: int | None) -> int:
    if asked is None:
        return choose_max_length(lengths, context_length)
    if context_length and asked > context_length:
        raise DataError(
            f"{asked} tokens are more than the model's context of {context_length}",
            place="data.max_length",
            remedy=f"set it to {context_length} or less, or to auto",
        )
    return asked


def _cut_and_keep(
    name: str, pairs: Sequence[tuple[Example, TokenizedExample]], limit: int | None, dropped: list[Dropped]
) -> Split:
    examples, tokenized = [], []
    for example, full in pairs:
        short = full if limit is None else cut(full, limit)
        too_long = name == "test" and short.tokens_cut > 0
        if short.target_count == 0 or too_long:
            rule = "too-long-to-answer" if too_long else "no-targets"
            reason = (
                f"{len(full.input_ids)} tokens, of which {limit} fit"
                if too_long
                else (f"no trained token within {limit} of its {len(full.input_ids)} tokens")
            )
            dropped.append(Dropped(name, example.place, rule, reason, _one_line(example)))
            continue
        examples.append(example)
        tokenized.append(short)
    return Split(tuple(examples), tuple(tokenized))


def _account(
    report: Report, reads: Mapping[str, ReadResult], splits: Mapping[str, Split], dropped: Sequence[Dropped]
) -> None:
    rows = []
    for name, read in reads.items():
        kept = len(splits[name].examples)
        lost = sum(row.split == name for row in dropped)
        if read.rows_read != kept + lost:
            raise AssertionError(f"{name}: {read.rows_read} rows read, {kept} kept, {lost} dropped")
        rows.append((name, read.rows_read, kept, lost))
        report.add_figure(f"{name}_examples", f"Examples in {name}", kept)
    report.tables.append(Table("Rows", ("split", "read", "kept", "dropped"), tuple(rows)))
    for rule, code, why in (
        ("bad-row", "bad-rows-skipped", "they cannot be read"),
        ("template-refuses", "template-refuses", "the chat template refuses them"),
        ("no-targets", "no-targets", "nothing in them would be trained on"),
        ("too-long-to-answer", "too-long-to-answer", "the model's context cannot hold them"),
    ):
        found = [row for row in dropped if row.rule == rule]
        if found:
            report.add_finding(
                Severity.WARNING,
                code,
                f"{_count(len(found), 'row is', 'rows are')} left out: {why}",
                evidence=tuple(f"{row.place}: {row.reason}" for row in found[:SHOWN]),
                remedy="every one stands in data/dropped.jsonl of the run",
            )


def _note_unused_keys(report: Report, reads: Mapping[str, ReadResult]) -> None:
    for name, read in reads.items():
        if read.unused_keys:
            keys = ", ".join(f"{key} ({count})" for key, count in sorted(read.unused_keys.items()))
            report.add_finding(
                Severity.NOTE,
                "unused-columns",
                f"{name} holds columns that are not read, with the number of rows: {keys}",
                remedy="if one of them belongs into the prompt, say so with data.mapping",
            )


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


def _describe_lengths(report: Report, splits: Mapping[str, Split], longest: int) -> None:
    rows = []
    for name, split in splits.items():
        if not split.tokenized:
            continue
        totals = [len(t.input_ids) for t in split.tokenized]
        targets = [t.target_count for t in split.tokenized]
        for what, values in (("all", totals), ("trained on", targets)):
            mean = round(sum(values) / len(values), 1)
            rows.append((name, what, mean, quantile(values, 0.5), quantile(values, 0.99), max(values), sum(values)))
    report.tables.append(
        Table("Tokens of an example", ("split", "tokens", "mean", "median", "99 %", "longest", "in all"), tuple(rows))
    )
    train = splits["train"].tokenized
    tokens, targets_sum = sum(len(t.input_ids) for t in train), sum(t.target_count for t in train)
    report.add_figure("max_length", "Longest example allowed", longest, "tokens")
    report.add_figure("train_tokens", "Tokens in train", tokens)
    report.add_figure("target_share", "Share of tokens trained on", round(100 * targets_sum / tokens, 1), "%")
    report.series.append(_histogram([len(t.input_ids) for t in train]))


def _histogram(lengths: Sequence[int]) -> Series:
    width = max(1, math.ceil(max(lengths) / HISTOGRAM_BARS))
    counts: dict[int, int] = defaultdict(int)
    for length in lengths:
        counts[(length - 1) // width] += 1
    bars = range(max(counts) + 1)
    return Series(
        "Length of the training examples",
        "examples",
        x=tuple(float((bar + 1) * width) for bar in bars),
        y=tuple(float(counts[bar]) for bar in bars),
        x_label="tokens, up to",
        y_label="examples",
        kind="bar",
    )


def _check_cut(report: Report, splits: Mapping[str, Split], template: ChatTemplate, context_length: int | None) -> None:
    stops = set(template.stop_token_ids)
    for name, split in splits.items():
        was_cut = [t for t in split.tokenized if t.tokens_cut]
        if was_cut:
            needed = max(len(t.input_ids) + t.tokens_cut for t in was_cut)
            fits = context_length is None or needed <= context_length
            report.add_finding(
                Severity.WARNING,
                "answers-cut",
                f"{_count(len(was_cut), 'example', 'examples')} of {name} ({_percent(was_cut, split.tokenized)}) do "
                f"not fit and lose {sum(t.tokens_cut for t in was_cut)} tokens at the end, the stop token among them",
                evidence=tuple(f"{t.place}: {t.tokens_cut} tokens cut" for t in was_cut[:SHOWN]),
                remedy=f"data.max_length: {needed} keeps all of them"
                if fits
                else f"the longest has {needed} tokens, more than the model's context of {context_length}: shorten it",
            )
        never_stops = [
            t for t in split.tokenized if not t.tokens_cut and not stops & {x for x in t.labels if x != IGNORED_LABEL}
        ]
        if never_stops:
            report.add_finding(
                Severity.ERROR,
                "stop-token-missing",
                f"{_count(len(never_stops), 'example', 'examples')} of {name} train no stop token, "
                "so the model would not learn to end its answer",
                evidence=tuple(str(t.place) for t in never_stops[:SHOWN]),
                remedy="the chat template must render the end of an assistant turn; see check --show 1",
            )


def _check_special_tokens(report: Report, splits: Mapping[str, Split], template: ChatTemplate) -> None:
    for name, split in splits.items():
        found = [(example, tokens) for example in split.examples if (tokens := template.special_tokens_in(example))]
        if found:
            report.add_finding(
                Severity.WARNING,
                "special-tokens-in-text",
                f"{_count(len(found), 'example', 'examples')} of {name} hold special tokens in their text, "
                "which the model would read as the end of a turn or the like",
                evidence=tuple(f"{example.place}: {', '.join(tokens)}" for example, tokens in found[:SHOWN]),
                remedy="remove them from the texts",
            )


def _check_overlap(report: Report, splits: Mapping[str, Split]) -> None:
    """Exact repeats after normalising case and white space, within train and between train and the other splits."""
    seen: dict[str, Place] = {}
    repeats = []
    for example in splits["train"].examples:
        key = _normalised(example)
        if key in seen:
            repeats.append(f"{example.place} repeats {seen[key]}")
        seen.setdefault(key, example.place)
    if repeats:
        report.add_finding(
            Severity.NOTE,
            "duplicates",
            f"{_count(len(repeats), 'training example repeats', 'training examples repeat')} another",
            evidence=tuple(repeats[:SHOWN]),
            remedy="repeats weigh more than other examples; remove those that are not meant",
        )
    for name, split in splits.items():
        if name == "train":
            continue
        leaked = [(e.place, seen[key]) for e in split.examples if (key := _normalised(e)) in seen]
        if leaked:
            report.add_finding(
                Severity.WARNING,
                "leakage",
                f"{_count(len(leaked), 'example', 'examples')} of {name} ({_percent(leaked, split.examples)}) also "
                "stand in train, so its scores say too much",
                evidence=tuple(f"{here} = {there}" for here, there in leaked[:SHOWN]),
                remedy=f"remove them from data.train or data.{name}",
            )


def _check_answerable(report: Report, splits: Mapping[str, Split]) -> None:
    if "test" in splits and not any(map(is_answerable, splits["test"].examples)):
        report.add_finding(
            Severity.ERROR,
            "test-not-answerable",
            "the test set holds no conversation to answer, so nothing could be evaluated",
            remedy="give conversations as data.test, or leave it out",
        )


def _normalised(example: Example) -> str:
    return " ".join(unicodedata.normalize("NFKC", _one_line(example)).casefold().split())


def _one_line(example: Example) -> str:
    texts: Iterable[str] = (
        [example.text] if example.text is not None else (f"{m.role}: {m.content}" for m in example.messages)
    )
    return " | ".join(texts)


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _percent(part: Sequence[object], whole: Sequence[object]) -> str:
    return f"{100 * len(part) / len(whole):.1f} %"
