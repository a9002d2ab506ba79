"""`torch.compile` for decoder layers, where a forecast says that it pays, and eager wherever it does not work.

A layer at a time is compiled, with sizes of batch and width left open: one artefact serves all layers of like code and
all shapes of micro-batches. torch tells a batch of one example apart from larger ones, so at most two artefacts for
each kind of layer are made, all of them before the first step, in a try-out that compares outputs and gradients with
eager's. From then on nothing is compiled: a call that fits no artefact runs in eager, and is counted. So which steps
run compiled depends on the recipe, the data and the machine, never on a clock or on where a run was resumed.

The cache keeps shared objects alone, named by the digest of their source. torch's other caches hold pickles; they are
off.

Shapes: B examples, T tokens, H the hidden size.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import statistics
import sys
import time
import types
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import torch
from torch import nn

from tunesmith.control_groups import usable_cores
from tunesmith.errors import disk_errors
from tunesmith.models.backend import cpu_features, release_memory
from tunesmith.models.cache import cache_folder, locked
from tunesmith.models.folder import one_line
from tunesmith.training.trunk_layers import Autocast, find_stack, trunk_depth

SAVED_CORE_SECONDS = 4e-9
"""What compiling saves, in seconds of one core for each token, layer and number of hidden and intermediate size.

Compiling fuses passes over activations, so what it saves grows with them, not with the products. SmolLM2-135M on two
cores: in bf16 with AMX from 717 to 889-1,075 tokens a second (8.6e-9 to 14.5e-9), in fp32 with AVX2 6 % or 0.2 ms a
token (6.5e-9). The figure is below all of them, as eager layers have less to save the leaner they become.
"""

COST_SECONDS = 60.0
"""What compiling costs: 36 s on two cores with AVX2 for one artefact and its try-out; there may be two."""

LEAST_RETURN = 2.0
"""It pays from so many times its cost on: a forecast by a class of processors is no more exact than that."""

MOST_ARTEFACTS = 4
"""Models whose layers are of more kinds stay in eager; torch itself gives up, in silence, at 8."""

LEAST_SHARE = 0.1
"""Share of the tokens from which on batches of one example, or of several, get an artefact of their own."""

WIDEST_TRIED = 512
"""Most tokens of an example of the try-out, whose inputs of all layers are held at once."""

_DOES_NOT_FIT = "Detected recompile"
"""How torch's message begins where a call fits no artefact under the stance fail_on_recompile."""

_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 2e-2}
_PICKLING_CACHES = {
    "torch._inductor.config": {
        "fx_graph_cache": False, "fx_graph_remote_cache": False, "autotune_local_cache": False,
        "autotune_remote_cache": False, "bundled_autotune_remote_cache": False,
    },
    "torch._functorch.config": {"enable_autograd_cache": False, "enable_remote_autograd_cache": False},
    "torch._dynamo.config": {
        "automatic_dynamic_local_pgo": False, "automatic_dynamic_remote_pgo": False, "caching_precompile": False,
    },
}  # fmt: skip


def forecast(model: nn.Module, device: torch.device, tokens: float) -> str | None:
    """Why compiling does not pay within the run, in words; None where it does.

    It rests on recipe, data and class of processor alone, so that the same run decides alike whenever it is started.

    Args:
        model: PEFT around a causal language model.
        device: where it trains.
        tokens: real tokens of the whole run.
    """
    if device.type != "cpu":
        return f"what it saves on {device.type} was not measured; train.compile: on tries it"
    layers = _layers_to_compile(model)
    if isinstance(layers, str):
        return layers
    config = getattr(model, "config", None)
    values = config.get_text_config().to_dict() if config is not None else {}
    sizes = [values.get(name) for name in ("hidden_size", "intermediate_size")]
    numbers = sum(size for size in sizes if isinstance(size, int))
    saved = tokens * len(layers) * numbers * SAVED_CORE_SECONDS / usable_cores()
    if saved < LEAST_RETURN * COST_SECONDS:
        return f"it would save about {saved:.0f} s of this run and may cost {COST_SECONDS:.0f} s"
    return None


def typical_shapes(batches: Sequence[Sequence[int]], lengths: Sequence[int]) -> list[tuple[int, int]]:
    """(B, T) to compile for: 1 example, 2 (which stands for all larger batches), or both, as the micro-batches are.

    Args:
        batches: indices of the examples of each micro-batch.
        lengths: tokens of every example.
    """
    widths: dict[int, list[int]] = {1: [], 2: []}
    tokens: Counter[int] = Counter()
    for batch in batches:
        size = min(len(batch), 2)
        widths[size].append(max(int(lengths[index]) for index in batch))
        tokens[size] += sum(int(lengths[index]) for index in batch)
    least = LEAST_SHARE * tokens.total()
    return [(size, min(WIDEST_TRIED, statistics.median_high(widths[size]))) for size in (2, 1) if tokens[size] > least]


@dataclass
class CompiledLayers:
    """Decoder layers whose `forward` is compiled; made by `compile_layers`.

    Args:
        layers: the layers, without those that stay in eager.
        of: layers of the model.
        seconds: what it took.
        eager_calls: calls of a layer that fitted no artefact, by (B, T).
    """

    layers: Sequence[nn.Module]
    of: int
    seconds: float = 0.0
    eager_calls: Counter[tuple[int, int]] = field(default_factory=Counter)

    def describe(self) -> tuple[str, str]:
        """State and remark for the report."""
        state = f"compiled: {len(self.layers)} of {self.of}"
        remark = f"compiling and trying them took {self.seconds:.0f} s"
        if self.eager_calls:
            shapes = sorted(self.eager_calls)
            shown = ", ".join(f"{batch} x {width}" for batch, width in shapes[:3]) + ", ..." * (len(shapes) > 3)
            remark += f"; eager for {len(shapes)} shapes of batches that did not fit ({shown})"
        return state, remark

    def close(self) -> None:
        """The layers do what their class does again."""
        for layer in self.layers:
            layer.__dict__.pop("forward", None)


class _Forward:
    """Stands as `forward` on a layer: compiled where a gradient is wanted and an artefact fits, else eager.

    transformers puts activation checkpointing into the class's own `forward`, which this goes past; so it is done here.
    """

    def __init__(self, layer: nn.Module, compiled: Callable[..., Any], eager_calls: Counter[tuple[int, int]]) -> None:
        self._layer: Any = layer
        self._compiled = compiled
        self._eager = _plain_forward(type(layer))
        self._checkpoints = self._eager is not type(layer).forward
        self._eager_calls = eager_calls
        self._unfit: set[tuple[int, int]] = set()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        layer = self._layer
        if self._checkpoints and layer.gradient_checkpointing and layer.training:
            return layer._gradient_checkpointing_func(partial(self._compute, **kwargs), *args)
        return self._compute(*args, **kwargs)

    def _compute(self, *args: Any, **kwargs: Any) -> Any:
        hidden_BTH = args[0] if args else kwargs["hidden_states"]
        shape = (hidden_BTH.shape[0], hidden_BTH.shape[1])
        if torch.is_grad_enabled() and hidden_BTH.requires_grad and shape not in self._unfit:
            try:
                with torch.compiler.set_stance("fail_on_recompile"):
                    return self._compiled(self._layer, *args, **kwargs)
            except RuntimeError as error:
                if not str(error).startswith(_DOES_NOT_FIT):
                    raise
                self._unfit.add(shape)
                self._eager_calls[shape] += 1
        return self._eager(self._layer, *args, **kwargs)


def _plain_forward(kind: type[nn.Module]) -> Callable[..., Any]:
    """The class's forward out of transformers' wrapper for activation checkpointing."""
    forward: Any = kind.forward
    while forward.__code__.co_name == "forward_with_checkpointing":
        forward = forward.__wrapped__
    return cast(Callable[..., Any], forward)


def compile_layers(
    model: nn.Module,
    shapes: Sequence[tuple[int, int]],
    *,
    device: torch.device,
    autocast: Autocast,
    backend: str = "inductor",
) -> CompiledLayers | str:
    """Compiles the decoder layers of `model` and tries them, or says why they stay in eager.

    Args:
        model: as training runs it; its mode is left as train.
        shapes: (B, T) from `typical_shapes`.
        device: where it is.
        autocast: gives the context that training computes in.
        backend: torch.compile's; tests take one that needs no compiler.
    """
    layers = _layers_to_compile(model)
    if isinstance(layers, str):
        return layers
    if backend == "inductor" and not _has_compiler():
        return "there is no C++ compiler (g++, or the one that CXX names)"
    begun = time.monotonic()
    compiled = CompiledLayers(layers, len(_stack_layers(model)))
    folder: Path | None = None
    try:
        folder = _private_folder() if backend == "inductor" else None
        with _settings(folder), warnings.catch_warnings(), torch.random.fork_rng(devices=[]), locked("compiled"):
            warnings.simplefilter("ignore")
            reason = _try(model, layers, shapes, compiled, device=device, autocast=autocast, backend=backend)
    except Exception as error:  # whatever dynamo, inductor or the compiler stumbles over; eager can all the same
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)  # a process killed while compiling may have left half a file
        reason = f"it did not work: {one_line(error)}"
    if reason is not None:
        compiled.close()
        torch.compiler.reset()
        release_memory()
        return reason
    compiled.seconds = time.monotonic() - begun
    return compiled


def _try(
    model: nn.Module,
    layers: Sequence[nn.Module],
    shapes: Sequence[tuple[int, int]],
    compiled: CompiledLayers,
    *,
    device: torch.device,
    autocast: Autocast,
    backend: str,
) -> str | None:
    """Compiles each kind of layer for each shape, and compares; a reason where that does not come out right."""
    from torch._dynamo.utils import counters

    functions = {kind: torch.compile(_own_code(_plain_forward(kind)), dynamic=True, fullgraph=True, backend=backend)
                 for kind in map(type, layers)}  # fmt: skip
    model.train()
    with autocast():
        casts = torch.is_autocast_enabled(device.type)
        computed_in = torch.get_autocast_dtype(device.type) if casts else torch.float32
    before = counters["stats"]["unique_graphs"]
    for batch, width in shapes:
        inputs = _layer_inputs(model, layers, (batch, _unlike_sizes(model, width)), device, autocast)
        for number, (layer, (args, kwargs)) in enumerate(zip(layers, inputs, strict=True)):
            eager = _outputs(layer, _plain_forward(type(layer)), args, kwargs, autocast)
            ours = _outputs(layer, functions[type(layer)], args, kwargs, autocast)
            # By what is computed in: gradients are float32 wherever the parameters are.
            tolerance = max(_TOLERANCE.get(dtype, 1e-4) for dtype in (eager[0].dtype, computed_in))
            for theirs, mine in zip(eager, ours, strict=True):
                error, size = (mine - theirs).float().norm(), theirs.float().norm()
                if not bool(error <= tolerance * size):
                    return f"layer {number + compiled.of - len(layers)} gives other numbers when compiled"
            if counters["stats"]["unique_graphs"] - before > MOST_ARTEFACTS:
                return f"its layers are of more than {MOST_ARTEFACTS} kinds"
    for layer in layers:
        layer.__dict__["forward"] = _Forward(layer, functions[type(layer)], compiled.eager_calls)
    return None


def _outputs(
    layer: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], autocast: Autocast
) -> list[torch.Tensor]:
    """Output and gradients of one layer for a fixed gradient of its output."""
    torch.manual_seed(0)  # dropout
    hidden_BTH = args[0].detach().requires_grad_()
    with autocast():
        output = forward(layer, hidden_BTH, *args[1:], **kwargs)
    output_BTH: torch.Tensor = output[0] if isinstance(output, tuple) else output
    wave = torch.cos(torch.arange(output_BTH.numel(), device=output_BTH.device, dtype=torch.float32))
    wanted = [hidden_BTH, *(value for value in layer.parameters() if value.requires_grad)]
    gradients = torch.autograd.grad(output_BTH, wanted, wave.view_as(output_BTH).to(output_BTH.dtype),
                                    allow_unused=True)  # fmt: skip
    return [output_BTH.detach(), *(gradient for gradient in gradients if gradient is not None)]


def _layer_inputs(
    model: nn.Module, layers: Sequence[nn.Module], shape: tuple[int, int], device: torch.device, autocast: Autocast
) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """What each layer is called with for a made-up batch [B, T]."""
    stack = find_stack(model)
    assert stack is not None
    given: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def keep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named = dict(kwargs)
        given.append((args or (named.pop("hidden_states"),), named))

    handles = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in layers]
    vocabulary = stack.base.get_input_embeddings().weight.shape[0]
    ids_BT = (torch.arange(shape[0] * shape[1], device=device) % vocabulary).view(shape)
    try:
        with torch.no_grad(), autocast():
            stack.decoder(input_ids=ids_BT, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return given


def _unlike_sizes(model: nn.Module, width: int) -> int:
    """A width near `width` that is no size of the model: torch takes equal sizes for one and the same."""
    stack = find_stack(model)
    assert stack is not None
    values = stack.base.config.get_text_config().to_dict().values()
    sizes = {value for value in values if isinstance(value, int)} | {1, 2}
    sizes |= {size for value in stack.layers[-1].parameters() for size in value.shape}
    while width in sizes:
        width += 1
    return width


def _own_code(function: Any) -> Any:
    """The same function with a code object of its own: dynamo keeps artefacts, and counts them, by code object."""
    copy = types.FunctionType(
        function.__code__.replace(), function.__globals__, function.__name__, function.__defaults__,
        function.__closure__,
    )  # fmt: skip
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def _stack_layers(model: nn.Module) -> Sequence[nn.Module]:
    stack = find_stack(model)
    return stack.layers if stack is not None else ()


def _layers_to_compile(model: nn.Module) -> list[nn.Module] | str:
    """The layers above the lowest one that trains, whose input has a gradient; or why there are none.

    The lowest is left in eager: without a gradient of its input it would need an artefact for itself.
    """
    layers = list(_stack_layers(model)[trunk_depth(model) + 1 :])
    if not layers:
        return "there is no decoder layer above the lowest one that trains"
    if any("forward" in layer.__dict__ for layer in layers):
        return "something else stands in for the layers' forward"
    return layers


def _has_compiler() -> bool:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, OSError, RuntimeError):
        return False
    return True


def _private_folder() -> Path:
    """Where the shared objects lie: nobody else may write there, and each kind of processor has its own.

    Raises:
        DiskError: it cannot be made.
        PermissionError: it is another user's.
    """
    about = f"{platform.machine()} {platform.python_version()} {sorted(cpu_features())}"
    digest = hashlib.sha256(about.encode()).hexdigest()[:12]
    folder = cache_folder() / "compiled" / f"torch-{torch.__version__.replace('+', '-')}-{digest}"
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        for part in (folder.parent, folder):
            part.mkdir(mode=0o700, exist_ok=True)
            if part.is_symlink() or (hasattr(os, "getuid") and part.stat().st_uid != os.getuid()):
                raise PermissionError(f"{part} belongs to another user")
            part.chmod(0o700)
    return folder


@contextmanager
def _settings(folder: Path | None) -> Iterator[None]:
    """Within it torch compiles into `folder`, reads and writes no pickle, and draws dropout as eager does."""
    import importlib

    with ExitStack() as stack:
        if folder is not None:
            stack.enter_context(patch.dict(os.environ, {"TORCHINDUCTOR_CACHE_DIR": str(folder)}))
        if sys.version_info < (3, 12) and "setuptools" not in sys.modules:
            # setuptools, which inductor imports, stops where the standard library's distutils comes before its own.
            stack.enter_context(patch.dict(os.environ, {"SETUPTOOLS_USE_DISTUTILS": "stdlib"}))
        for name, caches in _PICKLING_CACHES.items():
            stack.enter_context(importlib.import_module(name).patch(caches))
        # With threads inductor starts a process beside that outlives the compiling.
        changes: dict[str, Any] = {"fallback_random": True, "compile_threads": 1}
        stack.enter_context(importlib.import_module("torch._inductor.config").patch(changes))
        yield
