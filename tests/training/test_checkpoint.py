"""Checkpoints are whole or not there."""

from pathlib import Path

import pytest
import torch

from tunesmith import failpoints
from tunesmith.errors import DiskError, TrainError
from tunesmith.training.checkpoint import CheckpointStore, TrainState


def save(store: CheckpointStore, step: int, *, best_step: int | None = None) -> Path:
    tensors = {"a": torch.full((3,), float(step))}
    return store.save(TrainState(step=step, best_step=best_step), tensors, {"a/exp_avg": tensors["a"]})


def test_the_newest_comes_back_as_it_was(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    for step in (5, 10):
        save(store, step)
    newest = store.newest()
    assert newest is not None
    assert newest.state == TrainState(step=10)
    assert newest.adapter()["a"].tolist() == [10.0] * 3
    assert newest.optimizer()["a/exp_avg"].tolist() == [10.0] * 3
    assert CheckpointStore(tmp_path / "none", keep=1).newest() is None


def test_rotation_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for step in range(1, 8):
        save(store, step, best_step=2 if step >= 2 else None)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{n:08d}" for n in (2, 6, 7)]


@pytest.mark.parametrize("name", ["adapter.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "remove", "empty"])
def test_any_damage_is_noticed_and_the_one_before_is_taken(tmp_path: Path, name: str, damage: str) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    save(store, 1)
    path = save(store, 2) / name
    content = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        path.write_bytes({"cut": content[:-1], "flip": flipped, "empty": b""}[damage])
    newest = store.newest()
    assert newest is not None
    if name == "manifest.json" and damage == "cut":  # Only the last newline is gone.
        assert newest.state.step == 2
        return
    assert newest.state.step == 1
    assert "invalid-step-00000002" in store.set_aside[0]
    assert (tmp_path / "invalid-step-00000002").is_dir()


def test_a_best_checkpoint_that_is_gone_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"missing[\s\S]*--fresh"):
        CheckpointStore(tmp_path, keep=1).at(3)


def test_a_failed_write_leaves_the_old_checkpoints_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    save(store, 1)

    for point, action, part in (
        ("write:optimizer.safetensors", "enospc", "the disk is full"),
        ("write:adapter.safetensors", "short", "input/output error"),
        ("sync:manifest.json", "eio", "input/output error"),
        ("rename:step-00000002", "erofs", "the file system is read-only"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(failpoints.VARIABLE, f"{point}={action}")
            failpoints.reload()
            with pytest.raises(DiskError, match=part):
                save(store, 2)
        failpoints.reload()
        assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
