"""An adapter folder to the factors that a step adds, or the reason why they would not be all there is to it.

Which modules an adapter goes on, with which rank and scale, is PEFT's own decision: its config is put on a skeleton
of the model without memory (torch's meta device), and read off there. So patterns, layers and exceptions mean what
they mean in PEFT, and the served model is not touched.

Shape suffixes: R rank, I inputs, O outputs.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModelForCausalLM
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.adapters.files import fitted_state, read_adapter_config, read_adapter_state
from tunesmith.adapters.initialize import changes_base_weights
from tunesmith.errors import AdapterError
from tunesmith.models.folder import first_line

_PREFIX = "base_model.model."
_ADAPTER = "default"

_EXACT_FIELDS = frozenset(
    [
        "r",
        "target_modules",
        "exclude_modules",
        "lora_alpha",
        "lora_dropout",
        "fan_in_fan_out",
        "bias",
        "use_rslora",
        "init_lora_weights",
        "layers_to_transform",
        "layers_pattern",
        "rank_pattern",
        "alpha_pattern",
        "lora_bias",
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "runtime_config",
        "task_type",
        "peft_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
    ]
)
"""Fields of `LoraConfig` that only say where the factors go, how they are scaled, or how they began."""

_WHY = {
    "use_dora": "DoRA scales each output by a norm that depends on the base weight",
    "modules_to_save": "it brings whole modules of its own, which would have to replace the shared ones",
    "alora_invocation_tokens": "an activated LoRA depends on where its invocation tokens stand",
    "trainable_token_indices": "it changes token embeddings, which all requests share",
    "target_parameters": "it changes parameters that are no linear modules",
    "layer_replication": "it repeats layers of the base",
}


@dataclass(frozen=True)
class LoraFactors:
    """What one module's output gains: scaling * (x A^T) B^T + bias.

    Args:
        a_RI: the first factor.
        b_OR: the second.
        scaling: lora_alpha / r, or / sqrt(r) for rsLoRA.
        bias_O: scaling times the bias of B, and the difference of a trained bias from the base's; or None.
    """

    a_RI: Tensor
    b_OR: Tensor
    scaling: float
    bias_O: Tensor | None = None


@dataclass(frozen=True)
class LoraWeights:
    """An adapter ready to be served.

    Args:
        factors: by full module name.
        digest: SHA-256 over everything in `factors`.
    """

    factors: dict[str, LoraFactors] = field(repr=False)
    digest: bytes

    @property
    def ranks(self) -> tuple[int, int]:
        """The smallest and the largest rank."""
        ranks = [len(factors.a_RI) for factors in self.factors.values()]
        return min(ranks), max(ranks)

    @property
    def bytes(self) -> int:
        """Memory of the factors."""
        return sum(f.a_RI.nbytes + f.b_OR.nbytes for f in self.factors.values())


def read_lora(folder: Path, model: PreTrainedModel) -> LoraWeights:
    """The adapter in `folder`, for `model`, in its precision and on its device.

    Heavy work on files and memory of its own: it can run on any thread.

    Args:
        folder: an adapter folder by Tunesmith or by stock PEFT.
        model: the served base model; only read.

    Raises:
        UnsafeWeightsError: the weights are a pickle.
        AdapterError: files are missing or damaged, they do not fit the model, or the adapter is of a kind that cannot
            be served exactly beside others; the message says what it is.
    """
    config = read_adapter_config(folder)
    _check_kind(config, folder)
    state = read_adapter_state(folder)
    skeleton = _skeleton(model)
    plain = copy.deepcopy(config)
    plain.init_lora_weights = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            adapted = PeftModelForCausalLM(skeleton, plain, adapter_name=_ADAPTER, low_cpu_mem_usage=True)
        except (ValueError, TypeError, RuntimeError, NotImplementedError, ImportError) as error:
            raise AdapterError(
                f"the adapter does not fit {type(model).__name__}: {first_line(error)}", place=str(folder)
            ) from error
        state = fitted_state(adapted, state, folder)
    weight = cast(Tensor, cast(Any, model).get_input_embeddings().weight)
    factors = _factors(adapted, state, model, folder, weight)
    for name, lora in factors.items():
        for tensor in (lora.a_RI, lora.b_OR, lora.bias_O):
            if tensor is not None and not torch.isfinite(tensor).all():
                raise AdapterError(f"its weights are not finite ({name})", place=str(folder))
    return LoraWeights(factors, _digest(factors))


def _check_kind(config: LoraConfig, folder: Path) -> None:
    """Refuses whatever adds more than low-rank products to linear modules."""
    init = config.init_lora_weights
    if changes_base_weights(init) or init == "mica":
        raise AdapterError(
            f"this adapter was initialised by {init} and saved as it was, so it does not fit the original base",
            place=str(folder),
            remedy="save it again with path_initial_model_for_weight_conversion (PEFT), or train it with Tunesmith",
        )
    defaults = LoraConfig()
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if item.name in _EXACT_FIELDS or value == getattr(defaults, item.name) or not value:
            continue
        why = _WHY.get(item.name, "it is more than a low-rank product for linear modules")
        raise AdapterError(
            f"{item.name} cannot be served exactly beside other adapters: {why}",
            place=str(folder),
            remedy="merge it (tunesmith export, or merge_and_unload of PEFT) and serve the merged model",
        )


def _skeleton(model: PreTrainedModel) -> PreTrainedModel:
    """The model's modules without memory."""
    config = copy.deepcopy(model.config)
    config._attn_implementation = "eager"
    with torch.device("meta"):
        made: Any = type(model)(config)
    return cast(PreTrainedModel, made.eval())


def _factors(
    adapted: PeftModelForCausalLM, state: dict[str, Tensor], model: PreTrainedModel, folder: Path, like: Tensor
) -> dict[str, LoraFactors]:
    rest = dict(state)
    found: dict[str, LoraFactors] = {}
    for full, module in adapted.named_modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        name = full.removeprefix(_PREFIX)
        if type(module) is not LoraLinear or _ADAPTER in module.lora_variant or ".experts." in f".{name}.":
            raise AdapterError(
                f"{name} ({type(module).__name__}) cannot be served exactly beside other adapters: only linear "
                "modules can, outside of experts",
                place=str(folder),
            )
        a_RI, b_OR = rest.pop(f"{_PREFIX}{name}.lora_A.weight"), rest.pop(f"{_PREFIX}{name}.lora_B.weight")
        scaling = float(module.scaling[_ADAPTER])
        lora_bias_O = rest.pop(f"{_PREFIX}{name}.lora_B.bias", None)
        bias_O = None if lora_bias_O is None else lora_bias_O.float() * scaling
        found[name] = LoraFactors(a_RI.to(like), b_OR.to(like), scaling, None if bias_O is None else bias_O.to(like))
    if not found:
        raise AdapterError("it targets no module of this model, so it would change nothing", place=str(folder))
    _take_biases(rest, found, model, folder, like)
    return found


def _take_biases(
    rest: dict[str, Tensor], found: dict[str, LoraFactors], model: PreTrainedModel, folder: Path, like: Tensor
) -> None:
    """Trained biases of the base (`bias: all | lora_only`) become differences; anything else must equal the base."""
    base = model.state_dict()
    for key, value in rest.items():
        name = key.removeprefix(_PREFIX).replace(".base_layer.", ".")
        if name not in base:
            raise AdapterError(f"{key} has no place in this base", place=str(folder))
        difference = value.to(like.device, torch.float32) - base[name].float()
        if not difference.any():
            continue
        module, _, kind = name.rpartition(".")
        if kind != "bias" or not isinstance(model.get_submodule(module), nn.Linear):
            raise AdapterError(
                f"it changes {name}, which all requests share", place=str(folder), remedy="merge it, and serve that"
            )
        if module not in found:
            inputs, outputs = model.get_submodule(module).in_features, len(value)
            empty = LoraFactors(like.new_zeros(0, cast(int, inputs)), like.new_zeros(outputs, 0), 1.0)
            found[module] = empty
        own = found[module]
        total_O = difference if own.bias_O is None else own.bias_O.float() + difference
        found[module] = dataclasses.replace(own, bias_O=total_O.to(like))


def _digest(factors: dict[str, LoraFactors]) -> bytes:
    digest = hashlib.sha256()
    for name, lora in sorted(factors.items()):
        digest.update(f"{name}\0{lora.scaling!r}\0".encode())
        for tensor in (lora.a_RI, lora.b_OR, lora.bias_O):
            if tensor is not None:
                digest.update(f"{tuple(tensor.shape)}{tensor.dtype}\0".encode())
                digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.digest()
