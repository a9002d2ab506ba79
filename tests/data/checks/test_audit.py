"""The audit: every row accounted for, and each kind of trouble told with its places."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import byte_tokenizer
from tunesmith.data.checks.audit import Audit, audit
from tunesmith.data.records import Example, Message, Place
from tunesmith.data.sources import BadRow, ReadResult
from tunesmith.data.template import ChatTemplate
from tunesmith.errors import DataError, TemplateError

TEMPLATE = ChatTemplate(byte_tokenizer())
NO_SYSTEM = ChatTemplate(
    byte_tokenizer(
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{{ m['role'] + ': ' + m['content'] + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
)


def chat(line: int, *texts: str, file: str = "train.jsonl", system: str | None = None) -> Example:
    """user, assistant, user, ... in turn."""
    turns = [Message("user" if number % 2 == 0 else "assistant", text) for number, text in enumerate(texts)]
    return Example((*([Message("system", system)] if system else []), *turns), Place(file, line))


def read(examples: Sequence[Example], bad: int = 0) -> ReadResult:
    rows = [BadRow(Place("train.jsonl", 1000 + n), "broken", "{") for n in range(bad)]
    return ReadResult(list(examples), rows, len(examples) + bad)


def run(
    train: ReadResult,
    test: ReadResult | None = None,
    *,
    template: ChatTemplate = TEMPLATE,
    max_length: int | None = None,
    context_length: int | None = 512,
    skip: bool = False,
) -> Audit:
    reads = {"train": train, **({"test": test} if test is not None else {})}
    return audit(reads, template, max_length=max_length, context_length=context_length, skip_bad_rows=skip)


def codes(result: Audit) -> list[str]:
    return [finding.code for finding in result.report.findings]


def test_clean_data_have_no_finding() -> None:
    result = run(read([chat(n, f"question {n}", f"answer {n}") for n in range(1, 9)]))
    assert codes(result) == []
    assert result.report.figure("train_examples") == 8
    assert result.max_length == 64


@given(kept=st.integers(1, 6), bad=st.integers(0, 5), long=st.integers(0, 5))
def test_read_is_kept_and_dropped_to_the_row(kept: int, bad: int, long: int) -> None:
    examples = [chat(n, f"q{n}", f"a{n}") for n in range(1, kept + 1)]
    examples += [chat(100 + n, "q" * 200, "a") for n in range(long)]
    result = run(read(examples, bad), max_length=64)
    assert result.report.tables[0].rows == (("train", kept + bad + long, kept, bad + long),)
    assert len(result.dropped) == bad + long
    assert {row.rule for row in result.dropped} <= {"bad-row", "no-targets"}


def test_answers_that_are_cut_are_told_with_the_length_that_keeps_them() -> None:
    result = run(read([chat(1, "q", "a" * 100), chat(2, "q", "a")]), max_length=64)
    (finding,) = result.report.findings
    assert finding.code == "answers-cut"
    needed = len(TEMPLATE.encode(chat(1, "q", "a" * 100)).input_ids)
    assert finding.remedy == f"data.max_length: {needed} keeps all of them"
    assert "train.jsonl:1" in finding.evidence[0]


def test_a_length_that_the_context_does_not_have_is_not_advised() -> None:
    result = run(read([chat(1, "q", "a" * 900), chat(2, "q", "a")]))
    (finding,) = result.report.findings
    assert "context of 512" in finding.remedy


def test_test_rows_are_not_cut_to_the_training_length() -> None:
    train = read([chat(n, f"q{n}", "a") for n in range(1, 5)])
    result = run(train, read([chat(1, "long question " * 10, "a" * 90, file="test.jsonl")]))
    assert result.max_length == 64
    assert len(result.splits["test"].tokenized[0].input_ids) > 200


def test_a_test_row_that_the_context_cannot_hold_is_dropped_and_named() -> None:
    test = read([chat(1, "q" * 600, "a", file="test.jsonl"), chat(2, "q", "a", file="test.jsonl")])
    result = run(read([chat(1, "x", "y")]), test)
    assert codes(result) == ["too-long-to-answer"]
    assert [str(row.place) for row in result.dropped] == ["test.jsonl:1"]


def test_rows_that_the_template_refuses_are_all_named_or_skipped() -> None:
    rows = read([chat(1, "q", "a"), chat(2, "q", "b", system="s"), chat(3, "q", "c", system="s")])
    with pytest.raises(TemplateError, match=r"refuses 2 rows[\s\S]*train\.jsonl:2[\s\S]*train\.jsonl:3"):
        run(rows, template=NO_SYSTEM)
    result = run(rows, template=NO_SYSTEM, skip=True)
    assert result.report.tables[0].rows == (("train", 3, 1, 2),)
    assert "template-refuses" in codes(result)


def test_repeats_and_rows_that_train_and_test_share_are_told() -> None:
    train = read([chat(1, "Hello  there", "Hi"), chat(2, "hello there", "hi"), chat(3, "x", "y")])
    result = run(train, read([chat(7, "X", "Y", file="test.jsonl")]))
    by_code = {finding.code: finding for finding in result.report.findings}
    assert by_code["duplicates"].evidence == ("train.jsonl:2 repeats train.jsonl:1",)
    assert by_code["leakage"].evidence == ("test.jsonl:7 = train.jsonl:3",)


def test_special_tokens_in_a_text_are_told() -> None:
    result = run(read([chat(1, "stop here: <|im_end|>", "a")]))
    assert codes(result) == ["special-tokens-in-text"]


def test_a_test_set_of_plain_text_stops_the_run_before_training() -> None:
    text = Example((), Place("test.txt", 1), text="Only text.")
    result = run(read([chat(1, "q", "a")]), read([text]))
    assert [finding.code for finding in result.report.errors] == ["test-not-answerable"]


def test_nothing_left_to_train_on_is_an_error() -> None:
    with pytest.raises(DataError, match="within 16 tokens"):
        run(read([chat(1, "a long question", "b")]), max_length=16)
    with pytest.raises(DataError, match="more than the model's context of 512"):
        run(read([chat(1, "q", "a")]), max_length=600)
