"""What a model folder says without loading its weights: config, tokenizer, names and headers of its files; no torch.

A folder is checked before transformers sees it, so that what is wrong is named: weights that are pickles, a shard that
is missing or cut short, a config that asks for code.
"""

from __future__ import annotations

import json
import logging as python_logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from safetensors import SafetensorError, safe_open

from tunesmith.errors import ModelError, UnsafeWeightsError
from tunesmith.models.light_transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from tunesmith.models.light_transformers import __version__ as transformers_version
from tunesmith.models.light_transformers import logging as transformers_logging

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
"""Weight formats that are pickles: loading one runs whatever code its writer put there."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")
"""Any one of these makes a tokenizer."""

ADAPTER_CONFIG = "adapter_config.json"

_TEXT_CONFIGS = ("text_config", "decoder", "generator")
"""Where transformers looks for the part of a config that is the language model's."""

_DISTRIBUTED_SHARD = re.compile(r"shard-\d{5}-model-.*")
"""Files of a distributed checkpoint; transformers loads them in place of model.safetensors."""


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder.

    Raises:
        ModelError: the folder has none, or it cannot be read without running code of the folder.
    """
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ModelError(
            f"the model folder has no tokenizer (looked for {', '.join(TOKENIZER_FILES)})",
            place=str(folder),
            remedy="copy the tokenizer files of the base model into the folder",
        )
    try:
        with quiet_transformers():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                folder, config=_config_for_tokenizer(folder), local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # whatever the folder's files make transformers or tokenizers raise
        raise ModelError(
            f"the tokenizer cannot be read: {first_line(error)}",
            place=str(folder),
            remedy="fetch the tokenizer files again; a tokenizer that needs code of its own is not supported",
        ) from error
    return tokenizer


def _config_for_tokenizer(folder: Path) -> PreTrainedConfig | None:
    """What `AutoTokenizer` needs of a config to choose its class; None leaves the reading of the config to it.

    It would make the model's own kind of config, which imports torch, but asks that only where the tokenizer's files
    name no class, or one with code of its own.
    """
    try:
        config, tokenizer = (
            json.loads((folder / name).read_text(encoding="utf-8")) for name in ("config.json", "tokenizer_config.json")
        )
        if not isinstance(tokenizer["tokenizer_class"], str) or "auto_map" in tokenizer:
            return None
        names = {key: config[key] for key in ("model_type", "model_name") if isinstance(config.get(key), str)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return PreTrainedConfig.from_dict({"name_or_path": str(folder), **names}) if "model_type" in names else None


def read_config(folder: Path) -> dict[str, Any]:
    """The values of config.json, checked to describe a causal language model that this transformers knows.

    Raises:
        ModelError: it is missing or unreadable, asks for code of its own, is of another kind of model, or an adapter
            lies beside it.
        UnsafeWeightsError: it leads to code or to weights elsewhere.
    """
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("holds no mapping")
    except FileNotFoundError:
        raise ModelError("the model folder has no config.json", place=str(folder), remedy=_other_kind(folder)) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"cannot be read: {first_line(error)}", place=str(file), remedy="fetch it again") from None
    _check_kind(config, file)
    _check_leads_nowhere(config, file)
    if (folder / ADAPTER_CONFIG).is_file():
        raise ModelError(
            f"the model folder also holds an adapter ({ADAPTER_CONFIG}), which transformers would put on the model "
            "without a word",
            place=str(folder),
            remedy="keep the adapter's files in a folder of their own; to train on from the adapter, merge it first",
        )
    return config


def _check_kind(config: dict[str, Any], file: Path) -> None:
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise ModelError("names no model_type", place=str(file), remedy="use a model in transformers' format")
    if kind not in CONFIG_MAPPING:
        if "auto_map" in config:
            raise ModelError(
                f"the model type '{kind}' needs code from the model's own files, which is never run",
                place=str(file),
                remedy="choose a model of a type that transformers itself has",
            )
        raise ModelError(
            f"the model type '{kind}' is not known to transformers {transformers_version}",
            place=str(file),
            remedy="pip install --upgrade transformers",
        )
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ModelError(
            f"a '{kind}' model is not a causal language model",
            place=str(file),
            remedy="choose a model that continues text, such as smollm2-135m",
        )


def _check_leads_nowhere(config: dict[str, Any], file: Path) -> None:
    """Refuses a config that sends transformers to code or to files that are not checked."""
    if (kernel := _foreign_kernel(config)) is not None:
        raise UnsafeWeightsError(
            f"the config asks for attention code from elsewhere ('{kernel}'), which is never run",
            place=str(file),
            remedy="remove that key from config.json",
        )
    if (weights := _value_of(config, "transformers_weights")) is not None:
        raise UnsafeWeightsError(
            f"the config names a file of its own for the weights ({weights!r:.80}), which could be a pickle",
            place=str(file),
            remedy=f"remove transformers_weights from config.json; weights belong in {SINGLE_FILE} or {INDEX_FILE}",
        )
    if config.get("configuration_files"):
        raise UnsafeWeightsError(
            "the config sends transformers to another config file, which is not checked",
            place=str(file),
            remedy="remove configuration_files from config.json",
        )


def _other_kind(folder: Path) -> str:
    if (folder / ADAPTER_CONFIG).is_file():
        return "this is an adapter; give the folder of its base model"
    if (folder / "recipe.yaml").is_file():
        return f"this is a run; its merged model is in {folder / 'export' / 'merged'}"
    if gguf_files := sorted(folder.glob("*.gguf")):
        return f"give the GGUF file itself: {gguf_files[0]}"
    return "give a folder in transformers' format: config.json, safetensors and tokenizer files"


def _foreign_kernel(config: Any) -> str | None:
    """The hub repository of attention code that a config names, at any depth (see CVE-2026-4372)."""
    if isinstance(config, dict):
        for key, value in config.items():
            if "attn_implementation" in str(key) and isinstance(value, str) and "/" in value:
                return value
            if (found := _foreign_kernel(value)) is not None:
                return found
    elif isinstance(config, list):
        return next((found for value in config if (found := _foreign_kernel(value)) is not None), None)
    return None


def _value_of(config: Any, key: str) -> Any:
    """The first value other than None of `key` in a config, at any depth."""
    if isinstance(config, dict):
        if config.get(key) is not None:
            return config[key]
        config = list(config.values())
    if isinstance(config, list):
        return next((found for value in config if (found := _value_of(value, key)) is not None), None)
    return None


def check_weights_safe(folder: Path) -> None:
    """Checks that the weights are whole safetensors files within the folder; reads only their headers.

    Raises:
        UnsafeWeightsError: the only weights are pickles, which can run code when loaded.
        ModelError: there are no weights; a shard is missing, corrupt or outside the folder.
    """
    for file in weight_files(folder):
        check_safetensors(file)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the model's weights, sorted by name.

    Raises:
        UnsafeWeightsError: the only weights are pickles.
        ModelError: there are none, a shard is missing, the index points outside the folder, or there is a distributed
            checkpoint, which transformers would load instead.
    """
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if distributed := [name for name in names if _DISTRIBUTED_SHARD.fullmatch(name)]:
        raise ModelError(
            f"the model folder holds a distributed checkpoint ('{distributed[0]}'), which cannot be checked",
            place=str(folder),
            remedy=f"write the weights as {SINGLE_FILE} (transformers' save_pretrained), and remove the shard-* files",
        )
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    if (folder / INDEX_FILE).is_file():
        return _shards(folder)
    refuse_pickles(names, place=str(folder))
    raise ModelError(
        f"the model folder has no weights (looked for {SINGLE_FILE} and {INDEX_FILE})",
        place=str(folder),
        remedy="fetch the model again, or give a folder with safetensors weights",
    )


def refuse_pickles(names: list[str], *, place: str) -> None:
    """Refuses a model that has pickled weights; called where it has no safetensors.

    Raises:
        UnsafeWeightsError: one of `names` is a pickle.
    """
    for name in names:
        if name.endswith(PICKLE_SUFFIXES):
            raise UnsafeWeightsError(
                f"'{name}' is a Python pickle, which can run any code when it is loaded; only safetensors are loaded",
                place=place,
                remedy="use a revision of the model with safetensors, or convert it on a machine kept apart",
            )


def _shards(folder: Path) -> list[Path]:
    index_file = folder / INDEX_FILE
    try:
        names = set(json.loads(index_file.read_text(encoding="utf-8"))["weight_map"].values())
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError("names no weights")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"is no index of weights: {first_line(error)}", place=str(index_file), remedy="fetch it again"
        ) from None
    for name in sorted(names):
        if not _stays_within(name):
            raise ModelError(f"points outside the model folder: '{name}'", place=str(index_file))
        if not name.endswith(".safetensors"):
            refuse_pickles([name], place=str(index_file))
            raise ModelError(f"names a file that is not safetensors: '{name}'", place=str(index_file))
        if not (folder / name).is_file():
            raise ModelError(
                f"the shard '{name}' of the weights is missing", place=str(folder), remedy="fetch the model again"
            )
    return [folder / name for name in sorted(names)]


def _stays_within(name: str) -> bool:
    """Whether a relative name stays below its folder, on any system."""
    windows = PureWindowsPath(name)
    return not (PurePosixPath(name).is_absolute() or windows.anchor or ".." in windows.parts)


def check_safetensors(file: Path) -> None:
    """Reads the header of a safetensors file and compares it with the file's length.

    Raises:
        ModelError: it is corrupt or cut short.
    """
    try:
        with safe_open(file, framework="numpy") as opened:  # "pt" would import torch
            opened.keys()
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"is not a whole safetensors file: {first_line(error)}", place=str(file), remedy="fetch the file again"
        ) from None


def load_config(folder: Path) -> PreTrainedConfig:
    """transformers' config of a model folder; imports torch, as the configs of most kinds of models do.

    Raises:
        ModelError: as `read_config`, or a value in it is of the wrong kind.
    """
    read_config(folder)
    try:
        with quiet_transformers():
            config: PreTrainedConfig = AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # whatever values that do not fit make transformers raise
        raise ModelError(
            f"cannot be used: {one_line(error)}", place=str(folder / "config.json"), remedy="fetch it again"
        ) from error
    return config


def context_length(config: Any) -> int | None:
    """The most tokens the model was made for, from a transformers config; None where it states no limit."""
    length = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return int(length) if length else None


def folder_context_length(folder: Path) -> int | None:
    """As `context_length`, for the model of a folder; imports torch only where config.json says it in its own way.

    Raises:
        ModelError: as `load_config`; where the length is plain to see, values that are of the wrong kind go unnoticed.
        UnsafeWeightsError: as `read_config`.
    """
    config = read_config(folder)
    length = config.get("max_position_embeddings")
    # A config within the config has a length of its own.
    if type(length) is int and length > 0 and not any(config.get(name) for name in _TEXT_CONFIGS):
        return length
    return context_length(load_config(folder))


def read_generation_config(folder: Path) -> GenerationConfig | None:
    """The generation settings of a model folder, or None where it has none.

    Raises:
        ModelError: they cannot be read, or their `eos_token_id` is no token id.
    """
    file = folder / "generation_config.json"
    if not file.is_file():
        return None
    try:
        with quiet_transformers():
            settings: GenerationConfig = GenerationConfig.from_pretrained(folder, local_files_only=True)
        ends = settings.eos_token_id
        if not all(type(end) is int for end in (ends if isinstance(ends, list) else [] if ends is None else [ends])):
            raise ValueError(f"eos_token_id is {ends!r}")
    except Exception as error:  # as above
        raise ModelError(
            f"cannot be read: {one_line(error)}", place=str(file), remedy="fetch it again, or remove it"
        ) from error
    return settings


def first_line(error: Exception) -> str:
    """The first line of an error's text, for a message of one sentence."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def one_line(error: Exception) -> str:
    """An error's whole text on one line, at most 300 characters of it."""
    return (" ".join(str(error).split()) or type(error).__name__)[:300].rstrip(".")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keeps transformers' progress bars and its warnings off the terminal within the block; errors still raise."""
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(python_logging.ERROR)
    switch: Any = transformers_logging
    switch.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            switch.enable_progress_bar()
