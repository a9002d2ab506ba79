"""Whether a module does more than its own class does."""

from __future__ import annotations

from torch import nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_hooked(module: nn.Module) -> bool:
    """Whether calling `module` does more than its class's `forward`.

    Hooks and a `forward` that was put on the instance (as accelerate does to move weights in time) act only where the
    module is called; whoever computes with its weights directly must not pass them over.
    """
    return "forward" in module.__dict__ or any(getattr(module, name) for name in _HOOKS)
