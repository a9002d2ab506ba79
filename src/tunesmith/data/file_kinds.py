"""What a file is, by its first bytes: what no reader can read is refused before the first row, with the way out."""

from __future__ import annotations

import codecs
import difflib
import re
import stat
from collections.abc import Collection
from pathlib import Path

from tunesmith.data.json_window import BOM
from tunesmith.data.rows import quoted, shown
from tunesmith.errors import DataError

_BEGINNING_BYTES = 4096
_SCANNED_BYTES = 60_000
"""Read beyond, to tell the encoding of a text."""

_UNPACK = "unpack it, and name the data files in it"
_COPY_TEXT = "copy the text into a .txt file"
_SAVE_SHEET = "save the sheet as CSV (UTF-8)"
_NO_TEXT = "name a file of text; images cannot be read"
_TO_UTF_8 = "save it as UTF-8 (iconv -f {} -t UTF-8 FILE > NEW_FILE)"

_KINDS = (
    (b"\x1f\x8b", "gzip data", "decompress it first (gunzip FILE)"),
    (b"BZh91AY&SY", "bzip2 data", "decompress it first (bunzip2 FILE)"),
    (b"\xfd7zXZ\x00", "xz data", "decompress it first (unxz FILE)"),
    (b"\x28\xb5\x2f\xfd", "zstandard data", "decompress it first (zstd -d FILE)"),
    (b"\x04\x22\x4d\x18", "lz4 data", "decompress it first (lz4 -d FILE)"),
    (b"PK\x05\x06", "an empty zip archive", "name a data file"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (b"PAR1\x15", "Parquet data", "give it the ending .parquet"),
    (b"ARROW1\x00", "Arrow data", "write it as Parquet"),
    (b"Obj\x01", "Avro data", "write it as Parquet or JSONL"),
    (b"SQLite format 3\x00", "an SQLite database", "write its table as CSV or JSONL"),
    (b"\x93NUMPY", "a NumPy array", "write the rows as JSONL"),
    (b"\x89HDF\r\n\x1a\n", "HDF5 data", "write the rows as JSONL or Parquet"),
    (b"%PDF-", "a PDF document", _COPY_TEXT),
    (b"{\\rtf", "an RTF document", _COPY_TEXT),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document", f"{_SAVE_SHEET}, or {_COPY_TEXT}"),
    (b"\x89PNG\r\n\x1a\n", "a PNG image", _NO_TEXT),
    (b"\xff\xd8\xff", "a JPEG image", _NO_TEXT),
    (b"GIF89a", "a GIF image", _NO_TEXT),
    (b"version https://git-lfs", "a Git LFS pointer, not the data", "fetch the data itself (git lfs pull)"),
    (b"\xff\xfe\x00\x00", "UTF-32 text", _TO_UTF_8.format("UTF-32")),
    (b"\x00\x00\xfe\xff", "UTF-32 text", _TO_UTF_8.format("UTF-32")),
    (b"\xff\xfe", "UTF-16 text", _TO_UTF_8.format("UTF-16")),
    (b"\xfe\xff", "UTF-16 text", _TO_UTF_8.format("UTF-16")),
)
"""The first bytes, what they are the first of, and what to do."""

_PAIR = re.compile(rb"[\x80-\xff].?", re.DOTALL)

_NUL_PATTERNS = {"x0x0": "UTF-16LE", "0x0x": "UTF-16BE", "x000": "UTF-32LE", "000x": "UTF-32BE"}
"""Which of the first four bytes are NUL where ASCII characters come first (RFC 4627, section 3)."""

_ENCODINGS = (
    # Name, Python's codec, lowest second byte, first bytes of what texts are made of: punctuation and the common
    # level of Han, or Hangul. Of equals the first is taken: Hangul would do as Han, Han not as Hangul.
    ("EUC-KR", "cp949", 0xA1, (range(0xB0, 0xC9),)),
    ("GB18030", "gb18030", 0xA1, (range(0xA1, 0xA4), range(0xB0, 0xD8))),
    ("Big5", "big5hkscs", 0x40, (range(0xA1, 0xA4), range(0xA4, 0xC7))),
)
_ICONV_NAMES = {"EUC-KR": "CP949", "Big5": "BIG5-HKSCS"}
"""The supersets that are met in practice; under the plain names iconv refuses their further characters."""
_FEWEST_OTHER_CHARACTERS = 8
"""Different ones; fewer may be rubbish in a row, which is told by its row."""
_SMALLEST_OTHER_SHARE = 0.1
"""Of bytes that are no UTF-8; a set with a row or two of them is read, and the rows are told."""
_SMALLEST_COMMON_SHARE = 0.8
"""Of pairs of bytes; in texts of Han it is above 0.95, in Western text that decodes by chance far below."""

_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".tgz", ".lz4", ".7z")


def check_file(path: Path, name: str, endings: Collection[str]) -> None:
    """Refuses what no reader can read, or not the one that the ending names.

    Args:
        path: what is there, of whatever kind.
        name: how messages call it.
        endings: those that a reader has, in lower case.

    Raises:
        DataError: a folder, a pipe or device, an unknown ending, an empty file, or another format where text belongs.
        OSError: it cannot be opened.
    """
    ending = path.suffix.lower()
    _refuse_what_is_no_file(path, name, endings)
    with path.open("rb") as file:
        start = file.read(_BEGINNING_BYTES)
        more = file.read(_SCANNED_BYTES) if ending != ".parquet" else b""
    found = _kind_of(start, ending) or _east_asian(start + more)
    if not start.removeprefix(BOM):
        raise DataError("the file is empty", place=name, remedy="fill it, or leave it out of the recipe")
    if found is not None and not (found[0] == "Parquet data" and ending == ".parquet"):
        what, remedy = found
        raise DataError(f"holds {what}", place=name, remedy=remedy)
    if ending not in endings:
        what = f"the ending {shown(ending)} is no data file's" if ending else "a data file needs an ending"
        remedy = _UNPACK if ending in _COMPRESSED else f"write the data as one of {', '.join(endings)}"
        raise DataError(what, place=name, remedy=remedy)


def _refuse_what_is_no_file(path: Path, name: str, endings: Collection[str]) -> None:
    """Raises for all that is no regular file; opens nothing, as opening a pipe waits for its other end."""
    mode = path.stat().st_mode
    if stat.S_ISREG(mode):
        return
    if stat.S_ISDIR(mode):
        inside = sorted(str(file) for file in path.iterdir() if file.suffix.lower() in endings)
        more = f" and {len(inside) - 5} more" if len(inside) > 5 else ""
        remedy = f"name the files in it: {', '.join(inside[:5])}{more}" if inside else "name a data file"
        raise DataError("this is a folder, not a file", place=name, remedy=remedy)
    kind = "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
    remedy = "write the data into a file first, as it is read more than once"
    raise DataError(f"this is {kind}, not a file", place=name, remedy=remedy)


def _kind_of(start: bytes, ending: str) -> tuple[str, str] | None:
    """What is no text in any of our formats: its name, and what to do about it."""
    for magic, what, remedy in _KINDS:
        if start.startswith(magic):
            return what, remedy
    if start.startswith(b"PK\x03\x04"):
        return _kind_of_zip(start)
    if start[257:262] == b"ustar" and b"\x00" in start[:257]:
        return "a tar archive", _UNPACK
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a Python pickle", "write the rows as JSONL; a pickle can run code, so open only your own"
    is_page = start.removeprefix(BOM).lstrip()[:14].lower().startswith((b"<!doctype html", b"<html"))
    if is_page and ending != ".txt":  # there it may be what is to be learned
        return "a web page, not the data", "download the data file itself; the page may show why that failed"
    encoding = _NUL_PATTERNS.get("".join("0" if byte == 0 else "x" for byte in start[:4]))
    return None if encoding is None else (f"{encoding[:-2]} text", _TO_UTF_8.format(encoding))


def _east_asian(start: bytes) -> tuple[str, str] | None:
    """Text in an older encoding of Chinese or Korean: its name, and what to do about it."""
    text = start.decode("utf-8", "surrogateescape")
    other = sum("\udc80" <= character <= "\udcff" for character in text)
    if other < _SMALLEST_OTHER_SHARE * len(start):
        return None
    scores = {encoding: _common_share(start, codec, low, common) for encoding, codec, low, common in _ENCODINGS}
    best = max(scores, key=lambda encoding: scores[encoding])
    if scores[best] < _SMALLEST_COMMON_SHARE:
        return None
    # A superset of GBK; iconv refuses four-byte characters under the older name.
    shown_name = "GB18030 (GBK)" if best == "GB18030" else best
    return f"{shown_name} text", _TO_UTF_8.format(_ICONV_NAMES.get(best, best))


def _common_share(start: bytes, codec: str, lowest_second: int, common: tuple[range, ...]) -> float:
    """The share of the pairs of bytes that write a common character; 0 where `start` does not decode or has few."""
    try:
        codecs.getincrementaldecoder(codec)().decode(start)  # the last character may be cut
    except UnicodeDecodeError:
        return 0.0
    pairs = _PAIR.findall(start)
    if len(set(pairs)) < _FEWEST_OTHER_CHARACTERS:
        return 0.0
    good: int = sum(
        pair[1] >= lowest_second and any(pair[0] in one for one in common) for pair in pairs if len(pair) == 2
    )
    return good / max(len(pairs), 1)


def _kind_of_zip(start: bytes) -> tuple[str, str]:
    if b"xl/" in start:
        return "an Excel workbook", _SAVE_SHEET
    if b"word/" in start:
        return "a Word document", _COPY_TEXT
    if b"[Content_Types].xml" in start or b"mimetypeapplication/vnd.oasis" in start:
        return "an Office document", f"{_SAVE_SHEET}, or {_COPY_TEXT}"
    if b"data.pkl" in start:
        return "a PyTorch file", "write the rows as JSONL"
    return "a zip archive", f"{_UNPACK}; of an Excel workbook, {_SAVE_SHEET}"


def no_such_file(path: Path, name: str) -> DataError:
    """The error about a file that is not there, with the names like it that are."""
    if path.is_symlink():
        target = path.readlink()
        return DataError(
            f"a link to {shown(str(target), 200)}, which is not there",
            place=name,
            remedy="mend the link, or name the file",
        )
    folder = path.absolute().parent
    if folder.is_dir():
        try:
            there = [file.name for file in folder.iterdir()]
        except OSError:  # may be entered, not listed
            there = []
        near = difflib.get_close_matches(path.name, there, n=3, cutoff=0.6)
        remedy = f"did you mean {quoted(near)}?" if near else "check the path; it is relative to the current folder"
    else:
        remedy = f"there is no folder {folder} either; paths are relative to the current folder"
    return DataError(f"no such file: {path.absolute()}", place=name, remedy=remedy)
