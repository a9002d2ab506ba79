"""JSON and JSONL: what is wrong is named with its place, whatever the size of the chunks; long rows are not kept."""

import csv
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tunesmith.data import files, json_rows, json_window
from tunesmith.data.rows import BadRow
from tunesmith.data.sources import iter_rows
from tunesmith.errors import DataError

GOOD = b'{"prompt": "a", "completion": "b"}'
MIB = 2**20

Write = Callable[[str, bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(name: str, content: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write_file


def outcome(path: Path) -> tuple[list[str], str]:
    """The places of the rows, with the reason where one is bad, and the error that ends them, "" for none."""
    rows = []
    try:
        for place, row in iter_rows(str(path)):
            where = str(place).replace(str(path), path.name)
            rows.append(f"{where}: {row.reason}" if isinstance(row, BadRow) else where)
    except DataError as error:
        return rows, str(error).replace(str(path), path.name)
    return rows, ""


# --- What is wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"prompt": "a', "a text that is never closed (column 12)"),
        (b'{"prompt": "a",}', "a comma before the closing bracket (column 1"),
        (b'{"prompt": [1, ]}', "a comma before the closing bracket (column 1"),
        (GOOD + b",", "a comma after the object, which JSONL does not have (column 35)"),
        (b'{"a": 1} // one', "more than one value on the line (column 10)"),
        (b'{"a": // one', "a comment, which JSON does not have (column 7)"),
        (b'{"a": None}', "None, True or False of Python"),
        (rb'{"a": "C:\path"}', "a single backslash inside a text"),
        (b'{"a": "say "hi""}', "a quote inside a text is written as"),
        (b'{"a": "one\ttwo"}', r"a tab inside a text, which JSON writes as \t"),
        (b'{"a": "one\x01two"}', r"a control character inside a text, which JSON writes as \u0001"),
        (b"\xef\xbb\xbf" + GOOD, "a byte order mark in the middle of the file"),
        ("{“a”: 1}".encode(), "curly quotes"),
    ],
)
def test_a_usual_slip_of_syntax_is_named(write: Write, line: bytes, reason: str) -> None:
    rows, error = outcome(write("a.jsonl", GOOD + b"\n" + line + b"\n" + GOOD))
    assert (rows[0], rows[2], error) == ("a.jsonl:1", "a.jsonl:3", "")
    assert rows[1].startswith("a.jsonl:2: ")
    assert reason in rows[1]


@pytest.mark.parametrize("chunk", [1, 5, 2**20])
@pytest.mark.parametrize(
    ("content", "rows_before", "message"),
    [
        (b"[" + GOOD + b",\n]", 1, "a comma before the closing bracket (line 2, column 1)"),
        (b'{"data": [' + GOOD + b"],\n}", 0, "a comma before the closing bracket (line 2, column 1)"),
        (b"[" + GOOD + b",\n// two\n" + GOOD + b"]", 1, "a comment, which JSON does not have (line 2, column 1)"),
        (b"[{'prompt': 'a'}]", 0, "single quotes where JSON has double ones (line 1, column 3)"),
        (b'{"data": [' + GOOD + b"] \n 'b': 1}", 0, "expected ',' or '}' after a value (line 2, column 2)"),
        (b'{"data" [' + GOOD + b"]}", 0, "expected ':' after a key (line 1, column 9)"),
        (b'{"data": [' + GOOD + b"],\n b: 1}", 0, "expected a key in double quotes (line 2, column 2)"),
        (b'{"data": [' + GOOD + b'], "data": []}', 0, "the key 'data' is given twice"),
        (b'{"data": [' + GOOD + b'], "loss": NaN}', 0, "NaN is not JSON"),
        (b'{\n"a": 1}\n{\n"a": 2}', 0, "another object after the end of the first (line 3, column 1)"),
        (b"[" + GOOD + b"\n,\n  " + GOOD + b",\n  {\xff}]", 2, "a.json:4: not UTF-8 text (column 4)"),
        ('["漢字 🙂",\n  "漢字 🙂" oops]'.encode(), 2, "expected ',' or ']' after a row (line 2, column 10)"),
        (b"[" + GOOD + b", {" + b'"a": [' * 5000, 1, "(line 1, column "),
        (b"[12345, 1e5, -0.25", 3, "the file breaks off (line 1, column 19)"),
    ],
)
def test_broken_json_is_one_error_after_the_rows_before_it(
    write: Write, monkeypatch: pytest.MonkeyPatch, chunk: int, content: bytes, rows_before: int, message: str
) -> None:
    monkeypatch.setattr(json_window, "CHUNK_BYTES", chunk)
    rows, error = outcome(write("a.json", content))
    assert len(rows) == rows_before
    assert message in error
    assert "remedy: " in error


def test_an_object_with_very_many_keys_is_no_list_of_rows(write: Write) -> None:
    rows, error = outcome(write("a.json", json.dumps({str(n): {"text": "a"} for n in range(1001)}).encode()))
    assert not rows
    assert "more than 1,000 keys" in error


def test_objects_over_several_lines_are_one_error(write: Write) -> None:
    rows, error = outcome(write("a.jsonl", b'\n{"prompt": "a",\n"completion": "b"}\n' * 3))
    assert not rows
    assert error.startswith("a.jsonl:2: one object goes over lines 2 to 3")
    assert "jq -c" in error


def test_a_bad_row_within_a_wrapped_array_is_one_bad_row(write: Write) -> None:
    content = b'{"data": [' + GOOD + b',\n{"a": 1, "a": 2},\n' + GOOD + b"]}"
    assert outcome(write("a.json", content)) == (["a.json:1", "a.json:2: the key 'a' is given twice", "a.json:3"], "")


def test_one_object_is_the_row_itself_where_it_has_a_shapes_keys(write: Write) -> None:
    assert outcome(write("a.json", b'\n{"documents": [{"a": 1}],\n"question": "b", "answer": "c"}')) == (
        ["a.json:2"],
        "",
    )


# --- Kinds of lines -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("length", [51, 52, 53, 170])
def test_a_line_too_long_is_one_bad_row(write: Write, monkeypatch: pytest.MonkeyPatch, end: bytes, length: int) -> None:
    monkeypatch.setattr(json_rows, "MAX_ROW_BYTES", 50)
    monkeypatch.setattr(json_rows, "CHUNK_BYTES", 7)
    rows, error = outcome(write("a.jsonl", GOOD + end + b"x" * length + end + GOOD))
    assert rows == ["a.jsonl:1", "a.jsonl:2: the line is longer than 50 bytes", "a.jsonl:3"]
    assert not error


@pytest.mark.parametrize("chunk", [1, 5, 2**20])
def test_a_row_of_an_array_that_is_too_long_is_an_error(
    write: Write, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(json_window, "MAX_ROW_BYTES", 50)
    monkeypatch.setattr(json_window, "CHUNK_BYTES", chunk)
    rows, error = outcome(write("a.json", b"[" + GOOD + b",\n{" + b'"a": "' + b"x" * 43 + b'"}]'))
    assert rows == ["a.json:1"]
    assert error.startswith("a.json:2: the row that begins here is longer than 50 characters")
    rows, error = outcome(write("a.json", b"[" + GOOD + b",\n{" + b'"a": "' + b"x" * 41 + b'"}]'))
    assert (rows, error) == (["a.json:1", "a.json:2"], "")


def test_lines_that_end_in_cr_only(write: Write) -> None:
    content = b"\xef\xbb\xbf" + GOOD + b"\r\r" + GOOD + b"\rbroken\r"
    expected = [":1", ":3", ":4: broken JSON: Expecting value (column 1)"]
    for name in ("a.jsonl", "a.json"):
        assert outcome(write(name, content)) == ([name + rest for rest in expected], "")
    assert outcome(write("b.jsonl", GOOD + b"\r")) == (["b.jsonl:1"], "")
    assert outcome(write("a.csv", b"text\ra\r\rb\r")) == (["a.csv:2", "a.csv:4"], "")
    assert outcome(write("a.txt", b"a\r\rb\r")) == (["a.txt:1", "a.txt:3"], "")


def test_an_array_under_the_name_of_jsonl(write: Write) -> None:
    content = b"\xef\xbb\xbf[\n" + GOOD + b",\n" + GOOD + b"\n]\n"
    assert outcome(write("a.jsonl", content)) == (["a.jsonl:2", "a.jsonl:3"], "")


def test_text_too_long(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_ROW_BYTES", 50)
    monkeypatch.setattr(files, "_PART", 7)
    reason = "the paragraph is longer than 50 characters; a blank line ends one"
    one_line = b"a\n\n" + b"x" * 170 + b"\ny\n\nb"
    assert outcome(write("a.txt", one_line)) == (["a.txt:1", f"a.txt:3: {reason}", "a.txt:6"], "")
    many_lines = b"a\n\n" + b"x\n" * 40 + b"\nb"
    assert outcome(write("b.txt", many_lines)) == (["b.txt:1", f"b.txt:3: {reason}", "b.txt:44"], "")
    _, error = outcome(write("a.csv", b"text\n" + b"x," * 30))
    assert error.startswith("a.csv:2: the line is longer than 50 characters")


# --- Memory -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "before", "between", "after"), [
    ("a.json", b"[", b",\n", b"]"),
    ("b.json", b'{"version": 1, "data": [', b", ", b'], "license": "x"}'),
    ("a.jsonl", b"", b"\n", b"\n"),
    ("c.json", b"", b"\n", b"\n"),
])  # fmt: skip
def test_memory_does_not_grow_with_the_file(
    write: Write, monkeypatch: pytest.MonkeyPatch, name: str, before: bytes, between: bytes, after: bytes
) -> None:
    monkeypatch.setattr(json_window, "CHUNK_BYTES", 2**14)
    monkeypatch.setattr(json_rows, "_FIRST_LINE_BYTES", 2**14)
    row = json.dumps({"text": "漢" * 2000}, ensure_ascii=False).encode()
    path = write(name, before + between.join([row] * 1500) + after)
    assert path.stat().st_size > 8 * MIB
    assert peak_memory_of_reading(path) < MIB


@pytest.mark.parametrize(
    ("name", "before", "repeated"),
    [
        ("a.jsonl", b"", b"x"),
        ("a.json", b'[{"a": "', b"x"),
        ("a.txt", b"", b"x"),
        ("b.txt", b"", b"x" * 127 + b"\n"),
        ("a.csv", b"a\n", b"x"),
        ("b.csv", b'a\n"', b"x" * 127 + b"\n"),
    ],
)
def test_memory_does_not_grow_with_a_row_without_end(
    write: Write, monkeypatch: pytest.MonkeyPatch, name: str, before: bytes, repeated: bytes
) -> None:
    for module in (json_rows, json_window):
        monkeypatch.setattr(module, "CHUNK_BYTES", 2**14)
    for module in (json_rows, json_window, files):
        monkeypatch.setattr(module, "MAX_ROW_BYTES", 2**16)
    monkeypatch.setattr(files, "_PART", 2**14)
    limit = csv.field_size_limit(2**16)
    try:
        assert peak_memory_of_reading(write(name, before + repeated * (8 * MIB // len(repeated)))) < MIB
    finally:
        csv.field_size_limit(limit)


def test_memory_does_not_grow_with_a_row_group_of_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = [str(number) * 1000 for number in range(4000)]
    pq.write_table(pa.table({"text": texts}), path, compression="none", use_dictionary=False)
    assert path.stat().st_size > 12 * MIB
    del texts
    before = pa.total_allocated_bytes()
    assert max(pa.total_allocated_bytes() - before for _ in iter_rows(str(path))) < 6 * MIB


def peak_memory_of_reading(path: Path) -> int:
    tracemalloc.start()
    try:
        for _ in iter_rows(str(path)):
            pass
    except DataError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak
