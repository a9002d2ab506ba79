"""Which modules of a model an adapter goes on: the recipe's `target_modules` and `layers` in PEFT's terms.

Everything is found from the model's own module tree, so that a family with other names (a fused `qkv_proj`, another
name for its stack of layers) needs no entry here.
"""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tunesmith.config import AdapterSection
from tunesmith.errors import AdapterError

ALL_LINEAR = "all-linear"
ATTENTION = "attention"


@dataclass(frozen=True)
class Targets:
    """The choice of modules under PEFT's names: the same fields of `LoraConfig`.

    Args:
        target_modules: a regular expression over full module names, or names (a name matches where a module's full
            name ends in it).
        layers_to_transform: indices of decoder layers, or None for all.
        layers_pattern: the name of the list of decoder layers within the model; goes with `layers_to_transform`.
    """

    target_modules: str | list[str]
    layers_to_transform: list[int] | None = None
    layers_pattern: list[str] | None = None


def decoder_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The stack of decoder layers and its full name, as ("model.layers", ...).

    Raises:
        AdapterError: the model has no list of as many layers as its config says.
    """
    depth = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    stacks = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if not stacks:
        raise AdapterError(
            f"no list of decoder layers was found in {type(model).__name__}", remedy="leave adapter.layers at all"
        )
    return min(stacks, key=lambda stack: stack[0].count("."))


def linear_modules(model: nn.Module) -> list[str]:
    """Full names of the linear modules, in the model's order."""
    return [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))]


def resolve_targets(model: PreTrainedModel, section: AdapterSection) -> Targets:
    """The recipe's choice of modules and layers for this model.

    Raises:
        AdapterError: a target matches nothing (with the names there are), or a layer does not exist (with how many
            there are).
    """
    layers = _chosen_layers(model, section)
    targets = section.target_modules
    if section.target_parameters and targets == ALL_LINEAR:
        # PEFT refuses a parameter of a module that is a target itself; the default gives way to the explicit choice.
        targets = []
    if isinstance(targets, str) and targets not in (ALL_LINEAR, ATTENTION) and _matches(model, targets):
        targets = [targets]
    if isinstance(targets, str) and targets not in (ALL_LINEAR, ATTENTION):
        return _by_pattern(model, targets, layers)
    if isinstance(targets, str):
        targets = _attention_names(model) if targets == ATTENTION else _all_linear_names(model, layers)
    for name in targets:
        if not _in_layers(model, _matches(model, name), layers):
            raise _nothing_matches(model, name, layers)
    if layers is None or not targets:
        return Targets(list(targets))
    return Targets(list(targets), layers, section_pattern(section) or [_layers_pattern(model)])


def section_pattern(section: AdapterSection) -> list[str] | None:
    """The recipe's own `layers_pattern` as a list."""
    pattern = section.layers_pattern
    return [pattern] if isinstance(pattern, str) else pattern


def _chosen_layers(model: PreTrainedModel, section: AdapterSection) -> list[int] | None:
    chosen = section.layers if section.layers != "all" else section.layers_to_transform
    if chosen is None:
        return None
    depth = len(decoder_layers(model)[1])
    if isinstance(chosen, str):
        count = int(chosen.removeprefix("last:"))
        if count > depth:
            raise AdapterError(
                f"{chosen} asks for more layers than the model's {depth}",
                place="adapter.layers",
                remedy=f"choose last:1 to last:{depth}, or all",
            )
        return list(range(depth - count, depth))
    indices = sorted({chosen} if isinstance(chosen, int) else set(chosen))
    key = "adapter.layers" if section.layers != "all" else "adapter.layers_to_transform"
    if not indices:
        raise AdapterError("no layer is chosen", place=key, remedy=f"give indices from 0 to {depth - 1}, or all")
    outside = [index for index in indices if not 0 <= index < depth]
    if outside:
        raise AdapterError(
            f"there is no layer {', '.join(map(str, outside))}: the model has {depth} layers",
            place=key,
            remedy=f"indices go from 0 to {depth - 1}",
        )
    return indices


def _layers_pattern(model: PreTrainedModel) -> str:
    """What PEFT looks for before the index: the list's own name, or its full name where others share it."""
    path, _ = decoder_layers(model)
    name = path.rpartition(".")[2]
    namesakes = [n for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and n.rpartition(".")[2] == name]
    return name if len(namesakes) == 1 else re.escape(path)


def _matches(model: nn.Module, name: str) -> list[str]:
    """Full names of the modules that PEFT takes `name` for."""
    return [full for full, _ in model.named_modules() if full == name or full.endswith(f".{name}")]


def _in_layers(model: PreTrainedModel, full_names: Iterable[str], layers: list[int] | None) -> list[str]:
    if layers is None:
        return list(full_names)
    path, _ = decoder_layers(model)
    prefixes = tuple(f"{path}.{index}." for index in layers)
    return [name for name in full_names if name.startswith(prefixes)]


def _by_pattern(model: PreTrainedModel, pattern: str, layers: list[int] | None) -> Targets:
    try:
        found = [name for name in linear_and_embedding(model) if re.fullmatch(pattern, name)]
    except re.error as error:
        raise AdapterError(
            f"'{pattern}' is neither a module's name nor a regular expression: {error}", place="adapter.target_modules"
        ) from None
    chosen = _in_layers(model, found, layers)
    if not chosen:
        raise _nothing_matches(model, pattern, layers)
    # PEFT applies layers_to_transform to names only, so a pattern within some layers becomes the names it matches.
    return Targets(pattern if layers is None else chosen)


def linear_and_embedding(model: nn.Module) -> list[str]:
    """Full names of the modules that LoRA can go on in a language model."""
    return [n for n, m in model.named_modules() if isinstance(m, (nn.Linear, Conv1D, nn.Embedding))]


def _attention_names(model: PreTrainedModel) -> list[str]:
    """Shortest names of the linear modules within the attention modules of the decoder layers."""
    path, layers = decoder_layers(model)
    names: dict[str, None] = {}
    for index, layer in enumerate(layers):
        for name, module in layer.named_modules():
            if "attention" in type(module).__name__.lower():
                names.update(
                    dict.fromkeys(f"{path}.{index}.{name}.{inner}" for inner in linear_modules(module) if inner)
                )
    if not names:
        raise AdapterError(
            f"no attention module with linear layers was found in {type(model).__name__}",
            place="adapter.target_modules",
            remedy=f"name the modules yourself; {_what_there_is(model)}",
        )
    return _shortest_names(model, list(names))


def _all_linear_names(model: PreTrainedModel, layers: list[int] | None) -> list[str]:
    """Shortest names of what PEFT's keyword stands for: every linear module but the output head.

    Where layers are chosen, only those within decoder layers.
    """
    untyped: Any = model
    head = untyped.get_output_embeddings()
    within = "" if layers is None else f"{decoder_layers(model)[0]}."
    names = [name for name in linear_modules(model) if name.startswith(within)]
    return _shortest_names(model, [name for name in names if model.get_submodule(name) is not head])


def _shortest_names(model: nn.Module, wanted: list[str]) -> list[str]:
    """Names by which PEFT finds the modules `wanted` and no other: "c_proj", or "attn.c_proj" if there are more."""
    allowed = set(wanted)
    shortest: dict[str, None] = {}
    for full in wanted:
        parts = full.split(".")
        for length in range(1, len(parts) + 1):
            name = ".".join(parts[-length:])
            if allowed.issuperset(_matches(model, name)):
                shortest[name] = None
                break
    return list(shortest)


def _what_there_is(model: nn.Module) -> str:
    return f"linear modules here: {', '.join(_distinct_names(model))}"


def _distinct_names(model: nn.Module) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".")[2] for name in linear_modules(model)))


def _nothing_matches(model: PreTrainedModel, target: str, layers: list[int] | None) -> AdapterError:
    near = difflib.get_close_matches(target, [*_distinct_names(model), ALL_LINEAR, ATTENTION], n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near and near[0] != target else ""
    where = f" in layers {', '.join(map(str, layers))}" if layers is not None else ""
    return AdapterError(
        f"'{target}' matches no module{where} of {type(model).__name__}",
        place="adapter.target_modules",
        remedy=hint + _what_there_is(model),
    )
