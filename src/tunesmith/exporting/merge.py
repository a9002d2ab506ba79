"""Merges an adapter into its base model: W + s*B@A for each adapted module, in float32, rounded once at the end.

PEFT's `merge_and_unload` on a bf16 model rounds the change before it adds it, and adds in bf16, so that small changes
are lost. Here each layer is brought to float32 on its own, merged by PEFT's own code for its variant (LoRA, DoRA, ...),
and rounded; no more than one layer is held in float32 at a time.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel

from tunesmith.adapters.contract import CONTRACT_FILE, Contract, check_contract, read_contract
from tunesmith.adapters.files import load_adapter, replaced_own_folder
from tunesmith.adapters.methods import merge_obstacle
from tunesmith.errors import AdapterError, DiskError, ExportError
from tunesmith.models.backend import Precision
from tunesmith.models.cache import growth_shown
from tunesmith.models.folder import TOKENIZER_FILES, first_line, load_tokenizer, quiet_transformers, weight_files
from tunesmith.models.loading import load_model, parameter_count, weights_digest
from tunesmith.progress import task, track

README = "README.md"

SPARE_BYTES = 64 * 10**6
"""Room for the tokenizer, the config and the card beside the weights."""

_MEGABYTE = 10**6


@dataclass(frozen=True)
class MergeResult:
    """What `merge_adapter` wrote.

    Args:
        folder: the merged model.
        weights_digest: of its weights.
        weight_files: how many safetensors files.
        total_bytes: of all files together.
        modules_merged: how many modules of the base the adapter changed.
        parameters: of the merged model; shared ones count once.
    """

    folder: Path
    weights_digest: str
    weight_files: int
    total_bytes: int
    modules_merged: int
    parameters: int


def merge_adapter(
    base_folder: Path,
    adapter_folder: Path,
    out_folder: Path,
    *,
    precision: Precision,
    device: torch.device,
    max_shard_size: str = "5GB",
    card: str | None = None,
) -> MergeResult:
    """Writes the base model with the adapter merged into it, as transformers and vLLM load it.

    The folder appears whole or not at all; a merged model that was there is replaced.

    Args:
        base_folder: the base model's folder.
        adapter_folder: the adapter's folder.
        out_folder: where the merged model goes.
        precision: that of training; the merged weights are saved in it.
        device: where to compute.
        max_shard_size: largest safetensors file, as "5GB".
        card: text of README.md.

    Raises:
        ContractError: the adapter was trained on other weights than those in `base_folder`.
        ExportError: this adapter cannot be merged, or the result is not finite.
        DiskError: there is not enough room, or it cannot be written.
    """
    contract = read_contract(adapter_folder)
    if contract is not None:
        check_contract(contract, base_digest=weights_digest(base_folder), place=str(adapter_folder))
    base = load_model(base_folder, precision=precision, device=device)
    _check_room(base, out_folder)
    # float32 for the adapter whatever the base holds: its exact values enter the sum.
    adapted = load_adapter(base, adapter_folder, precision="fp32")
    if (obstacle := merge_obstacle(adapted)) is not None:
        raise ExportError(
            f"this adapter cannot be merged: {obstacle}", place=str(adapter_folder), remedy="set export.merge to false"
        )
    merged, modules = merge_model(adapted)
    tokenizer_folder = adapter_folder if any((adapter_folder / n).is_file() for n in TOKENIZER_FILES) else base_folder
    tokenizer = load_tokenizer(tokenizer_folder)
    if hasattr(merged.config, "quantization_config"):
        del merged.config.quantization_config
    with _export_errors(), replaced_own_folder(out_folder, known_by="config.json") as beside:
        total = _weights_bytes(merged) // _MEGABYTE
        with (
            task("Writing the merged model", total=total or None, unit="MB") as watched,
            growth_shown(watched, beside),
            quiet_transformers(),
        ):
            merged.save_pretrained(beside, max_shard_size=max_shard_size)
            tokenizer.save_pretrained(beside)
        _set_stop_tokens(beside, contract)
        digest = weights_digest(beside)
        if contract is not None:
            own = dataclasses.replace(contract, kind="merged", weights_digest=digest)
            (beside / CONTRACT_FILE).write_text(own.to_json(), encoding="utf-8")
        if card is not None:
            (beside / README).write_text(card, encoding="utf-8")
    return MergeResult(
        folder=out_folder,
        weights_digest=digest,
        weight_files=len(weight_files(out_folder)),
        total_bytes=sum(path.stat().st_size for path in out_folder.iterdir()),
        modules_merged=modules,
        parameters=parameter_count(merged),
    )


def _set_stop_tokens(folder: Path, contract: Contract | None) -> None:
    """Lets `generate` and vLLM end answers where the training ended them.

    Written into the file, because transformers refuses to save a published generation config that was changed and has
    flags that contradict each other.
    """
    stops = list(contract.template.get("stop_token_ids", ())) if contract is not None else []
    path = folder / "generation_config.json"
    values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    before = values.get("eos_token_id")
    others = before if isinstance(before, list) else [before] if before is not None else []
    together = list(dict.fromkeys([*stops, *others]))
    if stops and together != others:
        values["eos_token_id"] = together
        path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


@torch.no_grad()
def merge_model(model: PeftModel) -> tuple[PreTrainedModel, int]:
    """Merges the adapter into the weights in memory and takes it off; each weight keeps its dtype.

    Args:
        model: a base model with an adapter in float32; changed in place.

    Returns:
        The plain model, and how many modules the adapter changed.

    Raises:
        ExportError: PEFT cannot merge this adapter, or merged weights are not finite in their dtype.
    """
    base: PreTrainedModel = model.get_base_model()
    names = [name for name, module in base.named_modules() if isinstance(module, LoraLayer)]
    tied = _embeddings_are_tied(base)
    kept_tied = bool(model.peft_config["default"].ensure_weight_tying)
    for name in track(names, "Merging", total=len(names), unit="modules"):
        layer = base.get_submodule(name)
        if not isinstance(layer, LoraLayer):
            continue  # a further wrapper of a module that was merged with the first
        try:
            _merge_layer(layer)
        except (ValueError, RuntimeError, NotImplementedError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise ExportError(
                f"{name} cannot be merged: {first_line(error)}", remedy="set export.merge to false, and use the adapter"
            ) from error
    for module in base.modules():
        if isinstance(module, ModulesToSaveWrapper):
            for saved, original in zip(
                module.modules_to_save["default"].parameters(), module.original_module.parameters(), strict=True
            ):
                saved.data = saved.data.to(original.dtype)
    with warnings.catch_warnings():
        # What is left are saved modules and trained tokens; PEFT warns of embeddings that are no longer tied.
        warnings.simplefilter("ignore")
        merged: PreTrainedModel = model.merge_and_unload(safe_merge=True)
    if tied:
        _settle_embeddings(merged, kept_tied=kept_tied)
    _separate_layers(merged)
    merged.requires_grad_(False)
    return merged, len(names)


def _merge_layer(layer: Any) -> None:
    """Merges one adapted module in float32.

    Each weight becomes a parameter of its own first, so that one that is tied to another module's is not changed there
    too.
    """
    base = layer.get_base_layer()
    dtypes = {name: parameter.dtype for name, parameter in base.named_parameters(recurse=False)}
    for name, parameter in list(base.named_parameters(recurse=False)):
        setattr(base, name, nn.Parameter(parameter.detach().float(), requires_grad=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer.merge(safe_merge=True)
    for name, parameter in list(base.named_parameters(recurse=False)):
        rounded = parameter.detach().to(dtypes[name])
        if not torch.isfinite(rounded).all():
            raise ValueError(f"its weights are not finite in {str(rounded.dtype).removeprefix('torch.')}")
        setattr(base, name, nn.Parameter(rounded, requires_grad=False))


def _embeddings_are_tied(model: PreTrainedModel) -> bool:
    pair = _embedding_modules(model)
    return pair is not None and pair[0].weight is pair[1].weight


def _embedding_modules(model: PreTrainedModel) -> tuple[Any, Any] | None:
    untyped: Any = model
    inputs, outputs = untyped.get_input_embeddings(), untyped.get_output_embeddings()
    return (inputs, outputs) if outputs is not None and hasattr(outputs, "weight") else None


def _settle_embeddings(model: PreTrainedModel, *, kept_tied: bool) -> None:
    """Ties embedding and head again where both are still the same, and says in the config where they are not.

    Args:
        model: the merged model, whose base had them tied.
        kept_tied: the adapter trained both as one; their sums then differ by the order of rounding only.
    """
    pair = _embedding_modules(model)
    if pair is None:
        return
    inputs, outputs = pair
    same = inputs.weight is outputs.weight or torch.equal(inputs.weight, outputs.weight)
    if kept_tied and not same:
        rounding = 2 * torch.finfo(inputs.weight.dtype).eps
        same = torch.allclose(
            inputs.weight, outputs.weight, rtol=rounding, atol=rounding * float(inputs.weight.abs().max())
        )
    if same:
        outputs.weight = inputs.weight
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        config.tie_word_embeddings = same
    if not same:
        # save_pretrained leaves tied weights out by these names.
        model._tied_weights_keys = {}
        model.all_tied_weights_keys = {}


def _separate_layers(model: PreTrainedModel) -> None:
    """Gives each layer its own copy of weights that replicated layers share (PEFT's `layer_replication`)."""
    pair = _embedding_modules(model)
    head = pair[1].weight if pair is not None else None
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.data_ptr() in seen and parameter is not head:
                setattr(module, name, nn.Parameter(parameter.detach().clone(), requires_grad=False))
            seen.add(parameter.data_ptr())


def _check_room(model: PreTrainedModel, out_folder: Path) -> None:
    needed = _weights_bytes(model) + SPARE_BYTES
    folder = next(parent for parent in (out_folder, *out_folder.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DiskError(
            f"the merged model needs {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free",
            place=str(out_folder),
            remedy="free some space, or put the run elsewhere with --run FOLDER",
        )


def _weights_bytes(model: PreTrainedModel) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


@contextmanager
def _export_errors() -> Iterator[None]:
    """A folder of other files is an error of the export here, not of an adapter."""
    try:
        yield
    except AdapterError as error:
        raise ExportError(error.message, place=error.place, remedy=error.remedy) from None
