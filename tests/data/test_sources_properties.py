"""Whatever rows a file holds come back with their places, however it is written and wherever its chunks end.

Places are compared with ones counted in the text that was written; broken files with what one big chunk gives.
"""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.data import files, json_rows, json_window
from tunesmith.data.records import Place
from tunesmith.data.rows import BadRow
from tunesmith.data.sources import iter_rows
from tunesmith.errors import DataError

in_one_folder = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None, max_examples=40
)

BOM = b"\xef\xbb\xbf"

any_text = st.text(max_size=12) | st.text('\\"/{}[],:\u2028\x7f漢🙂\ud83d\udc4d\x00\n\r\t', max_size=8)
whole_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.just(10**30)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=6,
)
json_objects = st.dictionaries(any_text, json_values, max_size=4)
blanks = st.text(" \t\n\r", max_size=3)
chunk_sizes = st.integers(1, 9)


def as_json(value: Any, *, indent: int | None = None, escaped: bool = True) -> str:
    """JSON that UTF-8 can hold: with escapes where there are half characters."""
    try:
        text = json.dumps(value, indent=indent, ensure_ascii=escaped)
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(value, indent=indent)
    return text


def rows_of(path: Path) -> list[tuple[Place, dict[str, Any]]]:
    rows = []
    for place, row in iter_rows(str(path)):
        assert isinstance(row, dict), row
        rows.append((place, row))
    return rows


def outcome(path: Path) -> tuple[list[tuple[str, str]], str]:
    """The rows with their places as text, and the error that ends them, "" for none."""
    rows = []
    try:
        rows += [(str(place), repr(row)) for place, row in iter_rows(str(path))]
    except DataError as error:
        return rows, str(error)
    return rows, ""


# --- JSON ---------------------------------------------------------------------------------------------------------


@in_one_folder
@given(data=st.data(), rows=st.lists(json_objects, max_size=5), chunk=chunk_sizes, wrapped=st.booleans())
def test_an_array_comes_back_with_the_lines_of_its_rows(
    tmp_path: Path, data: st.DataObject, rows: list[dict[str, Any]], chunk: int, wrapped: bool
) -> None:
    text = data.draw(blanks)
    if wrapped:
        text += as_json({"version": data.draw(json_values.filter(lambda value: not isinstance(value, list)))})[:-1]
        text += f',{data.draw(blanks)}"data"{data.draw(blanks)}:{data.draw(blanks)}'
    text += "["
    places, line_before = [], 0
    for number, row in enumerate(rows, 1):
        text += data.draw(blanks) + ("," if number > 1 else "") + data.draw(blanks)
        line = text.count("\n") + 1
        places.append((line, False) if line > line_before else (number, True))
        line_before = line
        text += as_json(row, indent=data.draw(st.sampled_from([None, 1])), escaped=data.draw(st.booleans()))
    text += data.draw(blanks) + "]" + (data.draw(blanks) + ', "license": "x"}' if wrapped else "") + data.draw(blanks)
    path = tmp_path / "a.json"
    path.write_bytes(data.draw(st.sampled_from([b"", BOM])) + text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_window, "CHUNK_BYTES", chunk)
        there = rows_of(path)
    content = json.loads(text)
    assert [row for _, row in there] == (content["data"] if wrapped else content)
    assert [place for place, _ in there] == [Place(str(path), line, is_number) for line, is_number in places]


@st.composite
def broken_json(draw: st.DrawFn) -> bytes:
    """JSON that was cut, changed or extended somewhere, or is but a heap of its tokens."""
    if draw(st.booleans()):
        tokens = st.sampled_from(
            [*'[]{},:" \n\\', '"a"', "1", "-", "0.5e", "true", "nul", "NaN", "-Inf", "\\u12", "'", "//", "漢", "\ud83d"]
        )
        return "".join(draw(st.lists(tokens, max_size=15))).encode(errors="surrogatepass")
    content = bytearray(as_json(draw(st.lists(json_objects, max_size=3)), escaped=draw(st.booleans())).encode())
    at = draw(st.integers(0, len(content)))
    content[at : at + draw(st.integers(0, 3))] = draw(st.sampled_from([b"", b"]", b",", b'"', b"\n", b"\xff", b"\x00"]))
    return bytes(content[: draw(st.integers(0, len(content)))]) if draw(st.booleans()) else bytes(content)


@settings(in_one_folder, max_examples=120)
@given(content=broken_json(), chunk=chunk_sizes)
@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_what_comes_of_a_broken_file_does_not_depend_on_its_chunks(
    tmp_path: Path, ending: str, content: bytes, chunk: int
) -> None:
    path = tmp_path / f"a.{ending}"
    path.write_bytes(content)
    whole = outcome(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_window, "CHUNK_BYTES", chunk)
        assert outcome(path) == whole


@settings(in_one_folder, max_examples=120)
@given(content=broken_json())
def test_an_array_is_read_whole_or_refused_as_pythons_decoder_would(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"[" + content)
    rows, error = outcome(path)
    try:
        values = json.loads((b"[" + content).decode())
    except ValueError:
        assert error
    else:
        assert len(rows) == len(values)
        assert not error


@in_one_folder
@given(data=st.data(), rows=st.lists(json_objects, max_size=5))
@pytest.mark.parametrize("ending", ["jsonl", "ndjson", "json"])
def test_lines_of_json_come_back_with_their_numbers(
    tmp_path: Path, ending: str, data: st.DataObject, rows: list[dict[str, Any]]
) -> None:
    end = data.draw(st.sampled_from(["\n", "\r\n"]))
    lines: list[str] = []
    numbers = []
    for row in [{"a": 1}, *rows, {"b": 2}]:
        lines += data.draw(st.lists(st.sampled_from(["", " ", "\t"]), max_size=2))
        lines.append(data.draw(st.sampled_from(["", " "])) + as_json(row, escaped=data.draw(st.booleans())))
        numbers.append(len(lines))
    path = tmp_path / f"a.{ending}"
    path.write_bytes(data.draw(st.sampled_from([b"", BOM])) + end.join(lines).encode())
    there = rows_of(path)
    assert [row for _, row in there] == [json.loads(lines[number - 1]) for number in numbers]
    assert [place for place, _ in there] == [Place(str(path), number) for number in numbers]


# --- CSV, text and Parquet ----------------------------------------------------------------------------------------


@in_one_folder
@given(
    rows=st.lists(st.tuples(whole_text, whole_text), min_size=1, max_size=5),
    mark=st.sampled_from([",", ";", "\t"]),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    bom=st.sampled_from([b"", BOM]),
)
def test_csv_comes_back_with_the_lines_of_its_rows(
    tmp_path: Path, rows: list[tuple[str, str]], mark: str, end: str, bom: bytes
) -> None:
    rows = [(prompt.replace("\0", "0"), answer.replace("\0", "0")) for prompt, answer in rows]
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=mark, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerow(["prompt", "completion"])
    lines = []
    for row in rows:
        lines.append(len(re.findall(r"\r\n|\r|\n", text.getvalue())) + 1)
        writer.writerow(row)
    path = tmp_path / "a.csv"
    path.write_bytes(bom + text.getvalue().encode())
    there = rows_of(path)
    assert [row for _, row in there] == [{"prompt": prompt, "completion": answer} for prompt, answer in rows]
    assert [place for place, _ in there] == [Place(str(path), line) for line in lines]


@in_one_folder
@given(
    texts=st.lists(st.none() | whole_text, min_size=1, max_size=7),
    lists=st.lists(st.lists(st.fixed_dictionaries({"role": whole_text}), max_size=2), min_size=7, max_size=7),
    batch=st.integers(1, 3),
    group=st.integers(1, 4),
)
def test_parquet_comes_back_with_the_numbers_of_its_rows(
    tmp_path: Path, texts: list[str | None], lists: list[list[dict[str, str]]], batch: int, group: int
) -> None:
    rows = [{"text": text, "turns": turns} for text, turns in zip(texts, lists, strict=False)]
    schema = pa.schema([("text", pa.string()), ("turns", pa.list_(pa.struct([("role", pa.string())])))])
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema), path, row_group_size=group)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_PARQUET_BATCH", batch)
        there = rows_of(path)
    assert there == [(Place(str(path), number, is_row_number=True), row) for number, row in enumerate(rows, 1)]


# --- Accounting ---------------------------------------------------------------------------------------------------

scraps = st.lists(
    st.sampled_from(
        [b"\n", b"\n\n", b"\r\n", b'{"a": 1}', b'{"a": "', b"}", b"[1]", b"\xff", b"\x00", b"a,b", b'"', b" "]
    )
    | st.binary(max_size=4),
    max_size=12,
).map(b"".join)


@settings(in_one_folder, max_examples=80)
@given(content=scraps)
def test_each_line_of_jsonl_is_a_row_or_a_bad_row(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' + content)
    rows, error = outcome(path)
    filled = [number for number, line in enumerate(content.split(b"\n"), 2) if line.strip()]
    assert [place for place, _ in rows] == [f"{path}:{number}" for number in [1, *filled]]
    assert not error


@settings(in_one_folder, max_examples=80)
@given(content=scraps)
def test_each_paragraph_of_text_is_a_row_or_a_bad_row(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"first\n\n" + content)
    rows, error = outcome(path)
    lines = re.split(r"\r\n|\r|\n", content.decode(errors="replace"))
    starts = [n for n, line in enumerate(lines) if line.strip() and (n == 0 or not lines[n - 1].strip())]
    assert [place for place, _ in rows] == [f"{path}:{number}" for number in [1, *(start + 3 for start in starts)]]
    assert not error


@settings(in_one_folder, max_examples=80)
@given(content=scraps)
def test_each_record_of_csv_is_a_row_or_a_bad_row_or_the_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"a,b\n" + content)
    rows, error = outcome(path)
    text = content.decode(errors="replace").replace("\0", "0")
    try:
        records = [record for record in csv.reader(io.StringIO(text, newline=""), strict=True) if record]
    except csv.Error:
        assert error
    else:
        assert len(rows) == len(records)
        assert not error


@settings(in_one_folder, max_examples=50)
@given(content=st.binary(max_size=80) | scraps | broken_json())
@pytest.mark.parametrize("ending", ["json", "jsonl", "csv", "tsv", "txt", "parquet"])
def test_any_bytes_are_rows_and_bad_rows_with_places_or_one_data_error(
    tmp_path: Path, ending: str, content: bytes
) -> None:
    path = tmp_path / f"a.{ending}"
    path.write_bytes(content)
    places = []
    try:
        for place, row in iter_rows(str(path)):
            places.append((place.is_row_number, place.line))
            assert isinstance(row, dict) or (isinstance(row, BadRow) and row.reason and row.raw.isprintable())
    except DataError as error:
        assert str(error).startswith(str(path))
        assert "\n" not in error.message
    assert len(set(places)) == len(places)


@in_one_folder
@given(data=st.data())
def test_a_damaged_parquet_file_is_rows_or_a_data_error(tmp_path: Path, data: st.DataObject) -> None:
    whole = tmp_path / "whole.parquet"
    if not whole.exists():
        pq.write_table(pa.table({"text": ["é"] * 9, "n": range(9)}), whole, compression="none")
    content = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(4, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "a.parquet"
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))] if data.draw(st.booleans()) else content)
    _, error = outcome(path)
    assert not error or error.startswith(str(path))


def test_the_first_line_of_an_array_under_the_name_of_json_may_be_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_rows, "_FIRST_LINE_BYTES", 50)
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"data": [{"a": 1}] * 10}) + "\n", encoding="utf-8")
    assert len(rows_of(path)) == 10
