"""AdamW over the adapter's parameters, and its state as plain tensors by name."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from accelerate import Accelerator

from tunesmith.config import TrainSection


def make_adamw(parameters: Mapping[str, torch.nn.Parameter], section: TrainSection) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter, 1711.05101); vectors such as biases are not decayed, as in the Trainer.

    The fused one: an adapter is hundreds of small tensors, and a loop over them costs more than the arithmetic.
    """
    decayed = [value for value in parameters.values() if value.ndim > 1]
    others = [value for value in parameters.values() if value.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": section.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=section.learning_rate,
        betas=(section.adam_beta1, section.adam_beta2),
        eps=section.adam_epsilon,
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Sets the rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def clip(accelerator: Accelerator, parameters: Iterable[torch.nn.Parameter], max_grad_norm: float) -> float:
    """Scales the gradients down to a norm of `max_grad_norm` (0: leaves them); returns the norm before."""
    limit = max_grad_norm if max_grad_norm > 0 else float("inf")
    return float(accelerator.clip_grad_norm_(list(parameters), limit))


def leave_out(accelerator: Accelerator) -> None:
    """Ends a step that is not taken: a gradient scaler (fp16) expects one of two calls after it looked at gradients."""
    scaler: Any = accelerator.scaler
    if scaler is not None:
        scaler.update()


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter]
) -> dict[str, torch.Tensor]:
    """The optimizer's state as "PARAMETER/STATE" -> tensor; empty before the first step."""
    state = _inner(optimizer).state
    return {
        f"{name}/{key}": torch.as_tensor(value)
        for name, parameter in parameters.items()
        for key, value in state.get(parameter, {}).items()
    }


def load_optimizer(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, torch.nn.Parameter],
    tensors: Mapping[str, torch.Tensor],
) -> None:
    """Restores what `optimizer_tensors` gave."""
    state = _inner(optimizer).state
    for key, value in tensors.items():
        name, _, part = key.rpartition("/")
        parameter = parameters[name]
        # The fused AdamW has its step counters where the parameter is, too.
        state[parameter][part] = value.to(parameter.device)


def load_parameters(parameters: Mapping[str, torch.nn.Parameter], tensors: Mapping[str, torch.Tensor]) -> None:
    """Copies `tensors` into `parameters`; both hold the same names.

    Raises:
        KeyError: a tensor is missing.
    """
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def scaler_numbers(accelerator: Accelerator) -> dict[str, float]:
    """The gradient scaler's scale and growth counter (fp16), else nothing."""
    scaler: Any = accelerator.scaler
    if scaler is None:
        return {}
    state = scaler.state_dict()
    return {key: float(state[key]) for key in ("scale", "_growth_tracker") if key in state}


def load_scaler(accelerator: Accelerator, numbers: Mapping[str, float]) -> None:
    """Restores what `scaler_numbers` gave."""
    scaler: Any = accelerator.scaler
    if scaler is None or not numbers:
        return
    state = scaler.state_dict()
    state["scale"] = numbers["scale"]
    state["_growth_tracker"] = int(numbers["_growth_tracker"])
    scaler.load_state_dict(state)


def _inner(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return inner
