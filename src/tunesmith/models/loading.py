"""From a model folder to a model in memory: local files, safetensors only, no code from the folder.

The folder is checked before transformers sees it. Missing weights are an error here; transformers would fill them with
random numbers and only warn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PreTrainedModel

from tunesmith.errors import ModelError
from tunesmith.models.attention import register_attention
from tunesmith.models.backend import (
    Precision,
    attention_implementation,
    is_out_of_memory,
    release_memory,
    torch_dtype,
)
from tunesmith.models.folder import (
    check_weights_safe,
    one_line,
    quiet_transformers,
    read_config,
    read_generation_config,
    weight_files,
)
from tunesmith.progress import task

_BLOCK_BYTES = 1 << 22
_MEGABYTE = 10**6


def load_model(folder: Path, *, precision: Precision, device: torch.device) -> PreTrainedModel:
    """The model of a folder in evaluation mode, its weights in `precision` on `device`.

    Raises:
        UnsafeWeightsError: there are only pickled weights.
        ModelError: the folder is no causal language model that can be read here, weights are missing or broken, or
            memory does not suffice.
    """
    register_attention()
    config = read_config(folder)
    check_weights_safe(folder)
    read_generation_config(folder)  # transformers would take a broken one for none
    with task(f"Loading {folder.name}"), quiet_transformers(), memory_errors("load the model", place=str(folder)):
        try:
            auto_class: Any = AutoModelForCausalLM
            model, loaded = auto_class.from_pretrained(
                folder,
                dtype=torch_dtype(precision),
                attn_implementation=attention_implementation(_model_class(config["model_type"]), device),
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        except Exception as error:  # whatever config and weights that do not fit make transformers raise
            if is_out_of_memory(error):
                raise
            raise ModelError(f"the model cannot be loaded: {one_line(error)}", place=str(folder)) from error
        missing = sorted(loaded["missing_keys"])
        if missing:
            shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            raise ModelError(
                f"{len(missing)} of the model's tensors are not in its weights: {shown}",
                place=str(folder),
                remedy="fetch the model again; its config.json and its weights do not belong together",
            )
        placed: PreTrainedModel = model.to(device).eval()
    release_memory()
    return placed


@contextmanager
def memory_errors(what: str, *, place: str) -> Iterator[None]:
    """Turns a lack of memory within the block into a `ModelError`.

    Args:
        what: what there was not enough memory for, as "load the model".
        place: the model's folder or file.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise ModelError(
            f"there is not enough memory to {what}",
            place=place,
            remedy="end other programs, set model.precision: bf16, or choose a smaller model",
        ) from error


def _model_class(model_type: str) -> type:
    found: Any = MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[model_type]]
    model_class: type = found[0] if isinstance(found, tuple) else found
    return model_class


def weights_digest(folder: Path) -> str:
    """SHA-256, in hex, over the names and bytes of the model's safetensors files in sorted order.

    Raises:
        ModelError: as `weight_files`.
    """
    files = weight_files(folder)
    digest = hashlib.sha256()
    total = sum(file.stat().st_size for file in files)
    with task(f"Hashing the weights of {folder.name}", total=total // _MEGABYTE, unit="MB") as watched:
        done = 0
        for file in files:
            # The size after the name keeps a name and bytes from reading as another name and other bytes.
            digest.update(f"{file.relative_to(folder).as_posix()}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as opened:
                while block := opened.read(_BLOCK_BYTES):
                    digest.update(block)
                    done += len(block)
                    watched.advance(done // _MEGABYTE - watched.done)
    return digest.hexdigest()


def parameter_count(model: torch.nn.Module) -> int:
    """How many numbers the model's parameters hold; tied parameters count once."""
    return sum(parameter.numel() for parameter in model.parameters())
