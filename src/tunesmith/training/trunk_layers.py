"""The frozen layers below an adapter: how many there are, whether what they give is the same each time, and leaving
them out.

The trunk is the stack of decoder layers below the lowest one in which something trains. They are left out without any
knowledge of the family: while reading, the first of them gives the stored hidden states in place of its own work and
the others give on what they get, by an attribute `forward` of the layer itself. What the model does before and between
(embedding, masks, positions) goes on as it is.

Shapes: B examples, T tokens, H the hidden size, V the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tunesmith.adapters.targets import decoder_layers
from tunesmith.errors import AdapterError
from tunesmith.models.backend import is_out_of_memory
from tunesmith.models.folder import one_line
from tunesmith.models.modules import evaluation_mode, unwrapped

Autocast = Callable[[], AbstractContextManager[Any]]

FINAL_NORMS = ("norm", "final_layernorm", "final_layer_norm", "final_norm", "norm_f", "ln_f")
"""What families call the norm above the last layer."""

_PROBE_TOKENS = 32
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.AlphaDropout)

# Two runs of the same numbers through the same layers; on a CPU they are equal. On CUDA a kernel may add in another
# order. What a family passes around the trunk (shared keys and values, inputs of each layer) shows far above this.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 1e-2}


@dataclass(frozen=True)
class Stack:
    """A model's decoder layers and what is around them.

    Args:
        base: the model within PEFT.
        decoder: the part that holds the layers, without the head.
        path: the full name of the list of layers within `base`.
        layers: the layers.
    """

    base: Any
    decoder: Any
    path: str
    layers: Sequence[nn.Module]


def find_stack(model: nn.Module) -> Stack | None:
    """The decoder layers of PEFT around a causal language model, or of the model itself; None where there are none."""
    base = unwrapped(model)
    try:
        path, layers = decoder_layers(base)
    except (AdapterError, AttributeError):
        return None
    return Stack(base, base.get_submodule(path.rpartition(".")[0]), path, list(layers))


def trunk_depth(model: nn.Module) -> int:
    """How many decoder layers lie below everything that trains.

    0 where the embeddings train, or anything else that is neither in a layer nor above the last one; where nothing
    trains; and where the layers cannot be found.
    """
    stack = find_stack(model)
    if stack is None:
        return 0
    head = stack.base.get_output_embeddings()
    heads = [name for name, module in stack.base.named_modules() if module is head and head is not None]
    parent = stack.path.rpartition(".")[0]
    above = tuple(f"{name}." for name in [*heads, *(f"{parent}.{norm}".lstrip(".") for norm in FINAL_NORMS)])
    # Tied weights under all of their names: the head's is also the embedding's.
    trained = [name for name, value in stack.base.named_parameters(remove_duplicate=False) if value.requires_grad]
    within = {id(value) for value in stack.base.parameters()}
    if not trained or any(value.requires_grad and id(value) not in within for value in model.parameters()):
        return 0
    lowest = len(stack.layers)
    for name in trained:
        if name.startswith(f"{stack.path}."):
            lowest = min(lowest, int(name[len(stack.path) + 1 :].split(".")[0]))
        elif not name.startswith(above):
            return 0
    return lowest


def trunk_obstacle(model: nn.Module, longest: int = 0) -> str | None:
    """Why what the frozen layers give cannot be kept, in words; None where nothing speaks against it.

    Args:
        model: PEFT around a causal language model.
        longest: tokens of the longest example; 0 leaves out what depends on it.
    """
    stack = find_stack(model)
    if stack is None:
        return "no list of decoder layers was found in the model"
    depth = trunk_depth(model)
    if depth == 0:
        return "no frozen layer lies below the lowest part that trains"
    config = stack.base.config.get_text_config()
    values: dict[str, Any] = config.to_dict()
    return (
        _dropout(stack, depth, values)
        or _config_obstacle(values)
        or _position_obstacle(values, longest, int(getattr(config, "max_position_embeddings", 0) or 0))
    )


def _dropout(stack: Stack, depth: int, values: dict[str, Any]) -> str | None:
    """Dropout that is active below the adapter while training: it draws anew in every epoch."""
    upper = {id(module) for layer in stack.layers[depth:] for module in layer.modules()}
    for name, module in stack.decoder.named_modules():
        if isinstance(module, _DROPOUTS) and module.p > 0 and id(module) not in upper:
            return f"the frozen layers use dropout in training ({name}, p = {module.p:g})"
    for key, value in values.items():
        # Dropout that layers apply by function has its rate in the config: attention_dropout, resid_pdrop, layerdrop.
        if "drop" in key and not key.startswith(("classifier", "summary", "head")) and _is_positive(value):
            return f"the frozen layers use dropout in training ({key} = {value:g})"
    return None


def _config_obstacle(values: dict[str, Any]) -> str | None:
    for key, value in values.items():
        if "jitter" in key and _is_positive(value):
            return f"the routers of the experts draw noise in training ({key} = {value:g})"
    if values.get("output_router_logits"):
        return "the loss of the routers (output_router_logits) needs the frozen layers to run"
    if _is_positive(values.get("num_kv_shared_layers")):
        return "layers share keys and values with layers below them (num_kv_shared_layers)"
    return None


def _position_obstacle(values: dict[str, Any], longest: int, context: int) -> str | None:
    """Rotary frequencies that depend on the longest example of a batch: an example's states depend on its company."""
    for rope in _mappings(values.get("rope_parameters")):
        kind = rope.get("rope_type")
        limit = rope.get("original_max_position_embeddings") or context
        if kind in ("dynamic", "longrope") and longest > limit:
            return (
                f"positions are scaled by the longest example of a batch (rope_type {kind}), and examples are longer "
                f"than {limit} tokens"
            )
    return None


def _mappings(value: Any) -> Iterator[dict[str, Any]]:
    """A mapping and those within it: rotary settings may be given for each type of layer."""
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from _mappings(inner)


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


@contextmanager
def _forwards(layers: Iterable[nn.Module], forwards: Iterable[Callable[..., Any]]) -> Iterator[None]:
    """Within the block `layers` do what `forwards` say; afterwards what they did before, whatever happens.

    The attribute of the object goes before that of its class. Hooks of the layer are called as always; its activation
    checkpointing, which sits in the class's own `forward`, is not.
    """
    pairs = list(zip(layers, forwards, strict=True))
    before = [layer.__dict__.get("forward") for layer, _ in pairs]
    try:
        for layer, forward in pairs:
            layer.__dict__["forward"] = forward
        yield
    finally:
        for (layer, _), own in zip(pairs, before, strict=True):
            if own is None:
                layer.__dict__.pop("forward", None)
            else:
                layer.__dict__["forward"] = own


def _pass_on(*args: Any, **kwargs: Any) -> Any:
    return args[0] if args else kwargs["hidden_states"]


@contextmanager
def standing_in(layers: Sequence[nn.Module], hidden_BTH: torch.Tensor) -> Iterator[None]:
    """Within the block `layers` are not run: what leaves the last of them is `hidden_BTH`.

    Args:
        layers: the trunk, at least one layer.
        hidden_BTH: on the model's device.

    Raises:
        ValueError: within the block, if a batch of another shape goes through the model.
    """

    def stored(*args: Any, **kwargs: Any) -> torch.Tensor:
        shape = tuple(_pass_on(*args, **kwargs).shape)
        if shape != tuple(hidden_BTH.shape):
            raise ValueError(f"a batch of {shape} goes through the model, stored are {tuple(hidden_BTH.shape)}")
        return hidden_BTH

    with _forwards(layers, [stored, *[_pass_on] * (len(layers) - 1)]):
        yield


class NotPlainError(Exception):
    """A decoder layer gives something else than one tensor of hidden states."""


def trunk_output(stack: Stack, depth: int, input_ids_BT: torch.Tensor, autocast: Autocast) -> torch.Tensor:
    """What layer `depth - 1` gives: hidden states [B, T, H].

    The layers above and the head are not run. To be called in evaluation mode and without gradients.

    Args:
        stack: the layers.
        depth: how many of them are the trunk.
        input_ids_BT: padded on the right, on the model's device.
        autocast: gives the context that training computes in.

    Raises:
        NotPlainError: it gives something else, as a tuple.
    """
    given: list[torch.Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if not isinstance(output, torch.Tensor) or output.ndim != 3 or output.shape[:2] != input_ids_BT.shape:
            raise NotPlainError
        given.append(output)

    handle = stack.layers[depth - 1].register_forward_hook(keep)
    try:
        upper = stack.layers[depth:]
        with autocast(), _forwards(upper, [_pass_on] * len(upper)):
            stack.decoder(input_ids=input_ids_BT, use_cache=False)
    finally:
        handle.remove()
    return given[0]


@dataclass(frozen=True)
class HiddenFormat:
    """What has to be kept for each token: `size` numbers of `dtype`."""

    size: int
    dtype: torch.dtype


def probe(
    model: nn.Module, stack: Stack, depth: int, rows: Sequence[Sequence[int]], pad_token_id: int, autocast: Autocast
) -> HiddenFormat | str:
    """Tries it: the model with its trunk, and with what the trunk gave in its place, on the beginnings of some rows.

    Args:
        model: as training runs it, on its device.
        stack: its layers.
        depth: how many of them are the trunk.
        rows: token ids of some examples; the first is cut shorter than the others, so that there is padding.
        pad_token_id: fills the shorter ones.
        autocast: gives the context that training computes in.

    Returns:
        The format of the hidden states; or why it does not do, in words.
    """
    cut = [list(row[: _PROBE_TOKENS if number else _PROBE_TOKENS // 2]) for number, row in enumerate(rows)]
    width = max(map(len, cut))
    device = next(stack.base.parameters()).device
    ids_BT = torch.tensor([row + [pad_token_id] * (width - len(row)) for row in cut], device=device)
    is_token_BT = torch.tensor([[at < len(row) for at in range(width)] for row in cut], device=device)
    try:
        with evaluation_mode(model), torch.no_grad():
            hidden_BTH = trunk_output(stack, depth, ids_BT, autocast)
            if hidden_BTH.dtype not in _TOLERANCE:
                return f"the hidden states are {hidden_BTH.dtype}"
            whole_NV = _logits_of(model, ids_BT, is_token_BT, autocast)
            stored_BTH = torch.where(is_token_BT[:, :, None], hidden_BTH, torch.zeros_like(hidden_BTH))
            with standing_in(stack.layers[:depth], stored_BTH):
                from_stored_NV = _logits_of(model, ids_BT, is_token_BT, autocast)
    except NotPlainError:
        return "the decoder layers give more than the hidden states"
    except Exception as error:  # whatever a family does that hands more around its layers than hidden states
        if is_out_of_memory(error):
            raise
        return f"the model does not run without its frozen layers: {one_line(error)}"
    allowed = _TOLERANCE[hidden_BTH.dtype] * whole_NV.abs().max()
    if not bool(((whole_NV - from_stored_NV).abs() <= allowed).all()):
        return "the layers above see more of the frozen layers than their hidden states"
    return HiddenFormat(hidden_BTH.shape[2], hidden_BTH.dtype)


def _logits_of(model: nn.Module, ids_BT: torch.Tensor, is_token_BT: torch.Tensor, autocast: Autocast) -> torch.Tensor:
    """The logits of the N real tokens, in float32."""
    with autocast():
        logits_BTV: torch.Tensor = model(input_ids=ids_BT, use_cache=False).logits
    return logits_BTV[is_token_BT].float()
