"""Files become rows with their places; every row is accounted for; broken files get one clear error."""

import csv
import gzip
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.tiny import byte_tokenizer
from tunesmith.config import DataRules, DataSection, HubDataset
from tunesmith.data.checks.entries import FlagStore, Journal
from tunesmith.data.checks.scanned import scan_splits
from tunesmith.data.records import Example, Message, Place
from tunesmith.data.rows import BadRow
from tunesmith.data.sources import iter_rows
from tunesmith.data.store import Scratch
from tunesmith.data.template import ChatTemplate
from tunesmith.errors import DataError, MissingPackageError

GOOD = b'{"prompt": "a", "completion": "b"}'


TEMPLATE = ChatTemplate(byte_tokenizer())


@dataclass
class ReadResult:
    """What a split holds."""

    examples: list[Example]
    bad_rows: list[BadRow]
    rows_read: int
    shapes: dict[str, int]
    unused_keys: dict[str, int]


def read(*paths: Path | str | HubDataset, split: str = "train", **section: Any) -> ReadResult:
    """Reads as the check does, with no rule on."""
    sources = [path if isinstance(path, (str, HubDataset)) else str(path) for path in paths]
    rules = dict.fromkeys(DataRules.model_fields, "off")
    data = DataSection.model_validate({"train": sources, "num_proc": 1, "rules": rules, **section})
    scratch = Scratch()
    journal, flags = Journal(scratch.folder / "dropped.jsonl"), FlagStore(scratch)
    scanned = scan_splits({split: sources}, data, TEMPLATE, scratch=scratch, journal=journal, flags=flags)[split]
    journal.finish()
    bad_rows = []
    for line in journal.path.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        place = Place(entry["file"], entry.get("line") or entry["row"], is_row_number="row" in entry)
        bad_rows.append(BadRow(place, entry["reason"], entry["before"]))
    assert scanned.rows_read == len(scanned.examples) + len(bad_rows)
    shapes, unused_keys = dict(scanned.shapes), dict(scanned.unused_keys)
    return ReadResult(list(scanned.examples), bad_rows, scanned.rows_read, shapes, unused_keys)


def error_of(*paths: Path | str | HubDataset, **section: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(*paths, **section)
    return str(caught.value)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, bytes], Path]:
    def write_file(name: str, content: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write_file


Write = Callable[[str, bytes], Path]


def lines_of(result: ReadResult) -> list[int]:
    return [example.place.line for example in result.examples]


# --- Each kind of file --------------------------------------------------------------------------------------------


def test_jsonl_places_are_lines_and_blank_lines_are_no_rows(write: Write) -> None:
    path = write("a.JSONL", b"\xef\xbb\xbf" + GOOD + b"\r\n\r\n" + GOOD + b"\r\n")
    result = read(path)
    assert [example.place for example in result.examples] == [Place(str(path), 1), Place(str(path), 3)]
    assert (result.rows_read, result.shapes) == (2, {"prompt_completion": 2})


def test_json_array_and_wrapped_array(write: Write) -> None:
    rows = b"[\n " + GOOD + b",\n " + GOOD + b"\n]\n"
    assert lines_of(read(write("a.json", rows))) == [2, 3]
    assert lines_of(read(write("b.json", b"\xef\xbb\xbf" + b'{"version": 1, "data": ' + rows + b"}"))) == [2, 3]


def test_a_row_of_an_array_is_named_by_the_line_it_starts_on(write: Write) -> None:
    rows = [{"prompt": f"{n}\n", "completion": "b"} for n in range(3)]
    pretty = json.dumps([*rows, 7], indent=2)
    path = write("a.json", b"\xef\xbb\xbf\r\n" + pretty.replace("\n", "\r\n").encode())
    result = read(path, on_bad_row="skip")
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    assert [lines[line - 1].strip() for line in lines_of(result)] == ["{"] * 3
    assert [str(bad.place) for bad in result.bad_rows] == [
        f"{path}:{next(i for i, t in enumerate(lines) if '7' in t) + 1}"
    ]


def test_rows_that_lines_cannot_tell_apart_are_named_by_number(write: Write) -> None:
    path = write("a.json", b"[" + GOOD + b", " + GOOD + b",\n" + GOOD + b"]")
    assert [str(example.place) for example in read(path).examples] == [f"{path}:1", f"{path}, row 2", f"{path}:2"]
    path = write("b.json", b'{"data": [' + GOOD + b", " + GOOD + b"]}")
    assert [str(example.place) for example in read(path).examples] == [f"{path}:1", f"{path}, row 2"]


def test_jsonl_under_the_name_of_json(write: Write) -> None:
    result = read(write("a.json", GOOD + b"\n\n" + GOOD + b"\nbroken\n"), on_bad_row="skip")
    assert lines_of(result) == [1, 3]
    assert [bad.place.line for bad in result.bad_rows] == [4]


def test_one_row_alone_in_a_json_file_is_no_wrapper(write: Write) -> None:
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    assert len(read(write("a.json", json.dumps(row, indent=2).encode())).examples) == 1


def test_csv_with_quoted_newlines_and_a_byte_order_mark(write: Write) -> None:
    path = write("a.csv", b'\xef\xbb\xbfprompt, completion\r\n"two\r\nlines, ""quoted""",b\r\n\r\nc,d\r\n')
    result = read(path)
    assert result.examples[0].messages[0] == Message("user", 'two\r\nlines, "quoted"')
    assert lines_of(result) == [2, 5]


@pytest.mark.parametrize(("name", "mark"), [("a.tsv", "\t"), ("a.csv", ";"), ("a.csv", "\t")])
def test_other_delimiters(write: Write, name: str, mark: str) -> None:
    result = read(write(name, f"prompt{mark}completion\na, or b{mark}c\n".encode()))
    assert [message.content for message in result.examples[0].messages] == ["a, or b", "c"]


def test_a_long_csv_field(write: Write) -> None:
    result = read(write("a.csv", b"text\n" + b"x" * 200_000 + b"\n"))
    assert len(result.examples[0].text or "") == 200_000


def test_paragraphs_of_plain_text(write: Write) -> None:
    result = read(write("a.txt", b"\xef\xbb\xbf\r\none\r\ntwo\r\n \r\n\r\nthree"))
    assert [(example.text, example.place.line) for example in result.examples] == [("one\ntwo", 2), ("three", 6)]


def test_parquet_with_turns(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    pq.write_table(pa.table({"messages": [turns, turns]}), tmp_path / "a.parquet")
    result = read(tmp_path / "a.parquet")
    assert result.examples[1].messages == (Message("user", "a"), Message("assistant", "b"))
    assert lines_of(result) == [1, 2]
    assert str(result.examples[1].place) == f"{tmp_path / 'a.parquet'}, row 2"


def test_several_files_and_shapes(write: Write) -> None:
    result = read(write("a.jsonl", GOOD + b'\n{"text": "c", "id": 1}'), write("b.csv", b"question,answer\nd,e\n"))
    assert result.shapes == {"prompt_completion": 1, "text": 1, "question_answer": 1}
    assert result.unused_keys == {"id": 1}


def test_rows_are_read_lazily(write: Write) -> None:
    path = write("a.json", b"[" + GOOD + b", broken")
    rows = iter_rows(str(path))
    assert next(rows) == (Place(str(path), 1), {"prompt": "a", "completion": "b"})
    with pytest.raises(DataError, match="broken JSON"):
        next(rows)


# --- Bad rows -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"prompt": "a"', "broken JSON: the line breaks off (column 15)"),
        (b"{'prompt': 'a'}", "broken JSON: single quotes where JSON has double ones (column 2)"),
        (b'["a"]', "an array, not an object; an array of rows belongs into a .json file"),
        (b'"a"', 'not an object: "a"'),
        (GOOD + GOOD, "more than one value on the line (column 35)"),
        (b'{"prompt": "a", "prompt": "b", "completion": "c"}', "the key 'prompt' is given twice"),
        (b'{"messages": [{"role": "user", "role": "assistant", "content": "c"}]}', "the key 'role' is given twice"),
        (b'{"prompt": "a", "completion": "b", "score": NaN}', "NaN is not JSON"),
        (b'{"prompt": "a", "completion": "b", "score": -Infinity}', "-Infinity is not JSON"),
        (b'{"prompt": "a", "completion": "\xff"}', "not UTF-8 text (byte 32 of the line)"),
        (b'{"prompt": "a\x00"}', "a NUL inside a text, which JSON writes as \\u0000 (column 14)"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b'{"a": ' * 100 + b"1" + b"}" * 101, "nested too deeply, more than 100 levels"),
        (b'{"n": ' + b"9" * 5000 + b"}", "a number of 5000 digits"),
    ],
)
def test_a_bad_line_is_one_bad_row(write: Write, line: bytes, reason: str) -> None:
    path = write("a.jsonl", GOOD + b"\n" + line + b"\n" + GOOD + b"\n")
    result = read(path, on_bad_row="skip")
    (bad,) = result.bad_rows
    assert reason in bad.reason
    assert bad.place == Place(str(path), 2)
    assert bad.raw.isprintable()
    assert len(bad.raw) <= 201
    assert lines_of(result) == [1, 3]


def test_bad_items_of_an_array(write: Write) -> None:
    result = read(write("a.json", b"[" + GOOD + b', 3, {"a": NaN}, {"a": 1, "a": 2}]'), on_bad_row="skip")
    assert [(bad.place.line, bad.reason) for bad in result.bad_rows] == [
        (2, "not an object: 3"),
        (3, "NaN is not JSON"),
        (4, "the key 'a' is given twice"),
    ]


def test_bad_rows_of_csv(write: Write) -> None:
    content = b"prompt,completion\na,b\na\na,b,c\na,\xff\na,\x00\na,b\n"
    result = read(write("a.csv", content), on_bad_row="skip")
    assert lines_of(result) == [2, 7]
    assert [(bad.place.line, bad.reason) for bad in result.bad_rows] == [
        (3, "1 values, but the header names 2 columns"),
        (4, "3 values, but the header names 2 columns"),
        (5, "not UTF-8 text"),
        (6, "holds a NUL byte"),
    ]


def test_bad_paragraphs(write: Write) -> None:
    result = read(write("a.txt", b"good\n\nb\xffd\n\n\x00\n"), on_bad_row="skip")
    assert [(bad.place.line, bad.reason) for bad in result.bad_rows] == [(3, "not UTF-8 text"), (5, "holds a NUL byte")]


def test_bad_text_in_parquet(tmp_path: Path) -> None:
    raw = pa.array([b"good", b"\xff\xfe", b"fine"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    pq.write_table(pa.table({"text": text}), tmp_path / "a.parquet")
    result = read(tmp_path / "a.parquet", on_bad_row="skip")
    assert [example.text for example in result.examples] == ["good", "fine"]
    assert [(bad.place.line, bad.reason) for bad in result.bad_rows] == [(2, "not UTF-8 text")]


def test_bad_rows_are_one_error_that_lists_the_first_ten(write: Write) -> None:
    path = write("a.jsonl", b"\n".join([GOOD, *[b'{"prompt": 1}'] * 12]))
    message = error_of(path)
    assert "data.train: 12 of 13 rows cannot be used" in message
    assert f"{path}:2: lacks" in message or f"{path}:2: not a known shape" in message
    assert f"{path}:11: " in message
    assert f"{path}:12: " not in message
    assert "and 2 more" in message
    assert "on_bad_row: skip" in message


def test_all_rows_bad_is_an_error_even_when_they_are_skipped(write: Write) -> None:
    message = error_of(write("a.jsonl", b'{"foo": 1}\n'), on_bad_row="skip")
    assert "1 of 1 row cannot be used" in message
    assert "it has 'foo'; accepted are" in message
    assert "on_bad_row" not in message


# --- Files that cannot be read ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "the file is empty"),
        ("a.jsonl", b"\xef\xbb\xbf", "the file is empty"),
        ("a.jsonl", b" \n\n", "holds no rows"),
        ("a.json", b" \n", "holds no rows"),
        ("a.json", b"[]", "holds no rows"),
        ("a.csv", b"prompt,completion\n", "holds no rows"),
        ("a.jsonl.gz", gzip.compress(GOOD, mtime=0), "holds gzip data"),
        ("a.jsonl", gzip.compress(GOOD, mtime=0), "holds gzip data"),
        ("a.csv", b"PK\x03\x04rest", "an Excel workbook"),
        ("a.json", "[]".encode("utf-16"), "holds UTF-16 text"),
        ("a.xyz", GOOD, "the ending '.xyz' is no data file's"),
        ("noending", GOOD, "a data file needs an ending"),
        ("a.json", b"[" + GOOD + b",\n  oops]", "broken JSON: Expecting value (line 2, column 3)"),
        ("a.json", b"[" + GOOD + b",\n", "the file breaks off (line 2, column 1)"),
        ("a.json", b"[" + GOOD + b"\n" + GOOD + b"]", "expected ',' or ']' after a row (line 2, column 1)"),
        ("a.json", b"[" + GOOD + b"] x", "more text after the end of the data"),
        ("a.json", b"[" * 100_000, "nested too deeply"),
        ("a.json", b'[\n"\xff"]', "a.json:2: not UTF-8 text"),
        ("a.json", b'"text"', "not an object"),
        ("a.json", b'{"train": [1], "test": [2]}', "several lists: 'train', 'test'"),
        ("a.csv", b'prompt,completion\na,b\n"never closed,b\nc,d\n', "a.csv:3: broken CSV"),
        ("a.csv", b"prompt,prompt\na,b\n", "the header names 'prompt' twice"),
        ("a.csv", b"pr\xffmpt,completion\na,b\n", "the header: not UTF-8 text"),
        ("a.csv", b",\na,b\n", "twice"),
        ("a.parquet", b"PAR1 but nothing else", "not readable as Parquet"),
        ("a.parquet", GOOD * 10, "not readable as Parquet"),
    ],
)
def test_an_unusable_file_gets_one_clear_error(write: Write, name: str, content: bytes, message: str) -> None:
    path = write(name, content)
    for policy in ("error", "skip"):
        text = error_of(path, on_bad_row=policy)
        assert message in text
        assert str(path) in text


def test_parquet_cut_short_or_under_another_name(tmp_path: Path, write: Write) -> None:
    pq.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "whole.parquet")
    whole = (tmp_path / "whole.parquet").read_bytes()
    assert "not readable as Parquet" in error_of(write("cut.parquet", whole[:-20]))
    assert "holds Parquet data" in error_of(write("a.jsonl", whole))


def test_a_parquet_column_whose_name_is_damaged(tmp_path: Path, write: Write) -> None:
    pq.write_table(pa.table({"täxt": ["a"]}), tmp_path / "whole.parquet", store_schema=False)
    whole = (tmp_path / "whole.parquet").read_bytes()
    message = error_of(write("a.parquet", whole.replace("täxt".encode(), b"t\xff\xffxt")))
    assert "not readable as Parquet" in message


def test_a_parquet_column_given_twice(tmp_path: Path) -> None:
    columns = [pa.array(["a"]), pa.array(["b"])]
    pq.write_table(pa.Table.from_arrays(columns, names=["text", "text"]), tmp_path / "a.parquet")
    assert "has the column 'text' twice" in error_of(tmp_path / "a.parquet")


def test_a_missing_file_names_where_it_was_looked_for_and_what_is_near(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("train.jsonl", GOOD)
    monkeypatch.chdir(tmp_path)
    message = error_of("trian.jsonl")
    assert f"no such file: {tmp_path / 'trian.jsonl'}" in message
    assert "did you mean 'train.jsonl'?" in message
    assert "there is no folder" in error_of("nowhere/train.jsonl")


def test_a_csv_file_without_a_header_is_one_error_that_shows_its_first_line(write: Write) -> None:
    path = write("a.csv", b"What is 2+2?,4\n" + b"What is 3+3?,6\n" * 20)
    for policy in ("error", "skip"):
        message = error_of(path, on_bad_row=policy)
        assert message.startswith(f"{path}: no row can be read: not a known shape")
        assert message.endswith("the first line must name the columns; it is 'What is 2+2?', '4'")
        assert message.count("not a known shape") == 1
    message = error_of(write("b.csv", b"Frage,Antwort\nWas ist 2+2?,4\n"))
    assert "with data.mapping, as --set 'data.mapping={prompt: Frage, completion: Antwort}'; " in message
    mapping = {"prompt": "What is 2+2?", "completion": "4"}
    assert len(read(path, mapping=mapping).examples) == 20


def test_a_csv_file_with_unknown_columns_is_refused_after_bad_rows_too(write: Write) -> None:
    path = write("a.csv", b"foo,bar\nonly one\na,b\n")
    assert "it has 'foo', 'bar'" in error_of(path, on_bad_row="skip")


@pytest.mark.parametrize("name", ["", "\0", "x" * 5000 + ".jsonl", "~nobody-of-this-name/a.jsonl", "a/b/c", "-"])
def test_names_that_are_no_file(name: str) -> None:
    with pytest.raises(DataError):
        list(iter_rows(name))


def test_a_folder_names_the_files_in_it(write: Write, tmp_path: Path) -> None:
    path = write("train.jsonl", GOOD)
    message = error_of(tmp_path)
    assert "this is a folder" in message
    assert str(path) in message


# --- The hub ------------------------------------------------------------------------------------------------------


class FakeHub:
    """Stands in for the `datasets` package: `rows` are streamed, then `failure` is raised."""

    def __init__(self, rows: list[dict[str, Any]], failure: Exception | None = None) -> None:
        self.rows = rows
        self.failure = failure
        self.asked: dict[str, Any] = {}
        self.logging = SimpleNamespace(set_verbosity_error=lambda: None)

    def disable_progress_bars(self) -> None:
        pass

    def load_dataset(self, path: str, name: str | None, **options: Any) -> Iterator[dict[str, Any]]:
        self.asked = {"path": path, "name": name, **options}
        yield from self.rows
        if self.failure is not None:
            raise self.failure


def test_a_hub_dataset_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub([{"question": "a", "answer": "b"}])
    monkeypatch.setitem(sys.modules, "datasets", hub)
    result = read(HubDataset(path="owner/name", name="main", split="test", revision="v1"))
    assert result.examples[0].place == Place("hub:owner/name/test", 1, is_row_number=True)
    assert str(result.examples[0].place) == "hub:owner/name/test, row 1"
    assert hub.asked == {"path": "owner/name", "name": "main", "split": "test", "revision": "v1", "streaming": True}


def test_a_hub_name_alone_takes_the_split_it_stands_for(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub([{"question": "a", "answer": "b"}])
    monkeypatch.setitem(sys.modules, "datasets", hub)
    read("owner/name", split="validation")
    assert (hub.asked["path"], hub.asked["split"]) == ("owner/name", "validation")


def test_a_hub_failure_is_one_error_that_names_the_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    failure = ConnectionError("Couldn't reach\nthe Hub")
    monkeypatch.setitem(sys.modules, "datasets", FakeHub([{"question": "a", "answer": "b"}], failure))
    message = error_of("owner/name")
    assert message.startswith("hub:owner/name/train: cannot be read: Couldn't reach the Hub")


def test_without_the_datasets_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingPackageError, match=r"tunesmith\[hub\]"):
        read("owner/name")


def test_a_folder_with_the_name_of_a_hub_dataset_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", FakeHub([{"question": "a", "answer": "b"}]))
    assert "has the name of this hub dataset" in error_of(HubDataset(path="owner/name"))
    assert "no such file" in error_of("owner/other")


# --- Properties ---------------------------------------------------------------------------------------------------

in_one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)

ROLES = ("user", "assistant")
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(lambda text: text.strip())
conversations = st.lists(st.tuples(texts, texts), min_size=1, max_size=3).map(
    lambda pairs: [
        {"role": role, "content": content} for pair in pairs for role, content in zip(ROLES, pair, strict=True)
    ]
)


@in_one_folder
@given(rows=st.lists(conversations, min_size=1, max_size=5))
def test_messages_survive_every_format(tmp_path: Path, rows: list[list[dict[str, str]]]) -> None:
    values = [{"messages": turns} for turns in rows]
    (tmp_path / "a.json").write_text(json.dumps(values, indent=1), encoding="utf-8")
    jsonl = "\n".join(json.dumps(value, ensure_ascii=False) for value in values)
    (tmp_path / "a.jsonl").write_text(jsonl, encoding="utf-8", newline="")
    pq.write_table(pa.Table.from_pylist(values), tmp_path / "a.parquet")
    expected = [tuple(Message(turn["role"], turn["content"]) for turn in turns) for turns in rows]
    for name in ("a.json", "a.jsonl", "a.parquet"):
        assert [example.messages for example in read(tmp_path / name).examples] == expected


@in_one_folder
@given(pairs=st.lists(st.tuples(texts, texts), min_size=1, max_size=5))
def test_pairs_survive_csv(tmp_path: Path, pairs: list[tuple[str, str]]) -> None:
    pairs = [(prompt.replace("\0", "0"), answer.replace("\0", "0")) for prompt, answer in pairs]
    with (tmp_path / "a.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("prompt", "completion"), *pairs])
    read_back = [tuple(m.content for m in example.messages) for example in read(tmp_path / "a.csv").examples]
    assert read_back == pairs


@in_one_folder
@given(goods=st.lists(st.booleans(), min_size=1, max_size=30), endings=st.sampled_from([b"\n", b"\r\n"]))
def test_every_row_is_accounted_for(tmp_path: Path, goods: list[bool], endings: bytes) -> None:
    broken = [b"{", b"[]", b"null", b'{"prompt": "a"}', b"\xff", b'{"text": ""}']
    lines = [GOOD if good else broken[index % len(broken)] for index, good in enumerate(goods)]
    path = tmp_path / "a.jsonl"
    path.write_bytes(endings.join([GOOD, *lines]))
    result = read(path, on_bad_row="skip")
    assert result.rows_read == len(result.examples) + len(result.bad_rows) == len(goods) + 1
    assert lines_of(result) == [1, *(number for number, good in enumerate(goods, 2) if good)]
    assert [bad.place.line for bad in result.bad_rows] == [number for number, good in enumerate(goods, 2) if not good]


@in_one_folder
@given(content=st.binary(max_size=60) | st.text('[]{}":,a1 \n\\', max_size=40).map(str.encode))
@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "tsv", "txt", "parquet"])
def test_any_bytes_are_rows_or_a_data_error(tmp_path: Path, ending: str, content: bytes) -> None:
    path = tmp_path / f"a.{ending}"
    path.write_bytes(content)
    failure = None
    rows = []
    try:
        rows = list(iter_rows(str(path)))
    except DataError as error:
        failure = str(error)
    assert failure is None or str(path) in failure
    for place, row in rows:
        assert place.line >= 1
        assert isinstance(row, dict) or (isinstance(row, BadRow) and row.reason and row.raw.isprintable())
