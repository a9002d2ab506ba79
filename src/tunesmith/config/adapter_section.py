"""The recipe's `adapter` section."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tunesmith.config.section import Section


class AdapterSection(Section):
    """The adapter: every field of PEFT's `LoraConfig` (0.21) under PEFT's name, and `method` and `layers` of ours.

    Args:
        method: how the model is adapted.
        layers: all, last:N, or layer indices; shorthand for PEFT's `layers_to_transform`.
        target_modules: all-linear, attention, or module names.

    Defaults are PEFT's, but for `r`, `lora_alpha` and `target_modules`: adapting all linear layers is needed to match
    full fine-tuning (Dettmers et al., QLoRA, 2305.14314, section 4; PEFT's own default for Llama is q and v only).
    """

    method: Literal["lora"] = "lora"
    layers: Literal["all"] | Annotated[str, Field(pattern=r"^last:[1-9]\d*$")] | list[Annotated[int, Field(ge=0)]] = (
        "all"
    )
    r: int = Field(16, ge=1)
    lora_alpha: int = Field(32, ge=1)
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: Literal["all-linear", "attention"] | str | list[str] = "all-linear"
    exclude_modules: str | list[str] | None = None
    bias: Literal["none", "all", "lora_only"] = "none"
    use_rslora: bool = False
    use_dora: bool = False
    use_qalora: bool = False
    qalora_group_size: int = Field(16, ge=1)
    lora_bias: bool = False
    fan_in_fan_out: bool = False
    init_lora_weights: bool | str = True
    modules_to_save: list[str] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    layer_replication: list[tuple[int, int]] | None = None
    rank_pattern: dict[str, int] = Field(default_factory=dict)
    alpha_pattern: dict[str, int] = Field(default_factory=dict)
    target_parameters: list[str] | None = None
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None
    ensure_weight_tying: bool = False
    alora_invocation_tokens: list[int] | None = None
    megatron_config: dict[str, Any] | None = None
    megatron_core: str | None = "megatron.core"
    loftq_config: dict[str, Any] = Field(default_factory=dict)
    eva_config: dict[str, Any] | None = None
    corda_config: dict[str, Any] | None = None
    lora_ga_config: dict[str, Any] | None = None
    velora_config: dict[str, Any] | None = None
    monteclora_config: dict[str, Any] | None = None
    runtime_config: dict[str, Any] = Field(default_factory=dict)
    use_bdlora: dict[str, Any] | None = None
    arrow_config: dict[str, Any] | None = None
    kasa_config: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _one_choice_of_layers(self) -> AdapterSection:
        if self.layers != "all" and self.layers_to_transform is not None:
            raise ValueError("layers and layers_to_transform say the same thing; give one")
        return self
