"""The adapter folder: PEFT's own files, the contract and the tokenizer; written whole or not at all, read with checks.

adapter/ adapter_config.json  adapter_model.safetensors  tunesmith.json  tokenizer.json  tokenizer_config.json ...

Stock PEFT loads the folder, and folders that stock PEFT wrote load here.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, PeftModelForCausalLM, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunesmith.adapters.contract import CONTRACT_FILE, Contract
from tunesmith.adapters.methods import initial_factors
from tunesmith.durable import replaced_folder
from tunesmith.errors import AdapterError, ModelError
from tunesmith.models.backend import Precision, torch_dtype
from tunesmith.models.catalog import hub_id_of, portable_name
from tunesmith.models.folder import check_safetensors, first_line, quiet_transformers, refuse_pickles

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

PROBE_TOKENS = 8
"""Length of the input on which `adapter_has_effect` compares."""


def save_adapter(model: PeftModel, folder: Path, *, tokenizer: PreTrainedTokenizerBase, contract: Contract) -> None:
    """Writes the adapter folder; an adapter that was there is replaced in one step once the new one is whole.

    An adapter whose initialisation changed the base weights (PiSSA, OLoRA, CorDA, LoRA-GA) is written as a plain LoRA
    of twice the rank, which fits the original base.

    Args:
        model: the trained model, unmerged.
        folder: the adapter's folder.
        tokenizer: written beside, with its chat template.
        contract: written beside. Its base model goes into adapter_config.json too, by its hub id if it has one, so
            that PEFT finds it.

    Raises:
        AdapterError: the folder holds other files, or the adapter has weights that are not finite.
        DiskError: it cannot be written.
    """
    public_name = hub_id_of(contract.base_model) or portable_name(contract.base_model)
    contract = dataclasses.replace(contract, base_model=portable_name(contract.base_model))
    state, config = adapter_state(model)
    config.base_model_name_or_path = public_name
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise AdapterError(
                f"the trained weights are not finite ({name})",
                place=str(folder),
                remedy="lower train.learning_rate, or train in bf16 or fp32 instead of fp16",
            )
    with replaced_own_folder(folder, known_by=CONFIG_FILE) as beside:
        save_file(state, beside / WEIGHTS_FILE, metadata={"format": "pt"})
        (beside / CONFIG_FILE).write_text(_config_json(config), encoding="utf-8")
        (beside / CONTRACT_FILE).write_text(contract.to_json(), encoding="utf-8")
        with quiet_transformers():
            tokenizer.save_pretrained(beside)


def adapter_state(model: PeftModel) -> tuple[dict[str, torch.Tensor], LoraConfig]:
    """The adapter's tensors on the CPU under PEFT's names, and a config for them; both fit the original base."""
    config = copy.deepcopy(model.peft_config["default"])
    config.inference_mode = True
    # The embeddings are saved where they train; PEFT's "auto" would ask the hub whether they were resized.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT takes a bias of lora_bias for a matrix cut in pieces
        state = get_peft_model_state_dict(model, save_embedding_layers=False)
    if (factors := initial_factors(model)) is not None:
        state, config = factors.as_plain_lora(state, config)
    # A copy each: safetensors refuses tensors that share memory, as tied ones do.
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()}, config


def load_adapter(model: PreTrainedModel, folder: Path, *, precision: Precision) -> PeftModel:
    """Puts the adapter in `folder` on `model` for inference: frozen, in evaluation mode, in the model's precision.

    Args:
        model: the base model, changed in place.
        folder: an adapter folder by Tunesmith or by stock PEFT.
        precision: of the adapter's weights; the model's own, so that no autocast is needed.

    Raises:
        UnsafeWeightsError: the weights are a pickle.
        AdapterError: files are missing or damaged, it is no LoRA, or it does not fit this model: PEFT only warns of
            missing weights, and the adapter then does nothing.
    """
    config = read_adapter_config(folder)
    state = read_adapter_state(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            adapted: PeftModel = PeftModelForCausalLM(model, config, autocast_adapter_dtype=True)
        except (ValueError, TypeError, RuntimeError, NotImplementedError, ImportError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise AdapterError(
                f"the adapter does not fit {type(model).__name__}: {first_line(error)}",
                place=str(folder),
                remedy=_base_remedy(config),
            ) from error
        fitted_state(adapted, state, folder)
        set_peft_model_state_dict(adapted, state)
    for parameter in _adapter_parameters(adapted):
        parameter.data = parameter.data.to(torch_dtype(precision))
    adapted.requires_grad_(False)
    return adapted.eval()


def read_adapter_state(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of an adapter folder under the names in its file, on the CPU.

    Raises:
        UnsafeWeightsError: the weights are a pickle.
        AdapterError: the file is missing or damaged.
    """
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        refuse_pickles(sorted(path.name for path in folder.iterdir()), place=str(folder))
        raise AdapterError(
            f"the adapter folder has no {WEIGHTS_FILE}", place=str(folder), remedy="copy it again, whole"
        )
    try:
        check_safetensors(weights)
    except ModelError as error:
        remedy = "copy it again, whole; in a run of yours, tunesmith train RUN/recipe.yaml --run RUN writes it anew"
        raise AdapterError(error.message, place=error.place, remedy=remedy) from None
    return load_file(weights)


def read_adapter_config(folder: Path) -> LoraConfig:
    """PEFT's config of an adapter folder.

    Raises:
        AdapterError: it is missing or damaged, or no LoRA that can be put on a base model as it is.
    """
    path = folder / CONFIG_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("holds no object")
    except (FileNotFoundError, NotADirectoryError):
        what = "the adapter folder has no adapter_config.json" if folder.is_dir() else "there is no such adapter folder"
        raise AdapterError(what, place=str(folder), remedy="give the folder that training wrote, RUN/adapter") from None
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"cannot be read: {first_line(error)}", place=str(path), remedy="copy it again") from None
    if values.get("peft_type") != "LORA":
        raise AdapterError(
            f"this is an adapter of type {values.get('peft_type')}; only LORA is loaded", place=str(path)
        )
    init = str(values.get("init_lora_weights")).lower()
    if init in ("corda", "lora_ga", "loftq"):
        raise AdapterError(
            f"this adapter was initialised by {init} and saved as it was, so it does not fit the original base",
            place=str(path),
            remedy="save it again with path_initial_model_for_weight_conversion (PEFT), or train it with Tunesmith",
        )
    if values.get("megatron_config"):
        # PEFT would import the module that the file names.
        raise AdapterError("adapters for Megatron are not loaded", place=str(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config: LoraConfig = LoraConfig.from_pretrained(str(folder))
    except (TypeError, ValueError, ImportError, KeyError) as error:
        raise AdapterError(
            f"PEFT cannot read it: {first_line(error)}", place=str(path), remedy="pip install -U peft"
        ) from error
    config.inference_mode = True
    return config


@torch.inference_mode()
def adapter_has_effect(model: PeftModel) -> bool:
    """Whether the adapter changes the logits of a short input; a fresh or silently ignored one does not."""
    vocabulary_size = model.config.get_text_config().vocab_size
    ids_1T = torch.arange(1, PROBE_TOKENS + 1, device=model.device).remainder(vocabulary_size).unsqueeze(0)
    training = model.training
    model.eval()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted_1TV = model(input_ids=ids_1T, use_cache=False).logits
            with model.disable_adapter():
                base_1TV = model(input_ids=ids_1T, use_cache=False).logits
    finally:
        model.train(training)
    return not torch.equal(adapted_1TV, base_1TV)


@contextmanager
def replaced_own_folder(folder: Path, *, known_by: str) -> Iterator[Path]:
    """`durable.replaced_folder`, for a folder that may hold only what was written so before.

    Args:
        folder: the folder to write.
        known_by: a file that tells a folder which may be replaced; a folder of other files is refused.

    Raises:
        AdapterError: `folder` holds other files.
        DiskError: it cannot be written.
    """
    if folder.is_dir() and any(folder.iterdir()) and not (folder / known_by).exists():
        raise AdapterError(
            f"this folder holds other files (it has no {known_by})", place=str(folder), remedy="choose another folder"
        )
    with replaced_folder(folder) as beside:
        yield beside


def _config_json(config: LoraConfig) -> str:
    """As PEFT writes it, but with sets in order, so that the same adapter gives the same file."""
    values = {k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}
    return json.dumps(values, indent=2, sort_keys=True) + "\n"


def fitted_state(model: PeftModel, state: dict[str, torch.Tensor], folder: Path) -> dict[str, torch.Tensor]:
    """`state` under the names of this model, once it is sure to hold exactly what the adapter on it needs.

    Args:
        model: the model with the adapter on it; where they do not fit, the adapter is taken off again.
        state: from `read_adapter_state`.
        folder: the adapter's folder, for the message.

    Raises:
        AdapterError: weights are missing, have another shape, or have no place.
    """
    needed = get_peft_model_state_dict(model, save_embedding_layers=False)
    if needed.keys() != state.keys():
        state = _converted(model, state)
    # PEFT also saves whole embedding layers that were resized or targeted; they belong to the base.
    base = {name: tensor.shape for name, tensor in model.state_dict().items()}
    missing = sorted(needed.keys() - state.keys())
    unexpected = sorted(name for name in state.keys() - needed.keys() if base.get(name) != state[name].shape)
    shapes = [n for n in sorted(needed.keys() & state.keys()) if needed[n].shape != state[n].shape]
    if not (missing or unexpected or shapes):
        return state
    parts = []
    if shapes:
        name = shapes[0]
        parts.append(f"{name} is {list(state[name].shape)} in the file and {list(needed[name].shape)} for this base")
    if missing:
        parts.append(f"{len(missing)} weights are missing, such as {missing[0]}")
    if unexpected:
        parts.append(f"{len(unexpected)} weights have no place in this base, such as {unexpected[0]}")
    remedy = _base_remedy(model.peft_config["default"])
    model.unload()
    raise AdapterError(f"the adapter does not fit this model: {'; '.join(parts)}", place=str(folder), remedy=remedy)


def _converted(model: PeftModel, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`state` under the names of this transformers, for adapters of architectures whose modules were renamed since."""
    try:
        from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers
    except ImportError:
        return state
    try:
        converted: dict[str, torch.Tensor] = convert_peft_adapter_state_dict_for_transformers(
            model=model, peft_config=model.peft_config["default"], adapter_state_dict=state, adapter_name="default"
        )
    except (ValueError, KeyError, RuntimeError):
        return state
    return converted


def _base_remedy(config: LoraConfig) -> str:
    return f"load it on the base model it was trained with: {config.base_model_name_or_path or 'not recorded'}"


def _adapter_parameters(model: PeftModel) -> Iterator[torch.nn.Parameter]:
    for module in model.modules():
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            for name, parameter in module.named_parameters():
                if ".default" in name and parameter.is_floating_point():
                    yield parameter
