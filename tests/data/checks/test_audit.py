"""The audit: every row accounted for, and each kind of trouble told with its places."""

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import byte_tokenizer
from tunesmith.config import DataSection
from tunesmith.data.checks.audit import Audit, audit, read_split
from tunesmith.data.checks.codes import CODES
from tunesmith.data.records import Example, Message, Place
from tunesmith.data.store import Scratch
from tunesmith.data.template import ChatTemplate
from tunesmith.errors import DataError, TemplateError
from tunesmith.report import Severity

TEMPLATE = ChatTemplate(byte_tokenizer())
NO_SYSTEM = ChatTemplate(
    byte_tokenizer(
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{{ m['role'] + ': ' + m['content'] + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
)
SILENT_SYSTEM = ChatTemplate(
    byte_tokenizer(
        "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['role'] + ': ' + m['content'] + '<|im_end|>' }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
)

Row = dict[str, Any] | str


def chat(*texts: str, system: str | None = None, **columns: Any) -> Row:
    """user, assistant, user, ... in turn."""
    turns = [{"role": "user" if n % 2 == 0 else "assistant", "content": text} for n, text in enumerate(texts)]
    return {"messages": [*([{"role": "system", "content": system}] if system else []), *turns], **columns}


class Rows:
    """Writes splits and audits them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def audit(
        self,
        train: list[Row],
        *,
        template: ChatTemplate = TEMPLATE,
        context_length: int | None = 512,
        validation: list[Row] | None = None,
        test: list[Row] | None = None,
        benchmarks: list[Row] | None = None,
        **section: Any,
    ) -> Audit:
        data = self.section(train=train, validation=validation, test=test, benchmarks=benchmarks, **section)
        return audit(data, template, context_length=context_length, scratch_parent=self.folder)

    def section(self, *, rules: dict[str, Any] | None = None, **values: Any) -> DataSection:
        """A data section over files of these rows; a text is a line as it is."""
        # What tiny examples always are: short, and alike.
        accept = [*values.pop("accept", []), "length-outside-advice"]
        for name in ("train", "validation", "test", "benchmarks"):
            rows = values.pop(name, None)
            if rows is not None:
                path = self.folder / f"{name}.jsonl"
                lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
                path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
                values[name] = str(path)
        return DataSection.model_validate({"rules": rules or {}, "accept": accept, **values})


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    return Rows(tmp_path)


def codes(result: Audit) -> list[str]:
    usual = ("length-outside-advice", "no-test-set")
    return [finding.code for finding in result.report.findings if finding.code not in usual]


def entries(result: Audit) -> list[tuple[str, int, str, str]]:
    """(split, line, action, rule) of each entry of dropped.jsonl and flagged.jsonl."""
    lines = [
        json.loads(line)
        for journal in (result.journal, result.flagged)
        for line in journal.path.read_text(encoding="utf-8").splitlines()
    ]
    return [(one["split"], one["line"], one["action"], one["rule"]) for one in lines]


def texts(result: Audit, split: str = "train") -> list[str]:
    return [example.messages[-1].content for example in result.splits[split].examples]


def test_clean_data_have_no_finding(rows: Rows) -> None:
    result = rows.audit([chat(f"question {n}", f"answer {n}") for n in range(1, 9)])
    assert codes(result) == []
    assert entries(result) == []
    assert result.report.figure("train_examples") == 8
    assert result.max_length == 64
    assert [example.place.line for example in result.splits["train"].examples] == list(range(1, 9))


ROWS = st.sampled_from(
    [
        chat("question one", "answer one"),
        chat("Question  ONE", "answer one"),
        chat("question two", "answer two"),
        chat("what is it?", "the mail is john.smith@mail-host.com"),
        chat("q" * 300, "a"),
        chat("q", "a" * 300),
        chat("a system message", "is refused", system="you are kind"),
        chat("question", ""),
        {"unknown": 1},
        "no json",
        '{"messages": []}',
        chat("stop <|im_end|> here", "and \u200b there"),
    ]
)


@given(
    train=st.lists(ROWS, min_size=1, max_size=12),
    validation=st.lists(ROWS, max_size=4),
    test=st.lists(ROWS, max_size=4),
    modes=st.fixed_dictionaries(
        {
            rule: st.sampled_from(["on", "off", "fix"])
            for rule in ("exact_duplicates", "leakage", "email", "special_tokens", "invisible_characters")
        }
    ),
)
def test_read_is_kept_dropped_and_merged_to_the_row(
    train: list[Row], validation: list[Row], test: list[Row], modes: dict[str, str]
) -> None:
    scratch = Scratch()
    given_rows: dict[str, Any] = {"validation": validation or None, "test": test or None}
    try:
        result = Rows(scratch.folder).audit(
            [*train, chat("kept", "always")],
            **given_rows,
            template=NO_SYSTEM,
            max_length=64,
            on_bad_row="skip",
            rules=modes,
        )
    except (DataError, TemplateError) as error:
        assert any(sign in error.message for sign in ("cannot be used", "refuses", "is left"))
        return
    counts = Counter((split, action) for split, _, action, _ in entries(result))
    for split, read in (("train", [*train, chat("kept", "always")]), ("validation", validation), ("test", test)):
        if read:
            account = result.accounts[split]
            assert account["read"] == len(read) == account["kept"] + account["dropped"] + account["merged"]
            assert account["kept"] == len(result.splits[split].examples) == len(result.splits[split].tokenized)
            assert account["dropped"] == counts[split, "dropped"]
            assert account["merged"] == counts[split, "merged"]
    for example, tokenized in zip(result.splits["train"].examples, result.splits["train"].tokenized, strict=True):
        whole = NO_SYSTEM.encode(example)
        assert tokenized == NO_SYSTEM.encode(example, max_length=64)
        assert tokenized.tokens_cut == max(len(whole.input_ids) - 64, 0)


def test_answers_that_are_cut_are_told_with_the_lengths_that_keep_them(rows: Rows) -> None:
    result = rows.audit([chat("q", "a" * 100), *(chat(f"q{n}", "a") for n in range(200))], max_length=64)
    (finding,) = (one for one in result.report.findings if one.code == "answers-cut")
    example = Example((Message("user", "q"), Message("assistant", "a" * 100)), Place("", 1))
    needed = len(TEMPLATE.encode(example).input_ids)
    assert finding.remedy == f"data.max_length: {needed} keeps all of them whole"
    assert "1 example of train (0.5 %) is cut by max_length=64 tokens" in finding.message
    assert finding.count == 1
    assert "train.jsonl:1" in finding.evidence[0]
    assert ("train", 1, "flagged", "answers-cut") in entries(result)
    assert ("train", 2, "flagged", "answers-cut") not in entries(result)


def test_the_length_that_keeps_99_percent_is_told_where_it_is_another(rows: Rows) -> None:
    result = rows.audit(
        [chat("q", "a" * 200), *(chat(f"q{n:03}", "a" * 60) for n in range(200))], max_length=64, context_length=None
    )
    (finding,) = (one for one in result.report.findings if one.code == "answers-cut")
    example = Example((Message("user", "q000"), Message("assistant", "a" * 60)), Place("", 1))
    assert f"{len(TEMPLATE.encode(example).input_ids)} keeps 99% of them whole, " in finding.remedy
    assert finding.remedy.endswith("keeps all of them whole")


def test_a_length_that_the_context_does_not_have_is_not_advised(rows: Rows) -> None:
    result = rows.audit([chat("q", "a" * 900), chat("q", "b")])
    (finding,) = (one for one in result.report.findings if one.code == "answers-cut")
    assert "context of 512" in finding.remedy
    assert "data.max_length" not in finding.remedy


@pytest.mark.parametrize(
    ("lengths", "said"),
    [
        ((600, 0, 0), "all 600 training examples are shorter than 256 tokens; half have at most"),
        ((2999, 1, 0), "2,999 of 3,000 (99.9 %) training examples are shorter than 256 tokens"),
        ((0, 1, 19), "19 of 20 (95.0 %) training examples are longer than 1,024 tokens"),
        ((10, 0, 2), "all 12 training examples are outside 256 to 1,024 tokens, 10 shorter and 2 longer"),
        ((9, 1, 0), None),
    ],
)
def test_lengths_are_worth_a_word_where_nearly_all_are_outside(
    rows: Rows, lengths: tuple[int, int, int], said: str | None
) -> None:
    counts = zip(lengths, ("a", "b" * 400, "c" * 1400), strict=True)
    train = [chat(f"q{n} {answer[0]}", answer) for count, answer in counts for n in range(count)]
    off = {"near_duplicates": "off", "repeated_text": "off"}
    report = rows.audit(train, rules=off, context_length=None).report
    found = [finding.message for finding in report.findings if finding.code == "length-outside-advice"]
    assert len(found) == (said is not None)
    if said is not None:
        assert found[0].startswith(said)


def test_test_rows_are_not_cut_to_the_training_length(rows: Rows) -> None:
    result = rows.audit([chat(f"q{n}", "a") for n in range(1, 5)], test=[chat("long question " * 10, "a" * 90)])
    assert result.max_length == 64
    assert len(result.splits["test"].tokenized[0].input_ids) > 200


def test_a_test_row_that_the_context_cannot_hold_is_dropped_and_named(rows: Rows) -> None:
    result = rows.audit([chat("x", "y")], test=[chat("q" * 600, "a"), chat("q", "a")])
    assert codes(result) == ["too-long-to-answer"]
    assert entries(result) == [("test", 1, "dropped", "too-long-to-answer")]


def test_rows_that_the_template_refuses_are_all_named_or_skipped(rows: Rows) -> None:
    train = [chat("q", "a"), chat("q", "b", system="s"), chat("q", "c", system="s")]
    with pytest.raises(TemplateError, match=r"refuses 2 rows[\s\S]*train\.jsonl:2[\s\S]*train\.jsonl:3"):
        rows.audit(train, template=NO_SYSTEM)
    result = rows.audit(train, template=NO_SYSTEM, on_bad_row="skip")
    assert result.accounts["train"] == {"read": 3, "kept": 1, "dropped": 2, "merged": 0}
    assert "template-refuses" in codes(result)


def test_a_role_that_the_template_leaves_out_stops_the_run(rows: Rows) -> None:
    result = rows.audit([chat("q", "a"), chat("q", "b", system="be kind")], template=SILENT_SYSTEM)
    (finding,) = result.report.errors
    assert finding.code == "role-not-rendered"
    assert finding.evidence[0].endswith("train.jsonl:2")
    assert codes(rows.audit([chat("q", "a")], template=SILENT_SYSTEM)) == []


def test_repeats_are_merged_whichever_comes_first(rows: Rows) -> None:
    pair = [chat("Hello  there", "Hi"), chat("hello there", "hi")]
    kept = set()
    for order in (pair, pair[::-1]):
        result = rows.audit([*order, chat("x", "y")])
        assert result.accounts["train"] == {"read": 3, "kept": 2, "dropped": 0, "merged": 1}
        kept.add(tuple(sorted(texts(result))))
    assert len(kept) == 1
    told = rows.audit([*pair, chat("x", "y")], rules={"exact_duplicates": "on"})
    assert told.accounts["train"]["kept"] == 3
    assert codes(told) == ["exact-duplicates"]
    assert codes(rows.audit([*pair, chat("x", "y")], rules={"exact_duplicates": "off"})) == []


@pytest.mark.parametrize("other", ["validation", "test", "benchmarks"])
def test_rows_that_stand_elsewhere_are_left_out_of_train(rows: Rows, other: str) -> None:
    splits: dict[str, Any] = {other: [chat("X", "Y"), chat("z", "z")]}
    result = rows.audit([chat("a", "b"), chat("x", "y")], **splits)
    assert texts(result) == ["b"]
    assert ("train", 2, "dropped", "leakage") in entries(result)
    assert result.accounts[other]["kept"] == 2
    (finding,) = (one for one in result.report.findings if one.code == "leakage")
    assert finding.severity is Severity.WARNING
    assert f"{other}.jsonl:1" in finding.evidence[0]
    told = rows.audit([chat("a", "b"), chat("x", "y")], rules={"leakage": "on"}, **splits)
    assert texts(told) == ["b", "y"]
    assert ("train", 2, "flagged", "leakage") in entries(told)


def test_rows_of_a_benchmark_need_not_fit_the_template(rows: Rows) -> None:
    result = rows.audit([chat("a", "b")], benchmarks=[chat("q", "a", system="s")], template=NO_SYSTEM)
    assert list(result.splits) == ["train"]
    assert result.accounts["benchmarks"]["read"] == 1


def test_the_same_prompt_with_two_answers_is_told(rows: Rows) -> None:
    train = [chat("capital?", "Paris"), chat("capital?", "London"), chat("x", "y")]
    result = rows.audit(train)
    assert codes(result) == ["conflicting-answers"]
    assert texts(rows.audit(train, rules={"conflicting_answers": "fix"})) == ["y"]


def test_a_text_is_mended_in_every_split_and_the_change_is_listed(rows: Rows) -> None:
    row = chat("write to john.smith@mail-host.com", "done")
    result = rows.audit([chat("a", "b"), row], test=[chat("reach jane@mail-host.com", "ok")], rules={"email": "fix"})
    assert result.splits["train"].examples[1].messages[0].content == "write to [EMAIL]"
    assert result.splits["test"].examples[0].messages[0].content == "reach [EMAIL]"
    changes = [json.loads(line) for line in result.journal.path.read_text(encoding="utf-8").splitlines()]
    assert changes[0]["before"] == "write to john.smith@mail-host.com"
    assert changes[0]["after"] == "write to [EMAIL]"
    assert [(one["file"].rpartition("/")[2], one["line"]) for one in changes] == [("train.jsonl", 2), ("test.jsonl", 1)]
    assert result.accounts["train"]["dropped"] == 0


def test_a_rule_that_cannot_mend_leaves_rows_out_of_train_only(rows: Rows) -> None:
    refusal = chat("how?", "I'm sorry, but I cannot help you with that request.")
    result = rows.audit([chat("a", "b"), refusal], test=[refusal, chat("c", "d")], rules={"refusals": "fix"})
    assert ("train", 2, "dropped", "refusals") in entries(result)
    assert ("test", 1, "flagged", "refusals") in entries(result)
    assert result.accounts["test"]["kept"] == 2


def test_a_row_that_is_left_out_is_not_reported_for_anything_else(rows: Rows) -> None:
    leaked = chat("mail john.smith@mail-host.com", "done")
    result = rows.audit([chat("a", "b"), leaked], test=[leaked])
    assert [entry for entry in entries(result) if entry[0] == "train"] == [("train", 2, "dropped", "leakage")]


def test_a_text_of_which_nothing_is_left_is_no_example(rows: Rows) -> None:
    result = rows.audit([chat("a", "b"), chat("q", "\u200b\u200b")], rules={"invisible_characters": "fix"})
    assert result.accounts["train"]["dropped"] == 1
    kept = rows.audit(
        [chat("a", "b"), chat("mail a.b@mail-host.com", "c", system=" ")],
        rules={"email": "fix"},
    )
    assert kept.accounts["train"]["kept"] == 2


def test_a_benchmark_is_compared_as_train_is_mended(rows: Rows) -> None:
    broken = chat("The caf\u00c3\u00a9 is na\u00c3\u00afve", "yes it is")
    for mode in ("on", "fix"):
        result = rows.audit([chat("a", "b"), broken], benchmarks=[broken], rules={"mojibake": mode})
        assert ("train", 2, "dropped", "leakage") in entries(result)


def test_what_was_left_out_is_listed_after_an_error_too(rows: Rows) -> None:
    data = rows.section(train=[chat("q", "a")], test=[chat("q", "a")])
    with pytest.raises(DataError, match="rule 'leakage'"):
        audit(data, TEMPLATE, context_length=512, accounts=rows.folder)
    assert "leakage" in (rows.folder / "dropped.jsonl").read_text(encoding="utf-8")


def test_findings_of_rules_count_their_rows_and_say_where_all_of_them_stand(rows: Rows) -> None:
    data = rows.section(
        train=[chat("a", "b"), chat("a", "b"), chat("a", "b"), chat("mail a.b@mail-host.com", "c")], accept=["email"]
    )
    report = audit(data, TEMPLATE, context_length=512, accounts=rows.folder / "run" / "data").report
    found = {finding.code: finding for finding in report.findings}
    assert found["exact-duplicates"].count == 2
    assert str(rows.folder / "run" / "data" / "dropped.jsonl") in found["exact-duplicates"].remedy
    assert found["email"].count == 1
    assert found["email"].message.endswith("; accepted by data.accept")
    assert found["no-test-set"].count is None


def test_special_tokens_in_a_text_are_told_or_removed(rows: Rows) -> None:
    train = [chat("stop here: <|im_<|im_end|>end|>", "a"), chat("x", "y")]
    assert codes(rows.audit(train)) == ["special-tokens"]
    mended = rows.audit(train, rules={"special_tokens": "fix"})
    assert mended.splits["train"].examples[0].messages[0].content == "stop here: "


def test_a_finding_that_is_accepted_stops_nothing(rows: Rows) -> None:
    train = [chat("q", "a"), chat("q2", "b", system="be kind")]
    result = rows.audit(train, template=SILENT_SYSTEM, accept=["role-not-rendered"])
    assert result.report.passed
    (finding,) = (one for one in result.report.findings if one.code == "role-not-rendered")
    assert "accepted" in finding.message
    with pytest.raises(DataError, match="no finding has the code 'role-not-renderd'") as caught:
        rows.audit(train, accept=["role-not-renderd"])
    assert "role-not-rendered" in str(caught.value.remedy)


LABELS = [*(chat(f"row {n}", "yes", label="y") for n in range(40)), *(chat(f"other {n}", "no") for n in range(8))]


@pytest.mark.parametrize(("balance", "count"), [("none", 48), ("downsample", 32), ("upsample", 54), ("weight", 48)])
def test_classes_are_found_and_balanced(rows: Rows, balance: str, count: int) -> None:
    result = rows.audit(LABELS, balance=balance)
    split = result.splits["train"]
    assert len(split.tokenized) == count
    answers = Counter(texts(result))
    weights: dict[str, float] = defaultdict(float)
    for answer, example in zip(texts(result), split.tokenized, strict=True):
        weights[answer] += example.weight
    if balance == "none":
        assert "class-imbalance" in codes(result)
        assert answers == {"yes": 40, "no": 8}
    else:
        assert "class-imbalance" not in codes(result)
        assert weights["yes"] / weights["no"] == pytest.approx(3, rel=0.05)
        assert sum(weights.values()) == pytest.approx(count)
    if balance == "downsample":
        assert result.accounts["train"]["dropped"] == 16


def test_a_column_names_the_class(rows: Rows) -> None:
    train = [chat(f"q{n}", f"long answer {n}", topic="rare" if n < 2 else "common") for n in range(20)]
    result = rows.audit(train, class_field="topic")
    (finding,) = (one for one in result.report.findings if one.code == "class-imbalance")
    assert "common" in finding.message
    assert "unused-columns" not in codes(result)
    with pytest.raises(DataError, match="no row of train holds a class in the column 'tpic'"):
        rows.audit(train, class_field="tpic")
    with pytest.raises(DataError, match="no classes to balance"):
        rows.audit(train, balance="weight")


@pytest.mark.parametrize(
    ("rare", "balance", "severity", "parts"),
    [
        (1, "downsample", Severity.WARNING, ["with 1;", "16 rows of", "left out (80.0 % of 20)"]),
        (1, "weight", Severity.WARNING, ["'common', had 19 rows, 19.0 times as many as the smallest, 'rare', with 1;"]),
        (2, "downsample", Severity.WARNING, ["12 rows of", "left out (60.0 % of 20)"]),
        (2, "upsample", Severity.NOTE, ["repeated, 4 times in all"]),
        (4, "downsample", Severity.NOTE, ["4 rows of", "left out (20.0 % of 20)"]),
    ],
)
def test_balance_that_costs_most_rows_or_cannot_help_is_a_warning(
    rows: Rows, rare: int, balance: str, severity: Severity, parts: list[str]
) -> None:
    train = [chat(f"q{n}", f"long answer {n}", topic="rare" if n < rare else "common") for n in range(20)]
    report = rows.audit(train, class_field="topic", balance=balance).report
    (finding,) = (one for one in report.findings if one.code == "balanced")
    assert finding.severity is severity
    assert bool(finding.remedy) == (severity is Severity.WARNING)
    for part in parts:
        assert part in finding.message


def test_languages_are_told_by_name_and_a_few_rows_in_another_are_no_class(rows: Rows) -> None:
    chinese = [
        chat(f"请介绍一下第{n}号城市的历史和文化", f"第{n}号城市的历史很长，文化也非常丰富多彩。") for n in range(97)
    ]
    english = "The history of this city is long and its culture is rich, as you would expect of it."
    report = rows.audit([*chinese, *(chat(f"介绍一下第{n}座山的样子吧", f"{english} {n}") for n in range(3))]).report
    (finding,) = (one for one in report.findings if one.code == "language-mix")
    assert "answered in English" in finding.evidence[0]
    assert "language-imbalance" not in {one.code for one in report.findings}
    report = rows.audit([*chinese, *(chat(f"What about city {n}?", f"{english} {n}") for n in range(10))]).report
    (finding,) = (one for one in report.findings if one.code == "language-imbalance")
    assert finding.message.startswith("the language 'Chinese' has 97 rows of train, 9.7 times as many as 'English'")


def test_a_test_set_of_plain_text_stops_the_run_before_training(rows: Rows) -> None:
    result = rows.audit([chat("q", "a")], test=[{"text": "Only text."}])
    assert [finding.code for finding in result.report.errors] == ["test-not-answerable"]


def test_nothing_left_to_train_on_is_an_error(rows: Rows) -> None:
    with pytest.raises(DataError, match="within 16 tokens"):
        rows.audit([chat("a long question", "b")], max_length=16)
    with pytest.raises(DataError, match="more than the model's context of 512"):
        rows.audit([chat("q", "a")], max_length=600)
    with pytest.raises(DataError, match="1 row left out by the rule 'leakage'"):
        rows.audit([chat("q", "a")], test=[chat("q", "a")])


def test_bad_rows_end_the_check_with_their_places_or_are_left_out(rows: Rows) -> None:
    train = [chat("q", "a"), "{broken", chat("q", ""), chat("x", "y")]
    with pytest.raises(DataError, match=r"2 of 4 rows cannot be used[\s\S]*train\.jsonl:2[\s\S]*train\.jsonl:3"):
        rows.audit(train)
    result = rows.audit(train, on_bad_row="skip")
    assert [entry[1:] for entry in entries(result)] == [(2, "dropped", "bad-row"), (3, "dropped", "bad-row")]
    with pytest.raises(DataError, match="1 of 1 row cannot be used"):
        rows.audit(["{broken"], on_bad_row="skip")


def test_a_split_read_alone_is_the_audited_one(rows: Rows) -> None:
    data = rows.section(
        train=[chat("a", "b")], test=[chat("mail a.b@mail-host.com", "d"), chat("q" * 600, "a")], rules={"email": "fix"}
    )
    whole = audit(data, TEMPLATE, context_length=512, scratch_parent=rows.folder).splits["test"]
    alone = read_split("test", data, TEMPLATE, context_length=512, scratch_parent=rows.folder)
    assert list(alone.examples) == list(whole.examples)
    assert list(alone.tokenized) == list(whole.tokenized)
    assert alone.digest == whole.digest
    assert not read_split("validation", data, TEMPLATE, context_length=512).examples


def test_the_result_does_not_depend_on_the_number_of_processes(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.data.checks.scanned.CHUNK_ROWS", 4)
    train = [chat(f"question {n % 60}", f"the answer number {n % 55} is here") for n in range(100)]
    results = [rows.audit(train, num_proc=count, test=[chat("question 3", "z")]) for count in (1, 2)]
    assert entries(results[0]) == entries(results[1])
    assert results[0].splits["train"].digest == results[1].splits["train"].digest
    assert results[0].report.to_json() == results[1].report.to_json()


def test_every_code_of_a_finding_is_registered(rows: Rows) -> None:
    result = rows.audit([*LABELS, chat("mail a.b@mail-host.com", "<|im_end|>"), "{"], on_bad_row="skip", max_length=64)
    assert {finding.code for finding in result.report.findings} <= set(CODES)
