"""Puts the recipe's adapter on a model: the adapter section becomes PEFT's `LoraConfig`, PEFT does the rest.

What PEFT would only warn about, or not notice (a pattern that matches nothing, an option without effect, a rank that a
decomposition cannot give), is an error here, because training would go on with another adapter than was asked for.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
import re
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import peft.tuners.lora.config as peft_lora
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedModel

from tunesmith.adapters import initialize
from tunesmith.adapters.initialize import CalibrationBatches, InitialFactors, lora_linears, weight_of
from tunesmith.adapters.targets import linear_and_embedding, resolve_targets
from tunesmith.config import AdapterSection
from tunesmith.errors import AdapterError
from tunesmith.report import Table

logger = logging.getLogger(__name__)

OUR_FIELDS = ("method", "layers")
"""Fields of the adapter section that PEFT's `LoraConfig` does not have."""

SET_BY_PEFT = ("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
               "inference_mode")  # fmt: skip
"""Fields of `LoraConfig` that are not choices of the recipe."""

NESTED_CONFIGS = {
    "loftq_config": "LoftQConfig",
    "eva_config": "EvaConfig",
    "corda_config": "CordaConfig",
    "lora_ga_config": "LoraGAConfig",
    "velora_config": "VeloraConfig",
    "monteclora_config": "MontecloraConfig",
    "runtime_config": "LoraRuntimeConfig",
    "use_bdlora": "BdLoraConfig",
    "arrow_config": "ArrowConfig",
    "kasa_config": "KasaConfig",
}
"""Mappings within the section and PEFT's class for each."""

PICKLE_OPTIONS = ("cache_file", "covariance_file")
"""Options by which PEFT reads and writes pickles."""

NOT_MERGEABLE = {
    "alora_invocation_tokens": "an activated LoRA (alora_invocation_tokens) works on part of the tokens only",
    "arrow_config": "Arrow chooses among adapters for each token",
}
"""Options of PEFT whose adapter depends on more than one fixed change of the weights, and why."""

_PROBLEM = re.compile(r"ignored|did not match|no module|no parameter|no modules were excluded|not supported")
_INITIAL = "_tunesmith_initial_factors"


def lora_config(section: AdapterSection) -> LoraConfig:
    """PEFT's config for `section`; `target_modules` and layers as PEFT itself understands them, not yet resolved.

    Raises:
        AdapterError: an unknown key in a nested mapping (with the nearest known one), an option that PEFT refuses or
            would ignore, or one that the installed PEFT is too old for.
    """
    known = {field.name for field in dataclasses.fields(LoraConfig) if field.init}
    values: dict[str, Any] = {}
    for name, info in AdapterSection.model_fields.items():
        value = getattr(section, name)
        if name in OUR_FIELDS:
            continue
        if name not in known:
            if value != info.get_default(call_default_factory=True):
                raise AdapterError(
                    f"the installed PEFT does not know {name}", place=f"adapter.{name}", remedy="pip install -U peft"
                )
            continue
        values[name] = _nested(name, value) if name in NESTED_CONFIGS and value is not None else value
    _check_initialization(section.init_lora_weights)
    values.update(_default_configs(section))
    if isinstance(values["target_modules"], str):
        # PEFT refuses layers beside a keyword or a pattern; `resolve_targets` turns those into names.
        values["layers_to_transform"] = values["layers_pattern"] = None
    with _peft_problems():
        return LoraConfig(**values, task_type=TaskType.CAUSAL_LM)


def attach_adapter(
    model: PreTrainedModel,
    section: AdapterSection,
    *,
    calibration_batches: CalibrationBatches | None = None,
) -> PeftModel:
    """Puts the adapter that `section` describes on `model`, which is changed in place.

    Trainable weights are float32 whatever the base holds (updates of a low learning rate vanish in bf16), so forward
    passes of a bf16 or fp16 base run under autocast. The base is frozen. Random initialisations draw from torch's
    global generator: seed it before.

    Args:
        model: the base model, in fp32, bf16 or fp16.
        section: the recipe's adapter section.
        calibration_batches: gives training batches anew at each call; needed by `init_lora_weights` eva, corda and
            lora_ga.

    Raises:
        AdapterError: a target, a layer or a pattern matches nothing, or PEFT cannot do what the section asks for.
    """
    config, training = lora_config(section), model.training
    initialize.check_can_convert(config)
    if section.use_qalora:
        # On other layers PEFT ignores it without a word.
        raise AdapterError(
            "QALoRA needs a base quantised by GPTQ, which Tunesmith does not load", place="adapter.use_qalora"
        )
    targets = resolve_targets(model, section)
    config.target_modules = (
        set(targets.target_modules) if isinstance(targets.target_modules, list) else targets.target_modules
    )
    config.layers_to_transform = targets.layers_to_transform
    config.layers_pattern = targets.layers_pattern
    _check_named_modules(model, section)
    originals: dict[str, torch.Tensor] = {}
    moves_weights = initialize.changes_base_weights(config.init_lora_weights)
    if moves_weights or config.init_lora_weights in initialize.NEEDS_BATCHES:
        names = _target_names(model, config)
        initialize.check_ranks(model, config, names)
        originals = _weights(model, names, copy=config.init_lora_weights == "olora") if moves_weights else {}
    with _peft_problems():
        initialize.prepare_model(model, config, calibration_batches)
        adapted: PeftModel = get_peft_model(model, config, autocast_adapter_dtype=True)
        initialize.finish_model(adapted, calibration_batches)
    for parameter in adapted.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()
    if moves_weights:
        initialize.settle_base_weights(adapted, originals)
        setattr(adapted, _INITIAL, InitialFactors(_factors(adapted)))
    return adapted.train(training)


def initial_factors(model: PeftModel) -> InitialFactors | None:
    """What the initialisation took out of the base weights, or None where it left them alone."""
    factors = getattr(model, _INITIAL, None)
    return factors if isinstance(factors, InitialFactors) else None


def trainable_parameters(model: nn.Module) -> tuple[int, int]:
    """How many parameters train, and how many the model has with its adapter; shared ones count once."""
    sizes = [(parameter.requires_grad, parameter.numel()) for parameter in model.parameters()]
    return sum(size for trains, size in sizes if trains), sum(size for _, size in sizes)


def regularization_loss(model: PeftModel) -> torch.Tensor | None:
    """The term that KaSA and MonteCLoRA add to the loss of each step, or None for other adapters."""
    config = model.peft_config["default"]
    if getattr(config, "kasa_config", None):
        return torch.as_tensor(model.base_model._get_kasa_loss())
    if getattr(config, "monteclora_config", None):
        return torch.as_tensor(model.base_model._get_monteclora_loss())
    return None


def merge_obstacle(model: PeftModel) -> str | None:
    """Why this adapter cannot be merged into the base weights, or None where it can."""
    config = model.peft_config["default"]
    for field, why in NOT_MERGEABLE.items():
        if getattr(config, field, None):
            return why
    if config.lora_bias and any(
        getattr(layer.get_base_layer(), "bias", None) is None for _, layer in lora_linears(model)
    ):
        return "lora_bias adds a bias to modules of the base model that have none"
    return None


def describe_adapter(model: PeftModel) -> Table:
    """One row for each kind of adapted module: its name, in how many layers, its rank, and its parameters in all."""
    groups: dict[tuple[str, int | None], list[int]] = defaultdict(list)
    for name, module in model.get_base_model().named_modules():
        if isinstance(module, LoraLayer):
            size = sum(p.numel() for n, p in module.named_parameters() if ".default" in n)
            groups[name.rpartition(".")[2], module.r["default"]].append(size)
        elif isinstance(module, AuxiliaryTrainingWrapper):
            size = sum(p.numel() for n, p in module.named_parameters() if ".default" in n)
            groups[name.rpartition(".")[2], None].append(size)
    rows = tuple((name, len(sizes), rank, sum(sizes)) for (name, rank), sizes in groups.items())
    return Table("Adapted modules", ("module", "layers", "rank", "parameters"), rows)


def _nested(name: str, values: dict[str, Any]) -> Any:
    """`values` as PEFT's own class, unknown keys refused."""
    nested_class = getattr(peft_lora, NESTED_CONFIGS[name], None)
    if nested_class is None or (name == "loftq_config" and not values):
        return values
    known = [field.name for field in dataclasses.fields(nested_class) if field.init]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            raise AdapterError(
                "unknown key",
                place=f"adapter.{name}.{key}",
                remedy=f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}",
            )
        if key in PICKLE_OPTIONS and values[key] is not None:
            raise AdapterError(
                "this file would be a pickle, which can run code when it is read; Tunesmith reads none",
                place=f"adapter.{name}.{key}",
                remedy="leave it out; the values are computed anew",
            )
    try:
        nested = nested_class(**values)
    except (TypeError, ValueError) as error:
        raise AdapterError(str(error), place=f"adapter.{name}") from None
    return vars(nested) if name == "loftq_config" else nested


def _default_configs(section: AdapterSection) -> dict[str, Any]:
    """PEFT warns, or fails later, where an initialisation that has options of its own is given none."""
    defaults = {"eva": ("eva_config", "EvaConfig"), "corda": ("corda_config", "CordaConfig"),
                "lora_ga": ("lora_ga_config", "LoraGAConfig")}  # fmt: skip
    field, class_name = defaults.get(str(section.init_lora_weights), ("", ""))
    nested_class = getattr(peft_lora, class_name, None)
    if nested_class is None or getattr(section, field) is not None:
        return {}
    return {field: nested_class()}


def _check_initialization(name: bool | str) -> None:
    # PEFT compares without case for some names and with case for others; only its own spelling passes here.
    if name == "loftq":
        raise AdapterError(
            "loftq replaces the base weights by quantised ones, and its adapter fits only those, not the original base",
            place=initialize.PLACE,
            remedy="choose another initialisation, such as pissa or eva",
        )
    if isinstance(name, bool) or name in initialize.KNOWN or re.fullmatch(r"pissa_niter_[1-9]\d*", name):
        return
    near = difflib.get_close_matches(name, initialize.KNOWN, n=1, cutoff=0.5)
    raise AdapterError(
        f"'{name}' is no initialisation of PEFT",
        place=initialize.PLACE,
        remedy=f"did you mean '{near[0]}'?" if near else f"known: {', '.join(initialize.KNOWN)}, pissa_niter_N",
    )


def _check_named_modules(model: PreTrainedModel, section: AdapterSection) -> None:
    names = [name for name, _ in model.named_modules() if name]
    for wanted in section.modules_to_save or []:
        # PEFT matches the end of the full name, without a dot before it.
        if not any(name.endswith(wanted) for name in names):
            short = [name.rpartition(".")[2] for name in linear_and_embedding(model)]
            raise AdapterError(
                f"there is no module '{wanted}' in {type(model).__name__}",
                place="adapter.modules_to_save",
                remedy=f"modules here: {', '.join(dict.fromkeys(short))}",
            )
    tokens = section.trainable_token_indices
    vocabulary_size = weight_of(model.get_input_embeddings()).shape[0]
    for index in [i for part in tokens.values() for i in part] if isinstance(tokens, dict) else tokens or []:
        if not 0 <= index < vocabulary_size:
            raise AdapterError(
                f"there is no token {index}",
                place="adapter.trainable_token_indices",
                remedy=f"token ids go from 0 to {vocabulary_size - 1}",
            )


def _target_names(model: PreTrainedModel, config: LoraConfig) -> list[str]:
    from peft.tuners.tuners_utils import _ExcludedModule, check_target_module_exists

    found = {name: check_target_module_exists(config, name) for name, _ in model.named_modules()}
    return [name for name, match in found.items() if match and not isinstance(match, _ExcludedModule)]


def _weights(model: PreTrainedModel, names: list[str], *, copy: bool) -> dict[str, torch.Tensor]:
    """The base weights by module name; `copy` where PEFT changes them in place instead of replacing them."""
    weights = {name: weight_of(model.get_submodule(name)).detach() for name in names}
    return {name: weight.clone() for name, weight in weights.items()} if copy else weights


def _factors(model: PeftModel) -> dict[str, torch.Tensor]:
    """Copies of lora_A and lora_B under the names that a saved adapter has."""
    return {
        f"base_model.model.{name}.{part}.weight": getattr(layer, part)["default"].weight.detach().clone()
        for name, layer in lora_linears(model)
        for part in ("lora_A", "lora_B")
    }


@contextmanager
def _peft_problems() -> Iterator[None]:
    """Turns PEFT's refusals, and its warnings that something asked for will not happen, into an `AdapterError`."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        except (ValueError, TypeError, NotImplementedError, ImportError, AssertionError) as error:
            raise AdapterError(f"PEFT refuses this adapter: {error}", place="adapter") from error
    for warning in caught:
        message = str(warning.message)
        if _PROBLEM.search(message.lower()):
            raise AdapterError(f"PEFT would not do what the section asks for: {message}", place="adapter")
        logger.debug("PEFT: %s", message)
