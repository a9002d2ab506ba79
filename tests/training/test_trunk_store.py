"""Hidden states on disk: read back as written, in any order, and noticed where the file is not what it was."""

from pathlib import Path

import pytest
import torch

from tunesmith.errors import TrainError
from tunesmith.training.trunk_store import TrunkStore, remove_stores, trunk_bytes

LENGTHS = [3, 1, 4]


def store(folder: Path, *, dtype: torch.dtype = torch.float32, weights: str = "a", split: str = "train") -> TrunkStore:
    return TrunkStore(folder, split, LENGTHS, hidden_size=2, dtype=dtype, fingerprint={"weights": weights})


def states(dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn((length, 2), generator=generator).to(dtype) for length in LENGTHS]


def filled(folder: Path, dtype: torch.dtype = torch.float32, batches_done: int = 2) -> TrunkStore:
    made = store(folder, dtype=dtype)
    for index in (2, 0, 1):
        made.write(index, states(dtype)[index])
    made.commit(batches_done)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_read_is_what_was_written(tmp_path: Path, dtype: torch.dtype) -> None:
    filled(tmp_path / "trunk", dtype).close()
    again = store(tmp_path / "trunk", dtype=dtype)
    assert again.batches_done == 2
    hidden_BTH = again.read([1, 2, 1], 5)
    assert hidden_BTH.dtype == dtype
    assert hidden_BTH.shape == (3, 5, 2)
    for row, index in enumerate([1, 2, 1]):
        length = LENGTHS[index]
        assert torch.equal(hidden_BTH[row, :length], states(dtype)[index])
        assert not hidden_BTH[row, length:].any()


def test_its_size_is_foretold(tmp_path: Path) -> None:
    made = filled(tmp_path, torch.bfloat16)
    assert made.byte_count == trunk_bytes(LENGTHS, 2, torch.bfloat16) == made.data_file.stat().st_size == 8 * 2 * 2


def test_a_store_of_other_weights_is_removed(tmp_path: Path) -> None:
    old = filled(tmp_path)
    new = store(tmp_path, weights="b")
    assert new.batches_done == 0
    assert not old.data_file.exists()
    assert not old.manifest_file.exists()


def test_a_store_of_other_numbers_is_not_taken_for_this_one(tmp_path: Path) -> None:
    filled(tmp_path, torch.bfloat16)  # as many bytes as fp16
    assert store(tmp_path, dtype=torch.float16).batches_done == 0


@pytest.mark.parametrize("content", ["", "[]", '{"fingerprint": 1}', "\x00"])
def test_a_damaged_manifest_is_no_manifest(tmp_path: Path, content: str) -> None:
    made = filled(tmp_path)
    made.manifest_file.write_text(content)
    assert store(tmp_path).batches_done == 0


def test_a_cut_file_is_noticed_when_it_is_opened(tmp_path: Path) -> None:
    made = filled(tmp_path)
    made.close()
    with made.data_file.open("rb+") as file:
        file.truncate(made.byte_count - 1)
    assert store(tmp_path).batches_done == 0


def test_a_file_that_is_cut_while_in_use_is_an_error(tmp_path: Path) -> None:
    made = filled(tmp_path)
    with made.data_file.open("rb+") as file:
        file.truncate(made.byte_count - 1)
    assert made.read([1], 1).shape == (1, 1, 2)
    with pytest.raises(TrainError, match="cannot be read back"):
        made.read([2], 4)


def test_a_file_that_is_gone_is_an_error(tmp_path: Path) -> None:
    made = filled(tmp_path)
    made.close()
    made.data_file.unlink()
    with pytest.raises(TrainError, match="cannot be read back"):
        made.read([2], 4)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    made = filled(tmp_path)
    with pytest.raises(ValueError, match="4 tokens, more than 3"):
        made.read([2], 3)
    with pytest.raises(ValueError, match="example 1"):
        made.write(1, torch.zeros(2, 2))
    with pytest.raises(ValueError, match="example 1"):
        made.write(1, torch.zeros(1, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match="cannot name a file"):
        store(tmp_path, split="../train")


def test_only_files_of_stores_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "trunk"
    filled(folder).close()
    remove_stores(folder)
    assert not folder.exists()
    filled(folder).close()
    (folder / "notes.txt").write_text("mine")
    remove_stores(folder)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
