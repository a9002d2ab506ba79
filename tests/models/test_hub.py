from errno import ENOSPC
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants, errors
from huggingface_hub.utils._paths import filter_repo_objects

from tunesmith.errors import DiskError, ModelError, UnsafeWeightsError
from tunesmith.models import hub


class Hub:
    """Stands for the hub at the two functions that reach it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = {"config.json": 10, "model.safetensors": 20_000_000, "modeling_x.py": 5, "pytorch_model.bin": 7}
        self.listing_error: Exception | None = None
        self.fetch_error: Exception | None = None
        self.fetched: list[dict[str, Any]] = []

    def model_info(self, repo: str, **_: Any) -> SimpleNamespace:
        if self.listing_error is not None:
            raise self.listing_error
        siblings = [SimpleNamespace(rfilename=name, size=size) for name, size in self.files.items()]
        return SimpleNamespace(id=repo, sha="abc123", siblings=siblings)

    def snapshot(self, repo: str, **options: Any) -> str:
        self.fetched.append({"repo": repo, **options})
        if self.fetch_error is not None:
            raise self.fetch_error
        return str(self.folder)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(tmp_path)
    monkeypatch.setattr(hub, "HfApi", lambda: made)
    monkeypatch.setattr(hub, "snapshot_download", made.snapshot)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return made


def _http(kind: type[Exception]) -> Exception:
    """An error of the hub without the answer it came with, whose class depends on the HTTP library in use."""
    error = kind.__new__(kind)
    error.args = ("404 Client Error",)
    return error


def test_the_listed_commit_is_fetched_without_pickles_and_code(stand_in: Hub, tmp_path: Path) -> None:
    assert hub.hub_snapshot("owner/name", "main") == tmp_path
    (asked,) = stand_in.fetched
    assert (asked["repo"], asked["revision"]) == ("owner/name", "abc123")
    assert not any(pattern.endswith((".bin", ".pt", ".py", "*")) for pattern in asked["allow_patterns"])
    assert {"*.json", "*.safetensors", "*.jinja", "*.model"} <= set(asked["allow_patterns"])


def test_a_model_of_pickles_only_is_refused_before_anything_is_fetched(stand_in: Hub) -> None:
    del stand_in.files["model.safetensors"]
    with pytest.raises(UnsafeWeightsError, match=r"pytorch_model\.bin"):
        hub.hub_snapshot("owner/name", None)
    assert stand_in.fetched == []


@pytest.mark.parametrize(
    ("kind", "message", "remedy"),
    [
        (errors.RepositoryNotFoundError, "no such model on the hub", "hf auth login"),
        (errors.GatedRepoError, "accepted its terms", "https://huggingface.co/owner/name"),
        (errors.RevisionNotFoundError, "no revision 'v9'", "model.revision"),
    ],
)
def test_refusals_of_the_hub_are_explained(stand_in: Hub, kind: type[Exception], message: str, remedy: str) -> None:
    stand_in.listing_error = _http(kind)
    with pytest.raises(ModelError, match=message) as raised:
        hub.hub_snapshot("owner/name", "v9")
    assert raised.value.remedy is not None
    assert remedy in raised.value.remedy
    assert stand_in.fetched == []


def test_without_network_the_earlier_copy_is_used(stand_in: Hub, tmp_path: Path) -> None:
    stand_in.listing_error = ConnectionError("no route to host")
    (tmp_path / "model.safetensors").touch()
    assert hub.hub_snapshot("owner/name", "v1") == tmp_path
    (asked,) = stand_in.fetched
    assert asked["local_files_only"] is True
    assert asked["revision"] == "v1"


def test_without_network_a_copy_without_weights_is_one_only_where_none_are_needed(
    stand_in: Hub, tmp_path: Path
) -> None:
    stand_in.listing_error = ConnectionError("no route to host")
    assert hub.hub_snapshot("owner/name", None, weights=False) == tmp_path
    with pytest.raises(ModelError, match="the hub cannot be reached: no route to host"):
        hub.hub_snapshot("owner/name", None)


def test_weights_are_fetched_only_where_they_are_needed(stand_in: Hub) -> None:
    names = ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.json"]
    hub.hub_snapshot("owner/name", None, weights=False)
    hub.hub_snapshot("owner/name", None)
    without, whole = (_fetched(names, asked) for asked in stand_in.fetched)
    assert without == ["config.json", "tokenizer.json"]
    assert whole == names
    del stand_in.files["model.safetensors"]
    with pytest.raises(UnsafeWeightsError):
        hub.hub_snapshot("owner/name", None, weights=False)


def test_an_adapter_beside_the_model_is_left(stand_in: Hub) -> None:
    hub.hub_snapshot("owner/name", None)
    names = ["config.json", "adapter_config.json", "adapter_model.safetensors", "sub/config.json", "modeling.py"]
    assert _fetched(names, stand_in.fetched[0]) == ["config.json"]


def _fetched(names: list[str], asked: dict[str, Any]) -> list[str]:
    patterns = {"allow_patterns": asked["allow_patterns"], "ignore_patterns": asked["ignore_patterns"]}
    return list(filter_repo_objects(names, **patterns))


def test_without_network_and_copy_the_reason_is_told(stand_in: Hub) -> None:
    stand_in.listing_error = errors.OfflineModeIsEnabled("offline mode is enabled")
    stand_in.fetch_error = errors.LocalEntryNotFoundError("not found")
    with pytest.raises(ModelError, match="the hub cannot be reached: offline mode is enabled") as raised:
        hub.hub_snapshot("owner/name", None)
    assert raised.value.remedy is not None
    assert "HTTPS_PROXY" in raised.value.remedy


def test_a_connection_that_drops_is_no_fault_of_the_disk(stand_in: Hub) -> None:
    """huggingface_hub's error for it is a FileNotFoundError by descent."""
    stand_in.fetch_error = errors.LocalEntryNotFoundError("not found")
    with pytest.raises(ModelError, match="the hub cannot be reached"):
        hub.hub_snapshot("owner/name", None)


def test_a_broken_download_is_a_clear_error(stand_in: Hub) -> None:
    stand_in.fetch_error = ConnectionResetError("connection reset")
    with pytest.raises(ModelError, match="connection reset"):
        hub.hub_snapshot("owner/name", None)


def test_a_full_disk_is_named(stand_in: Hub) -> None:
    stand_in.fetch_error = OSError(ENOSPC, "No space left on device")
    with pytest.raises(DiskError, match="the disk is full"):
        hub.hub_snapshot("owner/name", None)
