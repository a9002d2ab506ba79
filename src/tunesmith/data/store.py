"""Examples and their tokens on disk, read by number: a set may be larger than memory.

Everything lies in one scratch folder, which is removed when nobody needs it any more. Reads do not map files into
memory, so they do not count as memory of the process.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Generic, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.records import IGNORED_LABEL, Example, Message, Place, TokenizedExample
from tunesmith.errors import disk_errors

T = TypeVar("T")

SCRATCH_PREFIX = "scratch-"


class Scratch:
    """A folder for files that are needed as long as this object lives.

    Args:
        parent: where to make it; None takes the system's folder for temporary files.

    Attributes:
        folder: where the files are.
    """

    def __init__(self, parent: Path | None = None) -> None:
        with disk_errors(parent or Path(tempfile.gettempdir())):
            self.folder = Path(tempfile.mkdtemp(prefix=SCRATCH_PREFIX, dir=parent))
        self._remove = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    def close(self) -> None:
        """Removes the folder."""
        self._remove()


class Blobs:
    """Pieces of bytes in one file: appended once, read by number.

    Args:
        scratch: where to keep the file, for as long as this object lives.
        name: the file's name; it must not exist.
    """

    def __init__(self, scratch: Scratch, name: str) -> None:
        self._scratch = scratch
        self.path = path = scratch.folder / name
        self._ends = array("Q", [0])
        with disk_errors(path):
            self._writer: BinaryIO | None = path.open("xb")
        self._reader: BinaryIO | None = None

    def __len__(self) -> int:
        return len(self._ends) - 1

    @property
    def byte_count(self) -> int:
        """Bytes of all pieces."""
        return self._ends[-1]

    def extend(self, content: bytes, lengths: Iterable[int]) -> None:
        """Appends pieces that lie end to end in `content`.

        Raises:
            DiskError: the disk is full or fails.
        """
        if self._writer is None:
            raise ValueError("read from before all was written")
        end = self._ends[-1]
        for length in lengths:
            end += length
            self._ends.append(end)
        with disk_errors(self.path):
            self._writer.write(content)

    def read(self, start: int, stop: int) -> list[bytes]:
        """The pieces numbered `start` to `stop - 1`; nothing can be appended afterwards."""
        first, last = self._ends[start], self._ends[stop]
        content = self._read_bytes(first, last - first)
        ends = self._ends[start : stop + 1]
        return [content[ends[i] - first : ends[i + 1] - first] for i in range(stop - start)]

    def _read_bytes(self, at: int, count: int) -> bytes:
        if self._reader is None:
            self.finish()
            self._reader = self.path.open("rb", buffering=0)
        if hasattr(os, "pread"):  # no seek, so that several threads may read
            content = os.pread(self._reader.fileno(), count, at)
        else:
            self._reader.seek(at)
            content = self._reader.read(count)
        if len(content) < count:  # one read of a regular file may stop at 2 GiB, and nothing here is as long
            raise OSError(errno.EIO, "a scratch file is shorter than what was written", str(self.path))
        return content

    def finish(self) -> None:
        """Ends the writing.

        Raises:
            DiskError: the disk is full or fails.
        """
        if self._writer is not None:
            writer, self._writer = self._writer, None
            with disk_errors(self.path):
                writer.close()

    def __del__(self) -> None:
        for file in (getattr(self, "_writer", None), getattr(self, "_reader", None)):
            if file is not None:
                with suppress(OSError):  # what could not be written is needed no more
                    file.close()


class Places:
    """Where each row of a split stands, in 16 bytes a row."""

    def __init__(self) -> None:
        self._files: list[str] = []
        self._numbers: dict[str, int] = {}
        self._file = array("I")
        self._line = array("q")

    def __len__(self) -> int:
        return len(self._line)

    def append(self, place: Place) -> None:
        """Adds one."""
        if place.file not in self._numbers:
            self._numbers[place.file] = len(self._files)
            self._files.append(place.file)
        self._file.append(self._numbers[place.file])
        self._line.append(-place.line if place.is_row_number else place.line)

    def __getitem__(self, row: int) -> Place:
        line = self._line[row]
        return Place(self._files[self._file[row]], abs(line), is_row_number=line < 0)

    @property
    def files(self) -> tuple[str, ...]:
        """The files, in the order of their first row."""
        return tuple(self._files)

    def file_numbers(self) -> NDArray[np.uint32]:
        """For each row the index of its file in `files`."""
        return np.array(self._file, dtype=np.uint32)


class _Rows(Sequence[T], Generic[T]):
    """A sequence whose items are read when asked for; a slice is read at once and is a list."""

    def __len__(self) -> int:
        raise NotImplementedError

    def _read(self, rows: range) -> list[T]:
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return self._read(range(len(self))[index])
        row = range(len(self))[index]
        return self._read(range(row, row + 1))[0]


def pack_example(example: Example) -> bytes:
    """What `ExampleStore` keeps of an example: all but its place."""
    content = example.text if example.text is not None else [(m.role, m.content) for m in example.messages]
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


class ExampleStore(_Rows[Example]):
    """Examples on disk.

    Args:
        blobs: what `pack_example` gives, in order.
        places: as many places.
    """

    def __init__(self, blobs: Blobs, places: Places) -> None:
        self._blobs = blobs
        self._places = places

    def __len__(self) -> int:
        return len(self._blobs)

    def _read(self, rows: range) -> list[Example]:
        if rows.step != 1:
            return [self[row] for row in rows]
        pieces = self._blobs.read(rows.start, max(rows.stop, rows.start))
        return [_unpack_example(piece, self._places[row]) for row, piece in zip(rows, pieces, strict=True)]


def _unpack_example(piece: bytes, place: Place) -> Example:
    content = json.loads(piece)
    if isinstance(content, str):
        return Example((), place, content)
    return Example(tuple(Message(role, text) for role, text in content), place)


def pack_tokens(ids: Sequence[int], trained: Sequence[tuple[int, int]]) -> bytes:
    """What `TokenizedRows` reads: the number of trained ranges, the ranges, the token ids, as 32-bit numbers.

    Args:
        ids: T token ids.
        trained: half-open ranges of tokens that are trained on, rising.
    """
    flat = [position for span in trained for position in span]
    return np.array([len(trained), *flat, *ids], dtype="<i4").tobytes()


def unpack_tokens(piece: bytes) -> tuple[NDArray[np.int32], list[tuple[int, int]]]:
    """The token ids and the trained ranges that `pack_tokens` packed."""
    numbers = np.frombuffer(piece, dtype="<i4")
    count = int(numbers[0])
    flat = numbers[1 : 1 + 2 * count].tolist()
    return numbers[1 + 2 * count :], list(zip(flat[::2], flat[1::2], strict=True))


class TokenizedRows(_Rows[TokenizedExample]):
    """Tokenized examples on disk, cut to a length.

    Args:
        blobs: what `pack_tokens` gives, for every row of the split.
        places: as many places.
        rows_N: the rows that are in it, in order; one may come several times.
        tokens_N: tokens of each of these rows, before the cut.
        max_length: most tokens of an example; None cuts nothing.
        weights_N: the examples' weights in the loss; None for 1 each.

    Attributes:
        lengths: tokens of each example, after the cut.
        weights_N: as given.
    """

    def __init__(
        self,
        blobs: Blobs,
        places: Places,
        rows_N: NDArray[np.int64],
        tokens_N: NDArray[np.uint32],
        *,
        max_length: int | None,
        weights_N: NDArray[np.float32] | None = None,
    ) -> None:
        self._blobs = blobs
        self._places = places
        self._rows_N = rows_N
        self._max_length = max_length
        self.weights_N = weights_N
        self.lengths = (tokens_N if max_length is None else np.minimum(tokens_N, max_length)).astype(np.int64)

    def __len__(self) -> int:
        return len(self._rows_N)

    def _read(self, rows: range) -> list[TokenizedExample]:
        return [self._example(number) for number in rows]

    def _example(self, number: int) -> TokenizedExample:
        row = int(self._rows_N[number])
        ids, trained = unpack_tokens(self._blobs.read(row, row + 1)[0])
        kept = int(self.lengths[number])
        labels = np.full(kept, IGNORED_LABEL, dtype=np.int32)
        for first, last in trained:
            labels[first:last] = ids[first : min(last, kept)]
        return TokenizedExample(
            tuple(ids[:kept].tolist()),
            tuple(labels.tolist()),
            self._places[row],
            tokens_cut=len(ids) - kept,
            weight=1.0 if self.weights_N is None else float(self.weights_N[number]),
        )

    def digest(self) -> str:
        """SHA-256 over what a model sees of the examples, in order: token ids, trained ranges, the cut, weights."""
        digest = sha256()
        for number, row in enumerate(self._rows_N.tolist()):
            digest.update(int(self.lengths[number]).to_bytes(8, "little"))
            digest.update(self._blobs.read(row, row + 1)[0])
        if self.weights_N is not None:
            digest.update(self.weights_N.astype("<f4").tobytes())
        return digest.hexdigest()


class ExampleRows(_Rows[Example]):
    """Some examples of a store, in a given order."""

    def __init__(self, store: Sequence[Example], rows_N: NDArray[np.int64]) -> None:
        self._store = store
        self._rows_N = rows_N

    def __len__(self) -> int:
        return len(self._rows_N)

    def _read(self, rows: range) -> list[Example]:
        return [self._store[int(self._rows_N[number])] for number in rows]
