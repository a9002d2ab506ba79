"""A model of the Hugging Face hub, in the hub's own cache: config, safetensors and tokenizer files only."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tunesmith.errors import ModelError, TunesmithError, UnsafeWeightsError, disk_errors
from tunesmith.models.cache import growth_shown
from tunesmith.models.folder import first_line, quiet_transformers, refuse_pickles, weight_files
from tunesmith.progress import task

FETCHED = ("*.json", "*.safetensors", "*.jinja", "*.model", "merges.txt", "vocab.txt")
"""Never pickles (.bin, .pt) and never code (.py)."""

LEFT = ("*/*", "consolidated*.safetensors", "adapter_*")
"""Other formats in folders below, the second copy of the weights that some owners keep, and adapters, which
transformers would put on the model without a word."""

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")

_MEGABYTE = 10**6


def hub_snapshot(hub_id: str, revision: str | None, *, weights: bool = True) -> Path:
    """The folder of a hub model, fetched if need be; the copy of an earlier run where the hub cannot be reached.

    Args:
        hub_id: owner/name.
        revision: branch, tag or commit; None is the main branch.
        weights: whether the weights are needed; without them config and tokenizer are fetched, in a moment.

    Raises:
        ModelError: there is no such model or revision, its terms must be accepted first, or the hub cannot be reached
            and there is no copy.
        UnsafeWeightsError: its only weights are pickles.
        DiskError: the hub's cache cannot be written.
    """
    try:
        listed = HfApi().model_info(hub_id, revision=revision, files_metadata=True)
    except GatedRepoError:
        raise ModelError(
            "the hub gives this model only to those who accepted its terms",
            place=hub_id,
            remedy=f"accept them at https://huggingface.co/{hub_id}, then log in with: hf auth login",
        ) from None
    except RevisionNotFoundError:
        raise ModelError(
            f"the hub model has no revision '{revision}'", place=hub_id, remedy="correct model.revision"
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise ModelError(
            "there is no such folder here, and no such model on the hub",
            place=hub_id,
            remedy="check the name; a private model needs: hf auth login",
        ) from None
    except Exception as error:  # no network, a proxy, a time-out, HF_HUB_OFFLINE: each has an exception of its own
        return _local_copy(hub_id, revision, error, weights=weights)

    sizes = {file.rfilename: file.size or 0 for file in listed.siblings or []}
    if not any(name.endswith(".safetensors") and "/" not in name for name in sizes):
        refuse_pickles(sorted(sizes), place=hub_id)
    left = LEFT if weights else LEFT + WEIGHTS
    total = sum(size for name, size in sizes.items() if _matches(name, FETCHED) and not _matches(name, left))
    storage = Path(constants.HF_HUB_CACHE) / f"models--{hub_id.replace('/', '--')}"
    try:
        with (
            task(f"Fetching {hub_id}", total=total // _MEGABYTE or None, unit="MB") as watched,
            growth_shown(watched, storage),
            disk_errors(storage),
        ):
            return _snapshot(hub_id, listed.sha, left)
    except TunesmithError:
        raise
    except Exception as error:  # as above, in the middle of the work
        raise _unreachable(hub_id, error) from error


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _local_copy(hub_id: str, revision: str | None, why: Exception, *, weights: bool) -> Path:
    try:
        folder = _snapshot(hub_id, revision, LEFT, local_files_only=True)
        if weights:
            weight_files(folder)  # an earlier check may have fetched config and tokenizer only
    except UnsafeWeightsError:
        raise
    except Exception:
        raise _unreachable(hub_id, why) from why
    return folder


def _snapshot(hub_id: str, revision: str | None, left: Sequence[str], **options: Any) -> Path:
    with quiet_transformers():  # which silences the hub's bars too
        found = snapshot_download(
            hub_id, revision=revision, allow_patterns=list(FETCHED), ignore_patterns=list(left), **options
        )
    return Path(found)


def _unreachable(hub_id: str, error: Exception) -> ModelError:
    return ModelError(
        f"there is no such folder here, and the hub cannot be reached: {first_line(error)}",
        place=hub_id,
        remedy="check the network and the proxy (HTTPS_PROXY, HF_ENDPOINT), or give a model folder; "
        "smollm2-135m needs no hub",
    )
