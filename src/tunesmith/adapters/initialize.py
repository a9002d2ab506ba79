"""Initialisations of LoRA that look at the data or change the base weights.

EVA (2410.07170), CorDA (2406.05223) and LoRA-GA (2407.05000) need calibration batches. PiSSA (2404.02948), OLoRA
(2406.01775), CorDA and LoRA-GA take part of each base weight out and put it into the adapter, so that the adapter
alone does not fit the original base. `InitialFactors` remembers what was taken out; `as_plain_lora` turns the trained
adapter into one that does fit: W - s*B0*A0 + s*B*A = W + s*[B, -B0] @ [A; A0], a LoRA of twice the rank.

Shape suffixes: O outputs of a linear layer, I inputs, R rank.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.eva import initialize_lora_eva_weights
from torch import nn
from transformers import PreTrainedModel

from tunesmith.errors import AdapterError

CalibrationBatches = Callable[[], Iterable[dict[str, torch.Tensor]]]
"""Gives batches anew at each call: `input_ids`, `labels` and, where rows are padded, `attention_mask`, each [B, T]."""

PLACE = "adapter.init_lora_weights"
NEEDS_BATCHES = ("eva", "corda", "lora_ga")
KNOWN = ("true", "false", "gaussian", "eva", "olora", "pissa", "corda", "orthogonal", "lora_ga", "mica")
_CHANGES_BASE = re.compile(r"pissa(_niter_\d+)?|olora|corda|lora_ga", re.IGNORECASE)


def changes_base_weights(init_lora_weights: bool | str) -> bool:
    """Whether this initialisation moves part of the base weights into the adapter."""
    return isinstance(init_lora_weights, str) and _CHANGES_BASE.fullmatch(init_lora_weights) is not None


def prepare_model(model: PreTrainedModel, config: LoraConfig, calibration_batches: CalibrationBatches | None) -> None:
    """What CorDA and LoRA-GA need of the model before PEFT attaches the adapter; nothing for the others.

    Raises:
        AdapterError: calibration batches are needed and there are none, or they do not suffice.
    """
    name = config.init_lora_weights
    if name not in NEEDS_BATCHES:
        return
    if calibration_batches is None:
        raise AdapterError(
            f"'{name}' looks at training examples and was given none",
            place=PLACE,
            remedy="use it with training data, or choose another initialisation such as pissa",
        )
    if name == "corda":
        try:
            from peft.tuners.lora.corda import preprocess_corda
        except ModuleNotFoundError as error:  # PEFT does not ask for attrs when it is installed, but corda.py needs it
            raise AdapterError(
                f"PEFT's corda needs the package '{error.name}'", place=PLACE, remedy="pip install attrs"
            ) from None
        with _as_it_was(model):
            preprocess_corda(model, config, run_model=lambda: _run_rows(model, calibration_batches))
    elif name == "lora_ga":
        _collect_gradients(model, config, calibration_batches)


def finish_model(model: PeftModel, calibration_batches: CalibrationBatches | None) -> None:
    """What EVA does after PEFT attached the adapter; nothing for the others.

    Raises:
        AdapterError: a calibration batch holds too few tokens.
    """
    config = model.peft_config["default"]
    if config.init_lora_weights != "eva" or calibration_batches is None:
        return
    batches = [_move(batch, model.device) for batch in calibration_batches()]
    needed = round(max([config.r, *config.rank_pattern.values()]) * config.eva_config.rho)
    # EVA's incremental decomposition never converges, and loops for ever, on batches smaller than its components.
    counts = [_eva_tokens(batch, config) for batch in batches]
    if not counts or min(counts) < needed:
        raise AdapterError(
            f"EVA needs at least {needed} tokens in each calibration batch (r x rho); the smallest has "
            f"{min(counts, default=0)}",
            place=PLACE,
            remedy="lower adapter.r or eva_config.rho, or use larger batches",
        )
    with _as_it_was(model):
        initialize_lora_eva_weights(model, batches, show_progress_bar=False)


class InitialFactors:
    """The factors that an initialisation took out of the base weights, by the adapter's own parameter names.

    Args:
        state: copies of `lora_A` [R, I] and `lora_B` [O, R] as they were right after the initialisation.
    """

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        self.state = state

    def as_plain_lora(
        self, state: dict[str, torch.Tensor], config: LoraConfig
    ) -> tuple[dict[str, torch.Tensor], LoraConfig]:
        """The trained adapter as a LoRA of twice the rank that fits the original base weights.

        `config` is changed in place and returned. Tensors other than `lora_A` and `lora_B` (a DoRA magnitude, a
        bias, saved modules) stay as they are: they refer to the sum of base and adapter, which does not change.
        """
        plain = {}
        for name, tensor in state.items():
            if ".lora_A." in name:
                plain[name] = torch.cat([tensor, self.state[name].to(tensor)], dim=0)
            elif ".lora_B." in name and name.endswith("weight"):
                plain[name] = torch.cat([tensor, -self.state[name].to(tensor)], dim=1)
            else:
                plain[name] = tensor
        config.init_lora_weights = True
        config.corda_config = config.lora_ga_config = None
        config.r *= 2
        # With rsLoRA the scale is alpha / sqrt(r), else alpha / r; either way it stays what it was.
        config.lora_alpha *= 2**0.5 if config.use_rslora else 2
        config.rank_pattern = {key: 2 * value for key, value in config.rank_pattern.items()}
        config.alpha_pattern = {key: 2 * value for key, value in config.alpha_pattern.items()}
        return plain, config


def check_can_convert(config: LoraConfig) -> None:
    """Refuses what could not be saved as an adapter of the original base, before anything is trained.

    Raises:
        AdapterError: the initialisation moves base weights and the rest of the section prevents the conversion.
    """
    name = config.init_lora_weights
    if not changes_base_weights(name):
        return
    if config.use_rslora and (config.rank_pattern or config.alpha_pattern):
        raise AdapterError(
            f"'{name}' cannot be saved as a plain adapter with use_rslora and rank_pattern or alpha_pattern together",
            place=PLACE,
            remedy="leave use_rslora or the patterns out",
        )
    for field in (
        "target_parameters",
        "use_bdlora",
        "kasa_config",
        "monteclora_config",
        "arrow_config",
        "velora_config",
    ):
        if getattr(config, field, None):
            raise AdapterError(
                f"'{name}' cannot be saved as a plain adapter together with {field}",
                place=PLACE,
                remedy=f"leave {field} out, or choose another initialisation",
            )


def check_ranks(model: nn.Module, config: LoraConfig, target_names: Iterable[str]) -> None:
    """Refuses a rank that a decomposition of the base weights cannot give; PEFT would shrink it without a word.

    Raises:
        AdapterError: naming the module and the largest rank.
    """
    name = str(config.init_lora_weights).lower()
    factor = 2 if name == "lora_ga" else 1
    if not (changes_base_weights(config.init_lora_weights) or name == "mica"):
        return
    rank = max([config.r, *config.rank_pattern.values()])
    for target in target_names:
        module = model.get_submodule(target)
        if not hasattr(module, "weight") or isinstance(module, nn.Embedding):
            raise AdapterError(f"'{name}' works on linear layers only, and {target} is none", place=PLACE)
        largest = min(weight_of(module).shape) // factor
        if rank > largest:
            raise AdapterError(
                f"'{name}' gives at most rank {largest} for {target}; the recipe asks for {rank}",
                place="adapter.r",
                remedy=f"set adapter.r to {largest} or less",
            )


@torch.no_grad()
def settle_base_weights(model: PeftModel, originals: dict[str, torch.Tensor]) -> None:
    """Makes W_rest = W - s*B0*A0 hold for the factors as they are now, to the rounding of the base's dtype.

    PEFT subtracts the factors first and rounds them to the base's dtype after, so that in bf16 the two no longer add
    up to W.

    Args:
        originals: the base weights [O, I] before the initialisation, by the module's name in the base model.
    """
    for name, layer in lora_linears(model):
        base = layer.get_base_layer()
        original_OI = originals.pop(name)
        delta_OI = layer.get_delta_weight("default").float()
        base.weight.data = (original_OI.float() - delta_OI).to(base.weight.dtype)


def lora_linears(model: PeftModel) -> Iterator[tuple[str, LoraLinear]]:
    """The adapted linear modules, by their name in the base model."""
    for name, module in model.get_base_model().named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def weight_of(module: nn.Module) -> torch.Tensor:
    """The weight of a linear or embedding module, [O, I]."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight


def _run_rows(model: PreTrainedModel, calibration_batches: CalibrationBatches) -> None:
    """Runs one row at a time without its padding: CorDA's hooks take the mean over calls, and no batch dimension."""
    for batch in calibration_batches():
        for row in range(len(batch["input_ids"])):
            ids_1T = _move(batch, model.device)["input_ids"][row : row + 1]
            mask = batch.get("attention_mask")
            if mask is not None:
                ids_1T = ids_1T[:, mask[row].bool().to(ids_1T.device)]
            if ids_1T.shape[1]:
                model(input_ids=ids_1T, use_cache=False)


def _collect_gradients(model: PreTrainedModel, config: LoraConfig, calibration_batches: CalibrationBatches) -> None:
    from peft.tuners.lora.loraga import get_target_modules, preprocess_loraga

    def backward() -> None:
        for batch in calibration_batches():
            if "labels" not in batch:
                raise AdapterError("LoRA-GA needs labels in its calibration batches", place=PLACE)
            model(**_move(batch, model.device), use_cache=False).loss.backward()

    with _as_it_was(model):
        preprocess_loraga(model, config, backward)
    # Without a gradient PEFT falls back to random factors and says nothing.
    without = [name for name, module in get_target_modules(model, config) if not hasattr(module, "_peft_loraga_grad")]
    if without:
        raise AdapterError(f"LoRA-GA got no gradient for {without[0]}", place=PLACE, remedy="give calibration batches")


def _eva_tokens(batch: dict[str, torch.Tensor], config: LoraConfig) -> int:
    mask_BT = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
    if config.eva_config.use_label_mask and "labels" in batch:
        mask_BT = mask_BT & (batch["labels"] != config.eva_config.label_mask_value)
    return int(mask_BT.sum())


def _move(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in batch.items()}


@contextmanager
def _as_it_was(model: Any) -> Iterator[None]:
    """Puts training or evaluation mode back afterwards."""
    training = model.training
    try:
        yield
    finally:
        model.train(training)
