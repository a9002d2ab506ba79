"""What is to know of a module before it is run: what it is wrapped in, in which mode, and by what else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_hooked(module: nn.Module) -> bool:
    """Whether calling `module` does more than its class's `forward`.

    Hooks and a `forward` that was put on the instance (as accelerate does to move weights in time) act only where the
    module is called; whoever computes with its weights directly must not pass them over.
    """
    return "forward" in module.__dict__ or any(getattr(module, name) for name in _HOOKS)


def unwrapped(model: nn.Module) -> Any:
    """The model of transformers itself, out of PEFT's wrapper if it is in one; adapters stay within."""
    wrapped = cast(Any, model)
    return wrapped.get_base_model() if hasattr(wrapped, "get_base_model") else wrapped


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Dropout off within; afterwards every part of the model is in the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
