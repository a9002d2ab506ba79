"""What the frozen layers give for each example of a split, on disk, read by number.

A split is one file of raw numbers in the model's own format, the tokens of example 0, then those of example 1, and so
on; beside it a manifest says what the numbers were computed from and how much of them is there. Numbers are synced
before the manifest that counts them, so a manifest never promises more than the file holds.

The file is read, not mapped into memory: pages of a mapped file count as memory of the process, and would look like a
leak to the rule that watches for one (`training.resource_rules`). The system's page cache serves both ways alike, and a
read copies once, straight into the batch.

Shapes: B examples, T tokens, H the hidden size.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from io import FileIO
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tunesmith.durable import sync, write_text
from tunesmith.errors import TrainError, disk_errors

FORMAT = 1
"""Counts up when the files change their meaning."""


def trunk_bytes(lengths: Sequence[int] | NDArray[np.int64], hidden_size: int, dtype: torch.dtype) -> int:
    """Bytes that a split takes on disk.

    Args:
        lengths: tokens of each example.
        hidden_size: numbers for each token.
        dtype: their format.
    """
    return int(np.asarray(lengths, dtype=np.int64).sum()) * hidden_size * dtype.itemsize


class TrunkStore:
    """The hidden states of one split.

    A store that an earlier process left is taken up if it was made from the same; else it is removed.

    Args:
        folder: where the files are.
        split: the split's name, which names the files.
        lengths: tokens of each example.
        hidden_size: numbers for each token.
        dtype: their format.
        fingerprint: all that the numbers depend on, by name.

    Attributes:
        batches_done: so many of the batches in which it is filled are there for good.

    Raises:
        ValueError: `split` cannot name a file.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        lengths: Sequence[int] | NDArray[np.int64],
        *,
        hidden_size: int,
        dtype: torch.dtype,
        fingerprint: Mapping[str, str],
    ) -> None:
        if not split.isidentifier():
            raise ValueError(f"{split!r} cannot name a file")
        self.data_file = folder / f"{split}.hidden"
        self.manifest_file = folder / f"{split}.json"
        self._lengths = np.asarray(lengths, dtype=np.int64)
        self._first_token = np.concatenate([[0], np.cumsum(self._lengths)])
        self._hidden_size = hidden_size
        self._dtype = dtype
        self._fingerprint = {
            **fingerprint,
            "format": str(FORMAT),
            "dtype": str(dtype),
            "hidden_size": str(hidden_size),
            "lengths": _digest(self._lengths),
        }
        self._file: FileIO | None = None
        self.batches_done = self._done_before()
        if self.batches_done == 0:
            self.remove()

    @property
    def byte_count(self) -> int:
        """Bytes of the whole split."""
        return self.bytes_of(int(self._first_token[-1]))

    def bytes_of(self, tokens: int) -> int:
        """Bytes of so many tokens."""
        return tokens * self._hidden_size * self._dtype.itemsize

    def _done_before(self) -> int:
        """How many batches of this very store earlier processes left, 0 if it is another or damaged."""
        try:
            manifest = json.loads(self.manifest_file.read_text(encoding="utf-8"))
            size = self.data_file.stat().st_size
            is_this = manifest["fingerprint"] == self._fingerprint and size == self.byte_count
            return int(manifest["batches_done"]) if is_this else 0
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    def write(self, index: int, hidden_TH: torch.Tensor) -> None:
        """Puts in the hidden states of one example.

        Args:
            index: the example.
            hidden_TH: one row for each of its tokens, on the CPU.

        Raises:
            ValueError: shape or format are not those of the store.
            DiskError: the disk is full or fails.
        """
        if hidden_TH.shape != (self._lengths[index], self._hidden_size) or hidden_TH.dtype != self._dtype:
            raise ValueError(f"{hidden_TH.dtype} {tuple(hidden_TH.shape)} are not the states of example {index}")
        content = _bytes_of(hidden_TH.contiguous()).data
        with disk_errors(self.data_file):
            file = self._opened(writing=True)
            file.seek(self.bytes_of(int(self._first_token[index])))
            while content:  # a raw write may take a part
                content = content[file.write(content) :]

    def commit(self, batches_done: int) -> None:
        """Makes lasting what was written, and counts it.

        Args:
            batches_done: batches that are there with it.

        Raises:
            DiskError: the disk is full or fails.
        """
        with disk_errors(self.data_file):
            self._opened(writing=True)
            sync(self.data_file)
        manifest = {"fingerprint": self._fingerprint, "batches_done": batches_done}
        write_text(self.manifest_file, json.dumps(manifest, indent=2) + "\n")
        self.batches_done = batches_done

    def read(self, indices: Sequence[int], length: int, *, pinned: bool = False) -> torch.Tensor:
        """The hidden states [B, length, H] of some examples in the order of `indices`, zeros to the right of each.

        Args:
            indices: the examples; one may come several times.
            length: tokens of a row.
            pinned: put them into memory that a CUDA device copies from without waiting.

        Raises:
            ValueError: an example is longer than `length`.
            TrainError: the file is gone or was cut.
        """
        hidden_BTH = torch.zeros((len(indices), length, self._hidden_size), dtype=self._dtype, pin_memory=pinned)
        bytes_BN = _bytes_of(hidden_BTH).reshape(len(indices), self.bytes_of(length))
        for row, index in enumerate(indices):
            if self._lengths[index] > length:
                raise ValueError(f"example {index} has {self._lengths[index]} tokens, more than {length}")
            wanted = bytes_BN[row, : self.bytes_of(int(self._lengths[index]))].data
            self._read_into(wanted, at=self.bytes_of(int(self._first_token[index])))
        return hidden_BTH

    def _read_into(self, wanted: memoryview, at: int) -> None:
        try:
            file = self._opened(writing=False)
            file.seek(at)
            while wanted:  # a raw read may give a part
                count = file.readinto(wanted)
                if not count:
                    raise EOFError
                wanted = wanted[count:]
        except (OSError, EOFError) as error:
            raise TrainError(
                "what the frozen layers give cannot be read back: the file is gone, shorter than it was, or the "
                f"disk fails ({error or 'end of file'})",
                place=str(self.data_file),
                remedy="the same command computes it anew and goes on from the last checkpoint",
            ) from error

    def _opened(self, *, writing: bool) -> FileIO:
        if self._file is None:
            if writing and not self.data_file.exists():
                self.data_file.parent.mkdir(parents=True, exist_ok=True)
                with self.data_file.open("xb") as file:
                    file.truncate(self.byte_count)  # so that a file of another size is no file of this store
            self._file = FileIO(self.data_file, "rb+")
        return self._file

    def close(self) -> None:
        """Closes the file; a later use opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __del__(self) -> None:
        file = getattr(self, "_file", None)
        if file is not None:
            file.close()

    def remove(self) -> None:
        """Removes the files, the manifest first."""
        self.close()
        for file in (self.manifest_file, self.data_file):
            with suppress(OSError):
                file.unlink(missing_ok=True)
        self.batches_done = 0


def remove_stores(folder: Path) -> None:
    """Removes the files of every store in `folder`, and the folder if nothing else is in it."""
    for pattern in ("*.json", ".*.json.new", "*.hidden"):  # the manifests first
        for file in folder.glob(pattern):
            with suppress(OSError):
                file.unlink()
    with suppress(OSError):
        folder.rmdir()


def _digest(numbers: NDArray[np.int64]) -> str:
    return sha256(numbers.astype("<i8").tobytes()).hexdigest()


def _bytes_of(tensor: torch.Tensor) -> NDArray[np.uint8]:
    """The same memory as bytes; NumPy has no bfloat16."""
    flat: NDArray[np.uint8] = tensor.reshape(-1).view(torch.uint8).numpy()
    return flat
