"""What is to know of a module before it is run: what it is wrapped in, in which mode, and by what else; its class."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType
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


def computes_as(one: type, other: type, *methods: str) -> bool:
    """Whether the methods of two classes are the same code, the names of their variables aside."""
    return all(
        isinstance(mine := getattr(one, name, None), FunctionType) and _code(mine) == _code(getattr(other, name))
        for name in methods
    )


def _code(function: FunctionType) -> tuple[Any, ...]:
    code = function.__code__
    modules = tuple(function.__globals__[name] for name in code.co_names if name in function.__globals__)
    return code.co_code, code.co_consts, code.co_names, code.co_argcount, modules


@functools.cache
def subclass_of(kind: type[nn.Module], first: type[nn.Module]) -> type[nn.Module]:
    """A subclass of `kind` with the methods of `first`, so that whoever asks for its class gets the answer it expects.

    To be set as `__class__` of a module of that kind; parameters, names and all other methods stay.
    """
    return type(f"Lean{kind.__name__}", (first, kind), {})
