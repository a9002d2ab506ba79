"""What is no file of text in a known format is refused at once, with what it is and what to do."""

import bz2
import gzip
import io
import lzma
import os
import pickle
import socket
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tunesmith.data.sources import iter_rows
from tunesmith.errors import DataError

ROW = b'{"prompt": "a", "completion": "b"}\n'
ENDINGS = ("json", "jsonl", "csv", "txt", "parquet")

Write = Callable[[str, bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(name: str, content: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write_file


def error_of(path: Path | str) -> str:
    with pytest.raises(DataError) as caught:
        list(iter_rows(str(path)))
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


def archive(*names: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name in names:
            file.writestr(name, ROW)
    return content.getvalue()


def tar() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as file:
        entry = tarfile.TarInfo("a.jsonl")
        entry.size = len(ROW)
        file.addfile(entry, io.BytesIO(ROW))
    return content.getvalue()


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    ("content", "what", "remedy"),
    [
        (gzip.compress(ROW, mtime=0), "gzip data", "gunzip"),
        (bz2.compress(ROW), "bzip2 data", "bunzip2"),
        (lzma.compress(ROW), "xz data", "unxz"),
        (b"\x28\xb5\x2f\xfd\x04\x00", "zstandard data", "zstd -d"),
        (archive("a.jsonl"), "a zip archive", "unpack it"),
        (archive("[Content_Types].xml", "xl/workbook.xml"), "an Excel workbook", "as CSV"),
        (archive("[Content_Types].xml", "word/document.xml"), "a Word document", ".txt"),
        (tar(), "a tar archive", "unpack it"),
        (b"%PDF-1.7\n", "a PDF document", ".txt"),
        (b"\x89PNG\r\n\x1a\n\x00", "a PNG image", "images cannot be read"),
        (pickle.dumps([{"prompt": "a"}]), "a Python pickle", "as JSONL"),
        (b"\x93NUMPY\x01\x00", "a NumPy array", "as JSONL"),
        (b"SQLite format 3\x00", "an SQLite database", "as CSV"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer", "git lfs pull"),
        (ROW.decode().encode("utf-16"), "UTF-16 text", "iconv -f UTF-16 -t UTF-8"),
        (ROW.decode().encode("utf-16-be"), "UTF-16 text", "iconv -f UTF-16BE -t UTF-8"),
        (ROW.decode().encode("utf-32"), "UTF-32 text", "iconv -f UTF-32 -t UTF-8"),
        (ROW.decode().encode("utf-32-le"), "UTF-32 text", "iconv -f UTF-32LE -t UTF-8"),
    ],
)
def test_another_format_is_named_with_the_way_out(
    write: Write, ending: str, content: bytes, what: str, remedy: str
) -> None:
    first_line, last_line = error_of(write(f"a.{ending}", content)).split("\n")
    assert f"holds {what}" in first_line
    assert remedy in last_line


CHINESE = "请介绍一下春天的景色。春天来了，草木发芽，百花盛开，人们都喜欢到公园里散步，享受温暖的阳光。"
KOREAN = "봄이 오면 꽃이 피고 사람들은 공원에서 따뜻한 햇살을 즐깁니다. 오늘 날씨가 아주 좋습니다."
TRADITIONAL = "請介紹一下春天的景色。春天來了，草木發芽，百花盛開，人們都喜歡到公園裡散步，享受溫暖的陽光。"


@pytest.mark.parametrize(
    "form", ['{{"prompt": "{0}", "completion": "{0}"}}\n', "prompt,completion\n{0},{0}\n", "{0}\n"]
)
@pytest.mark.parametrize(
    ("text", "codec", "name"),
    [
        (CHINESE, "gbk", "GB18030"),
        (CHINESE, "gb18030", "GB18030"),
        (TRADITIONAL, "big5", "Big5"),
        (KOREAN, "euc-kr", "EUC-KR"),
    ],
)
@pytest.mark.parametrize("rows", [1, 2000])
def test_an_east_asian_encoding_is_named_with_the_way_out(
    write: Write, form: str, text: str, codec: str, name: str, rows: int
) -> None:
    ending = "jsonl" if form.startswith("{{") else "csv" if "," in form else "txt"
    message = error_of(write(f"a.{ending}", (form.format(text) * rows).encode(codec)))
    assert f"holds {name}" in message
    iconv = {"EUC-KR": "CP949", "Big5": "BIG5-HKSCS"}.get(name, name)
    assert f"iconv -f {iconv} -t UTF-8" in message


@pytest.mark.parametrize(
    "content",
    [
        CHINESE.encode(),
        ("plain English, " * 100).encode() + CHINESE[:10].encode("gbk"),
        "El niño comió piñones y después bebió café à la crème, où l'été était déjà fini, größer als früher. "
        "ÀÉÈÇ ÄÖÜ ß".encode("cp1252"),
        b"a row of rubbish\n" + b"\xa1\xa1" * 40,
        "Съешь же ещё этих мягких французских булок, да выпей чаю.".encode("cp1251"),
    ],
)
def test_other_texts_are_not_taken_for_east_asian(write: Write, content: bytes) -> None:
    assert list(iter_rows(str(write("a.txt", content))))


def test_a_web_page_is_no_data_but_may_be_text(write: Write) -> None:
    page = b"\r\n<!DOCTYPE html>\n<html></html>\n"
    for ending in ("json", "jsonl", "csv", "parquet"):
        assert "holds a web page" in error_of(write(f"a.{ending}", page))
    assert len(list(iter_rows(str(write("a.txt", page))))) == 1


@pytest.mark.parametrize(
    "text", ["ORCID,text\na,b\n", "PK,text\na,b\n", "text\nustar" + "\nustar" * 60, "BZh,text\na,b\n"]
)
def test_text_that_only_looks_like_another_format_is_read(write: Write, text: str) -> None:
    assert list(iter_rows(str(write("a.csv", text.encode()))))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.zip", "a.tar"])
def test_an_ending_of_an_archive_says_to_unpack_it(write: Write, name: str) -> None:
    assert "unpack it" in error_of(write(name, b"no archive"))


def test_the_error_about_a_file_that_may_not_be_read_says_how_it_may(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("a.jsonl", ROW)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # root may read everything, so no mode of the file would do
    message = error_of(path)
    assert "cannot be read: Permission denied" in message
    assert "chmod u+r" in message


def test_a_link_to_nothing_names_its_target(tmp_path: Path) -> None:
    link = tmp_path / "a.jsonl"
    link.symlink_to("gone/there.jsonl")
    assert "a link to 'gone/there.jsonl', which is not there" in error_of(link)
    loop = tmp_path / "loop.jsonl"
    loop.symlink_to(loop)
    assert "a link to" in error_of(loop)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    message = error_of(tmp_path / "a.jsonl")
    assert "this is a pipe, not a file" in message
    assert "into a file first" in message


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no devices here")
def test_a_device_is_no_file() -> None:
    assert "this is a device, not a file" in error_of("/dev/zero")


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no sockets in the file system here")
def test_a_socket_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("a.jsonl")
        assert "this is a socket, not a file" in error_of("a.jsonl")


def test_a_folder_with_many_files_names_some(write: Write, tmp_path: Path) -> None:
    for number in range(7):
        write(f"{number}.jsonl", ROW)
    message = error_of(tmp_path)
    assert "4.jsonl and 2 more" in message
    assert "5.jsonl" not in message
